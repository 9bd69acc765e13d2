"""Trainings of both arms at the same time: same results as one after the other, each told apart."""

import re

import pytest
from quick_campaign import begin_in, history_rewritten, prepare, quick_fine_tune, story

import selectron.campaign.fitting
import selectron.training.fine_tune
from selectron.campaign.context import Unwatched
from selectron.campaign.history import read_campaign
from selectron.campaign.run import run_campaign
from selectron.errors import SelectronError
from selectron.training.mace_process import kept
from selectron.training.outcome import TrainingFailed

WAITS = 3


class Listening(Unwatched):
    """Keeps what a campaign says."""

    def __init__(self, said):
        self.said = said

    def say(self, text):
        self.said.append(text)


@pytest.fixture
def play(tmp_path, tiny_model, monkeypatch):
    """Runs a quick campaign with a trainer that waits three times; gives its folder and the order of all turns."""
    yaml_path = prepare(tmp_path, tiny_model)
    monkeypatch.setenv("CALLS", str(tmp_path / "calls"))

    def play_it(name, *, cores, breaks=None):
        turns = []

        def steps(model, train, valid, options, folder, *, on_progress=None):
            who = folder.name.rpartition("-")[0]
            try:
                for turn in range(WAITS):
                    turns.append((who, turn))
                    yield
                if breaks is not None and who == breaks[0]:
                    raise breaks[1](folder) if callable(breaks[1]) else breaks[1]
                return quick_fine_tune(model, train, valid, options, folder)
            finally:
                turns.append((who, "end"))

        monkeypatch.setattr(selectron.training.fine_tune, "training_steps", steps)
        monkeypatch.setattr(selectron.campaign.fitting, "usable_cores", lambda: cores)
        monkeypatch.setattr(selectron.campaign.trainings, "POLL_S", 0.0)
        begin_in(yaml_path, tmp_path / name)
        return tmp_path / name, turns

    return play_it


def test_arms_train_in_turns_where_there_are_cores_and_give_what_they_give_one_after_the_other(play):
    folder, turns = play("one", cores=1)
    run_campaign(folder)
    whole = [0, 1, 2, "end"]
    assert turns == [(f"{arm}-{n}", turn) for n in (1, 2) for arm in ("selected", "random") for turn in whole]
    alone = story(folder)
    folder, turns = play("two", cores=2)
    run_campaign(folder)
    assert turns == [(f"{arm}-{n}", turn) for n in (1, 2) for turn in whole for arm in ("selected", "random")]
    assert story(folder) == alone
    record = read_campaign(folder)
    assert all(one.costs["train"].wall_s > 0 for arm in record.arms for one in arm.rounds)
    assert not list((folder / "scratch" / "training").iterdir())


def test_what_ran_at_the_same_time_counts_once_by_the_clock(play):
    folder, _ = play("run", cores=2)
    run_campaign(folder)
    times = {("selected", 1): (100.0, 30.0), ("random", 1): (110.0, 25.0), ("selected", 2): (200.0, 5.0)}
    times["random", 2] = (201.0, 2.0)
    with history_rewritten(folder) as connection:
        for (arm, number), (started, wall_s) in times.items():
            connection.execute(
                "UPDATE stages SET started = ?, wall_s = ?, core_s = 7 WHERE name = 'train' AND arm = ? AND round = ?",
                (started, wall_s, arm, number),
            )
    record = read_campaign(folder)
    assert record.costs["train"].wall_s == 35.0 + 5.0
    assert record.costs["train"].core_s == 4 * 7.0
    assert [one.costs["train"].wall_s for one in record.random.rounds] == [25.0, 2.0]


def test_one_training_that_fails_leaves_the_other(play):
    failure = TrainingFailed("The training diverged: the loss is nan.")
    folder, _ = play("run", cores=2, breaks=("selected-1", failure))
    run_campaign(folder)
    record = read_campaign(folder)
    assert "diverged" in record.selected.rounds[0].training.failure
    assert record.random.rounds[0].training.failure is None
    assert record.finished


def test_a_failed_training_names_a_log_that_stays(play, tmp_path):
    def failure(folder):
        (folder / "run").mkdir()
        (folder / "run" / "log.txt").write_text("loss: nan")
        return TrainingFailed(f"The training diverged; {kept(folder / 'run')}")

    folder, _ = play("run", cores=1, breaks=("selected-1", failure))
    said = []
    run_campaign(folder, watcher=Listening(said))
    record = read_campaign(folder)
    assert not list((folder / "scratch" / "training").iterdir())
    told = record.selected.rounds[0].training.failure
    (named,) = re.findall(r"(artifacts/\S+\.txt) says more", told)
    assert (folder / named).read_text() == "loss: nan"
    assert any(named in line for line in said)


def test_what_stops_one_training_ends_the_other_and_nothing_that_is_done_is_lost(play):
    refusal = SelectronError("These layers cannot be trained.")
    folder, turns = play("run", cores=2, breaks=("random-1", refusal))
    with pytest.raises(SelectronError, match="These layers"):
        run_campaign(folder)
    assert turns[-1] == ("random-1", "end")
    assert read_campaign(folder).selected.rounds[0].training is not None  # it came to its end and is kept
    folder, turns = play("other", cores=2, breaks=("selected-1", refusal))
    with pytest.raises(SelectronError, match="These layers"):
        run_campaign(folder)
    assert {turn for turn in turns if turn[1] == "end"} == {("selected-1", "end"), ("random-1", "end")}
    # mended, the campaign goes on: the arm that was done is not trained again
    folder, turns = play("run", cores=2)
    run_campaign(folder)
    assert [who for who, turn in turns if turn == "end"] == ["random-1", "selected-2", "random-2"]
    assert read_campaign(folder).finished
