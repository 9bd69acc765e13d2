"""Oracles that are potentials: a MACE, an analytic surface, an ASE calculator; and how they are written."""

import numpy as np
import pytest
from ase import Atoms
from ase.build import bulk, molecule
from ase.calculators.emt import EMT
from ase.constraints import FixAtoms

from selectron.errors import SelectronError
from selectron.oracles import OracleFailure, make_oracle, parse_oracle
from selectron.potentials import load_potential


def test_mace_labels_are_those_of_its_calculator(tiny_model):
    from mace.calculators import MACECalculator

    atoms = molecule("CH3CH2OH")
    atoms.rattle(0.1, seed=0)
    label = make_oracle(parse_oracle(f"mace:{tiny_model}")).label(atoms)
    reference = atoms.copy()
    reference.calc = MACECalculator(model_paths=str(tiny_model), device="cpu", default_dtype="float64")
    assert label.energy_eV == pytest.approx(reference.get_potential_energy(), abs=1e-8)
    np.testing.assert_allclose(label.forces, reference.get_forces(), atol=1e-8)


def test_mace_does_not_look_at_the_lattice_vector_of_an_open_direction(tiny_model):
    """Which is why it is not part of its labels' keys."""
    oracle = make_oracle(parse_oracle(f"mace:{tiny_model}"))
    labels = []
    for open_vector in ([0, 0, 12.0], [0, 0, 30.0], [1.0, 2.0, 9.0], [0, 0, 0]):
        slab = Atoms("CO", [[0, 0, 5], [0.3, 0.2, 6.2]], cell=[[3, 0, 0], [0.5, 3.2, 0], open_vector], pbc=[1, 1, 0])
        labels.append(oracle.label(slab))
    for label in labels[1:]:
        assert label.energy_eV == pytest.approx(labels[0].energy_eV, abs=1e-9)
        np.testing.assert_allclose(label.forces, labels[0].forces, atol=1e-9)


def test_mace_is_known_by_its_weights_and_not_by_its_path(tiny_model, tmp_path):
    copy = tmp_path / "same.model"
    copy.write_bytes(tiny_model.read_bytes())
    first, second = (make_oracle(parse_oracle(f"mace:{path}")) for path in (tiny_model, copy))
    assert first.fingerprint == second.fingerprint
    single = make_oracle(parse_oracle(f"mace:{copy}?dtype=float32"))
    assert single.fingerprint != first.fingerprint


def test_mace_refuses_elements_that_it_does_not_know(tiny_model):
    with pytest.raises(OracleFailure, match="does not know Xe"):
        make_oracle(parse_oracle(f"mace:{tiny_model}")).label(Atoms("Xe"))
    with pytest.raises(SelectronError, match="There is no model"):
        make_oracle(parse_oracle("mace:nowhere.model"))


def test_surface_labels_have_the_derivative_of_the_surface():
    oracle = make_oracle(parse_oracle("surface:mueller-brown?scale=2.0"))
    point, step = [-0.558, 1.442, 0.0], 1e-4
    here = Atoms("H", [point])
    assert oracle.label(here).energy_eV == pytest.approx(-2 * 146.70, abs=0.01)
    here.positions[0, 0] += 0.2
    forces = oracle.label(here).forces
    for axis in (0, 1):
        energies = []
        for sign in (1, -1):
            moved = here.copy()
            moved.positions[0, axis] += sign * step
            energies.append(oracle.label(moved).energy_eV)
        assert forces[0, axis] == pytest.approx(-(energies[0] - energies[1]) / (2 * step), rel=1e-5)
    assert load_potential("surface:mueller-brown").name in oracle.name


def test_ase_calculator_without_constraints_and_with_stress():
    crystal = bulk("Cu", cubic=True)
    crystal.rattle(0.1, seed=0)
    crystal.set_constraint(FixAtoms([0]))
    label = make_oracle(parse_oracle("ase:ase.calculators.emt:EMT")).label(crystal)
    crystal.calc = EMT()
    np.testing.assert_allclose(label.forces, crystal.get_forces(apply_constraint=False))
    assert np.abs(label.forces[0]).max() > 0.01
    np.testing.assert_allclose(label.stress, crystal.get_stress(voigt=False))


def test_ase_calculator_is_told_charge_and_multiplicity_where_its_arguments_say_so():
    from tblite.ase import TBLite

    oracle = make_oracle(
        parse_oracle(
            {
                "kind": "ase",
                "calculator": "tblite.ase:TBLite",
                "arguments": {"charge": "{charge}", "multiplicity": "{multiplicity}", "verbosity": 0},
            }
        )
    )
    for charge, multiplicity in [(0, 1), (1, 2), (-1, 2)]:
        atoms = molecule("H2O")
        atoms.info = {"charge": charge, "multiplicity": multiplicity}
        reference = molecule("H2O")
        reference.calc = TBLite(charge=charge, multiplicity=multiplicity, verbosity=0)
        assert oracle.label(atoms).energy_eV == pytest.approx(reference.get_potential_energy(), abs=1e-8)


