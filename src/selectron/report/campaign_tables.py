"""Tables of a campaign's report as HTML; every text that comes from files is escaped here."""

from __future__ import annotations

import html
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from pathlib import PurePath
from typing import TYPE_CHECKING, Any

from selectron.report.campaign_statistics import Curve, difference, saved_share
from selectron.report.campaign_style import ARM_NAMES, QUANTITY_NAMES, unit_of
from selectron.report.campaign_summary import count_of, duration, number, percent
from selectron.wording import counted

if TYPE_CHECKING:
    from selectron.campaign.records import CampaignRecord, PickRecord, RoundRecord

ROWS = 400  # picks shown of one round
LONG = 20  # a longer table of rounds is folded
REASON = 600  # characters of a reason
NAMES = ("kind", "reaction", "smiles", "config_type")


def escaped(value: object) -> str:
    """Text of any origin, made harmless: no markup, no control characters."""
    text = "".join(c if c.isprintable() or c in "\n\t" else "\ufffd" for c in str(value))
    return html.escape(text, quote=True)


def table(head: Sequence[tuple[str, str]], rows: Sequence[Sequence[str]], *, sortable: bool = False) -> str:
    """A table; ``head`` holds (text, "n" for numbers, "k" for short words or ""), cells are HTML,
    or HTML and a sort key with a form feed between them.
    """
    attribute = ' class="sortable"' if sortable else ""
    cells = "".join(
        f'<th scope="col"{_kind(kind)}>'
        + (f'<button type="button">{_heading(text)}</button>' if sortable else _heading(text))
        + "</th>"
        for text, kind in head
    )
    body = "".join(
        "<tr>" + "".join(_cell(cell, kind) for cell, (_, kind) in zip(row, head, strict=True)) + "</tr>" for row in rows
    )
    return f'<div class="wide"><table{attribute}><thead><tr>{cells}</tr></thead><tbody>{body}</tbody></table></div>'


def _heading(text: str) -> str:
    """A heading that may be broken into lines, but not inside a unit."""
    return escaped(text).replace("/", "/&NoBreak;")


def _kind(kind: str) -> str:
    return f' class="{kind}"' if kind else ""


def _cell(cell: str, kind: str) -> str:
    text, _, key = cell.partition("\f")
    sort = f' data-key="{escaped(key)}"' if key else ""
    return f"<td{_kind(kind)}{sort}>{text}</td>"


def _value(value: float | None) -> str:
    return "–\f" if value is None else f"{number(value)}\f{value!r}"


def picks(record: CampaignRecord) -> str:
    """All picks, a folding table a round, the last round of the selected arm open."""
    if not any(one.picks for arm in record.arms for one in arm.rounds):
        return '<p class="empty">Nothing has been picked yet.</p>'
    parts = []
    for arm in record.arms:
        rounds = [one for one in arm.rounds if one.picks]
        if not rounds:
            continue
        parts.append(f"<h3>{escaped(ARM_NAMES[arm.name]).capitalize()}</h3>")
        for one in rounds:
            opened = " open" if one is rounds[-1] and arm.name == "selected" else ""
            parts.append(f"<details{opened}><summary>{_round_line(one)}</summary>{_picks_of(one)}</details>")
    return "".join(parts)


def _round_line(one: RoundRecord) -> str:
    got = sum(1 for pick in one.picks if pick.labelled)
    lost = sum(1 for pick in one.picks if pick.labelled is False)
    waiting = len(one.picks) - got - lost
    facts = [f"{len(one.picks):,} picked", f"{got:,} labelled"]
    facts += [f"{lost:,} failed"] if lost else []
    facts += [f"{waiting:,} not yet asked for"] if waiting else []
    if one.left is not None:
        facts.append(f"chosen out of {one.left.structures:,}")
    if one.sampled is not None:
        facts.append(f"sampled {one.sampled.frames:,} frames" + (" with the other arm" if one.sampled.shared else ""))
        facts += [f"{len(one.sampled.ended):,} trajectories broke"] if one.sampled.ended else []
    return f"Round {one.round} <small>{' · '.join(facts)}</small>"


