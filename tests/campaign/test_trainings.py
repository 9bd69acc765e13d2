"""Trainings of both arms at the same time: same results as one after the other, each told apart."""

import pytest
from quick_campaign import begin_in, prepare, quick_fine_tune, story

import selectron.campaign.fitting
import selectron.training.fine_tune
from selectron.campaign.history import read_campaign
from selectron.campaign.run import run_campaign
from selectron.errors import SelectronError
from selectron.training.fine_tune import TrainingFailed

WAITS = 3


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
                    raise breaks[1]
                return quick_fine_tune(model, train, valid, options, folder)
            finally:
                turns.append((who, "end"))

        monkeypatch.setattr(selectron.training.fine_tune, "training_steps", steps)
        monkeypatch.setattr(selectron.campaign.fitting, "cores", lambda: cores)
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
    # what ran at the same time counts once by the clock, and each for itself in processor time
    each = [one.costs["train"] for arm in record.arms for one in arm.rounds]
    assert record.costs["train"].wall_s < 0.8 * sum(one.wall_s for one in each)
    assert record.costs["train"].core_s == pytest.approx(sum(one.core_s for one in each))
    assert not list((folder / "scratch" / "training").iterdir())


def test_one_training_that_fails_leaves_the_other(play):
    failure = TrainingFailed("The training diverged: the loss is nan.")
    folder, _ = play("run", cores=2, breaks=("selected-1", failure))
    run_campaign(folder)
    record = read_campaign(folder)
    assert "diverged" in record.selected.rounds[0].training.failure
    assert record.random.rounds[0].training.failure is None
    assert record.finished


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
