"""``selectron status``: how far a campaign is, also while it runs."""

from __future__ import annotations

import math
import time
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table

from selectron.wording import counted

if TYPE_CHECKING:
    from selectron.campaign.records import ArmRecord, CampaignRecord, RoundRecord


PARTS = {
    "sample": "sampling",
    "pick": "picking",
    "label": "labels",
    "train": "training",
    "measure": "measuring",
}


def register(app: typer.Typer) -> None:
    """Adds the command to ``app``."""
    app.command("status")(status)


def status(
    folder: Annotated[Path, typer.Argument(metavar="DIR", help="Folder of the campaign.")],
) -> None:
    """How far a campaign is: rounds, labels, errors, costs, time left."""
    from selectron.campaign.history import read_campaign

    record, console = read_campaign(folder), Console()
    console.print(_state(record), soft_wrap=True, highlight=False)
    summarise(record, console)


def summarise(record: CampaignRecord, console: Console) -> None:
    """Rounds and errors as a table, costs, why it ended, and what selection saved."""
    from selectron.campaign.labelling import left_out, states_line

    headings = ("round", "picks", "labels", "force RMSE", "force MAE", "energy RMSE", "energy MAE")
    table = Table(*headings, box=SIMPLE_HEAD)
    for column in table.columns[2:]:
        column.justify = "right"
    if record.start is not None:
        table.add_row(*_row(record.start))
    for number in range(1, 1 + max((len(arm.rounds) for arm in record.arms), default=0)):
        for arm in record.arms:
            for one in arm.rounds:
                if one.round == number:
                    table.add_row(*_row(one))
    if table.row_count:
        console.print(table)
        console.print("Errors on the test set: forces in eV/Å, energies in meV/atom.", highlight=False)
    sizes = record.facts.get("sizes", {})
    lines = [f"{left_out(name, reasons, sizes[name])}." for name, reasons in record.unlabelled.items()]
    states = states_line(pick for arm in record.arms for one in arm.rounds for pick in one.picks)
    lines += [states] if states else []
    lines += [_failures(arm) for arm in record.arms if arm.failures]
    lines += _broken(record)
    for arm in record.arms:
        lost = [str(one.round) for one in arm.rounds if one.training is not None and one.training.failure]
        if lost:
            lines.append(f"{arm.name}: training failed in round {', '.join(lost)}; the model before was kept.")
    lines.append(_costs(record))
    lines += [f"{arm.name}: {arm.stop}" for arm in record.arms if arm.stop]
    lines += [saving.sentence for name, saving in record.savings.items() if "rmse" in name]
    for line in lines:
        console.print(line, soft_wrap=True, highlight=False)


def _row(one: RoundRecord) -> list[str]:
    errors = ["", "", "", ""]
    if one.test is not None:
        test = one.test
        forces = [_number(test.force_rmse_eV_A, ".4f"), _number(test.force_mae_eV_A, ".4f")]
        errors = [*forces, _number(test.energy_rmse_meV_atom, ".1f"), _number(test.energy_mae_meV_atom, ".1f")]
    return [str(one.round), one.arm or "none", str(one.labels), *errors]


def _failures(arm: ArmRecord) -> str:
    count = len(arm.failures)
    return f"{arm.name}: {counted(count, 'pick')} could not be labelled (the first: {arm.failures[0].failure})."


def _broken(record: CampaignRecord) -> list[str]:
    """One line on the trajectories that broke in all sampling runs, a run of both arms counted once."""
    runs = {
        (one.round, "" if one.sampled.shared else arm.name): one.sampled
        for arm in record.arms
        for one in arm.rounds
        if one.sampled is not None
    }
    reasons = Counter(reason for run in runs.values() for *_, reason in run.ended)
    if not reasons:
        return []
    count, (reason, _) = reasons.total(), reasons.most_common(1)[0]
    which = "the reason" if len(reasons) == 1 else "most often"
    return [
        f"Sampling: {counted(count, 'trajectory', 'trajectories')} broke and gave no more frames ({which}: {reason})."
    ]


def _number(value: float | None, how: str) -> str:
    return "not finite" if value is None else format(value, how)


def _state(record: CampaignRecord) -> str:
    """One sentence: ended, running (what, how long still), or interrupted."""
    name = f"{record.config.name} in {record.folder}"
    if record.process is None:
        if record.finished:
            return f"{name} has ended."
        return f"{name} is interrupted; go on with: selectron resume {record.folder}"
    doing = "it starts"
    if record.activity is not None:
        now = record.activity
        counts = f" {now.done}/{now.total}" if now.total else ""
        where = f" (round {now.round}, {now.arm})" if now.arm else ""
        doing = f"{now.label or now.stage}{counts}{where}, for {_duration(max(0.0, time.time() - now.started))}"
    left = time_left_s(record)
    rest = "" if left is None else f"; about {_duration(left)} left if the budget is used up"
    return f"{name} is run by process {record.process}: {doing}{rest}."


def time_left_s(record: CampaignRecord) -> float | None:
    """Seconds until the budget is spent, at the pace of the rounds so far; None before the first is done."""
    done = [one for arm in record.arms for one in arm.rounds if one.finished]
    if not done:
        return None
    pace = sum(cost.wall_s for one in done for cost in one.costs.values()) / sum(_bought(one) for one in done)
    labels = sum(_labels_left(record, arm) for arm in record.arms if arm.stop is None)
    under_way = [one for arm in record.arms for one in arm.rounds if not one.finished]
    spent = sum(cost.wall_s for one in under_way for cost in one.costs.values())
    return max(0.0, pace * labels - spent)


def _bought(one: RoundRecord) -> int:
    return max(1, sum(1 for pick in one.picks if pick.labelled))


def _labels_left(record: CampaignRecord, arm: ArmRecord) -> int:
    finished = [one.labels for one in arm.rounds if one.finished]
    return record.config.budget.labels - (finished[-1] if finished else 0)


def _costs(record: CampaignRecord) -> str:
    parts = []
    for name, what in PARTS.items():
        if name in record.costs:
            parts.append(f"{what} {_duration(record.costs[name].wall_s)}")
    calls = counted(record.oracle_calls, "oracle call")
    core_s = sum(cost.core_s for name, cost in record.costs.items() if not name.startswith("label"))
    core = _duration(core_s + record.oracle_core_s)
    return f"Cost: {calls}, {core} of processor time" + (f" ({', '.join(parts)} by the clock)." if parts else ".")


def _duration(seconds: float) -> str:
    if seconds < 60:
        return f"{seconds:.1f} s"
    minutes = math.ceil(seconds / 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes:02d} min" if hours else f"{minutes} min"
