"""What a campaign found, in three sentences and a few numbers."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import TYPE_CHECKING

from selectron.report.campaign_statistics import Curve, SavedShare, difference, saved_share
from selectron.report.campaign_style import QUANTITY_NAMES, unit_of
from selectron.wording import counted

if TYPE_CHECKING:
    from selectron.campaign.records import ArmRecord, CampaignRecord, Measured

MAIN = ("force_rmse_eV_A", "energy_rmse_meV_atom")


def sentences(record: CampaignRecord, curves: Mapping[str, Curve]) -> list[str]:
    """What was learned, what selection saved against random picks, and what ended it; plain text."""
    return [_learned(record), _saved(record, curves), _ended(record)]


def number(value: float | None) -> str:
    """Three significant digits, no exponent where it can be helped."""
    if value is None or not math.isfinite(value):
        return "not finite"
    if value == 0:
        return "0"
    digits = max(0, 2 - math.floor(math.log10(abs(value))))
    return f"{value:.{digits}f}" if digits <= 6 else f"{value:.2e}"


def duration(seconds: float) -> str:
    """For a person: 12 s, 3 min 20 s, 2 h 05 min."""
    if seconds < 1:
        return f"{seconds:.2f} s" if seconds >= 0.01 else "0 s" if seconds == 0 else "under 0.01 s"
    if seconds < 120:
        return f"{seconds:.0f} s" if seconds >= 10 else f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    if minutes < 60:
        return f"{minutes} min {rest:02d} s"
    hours, minutes = divmod(minutes, 60)
    return f"{hours:,} h {minutes:02d} min"


def count_of(labels: float) -> str:
    """A number of labels, read from a curve between measurements: few of them with a decimal."""
    return f"{labels:,.0f}" if labels >= 20 or labels == round(labels) else f"{labels:.1f}"


def labels_of(labels: float) -> str:
    """The same with its noun."""
    return f"{count_of(labels)} label{'' if count_of(labels) == '1' else 's'}"


def percent(share: float) -> str:
    """A share in whole percents; where selection took more labels it is negative."""
    return f"{100 * share:.0f} %".replace("-", "−") if share > -9.995 else "below −1000 %"


def last_measured(arm: ArmRecord) -> tuple[int, Measured] | None:
    """Labels and test errors of the newest model of an arm; None before one was measured."""
    done = [(one.labels, one.test) for one in arm.rounds if one.test is not None]
    return done[-1] if done else None


def oracle_name(record: CampaignRecord) -> str:
    """The oracle in a word."""
    options = record.config.oracle
    for key in ("method", "functional", "model", "calculator"):
        found = getattr(options, key, None)
        if isinstance(found, str):
            if key == "calculator":
                return found.rsplit(":", 1)[-1]
            return f"{options.kind} ({found.rsplit('/', 1)[-1]})" if found != options.kind else found
    return {"gfn2-xtb": "GFN2-xTB", "gfn1-xtb": "GFN1-xTB"}.get(str(options.kind), str(options.kind))


def _learned(record: CampaignRecord) -> str:
    arm, start = record.selected, record.start
    name = str(record.facts.get("model_name", record.config.model.file)).rsplit("/", 1)[-1]
    last = last_measured(arm)
    if start is None or start.test is None:
        return f"Nothing has been measured yet: the errors of the model {name} before fine-tuning are not known."
    before = start.test
    if last is None:
        failed = len(arm.failures)
        labels = counted(arm.labels, "label") if arm.labels else "No label"
        has = "have" if arm.labels > 1 else "has"
        lost = f", and {counted(failed, 'oracle call')} failed" if failed else ""
        return (
            f"{labels} {has} been obtained so far{lost}; no fine-tuned model has been measured, and the model {name} "
            f"stands at a force RMSE of {number(before.force_rmse_eV_A)} eV/Å and an energy RMSE of "
            f"{number(before.energy_rmse_meV_atom)} meV/atom on {before.structures:,} test structures."
        )
    count, test = last
    rounds = sum(1 for one in arm.rounds if one.test is not None)
    pool = record.facts.get("candidates")
    origin = f" out of {pool:,} candidates" if pool else ""
    untuned = sum(1 for one in arm.rounds if one.training is not None and one.training.failure)
    tuned = f"before and after fine-tuning{f', which failed in {untuned} of {rounds} rounds' if untuned else ''}"
    changes = " and ".join(
        f"{'the ' if place == 0 else ''}{QUANTITY_NAMES[quantity]} "
        + _change(getattr(before, quantity), getattr(test, quantity), unit_of(quantity))
        for place, quantity in enumerate(MAIN)
    )
    return (
        f"With {counted(count, f'{oracle_name(record)} label')} selected in {counted(rounds, 'round')}{origin}, {changes} "
        f"on {test.structures:,} test structures (model {name}, {tuned})."
    )


def _change(before: float | None, after: float | None, unit: str) -> str:
    if before is None or after is None:
        return f"went from {number(before)} to {number(after)} {unit}"
    if number(before) == number(after):
        return f"stayed at {number(after)} {unit}"
    verb = "fell" if after < before else "rose"
    share = f" ({100 * (after / before - 1):+.0f} %)".replace("-", "−") if before > 0 else ""
    return f"{verb} from {number(before)} to {number(after)} {unit}{share}"


def _saved(record: CampaignRecord, curves: Mapping[str, Curve]) -> str:
    if record.random is None:
        return (
            "There was no random twin (baseline: random), so this campaign cannot tell what selection saved against "
            "picking by chance."
        )
    if last_measured(record.selected) is None or last_measured(record.random) is None:
        if record.finished:
            return "What selection saved cannot be told: not both arms came to a fine-tuned model."
        return "What selection saved cannot be told before both arms have been measured."
    first = _saved_of(record, curves, MAIN[0])
    second = _saved_of(record, curves, MAIN[1])
    return f"Forces: {first}. Energies: {second}."


def _saved_of(record: CampaignRecord, curves: Mapping[str, Curve], quantity: str) -> str:
    saving, share, gap = record.savings.get(quantity), saved_share(curves, quantity), difference(curves, quantity)
    unit, name = unit_of(quantity), QUANTITY_NAMES[quantity].split()[-1]
    if saving is None:
        return "no finite error was measured"
    if saving.selected == 0:
        return f"selection did not lower the {name} below that of the model before fine-tuning{_gap(gap, unit)}"
    reached = f"{name} {number(saving.error)} {unit} took {labels_of(saving.selected)} with selection"
    if saving.random is None:
        least = 100 * (1 - saving.selected / saving.at_most) if saving.at_most else 0.0
        known = least >= 1
        bound = (
            f": more than {least:.0f} % saved{_interval(share)}" if known else ", so how many were saved is not known"
        )
        both = ""
        if saving.random_best is not None and saving.selected_at_random_best:
            both = (
                f"; the best of random picks, {number(saving.random_best)} {unit}, selection had with "
                f"{labels_of(saving.selected_at_random_best)}"
            )
        return f"{reached} and was not reached by random picks with {saving.at_most:,}{bound}{both}{_gap(gap, unit)}"
    saved = 1 - saving.selected / saving.random if saving.random > 0 else 0.0
    verdict = f"{100 * saved:.0f} % saved" if saved > 0.005 else "nothing saved"
    return f"{reached} and {count_of(saving.random)} with random picks: {verdict}{_interval(share)}{_gap(gap, unit)}"


def _interval(share: SavedShare | None) -> str:
    if share is None:
        return ""
    more = " or more" if share.open_above else ""
    return f" (95 % over resampled test structures: {percent(share.low)} to {percent(share.high)}{more})"


def _gap(gap: object, unit: str) -> str:
    from selectron.report.campaign_statistics import Difference

    if not isinstance(gap, Difference):
        return ""
    return f"; at {gap.labels:,} labels {number(gap.selected)} against {number(gap.random)} {unit}: {gap.word}"


def _ended(record: CampaignRecord) -> str:
    parts = []
    stops = [(arm.stop_rule, arm.stop) for arm in record.arms]
    if record.random is not None and stops[0] == stops[1] and record.finished:
        return f"Both arms ended by the {stops[0][0]} rule: {_lowered(str(stops[0][1]))}"
    for arm in record.arms:
        if arm.stop is not None:
            who = "It ended" if arm.name == "selected" else "The random twin ended"
            parts.append(f"{who} by the {arm.stop_rule} rule: {_lowered(arm.stop)}")
    if record.finished:
        return " ".join(parts)
    if record.process is not None:
        doing = record.activity
        where = f" (round {doing.round}, {_arms(doing.arm)}: {doing.stage})" if doing and doing.arm else ""
        state = f"The campaign is still running{where}; this page shows it as it stands."
    else:
        where = ""
        if record.activity is not None and record.activity.arm:
            where = f" in round {record.activity.round} of the {_arms(record.activity.arm)} ({record.activity.stage})"
        state = f"The campaign was interrupted{where} and has not ended; selectron resume goes on where it stood."
    return " ".join([*parts, state])


def _arms(names: str) -> str:
    """What an activity belongs to: the selected arm, or the selected and random arms."""
    return f"{names} arms" if " and " in names else f"{names} arm"


def _lowered(sentence: str) -> str:
    """The sentence after a colon: its first word small, unless that is a name."""
    first, _, rest = sentence.partition(" ")
    return f"{first.lower()} {rest}" if first in ("The", "Nothing", "No", "All", "Every", "It") else sentence
