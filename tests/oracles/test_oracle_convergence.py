"""An SCF that did not converge is a failure: ASE's own classes, and stand-ins that write what the programs write."""

import shutil
import sys
from pathlib import Path

import numpy as np
import pytest
from ase import Atoms
from ase.calculators.calculator import Calculator, all_changes
from ase.calculators.lj import LennardJones

from selectron.oracles import LabelStore, OracleFailure, label_structures, make_oracle, parse_oracle
from selectron.oracles.convergence import SAID, unconverged

_STRUCTURE = (
    '<crystal><varray name="basis"><v>8 0 0</v><v>0 8 0</v><v>0 0 8</v></varray><i name="volume">512</i></crystal>'
    '<varray name="positions"><v>0 0 0</v><v>0 0 0.0925</v></varray>'
)
_ENERGY = "".join(f'<i name="{name}">-6</i>' for name in ("e_fr_energy", "e_wo_entrp", "e_0_energy"))
VASP_XML = f"""<?xml version="1.0"?><modeling><generator><i name="program">vasp</i><i name="version">6.3</i></generator>
<incar></incar><kpoints><generation param="Gamma"><v type="int" name="divisions">1 1 1</v></generation>
<varray name="kpointlist"><v>0 0 0</v></varray><varray name="weights"><v>1</v></varray></kpoints><parameters></parameters>
<atominfo><atoms>2</atoms><types>1</types><array name="atoms"><set><rc><c>H </c><c>1</c></rc><rc><c>H </c><c>1</c></rc></set>
</array></atominfo><structure name="initialpos">{_STRUCTURE}</structure><calculation><scstep><energy>{_ENERGY}</energy></scstep>
<structure>{_STRUCTURE}</structure><varray name="forces"><v>0 0 0.1</v><v>0 0 -0.1</v></varray>
<varray name="stress"><v>1 0 0</v><v>0 1 0</v><v>0 0 1</v></varray><energy>{_ENERGY}</energy></calculation></modeling>
"""

OUTCAR = """ vasp.{version}
   EDIFF  = 0.1E-05   stopping-criterion for ELM
   NELM   =     {limit};   NELMIN=  2; NELMDL= -5     # of ELM steps
   IBRION =     -1    ionic relax
   NBANDS =      2
--------------------------------------- Iteration      1(   1)  ---------------------------------------
  total energy-change (2. order) :-0.2141803E+01  (-0.2737684E+01)
--------------------------------------- Iteration      1(   2)  ---------------------------------------
  total energy-change (2. order) :-0.2141803E-06  (-0.2737684E-{exponent})
{end}
"""
REACHED = "------------------------ aborting loop because EDIFF is reached ----------------------------------------"
NOT_REACHED = "------------------------ aborting loop EDIFF was not reached (unconverged)  ----------------------------"

VASP = """#!{python}
import pathlib
here = pathlib.Path(__file__).parent
for name in ("OUTCAR", "vasprun.xml"):
    pathlib.Path(name).write_text((here / name).read_text())
pathlib.Path("CONTCAR").write_text(pathlib.Path("POSCAR").read_text())
"""

CP2K = """#!{python}
import sys
ready = lambda: print("* READY", flush=True)
ready()
log = None
for line in sys.stdin:
    word, *rest = line.split() or [""]
    if word == "VERSION":
        print("CP2K Shell Version: 7.0")
    elif word == "WRITE_FILE":
        name, count = input(), int(input())
        open(name, "w").write("\\n".join(input() for _ in range(count)))
        input()
    elif word == "LOAD":
        log = open(rest[1], "w")  # kept in memory until the end, as Fortran may
        print(1)
    elif word == "SET_CELL":
        [input() for _ in range(3)]
    elif word == "SET_POS":
        [input() for _ in range(int(input()) // 3 + 1)]
        print(0.1)
    elif word == "EVAL_EF":
        log.write("  Leaving inner SCF loop after reaching    50 steps.\\n{said}\\n")
    elif word == "GET_E":
        print(-31.0)
    elif word == "GET_F":
        print("6\\n0 0 0.1\\n0 0 -0.1\\n* END")
    elif word == "GET_STRESS":
        print(" ".join("0" * 9))
    elif word == "EXIT":
        break
    ready()
"""

