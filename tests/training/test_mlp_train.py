"""The small MLP is trained by the same call as a MACE."""

import numpy as np
import pytest
from ase import Atoms
from ase.calculators.singlepoint import SinglePointCalculator

from selectron.errors import SelectronError
from selectron.potentials import load_potential
from selectron.potentials.mlp import MLPPotential, PlanarScaling
from selectron.training.evaluate import errors
from selectron.training.fine_tune import fine_tune
from selectron.training.options import TrainOptions


def well(count, seed):
    """Points of V = (x² − 1)² + y² with labels."""
    points = np.random.default_rng(seed).uniform(-1.4, 1.4, (count, 2))
    made = []
    for x, y in points:
        atoms = Atoms("X", positions=[[x, y, 0.0]])
        forces = [[-4 * x * (x * x - 1), -2 * y, 0.0]]
        atoms.calc = SinglePointCalculator(atoms, energy=(x * x - 1) ** 2 + y * y, forces=forces)
        made.append(atoms)
    return made


@pytest.fixture
def start(tmp_path):
    path = tmp_path / "start.mlp"
    MLPPotential.initialise(2, 0, scaling=PlanarScaling(width_A=(1.5, 1.5))).save(path)
    return path


OPTIONS = TrainOptions(kind="mlp", epochs=60, energy_weight=1.0, forces_weight=1.0)


def test_a_double_well_is_learnt_and_the_file_is_what_was_measured(start, tmp_path):
    seen = []
    result = fine_tune(start, well(60, 0), well(200, 1), OPTIONS, tmp_path / "work", on_progress=seen.append)
    assert result.improved
    assert result.after.force_rmse < 0.1 * result.before.force_rmse
    losses = [epoch.train_loss for epoch in result.history]
    assert losses == sorted(losses, reverse=True)
    assert seen == result.history
    fitted = load_potential(result.model_path)
    each = [errors(fitted.network(k), well(200, 1)).force_rmse for k in range(2)]
    assert result.after.force_rmse == pytest.approx(np.sqrt(np.mean(np.square(each))))
    again = fine_tune(start, well(60, 0), well(200, 1), OPTIONS, tmp_path / "again")
    assert load_potential(again.model_path).fingerprint == fitted.fingerprint


def test_molecules_are_no_business_of_a_planar_potential(start, tmp_path):
    molecule = Atoms("CO", [[0, 0, 0], [1.1, 0, 0]])
    molecule.calc = SinglePointCalculator(molecule, energy=0.0, forces=np.zeros((2, 3)))
    with pytest.raises(SelectronError, match="structures of one atom"):
        fine_tune(start, [molecule] * 4, None, OPTIONS, tmp_path / "work")
