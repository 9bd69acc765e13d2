"""The command line as a person runs it: what is printed, what is left on disk, and the exit code."""

import gzip
import os
import signal
import subprocess
import sys
from io import StringIO
from pathlib import Path

import numpy as np
import pytest
import torch
from ase import Atoms
from ase.build import molecule
from ase.io import read, write
from rich.console import Console

from selectron.acquisition import SELECTORS
from selectron.cli.progress import Lines, progress_for
from selectron.features import FEATURES, EnergyNTKFeatures

FORMULAE = ("H2O", "CH4", "CO2", "CH3OH", "C2H4", "H2CO")


def rattled(count, seed):
    random = np.random.default_rng(seed)
    structures = [molecule(FORMULAE[i % len(FORMULAE)]) for i in range(count)]
    for atoms in structures:
        atoms.positions += random.normal(0, 0.05, atoms.positions.shape)
    return structures


@pytest.fixture
def folder(tmp_path, monkeypatch, tiny_model):
    """A working folder with a model, a pool and a training set; the cache is in it too."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("SELECTRON_CACHE", str(tmp_path / "cache"))
    (tmp_path / "m.model").symlink_to(tiny_model)
    write("pool.extxyz", rattled(24, 1))
    write("train.extxyz", rattled(8, 2))
    return tmp_path


@pytest.fixture
def run(folder, command_line):
    """Runs a command line in ``folder``; gives exit code, standard output and standard error."""
    return command_line


@pytest.fixture
def computed(monkeypatch):
    """Structures whose features are computed, not read."""
    seen = []
    rows = EnergyNTKFeatures.rows

    def counting(self, structures):
        seen.extend(structures)
        return rows(self, structures)

    monkeypatch.setattr(EnergyNTKFeatures, "rows", counting)
    return seen


def left_behind(folder):
    return {path.name for path in folder.iterdir()}


def test_a_selection(run, folder):
    code, out, err = run("select pool.extxyz -m m.model -t train.extxyz -n 5 --scores scores.csv")
    assert code == 0
    assert left_behind(folder) >= {"picks.extxyz", "picks.png", "picks.html", "scores.csv"}
    picks, pool = read("picks.extxyz", ":"), read("pool.extxyz", ":")
    assert [atoms.info["rank"] for atoms in picks] == [1, 2, 3, 4, 5]
    for atoms in picks:
        assert atoms.info["source"] == "pool.extxyz"
        assert {"score", "variance", "features", "selector", "nearest_training"} <= set(atoms.info)
        np.testing.assert_allclose(atoms.positions, pool[atoms.info["source_index"]].positions, atol=1e-7)
    assert len(Path("scores.csv").read_text().splitlines()) == 25
    assert "24 usable structures in the pool, 8 structures in the training set." in out
    assert "wrote picks.extxyz, scores.csv, picks.png, picks.html" in out.replace("\n", " ")
    assert "pool: 24/24 done in" in err
    assert "Warning" not in out + err


def test_equal_command_lines_give_equal_bytes(run, folder):
    for name in ("a.extxyz", "b.extxyz", "c.extxyz.gz"):
        code, *_ = run(f"select pool.extxyz -m m.model -n 4 --no-cache --no-picture -o {name}")
        assert code == 0
    assert Path("a.extxyz").read_bytes() == Path("b.extxyz").read_bytes()
    assert Path("a.extxyz").read_bytes() == gzip.decompress(Path("c.extxyz.gz").read_bytes())
    assert not Path("cache").exists()


def test_rows_are_computed_once(run, computed):
    assert run("select pool.extxyz -m m.model -t train.extxyz -n 4 --no-picture")[0] == 0
    assert len(computed) == 32
    assert run("select pool.extxyz -m m.model -n 4 -s maxdet --no-picture")[0] == 0
    assert run("score pool.extxyz train.extxyz -m m.model")[0] == 0
    assert len(computed) == 32
    assert run("score pool.extxyz -m m.model --seed 1")[0] == 0
    assert len(computed) == 56


KILLED_IN_THE_THIRD_BATCH = """
import os, signal
from selectron.features import EnergyNTKFeatures
from selectron.cli import main
rows, calls = EnergyNTKFeatures.rows, []
def deadly(self, structures):
    calls.append(1)
    if len(calls) == 3:
        os.kill(os.getpid(), signal.SIGKILL)
    return rows(self, structures)