ESPRESSO = """#!{python}
print('''
     Program PWSCF v.7.2 starts on  1Dec2026
     bravais-lattice index     =            0
     lattice parameter (alat)  =      15.1178  a.u.
     unit-cell volume          =    3455.1410 (a.u.)^3
     number of atoms/cell      =            2
     number of atomic types    =            1
     celldm(1)=  15.117809
     crystal axes: (cart. coord. in units of alat)
               a(1) = (   1.000000   0.000000   0.000000 )
               a(2) = (   0.000000   1.000000   0.000000 )
               a(3) = (   0.000000   0.000000   1.000000 )
     site n.     atom                  positions (alat units)
         1        H   tau(   1) = (   0.0000000   0.0000000   0.0000000  )
         2        H   tau(   2) = (   0.0000000   0.0000000   0.0925000  )
!    total energy              =      -2.20000000 Ry
{said}
     Forces acting on atoms (cartesian axes, Ry/au):

     atom    1 type  1   force =     0.00000000    0.00000000    0.00100000
     atom    2 type  1   force =     0.00000000    0.00000000   -0.00100000

   JOB DONE.
''')
"""

ORCA = """#!{python}
print('''
Number of atoms                             ...      2
CARTESIAN COORDINATES (ANGSTROEM)
---------------------------------
  H      0.000000    0.000000    0.000000
  H      0.000000    0.000000    0.740000

{said}
FINAL SINGLE POINT ENERGY        -1.160000000000
CARTESIAN GRADIENT
------------------

   1   H   :    0.000000000    0.000000000   -0.001000000
   2   H   :    0.000000000    0.000000000    0.001000000

                             ****ORCA TERMINATED NORMALLY****
''')
import pathlib
pathlib.Path("orca.engrad").write_text('''# The current gradient in Eh/bohr
#
0
0
-0.001
0
0
0.001
#
# The at
''')
"""


def hydrogen(pbc: bool = True) -> Atoms:
    return Atoms("H2", [[0, 0, 0], [0, 0, 0.74]], cell=[8.0] * 3 if pbc else None, pbc=pbc)


@pytest.fixture
def in_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return tmp_path


def program(folder: Path, text: str) -> str:
    """An executable file that is ``text``."""
    path = folder / "program"
    path.write_text(text.replace("{python}", sys.executable))
    path.chmod(0o755)
    return str(path)


def vasp(folder: Path, monkeypatch, outcar: str):
    (folder / "potpaw_PBE" / "H").mkdir(parents=True, exist_ok=True)
    (folder / "potpaw_PBE" / "H" / "POTCAR").write_text(" PAW_PBE H\n")
    monkeypatch.setenv("VASP_PP_PATH", str(folder))
    monkeypatch.setenv("VASP_COMMAND", program(folder, VASP))
    (folder / "OUTCAR").write_text(outcar)
    (folder / "vasprun.xml").write_text(VASP_XML)
    arguments = {"xc": "PBE", "encut": 300, "kpts": [1, 1, 1], "ediff": 1e-6, "nelm": 60}
    return parse_oracle({"kind": "ase", "calculator": "ase.calculators.vasp:Vasp", "arguments": arguments})


def cp2k(folder: Path, said: str):
    arguments = {"command": program(folder, CP2K.replace("{said}", said))}
    return parse_oracle({"kind": "ase", "calculator": "ase.calculators.cp2k:CP2K", "arguments": arguments})


def espresso(folder: Path, said: str):
    profile = {
        "import": "ase.calculators.espresso:EspressoProfile",
        "arguments": {"command": program(folder, ESPRESSO.replace("{said}", said)), "pseudo_dir": str(folder)},
    }
    arguments = {
        "pseudopotentials": {"H": "H.upf"},
        "input_data": {"control": {"tprnfor": True}, "system": {"ecutwfc": 30}},
        "profile": profile,
    }
    (folder / "H.upf").write_text("")
    return parse_oracle({"kind": "ase", "calculator": "ase.calculators.espresso:Espresso", "arguments": arguments})


def orca(folder: Path, said: str):
    command = program(folder, ORCA.replace("{said}", said))
    profile = {"import": "ase.calculators.orca:OrcaProfile", "arguments": {"command": command}}
    return parse_oracle({"kind": "ase", "calculator": "ase.calculators.orca:ORCA", "arguments": {"profile": profile}})


