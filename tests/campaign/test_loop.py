"""Whole campaigns of seconds: budgets, replacements, twins, stopping rules, changes."""

import re

import numpy as np
import pytest
from ase.io import read, write
from quick_campaign import begin_in, labelled_by_emt, prepare, quick_fine_tune, rattled, run_quickly, story
from rich.console import Console

from selectron.campaign.export import export_campaign
from selectron.campaign.history import read_campaign
from selectron.campaign.run import begin, run_campaign
from selectron.cli.status import summarise
from selectron.errors import SelectronError
from selectron.report.campaign_page import write_campaign_report
from selectron.structures import structure_hash
from selectron.training.fine_tune import TrainingFailed


@pytest.fixture
def play(tmp_path, tiny_model):
    """Runs a quick campaign with changed sections; gives its record."""

    def play_it(name="run", *, fails=None, **changes):
        yaml_path = prepare(tmp_path, tiny_model, fails=fails, **changes)
        begin_in(yaml_path, tmp_path / name)
        run_quickly(tmp_path / name)
        return read_campaign(tmp_path / name)

    return play_it


def test_a_campaign_spends_its_budget_and_tells_all(undisturbed):
    record = read_campaign(undisturbed)
    assert record.finished
    assert record.process is None
    for arm in record.arms:
        assert arm.stop_rule == "budget"
        assert [one.labels for one in arm.rounds] == [3, 6]
        labels, errors = arm.curve("energy_rmse_meV_atom")
        assert labels == [0, 3, 6]
        assert errors[0] == record.start.test.energy_rmse_meV_atom
        assert errors[-1] < errors[0]  # the trainer corrects atomic energies that are far off
        hashes = [pick.structure_hash for one in arm.rounds for pick in one.picks]
        assert len(set(hashes)) == 6
        for one in arm.rounds:
            assert [pick.rank for pick in one.picks] == [1, 2, 3]
            assert one.costs.keys() == {"pick", "label", "train", "measure"}
            for pick in one.picks:
                assert pick.labelled
                assert pick.wall_s > 0
                assert structure_hash(pick.structure) == pick.structure_hash
                origin = read(pick.source.path, pick.source.index)
                assert structure_hash(origin) == pick.structure_hash
    first, second = (one.picks[0] for one in record.selected.rounds)
    assert first.nearest_round == 0
    assert first.nearest.path.endswith("train.extxyz")
    assert second.variance > 0
    assert record.random.rounds[0].picks[0].variance is None
    assert record.selected.rounds[0].left.structures == 30
    assert record.selected.rounds[1].left.structures == 27
    # errors are those of the predictions that are kept, and the labels those of the oracle
    predictions = record.selected.rounds[-1].test.predictions()
    rms = np.sqrt(np.mean((predictions.forces - predictions.force_labels) ** 2))
    assert rms == pytest.approx(record.selected.rounds[-1].test.force_rmse_eV_A)
    (copy,) = labelled_by_emt([first.structure.copy()])
    assert first.structure.get_potential_energy() == pytest.approx(copy.get_potential_energy())
    np.testing.assert_allclose(first.structure.get_forces(), copy.get_forces(), atol=1e-6)


def test_a_label_bought_for_one_arm_is_reused_by_the_other(undisturbed):
    record = read_campaign(undisturbed)
    picks = [pick for number in (0, 1) for arm in record.arms for pick in arm.rounds[number].picks]
    hashes = [pick.structure_hash for pick in picks]
    assert record.oracle_calls == len(set(hashes))
    for place, pick in enumerate(picks):
        assert pick.shared == (pick.structure_hash in hashes[:place])


def test_twins_with_a_whole_pool_meet_in_the_end(play):
    record = play(pool={"files": ["test.extxyz"]}, test={"files": ["validation.extxyz"]}, validation=None)
    assert record.oracle_calls == 6
    assert record.selected.curve("energy_mae_meV_atom")[1][-1] == pytest.approx(
        record.random.curve("energy_mae_meV_atom")[1][-1], rel=1e-6
    )
    assert all(pick.shared for one in record.random.rounds for pick in one.picks) or any(
        pick.shared for one in record.selected.rounds for pick in one.picks
    )


