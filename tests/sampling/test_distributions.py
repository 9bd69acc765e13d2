"""What samplers converge to: SKMD to the Boltzmann distribution with more particles, metadynamics to a flat free energy.

Errors are of independent ensembles or walkers; seeds are fixed.
"""

import math

import numpy as np
import pytest
from sampled_systems import NO_LIMITS, plane, points

from selectron.potentials.surfaces import DoubleWell, GaussianMixture
from selectron.sampling import (
    SteinKernel,
    Stepping,
    Unbiased,
    Watch,
    WellTemperedMetadynamics,
    brownian,
    fixed_bandwidth,
    fixed_steps,
    make_system,
    skmd,
    synchronous_skmd,
)

WEIGHTS = np.array([0.65, 0.35])
MEANS = np.array([[-1.0, 0.0], [1.2, 0.6]])
VARIANCES = np.array([0.35, 0.25])
SECOND_MOMENTS = (WEIGHTS[:, None] * (VARIANCES[:, None] + MEANS**2)).sum(0)
LENGTH = 0.6


def mixture():
    """At kT = 1 eV its Boltzmann distribution is the mixture."""
    return GaussianMixture(MEANS.tolist(), VARIANCES.tolist(), WEIGHTS.tolist(), kT_eV=1.0)


def smoothed(a, b, variances):
    """Gaussian kernel of length LENGTH between Gaussians at a (n, 2) and b (m, 2) whose variances add up to ``variances``."""
    squared = ((a[:, None] - b[None]) ** 2).sum(-1)
    return LENGTH**2 / (LENGTH**2 + variances) * np.exp(-squared / (2 * (LENGTH**2 + variances)))


WITHIN = float(
    (smoothed(MEANS, MEANS, VARIANCES[:, None] + VARIANCES) * np.outer(WEIGHTS, WEIGHTS)).sum()
)  # E k(x, x') of two independent draws


def discrepancy(x):
    """Squared maximum mean discrepancy of the points x (M, 2) to the mixture, in closed form."""
    return smoothed(x, x, 0.0).mean() - 2 * (smoothed(x, MEANS, VARIANCES) * WEIGHTS).sum(1).mean() + WITHIN


def sampled(make, particles, ensembles, sweeps, form="mean", every=1):
    """Squared discrepancy (E,) of each ensemble and second moments (E, 2), both averaged over the second half of a run."""
    starts = np.random.default_rng(particles).normal(0, 1, (ensembles * particles, 2))
    pace = particles if form == "sum" else 1
    sampler = make(
        plane(mixture(), starts),
        particles=particles,
        stepping=Stepping(1.0, 0.25 / pace, form=form, max_displacement_A=None),
        seed=1,
        stein=SteinKernel(bandwidth=fixed_bandwidth(0.7)),
        watch=Watch((fixed_steps(every),), NO_LIMITS),
    )
    state, found, moments = sampler.init(), [], []
    per_sweep = particles * every if make is skmd else every
    for sweep in range(sweeps):
        for _ in range(per_sweep):
            state, _ = sampler.step(state)
        if sweep >= sweeps // 2 and sweep % 5 == 0:
            where = state.standing.positions if make is skmd else state.positions
            x = where.reshape(ensembles, particles, 3)[..., :2].numpy()
            found.append([discrepancy(one) for one in x])
            moments.append((x**2).mean(1))
    return np.mean(found, 0), np.mean(moments, 0)


def mean_and_error(values):
    return values.mean(0), values.std(0, ddof=1) / math.sqrt(len(values))


def independent_draws(particles):
    """Expected squared discrepancy of so many independent draws from the mixture."""
    return (1.0 - WITHIN) / particles