def test_arguments_may_be_things_that_are_imported():
    oracle = make_oracle(
        parse_oracle(
            {
                "kind": "ase",
                "calculator": "ase.calculators.mixing:SumCalculator",
                "arguments": {"calcs": [{"import": "ase.calculators.emt:EMT"}, {"import": "ase.calculators.emt:EMT"}]},
            }
        )
    )
    crystal = bulk("Cu", cubic=True)
    crystal.rattle(0.1, seed=0)
    once = make_oracle(parse_oracle("ase:ase.calculators.emt:EMT")).label(crystal)
    np.testing.assert_allclose(oracle.label(crystal).forces, 2 * once.forces)


def test_ase_calculator_that_is_broken_is_a_failure_with_its_words():
    oracle = make_oracle(parse_oracle("ase:strange_calculators:Strange"))
    with pytest.raises(OracleFailure, match="RuntimeError: the licence server is asleep"):
        oracle.label(Atoms("Kr"))
    with pytest.raises(OracleFailure, match="force on atom 0 is not finite"):
        oracle.label(Atoms("Ar"))
    assert oracle.label(Atoms("H", [[0, 0, 2.0]])).energy_eV == 2.0


@pytest.mark.parametrize(
    ("spec", "says"),
    [
        ("gfn3-xtb", "is no oracle"),
        ("gfn2-xtb?acuracy=1", "acuracy"),
        ("gfn2-xtb?attempts=0", "attempts: input should be greater than 0"),
        ("dft:b3lyp", "functional and a basis"),
        ("ase:emt", "is no oracle"),
        ({"kind": "dft", "basis": 3}, "basis: input should be a valid string"),
        ({"kind": "ouija"}, "ouija"),
        ("nowhere.yaml", "No such file"),
    ],
)
def test_what_is_no_oracle_is_said_in_one_sentence(spec, says):
    with pytest.raises(SelectronError, match=says) as error:
        parse_oracle(spec)
    assert "\n" not in str(error.value)


def test_calculators_that_cannot_be_made_are_said_in_one_sentence():
    for spec, says in [
        ("ase:ase.calculators.nothing:Here", "nothing at"),
        ("ase:ase.calculators.emt:Nothing", "nothing at"),
        ("ase:strange_calculators:Strange?spring=1", "cannot be made"),
    ]:
        with pytest.raises(SelectronError, match=says):
            make_oracle(parse_oracle(spec)).prepare()


def test_yaml_and_one_word_mean_the_same(tmp_path):
    path = tmp_path / "oracle.yaml"
    path.write_text("kind: dft\nfunctional: b3lyp\nbasis: def2-svp\ndispersion: d3bj\n")
    assert parse_oracle(str(path)) == parse_oracle("dft:b3lyp/def2-svp?dispersion=d3bj")
    assert parse_oracle("dft:wb97x/6-31+g*").basis == "6-31+g*"
    path.write_text("- a list\n")
    with pytest.raises(SelectronError, match="no mapping"):
        parse_oracle(str(path))


PROGRAMS = {
    "orca.inp": """
kind: ase
calculator: ase.calculators.orca:ORCA
arguments:
  profile: {import: "ase.calculators.orca:OrcaProfile", arguments: {command: "false"}}
  orcasimpleinput: "wB97X-D3 def2-TZVP EnGrad"
  charge: "{charge}"
  mult: "{multiplicity}"
scratch: kept
""",
    "espresso.pwi": """
kind: ase
calculator: ase.calculators.espresso:Espresso
arguments:
  profile: {import: "ase.calculators.espresso:EspressoProfile", arguments: {command: "false", pseudo_dir: /pseudo}}
  pseudopotentials: {O: O.upf, H: H.upf}
  input_data: {system: {ecutwfc: 60, tot_charge: "{charge}"}}
scratch: kept
""",
}


@pytest.mark.parametrize("name", PROGRAMS)
def test_programs_get_their_input_in_a_folder_of_their_own_and_may_fail(name, tmp_path, monkeypatch):
    """The program here is "false": it ends with an error, after ASE has written its input."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "oracle.yaml").write_text(PROGRAMS[name])
    oracle = make_oracle(parse_oracle("oracle.yaml"))
    oracle.prepare()
    ion = molecule("OH")
    ion.info = {"charge": -1, "multiplicity": 1}
    ion.center(vacuum=3.0)
    for _ in range(2):
        with pytest.raises(OracleFailure, match="false"):
            oracle.label(ion)
    inputs = [path.read_text().lower() for path in (tmp_path / "kept").glob(f"*/{name}")]
    assert len(inputs) == 2
    assert all(("xyz -1 1" in text) or ("tot_charge       = -1" in text) for text in inputs)
