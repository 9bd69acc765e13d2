"""Errors of a model: against plain mace-torch, structure by structure."""

import numpy as np
import pytest
import torch
from ase.calculators.singlepoint import SinglePointCalculator

from selectron.errors import SelectronError
from selectron.potentials.mace import MacePotential
from selectron.training.evaluate import errors
from small_maces import small_mace, stock_evaluation, structures


def test_errors_agree_with_plain_mace_torch():
    model = small_mace()
    random = np.random.default_rng(0)
    made, energies, forces = [atoms for atoms in structures() if len(atoms) > 1], [], []
    for atoms in made:
        energies.append(random.normal())
        forces.append(random.normal(size=(len(atoms), 3)))
        atoms.calc = SinglePointCalculator(atoms, energy=energies[-1], forces=forces[-1])
    alone = next(atoms for atoms in structures() if len(atoms) == 1)  # an isolated atom counts for nothing
    alone.calc = SinglePointCalculator(alone, energy=1e6, forces=np.zeros((1, 3)))
    found = errors(MacePotential(small_mace(), dtype=torch.float64), [*made, alone])
    one_by_one = [stock_evaluation(model, [atoms]) for atoms in made]
    off = np.array([float(one["energy"][0]) - e for one, e in zip(one_by_one, energies, strict=True)])
    off_forces = [one["forces"].numpy() - f for one, f in zip(one_by_one, forces, strict=True)]
    sizes = np.array([len(atoms) for atoms in made])
    np.testing.assert_allclose(found.energy_errors_eV, off, atol=1e-8)
    assert found.energy_mae_meV_atom == pytest.approx(1e3 * np.abs(off / sizes).mean())
    assert found.energy_rmse_eV == pytest.approx(np.sqrt((off**2).mean()))
    assert found.force_mae == pytest.approx(np.abs(np.concatenate(off_forces)).mean())
    assert found.force_rmse == pytest.approx(np.sqrt((np.concatenate(off_forces) ** 2).mean()))
    np.testing.assert_allclose(found.force_rmse_by_structure, [np.sqrt((f**2).mean()) for f in off_forces])
    moved = found.shifted(-found.energy_errors_eV)
    assert moved.energy_rmse_eV == 0.0
    assert moved.force_mae == pytest.approx(found.force_mae)


def test_structures_without_labels_are_refused():
    potential = MacePotential(small_mace(hidden_irreps="4x0e"), dtype=torch.float64)
    with pytest.raises(SelectronError, match="no energy and no forces"):
        errors(potential, structures()[:2])
    with pytest.raises(SelectronError, match="no structures"):
        errors(potential, [])
