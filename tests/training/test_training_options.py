"""Options: presets fill only what is not given, and nonsense is refused."""

import pytest
from pydantic import ValidationError

from selectron.training.options import TrainOptions


def test_the_papers_preset_has_the_papers_schedule_and_gives_way_to_what_is_said():
    paper = TrainOptions(preset="paper-lora")
    assert (paper.method, paper.rank, paper.epochs, paper.stage_two_start) == ("lora", 4, 100, 50)
    assert (paper.forces_weight, paper.energy_weight, paper.learning_rate) == (1000.0, 40.0, 0.01)
    assert paper.final_weights == (1000.0, 10.0)
    assert paper.stage_two_learning_rate == 0.001
    assert (paper.loss, paper.ema, paper.rate_factor) == ("squares", None, None)
    shorter = TrainOptions(preset="paper-lora", epochs=20, stage_two_start=10)
    assert (shorter.epochs, shorter.stage_two_start, shorter.learning_rate) == (20, 10, 0.01)
    assert TrainOptions(**paper.model_dump()) == paper


@pytest.mark.parametrize(
    "wrong",
    [
        {"epoch": 3},
        {"epochs": 10, "stage_two_start": 10},
        {"preset": "paper-lora", "epochs": 50},
        {"references": "atoms", "atom_energies_eV": {"Xx": 1.0}},
        {"energy_weight": 0, "forces_weight": 0},
        {"learning_rate": -1},
        {"method": "dora"},
    ],
)
def test_options_that_make_no_sense_are_refused(wrong):
    with pytest.raises(ValidationError):
        TrainOptions(**wrong)


def test_the_learning_rate_falls_to_the_share_that_is_said_over_the_whole_training():
    options = TrainOptions(epochs=30, final_rate=0.05)
    assert options.rate_factor**30 == pytest.approx(0.05)
    assert TrainOptions(final_rate=None).rate_factor is None
    assert TrainOptions(final_rate=1.0).rate_factor == 1.0


def test_the_last_epoch_is_kept_where_the_rate_falls_in_one_stage():
    assert TrainOptions().keeps_last
    for other in (
        {"final_rate": None},
        {"patience": 5},
        {"stage_two_start": 10},
        {"preset": "paper-lora"},
        {"keep": "best"},
    ):
        assert not TrainOptions(**other).keeps_last
    assert TrainOptions(preset="paper-lora", keep="last").keeps_last