def test_failed_labels_are_replaced_and_told(play, tmp_path):
    record = play(fails="CH4", budget={"labels": 8, "per_round": 4})
    assert [arm.labels for arm in record.arms] == [8, 8]
    failures = [pick for arm in record.arms for pick in arm.failures]
    assert failures
    for pick in failures:
        assert pick.formula == "CH4"
        assert "the electrons do not converge" in pick.failure
        assert not pick.shared or pick.core_s >= 0
    for arm in record.arms:
        for one in arm.rounds:
            assert [pick.rank for pick in one.picks] == list(range(1, len(one.picks) + 1))
            assert sum(bool(pick.labelled) for pick in one.picks) == 4
        tried = [pick.structure_hash for one in arm.rounds for pick in one.picks]
        assert len(tried) == len(set(tried)), "a structure that failed was picked again"


def test_structures_of_the_test_set_without_a_label_are_told(play, tmp_path, capsys):
    record = play(fails="CH4", test={"fraction": 0.6, "labels": "oracle"}, budget={"labels": 3, "per_round": 3})
    (reasons,) = record.unlabelled.values()
    assert list(record.unlabelled) == ["test"]
    assert 0 < len(reasons) < record.facts["sizes"]["test"]
    assert all("the electrons do not converge" in reason for reason in reasons)
    told = f"{len(reasons)} of {record.facts['sizes']['test']} structures got no label and are left out"
    summarise(record, Console(width=300))
    assert told in capsys.readouterr().out
    write_campaign_report(record, tmp_path / "report.html")
    page = (tmp_path / "report.html").read_text()
    assert f"of which {len(reasons)} got no label" in page
    assert page.count("label of a structure of the test set") == len(reasons)


def test_the_report_names_what_could_not_be_used(play, tmp_path):
    overlapping, strange = rattled(2, 11)
    overlapping.positions[1] = overlapping.positions[0] + 0.01
    strange.numbers[0] = 79
    write(tmp_path / "mixed.extxyz", [*rattled(30, 1), overlapping, strange])
    record = play(pool={"files": ["mixed.extxyz"]}, budget={"labels": 3, "per_round": 3}, baseline=None)
    write_campaign_report(record, tmp_path / "report.html")
    page = (tmp_path / "report.html").read_text()
    assert "2 structures of the files could not be used" in page
    for index in (30, 31):
        assert f'mixed.extxyz</td><td class="n">{index}</td>' in page
    (named,) = re.findall(r"<code>(artifacts/[^<]+)</code>", page.split('id="failures"')[1].split("</section>")[0])
    assert (tmp_path / "run" / named).read_text().count("mixed.extxyz") == 2


def test_labels_with_large_forces_are_not_trained_on(play, tmp_path):
    pool = [atoms for atoms in rattled(40, 9) if atoms.get_chemical_formula() in {"CH4", "H2O"}]
    largest = [np.linalg.norm(atoms.get_forces(), axis=1).max() for atoms in labelled_by_emt(pool)]
    limit = float(np.median(largest))
    write(tmp_path / "some.extxyz", pool)
    arguments = {"fails": None, "slow_s": 0.0}
    oracle = {"kind": "ase", "calculator": "quick_campaign:CountedEMT", "arguments": arguments, "max_force_eV_A": limit}
    record = play(pool={"files": ["some.extxyz"]}, oracle=oracle, budget={"labels": 4, "per_round": 4})
    for arm in record.arms:
        assert arm.labels == 4
        for one in arm.rounds:
            for pick in one.picks:
                (copy,) = labelled_by_emt([pick.structure.copy()])
                force = np.linalg.norm(copy.get_forces(), axis=1).max()
                assert bool(pick.labelled) == (force <= limit)
                assert pick.labelled or "above max_force_eV_A" in pick.failure
    assert any(arm.failures for arm in record.arms)
    failed = next(pick for arm in record.arms for pick in arm.failures)
    assert failed.core_s > 0
    export_campaign(record, tmp_path / "out")
    fitted = {structure_hash(atoms) for atoms in read(tmp_path / "out" / "train.extxyz", ":")}
    picks = [pick for one in record.selected.rounds for pick in one.picks]
    assert {pick.structure_hash for pick in picks} & fitted == {pick.structure_hash for pick in picks if pick.labelled}