@pytest.mark.parametrize(
    ("version", "limit", "exponent", "end", "says"),
    [
        ("6.3.0", 60, "07", REACHED, None),
        ("5.4.4", 60, "07", REACHED, None),
        ("6.3.0", 2, "07", REACHED, None),  # reached in the very last step
        ("6.3.0", 60, "01", NOT_REACHED, r"OUTCAR: aborting loop EDIFF was not reached \(unconverged\)"),
        ("5.4.4", 2, "01", "", "OUTCAR: 2 steps, as many as NELM allows"),
        ("5.4.4", 2, "07", "", "OUTCAR: 2 steps, as many as NELM allows"),  # which ASE takes for converged
        ("6.3.0", 60, "07", " aborting loop because hard stop was set", "Vasp.converged is False"),
    ],
)
def test_vasp(in_folder, monkeypatch, version, limit, exponent, end, says):
    options = vasp(in_folder, monkeypatch, OUTCAR.format(version=version, limit=limit, exponent=exponent, end=end))
    oracle = make_oracle(options)
    if says is None:
        label = oracle.label(hydrogen())
        assert label.energy_eV == -6.0
        assert label.forces.tolist() == [[0, 0, 0.1], [0, 0, -0.1]]
    else:
        for _ in range(2):  # a second time too, whatever the calculator keeps
            with pytest.raises(OracleFailure, match=f"the SCF did not converge .{says}"):
                oracle.label(hydrogen())


def test_an_unconverged_run_is_a_stored_failure_and_no_label(in_folder, monkeypatch):
    options = vasp(in_folder, monkeypatch, OUTCAR.format(version="6.3.0", limit=60, exponent="01", end=NOT_REACHED))
    with LabelStore(in_folder / "labels.db") as store:
        (one,) = label_structures([hydrogen()], options, store)
        assert one.label is None
        assert "the SCF did not converge" in one.failure
        assert store.spent()[:2] == (0, 1)


@pytest.mark.parametrize(
    ("said", "converged"),
    [
        ("  *** SCF run converged in    61 steps ***", True),  # by its outer loop, after an inner one that did not
        ("  *** SCF run NOT converged ***", False),
        (" *** WARNING in qs_scf.F:542 :: SCF run NOT converged ***", False),
        ("  outer SCF loop FAILED to converge after   5 iterations or  250 steps", False),
    ],
)
def test_cp2k(in_folder, said, converged):
    oracle = make_oracle(cp2k(in_folder, said))
    if converged:
        assert oracle.label(hydrogen()).energy_eV == -31.0
    else:
        with pytest.raises(OracleFailure, match=r"the SCF did not converge \(cp2k.out: .*(NOT converged|FAILED)"):
            oracle.label(hydrogen())


@pytest.mark.parametrize(
    ("said", "converged"),
    [
        ("     convergence has been achieved in  11 iterations", True),
        ("     convergence NOT achieved after 100 iterations: stopping", False),
    ],
)
def test_quantum_espresso(in_folder, said, converged):
    oracle = make_oracle(espresso(in_folder, said))
    if converged:
        assert oracle.label(hydrogen()).energy_eV == pytest.approx(-2.2 * 13.605693, abs=1e-4)
    else:
        with pytest.raises(OracleFailure, match=r"the SCF did not converge \(espresso.pwo: convergence NOT achieved"):
            oracle.label(hydrogen())


@pytest.mark.parametrize(
    ("said", "converged"),
    [
        (
            "               *           SUCCESS               *\n   *           SCF CONVERGED AFTER   7 CYCLES          *",
            True,
        ),
        ("               *        SCF NOT CONVERGED AFTER 125 CYCLES           *", False),
        ("           This wavefunction IS NOT FULLY CONVERGED!", False),
        ("         The wavefunction IS NOT YET CONVERGED! It shows however signs of\n", False),
        ("FINAL SINGLE POINT ENERGY      (Wavefunction not fully converged!)     -1.1", False),
    ],
)
def test_orca(in_folder, said, converged):
    oracle = make_oracle(orca(in_folder, said))
    if converged:
        label = oracle.label(hydrogen(pbc=False))
        assert label.energy_eV == pytest.approx(-1.16 * 27.211386, abs=1e-4)
    else:
        with pytest.raises(OracleFailure, match=r"the SCF did not converge \(orca.out: .*(?i:not)"):
            oracle.label(hydrogen(pbc=False))


