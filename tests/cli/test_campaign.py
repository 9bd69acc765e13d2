"""The commands of a campaign as a person runs them."""

import json
import os
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from ase.build import molecule
from ase.io import read, write

from selectron.campaign.history import read_campaign
from selectron.embedded import pool_path

HERE = Path(__file__).parent


@pytest.fixture
def run(tmp_path, monkeypatch, command_line):
    """Runs a command line in an empty folder; gives exit code, standard output and standard error."""
    monkeypatch.chdir(tmp_path)
    return command_line


GOOD = """\
pool:
  files: [embedded]
model:
  file: embedded
test:
  fraction: 0.3
  group_by: smiles
oracle:
  kind: gfn2-xtb
trainer:
  epochs: 1
budget:
  labels: 4
  per_round: 2
"""


@pytest.mark.parametrize("kind", ["campaign", "sampling"])
def test_templates_that_promise_to_run_are_valid(run, kind):
    code, out, _ = run(f"template {kind}")
    assert code == 0
    Path("c.yaml").write_text(out)
    code, out, err = run("validate c.yaml")
    assert (code, err) == (0, "")
    assert "c.yaml can be run: selectron run c.yaml" in out


def test_an_unknown_template(run):
    code, out, err = run("template nothing")
    assert (code, out) == (2, "")
    assert "campaign, sampling, dft" in err


def test_the_schema_is_json_that_knows_every_oracle(run):
    code, out, _ = run("schema")
    schema = json.loads(out)
    assert code == 0
    assert schema["additionalProperties"] is False
    assert set(schema["properties"]["oracle"]["discriminator"]["mapping"]) >= {"gfn2-xtb", "dft", "mace", "ase"}


@pytest.mark.parametrize(
    ("old", "new", "place", "words"),
    [
        ("[embedded]", "[nowhere.xyz]", "2:11", "nowhere.xyz"),
        ("file: embedded", "file: nothing.model", "4:9", "nothing.model"),
        ("file: embedded", "file: mace-of23-small", "4:9", "mace-of23-small"),
        ("group_by: smiles", "group_by: smile", "7:13", "no structure of the pool has it"),
        ("kind: gfn2-xtb", "kind: mace\n  model: no.model", "9:3", "no.model"),
        ("epochs: 1", "epochs: 1\n  interpreter: no-such-python", "12:16", "no-such-python"),
        ("epochs: 1", "epochs: 1\n  kind: mlp", "12:9", "planar"),
        ("per_round: 2", "per_round: 2\nselector: {shortlist: 1}", "15:23", "too short"),
        ("per_round: 2", "per_round: 2\nfeatures: {name: activation}\nselector: {rank_by: max-atom}", "16:21", "exact"),
        ("per_round: 2", "per_rund: 2", "14:3", "did you mean 'per_round'?"),
        ("file: embedded", "file: embedded\n  device: cuda:99", "5:11", "no GPU"),
        ("fraction: 0.3\n  group_by: smiles", "files: [bare.xyz]", "6:10", "labels: oracle"),
        ("fraction: 0.3\n  group_by: smiles", "files: [iron.xyz]", "6:10", "Fe"),
        ("per_round: 2", "per_round: 2\nlabel_store: not/there.db", "15:14", "does not exist"),
    ],
)
def test_what_cannot_run_is_told_with_its_line(run, old, new, place, words):
    write("bare.xyz", [molecule("H2O")])
    iron = molecule("H2O")
    iron.numbers[0] = 26
    iron.info["energy"], iron.arrays["forces"] = 0.0, np.zeros((3, 3))
    write("iron.xyz", [iron], format="extxyz")
    assert old in GOOD
    Path("c.yaml").write_text(GOOD.replace(old, new))
    code, out, err = run("validate c.yaml")
    assert (code, out) == (2, ""), out
    assert err.startswith(f"Error: c.yaml:{place}: "), err
    assert words in err
    assert run("run c.yaml")[0] == 2
    assert not Path("c").exists(), "a campaign that cannot run leaves nothing"


def test_more_labels_than_structures_are_noted(run):
    Path("c.yaml").write_text(GOOD.replace("labels: 4", "labels: 400"))
    code, out, _ = run("validate c.yaml")
    assert code == 0
    assert "about 280 structures can be picked" in out.replace("\n", " ")