def test_an_oracle_that_always_fails_ends_the_campaign(play, tmp_path):
    write(tmp_path / "methane.extxyz", [atoms for atoms in rattled(60, 9) if atoms.get_chemical_formula() == "CH4"])
    record = play(fails="CH4", pool={"files": ["methane.extxyz"]})
    assert record.selected.stop_rule == "oracle"
    assert "3 oracle calls failed" in record.selected.stop
    assert record.selected.labels == 0


def test_an_oracle_that_is_mended_labels_the_test_set(play, tmp_path, monkeypatch):
    monkeypatch.setenv("BROKEN", "yes")
    sections = {
        "test": {"fraction": 0.3, "labels": "oracle"},
        "budget": {"labels": 3, "per_round": 3},
        "baseline": None,
    }
    for _ in range(2):
        with pytest.raises(SelectronError, match=r"of the test set.*licence.*selectron resume .*run tries them again"):
            play("run", **sections)
    monkeypatch.delenv("BROKEN")
    run_quickly(tmp_path / "run")
    record = read_campaign(tmp_path / "run")
    assert record.finished
    assert record.unlabelled == {}
    assert record.selected.labels == 3


def test_a_full_disk_of_the_oracle_costs_no_picks(play, tmp_path, monkeypatch):
    monkeypatch.setenv("FULL", "yes")
    with pytest.raises(SelectronError, match=r"3 structures got no label, by no fault of their own .*No space left"):
        play("run", baseline=None)
    monkeypatch.delenv("FULL")
    run_quickly(tmp_path / "run")
    record = read_campaign(tmp_path / "run")
    assert record.finished
    assert record.selected.labels == 6
    assert not record.selected.failures


def test_a_campaign_that_a_broken_oracle_ended_goes_on_with_other_picks(play, monkeypatch):
    monkeypatch.setenv("BROKEN", "yes")
    record = play("run", baseline=None)
    assert record.selected.stop_rule == "oracle"
    assert "budget.failures_per_round above 3" in record.selected.stop
    lost = [pick.structure_hash for pick in record.selected.failures]
    monkeypatch.delenv("BROKEN")
    record = play("run", baseline=None, budget={"labels": 6, "per_round": 3, "failures_per_round": 4})
    assert record.selected.labels == 6
    assert [pick.structure_hash for pick in record.selected.failures] == lost


@pytest.mark.slow
def test_a_pool_that_is_used_up_ends_the_campaign(play):
    record = play(budget={"labels": 50, "per_round": 20}, baseline=None)
    assert record.selected.stop_rule == "exhausted"
    assert record.selected.labels == 30
    assert record.random is None


def test_a_target_ends_both_arms_at_their_own_time(play, undisturbed):
    errors = read_campaign(undisturbed).selected.curve("energy_rmse_meV_atom", "validation")[1]
    record = play(stop={"target": {"quantity": "energy_rmse_meV_atom", "below": 1.0001 * errors[1]}})
    assert record.selected.stop_rule == "target"
    assert record.selected.labels == 3
    assert record.random.stop_rule in {"target", "budget"}


def test_sets_that_are_the_same_are_refused(play):
    with pytest.raises(SelectronError, match="all stand in the test set too"):
        play(validation={"files": ["test.extxyz"]})


def test_a_plateau_ends_it_and_the_twin_follows(play):
    rule = {"quantity": "force_rmse_eV_A", "rounds": 1, "improvement": 0.5}  # atomic energies leave forces as they are
    record = play(stop={"plateau": rule})
    assert record.selected.stop_rule == "plateau"
    assert record.selected.labels == 3
    assert record.random.stop_rule == "twin"
    assert record.random.labels == 3


def test_low_variances_end_it_before_a_label_is_bought(play):
    record = play(stop={"variance": {"below": 1e6}}, features={"name": "force-ntk", "dim": 16, "probes": 2})
    assert record.selected.stop_rule == "variance"
    assert record.selected.labels == 0
    assert record.oracle_calls == 0
    expected = record.selected.rounds[0].left.calibration
    assert 0 < expected["expected"] < 1e6
    other = play("other", stop={"variance": {"below": 0.9 * expected["expected"]}}, baseline=None)
    assert other.selected.labels > 0


