"""``selectron sample`` as a person runs it: what is printed, what is left on disk, and the exit code."""

import csv
import os
import signal
import subprocess
import sys
import time
from io import StringIO

import numpy as np
import pytest
from ase import Atoms
from ase.build import molecule
from ase.calculators.singlepoint import SinglePointCalculator
from ase.io import read, write
from rich.console import Console

from selectron.potentials import load_potential
from selectron.sampling.checkpoint import read_checkpoint
from selectron.sampling.frames import Progress, Tally
from selectron.sampling.output import part_of

POINT = "--model surface:mueller-brown --at -0.55,1.44 --kT 20 --step-size 2e-4"
ENSEMBLE = "--particles 6 --burn-in 20 --snapshot-every 10"


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def run(folder, command_line):
    """Runs ``selectron sample`` in ``folder``; gives exit code, standard output and standard error."""
    return lambda line: command_line(f"sample {line}")


def test_a_run_on_a_surface_leaves_frames_acquired_ones_and_a_picture(run, folder):
    code, out, err = run(f"{POINT} {ENSEMBLE} --method skmd --steps 200 --stop-after 25 --stride 10 --seed 3 "
                         "-o all.extxyz --acquired acq.extxyz --plot p.png")  # fmt: skip
    assert (code, {path.name for path in folder.iterdir()}) == (0, {"all.extxyz", "acq.extxyz", "p.png"})
    frames, acquired = read("all.extxyz", ":"), read("acq.extxyz", ":")
    assert [atoms.info["step"] for atoms in acquired] == list(range(25, 201, 25))
    assert [atoms.info["particle"] for atoms in acquired] == [0, 1, 2, 3, 4, 5, 0, 1]
    assert all(atoms.info["stopping_reason"] == "fixed-steps" for atoms in acquired)
    assert sorted({atoms.info["step"] for atoms in frames}) == sorted({*range(10, 201, 10), *range(25, 201, 25)})
    surface = load_potential("surface:mueller-brown")
    energies = surface.evaluate(surface.batch(frames)).energies.numpy()
    np.testing.assert_allclose([atoms.info["model_energy_eV"] for atoms in frames], energies, rtol=1e-5)
    assert (folder / "p.png").read_bytes()[:4] == b"\x89PNG"
    assert "24 frames, 8 acquired (8 fixed-steps)." in out
    assert "wrote all.extxyz, acq.extxyz, p.png" in out
    assert "sampling: step 200/200" in err


def test_labels_of_the_start_and_energies_of_the_model_are_no_labels_in_the_output(run, tiny_model):
    start = molecule("CH3CH2OH")
    start.info["REF_energy"] = -3.0
    start.calc = SinglePointCalculator(start, energy=-3.0, forces=np.ones((9, 3)))
    write("start.extxyz", start)
    code, out, _ = run(f"start.extxyz --model {tiny_model} --method brownian --steps 4 --stride 2 --temperature 50")
    assert code == 0, out
    for atoms in read("samples.extxyz", ":"):
        assert atoms.calc is None
        assert not {"REF_energy", "energy", "REF_forces", "forces"} & (atoms.info.keys() | atoms.arrays.keys())
        assert atoms.arrays["model_forces"].shape == (9, 3)


def test_the_command_line_wins_over_the_file_and_the_file_is_checked_with_line_numbers(run, folder):
    (folder / "o.yaml").write_text("method: brownian\nkT_eV: 20\nstep_size: 2e-4\nsteps: 40\nstride: 10\n")
    start = "--model surface:mueller-brown --at -0.55,1.44 --options o.yaml"
    assert run(start)[0] == 0
    assert len(read("samples.extxyz", ":")) == 4
    code, out, _ = run(f"{start} --steps 20 --method skmd {ENSEMBLE}")
    assert (code, len(read("samples.extxyz", ":"))) == (0, 2)
    assert out.startswith("skmd: 20 steps")
    assert "Nothing was acquired" in out
    (folder / "o.yaml").write_text("method: brownian\nkernel:\n  bandwith: 3\n")
    code, _, err = run(start)
    assert code == 2
    assert "o.yaml:3:3" in err
    assert "did you mean 'bandwidth'" in err