@pytest.mark.parametrize("command", ["resume nowhere", "status nowhere", "report nowhere", "export nowhere -o out"])
def test_no_campaign_there(run, command):
    code, out, err = run(command)
    assert (code, out) == (2, "")
    assert err.startswith("Error: There is no campaign in nowhere")


@pytest.mark.slow
def test_a_campaign_with_the_embedded_data_and_gfn2_xtb(run):
    """Killed in its first training and resumed; then told, exported and extended."""
    text = GOOD.replace(
        "  epochs: 1\n", "  epochs: 2\n  threads: 1\n  learning_rate: 0.0002\n"
    )  # few steps, small ones
    Path("c.yaml").write_text(
        text + "train: {files: [embedded-train]}\nbaseline: random\nfeatures: {name: activation}\n"
    )
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-c", "from selectron.cli import main; main()", "run", "c.yaml", "-o", "folder"]
    first = subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, text=True)
    deadline = time.monotonic() + 300
    while time.monotonic() < deadline:
        time.sleep(0.3)
        if Path("folder/campaign.sqlite").exists():
            code, out, _ = run("status folder")
            if "training, epochs" in out:
                break
    assert f"is run by process {first.pid}: training" in out.replace("\n", " ")
    first.kill()
    first.wait()
    code, out, _ = run("status folder")
    assert "is interrupted; go on with: selectron resume folder" in out
    labels_before = read_campaign("folder").oracle_calls
    assert labels_before >= 2

    code, out, err = run("resume folder")
    assert code == 0, err
    record = read_campaign("folder")
    assert record.finished
    assert [arm.labels for arm in record.arms] == [4, 4]
    assert "selected: The budget of 4 labels is spent." in out
    assert "force RMSE" in out
    # the labels of picks are those of the pool, which GFN2-xTB made too
    pool = read(pool_path(), ":")
    for one in record.selected.rounds:
        for pick in one.picks:
            same = pool[pick.source.index]
            assert pick.structure.get_potential_energy() == pytest.approx(same.get_potential_energy(), abs=1e-5)
            np.testing.assert_allclose(pick.structure.get_forces(), same.get_forces(), atol=1e-4)
            assert one.training.failure is None
            assert not one.training.references["applied"]
            assert [epoch["epoch"] for epoch in one.training.history] == [-1, 0, 1]
    held = {atoms.info["smiles"] for atoms in read(record.test_path, ":")}
    assert not held & {pick.structure.info["smiles"] for one in record.selected.rounds for pick in one.picks}

    assert run("export folder -o out")[0] == 0
    assert len(read("out/train.extxyz", ":")) == 204
    assert "whose licence is MIT" in Path("out/README.md").read_text()
    again = run("resume folder")
    assert again[0] == 0
    assert read_campaign("folder").costs == record.costs, "a finished campaign was run again"


@pytest.mark.slow
def test_a_campaign_that_samples(run):
    text = """\
sampling: {starts: [embedded-train], start_indices: [3], method: skmd, particles: 4, temperature_K: 300, iterations: 8,
  initial: {burn_in_steps: 40, snapshot_every: 10}, stopping: [{kind: fixed-steps, steps: 10}]}
model: {file: embedded}
test: {files: [embedded-train]}
features: {name: activation, dim: 32}
oracle: {kind: gfn2-xtb}
trainer: {epochs: 1, threads: 1, learning_rate: 0.0002}
budget: {labels: 4, per_round: 2}
baseline: random
"""
    Path("s.yaml").write_text(text)
    code, _, err = run("run s.yaml")
    assert code == 0, err
    record = read_campaign("s")
    assert [arm.labels for arm in record.arms] == [4, 4]
    first, second = record.selected.rounds
    assert first.sampled.shared
    assert not second.sampled.shared
    assert first.sampled.acquired == 8
    assert record.random.rounds[0].sampled.path == first.sampled.path
    start = read(second.picks[0].source.path) if Path(second.picks[0].source.path).exists() else None
    assert start is None
    assert second.picks[0].source.path == "sampled in round 2 (selected)"
    candidates = read(second.sampled.path, ":")
    same = candidates[second.picks[0].source.index]
    np.testing.assert_allclose(same.positions, second.picks[0].structure.positions, atol=1e-7)
    assert same.info["stopping_reason"] == "fixed-steps"
