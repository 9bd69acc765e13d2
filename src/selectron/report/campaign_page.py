"""The report of a campaign: one HTML file for a colleague, with nothing to fetch."""

from __future__ import annotations

import html
import re
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from selectron import __version__
from selectron.report import campaign_tables as tables
from selectron.report.campaign_failures import failures, quarantined
from selectron.report.campaign_figures import cost_bars, learning_curves, losses
from selectron.report.campaign_map import draw_dihedrals, draw_map, interactive_map
from selectron.report.campaign_parity import parity
from selectron.report.campaign_points import read_map
from selectron.report.campaign_statistics import Curve, curves_of
from selectron.report.campaign_style import unit_of
from selectron.report.campaign_summary import MAIN, duration, last_measured, number, oracle_name, sentences
from selectron.report.campaign_tables import escaped
from selectron.report.campaign_template import PAGE
from selectron.report.map_html import POLICY
from selectron.structures import atomic_output
from selectron.wording import counted

if TYPE_CHECKING:
    from selectron.campaign.records import CampaignRecord


def write_campaign_report(record: CampaignRecord, path: str | Path) -> None:
    """Write the report of a campaign, as far as it has come, to the HTML file ``path``; it opens from disk, offline.

    Summary, learning curves with what the test set leaves open, parity before and after, picks and why, map, costs,
    failures, configuration, versions. What has not happened is said, never left blank. All text from files is escaped,
    and the page's policy forbids every request. The file appears whole or not at all.

    Raises SelectronError where the file cannot be written.
    """
    curves = curves_of(record)
    sections = [(name, title, body) for name, title, body in _sections(record, curves) if body]
    title = f"{record.config.name}: report of a selectron campaign"
    parts = {
        "policy": POLICY,
        "version": escaped(__version__),
        "title": escaped(title),
        "heading": escaped(record.config.name),
        "facts": _facts(record),
        "lead": "".join(f"<li>{escaped(text)}</li>" for text in sentences(record, curves)),
        "cards": _cards(record),
        "links": " ".join(f'<a href="#{name}">{escaped(title)}</a>' for name, title, _ in sections),
        "sections": "\n".join(
            f'<section id="{name}"><h2>{escaped(title)}</h2>{body}</section>' for name, title, body in sections
        ),
    }
    page = re.sub(r"\{\{(\w+)\}\}", lambda match: parts[match[1]], PAGE)
    with atomic_output(path) as stream:
        stream.write(page)


def _sections(record: CampaignRecord, curves: Mapping[str, Curve]) -> list[tuple[str, str, str]]:
    seconds = tables.core_seconds(record)
    charts = learning_curves(record, curves) or '<p class="empty">No fine-tuned model has been measured yet.</p>'
    compared = tables.comparison(record, curves)
    if compared:
        compared = (
            "<h3>Labels at equal error, errors at equal labels</h3>"
            + compared
            + "<p class='facts'>Saved: 1 − selected/random at the lowest error that selection reached; curves are read "
            "between measurements (logarithm of the error linear in labels), never beyond them. Spread: bootstrap over "
            "test structures; a plus sign says that random picks did not get there in some resamples, which leaves the "
            "upper end open. Right: both arms at the last number of labels that they share; difference: selected minus "
            "random on the same resamples, negative where selection is better.</p>"
        )
    references = tables.references(record)
    trained = "".join(losses(arm) for arm in record.arms)
    warnings = dict.fromkeys(
        text for arm in record.arms for one in arm.rounds if one.training is not None for text in one.training.warnings
    )
    trained += "".join(f'<p class="warn">{escaped(text)}</p>' for text in warnings)
    return [
        ("curves", "Learning curves", charts + compared),
        ("rounds", "Errors after each round", tables.rounds(record)),
        ("parity", "Model against labels", parity(record)),
        ("shift", "Shift of level of theory", references),
        ("picks", "What was picked, and why", _why(record) + tables.picks(record)),
        ("map", "Where the picks lie", _map(record)),
        ("training", "Trainings", trained),
        ("costs", "Costs", tables.costs(record, seconds)
            + "<p class='facts'>Times of labelling, screening, training, measuring and together are processor time.</p>"
            + cost_bars(seconds) + _oracle_total(record)),
        ("failures", "Failures", failures(record.arms, record.unlabelled)
            + quarantined(record.quarantine_path, record.folder)),
        ("configuration", "Configuration",
            f"<details open><summary>campaign.yaml</summary><pre>{escaped(record.text)}</pre></details>"),
        ("origins", "Versions, seeds and data", tables.origins(record)),
    ]  # fmt: skip


