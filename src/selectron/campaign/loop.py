"""Rounds of picking, labelling, fine-tuning and measuring, for the selected arm and its random twin."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from selectron.campaign.candidates import Candidates
from selectron.campaign.context import RANDOM, SELECTED, Campaign
from selectron.campaign.fitting import Wanted, measure, train
from selectron.campaign.inputs import Inputs, read_inputs
from selectron.campaign.labelling import label_picks
from selectron.campaign.picking import Request, pick, place_picks
from selectron.campaign.state import Stage
from selectron.campaign.stopping import Stop, plateau_reached, target_reached
from selectron.wording import counted


@dataclass
class Arm:
    """How far an arm is: all of it follows from the stages that are done.

    ``labelled`` are the artifacts of its labelled structures, one or more a round, ``picked`` those of all its picks,
    ``measured`` its stages of errors, the first that of the pretrained model, ``plane`` the newest plane of the features
    with the model that they are of, ``ensemble`` that of the particles where its sampling ended.
    """

    name: str
    model: str
    measured: list[Stage]
    labelled: list[str] = field(default_factory=list)
    labels: int = 0
    failed: list[str] = field(default_factory=list)
    picked: list[str] = field(default_factory=list)
    plane: tuple[str, str] | None = None
    ensemble: str | None = None
    stop: Stop | None = None

    def validation(self) -> list[dict[str, Any] | None]:
        """Errors on the validation set, before the first round and after each."""
        return [stage.output["validation"] and stage.output["validation"]["errors"] for stage in self.measured]


def play(campaign: Campaign) -> list[Arm]:
    """Runs the campaign to its end, or from where it stood: stages that are done are read, not run."""
    config = campaign.config
    inputs = read_inputs(campaign)
    campaign.state.set_facts({"start_model": inputs.model})
    start = measure(campaign, inputs, arm="", round=0, model=inputs.model)
    campaign.reporter.say(f"pretrained model: {_errors(start)}")
    arms = [Arm(SELECTED, inputs.model, [start])]
    if config.baseline == "random":
        arms.append(Arm(RANDOM, inputs.model, [start]))
    for arm in arms:
        arm.stop = target_reached(config.stop.target, arm.validation()[-1])
    round = 0
    while any(arm.stop is None for arm in arms):
        round += 1
        picked = sum(len(arm.picked) for arm in arms)
        _play_round(campaign, inputs, arms, round)
        if sum(len(arm.picked) for arm in arms) > picked:
            _complete_map(campaign, arms, round)
    for arm in arms:
        assert arm.stop is not None
        last = {"measured": arm.measured[-1].key, "labels": arm.labels, "stop": arm.stop._asdict()}
        campaign.state.stage("stop", last, arm.stop._asdict, arm=arm.name)
    return arms


def _play_round(campaign: Campaign, inputs: Inputs, arms: list[Arm], round: int) -> None:
    """One round of the arms that are not at their end: each buys labels, then all train, then each is measured."""
    ready = []
    for arm in arms:
        if arm.stop is None and arm.name == RANDOM:
            arm.stop = _enough_for_twin(arm, arms[0])
        if arm.stop is not None:
            continue
        before = arm.labels
        ended = _buy_labels(campaign, inputs, arm, round)
        if arm.labels > before:
            ready.append(arm)
        else:
            arm.stop = ended or Stop("exhausted", "Nothing is left to pick.")
    initial = campaign.config.fine_tune_from == "initial"
    wanted = [Wanted(arm.name, inputs.model if initial else arm.model, tuple(arm.labelled)) for arm in ready]
    for arm, trained in zip(ready, train(campaign, inputs, round, wanted), strict=True):
        arm.stop = _measure(campaign, inputs, arm, round, trained)


def _measure(campaign: Campaign, inputs: Inputs, arm: Arm, round: int, trained: Stage) -> Stop | None:
    """Takes over the model of a training and measures it; why this round was the arm's last, or None."""
    config = campaign.config
    if trained.output["model"] is not None:
        arm.model = trained.output["model"]
    measured = measure(campaign, inputs, arm=arm.name, round=round, model=arm.model)
    arm.measured.append(measured)
    kept = "" if trained.output["model"] is not None else "training failed, the model before is kept; "
    campaign.reporter.say(f"round {round}, {arm.name}, {arm.labels} labels: {kept}{_errors(measured)}")
    if trained.output["failure"]:
        campaign.reporter.say(f"  {trained.output['failure'].splitlines()[0]}")
    history = arm.validation()
    stop = target_reached(config.stop.target, history[-1])
    if stop is None and arm.name != RANDOM:
        stop = plateau_reached(config.stop.plateau, history)
    if stop is None and arm.labels >= config.budget.labels:
        stop = Stop("budget", f"The budget of {config.budget.labels} labels is spent.")
    return stop


