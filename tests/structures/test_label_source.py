"""Which keys labels come from, and what is refused."""

import ase.db
import ase.io
import numpy as np
import pytest
from ase import Atoms
from ase.build import bulk, molecule
from ase.calculators.emt import EMT
from ase.calculators.singlepoint import SinglePointCalculator

from selectron.errors import SelectronError
from selectron.structures import Pool, write_extxyz
from selectron.structures.isolated import is_isolated_atom
from selectron.structures.label_source import LabelCensus, LabelKeys
from selectron.structures.label_values import LabelSource, read_labels
from selectron.structures.label_weights import label_weights


def frame(*, info=None, results=None, arrays=None, name="H2O"):
    atoms = molecule(name)
    atoms.info.update(info or {})
    for key, factor in (arrays or {}).items():
        atoms.arrays[key] = np.full((len(atoms), 3), factor)
    if results is not None:
        energy, force = results
        atoms.calc = SinglePointCalculator(atoms, energy=energy, forces=np.full((len(atoms), 3), force))
    return atoms


def both():
    return frame(info={"REF_energy": -6.0}, arrays={"REF_forces": 0.25}, results=(-3.0, 0.5))


def census(frames, what="training", **keys):
    found = LabelCensus(LabelKeys(**keys), what=what)
    for atoms in frames:
        found.add(atoms)
    return found


def read(frames, **keys):
    source = census(frames, **keys).source()
    return [read_labels(atoms, source, index=i) for i, atoms in enumerate(frames)]


@pytest.mark.parametrize("suffix", ["xyz", "traj", "db"])
def test_reference_labels_go_before_results_whatever_the_file(tmp_path, suffix):
    path = tmp_path / f"set.{suffix}"
    frames = [both(), both()]
    if suffix == "db":
        with ase.db.connect(path) as database:
            for atoms in frames:
                database.write(atoms, REF_energy=-6.0, data={"REF_forces": atoms.arrays["REF_forces"]})
    else:
        if suffix == "traj":  # ASE leaves arrays of other names out of trajectories
            for atoms in frames:
                atoms.info["REF_forces"] = atoms.arrays.pop("REF_forces")
        ase.io.write(path, frames)
    with Pool.open([path]) as pool:
        frames = [pool[0], pool[1]]
    found = census(frames)
    assert found.source() == LabelSource("REF_energy", "REF_forces")
    for labels in read(frames):
        assert labels.energy_eV == -6.0
        np.testing.assert_array_equal(labels.forces, 0.25)
    said = found.line(found.source(), np.array([-2.0, -2.0]))
    assert "2 structures, REF_energy and REF_forces (energy and forces stand beside them and are not read)" in said
    assert "-2.00 eV/atom" in said


def test_results_of_a_calculator_serve_where_there_is_nothing_else():
    assert [one.energy_eV for one in read([frame(results=(-3.0, 0.5)), frame(results=(-4.0, 0.5))])] == [-3.0, -4.0]


def test_energy_and_forces_are_never_of_two_sources():
    dft = {"info": {"REF_energy": -2080.0}, "arrays": {"REF_forces": 1.0}}
    first, second = frame(**dft), frame(**dft)
    first.arrays["forces"], second.info["energy"] = np.full((3, 3), 9.0), -5.0
    for labels in read([first, second]):
        assert labels.energy_eV == -2080.0
        np.testing.assert_array_equal(labels.forces, 1.0)
    mixed = frame(info={"REF_energy": -2080.0}, arrays={"forces": 9.0})
    with pytest.raises(SelectronError, match=r"two sources.*REF_energy in 1 and forces in 1 of 1 structure; say which"):
        census([mixed]).source()


def test_two_sources_in_a_set_are_refused_and_one_can_be_chosen():
    sampled, labelled = frame(results=(-3.0, 0.5)), frame(info={"REF_energy": -503.0}, arrays={"REF_forces": 0.5})
    with pytest.raises(SelectronError) as caught:
        census([sampled, labelled, sampled]).source()
    for expected in (
        "energy in 2",
        "forces in 2",
        "REF_energy in 1",
        "REF_forces in 1 of 3",
        "--energy-key",
    ):
        assert expected in str(caught.value)
    with pytest.raises(
        SelectronError, match="Structure 0 of the training set has no REF_energy and no REF_forces, like 1"
    ):
        census([sampled, labelled, sampled], energy="REF_energy").source()
    with pytest.raises(SelectronError, match="two sources"):
        census([both(), sampled]).source()
    assert [one.energy_eV for one in read([both(), sampled], energy="energy")] == [-3.0, -3.0]


