"""Analytic surfaces: their forces, known stationary points, and exact Boltzmann samples."""

import numpy as np
import pytest
import torch
from ase import Atoms
from ase.build import molecule
from scipy.optimize import minimize
from scipy.stats import kstest, multivariate_normal

from selectron.errors import SelectronError
from selectron.potentials import (
    SURFACES,
    DoubleWell,
    GaussianMixture,
    Harmonic,
    MuellerBrown,
    boltzmann_samples,
    landscape,
    load_potential,
)

MEANS = [[-1.0, 0.2], [1.2, -0.3], [0.1, 1.5]]
COVARIANCES = [[[0.2, 0.05], [0.05, 0.1]], [[0.1, 0.0], [0.0, 0.3]], [[0.15, -0.08], [-0.08, 0.2]]]
WEIGHTS = [1.0, 2.0, 0.5]
SURFACE_KINDS = [
    MuellerBrown(),
    MuellerBrown(0.1),
    GaussianMixture(MEANS, COVARIANCES, WEIGHTS, 0.4),
    Harmonic([[2.0, 0.7], [0.7, 1.0]], (0.3, -0.2)),
    Harmonic(3.0),
    DoubleWell(2.0, 1.3, 4.0),
]
BOX = ((-1.8, 1.3), (-0.6, 2.3))


def _points(count=40, seed=0):
    generator = torch.Generator().manual_seed(seed)
    low, high = torch.tensor([-1.5, -0.5]), torch.tensor([1.1, 2.0])
    return (low + (high - low) * torch.rand(count, 2, generator=generator)).double()


def _structures(points):
    return [Atoms("X", positions=[[float(x), float(y), 0.0]]) for x, y in points]


def _energy(surface, points):
    return surface.energies_and_forces(torch.as_tensor(points, dtype=torch.float64))[0]


@pytest.mark.parametrize("surface", SURFACE_KINDS, ids=lambda s: s.name)
class TestEverySurface:
    def test_forces_are_the_slope_of_the_energy(self, surface):
        points, step = _points(), 1e-5
        result = surface.evaluate(surface.batch(_structures(points)))
        assert result.energies.dtype == torch.float64
        for axis in (0, 1):
            shift = torch.zeros(2, dtype=torch.float64)
            shift[axis] = step
            slope = (_energy(surface, points - shift) - _energy(surface, points + shift)) / (2 * step)
            torch.testing.assert_close(result.forces[:, axis], slope, rtol=1e-6, atol=1e-6)

    def test_nothing_pulls_out_of_the_plane(self, surface):
        result = surface.evaluate(surface.batch(_structures(_points())))
        assert result.forces.shape == (40, 3)
        assert torch.count_nonzero(result.forces[:, 2]) == 0

    def test_its_graph_gives_the_same_forces(self, surface):
        batch = surface.batch(_structures(_points()))
        graph = surface.differentiable(batch)
        assert graph.positions.is_leaf
        (gradient,) = torch.autograd.grad(graph.energies.sum(), graph.positions)
        torch.testing.assert_close(-gradient, surface.evaluate(batch).forces, rtol=1e-10, atol=1e-10)

    def test_height_above_the_plane_does_not_matter(self, surface):
        flat, lifted = _structures(_points()), _structures(_points())
        for atoms in lifted:
            atoms.positions[:, 2] = 3.0
        first, second = (surface.evaluate(surface.batch(structures)) for structures in (flat, lifted))
        assert torch.equal(first.energies, second.energies)
        assert torch.equal(first.forces, second.forces)

    def test_what_it_cannot_do_is_a_sentence(self, surface):
        batch = surface.batch(_structures(_points(2)))
        with pytest.raises(SelectronError, match="does not give stress"):
            surface.evaluate(batch, stress=True)
        with pytest.raises(SelectronError, match="does not give node features"):
            surface.differentiable(batch, node_features=True)
        with pytest.raises(SelectronError, match="structures of one atom; structure 1 has 3"):
            surface.batch([Atoms("X"), molecule("H2O")])

    def test_an_empty_batch(self, surface):
        result = surface.evaluate(surface.batch([]))
        assert result.energies.shape == (0,)
        assert result.forces.shape == (0, 3)


