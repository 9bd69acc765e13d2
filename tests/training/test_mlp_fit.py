"""Levenberg–Marquardt for stacks of planar MLPs."""

import numpy as np
import pytest
import torch
from scipy.optimize import least_squares

from selectron.errors import SelectronError
from selectron.potentials import MLPPotential, MuellerBrown, PlanarScaling, boltzmann_samples
from selectron.training.mlp_fit import fit_mlp

SCALING = PlanarScaling(centre_A=(-0.25, 0.9), width_A=(1.3, 1.1), energy_eV=50.0, confinement_eV=20.0)
BOX = ((-1.8, 1.3), (-0.6, 2.3))


def _data(networks, count, seed=0):
    surface = MuellerBrown()
    points = boltzmann_samples(surface, kT_eV=25.0, bounds=BOX, count=networks * count, seed=seed, grid=200)
    energies, forces = surface.energies_and_forces(points)
    shape = (networks, count)
    return points.view(*shape, 2), energies.view(shape), forces.view(*shape, 2)


def _loss(potential, positions, energies, forces, energy_weight, force_weight, regularisation):
    """The loss from its definition, through the public potential."""
    predicted, slopes = potential.energies_and_forces(positions.reshape(-1, 2))
    energy_errors = (predicted.view_as(energies) - energies).square()
    force_errors = (slopes.view_as(forces) - forces).square().sum(2)
    ridge = potential.parameters[:, :-1].square().sum(1)
    return (energy_weight * energy_errors + force_weight * force_errors).mean(1) + regularisation * ridge


def _rmse(potential, positions, energies):
    predicted = potential.energies_and_forces(positions.reshape(-1, 2))[0].view_as(energies)
    return (predicted - energies).square().mean(1).sqrt()


def test_losses_are_the_loss_of_equation_1_and_never_rise():
    data, start = _data(4, 40), MLPPotential.initialise(4, 0, scaling=SCALING)
    options = {"energy_weight": 0.7, "force_weight": 0.02, "regularisation": 1e-3}
    fitted, history = fit_mlp(start, *data, steps=30, **options)
    assert history.loss.shape == history.damping.shape == (31, 4)
    torch.testing.assert_close(history.loss[0], _loss(start, *data, *options.values()), rtol=1e-10, atol=0)
    torch.testing.assert_close(history.loss[-1], _loss(fitted, *data, *options.values()), rtol=1e-10, atol=0)
    assert bool((history.loss.diff(dim=0) <= 0).all())
    assert bool((history.loss[-1] < 0.01 * history.loss[0]).all())
    again, _ = fit_mlp(start, *data, steps=30, **options)
    assert torch.equal(again.parameters, fitted.parameters)


