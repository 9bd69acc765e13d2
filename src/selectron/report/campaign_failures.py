"""What failed in a campaign, with its reasons: oracle calls, trainings, sampled trajectories; as HTML."""

from __future__ import annotations

import csv
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from selectron.report.campaign_style import ARM_NAMES
from selectron.report.campaign_tables import REASON, ROWS, escaped, file_name, table
from selectron.wording import counted

if TYPE_CHECKING:
    from selectron.campaign.records import ArmRecord, Sampled


def failures(arms: Sequence[ArmRecord], unlabelled: Mapping[str, Sequence[str]]) -> str:
    """Every failed oracle call and training with its reason; broken trajectories counted by reason.

    ``unlabelled``: by set, the reasons why structures of it have no label.
    """
    rows = [
        ["", "", f"label of a structure of the {name} set", escaped(reason[:REASON])]
        for name, reasons in unlabelled.items()
        for reason in reasons[:ROWS]
    ]
    rows += [
        [
            ARM_NAMES[arm.name],
            str(pick.round),
            f"label of {escaped(pick.formula)}, {file_name(pick.source.path)} {pick.source.index}",
            escaped((pick.failure or "no reason given")[:REASON]),
        ]
        for arm in arms
        for pick in arm.failures[:ROWS]
    ]
    for arm in arms:
        for one in arm.rounds:
            if one.training is not None and one.training.failure:
                reason = escaped(one.training.failure[:REASON])
                rows.append([ARM_NAMES[arm.name], str(one.round), "fine-tuning", reason])
    for arm in arms:
        for one in arm.rounds:
            if one.sampled is not None and not (one.sampled.shared and arm.name != "selected"):
                whose = "both" if one.sampled.shared and len(arms) > 1 else ARM_NAMES[arm.name]
                rows += [[whose, str(one.round), *cells] for cells in _broken(one.sampled)]
    if not rows:
        sampled = ", and no trajectory broke" if any(one.sampled for arm in arms for one in arm.rounds) else ""
        return f'<p class="empty">No oracle call and no training failed{sampled}.</p>'
    return table([("arm", "k"), ("round", "n"), ("what", ""), ("reason", "")], rows)


def quarantined(path: Path | None, folder: Path) -> str:
    """The first structures of the quarantine ``path`` in ``folder``, with file, place and reason; "" without one."""
    if path is None:
        return ""
    with path.open(encoding="utf-8", newline="") as stream:
        entries = list(csv.DictReader(stream))
    rows = [[file_name(one["file"]), escaped(one["index"]), escaped(one["reason"][:REASON])] for one in entries[:ROWS]]
    where = escaped(path.relative_to(folder).as_posix())
    head = f"<p>{counted(len(entries), 'structure')} of the files could not be used (all in <code>{where}</code>):</p>"
    return head + table([("file", "k"), ("index", "n"), ("reason", "")], rows)


def _broken(sampled: Sampled) -> list[list[str]]:
    """What and reason of the trajectories that broke in a run, and of frames that failed a check; most frequent first."""
    steps: dict[str, list[int]] = {}
    for step, _, _, reason in sampled.ended:
        steps.setdefault(reason, []).append(step)
    found = [
        [f"{counted(len(at), 'trajectory', 'trajectories')} broke", f"{escaped(reason[:REASON])} ({_at_steps(at)})"]
        for reason, at in sorted(steps.items(), key=lambda item: -len(item[1]))
    ]
    if sampled.left_out:
        found.append([f"{counted(sampled.left_out, 'frame', 'frames')} left out", "they failed a check of structures"])
    return found


def _at_steps(steps: Sequence[int]) -> str:
    first, last = min(steps), max(steps)
    return f"at step {first:,}" if first == last else f"between steps {first:,} and {last:,}"