def test_an_exploding_trajectory_is_recorded_and_the_others_go_on(run, folder):
    write("start.xyz", [Atoms("Ar2", [[0, 0, 0], [0, 0, d]]) for d in (3.8, 1.0, 4.0)])
    model = "ase:ase.calculators.lj:LennardJones?sigma=3.4&epsilon=0.0104&rc=10"
    code, out, _ = run(f"start.xyz --model {model} --method langevin --temperature 20 --steps 20 --stride 5")
    assert code == 0
    assert [atoms.info["particle"] for atoms in read("samples.extxyz", ":")] == [0, 2] * 4
    with open("samples.ended.csv", newline="") as stream:
        assert list(csv.DictReader(stream)) == [
            {"step": "1", "ensemble": "0", "particle": "1", "reason": "an atom moved too far in one step"}
        ]
    assert "1 trajectory broke (1 × an atom moved too far in one step): samples.ended.csv says when." in out
    # and a run in which nothing breaks takes the list away
    write("start.xyz", [Atoms("Ar2", [[0, 0, 0], [0, 0, 3.8]])])
    assert run(f"start.xyz --model {model} --method langevin --temperature 20 --steps 20")[0] == 0
    assert not (folder / "samples.ended.csv").exists()


def test_a_run_in_which_everything_breaks_ends_by_itself(run):
    write("start.xyz", [Atoms("Ar2", [[0, 0, 0], [0, 0, 1.0]])])
    model = "ase:ase.calculators.lj:LennardJones?sigma=3.4&epsilon=0.0104&rc=10"
    code, out, _ = run(f"start.xyz --model {model} --method langevin --steps 1000000")
    assert code == 0
    assert "ended by the end of the last trajectory" in out
    assert "0 frames" in out


BAD = {
    "-m embedded": "There is nothing to start from",
    f"{POINT} --method skdm": "There is no method 'skdm'; there are skmd, a-skmd",
    f"{POINT} --particles 0": "particles: input should be greater than 0, not 0.",
    f"{POINT} --temperature 5": "Give temperature_K or kT_eV, not both.",
    f"{POINT} --method udd": "needs at least two models",
    f"{POINT} --method udd --model surface:mueller-brown": "Two members of the committee are the same model",
    f"{POINT} --model surface:mueller-brown?scale=2": "skmd takes one model, not 2",
    f"{POINT} --method a-skmd --bandwidth median": "bias-norm-below needs a fixed bandwidth",
    f"{POINT} --min-steps 3": "--min-steps belongs to",
    f"{POINT} --alignment kabsch {ENSEMBLE}": "One atom cannot be turned",
    "--model surface:mueller-brown --at -0.55": "two numbers, such as --at -0.55,1.44",
    "--model surface:mueller-brown --at -0.55,1.44": "give step_size in Å²/eV",
    "--model surface:mueller-brown --at nan,1 --method langevin": "its position is not finite",
    "--model surface:mueller-brown water.xyz --method langevin": "a point on a surface is one atom, and it has 3",
    "--model embedded --at 0,1": "names points on a surface",
    "--model ase:ase.calculators.lj:LennardJones water.xyz": "gives no node features",
    "--model embedded nan.xyz --method langevin": "Starting structure 0 (H2O) cannot be sampled: the position of atom 1",
    "--model embedded gold.xyz --method langevin": "the model does not know Au",
    "--model embedded empty.xyz": "empty.xyz is empty.",
    "--model embedded two.xyz": "not made of the same atoms in the same order",
    "--model embedded water.xyz -o water.xyz": "written over an input",
    "--model embedded water.xyz -o s.extxyz --acquired s.extxyz": "written over an input or another output",
    "--model embedded water.xyz --plot p.jpg": "The picture is a PNG",
    "--model embedded water.xyz -o out.traj": "Frames are extended XYZ",
    "--model embedded water.xyz --options none.yaml": "Cannot read none.yaml",
    "--model embedded water.xyz --checkpoint water.xyz": "written over an input",
    "--model embedded water.xyz --checkpoint other.ckpt --method langevin": "other.ckpt is not a checkpoint",
}  # fmt: skip


@pytest.mark.parametrize("line", BAD)
def test_bad_input_is_one_sentence_and_exit_code_2(line, run, folder):
    water, broken = molecule("H2O"), molecule("H2O")
    broken.positions[1] = np.nan
    write("water.xyz", water)
    write("nan.xyz", broken)
    write("two.xyz", [water, molecule("CH4")])
    write("gold.xyz", Atoms("Au"))
    (folder / "empty.xyz").touch()
    (folder / "other.ckpt").write_text("something else")
    before = {path.name: path.read_bytes() for path in folder.iterdir()}
    code, out, err = run(line)
    assert (code, out) == (2, "")
    assert BAD[line] in err
    assert len(err.strip().splitlines()) == 1
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == before