def _picks_of(one: RoundRecord) -> str:
    by_score = any(pick.score is not None for pick in one.picks)
    named = any(_what(pick) for pick in one.picks)
    near = any(pick.nearest is not None for pick in one.picks)
    stands = any(pick.represents is not None for pick in one.picks)
    head = [("rank", "n"), ("formula", "k")]
    head += [("what it is", "")] if named else []
    head += [("source", "k"), ("index", "n")]
    head += [("score", "n"), ("variance", "n")] if by_score else []
    head += [("nearest known structure", ""), ("distance", "n")] if near else []
    head += [("stands for", "n"), ("weight", "n")] if stands else []
    head += [("label", "k" if all(pick.labelled is not False for pick in one.picks) else ""), ("cost", "n")]
    rows = []
    for pick in one.picks[:ROWS]:
        row = [f"{pick.rank}\f{pick.rank}", escaped(pick.formula)]
        row += [escaped(_what(pick))] if named else []
        row += [file_name(pick.source.path), f"{pick.source.index}\f{pick.source.index}"]
        row += ["by chance\f" if pick.score is None else _value(pick.score), _value(pick.variance)] if by_score else []
        row += [_nearest(pick), _value(pick.distance)] if near else []
        row += [_stands_for(pick), _value(pick.weight)] if stands else []
        row += [_label(pick), f"{duration(pick.core_s)}\f{pick.core_s!r}" if pick.labelled is not None else "–\f"]
        rows.append(row)
    rest = len(one.picks) - len(rows)
    note = (
        f"<p>The first {ROWS} of {len(one.picks):,} picks; selectron export writes all of them.</p>" if rest > 0 else ""
    )
    notes = "".join(f"<p>{escaped(text)}</p>" for text in one.notes)
    return table(head, rows, sortable=True) + note + notes


def _what(pick: PickRecord) -> str:
    found: list[str] = []
    for name in NAMES:
        text = str(pick.structure.info.get(name) or "")
        if text and not any(text in other for other in found):
            found.append(text)
    if pick.state not in (None, (0, 1)):
        found.insert(0, f"charge {pick.state[0]}, multiplicity {pick.state[1]}".replace("-", "−"))
    return ", ".join(found)[:160]


def file_name(path: str) -> str:
    """The last part of a path, made harmless."""
    return escaped(PurePath(path).name or path)


def _stands_for(pick: PickRecord) -> str:
    return "–\f" if pick.represents is None else f"{pick.represents:,}\f{pick.represents}"


def _nearest(pick: PickRecord) -> str:
    if pick.nearest is None:
        return "–"
    where = f"round {pick.nearest_round}" if pick.nearest_round else "initial training set"
    return f"{file_name(pick.nearest.path)} {pick.nearest.index} <small>({where})</small>"


def _label(pick: PickRecord) -> str:
    if pick.labelled is None:
        return "not yet"
    if not pick.labelled:
        return f'<span class="bad">failed</span> <small>{escaped((pick.failure or "no reason given")[:160])}</small>'
    energy = getattr(pick.structure.calc, "results", {}).get("energy")
    value = f" <small>{energy:.4f} eV</small>".replace("-", "−") if energy is not None else ""
    return ("reused" if pick.shared else "bought") + value


def rounds(record: CampaignRecord) -> str:
    """Errors after each round."""
    head = [("round", "n"), ("arm", "k"), ("labels", "n")]
    head += [(f"{name}, {unit_of(key)}", "n") for key, name in QUANTITY_NAMES.items()]
    head += [("fine-tuning", "k")]
    order = [one for arm in record.arms for one in arm.rounds]
    order.sort(key=lambda one: (one.round, one.arm != "selected"))
    rows = []
    for one in ([record.start] if record.start else []) + order:
        test = one.test
        values = [number(getattr(test, key)) if test is not None else "–" for key in QUANTITY_NAMES]
        rows.append(
            [str(one.round), escaped(ARM_NAMES.get(one.arm, "before")), f"{one.labels:,}", *values, _tuned(one)]
        )
    if len(rows) <= LONG:
        return table(head, rows) if rows else ""
    return f"<details><summary>{len(rows)} models</summary>{table(head, rows)}</details>"