@pytest.mark.parametrize(
    ("energy", "point"),
    [
        (-146.6995, (-0.558, 1.442)),
        (-108.1667, (0.623, 0.028)),
        (-80.7678, (-0.050, 0.467)),
        (-40.6648, (-0.822, 0.624)),
        (-72.2489, (0.212, 0.293)),
    ],
)
def test_stationary_points_of_mueller_brown(energy, point):
    surface = MuellerBrown()

    def squared_force(position):
        return float(surface.energies_and_forces(torch.tensor(position[None]))[1].square().sum())

    found = minimize(squared_force, np.array(point), method="Nelder-Mead", options={"xatol": 1e-10, "fatol": 1e-14})
    assert found.x == pytest.approx(point, abs=1e-3)
    assert float(_energy(surface, found.x[None])) == pytest.approx(energy, abs=1e-3)
    assert float(_energy(MuellerBrown(0.25), found.x[None])) == pytest.approx(0.25 * energy, abs=1e-3)


def test_a_mixture_is_the_logarithm_of_its_density():
    points = _points()
    share = np.array(WEIGHTS) / np.sum(WEIGHTS)
    density = sum(
        w * multivariate_normal(m, c).pdf(points.numpy()) for w, m, c in zip(share, MEANS, COVARIANCES, strict=True)
    )
    surface = GaussianMixture(MEANS, COVARIANCES, WEIGHTS, 0.4)
    np.testing.assert_allclose(_energy(surface, points).numpy(), -0.4 * np.log(density), rtol=1e-10)
    far = surface.energies_and_forces(torch.tensor([[200.0, -300.0]], dtype=torch.float64))
    assert all(bool(value.isfinite().all()) for value in far)  # the density itself underflows there


def test_a_double_well_has_its_barrier():
    surface = DoubleWell(barrier_eV=2.0, half_distance_A=1.3, stiffness=4.0)
    energies, forces = surface.energies_and_forces(torch.tensor([[-1.3, 0], [1.3, 0], [0, 0]], dtype=torch.float64))
    assert energies.tolist() == pytest.approx([0.0, 0.0, 2.0], abs=1e-14)
    assert float(forces.abs().max()) < 1e-14


class TestBoltzmann:
    @staticmethod
    def _quadrature(surface, kT, bounds, n=1500):
        grid = landscape(surface, bounds, n)
        x, y = np.meshgrid(grid.x, grid.y)
        weight = np.exp(-(grid.energies - grid.energies.min()) / kT)
        return x, y, grid.energies, weight / weight.sum()

    @pytest.mark.parametrize("grid", [5, 60, (400, 300)])
    def test_moments_are_those_of_quadrature_whatever_the_grid(self, grid):
        surface, kT, count = MuellerBrown(), 20.0, 60_000
        x, y, energies, weight = self._quadrature(surface, kT, BOX)
        samples = boltzmann_samples(surface, kT_eV=kT, bounds=BOX, count=count, seed=1, grid=grid)
        assert samples.shape == (count, 2)
        sampled_energies = _energy(surface, samples).numpy()
        a, b = samples.numpy().T
        observables = [
            (a, x),
            (b, y),
            (a * a, x * x),
            (b * b, y * y),
            (a * b, x * y),
            (sampled_energies, energies),
            ((a > 0.2) * 1.0, (x > 0.2) * 1.0),
        ]
        for sampled, exact in observables:
            expected = float((weight * exact).sum())
            error = sampled.std() / np.sqrt(count)
            assert abs(sampled.mean() - expected) < 4 * error + 2e-4 * abs(expected)

    def test_samples_of_a_harmonic_surface_are_normal(self):
        stiffness, kT = np.array([[2.0, 0.7], [0.7, 1.0]]), 0.05
        surface = Harmonic(stiffness, (0.3, -0.2))
        samples = boltzmann_samples(surface, kT_eV=kT, bounds=((-4, 4), (-4, 4)), count=20_000, seed=3, grid=25).numpy()
        white = np.linalg.cholesky(stiffness / kT).T @ (samples - [0.3, -0.2]).T
        for component in white:
            assert kstest(component, "norm").pvalue > 1e-3
        assert abs(np.corrcoef(white)[0, 1]) < 0.03

    def test_a_mixture_at_its_temperature_is_sampled_with_its_means_and_weights(self):
        surface = GaussianMixture(MEANS, COVARIANCES, WEIGHTS, 0.4)
        samples = boltzmann_samples(surface, kT_eV=0.4, bounds=((-6, 6), (-6, 6)), count=40_000, seed=0)
        share = np.array(WEIGHTS) / np.sum(WEIGHTS)
        np.testing.assert_allclose(samples.mean(0).numpy(), share @ np.array(MEANS), atol=0.02)

    def test_a_seed_decides_and_samples_stay_inside(self):
        arguments = {"kT_eV": 30.0, "bounds": BOX, "count": 500}
        first, second, other = (boltzmann_samples(MuellerBrown(), seed=seed, **arguments) for seed in (1, 1, 2))
        assert torch.equal(first, second)
        assert not torch.equal(first, other)
        low, high = torch.tensor(BOX, dtype=torch.float64).T
        assert bool(((first >= low) & (first <= high)).all())

    def test_wrong_bounds_are_a_sentence(self):
        with pytest.raises(SelectronError, match="min below max"):
            boltzmann_samples(MuellerBrown(), kT_eV=1.0, bounds=((1, -1), (0, 1)), count=1, seed=0)
        with pytest.raises(SelectronError, match="kT_eV must be a positive number"):
            boltzmann_samples(MuellerBrown(), kT_eV=0.0, bounds=BOX, count=1, seed=0)


