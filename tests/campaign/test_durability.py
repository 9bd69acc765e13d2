"""Nothing is lost: kills at random moments, a second process, a full disk."""

import os
import signal
import time
from collections import Counter
from contextlib import suppress
from pathlib import Path

import numpy as np
import pytest
from quick_campaign import begin_in, prepare, run_quickly, story

from selectron.campaign.history import read_campaign
from selectron.campaign.lock import campaign_lock, running
from selectron.errors import SelectronError
from selectron.oracles import LabelStore


def calls(folder):
    """Hashes of the structures that the oracle was called for, in order."""
    path = Path(f"{folder}.calls")
    return path.read_text().split() if path.exists() else []


def bought(folder):
    """Hashes of the structures whose labels are committed."""
    with LabelStore(folder / "campaign.sqlite") as store:
        rows = store._connection.execute(
            "SELECT hash FROM labels JOIN structures ON labels.structure = structures.key"
        ).fetchall()
    return [row[0] for row in rows]


def kill_until_done(server, folder, seed, longest_s, kills=0, kill=os.kill):
    """Starts the campaign again and again and kills it after random times; gives the number of kills.

    ``kill`` is :func:`os.kill`, which leaves orphans, or :func:`os.killpg`, which ends engines and trainers too.
    """
    random = np.random.default_rng(seed)
    known_before_kill = []
    while True:
        pid = server.start(folder)
        # short lives more often: most stages are short
        deadline = time.monotonic() + longest_s * random.random() ** 2
        while time.monotonic() < deadline:
            time.sleep(0.002)
        with suppress(ProcessLookupError):
            kill(pid, signal.SIGKILL)
        code = server.wait()
        if code == 0:
            return kills, known_before_kill
        assert code == -signal.SIGKILL
        kills += 1
        known_before_kill.append((len(calls(folder)), set(bought(folder))))
        longest_s *= 1.1  # in the end it gets through


def assert_as_undisturbed(undisturbed, folder, kills):
    assert story(folder) == story(undisturbed)
    committed = bought(folder)
    assert max(Counter(committed).values()) == 1
    assert sorted(committed) == sorted(bought(undisturbed))
    # a call that was under way at a kill is the only one that can have been made in vain
    assert len(calls(undisturbed)) <= len(calls(folder)) <= len(calls(undisturbed)) + kills


@pytest.mark.parametrize(
    ("seed", "least", "kill"),
    [
        (0, 10, os.kill),
        *(pytest.param(seed, 10, os.kill, marks=pytest.mark.slow) for seed in (1, 2, 3)),
        pytest.param(4, 200, os.killpg, marks=pytest.mark.slow),
    ],
)
def test_killed_at_random_moments_it_comes_to_the_same(server, undisturbed, tmp_path, quick_yaml, seed, least, kill):
    total = campaigns = 0
    while total < least:  # a quick machine gets through with few kills, and then does it again
        folder = tmp_path / f"run{campaigns}"
        begin_in(quick_yaml, folder)
        kills, known = kill_until_done(server, folder, (seed, campaigns), longest_s=1.0, kill=kill)
        assert_as_undisturbed(undisturbed, folder, kills)
        made = calls(folder)
        for count, committed in known:
            assert not committed & set(made[count:]), "a label that was on disk was bought again"
        total, campaigns = total + kills, campaigns + 1
    print(f"{total} kills of {campaigns} campaigns")


def test_a_second_process_is_refused(server, tmp_path, quick_yaml):
    folder = tmp_path / "run"
    begin_in(quick_yaml, folder)
    with campaign_lock(folder):
        assert running(folder) == os.getpid()
        server.start(folder)
        assert server.wait() == 2
    assert running(folder) is None
    assert not read_campaign(folder).finished
    pid = server.start(folder)
    while running(folder) != pid:
        time.sleep(0.01)
    with pytest.raises(SelectronError, match=f"run by process {pid} already"):
        run_quickly(folder)
    os.kill(pid, signal.SIGKILL)
    server.wait()
    assert running(folder) is None


def test_the_status_can_be_read_while_it_runs(server, tmp_path, quick_yaml):
    folder = tmp_path / "run"
    begin_in(quick_yaml, folder)
    pid = server.start(folder)
    seen, processes = set(), set()
    deadline = time.monotonic() + 120
    while time.monotonic() < deadline:
        record = read_campaign(folder)
        processes.add(record.process)
        seen.add(record.selected.labels)
        if record.finished:
            break
    assert server.wait() == 0
    assert record.finished
    assert processes - {None} == {pid}
    assert {0, 6} <= seen
    assert len(seen) >= 3


def test_a_full_disk_stops_it_cleanly(server, undisturbed, tmp_path, quick_yaml):
    folder = tmp_path / "run"
    begin_in(quick_yaml, folder)
    # the limits stand for a disk that fills up early, in the middle and late
    for size in (30_000, 70_000, 100_000, 130_000):
        server.start(folder, size)
        if server.wait() == 0:
            break
        said = Path(f"{folder}.said").read_text()
        assert "disk is full" in said, said
        assert not list((folder / "artifacts").glob(".draft*"))
    else:
        assert server.start(folder)
        assert server.wait() == 0
    assert said
    assert story(folder) == story(undisturbed)
    assert sorted(bought(folder)) == sorted(bought(undisturbed))


SAMPLING = {
    "starts": ["train.extxyz"],
    "start_indices": [0],
    "method": "skmd",
    "particles": 3,
    "temperature_K": 300.0,
    "iterations": 6,
    "initial": {"burn_in_steps": 10, "snapshot_every": 5},
    "stopping": [{"kind": "fixed-steps", "steps": 10}],
    "checkpoint_every": 15,
}


@pytest.mark.slow
def test_killed_while_it_samples_it_comes_to_the_same(server, tmp_path, tiny_model):
    yaml_path = prepare(tmp_path / "files", tiny_model, pool=None, sampling=SAMPLING)
    whole, folder = tmp_path / "whole", tmp_path / "run"
    begin_in(yaml_path, whole)
    server.start(whole)
    assert server.wait() == 0
    begin_in(yaml_path, folder)
    kills, _ = kill_until_done(server, folder, seed=5, longest_s=0.5)
    assert kills >= 3
    assert_as_undisturbed(whole, folder, kills)
    record = read_campaign(folder)
    assert record.selected.rounds[1].sampled.candidates > 0
    assert [arm.labels for arm in record.arms] == [6, 6]