def _tuned(one: RoundRecord) -> str:
    if one.training is None:
        return "" if one.round == 0 else "–"
    if one.training.failure:
        return '<span class="bad">failed, the model before was kept</span>'
    kept = "" if one.training.kept_epoch is None else f", epoch {one.training.kept_epoch + 1} kept"
    return f"{counted(one.training.structures, 'structure')}{kept}"


def comparison(record: CampaignRecord, curves: Mapping[str, Curve]) -> str:
    """Labels at equal error and errors at equal labels, with the spread over resampled test sets; "" without both."""
    if len(curves) < 2 or any(len(curve.labels) < 2 for curve in curves.values()):
        return ""
    head = [
        ("quantity", "k"),
        ("lowest with selection", "n"),
        ("labels: selected", "n"),
        ("random", "n"),
        ("saved", "n"),
    ]
    head += [("95 %", "n"), ("labels", "n"), ("selected", "n"), ("random", "n"), ("difference, 95 %", "n")]
    rows = []
    for key, name in QUANTITY_NAMES.items():
        saving, share, gap = record.savings.get(key), saved_share(curves, key), difference(curves, key)
        if saving is None:
            continue
        row = [name, f"{number(saving.error)} {unit_of(key)}"]
        if saving.selected == 0:
            row += ["0", "–", "nothing gained", "–"]
        else:
            other = saving.at_most if saving.random is None else saving.random
            part = 1 - saving.selected / other if other else 0.0
            known = saving.random is not None or part > 0.005
            row += [count_of(saving.selected), f"over {other:,.0f}" if saving.random is None else count_of(other)]
            row.append((">" if saving.random is None else "") + f"{100 * part:.0f} %" if known else "not known")
            row.append(
                "–" if share is None else f"{percent(share.low)} to {percent(share.high)}{'+' * share.open_above}"
            )
        if gap is None:
            row += ["–"] * 4
        else:
            row += [f"{gap.labels:,}", number(gap.selected), number(gap.random), f"{gap.low:+.2g} to {gap.high:+.2g}"]
        rows.append([cell.replace("-", "−") for cell in row])
    return table(head, rows)


def core_seconds(record: CampaignRecord) -> dict[str, dict[str, float]]:
    """Processor time by arm and kind of work, ``shared`` for what both arms use; labels where they were bought."""
    found: dict[str, dict[str, float]] = {}
    for arm in record.arms:
        bought = [pick for one in arm.rounds for pick in one.picks if pick.labelled is not None and not pick.shared]
        parts = {"labelling": sum(pick.core_s for pick in bought)}
        for stage, name in (
            ("sample", "sampling"),
            ("train", "training"),
            ("pick", "screening"),
            ("measure", "measuring"),
        ):
            parts[name] = sum(one.costs[stage].core_s for one in arm.rounds if stage in one.costs)
        found[arm.name] = parts
    every = {"sampling": "sample", "training": "train", "screening": "pick", "measuring": "measure"}
    rest = {
        name: max(0.0, record.costs[stage].core_s - sum(parts[name] for parts in found.values()))
        for name, stage in every.items()
        if stage in record.costs
    }
    if "map" in record.costs:  # picks that the screening did not see, for the map
        rest["screening"] = rest.get("screening", 0.0) + record.costs["map"].core_s
    labelled = sum(parts["labelling"] for parts in found.values())
    rest["labelling"] = max(0.0, record.oracle_core_s - labelled)
    found["shared by both" if record.random is not None else "before the first round"] = rest
    return found