def _facts(record: CampaignRecord) -> str:
    config = record.config
    state = "ended" if record.finished else "running" if record.process is not None else "interrupted"
    parts = [
        state,
        f"model {str(record.facts.get('model_name', config.model.file)).rsplit('/', 1)[-1]}",
        f"labels from {oracle_name(record)}",
        f"{config.features.name} features, {config.selector.name} selector",
        f"budget {config.budget.labels:,} labels, {config.budget.per_round:,} a round",
        "random twin" if config.baseline == "random" else "no random twin",
    ]
    return " · ".join(escaped(part) for part in parts)


def _cards(record: CampaignRecord) -> str:
    arm, last = record.selected, last_measured(record.selected)
    cards = [(f"{arm.labels:,} of {record.config.budget.labels:,}", "labels of the selected arm")]
    for quantity, name in zip(MAIN, ("force RMSE", "energy RMSE"), strict=True):
        before = getattr(record.start.test, quantity) if record.start and record.start.test else None
        if record.start is None:
            value = "not measured"
        elif last is None:
            value = number(before)
        else:
            value = f"{number(before)} → {number(getattr(last[1], quantity))}"
        cards.append((value, f"{name} on the test set, {unit_of(quantity)}"))
    saving = record.savings.get(MAIN[0])
    if saving is not None and last is not None:
        cards.append(_saving_card(saving.selected, saving.random, saving.at_most))
    failed = sum(len(one.failures) for one in record.arms) + sum(map(len, record.unlabelled.values()))
    cards.append((str(failed), "failed oracle call" if failed == 1 else "failed oracle calls"))
    total = record.oracle_core_s + sum(
        cost.core_s for name, cost in record.costs.items() if not name.startswith("label")
    )
    cards.append((duration(total), "processor time in all"))
    return "".join(
        f'<div class="card"><b>{escaped(value)}</b><span>{escaped(text)}</span></div>' for value, text in cards
    )


def _saving_card(selected: float, random: float | None, at_most: int) -> tuple[str, str]:
    text = "labels saved at equal force RMSE"
    if selected == 0:
        return "none", text
    if random is None:
        least = 100 * (1 - selected / at_most) if at_most else 0.0
        return (f"> {least:.0f} %" if least >= 1 else "not known"), f"{text}; random picks did not reach it"
    share = 100 * (1 - selected / random) if random else 0.0
    return (f"{share:.0f} %" if share > 0.5 else "none"), text


def _why(record: CampaignRecord) -> str:
    from selectron.campaign.labelling import states_line

    config = record.config
    states = states_line(pick for arm in record.arms for one in arm.rounds for pick in one.picks)
    return (
        f"<p>Score is the criterion of the selector ({escaped(config.selector.name)}) when the structure was taken; "
        "variance its posterior variance at that time, in feature units squared; the nearest known structure is nearest in "
        "feature space among all that were labelled before the round. A pick stands for the candidates nearest to it, and "
        "its label has that weight in training (the root, 1 in the mean). Click a heading to sort.</p>"
        + (f"<p>{escaped(states)}</p>" if states else "")
    )


def _map(record: CampaignRecord) -> str:
    found = read_map(record)
    dihedrals = draw_dihedrals(record)
    if found is None:
        gone = '<p class="empty">There is no map: the campaign’s folder holds neither the map of a round nor feature rows.</p>'
        return dihedrals or (gone if any(arm.rounds for arm in record.arms) else "")
    drawn, inside = draw_map(record, found), interactive_map(record, found)
    if inside is None:
        return drawn + dihedrals
    frame = (
        '<div class="screen"><h3>The same in 3-D</h3><p class="facts">Click a point to see its structure.</p>'
        f'<iframe title="Interactive map with structures in 3-D (chemiscope)" loading="lazy" srcdoc="{html.escape(inside)}">'
        "</iframe></div>"
    )
    return drawn + dihedrals + frame


def _oracle_total(record: CampaignRecord) -> str:
    calls = record.oracle_calls
    return (
        f"<p>{counted(calls, 'call')} of the oracle in all, test and validation labels included: "
        f"{duration(record.oracle_core_s)} of processor time, {duration(record.oracle_wall_s)} by the clock. Labels that "
        "had been bought before, by the other arm or another campaign, are reused at no cost.</p>"
    )