@pytest.mark.slow
class TestAgainstScipy:
    """The same residuals for scipy.optimize.least_squares, with its own differences for a Jacobian."""

    starts, weights = 5, {"energy_weight": 1.0, "force_weight": 0.01, "regularisation": 1e-3}

    @pytest.fixture(scope="class")
    def references(self):
        positions, energies, forces = (field.expand(self.starts, *field.shape[1:]) for field in _data(1, 50))
        start = MLPPotential.initialise(self.starts, 0, hidden_units=4, scaling=SCALING)

        def residuals(theta):
            potential = MLPPotential(torch.from_numpy(theta)[None], SCALING)
            predicted, slopes = potential.energies_and_forces(positions[0])
            return np.concatenate(
                [
                    np.sqrt(1.0 / 50) * (predicted - energies[0]).numpy(),
                    np.sqrt(0.01 / 50) * (slopes - forces[0]).numpy().ravel(),
                    np.sqrt(1e-3) * theta[:-1],
                ]
            )

        found = [
            least_squares(residuals, theta.numpy().copy(), jac="3-point", max_nfev=200, ftol=1e-14, xtol=1e-12)
            for theta in start.parameters
        ]
        return start, (positions, energies, forces), found

    def test_its_best_minimum_is_no_worse(self, references):
        # one start may fall into different minima here and there, so that only the best of all starts is compared
        start, data, found = references
        _, history = fit_mlp(start, *data, steps=200, **self.weights)
        assert float(history.loss[-1].min()) <= min(2 * each.cost for each in found) * (1 + 1e-6)

    def test_from_near_a_minimum_of_scipy_it_goes_there(self, references):
        _, data, found = references
        minima = torch.stack([torch.from_numpy(each.x) for each in found])
        noise = torch.randn(minima.shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
        _, history = fit_mlp(MLPPotential(minima + 1e-3 * noise, SCALING), *data, steps=100, **self.weights)
        costs = torch.tensor([2 * each.cost for each in found], dtype=torch.float64)
        assert bool((history.loss[-1] <= costs * (1 + 1e-6)).all())
        torch.testing.assert_close(history.loss[-1], costs, rtol=1e-4, atol=0)


def test_a_network_that_can_be_represented_is_recovered():
    teacher = MLPPotential.initialise(2, 3, hidden_units=6, scaling=SCALING)
    positions = 2.5 * torch.rand(2, 80, 2, generator=torch.Generator().manual_seed(0), dtype=torch.float64) - 1.0
    energies, forces = teacher.energies_and_forces(positions.reshape(-1, 2))
    noise = torch.randn(teacher.parameters.shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    start = MLPPotential(teacher.parameters + 0.1 * noise, SCALING)
    fitted, _ = fit_mlp(start, positions, energies.view(2, 80), forces.view(2, 80, 2), steps=200)
    elsewhere = _data(2, 200)[0].reshape(-1, 2)
    for found, expected in zip(
        fitted.energies_and_forces(elsewhere), teacher.energies_and_forces(elsewhere), strict=True
    ):
        torch.testing.assert_close(found, expected, rtol=0, atol=1e-6)


def test_a_mask_is_a_fit_of_the_subset():
    positions, energies, forces = _data(3, 60)
    start = MLPPotential.initialise(3, 2, hidden_units=5, scaling=SCALING)
    mask = torch.arange(60)[None] % 3 != torch.arange(3)[:, None]
    energies, forces = energies.clone(), forces.clone()
    energies[~mask], forces[~mask] = torch.nan, torch.inf
    options = {"energy_weight": 1.0, "force_weight": 0.01, "steps": 12, "regularisation": 1e-3}
    together, history = fit_mlp(start, positions, energies, forces, mask=mask, **options)
    for k in range(3):
        kept = mask[k]
        alone, own = fit_mlp(
            start.network(k), positions[k : k + 1, kept], energies[k : k + 1, kept], forces[k : k + 1, kept], **options
        )
        torch.testing.assert_close(together.parameters[k], alone.parameters[0], rtol=1e-6, atol=1e-6)
        torch.testing.assert_close(history.loss[:, k], own.loss[:, 0], rtol=1e-6, atol=0)


def test_a_point_of_weight_two_counts_as_if_it_were_there_twice():
    positions, energies, forces = _data(2, 30)
    start = MLPPotential.initialise(2, 2, hidden_units=5, scaling=SCALING)
    weights = torch.tensor([0.0, 1.0, 2.0]).repeat(10).expand(2, 30)
    energies = torch.where(weights > 0, energies, torch.nan)
    options = {"energy_weight": 1.0, "force_weight": 0.01, "steps": 12, "regularisation": 1e-3}
    weighted, history = fit_mlp(start, positions, energies, forces, mask=weights, **options)
    twice = torch.arange(30).repeat_interleave(weights[0].long())
    repeated, own = fit_mlp(start, positions[:, twice], energies[:, twice], forces[:, twice], **options)
    torch.testing.assert_close(weighted.parameters, repeated.parameters, rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(history.loss, own.loss, rtol=1e-6, atol=0)
    scaled, _ = fit_mlp(start, positions, energies, forces, mask=3 * weights, **options)
    torch.testing.assert_close(scaled.parameters, weighted.parameters, rtol=1e-6, atol=1e-6)


def test_a_fit_learns_mueller_brown_and_goes_on_from_where_it_is():
    data, start = _data(5, 200), MLPPotential.initialise(5, 0, scaling=SCALING)
    tests = _data(5, 300, seed=9)
    options = {"energy_weight": 1.0, "force_weight": 0.01, "regularisation": 1e-4}
    fitted, first = fit_mlp(start, *data, steps=60, **options)
    before, after = _rmse(start, *tests[:2]), _rmse(fitted, *tests[:2])
    assert float(after.median()) < 0.05 * float(before.median())
    assert float(after.median()) < 5.0
    warm, second = fit_mlp(fitted, *data, steps=10, **options)
    assert torch.equal(second.loss[0], first.loss[-1])
    assert bool((second.loss[-1] < first.loss[-1]).all())
    assert warm.fingerprint != fitted.fingerprint


def test_energies_alone_or_forces_alone():
    data, start = _data(2, 60), MLPPotential.initialise(2, 0, scaling=SCALING)
    by_energy, _ = fit_mlp(start, *data, energy_weight=1.0, force_weight=0.0, steps=60, regularisation=1e-4)
    assert float(_rmse(by_energy, *data[:2]).max()) < 1.0
    by_force, _ = fit_mlp(start, *data, energy_weight=0.0, force_weight=1.0, steps=60, regularisation=1e-4)
    slopes = by_force.energies_and_forces(data[0].reshape(-1, 2))[1].view_as(data[2])
    assert float((slopes - data[2]).square().mean().sqrt()) < 0.2 * float(data[2].square().mean().sqrt())


def test_what_cannot_be_fitted_is_a_sentence():
    positions, energies, forces = _data(2, 10)
    start = MLPPotential.initialise(2, 0, scaling=SCALING)
    with pytest.raises(SelectronError, match="A fit of 2 networks needs positions"):
        fit_mlp(start, positions, energies[:, :5], forces)
    with pytest.raises(SelectronError, match="must be finite"):
        fit_mlp(start, positions, energies * torch.nan, forces)
    with pytest.raises(SelectronError, match="at least one point"):
        fit_mlp(start, positions, energies, forces, mask=torch.tensor([[True], [False]]).expand(2, 10))
    with pytest.raises(SelectronError, match="finite and not negative"):
        fit_mlp(start, positions, energies, forces, mask=torch.full((2, 10), -1.0))
    with pytest.raises(SelectronError, match="must not be negative"):
        fit_mlp(start, positions, energies, forces, energy_weight=-1.0)