def test_a_landscape_has_x_along_its_rows():
    surface = MuellerBrown()
    grid = landscape(surface, BOX, (7, 5))
    assert grid.energies.shape == (5, 7)
    assert grid.energies[3, 2] == pytest.approx(float(_energy(surface, [[grid.x[2], grid.y[3]]])))


class TestByName:
    def test_arguments_reach_the_surface(self):
        points = _points()
        named = load_potential(
            "surface:gaussian-mixture?means=[[0,0],[2,1]]&covariances=[0.1,0.3]&weights=[1,2]&kT_eV=0.5"
        )
        made = GaussianMixture([[0, 0], [2, 1]], [np.eye(2) * 0.1, np.eye(2) * 0.3], [1, 2], 0.5)
        assert named.fingerprint == made.fingerprint
        assert torch.equal(_energy(named, points), _energy(made, points))
        assert load_potential("surface:mueller-brown").fingerprint == MuellerBrown().fingerprint
        assert load_potential("surface:mueller-brown?scale=0.1").fingerprint == MuellerBrown(0.1).fingerprint

    def test_every_name_is_its_surface(self):
        for name, kind in SURFACES.items():
            arguments = "?means=[[0,0]]&covariances=[1]" if name == "gaussian-mixture" else ""
            surface = load_potential(f"surface:{name}{arguments}")
            assert isinstance(surface, kind)
            assert surface.name == name
            assert surface.dimensions == 2

    def test_fingerprints_tell_surfaces_apart(self):
        assert len({surface.fingerprint for surface in SURFACE_KINDS}) == len(SURFACE_KINDS)

    @pytest.mark.parametrize(
        ("spec", "message"),
        [
            ("surface:mueler-brown", "There is no surface 'mueler-brown'; there are mueller-brown"),
            ("surface:gaussian-mixture", "needs means, covariances; it was given none"),
            ("surface:harmonic?stiffnes=2", "takes the arguments stiffness, centre; it was given stiffnes"),
            ("surface:mueller-brown?scale=-1", "scale must be a positive number"),
            ("surface:harmonic?stiffness=[[1,2],[2,1]]", "symmetric and positive definite"),
            ("surface:gaussian-mixture?means=[[0,0]]&covariances=[-1]", "symmetric and positive definite"),
            ("surface:gaussian-mixture?means=[[0,0],[1]]&covariances=[1]", "rows of equal length"),
            ("surface:gaussian-mixture?means=[[0,0],[1,1]]&covariances=[1]", r"means \(K, 2\)"),
        ],
    )
    def test_a_wrong_name_is_a_sentence(self, spec, message):
        with pytest.raises(SelectronError, match=message):
            load_potential(spec)
