"""Systems to sample, and the SKMD equations written once more in plain NumPy from the text of the papers."""

import copy
import functools
import math

import numpy as np
import torch
from ase import Atoms
from ase.build import molecule

from selectron.potentials.base import Evaluation
from selectron.potentials.mace import MacePotential
from selectron.sampling import Coordinates, Geometry, NodeFeatures, make_system
from small_maces import small_mace

NO_LIMITS = Geometry(0.0, math.inf, math.inf, math.inf)


@functools.cache
def _model(seed):
    return small_mace(hidden_irreps="4x0e + 4x1o", correlation=2, seed=seed)


@functools.cache
def tiny_mace(seed=0, dtype=torch.float64):
    """A random MACE of two layers as potential."""
    return MacePotential(copy.deepcopy(_model(seed)), name=f"tiny-{seed}", device="cpu", dtype=dtype)


def point(x, y):
    return Atoms("X", positions=[[x, y, 0.0]])


def points(positions):
    return [point(*p) for p in positions]


def plane(potential, positions):
    """A system of points with their coordinates as descriptor."""
    return make_system(potential, points(positions), descriptor=Coordinates())


def shaken(atoms, count, amount=0.05, seed=0):
    """Copies of ``atoms`` with normal displacements."""
    random = np.random.default_rng(seed)
    out = []
    for _ in range(count):
        one = atoms.copy()
        one.positions += random.normal(0, amount, (len(atoms), 3))
        out.append(one)
    return out


def crystal():
    """CO in a skewed cell of 2 × 1 × 1, periodic in all directions."""
    atoms = Atoms("CO", [[0, 0, 0], [1.2, 0.3, 0.2]], cell=[[2.6, 0, 0], [0.4, 2.7, 0], [-0.3, 0.5, 2.9]], pbc=True)
    return atoms * (2, 1, 1)


def water(count, amount=0.08, seed=0):
    return shaken(molecule("H2O"), count, amount, seed)


def mace_system(structures, seed=0, dtype=torch.float64):
    return make_system(tiny_mace(seed, dtype), structures, descriptor=NodeFeatures())


class Springs:
    """Springs of one stiffness (eV/Å²) and rest length (Å) between all pairs of atoms of a structure of n atoms.

    The Laplacian is known in closed form, and nothing ever dissociates.
    """

    name, fingerprint, elements, cutoff_A = "springs", "springs", None, None
    capabilities = frozenset({"energy", "forces"})
    device, dtype = torch.device("cpu"), torch.float64

    def __init__(self, n, stiffness=2.0, rest=1.2):
        self.n, self.stiffness, self.rest = n, stiffness, rest

    def pairs(self, positions):
        """Vectors (P, n, n, 3) and lengths (P, n, n), 1 on the diagonal."""
        r = positions.reshape(-1, self.n, 3)
        vectors = r[:, :, None] - r[:, None]
        return vectors, (vectors.square().sum(-1) + torch.eye(self.n)).sqrt()

    def evaluate(self, batch, *, forces=True, stress=False, node_features=False):
        vectors, lengths = self.pairs(batch.positions)
        off = 1.0 - torch.eye(self.n, dtype=torch.float64)
        stretch = (lengths - self.rest) * off
        energies = 0.25 * self.stiffness * stretch.square().sum((1, 2))
        pull = -self.stiffness * ((stretch / lengths)[..., None] * vectors).sum(2)
        return Evaluation(energies, pull.reshape(-1, 3))

    def laplacian(self, positions):
        """(P,) Σ ∂²V/∂r²: of each pair 2 k (1 + 2 (1 − rest/length))."""
        _, lengths = self.pairs(positions)
        off = 1.0 - torch.eye(self.n, dtype=torch.float64)
        return (self.stiffness * (3.0 - 2.0 * self.rest / lengths) * off).sum((1, 2))


def run(sampler, steps):
    """The last state and the info of each step."""
    state, infos = sampler.init(), []
    for _ in range(steps):
        state, info = sampler.step(state)
        infos.append(info)
    return state, infos


def same(first, second):
    """Whether two states are equal bit for bit, leaving out neighbour lists."""
    if isinstance(first, torch.Tensor):
        return torch.equal(torch.nan_to_num(first, nan=1e300), torch.nan_to_num(second, nan=1e300))
    if isinstance(first, tuple):
        if hasattr(first, "graphs"):
            return same(first.bias, second.bias)
        return len(first) == len(second) and all(same(a, b) for a, b in zip(first, second, strict=True))
    return first == second


def kernel_and_gradients(displacements, bandwidth, amplitude=1.0):
    """Gaussian kernel of d(r) − d(r_j) (M, D), and its gradient in d(r_j) (M, D)."""
    k = amplitude * np.exp(-(displacements**2).sum(1) / (2 * bandwidth**2))
    return k, k[:, None] * displacements / bandwidth**2


def median_distance(descriptors):
    """Median Euclidean distance of pairs of rows."""
    count = len(descriptors)
    return np.median(
        [np.sqrt(((descriptors[i] - descriptors[j]) ** 2).sum()) for i in range(count) for j in range(i + 1, count)]
    )


def stein_bias(i, here, descriptors, forces, jacobians, bandwidth, kT, amplitude=1.0):
    """b of SKMD, eq. 5b, for particle i at descriptor ``here``; forces (M, 3n), jacobians (M, D, 3n)."""
    total = np.zeros(forces.shape[1])
    for j in range(len(forces)):
        if j != i:
            k, gradient = kernel_and_gradients((here - descriptors[j])[None], bandwidth, amplitude)
            total += k[0] * forces[j] + kT * jacobians[j].T @ gradient[0]
    return total / len(forces)


def asynchronous_skmd(
    positions, evaluate, jacobian, *, kT, step_size, stop_after, steps, noises, form="sum", alpha=1.0, amplitude=1.0
):
    """Eqs. 5 to 7 with the median bandwidth, nothing kept: everything about every particle anew at every step.

    ``positions`` (M, 3n); ``evaluate(x)`` gives (forces (3n,), descriptor (D,)), ``jacobian(x)`` (D, 3n); ``noises``
    (steps, 3n). Returns positions of the moving particle after each step (steps, 3n), and of all at the end.
    """
    ensemble = [np.array(p) for p in positions]
    count = len(ensemble)
    active, age, path = 0, 0, []
    moving = ensemble[0].copy()
    bandwidth = None
    for step in range(steps):
        standing = [evaluate(p) for p in ensemble]
        forces = np.array([f for f, _ in standing])
        descriptors = np.array([d for _, d in standing])
        jacobians = np.array([jacobian(p) for p in ensemble])
        if age == 0:
            bandwidth = median_distance(descriptors)
        force, here = evaluate(moving)
        b = stein_bias(active, here, descriptors, forces, jacobians, bandwidth, kT, amplitude)
        scale = step_size * (count if form == "sum" else 1)
        own = alpha if form == "full" else alpha / count
        drift = scale * (own * force + b)
        moving = moving + drift + np.sqrt(2 * scale * own * kT) * noises[step]
        path.append(moving.copy())
        age += 1
        if age == stop_after:
            ensemble[active] = moving.copy()
            active, age = (active + 1) % count, 0
            moving = ensemble[active].copy()
    return np.array(path), np.array(ensemble)