def test_a_share_of_each_round_is_by_chance_and_the_report_says_so(play, tmp_path):
    record = play(selector={"name": "fps", "by_chance": 0.34}, baseline=None)
    for one in record.selected.rounds:
        assert [pick.score is None for pick in one.picks] == [True, False, False]
        assert all(pick.variance is not None for pick in one.picks)
        assert any("drawn by chance" in note for note in one.notes)
    other = play("other", selector={"name": "fps", "by_chance": 0.34}, seed=4, baseline=None)
    assert other.selected.rounds[0].picks[0].structure_hash != record.selected.rounds[0].picks[0].structure_hash
    write_campaign_report(record, tmp_path / "report.html")
    assert (tmp_path / "report.html").read_text(encoding="utf-8").count(">by chance<") == 2


def test_a_failed_training_keeps_the_model_before(tmp_path, tiny_model, monkeypatch):
    yaml_path = prepare(tmp_path, tiny_model, baseline=None)
    begin_in(yaml_path, tmp_path / "run")

    def fails_first(model, train, valid, options, folder, **rest):
        if len(train) < 10:
            raise TrainingFailed("The training diverged: the loss is nan.")
        return quick_fine_tune(model, train, valid, options, folder, **rest)

    monkeypatch.setenv("CALLS", str(tmp_path / "calls"))
    run_campaign(tmp_path / "run", fine_tune=fails_first)
    record = read_campaign(tmp_path / "run")
    one, two = record.selected.rounds
    assert "diverged" in one.training.failure
    assert one.training.model is None
    assert one.test.energy_rmse_meV_atom == record.start.test.energy_rmse_meV_atom
    assert two.training.failure is None
    assert two.test.energy_rmse_meV_atom < one.test.energy_rmse_meV_atom


@pytest.mark.slow
def test_more_budget_goes_on_where_the_old_one_ended(play, tmp_path, undisturbed, quick_yaml):
    play("run")
    before = story(tmp_path / "run")
    record = play("run", budget={"labels": 9, "per_round": 3})
    assert [arm.labels for arm in record.arms] == [9, 9]
    after = story(tmp_path / "run")
    kept = [entry for entry in before if entry[0] != "stop"]
    assert after[: len(kept)] == kept
    # and it is what a campaign with that budget does from the beginning
    play("whole", budget={"labels": 9, "per_round": 3})
    assert [entry[4] for entry in story(tmp_path / "whole")] == [entry[4] for entry in after]


@pytest.mark.slow
def test_less_budget_shows_less_and_loses_nothing(play, tmp_path):
    folder, texts = tmp_path / "run", {}
    whole = play("run", baseline=None)
    for labels in (3, 6):
        config = whole.config.model_copy(update={"budget": whole.config.budget.model_copy(update={"labels": labels})})
        texts[labels] = begin(config, "", folder)
        run_quickly(folder)
        assert [arm.labels for arm in read_campaign(folder).arms] == [labels]
    assert "3 labels now and was 6" in texts[3][0]
    assert texts[6] == []
    assert read_campaign(folder).selected.rounds == whole.selected.rounds  # nothing was done again


def test_an_artifact_that_is_gone_or_damaged_is_told(play, tmp_path):
    record = play("run", baseline=None, budget={"labels": 3, "per_round": 3})
    model = record.selected.rounds[0].training.model
    content = model.read_bytes()
    more = record.config.model_copy(update={"budget": record.config.budget.model_copy(update={"labels": 6})})
    begin(more, "", tmp_path / "run")
    model.unlink()
    with pytest.raises(SelectronError, match=r"\.model, which the campaign needs, is gone"):
        run_quickly(tmp_path / "run")
    model.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    with pytest.raises(SelectronError, match=r"\.model, which the campaign needs, is damaged"):
        run_quickly(tmp_path / "run")
    model.write_bytes(content)
    run_quickly(tmp_path / "run")
    assert read_campaign(tmp_path / "run").selected.labels == 6


