"""Parity plots of a campaign: what the models say against what the labels say, before and after."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import LogNorm
from matplotlib.ticker import MaxNLocator

from selectron.report.campaign_points import read_structures
from selectron.report.campaign_style import ACCENT, ARM_NAMES, INK, ROUNDS, SELECTED, dress, sheet, svg
from selectron.report.campaign_summary import number

if TYPE_CHECKING:
    from selectron.campaign.measuring import Predictions
    from selectron.campaign.records import ArmRecord, CampaignRecord, Measured, RoundRecord

DENSE = 1500  # more points than this are drawn as a density


def parity(record: CampaignRecord) -> str:
    """Predicted against reference energies and force components, before and after; "" before anything is measured."""
    columns: list[tuple[str, Measured]] = []
    if record.start is not None and record.start.test is not None:
        columns.append(("before", record.start.test))
    for arm in record.arms:
        last = _last_measured(arm)
        if last is not None and last.test is not None:
            columns.append((f"{ARM_NAMES[arm.name]}, {last.labels:,} labels", last.test))
    if not columns:
        return ""
    read = [(name, one, one.predictions()) for name, one in columns]
    figure = sheet(2.85 * len(read) + 0.3, 5.5)
    grid = figure.subplots(2, len(read), squeeze=False, sharex="row", sharey="row")
    constants, counted = _composition(record, read[0][2])
    energies = [
        tuple((energy - constants) / found.atoms for energy in (found.energy_label_eV, found.energy_eV))
        for _, _, found in read
    ]
    forces = [(found.force_labels.ravel(), found.forces.ravel()) for _, _, found in read]
    limits = _limits(energies), _limits(forces)
    for column, (name, one, _) in enumerate(read):
        errors = (
            (one.energy_rmse_meV_atom, one.energy_mae_meV_atom, "meV/atom"),
            (one.force_rmse_eV_A, one.force_mae_eV_A, "eV/Å"),
        )
        for row, pairs in enumerate((energies, forces)):
            axes = grid[row, column]
            _cloud(axes, pairs[column][0], pairs[column][1], limits[row])
            rmse, mae, unit = errors[row]
            axes.text(
                0.04,
                0.96,
                f"RMSE {number(rmse)}\nMAE {number(mae)} {unit}",
                transform=axes.transAxes,
                va="top",
                fontsize=8,
                color=INK,
            )
            if row == 0:
                axes.set_title(name, loc="left", color=INK, fontsize=9)
            axes.set_xlabel(("label, energy (eV/atom)", "label, force component (eV/Å)")[row])
            if column == 0:
                axes.set_ylabel(("model (eV/atom)", "model (eV/Å)")[row])
            dress(axes)
    count = read[0][1].structures
    words = "; ".join(
        f"{name}: energy RMSE {number(one.energy_rmse_meV_atom)} meV/atom, force RMSE {number(one.force_rmse_eV_A)} eV/Å"
        for name, one, _ in read
    )
    caption = (
        f"Model against label on the {count:,} test structures. Energies per atom are counted from {counted}, the same for "
        "labels and models, so a shift between levels of theory stays visible. More than "
        f"{DENSE:,} points are drawn as a density (brighter is denser, logarithmic)."
    )
    return svg(figure, f"Parity plots on the test set. {words}.", caption=caption)


def _composition(record: CampaignRecord, found: Predictions) -> tuple[np.ndarray, str]:
    """(n,) eV that the parity plots of energies are counted from, and what they are.

    Total energies differ between compositions by far more than any model errs. So a sum of constants of the elements, fitted
    to the labels, is taken off; the mean energy of an atom where the data does not determine them.
    """
    mean = float((found.energy_label_eV / found.atoms).mean())
    plain = mean * found.atoms, "the mean of the labels"
    structures = read_structures(record.test_path)
    if len(structures) != len(found.atoms) or any(
        len(atoms) != count for atoms, count in zip(structures, found.atoms, strict=True)
    ):
        return plain
    elements = np.unique(np.concatenate([atoms.numbers for atoms in structures]))
    counts = np.array([[np.count_nonzero(atoms.numbers == z) for z in elements] for atoms in structures], dtype=float)
    if len(structures) < 3 * len(elements) or not np.isfinite(found.energy_label_eV).all():
        return plain
    weight = 1.0 / found.atoms
    constants, *_ = np.linalg.lstsq(counts * weight[:, None], found.energy_label_eV * weight, rcond=None)
    return counts @ constants, "a sum over atoms of one constant an element, fitted to the labels"


def _last_measured(arm: ArmRecord) -> RoundRecord | None:
    done = [one for one in arm.rounds if one.finished]
    return done[-1] if done else None


def _limits(pairs: Sequence[tuple[np.ndarray, ...]]) -> tuple[float, float]:
    """Shared by all columns of a row: the labels decide, and predictions up to half their range beyond."""
    labels, said = (np.concatenate([pair[k] for pair in pairs]) for k in range(2))
    labels, said = labels[np.isfinite(labels)], said[np.isfinite(said)]
    low, high = (float(labels.min()), float(labels.max())) if labels.size else (0.0, 1.0)
    room = 0.5 * (high - low) or 0.5
    if said.size:
        low, high = max(min(low, float(said.min())), low - room), min(max(high, float(said.max())), high + room)
    margin = 0.04 * (high - low) or 0.5
    return low - margin, high + margin


def _cloud(axes: Axes, label: np.ndarray, said: np.ndarray, limits: tuple[float, float]) -> None:
    """Points, or a density where there are many; what lies beyond the frame stands at its edge and is counted."""
    known = np.isfinite(label) & np.isfinite(said)
    label, said = label[known], said[known]
    beyond = int(((said < limits[0]) | (said > limits[1])).sum())
    shift = float((said - label).mean()) if beyond > 0.5 * len(said) else 0.0
    said = np.clip(said, *limits)
    axes.plot(limits, limits, color=INK, linewidth=0.7, alpha=0.6, zorder=1)
    if len(label) > DENSE:
        counts, x, y = np.histogram2d(label, said, bins=110, range=(limits, limits))
        masked = np.ma.masked_less(counts.T, 1)
        axes.pcolormesh(x, y, masked, cmap=ROUNDS, norm=LogNorm(1, max(2, counts.max())), rasterized=True, zorder=2)
    else:
        axes.scatter(label, said, s=7, color=SELECTED, alpha=0.45, linewidths=0, zorder=2, rasterized=len(label) > 400)
    axes.set(xlim=limits, ylim=limits, aspect="equal")
    for axis in (axes.xaxis, axes.yaxis):
        axis.set_major_locator(MaxNLocator(5))
    notes = [f"{beyond:,} beyond the frame"] if beyond else []
    notes += [f"mean error {number(shift)}".replace("-", "−")] if shift else []
    notes += [f"{int((~known).sum()):,} not finite"] if not known.all() else []
    if notes:
        axes.text(0.97, 0.03, "\n".join(notes), transform=axes.transAxes, ha="right", fontsize=7.5, color=ACCENT)
