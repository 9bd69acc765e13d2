"""What is counted in structures that are shown one by one."""

import numpy as np
import pytest
from ase import Atoms
from ase.build import bulk, fcc111, molecule

from selectron.inspection.compositions import Compositions, fit_compositions
from selectron.inspection.keys import KEYS_AT_MOST, KeysCensus
from selectron.inspection.makeup import MakeupCensus, counts_of, periodicity, vacuum
from selectron.inspection.refusals import RefusalCensus, kind_of
from selectron.inspection.repeats import RepeatsCensus
from selectron.inspection.result import Range, plain
from selectron.inspection.texts import VALUES_AT_MOST, TextsCensus, WeightsCensus
from selectron.structures.reader import Source


def test_elements_sizes_and_periodicity():
    census = MakeupCensus()
    for atoms in (molecule("H2O"), molecule("CH4"), bulk("Cu"), fcc111("Cu", (2, 2, 3), vacuum=6.0)):
        census.add(atoms, counts_of(atoms))
    found = census.result()
    assert found.structures == {"H": 2, "C": 1, "O": 1, "Cu": 2}
    assert found.atoms == {"H": 6, "C": 1, "O": 1, "Cu": 13}
    assert found.sizes == Range(4, 1.0, 4.0, 12.0)
    assert found.kinds == {"molecule": 2, "crystal": 1, "slab (open along c)": 1}
    assert found.with_vacuum == {}


def test_periodicity_names_the_open_directions():
    names = [periodicity(np.array(pbc)) for pbc in ((1, 1, 1), (0, 1, 1), (0, 0, 1), (0, 0, 0))]
    assert names == ["crystal", "slab (open along a)", "chain (open along a, b)", "molecule"]


@pytest.mark.parametrize("shift", [0.0, 7.3, -25.0])
def test_vacuum_is_seen_wherever_the_slab_lies_in_its_cell(shift):
    slab = fcc111("Cu", (2, 2, 3), vacuum=4.1, periodic=True)
    slab.positions[:, 2] += shift
    assert vacuum(slab) == "c"
    slab.cell[2, 2] -= 0.3  # 7.9 Å are left
    assert vacuum(slab) == ""


def test_vacuum_is_measured_at_right_angles_to_the_other_vectors():
    slab = fcc111("Cu", (2, 2, 3), vacuum=4.1, periodic=True)
    slab.cell[2] += 3 * slab.cell[0]
    assert vacuum(slab) == "c"
    box = molecule("H2O", cell=[12, 12, 12], pbc=True)
    assert vacuum(box) == "a, b, c"


def energies_of(structures, references, noise):
    return np.array([sum(references[s] for s in one.symbols) for one in structures]) + noise


def test_a_wrong_energy_stands_out_from_what_compositions_explain():
    random = np.random.default_rng(3)
    names = ["H2O", "CH4", "CO2", "CH3OH", "C2H4", "H2CO", "C2H6", "CH3CHO"]
    structures = [molecule(names[i % len(names)]) for i in range(400)]
    sizes = np.array([len(one) for one in structures])
    noise = sizes * random.normal(0, 0.02, 400)
    energies = energies_of(structures, {"H": -13.6, "C": -1030.0, "O": -2041.0}, noise)
    energies[[17, 300]] += [37.0, -9.0]
    energies[40] = np.nan
    census = Compositions()
    for one in structures:
        census.add(counts_of(one))
    table, of, numbers = census.matrix()
    fit = fit_compositions(table, of, energies)
    assert numbers.tolist() == [1, 6, 8]
    assert len(table) == len(names)
    assert fit.determined
    assert fit.spread_eV_atom == pytest.approx(0.02, rel=0.15)
    outliers = fit.outliers()
    assert [one.row for one in outliers] == [17, 300]
    assert outliers[0].off_eV == pytest.approx(37.0, abs=0.5)
    assert outliers[1].off_eV_atom == pytest.approx(-9.0 / sizes[300], abs=0.1)
    assert np.isnan(fit.residuals_eV[40])


