"""``selectron train`` as a user runs it."""

import subprocess
import sys

import pytest

from selectron.structures import Pool, write_extxyz


def selectron(*arguments, cwd):
    return subprocess.run(
        [sys.executable, "-c", "from selectron.cli import main; main()", *map(str, arguments)],
        cwd=cwd,
        capture_output=True,
        text=True,
        timeout=500,
    )


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """Reactive structures with GFN2-xTB labels, as files."""
    folder = tmp_path_factory.mktemp("data")
    with Pool.open(["embedded"]) as pool:
        write_extxyz(folder / "train.extxyz", [pool[i] for i in range(20)])
        write_extxyz(folder / "valid.extxyz", [pool[i] for i in range(20, 40)])
        write_extxyz(folder / "unlabelled.extxyz", [_bare(pool[i]) for i in range(4)])
    return folder


def _bare(atoms):
    copy = atoms.copy()
    copy.calc = None
    return copy


def test_a_model_is_trained_and_its_errors_are_shown(files, tmp_path):
    done = selectron(
        "train", "--model", "embedded", "--train", files / "train.extxyz", "--valid", files / "valid.extxyz",
        "-o", "new.model", "--preset", "paper-lora", "--epochs", "4", "--stage-two-start", "2", "--threads", "1",
        cwd=tmp_path,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "new.model").is_file()
    assert not list((tmp_path / "new-training").glob("*.model"))
    lines = done.stdout.splitlines()
    before, after = (next(line for line in lines if word in line) for word in (" before", " after"))
    assert float(after.split("│")[6]) < float(before.split("│")[6])
    assert "20 structures to learn from, 20 to judge by" in done.stdout
    assert "stage 2" in done.stderr
    assert "epochs: 4/4 done" in done.stderr


@pytest.mark.slow
def test_averaging_is_switched_off(files, tmp_path):
    settings = []
    for name, how in (("averaged", []), ("plain", ["--no-ema"])):
        done = selectron(
            "train", "--model", "embedded", "--train", files / "train.extxyz", "-o", f"{name}.model", "--epochs", "20", *how,
            cwd=tmp_path,
        )  # fmt: skip
        assert done.returncode == 0, done.stderr
        settings.append((tmp_path / f"{name}-training" / "run" / "settings.json").read_text())
    assert "--ema_decay=" in settings[0]
    assert "--ema" not in settings[1]


@pytest.mark.slow
def test_a_training_that_fails_leaves_the_output_alone(files, tmp_path):
    (tmp_path / "new.model").write_bytes(b"the previous model")
    done = selectron(
        "train", "--model", "embedded", "--train", files / "train.extxyz", "-o", "new.model", "--lr", "1e6", "--epochs", "3",
        cwd=tmp_path,
    )  # fmt: skip
    assert done.returncode == 2
    assert "diverged" in done.stderr
    assert "Traceback" not in done.stderr
    assert (tmp_path / "new.model").read_bytes() == b"the previous model"


@pytest.mark.slow
def test_bad_input_is_one_sentence_and_exit_code_2(files, tmp_path):
    for arguments, sentence in (
        (["--train", files / "unlabelled.extxyz"], "has no energy and no forces"),
        (["--train", files / "missing.extxyz"], "missing.extxyz"),
        (["--train", files / "train.extxyz", "--epochs", "0"], "epochs: "),
        (["--train", files / "train.extxyz", "--method", "dora"], "method: "),
        (["--train", files / "train.extxyz", "--stage-two-start", "100"], "stage_two_start"),
        (["--train", files / "train.extxyz", "--ema", "0.9", "--no-ema"], "exclude each other"),
        (["--train", files / "train.extxyz", "-o", files / "train.extxyz"], "would be written over an input"),
    ):
        done = selectron("train", "--model", "embedded", *arguments, cwd=tmp_path)
        assert done.returncode == 2, sentence
        assert sentence in done.stderr
        assert "Traceback" not in done.stderr
        assert not list(tmp_path.glob("*.model"))