def test_a_named_energy_brings_its_own_forces_or_asks_for_them():
    more = {"info": {"REF_energy": -6.0, "dft_energy": -7.0}, "arrays": {"REF_forces": 0.25}}
    with pytest.raises(SelectronError, match=r"has dft_energy, but no dft_forces that would go with it.*--forces-key"):
        census([frame(**more)], energy="dft_energy").source()
    labels = read([frame(**more)], energy="dft_energy", forces="REF_forces")[0]
    assert (labels.energy_eV, labels.forces[0, 0]) == (-7.0, 0.25)
    for energy, forces in (("dft_energy", "dft_forces"), ("energy_pbe", "force_pbe"), ("DFT_ENERGY", "DFT_FORCES")):
        atoms = frame(info={energy: -7.0, "REF_energy": -6.0}, arrays={forces: 0.125, "REF_forces": 0.25})
        for named in ({"energy": energy}, {"forces": forces}):
            assert census([atoms], **named).source() == LabelSource(energy, forces)
    with pytest.raises(
        SelectronError, match=r"No structure of the training set has dtf_energy; there are .*dft_energy"
    ):
        census([frame(**more)], energy="dtf_energy").source()


def test_a_key_of_any_name_can_be_named():
    atoms = frame(info={"E0K": -7.0}, arrays={"grad": 0.5})
    assert read([atoms], energy="E0K", forces="grad")[0].energy_eV == -7.0


def test_free_energy_is_said_and_can_be_chosen():
    atoms = molecule("H2O")
    results = {"energy": -3.0, "free_energy": -3.25, "forces": np.zeros((3, 3))}
    atoms.calc = SinglePointCalculator(atoms, **results)
    found = census([atoms])
    assert found.source() == LabelSource("energy", "forces")
    assert "differs from energy by up to 0.25 eV" in found.line(found.source(), np.array([-1.0]))
    assert read([atoms], energy="free_energy")[0].energy_eV == -3.25


def test_structures_without_labels_are_named():
    with pytest.raises(
        SelectronError, match="Structure 1 of the validation set has no energy and no forces, like 1 other"
    ):
        census([frame(results=(-3.0, 0.5)), frame(), frame()], what="validation").source()
    energies = [frame(info={"REF_energy": -6.0})]
    with pytest.raises(SelectronError, match="Structure 0 of the training set has no REF_forces"):
        census(energies).source()
    assert census(energies).source(forces_needed=False) == LabelSource("REF_energy", None)


@pytest.mark.parametrize(
    ("key", "value", "said"),
    [
        ("REF_energy", "-449.6 eV", r"Structure 1 of the training set has the REF_energy '-449.6 eV'"),
        ("REF_energy", "None", r"REF_energy 'None', which is not a number"),
        ("REF_energy", float("nan"), r"REF_energy nan: not a finite number"),
        ("REF_energy", np.zeros(3), r"3 numbers as its REF_energy"),
        ("REF_forces", np.full((3, 3), "much"), r"REF_forces \['much'"),
        ("REF_forces", np.zeros((3, 2)), r"REF_forces of the shape 3 x 2, where forces of its 3 atoms"),
        ("REF_forces", np.full((3, 3), np.inf), r"REF_forces inf"),
        ("REF_stress", "none", r"REF_stress 'none'"),
        ("REF_stress", np.zeros(5), r"5 numbers as its REF_stress"),
        ("REF_stress", np.arange(9.0), r"REF_stress that is not symmetric"),
    ],
)
def test_what_is_no_number_is_named_with_its_structure(key, value, said):
    good, bad = both(), both()
    for atoms in (good, bad):
        atoms.set_cell(np.eye(3) * 9)
        atoms.pbc = True
    (bad.arrays if key == "REF_forces" else bad.info)[key] = value
    with pytest.raises(SelectronError, match=said):
        read([good, bad])


def crystal(strain=0.0):
    atoms = bulk("Cu", a=3.7, cubic=True)
    atoms.rattle(0.05, seed=3)
    atoms.set_cell(
        atoms.cell.array @ (np.eye(3) + strain * np.array([[1, 0.3, 0], [0.3, 0, 0], [0, 0, 0]])), scale_atoms=True
    )
    atoms.calc = EMT()
    return atoms


@pytest.mark.parametrize("key", ["REF_virials", "virial", "dft_virial"])
@pytest.mark.parametrize("voigt", [True, False])
def test_a_virial_becomes_the_derivative_of_the_energy_in_the_strain(key, voigt):
    """−dE/dε by central differences, handed over as a virial, is the stress that ASE's calculator gives."""
    step = 1e-5
    rise = (crystal(step).get_potential_energy() - crystal(-step).get_potential_energy()) / (2 * step)
    atoms = crystal()
    expected = atoms.get_stress(voigt=False)
    virial = -expected * atoms.cell.volume
    assert -(virial[0, 0] + 0.6 * virial[0, 1]) == pytest.approx(rise, rel=1e-5)
    given = atoms.copy()
    given.info[key] = virial[[0, 1, 2, 1, 0, 0], [0, 1, 2, 2, 2, 1]] if voigt else virial
    affix = key.partition("vir")[0]
    given.info[f"{affix}energy"], given.arrays[f"{affix}forces"] = -1.0, atoms.get_forces()
    np.testing.assert_allclose(read([given], energy=f"{affix}energy")[0].stress, expected, atol=1e-9)


