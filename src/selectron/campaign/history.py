"""A campaign as it stands in its folder, for reports and status: read-only, also while it runs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from selectron.campaign.artifacts import Artifacts
from selectron.campaign.context import RANDOM, SELECTED
from selectron.campaign.labelling import unlabelled_of
from selectron.campaign.lock import running
from selectron.campaign.records import (
    ArmRecord,
    CampaignRecord,
    Cost,
    Measured,
    PickRecord,
    RoundRecord,
    Sampled,
    TrainingRecord,
    Uncertainty,
)
from selectron.campaign.state import CampaignState, Stage
from selectron.config.campaign import CampaignConfig
from selectron.errors import SelectronError
from selectron.structures import Pool, Source


def read_campaign(folder: str | Path) -> CampaignRecord:
    """The campaign in ``folder`` as far as it has come.

    Raises SelectronError where there is none, or its state cannot be read.
    """
    folder = Path(folder)
    state = CampaignState(folder, read_only=True)
    try:
        config = state.fact("config")
        if config is None:
            raise SelectronError(
                f"The campaign in {folder} was never begun: run selectron run campaign.yaml -o {folder}"
            )
        return _read(folder, state, CampaignConfig.model_validate(config))
    finally:
        state.close()


def _read(folder: Path, state: CampaignState, config: CampaignConfig) -> CampaignRecord:
    stages, artifacts = state.stages(), state.artifacts
    shared = _Shared(state.fact("created"))
    rounds: dict[tuple[str, int], list[Stage]] = {}
    for stage in stages:
        if stage.arm and stage.name != "stop":
            rounds.setdefault((stage.arm, stage.round), []).append(stage)
        elif stage.name == "sample" and _ended(stages, SELECTED) in (None, "exhausted"):
            # of a run that gave nothing to pick there is no other stage
            rounds.setdefault((SELECTED, stage.round), [])
    runs = {(stage.arm, stage.round): stage for stage in stages if stage.name == "sample"}
    inputs = next((stage for stage in stages if stage.name == "inputs"), None)
    measured = next((stage for stage in stages if stage.name == "measure" and not stage.arm), None)
    start = None if measured is None else _round("", 0, [measured], 0, artifacts, shared)
    arms: dict[str, ArmRecord] = {}
    records: dict[str, list[RoundRecord]] = {SELECTED: [], RANDOM: []}
    for (arm, number), members in rounds.items():  # in the order of the campaign, so that "shared" is told in it
        before = records[arm][-1].labels if records[arm] else 0
        one = _round(arm, number, members, before, artifacts, shared)
        run = runs.get((arm, number)) or runs.get(("", number))
        records[arm].append(one if run is None else replace(one, sampled=_sampled(run, artifacts)))
    for name in (SELECTED, RANDOM):
        stop = next((stage.output for stage in stages if stage.name == "stop" and stage.arm == name), None)
        arms[name] = ArmRecord(name, records[name], *_reason(stop), start)
    facts = {} if inputs is None else inputs.output
    unlabelled: dict[str, list[str]] = {}
    for stage in stages:
        if stage.name in ("label-test", "label-validation"):
            shared.count(stage)
            reasons = unlabelled_of(stage.output)
            if reasons:
                unlabelled[stage.name.removeprefix("label-")] = reasons
    held = {one.name.removeprefix("label-"): one.output["labelled"] for one in stages if one.name.startswith("label-")}

    def path(name: str | None) -> Path | None:
        return None if name is None else artifacts.path(name)

    return CampaignRecord(
        folder=folder,
        config=config,
        text=state.fact("text"),
        created=state.fact("created"),
        versions=state.fact("versions"),
        machine=state.fact("machine"),
        facts=facts,
        unlabelled=unlabelled,
        start=start,
        selected=arms[SELECTED],
        random=arms[RANDOM] if config.baseline == "random" else None,
        activity=state.activity(),
        process=running(folder),
        costs=_costs(stages),
        oracle_calls=shared.calls,
        oracle_core_s=shared.core_s,
        oracle_wall_s=shared.wall_s,
        artifacts=artifacts,
        train_path=path(facts.get("train")),
        test_path=path(held.get("test", facts.get("test"))),
        validation_path=path(held.get("validation", facts.get("validation"))),
        quarantine_path=path(facts.get("quarantine")),
        start_model=path(facts.get("model")),
        plane_paths=[artifacts.path(name) for name in _planes(stages)],
    )


def _ended(stages: Sequence[Stage], arm: str) -> str | None:
    """The rule by which an arm ended, None where it has not."""
    return next((str(stage.output["rule"]) for stage in stages if stage.name == "stop" and stage.arm == arm), None)


def _planes(stages: Sequence[Stage]) -> list[str]:
    """Artifacts of the newest plane; none where the campaign was run by a version that kept none."""
    picked = [stage for stage in stages if stage.name == "pick" and stage.arm == SELECTED]
    plane = picked[-1].output.get("plane") if picked else None
    if plane is None:
        return []
    others = [stage.output["others"] for stage in stages if stage.name == "map" and stage.inputs["plane"] == plane]
    return [plane, *(name for name in others[-1:] if name is not None)]


def _reason(stop: Mapping[str, Any] | None) -> tuple[str | None, str | None]:
    return (None, None) if stop is None else (str(stop["sentence"]), str(stop["rule"]))


class _Shared:
    """Which labels were bought for the first time, in the order of the campaign."""

    def __init__(self, created: float) -> None:
        self._created, self._seen = created, set[str]()
        self.calls, self.core_s, self.wall_s = 0, 0.0, 0.0

    def bought(self, entry: Mapping[str, Any]) -> bool:
        """Whether this campaign called the oracle for it here."""
        from datetime import datetime

        first = entry["hash"] not in self._seen
        self._seen.add(entry["hash"])
        when = datetime.fromisoformat(entry["time"]).timestamp() if entry["time"] else self._created
        if not first or when < int(self._created):
            return False
        self.calls += 1
        self.core_s += entry["core_s"]
        self.wall_s += entry["wall_s"]
        return True

    def count(self, stage: Stage) -> None:
        """Counts all labels of a stage."""
        for entry in stage.output["labels"]:
            self.bought(entry)


def _round(
    arm: str, number: int, stages: Sequence[Stage], labels: int, artifacts: Artifacts, shared: _Shared
) -> RoundRecord:
    by_name: dict[str, list[Stage]] = {}
    for stage in stages:
        by_name.setdefault(stage.name, []).append(stage)
    labelled = {stage.inputs["picks"]: stage for stage in by_name.get("label", [])}
    picks: list[PickRecord] = []
    for stage in by_name.get("pick", []):
        picks += _picks(stage, labelled.get(stage.key), len(picks), artifacts, shared)
    trained, measured = by_name.get("train", []), by_name.get("measure", [])
    return RoundRecord(
        arm=arm,
        round=number,
        labels=labels + sum(1 for pick in picks if pick.labelled),
        sampled=None,
        picks=picks,
        left=_left(by_name["pick"][0]) if "pick" in by_name else None,
        training=_training(trained[-1], artifacts) if trained else None,
        test=_measured(measured[-1], "test", artifacts) if measured else None,
        validation=_measured(measured[-1], "validation", artifacts) if measured else None,
        costs=_costs(stages),
        notes=[note for stage in by_name.get("pick", []) for note in stage.output["notes"]],
    )


def _picks(stage: Stage, labels: Stage | None, offset: int, artifacts: Artifacts, shared: _Shared) -> list[PickRecord]:
    if stage.output["structures"] is None:
        return []
    with Pool.open([artifacts.whole(stage.output["structures"])]) as pool:
        structures = pool[:]
    if labels is not None and labels.output["labelled"] is not None:
        with Pool.open([artifacts.whole(labels.output["labelled"])]) as pool:
            known = {str(atoms.info["hash"]): atoms for atoms in pool}
        structures = [known.get(str(atoms.info["hash"]), atoms) for atoms in structures]
    found = []
    for place, (entry, atoms) in enumerate(zip(stage.output["picks"], structures, strict=True)):
        label = labels.output["labels"][place] if labels is not None else None
        nearest = entry["nearest"]
        found.append(
            PickRecord(
                arm=stage.arm,
                round=stage.round,
                rank=offset + entry["rank"],
                structure_hash=entry["hash"],
                source=Source(entry["source"], entry["source_index"]),
                formula=entry["formula"],
                atoms=entry["atoms"],
                score=entry["score"],
                variance=entry["variance"],
                nearest=None if nearest is None else Source(nearest["source"], nearest["index"]),
                nearest_round=None if nearest is None else nearest["round"],
                distance=entry["distance"],
                represents=entry.get("represents"),  # campaigns from before it was counted lack it
                weight=entry.get("weight", 1.0),
                labelled=None if label is None else label["ok"],
                failure=None if label is None else label["reason"],
                state=_state(label),
                assumed=label is not None and label.get("assumed", False),
                shared=label is not None and not shared.bought(label),
                wall_s=0.0 if label is None else label["wall_s"],
                core_s=0.0 if label is None else label["core_s"],
                structure=atoms,
            )
        )
    return found


def _state(label: Mapping[str, Any] | None) -> tuple[int, int] | None:
    """Charge and multiplicity of a label; campaigns from before they were noted lack them."""
    found = None if label is None else label.get("state")
    return None if found is None else (int(found[0]), int(found[1]))


def _sampled(stage: Stage, artifacts: Artifacts) -> Sampled:
    output = stage.output
    return Sampled(
        path=artifacts.path(output["structures"]) if output["structures"] else None,
        frames=output["frames"],
        acquired=output["acquired"],
        candidates=output["candidates"],
        left_out=output["left_out"],
        ended=[(int(step), int(copy), int(particle), str(reason)) for step, copy, particle, reason in output["ended"]],
        shared=stage.arm == "",
    )


def _left(stage: Stage) -> Uncertainty:
    left = stage.output["left"]
    quantiles = {float(probability): value for probability, value in left.get("variance", {}).items()}
    return Uncertainty(left["structures"], quantiles, left.get("calibration"))


def _training(stage: Stage, artifacts: Artifacts) -> TrainingRecord:
    output = stage.output
    return TrainingRecord(
        failure=output["failure"],
        structures=output["structures"],
        kept_epoch=output.get("kept_epoch", output.get("best_epoch")),
        history=output["history"],
        references=output.get("references"),
        untouched=output.get("untouched"),
        before=output.get("before"),
        after=output.get("after"),
        warnings=output.get("warnings", []),
        model=artifacts.path(output["model"]) if output["model"] else None,
        log=artifacts.path(output["log"]) if output["log"] else None,
    )


def _measured(stage: Stage, name: str, artifacts: Artifacts) -> Measured | None:
    found = stage.output[name]
    return None if found is None else Measured(**found["errors"], path=artifacts.path(found["predictions"]))


def _costs(stages: Sequence[Stage]) -> dict[str, Cost]:
    """Times by kind of stage; by the clock those that ran at the same time count once."""
    kinds: dict[str, list[Stage]] = {}
    for stage in stages:
        if stage.name != "stop":
            kinds.setdefault(stage.name, []).append(stage)
    return {name: Cost(_elapsed(members), sum(one.core_s for one in members)) for name, members in kinds.items()}


def _elapsed(stages: Sequence[Stage]) -> float:
    """Seconds by the clock in which any of ``stages`` ran."""
    total, last = 0.0, float("-inf")
    for begin, end in sorted((one.started, one.started + one.wall_s) for one in stages):
        total += max(0.0, end - max(begin, last))
        last = max(last, end)
    return total