EnergyNTKFeatures.rows = deadly
main("select pool.extxyz -m m.model -n 4 --no-picture --batch-size 5".split())
"""


def test_after_a_kill_it_starts_where_it_stood(run, computed):
    killed = subprocess.run([sys.executable, "-c", KILLED_IN_THE_THIRD_BATCH], capture_output=True)
    assert killed.returncode == -signal.SIGKILL
    assert not Path("picks.extxyz").exists()
    assert run("select pool.extxyz -m m.model -n 4 --no-picture --batch-size 5")[0] == 0
    assert len(computed) == 24 - 2 * 5
    assert (
        run("select pool.extxyz -m m.model -n 4 --no-picture --batch-size 5 --no-cache -o undisturbed.extxyz")[0] == 0
    )
    assert Path("picks.extxyz").read_bytes() == Path("undisturbed.extxyz").read_bytes()


def test_ctrl_c_and_termination_leave_nothing(run, folder, monkeypatch):
    before = left_behind(folder) | {"cache"}
    write("mixed.extxyz", [Atoms("Si"), *rattled(3, 3)])  # so that a quarantine has been begun

    def interrupted(self, structures):
        raise KeyboardInterrupt

    monkeypatch.setattr(EnergyNTKFeatures, "rows", interrupted)
    code, out, err = run("select mixed.extxyz -m m.model -n 2")
    assert (code, out) == (130, "")
    assert err.splitlines()[-1].startswith("Stopped.")
    assert left_behind(folder) <= before | {"mixed.extxyz", "quarantine.csv"}

    monkeypatch.setattr(EnergyNTKFeatures, "rows", lambda *_: os.kill(os.getpid(), signal.SIGTERM))
    assert run("select mixed.extxyz -m m.model -n 2")[0] == 143
    assert left_behind(folder) <= before | {"mixed.extxyz", "quarantine.csv"}


@pytest.mark.parametrize("features", [name for name in FEATURES if name != "soap"])
def test_every_feature_map(run, features):
    code, _, err = run(f"select pool.extxyz -m m.model -t train.extxyz -n 3 -f {features} --no-picture --dim 32")
    assert code == 0, err
    assert len(read("picks.extxyz", ":")) == 3


@pytest.mark.parametrize("selector", [name for name in SELECTORS if not name.startswith("committee")])
def test_every_selector(run, selector):
    code, _, err = run(f"select pool.extxyz -m m.model -t train.extxyz -n 3 -s {selector} --no-picture --dim 32")
    assert code == 0, err
    assert len({atoms.info["source_index"] for atoms in read("picks.extxyz", ":")}) == 3


def test_soap_needs_no_model(run):
    pytest.importorskip("featomic")
    assert run("select pool.extxyz -n 3 -f soap --no-picture --dim 32")[0] == 0


@pytest.mark.parametrize("selector", ["committee-energy", "committee-force"])
def test_a_committee(run, folder, selector):
    from small_maces import small_mace

    for seed in (1, 2):
        torch.save(small_mace(hidden_irreps="4x0e", correlation=2, seed=seed), f"{seed}.model")
    code, _, err = run(f"select pool.extxyz -m m.model -m 1.model -m 2.model -n 3 -s {selector} --no-picture")
    assert code == 0, err
    scores = [atoms.info["score"] for atoms in read("picks.extxyz", ":")]
    assert scores == sorted(scores, reverse=True)
    assert scores[-1] > 0


def test_a_pool_of_files_and_boxes_of_all_kinds(run, folder):
    cell = Atoms("CO", [[0, 0, 0], [1.2, 0.3, 0.2]], cell=[4, 4, 4], pbc=True)
    sheet = Atoms("C2", [[0, 0, 0], [1.42, 0, 0]], cell=[2.5, 4.3, 0], pbc=[True, True, False])
    (folder / "more").mkdir()
    write("more/a.extxyz", [cell])
    write("more/b.extxyz", [sheet])
    code, out, err = run("select pool.extxyz more -m m.model -n 26")
    assert code == 0, err
    picks = read("picks.extxyz", ":")
    assert {atoms.info["source"] for atoms in picks} == {"pool.extxyz", "more/a.extxyz", "more/b.extxyz"}
    assert {tuple(atoms.pbc.tolist()) for atoms in picks} == {(False,) * 3, (True,) * 3, (True, True, False)}
    assert "… 6 more" in out


def test_one_structure_and_a_budget_beyond_it(run):
    write("one.extxyz", rattled(1, 4))
    code, out, _ = run("select one.extxyz -m m.model -n 1000")
    assert code == 0
    assert len(read("picks.extxyz", ":")) == 1
    assert "1 usable structure in the pool." in out
    assert "The budget is 1,000, but only 1 could be picked" in out


def test_a_pool_that_is_the_training_set(run):
    code, out, _ = run("select pool.extxyz -t pool.extxyz -m m.model -n 2")
    assert code == 0
    assert "Nothing is left to pick: every structure of the pool stands in the training set." in out
    assert Path("picks.extxyz").read_text() == ""


def test_unusable_structures_are_listed_and_the_others_used(run):
    write("mixed.extxyz", [*rattled(2, 5), molecule("SiH4"), *rattled(3, 6)])
    code, out, _ = run("select mixed.extxyz -m m.model -n 2 --no-picture")
    assert code == 0
    assert "1 structure could not be used: quarantine.csv says why." in out
    assert Path("quarantine.csv").read_text().splitlines()[1] == "mixed.extxyz,2,the model does not know Si"


BAD_INPUT = {
    "no such file": ("select nowhere.extxyz -m m.model -n 2", "there is no file nowhere.extxyz."),
    "no match": ("select no*where -m m.model -n 2", "no file matches no*where."),
    "empty pool": ("select empty.extxyz -m m.model -n 2", "empty.extxyz is empty."),
    "not structures": ("select text.extxyz -m m.model -n 2", "text.extxyz is not an (extended) XYZ file"),
    "no such training set": ("select pool.extxyz -t nowhere -m m.model -n 2", "there is no file nowhere."),
    "no such model": ("select pool.extxyz -m nowhere.model -n 2", "There is no model 'nowhere.model'"),
    "no model": ("select pool.extxyz -n 2", "name one with --model"),
    "text for a model": ("select pool.extxyz -m text.extxyz -n 2", "not a mace-torch model file"),
    "state dict": ("select pool.extxyz -m state.model -n 2", "not a model"),
    "truncated model": ("select pool.extxyz -m short.model -n 2", "short.model is damaged or cut short"),
    "not a MACE": (
        "select pool.extxyz -m linear.model -n 2",
        "linear is a Linear: selectron reads mace-torch models of class",
    ),
    "no known element": ("select silicon.extxyz -m m.model -n 2", "(the first: the model does not know Si)"),
    "budget zero": ("select pool.extxyz -m m.model -n 0", "at least 1, not 0"),
    "budget missing": ("select pool.extxyz -m m.model", "--budget"),
    "budget no number": ("select pool.extxyz -m m.model -n many", "--budget"),
    "no such option": ("select pool.extxyz -m m.model -n 2 --frobnicate", "--frobnicate"),
    "no such command": ("frobnicate", "frobnicate"),
    "no such selector": ("select pool.extxyz -m m.model -n 2 -s best", "no selector 'best'"),
    "no such features": ("select pool.extxyz -m m.model -n 2 -f best", "no features called 'best'"),
    "not these features": (
        "select pool.extxyz -m ase:ase.calculators.lj:LennardJones -n 2",
        "LennardJones cannot give energy-ntk features",
    ),
    "committee of one": ("select pool.extxyz -m m.model -n 2 -s committee-force", "--model at least twice"),
    "committee of twins": ("select pool.extxyz -m m.model -m m.model -n 2 -s committee-force", "the same model"),
    "batch size": ("select pool.extxyz -m m.model -n 2 --batch-size some", "'auto' or a whole number"),
    "batch size zero": ("select pool.extxyz -m m.model -n 2 --batch-size 0", "'auto' or a whole number"),
    "dtype": ("select pool.extxyz -m m.model -n 2 --dtype int", "float32 or float64"),
    "device": ("select pool.extxyz -m m.model -n 2 --device abacus", "is no device"),
    "noise": ("score pool.extxyz -m m.model --noise 0", "above 0"),
    "distance": ("score pool.extxyz -m m.model --min-distance -1", "from 0, not -1.0"),
    "shortlist": ("select pool.extxyz -m m.model -n 3 --shortlist 2", "too short"),
    "output folder": ("select pool.extxyz -m m.model -n 2 -o nowhere/p.extxyz", "does not exist"),
    "output is a folder": ("select pool.extxyz -m m.model -n 2 -o folder", "is a folder"),
    "output is the pool": ("select pool.extxyz -m m.model -n 2 -o pool.extxyz", "written over an input"),
    "output is a picture": ("select pool.extxyz -m m.model -n 2 -o picks.png", "The picks are extended XYZ"),
    "full disk": ("score pool.extxyz -m m.model -o /dev/full --quarantine q.csv", "the disk is full"),
    "cache is a file": ("score pool.extxyz -m m.model --cache pool.extxyz", "choose another folder with --cache"),
}


@pytest.mark.parametrize(("line", "sentence"), BAD_INPUT.values(), ids=BAD_INPUT)
def test_bad_input_gets_one_sentence_and_code_2(run, folder, tiny_model, line, sentence):
    Path("empty.extxyz").touch()
    Path("text.extxyz").write_text("just\ntext\n")
    Path("folder").mkdir()
    write("silicon.extxyz", [molecule("SiH4"), molecule("Si2H6")])
    torch.save({"weight": torch.zeros(2)}, "state.model")
    torch.save(torch.nn.Linear(2, 2), "linear.model")
    content = tiny_model.read_bytes()
    Path("short.model").write_bytes(content[: len(content) // 2])
    pool, before = Path("pool.extxyz").read_bytes(), left_behind(folder) | {"cache"}
    code, out, err = run(line)
    lines = [one for one in err.splitlines() if " done in " not in one]
    assert code == 2, err
    assert len(lines) == 1
    assert lines[0].startswith("Error: ")
    assert sentence in lines[0]
    assert out == ""
    assert left_behind(folder) - before <= ({"quarantine.csv"} if "silicon" in line else set())
    assert Path("pool.extxyz").read_bytes() == pool


@pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has a GPU")
def test_a_gpu_that_is_not_there(run):
    code, _, err = run("select pool.extxyz -m m.model -n 2 --device cuda")
    assert (code, err) == (2, "Error: This machine has no CUDA device that PyTorch can use; say --device cpu.\n")


def test_a_damaged_cache_says_which_file(run, folder):
    assert run("score pool.extxyz -m m.model")[0] == 0
    (cache,) = (folder / "cache" / "features").glob("*.sqlite")
    cache.write_bytes(b"no database" * 1000)
    code, out, err = run("score pool.extxyz -m m.model")
    assert code == 0
    assert f"{cache} was damaged" in " ".join((out + err).split())
    assert run("score pool.extxyz -m m.model")[0] == 0


def test_debug_shows_the_traceback_wherever_it_stands(run):
    for line in ("--debug score nowhere -m m.model", "score nowhere -m m.model --debug"):
        code, _, err = run(line)
        assert code == 2
        assert "Traceback" in err
        assert err.splitlines()[-1] == "Error: there is no file nowhere."


def test_a_bug_is_one_line_and_code_1(run, monkeypatch):
    monkeypatch.setattr(EnergyNTKFeatures, "rows", lambda *_: 1 / 0)
    code, _, err = run("score pool.extxyz -m m.model")
    assert code == 1
    assert "ZeroDivisionError" in err.splitlines()[-1]
    assert "--debug" in err.splitlines()[-1]
    assert "Traceback" not in err


def test_lists_have_one_line_each(run):
    for command, names in (("features", FEATURES), ("selectors", SELECTORS)):
        code, out, _ = run(command)
        assert code == 0
        assert [line.split()[0] for line in out.splitlines()] == list(names)
    code, out, _ = run("models")
    assert code == 0
    assert out.startswith("embedded ")


def test_help_needs_no_torch():
    check = "import sys, selectron.cli; sys.exit('torch' in sys.modules or 'mace' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", check]).returncode == 0


def test_help(run):
    for line in ("", "--help", "select --help", "--version"):
        code, out, err = run(line)
        assert (code, err) == (0, "")
        assert out


def test_lines_in_a_log_tell_rate_and_time_left():
    clock, written = [0.0], []
    progress = Lines(written.append, lambda: clock[0])
    progress.start("pool", 1000)
    progress.advance(100)  # from the cache, at once
    for count in (100, 100, 100, 20, 80):
        clock[0] += 6.0
        progress.advance(count)
    clock[0] += 90.0
    progress.advance(500)
    progress.finish()
    assert written == [
        "pool: 300/1000, 25.0/s, 28.0 s left",
        "pool: 420/1000, 10.0/s, 58.0 s left",
        "pool: 1000/1000 done in 2 min 00 s",
    ]


def test_a_slow_start_does_not_end_the_progress():
    clock, written = [0.0], []
    progress = Lines(written.append, lambda: clock[0])
    progress.start("training", 20)
    clock[0] = 30.0
    progress.advance(0)
    assert written == ["training: 0/20, 0.0/s, unknown time left"]


def test_a_bar_on_a_terminal():
    stream = StringIO()
    with progress_for(Console(file=stream, force_terminal=True, width=100)) as progress:
        progress.start("pool", 10)
        progress.advance(10)
        progress.finish()
    assert "10/10" in stream.getvalue()
    assert "\r" in stream.getvalue() or "\x1b[" in stream.getvalue()


def test_real_slabs_and_molecules_together(run, shared_models, shared_data, tmp_path):
    slabs = read(shared_data / "oc20_traj30_sub.xyz", ":3")
    write("mixed.extxyz", [*slabs, *read(shared_data / "t1x32.xyz", ":6")])
    code, out, err = run(f"select mixed.extxyz -m {shared_models / 'mace_mp_small.model'} -n 4 --dim 64")
    assert code == 0, err
    assert "9 usable structures in the pool." in out
    assert len(read("picks.extxyz", ":")) == 4


def test_a_real_model_that_lacks_elements(run, shared_models, shared_data):
    code, _, err = run(f"score {shared_data / 'oc20_traj30_sub.xyz'} -m {shared_models / 'MACE-OFF23_small.model'}")
    assert code == 2
    assert "can be used (the first: the model does not know" in err