def test_a_stress_needs_three_periodic_directions():
    atoms = crystal()
    labelled = atoms.copy()
    labelled.calc = SinglePointCalculator(labelled, energy=-1.0, forces=atoms.get_forces(), stress=atoms.get_stress())
    slab = labelled.copy()
    slab.pbc = (True, True, False)
    slab.calc = SinglePointCalculator(slab, **labelled.calc.results)
    found = census([labelled, slab])
    whole, flat = read([labelled, slab])
    np.testing.assert_allclose(whole.stress, atoms.get_stress(voigt=False))
    assert flat.stress is None
    assert "no meaning in 1 structure without three periodic directions" in found.line(found.source(), np.zeros(1), 1)


def test_isolated_atoms_are_known_by_name_or_by_having_no_neighbour():
    box = Atoms("C", cell=[15, 15, 15], pbc=True)
    assert is_isolated_atom(box)
    assert is_isolated_atom(Atoms("C"))
    assert is_isolated_atom(Atoms("C", cell=[15, 0, 0], pbc=(True, False, False)))
    assert not is_isolated_atom(bulk("Cu"))
    assert not is_isolated_atom(bulk("Cs", "bcc", a=6.3))
    assert not is_isolated_atom(Atoms("Au", cell=[2.7, 0, 0], pbc=(True, False, False)))
    assert not is_isolated_atom(Atoms("C", cell=[15, 15, 2.5], pbc=True))  # a chain in a wide box
    sheared = Atoms(
        "Cu", cell=[[20, 0, 0], [19, 3, 0], [0, 0, 20]], pbc=True
    )  # its shortest vector, b - a, is 3.2 Å long
    assert not is_isolated_atom(sheared)
    assert not is_isolated_atom(molecule("H2"))
    for said in ("IsolatedAtom", "isolated_atom", "ISOLATEDATOM"):
        small = Atoms("C", cell=[5, 5, 5], pbc=True, info={"config_type": said})
        assert is_isolated_atom(small)
        assert not is_isolated_atom(Atoms("C2", positions=np.eye(3)[:2], info=small.info))


def test_isolated_atoms_need_no_forces_and_are_not_counted():
    atom = Atoms("H", info={"REF_energy": -13.6, "config_type": "IsolatedAtom"})
    found = census([atom, both(), both()])
    assert found.source() == LabelSource("REF_energy", "REF_forces")
    assert (found.structures, found.isolated_atoms) == (2, 1)
    assert "2 structures and 1 isolated atom, REF_energy and REF_forces" in found.line(found.source(), np.zeros(2))
    reference = frame(info={"REF_energy": -6.0}, arrays={"REF_forces": 0.25})
    with pytest.raises(SelectronError, match="Structure 0 of the training set has no REF_energy"):
        census([Atoms("H", info={"dft_energy": -13.6}), reference]).source()
    with pytest.raises(SelectronError, match="two sources"):
        census(
            [Atoms("H", info={"energy": -13.6}), frame(info={"REF_energy": -6.0}, arrays={"REF_forces": 0.25})]
        ).source()
    planar = LabelCensus(planar=True)
    planar.add(Atoms("H", info={"energy": 0.0}))
    with pytest.raises(SelectronError, match="has no forces"):
        planar.source()


def test_a_label_of_weight_zero_is_not_read_and_need_not_be_there():
    off = frame(info={"REF_energy": 1e9, "config_energy_weight": 0.0}, arrays={"REF_forces": 0.25})
    bare = frame(info={"config_energy_weight": 0}, arrays={"REF_forces": 0.25})
    still = frame(info={"REF_energy": -6.0, "config_forces_weight": np.int64(0)})
    labels = read([off, bare, still, both()])
    assert [one.energy_eV for one in labels] == [None, None, -6.0, -6.0]
    assert [one.forces is None for one in labels] == [False, False, True, False]


@pytest.mark.parametrize("given", ["much", -1.0, float("nan"), True])
def test_a_weight_that_is_no_number_is_named(given):
    atoms = frame(info={"config_forces_weight": given})
    with pytest.raises(SelectronError, match="Structure 4 of the training set has the config_forces_weight"):
        label_weights(atoms, index=4)


def test_the_line_survives_a_file(tmp_path):
    """What is read from a file that selectron wrote is what was written."""
    write_extxyz(tmp_path / "set.xyz", [both(), both()])
    with Pool.open([tmp_path / "set.xyz"]) as pool:
        assert [one.energy_eV for one in read([pool[0], pool[1]])] == [-6.0, -6.0]