def test_what_may_not_change_is_refused(play, tmp_path):
    play("run", baseline=None)
    with pytest.raises(SelectronError, match="begun with another 'selector'"):
        play("run", baseline=None, selector={"name": "fps"})
    lines = (tmp_path / "pool.extxyz").read_text().splitlines()
    (tmp_path / "pool.extxyz").write_text("\n".join(lines[: len(lines) // 2]))
    with pytest.raises(SelectronError, match=r"pool.extxyz has changed since the campaign"):
        run_quickly(tmp_path / "run")


def test_a_folder_with_other_things_is_refused(tmp_path, tiny_model):
    yaml_path = prepare(tmp_path / "files", tiny_model)
    with pytest.raises(SelectronError, match="holds something else"):
        begin_in(yaml_path, tmp_path / "files")
    with pytest.raises(SelectronError, match="There is no campaign"):
        run_campaign(tmp_path)
    with pytest.raises(SelectronError, match="There is no campaign"):
        read_campaign(tmp_path)


def test_held_out_groups_are_never_picked_and_labels_come_from_the_oracle(play):
    record = play(
        test={"fraction": 0.3, "group_by": "family", "labels": "oracle"},
        validation={"fraction": 0.2, "group_by": "family", "labels": "oracle"},
        budget={"labels": 40, "per_round": 20},
        baseline=None,
    )
    test, validation = read(record.test_path, ":"), read(record.validation_path, ":")
    picked = [pick.structure for one in record.selected.rounds for pick in one.picks]

    def families(structures):
        return {read(atoms.info["source"], atoms.info["source_index"]).info["family"] for atoms in structures}

    assert len(test) + len(validation) + len(picked) == 30
    assert not families(test) & families(picked)
    assert not families(validation) & families(picked)
    assert not families(test) & families(validation)
    (again,) = labelled_by_emt([test[0].copy()])
    assert test[0].get_potential_energy() == pytest.approx(again.get_potential_energy())
    assert record.oracle_calls == 30
    assert record.selected.labels == len(picked)


def test_a_structure_of_the_test_set_is_never_picked(play, tmp_path):
    record = play(pool={"files": ["pool.extxyz", "test.extxyz"]}, budget={"labels": 50, "per_round": 50}, baseline=None)
    held = {structure_hash(atoms) for atoms in read(tmp_path / "test.extxyz", ":")}
    assert not held & {pick.structure_hash for pick in record.selected.rounds[0].picks}
    assert record.facts["candidates"] == 30


@pytest.mark.slow
def test_labels_are_shared_between_campaigns(play, tmp_path):
    first = play("first", label_store=str(tmp_path / "labels.sqlite"))
    second = play("second", label_store=str(tmp_path / "labels.sqlite"))
    assert first.oracle_calls > 0
    made = (tmp_path / "second.calls").exists()
    assert not made, "a label that another campaign had bought was bought again"
    assert second.selected.curve() == first.selected.curve()


def test_what_is_exported_is_what_was_labelled(undisturbed, tmp_path):
    record = read_campaign(undisturbed)
    files = export_campaign(record, tmp_path / "out")
    train = read(tmp_path / "out" / "train.extxyz", ":")
    assert len(train) == 6 + 6
    last = record.selected.rounds[-1].picks[-1].structure
    assert train[-1].info["REF_energy"] == pytest.approx(last.get_potential_energy())
    np.testing.assert_allclose(train[-1].arrays["REF_forces"], last.get_forces(), atol=1e-8)
    weights = [pick.weight for one in record.selected.rounds for pick in one.picks if pick.labelled]
    assert len(set(weights)) > 1
    exported = [atoms.info.get("config_weight", 1.0) for atoms in train]
    np.testing.assert_allclose(exported, [0.5] + [1.0] * 5 + weights, rtol=1e-6)
    assert "`config_weight`" in (tmp_path / "out" / "README.md").read_text()
    assert {path.name for path in files} >= {
        "train.extxyz",
        "test.extxyz",
        "fine_tuned.model",
        "start.model",
        "README.md",
    }
    assert (tmp_path / "out" / "fine_tuned.model").read_bytes() == record.selected.model.read_bytes()
    assert "does not know the licence" in (tmp_path / "out" / "README.md").read_text()