def costs(record: CampaignRecord, seconds: Mapping[str, Mapping[str, float]]) -> str:
    """Labels and processor time by arm."""
    head = [("", "k"), ("labels", "n"), ("bought", "n"), ("reused", "n"), ("failed", "n")]
    kinds = ["labelling", "screening", "training", "measuring"]
    kinds += ["sampling"] if any(parts.get("sampling") for parts in seconds.values()) else []
    head += [(kind, "n") for kind in kinds] + [("together", "n"), ("by the clock", "n")]
    rows = []
    for arm in record.arms:
        every = [pick for one in arm.rounds for pick in one.picks]
        bought = sum(1 for pick in every if pick.labelled and not pick.shared)
        reused = sum(1 for pick in every if pick.labelled and pick.shared)
        wall = sum(cost.wall_s for one in arm.rounds for cost in one.costs.values())
        counts = [f"{value:,}" for value in (arm.labels, bought, reused, len(arm.failures))]
        times = [duration(seconds[arm.name].get(kind, 0.0)) for kind in kinds]
        rows.append([ARM_NAMES[arm.name], *counts, *times, duration(sum(seconds[arm.name].values())), duration(wall)])
    for name, parts in seconds.items():
        if name not in ARM_NAMES and sum(parts.values()) > 0:
            times = [duration(parts.get(kind, 0.0)) for kind in kinds]
            rows.append([escaped(name), *["–"] * 4, *times, duration(sum(parts.values())), "–"])
    return table(head, rows)


def references(record: CampaignRecord) -> str:
    """The shift of the level of theory that the trainings found; "" where none looked for it."""
    rows, notes = [], []
    for arm in record.arms:
        for one in arm.rounds:
            found = one.training.references if one.training is not None else None
            if found is None:
                continue
            each = ", ".join(
                f"{escaped(symbol)} {1e3 * value:+.0f}{_error(found['error_eV'].get(symbol))}"
                for symbol, value in found["shift_eV"].items()
            )
            verdict = "detected, references moved" if found["applied"] else "not significant, references kept"
            rows.append([ARM_NAMES[arm.name], str(one.round), verdict, each.replace("-", "−")])
            if found.get("note") and arm.name == "selected":
                notes.append(escaped(found["note"]))
    if not rows:
        return ""
    last = f"<p>{notes[-1]}</p>" if notes else "<p>No significant shift between the model and the labels was found.</p>"
    head = [("arm", "k"), ("round", "n"), ("shift", "k"), ("meV for an atom of each element", "")]
    return last + f"<details><summary>Each fine-tuning</summary>{table(head, rows)}</details>"


def _error(value: float | None) -> str:
    return " (open)" if value is None else f" ± {1e3 * value:.0f}"


def origins(record: CampaignRecord) -> str:
    """Versions, machine, seeds, sizes and licence."""
    facts, config = record.facts, record.config
    sizes: Mapping[str, Any] = facts.get("sizes", {})
    begun = datetime.fromtimestamp(record.created, UTC).strftime("%Y-%m-%d %H:%M UTC")
    rows: list[tuple[str, object]] = [("begun", begun), ("folder", record.folder.name)]
    rows.append(
        ("model", f"{facts.get('model_name', config.model.file)}, licence: {facts.get('model_licence') or 'not known'}")
    )
    if facts:
        if config.sampling is not None:
            starts = ", ".join(PurePath(file).name for file in config.sampling.starts)
            method = f"{config.sampling.method} at {config.sampling.temperature_K:g} K from {starts}"
            rows.append(("candidates", f"sampled with the model of each round: {method}"))
        else:
            sizes_of_pool = _count(facts, "pool", "structures"), _count(facts, "candidates", "candidates")
            rows.append(("pool", ", ".join(sizes_of_pool)))
        left_out = _count(facts, "repeated", "repeated"), _count(facts, "quarantined", "unusable")
        rows.append(("left out", ", ".join(left_out)))
        for name, size in sizes.items():
            lost = len(record.unlabelled.get(name, ()))
            without = f", of which {lost:,} got no label and {'is' if lost == 1 else 'are'} left out" if lost else ""
            rows.append((f"{name} set", f"{counted(size, 'structure')}{without}"))
    rows.append(("seed", f"{config.seed} (trainer: {config.trainer.seed + config.seed})"))
    rows.append(("features and selector", f"{config.features.name}, D = {config.features.dim}; {config.selector.name}"))
    rows.append(("machine", ", ".join(f"{name} {value}" for name, value in record.machine.items())))
    rows.append(("versions", ", ".join(f"{name} {value}" for name, value in record.versions.items())))
    body = "".join(f"<dt>{escaped(name)}</dt><dd>{escaped(value)}</dd>" for name, value in rows)
    return f"<dl>{body}</dl>"


def _count(facts: Mapping[str, Any], key: str, what: str) -> str:
    return f"{facts.get(key) or 0:,} {what}"