def _buy_labels(campaign: Campaign, inputs: Inputs, arm: Arm, round: int) -> Stop | None:
    """Picks and labels until the round has its labels; failed calls are replaced by the next best picks."""
    budget = campaign.config.budget
    wanted = min(budget.per_round, budget.labels - arm.labels)
    allowed = budget.failures_per_round or budget.per_round
    failures, attempt, reason = 0, 0, ""
    candidates = _candidates(campaign, inputs, arm, round)
    if candidates.table is None:
        return Stop("exhausted", f"Sampling gave no usable structure in round {round}.")
    while wanted > 0:
        predictions = arm.measured[-1].output["validation"]
        request = Request(
            arm=arm.name,
            round=round,
            attempt=attempt,
            wanted=wanted,
            model=arm.model,
            labelled=tuple(arm.labelled),
            failed=tuple(arm.failed),
            candidates=candidates,
            # the rule on variances is asked once a round, before anything is bought
            validation_errors=predictions["predictions"] if predictions and attempt == 0 else None,
        )
        picks = pick(campaign, inputs, request)
        if picks.output.get("plane") is not None:
            arm.plane = (picks.output["plane"], arm.model)
        if picks.output["structures"] is not None:
            arm.picked.append(picks.output["structures"])
        if picks.output["stop"] is not None:
            return Stop(**picks.output["stop"])
        if not picks.output["picks"]:
            break
        labels = label_picks(campaign, picks)
        if labels.output["labelled"] is not None:
            arm.labelled.append(labels.output["labelled"])
        arm.labels += labels.output["count"]
        wanted -= labels.output["count"]
        lost = [one for one in labels.output["labels"] if not one["ok"]]
        arm.failed += [one["hash"] for one in lost]
        failures, attempt = failures + len(lost), attempt + 1
        reason = reason or (lost[0]["reason"] if lost else "")
        if lost:
            campaign.reporter.say(
                f"round {round}, {arm.name}: {counted(len(lost), 'oracle call')} failed (the first: {lost[0]['reason']})"
            )
        if failures >= allowed:
            break
    if failures and reason:
        what = (
            f"No label was obtained in round {round}: {counted(failures, 'oracle call')} failed (the first: {reason})."
        )
        more = f" To go on with other picks, run it again with a budget.failures_per_round above {allowed}."
        return Stop("oracle", what + (more if failures >= allowed else ""))
    return None


def _complete_map(campaign: Campaign, arms: list[Arm], round: int) -> None:
    """Puts the picks into the newest plane that it lacks; in a campaign without twin and failures it lacks none."""
    selected = arms[0]
    if selected.plane is None or (len(arms) == 1 and not selected.failed):
        return
    plane, model = selected.plane
    place_picks(campaign, round=round, plane=plane, model=model, picks=[name for arm in arms for name in arm.picked])


def _candidates(campaign: Campaign, inputs: Inputs, arm: Arm, round: int) -> Candidates:
    if campaign.config.pool is not None:
        return Candidates(tuple(campaign.config.pool.files), inputs.candidates)
    from selectron.campaign.sampled import sample_candidates

    found = sample_candidates(campaign, inputs, arm=arm.name, round=round, model=arm.model, ensemble=arm.ensemble)
    arm.ensemble = found.ensemble
    return found


def _enough_for_twin(twin: Arm, selected: Arm) -> Stop | None:
    """The twin follows the selected arm; where that reached its target, the twin goes on to its own, or to the budget."""
    if selected.stop is None or selected.stop.rule == "target" or twin.labels < selected.labels:
        return None
    return Stop("twin", f"It has as many labels as the selected arm, {twin.labels}.")


def _errors(measured: Stage) -> str:
    errors = measured.output["test"]["errors"]
    return (
        f"test RMSE {_shown(errors['force_rmse_eV_A'], '.4f')} eV/Å, "
        f"{_shown(errors['energy_rmse_meV_atom'], '.1f')} meV/atom"
    )


def _shown(value: float | None, how: str) -> str:
    return "not finite" if value is None else format(value, how)