def test_orca_that_ended_in_error_is_no_label(in_folder):
    options = orca(in_folder, "ORCA finished by error termination in SCF")
    path = in_folder / "program"
    path.write_text(path.read_text().replace("****ORCA TERMINATED NORMALLY****", ""))
    with pytest.raises(OracleFailure, match="did not finish"):
        make_oracle(options).label(hydrogen(pbc=False))


class Undecided(Calculator):
    """Says of itself what it was made to say."""

    implemented_properties = ("energy", "forces")

    def __init__(self, converged=True):
        super().__init__()
        self.converged = converged

    def calculate(self, atoms=None, properties=("energy",), system_changes=all_changes):
        super().calculate(atoms, properties, system_changes)
        self.results = {"energy": 1.0, "forces": np.zeros((len(atoms), 3))}


@pytest.mark.parametrize(("converged", "labelled"), [(True, True), (None, True), (False, False)])
def test_a_calculator_inside_another_is_asked_too(in_folder, converged, labelled):
    inner = {"import": "test_oracle_convergence:Undecided", "arguments": {"converged": converged}}
    outer = {"import": "ase.calculators.lj:LennardJones", "arguments": {}}
    oracle = make_oracle(
        parse_oracle(
            {
                "kind": "ase",
                "calculator": "ase.calculators.mixing:SumCalculator",
                "arguments": {"calcs": [outer, inner]},
            }
        )
    )
    if labelled:
        expected = LennardJones().get_potential_energy(hydrogen(pbc=False)) + 1.0
        assert oracle.label(hydrogen(pbc=False)).energy_eV == pytest.approx(expected)
    else:
        with pytest.raises(OracleFailure, match=r"the SCF did not converge \(Undecided.converged is False\)"):
            oracle.label(hydrogen(pbc=False))


def test_a_program_inside_another_calculator_runs_in_the_folder_of_the_run(in_folder):
    inner = {
        "import": "ase.calculators.orca:ORCA",
        "arguments": orca(in_folder, "SCF NOT CONVERGED AFTER 125").arguments,
    }
    outer = {"import": "ase.calculators.lj:LennardJones", "arguments": {}}
    oracle = make_oracle(
        parse_oracle(
            {
                "kind": "ase",
                "calculator": "ase.calculators.mixing:SumCalculator",
                "arguments": {"calcs": [outer, inner]},
            }
        )
    )
    with pytest.raises(OracleFailure, match=r"the SCF did not converge \(orca.out"):
        oracle.label(hydrogen(pbc=False))
    assert not (in_folder / "orca.out").exists()


@pytest.mark.parametrize(
    ("program", "name", "line"),
    [
        ("FHI-aims", "aims.out", "  * WARNING! SELF-CONSISTENCY CYCLE DID NOT CONVERGE"),
        ("GPAW", "gpaw.txt", "Did not converge!"),
        ("Gaussian", "Gaussian.log", " Convergence failure -- run terminated."),
        ("Psi4", "psi4.out", "  Energy and/or wave function did not converge, but proceeding anyway."),
        ("DFTB+", "dftb.out", "-> SCC is NOT converged, maximal SCC iterations exceeded"),
        ("ABINIT", "abinit.abo", "  nstep=   20 was not enough SCF cycles to converge;"),
        ("CASTEP", "castep.castep", "*Warning* max. SCF cycles performed but system has not reached the groundstate."),
        ("SIESTA", "siesta.out", "SCF_NOT_CONV: SCF did not converge in maximum number of steps (required)."),
        ("NWChem", "nwchem.nwo", "          Calculation failed to converge"),
        ("MOPAC", "mopac.out", "     *****  UNABLE TO ACHIEVE SELF-CONSISTENCE  *****"),
        ("xtb", "xtb.out", "-1- scf: Self consistent charge iterator did not converge"),
    ],
)
def test_what_other_programs_write(tmp_path, program, name, line):
    assert program in SAID
    path = tmp_path / name
    path.write_text(f"a line before\n{line}\na line behind")
    assert name in unconverged(None, tmp_path)
    path.write_text(
        "SCF converged\nConvergence criterion not met, trying another algorithm\nself-consistency cycle converged\n"
    )
    assert unconverged(None, tmp_path) is None
    path.write_text("")
    assert unconverged(None, tmp_path) is None
    shutil.copy(__file__, tmp_path / "input.py")  # which has all the words, and is no output
    assert unconverged(None, tmp_path) is None
