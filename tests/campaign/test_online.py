"""Online acquisition: sample until a few structures are acquired, label them, retrain, go on from there."""

import numpy as np
import pytest
from ase.io import read
from quick_campaign import begin_in, prepare, run_quickly, story
from test_durability import SAMPLING

from selectron.campaign.history import read_campaign
from selectron.campaign.state import CampaignState
from selectron.config.campaign import CampaignConfig
from selectron.config.load import load_yaml
from selectron.config.sampling import SamplingSection
from selectron.errors import SelectronError
from selectron.structures import structure_hash

ONLINE = {
    **{key: value for key, value in SAMPLING.items() if key != "iterations"},
    "method": "a-skmd",
    "acquisitions": 3,
    "carry_on": True,
    "kernel": {"bandwidth": 1.0},
    "stopping": [{"kind": "bias-norm-below", "threshold": 100.0, "min_steps": 5}],
}


@pytest.fixture
def play(tmp_path, tiny_model):
    def play_it(name="run", baseline=None, **sampling):
        yaml_path = prepare(tmp_path, tiny_model, pool=None, sampling={**ONLINE, **sampling}, baseline=baseline)
        begin_in(yaml_path, tmp_path / name)
        run_quickly(tmp_path / name)
        return read_campaign(tmp_path / name)

    return play_it


def sampled(folder):
    state = CampaignState(folder, read_only=True)
    try:
        return [(stage, state.artifacts) for stage in state.stages() if stage.name == "sample"]
    finally:
        state.close()


def test_each_round_labels_what_it_acquired_and_goes_on_from_there(play, tmp_path):
    record = play()
    assert [one.labels for one in record.selected.rounds] == [3, 6]
    (one, artifacts), (two, _) = sampled(tmp_path / "run")
    assert one.output["acquired"] == two.output["acquired"] == 3
    assert two.inputs["ensemble"] == one.output["ensemble"]
    assert "ensemble" not in one.inputs
    assert two.inputs["model"] != one.inputs["model"]
    ended = read(artifacts.path(one.output["ensemble"]), ":")
    acquired = read(artifacts.path(one.output["structures"]), ":")
    assert len(ended) == 3  # every one of three particles made a journey, in turn
    for particle, structure in zip(ended, acquired, strict=True):
        np.testing.assert_allclose(particle.positions, structure.positions, atol=1e-7)
    picked = {pick.structure_hash for pick in record.selected.rounds[0].picks}
    assert picked == {structure_hash(atoms) for atoms in acquired}


def test_without_carrying_on_each_round_starts_anew(play, tmp_path):
    play(carry_on=False)
    (one, _), (two, _) = sampled(tmp_path / "run")
    assert "ensemble" not in two.inputs
    assert "ensemble" not in one.output
    assert "carry_on" not in one.inputs["sampling"]  # campaigns from before it existed keep their stages


def test_a_random_twin_that_could_not_differ_is_refused(tmp_path, tiny_model):
    yaml_path = prepare(tmp_path, tiny_model, pool=None, sampling=ONLINE, baseline="random")
    with pytest.raises(SelectronError, match="leaves nothing to choose for 3 labels a round"):
        load_yaml(yaml_path, CampaignConfig)


def test_arms_that_carry_on_have_ensembles_of_their_own(play, tmp_path):
    record = play(baseline="random", acquisitions=6)
    assert [arm.labels for arm in record.arms] == [6, 6]
    runs = {(stage.arm, stage.round): stage for stage, _ in sampled(tmp_path / "run")}
    assert runs.keys() == {("", 1), ("selected", 2), ("random", 2)}
    assert (
        runs["selected", 2].inputs["ensemble"] == runs["random", 2].inputs["ensemble"] == runs["", 1].output["ensemble"]
    )
    assert runs["selected", 2].inputs["model"] != runs["random", 2].inputs["model"]


def test_a_campaign_from_before_a_key_existed_is_begun_again_and_keeps_what_is_done(play, tmp_path):
    play(carry_on=False)
    before = story(tmp_path / "run")
    state = CampaignState(tmp_path / "run")
    config = state.fact("config")
    del config["sampling"]["carry_on"]
    state.set_facts({"config": config})
    state.close()
    begin_in(tmp_path / "campaign.yaml", tmp_path / "run")
    run_quickly(tmp_path / "run")
    assert story(tmp_path / "run") == before


def test_a_campaign_that_is_gone_through_again_runs_nothing(play, tmp_path):
    play()
    before = story(tmp_path / "run")
    run_quickly(tmp_path / "run")
    assert story(tmp_path / "run") == before


def test_a_run_that_carries_on_has_as_many_particles_as_it_began_with():
    section = SamplingSection.model_validate(
        {"starts": ["a.xyz"], "method": "langevin", "ensembles": 3, "carry_on": True}
    )
    assert section.run_options(0).particles is None  # one for each start
    carried = section.run_options(0, carried=6)
    assert (carried.particles, carried.ensembles) == (2, 3)
    assert carried.initial.relax is False