def test_residuals_of_one_stoichiometry_are_those_from_its_median():
    census = Compositions()
    energies = np.array([-10.0, -10.2, -9.9, -10.1, -10.0, -10.05, 5.0])
    for _ in energies:
        census.add(counts_of(molecule("H2O")))
    table, of, _ = census.matrix()
    fit = fit_compositions(table, of, energies)
    assert [one.row for one in fit.outliers()] == [6]
    assert np.abs(fit.residuals_eV[:6]).max() < 0.25


def test_as_many_references_as_structures_say_nothing():
    census = Compositions()
    for name in ("H2O", "CH4", "CO2"):
        census.add(counts_of(molecule(name)))
    table, of, _ = census.matrix()
    assert not fit_compositions(table, of, np.array([-2000.0, -1000.0, 3.0])).determined


def test_repeats_and_their_labels():
    water, other = molecule("H2O"), molecule("CH4")
    census = RepeatsCensus()
    states = [(0, 1), (0, 1), (0, 1), (0, 1), (-1, 2), (-1, 2)]
    for atoms, state in zip([water, other, water, water, water, water], states, strict=True):
        census.add(atoms, state)
    found = census.result(np.array([-2000.0, -1000.0, -2000.0005, -1999.0, -2100.0, np.nan]))
    assert found.duplicates == 4
    assert found.other_state == 1
    assert found.other_label == 1
    assert found.examples == [(2, 3, pytest.approx(1.0005))]
    assert RepeatsCensus().result(np.zeros(0)).duplicates == 0


def test_refusals_of_a_kind_are_counted_together():
    census = RefusalCensus()
    reasons = [
        "C1 and H5 are 0.312 Å apart, closer than 0.4 Å",
        "it has no atoms",
        "O0 and H2 are 0.1 Å apart, closer than 0.4 Å",
    ]
    for place, reason in reversed(list(enumerate(reasons))):
        census.add(place, Source("a.xyz", place), reason)
    assert [one.index for one in census.listed()] == [0, 1, 2]
    first, second = census.kinds()
    assert (first.count, second.count) == (2, 1)
    assert second.first.reason == "it has no atoms"
    assert kind_of("the model does not know Pt, Au") == kind_of("the model does not know Si")
    assert kind_of("it has the energy 'x 1', which is not a number") == kind_of(
        "it has the energy 'y', which is not a number"
    )


def test_texts_with_few_values_are_counted_and_names_of_single_structures_are_not():
    census = TextsCensus()
    for i in range(VALUES_AT_MOST + 1):
        census.add(Atoms("H", info={"level": "PBE" if i % 2 else "RPBE", "name": f"frame {i}", "number": i}))
    half = (VALUES_AT_MOST + 1) // 2
    assert census.result() == {"level": {"RPBE": VALUES_AT_MOST + 1 - half, "PBE": half}}


def test_weights_and_keys():
    weights, keys = WeightsCensus(), KeysCensus()
    for value in (0.0, 2.0, 1.0, "heavy"):
        atoms = Atoms("H", info={"config_energy_weight": value})
        atoms.set_array("tags", np.zeros(1))
        weights.add(atoms)
        keys.add(atoms)
    assert weights.result() == {"config_energy_weight": (Range(3, 0.0, 1.0, 2.0), 1)}
    assert keys.info == {"config_energy_weight": 4}
    assert keys.arrays == {"tags": 4}
    keys.add(Atoms("H", info={f"word{i}": True for i in range(2 * KEYS_AT_MOST)}))
    assert len(keys.info) == KEYS_AT_MOST


def test_what_is_no_number_is_null_in_json():
    assert plain({1: Range(), "a": [np.float32(0.5), np.int64(2), float("inf")]}) == {
        "1": {"count": 0, "min": None, "median": None, "max": None},
        "a": [0.5, 2, None],
    }