def test_an_ensemble_comes_closer_to_the_boltzmann_distribution_with_more_particles():
    found = {m: sampled(synchronous_skmd, m, max(6, 96 // m), 200) for m in (4, 16, 64)}
    errors = {m: mean_and_error(each) for m, (each, _) in found.items()}
    for few, many in ((4, 16), (16, 64)):
        assert errors[many][0] + 4 * errors[many][1] < errors[few][0] - 4 * errors[few][1]
    for m, (mean, error) in errors.items():
        assert mean + 2 * error < independent_draws(m)
    # particles that repel each other are worth more than independent draws
    assert errors[64][0] < 0.6 * independent_draws(64)
    for axis in (0, 1):
        moment, error = mean_and_error(found[64][1][:, axis])
        # what isotropic noise leaves at a finite M is some per cent
        assert abs(moment - SECOND_MOMENTS[axis]) < 4 * error + 0.15 * SECOND_MOMENTS[axis]


@pytest.mark.parametrize("every", [pytest.param(1, marks=pytest.mark.slow), 3])
def test_particles_that_move_one_after_the_other_converge_as_well(every):
    few, _ = sampled(skmd, 4, 8, 180 // every, form="sum", every=every)
    many, moments = sampled(skmd, 24, 6, 90 // every, form="sum", every=every)
    (mean, error), (before, spread) = mean_and_error(many), mean_and_error(few)
    assert mean + 4 * error < (before - 4 * spread) / 3
    assert mean + 2 * error < independent_draws(24)
    for axis in (0, 1):
        moment, error = mean_and_error(moments[:, axis])
        assert abs(moment - SECOND_MOMENTS[axis]) < 4 * error + 0.25 * SECOND_MOMENTS[axis]


class AlongX:
    """The x coordinate as the only descriptor."""

    name, needs_node_features, identity = "x", False, False

    def values(self, positions, node_features, template):
        return positions[:, :1]


def test_well_tempered_hills_level_the_free_energy_but_for_the_bias_factor():
    barrier, kT, gamma, walkers = 0.4, 0.05, 8.0, 24
    potential = DoubleWell(barrier, 1.0, 1.0)
    system = make_system(potential, points([[-1.0, 0.0]] * walkers), descriptor=AlongX())
    field = WellTemperedMetadynamics(system, kT_eV=kT, height_eV=0.02, bias_factor=gamma, every=10, width=0.2)
    plain, biased = (
        brownian(one, kT_eV=kT, step_size=0.04, seed=1, watch=Watch(geometry=NO_LIMITS))
        for one in (Unbiased(system), field)
    )
    crossed = []
    for sampler, steps in ((plain, 1000), (biased, 3000)):
        state = sampler.init()
        for _ in range(steps):
            state, _ = sampler.step(state)
        crossed.append(float((state.positions[:, 0] > 0).double().mean()))
    hills = state.memory.bias
    x = np.linspace(-1.15, 1.15, 60)
    centres, heights = hills.centres[..., 0].numpy(), hills.heights.numpy()
    bias = (heights[:, None] * np.exp(-((x[:, None] - centres[:, None]) ** 2) / (2 * 0.2**2))).sum(-1)
    free_energy = barrier * (x**2 - 1) ** 2
    levelled = free_energy + bias * gamma / (gamma - 1)
    levelled -= levelled.mean(1, keepdims=True)
    mean, error = mean_and_error(levelled)
    # the unbiased walkers are where they were, the biased are on either side
    assert crossed[0] < 0.2
    assert abs(crossed[1] - 0.5) < 4 * 0.5 / math.sqrt(walkers)
    assert error.max() < 0.08
    # flat to half a kT, of a barrier of eight
    assert np.abs(mean).max() < 0.5 * kT + 4 * error.max()
    assert np.abs(mean).mean() < 0.5 * kT
    # and without the factor γ/(γ − 1) it is not as flat
    wrong = (free_energy + bias).mean(0)
    assert wrong.std() > mean.std()
    # hills have shrunk to w exp(−B/kΔT)
    assert heights[:, -1].mean() < 0.5 * heights[:, 0].mean()
