"""The shift of level of theory: found where plain least squares is led astray, and honest about what it cannot know."""

import numpy as np
import pytest

from selectron.embedded import model_path
from selectron.errors import SelectronError
from selectron.potentials import load_potential
from selectron.structures import Pool
from selectron.training.evaluate import errors
from selectron.training.labels import labelled
from selectron.training.options import TrainOptions
from selectron.training.references import compositions, fit_shift, shift_of_level

NUMBERS = [1, 6, 7, 8]
SHIFT = np.array([-0.4, 1.1, 1.5, -0.9])


def molecules(random, count):
    """Compositions like those of small organic molecules."""
    heavy = random.multinomial(random.integers(3, 8, count)[:, None].ravel(), [0.6, 0.2, 0.2])
    return np.column_stack([2 + random.integers(0, 2 * heavy.sum(axis=1) + 1), heavy]).astype(float)


def batch(random, minima, transition_states):
    """Compositions, residuals and force errors: transition states have a wrong energy that grows with the force error."""
    counts = molecules(random, minima + transition_states)
    sizes = counts.sum(axis=1)
    far = np.arange(len(sizes)) >= minima
    force_errors = np.where(far, random.uniform(0.5, 1.2, len(sizes)), random.uniform(0.05, 0.15, len(sizes)))
    wrong = np.where(far, 0.4 * np.sqrt(sizes) * force_errors * random.uniform(0.3, 1.7, len(sizes)), 0.0)
    noise = random.normal(0.0, 0.02, len(sizes)) * np.sqrt(sizes)
    return counts, counts @ SHIFT + wrong + noise, force_errors


def typical_error(found, counts):
    """rms over the structures of the error of their shift, in eV an atom."""
    return np.sqrt(np.mean((counts @ (found - SHIFT) / counts.sum(axis=1)) ** 2))


def test_a_batch_full_of_transition_states_does_not_bias_the_shift():
    ours, plain = [], []
    for seed in range(10):
        counts, residuals, force_errors = batch(np.random.default_rng(seed), minima=10, transition_states=60)
        ours.append(typical_error(fit_shift(counts, residuals, force_errors, NUMBERS).shift_eV, counts))
        plain.append(typical_error(np.linalg.lstsq(counts, residuals, rcond=None)[0], counts))
    assert np.mean(plain) > 0.08
    assert np.mean(ours) < 0.02


def test_error_bars_cover_what_they_claim():
    inside = []
    for seed in range(40):
        counts, residuals, force_errors = batch(np.random.default_rng(100 + seed), minima=60, transition_states=0)
        shift = fit_shift(counts, residuals, force_errors, NUMBERS)
        inside.append(np.abs(shift.shift_eV - SHIFT) < 2 * shift.error_eV)
    assert np.mean(inside) > 0.85


def test_one_gross_outlier_hardly_counts():
    counts, residuals, force_errors = batch(np.random.default_rng(3), minima=40, transition_states=0)
    residuals[7] += 30.0
    assert typical_error(fit_shift(counts, residuals, force_errors, NUMBERS).shift_eV, counts) < 0.02


def test_a_shift_of_kilo_electronvolts_is_found_to_the_millielectronvolt():
    random = np.random.default_rng(0)
    counts = molecules(random, 40)
    large = np.array([-13.6, -1030.0, -1480.0, -2040.0])
    shift = fit_shift(counts, counts @ large, np.full(40, 0.1), NUMBERS)
    assert np.abs(shift.shift_eV - large).max() < 1e-3
    assert shift.significant


def test_fixed_stoichiometry_is_called_underdetermined_and_still_fits():
    random = np.random.default_rng(1)
    counts = np.tile([10.0, 6.0, 2.0, 2.0], (50, 1))
    residuals = counts @ SHIFT + random.normal(0, 0.02, 50)
    shift = fit_shift(counts, residuals, random.uniform(0.05, 0.2, 50), NUMBERS)
    assert shift.rank == 1
    assert np.isinf(shift.error_eV).all()
    assert abs(shift.of(counts[:1])[0] - counts[0] @ SHIFT) < 0.05


def test_elements_that_are_not_there_stay_where_they_are():
    counts, residuals, force_errors = batch(np.random.default_rng(5), minima=40, transition_states=0)
    counts = np.column_stack([counts, np.zeros(len(counts))])
    shift = fit_shift(counts, residuals, force_errors, [*NUMBERS, 9])
    assert shift.shift_eV[-1] == 0.0
    assert not shift.present[-1]
    assert np.isinf(shift.error_eV[-1])
    assert "F" not in shift.by_symbol()


@pytest.fixture(scope="module")
def embedded():
    potential = load_potential(model_path(), dtype="float64")
    with Pool.open(["embedded"]) as pool:
        return potential, labelled([pool[i] for i in range(120)])


def test_labels_of_the_models_own_level_are_left_alone(embedded):
    potential, structures = embedded
    shift = shift_of_level(potential, structures, TrainOptions())
    assert not shift.applied
    assert shift.note == ""


def test_a_real_shift_is_detected_through_the_errors_of_a_model_off_its_ground(embedded):
    """Reactive structures, 68 meV an atom off on average; the shift comes back three times better than that."""
    potential, structures = embedded
    counts = compositions([one.atoms.numbers for one in structures], NUMBERS)
    moved = [
        one._replace(energy_eV=one.energy_eV + float(n @ SHIFT)) for one, n in zip(structures, counts, strict=True)
    ]
    shift = shift_of_level(potential, moved, TrainOptions())
    assert shift.applied
    assert "another level of theory" in shift.note
    plain = np.linalg.lstsq(counts, -errors(potential, moved).energy_errors_eV, rcond=None)[0]
    assert typical_error(shift.shift_eV, counts) < min(0.022, 0.7 * typical_error(plain, counts))


def test_references_of_isolated_atoms_are_taken_as_given(embedded):
    potential, structures = embedded
    labels = {"H": -10.0, "C": -40.0, "N": -70.0, "O": -100.0}
    model = {"H": -10.5, "C": -41.0, "N": -72.0, "O": -104.0}
    options = TrainOptions(references="atoms", atom_energies_eV=labels, model_atom_energies_eV=model)
    assert shift_of_level(potential, structures, options).shift_eV.tolist() == [0.5, 1.0, 2.0, 4.0]
    partial = TrainOptions(references="atoms", atom_energies_eV={"H": -10.0})
    with pytest.raises(SelectronError, match="C, N, O"):
        shift_of_level(potential, structures, partial)