def test_a_terminal_sees_a_bar_and_a_log_sees_lines():
    from selectron.cli.sample_progress import SampleLines, sample_progress_for

    told = [Progress("ensemble", 20, 40), Progress("ensemble", 40, 40), Progress("sampling", 0, 200)]
    told += [Progress("sampling", 20 * i, 200, 3, 2.0 * i, -1.5, 290.0, 0.25, Tally(acquired=i)) for i in range(1, 11)]
    told.append(told[-1]._replace(finished="steps"))
    screen = StringIO()
    with sample_progress_for(Console(file=screen, force_terminal=True, width=160)) as bar:
        for one in told:
            bar(one)
    assert all(
        part in screen.getvalue() for part in ("200/200", "290 K", "-1.5000 eV", "bias 0.25 eV/Å", "10 acquired")
    )
    times, lines = iter(range(0, 1000, 3)), []
    with SampleLines(lines.append, clock=lambda: next(times)) as log:
        for one in told:
            log(one)
    assert lines[0].startswith("initial ensemble: step 40/40")
    assert lines[-1].startswith("sampling: step 200/200")
    assert 3 <= len(lines) <= 10
    assert isinstance(sample_progress_for(Console(file=StringIO())), SampleLines)


LONG = f"{POINT} {ENSEMBLE} --method skmd --stop-after 25 --stride 10 --checkpoint-every 50 --ensembles 2 -o x.extxyz"


def killed(folder, line, how, after):
    """Starts the command in a process of its own and ends it when its checkpoint has passed ``after`` steps."""
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    process = subprocess.Popen(
        [sys.executable, "-c", "from selectron.cli import main; main()", "sample", *line.split()],
        cwd=folder,
        env=environment,
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        for _ in range(4000):
            saved = read_checkpoint(folder / "c")
            if saved is not None and next(leaf for leaf in saved.leaves if isinstance(leaf, int)) >= after:
                break
            assert process.poll() is None, process.stderr.read()
            time.sleep(0.02)
        process.send_signal(how)
        _, err = process.communicate(timeout=60)
    finally:
        process.kill()
    return process.returncode, err


def test_a_killed_run_goes_on_to_the_same_bytes(run, folder):
    outputs = "-o x.extxyz --acquired a.extxyz"
    assert run(f"{LONG} {outputs} --steps 1500")[0] == 0
    whole = {name: (folder / name).read_bytes() for name in ("x.extxyz", "a.extxyz")}
    for name in whole:
        (folder / name).unlink()
    code, _ = killed(folder, f"{LONG} {outputs} --steps 1500 --checkpoint c", signal.SIGKILL, after=100)
    assert code == -signal.SIGKILL
    assert not (folder / "x.extxyz").exists()
    assert part_of(folder / "x.extxyz").stat().st_size > 0
    code, _, err = run(f"{LONG} {outputs} --steps 1500 --checkpoint c")
    assert code == 0
    assert "going on from step" in err
    assert {name: (folder / name).read_bytes() for name in whole} == whole
    # once more: it is finished, and stays as it is
    code, out, _ = run(f"{LONG} {outputs} --steps 1500 --checkpoint c")
    assert (code, {name: (folder / name).read_bytes() for name in whole}) == (0, whole)
    assert "skmd: 1,500 steps; ended by the number of steps." in out
    # outputs that were tampered with are not silently continued
    (folder / "x.extxyz").write_text("")
    code, _, err = run(f"{LONG} {outputs} --steps 2000 --checkpoint c")
    assert code == 2
    assert "remove the checkpoint to start anew" in err


@pytest.mark.slow
def test_a_terminated_run_keeps_its_frames_and_says_so(folder):
    code, err = killed(folder, f"{LONG} --steps 100000000 --checkpoint c", signal.SIGTERM, after=50)
    assert code == 143
    assert "the frames so far are in x.extxyz.part, and the same command goes on from its checkpoint" in " ".join(
        err.split()
    )
    assert len(read("x.extxyz.part", ":", format="extxyz")) > 0
