"""The picture of a sampling run, from the frames that it wrote."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from ase import Atoms

if TYPE_CHECKING:
    from selectron.potentials import Potential
    from selectron.sampling import GlobalDescriptor
    from selectron.structures import Pool

SHOWN, _BATCH, _MARGIN = 4000, 64, 0.15


def plot_frames(
    pool: Pool,
    potential: Potential,
    descriptor: GlobalDescriptor | None,
    path: Path,
    *,
    name: str,
    thresholds: dict[str, float],
) -> None:
    """Draws up to 4,000 frames of ``pool``, evenly chosen, over the surface or in the plane of their descriptors."""
    from selectron.report.sampling import draw_sampling

    shown = min(len(pool), SHOWN)
    frames = [pool[index] for index in sorted({i * len(pool) // shown for i in range(shown)})]
    planar = getattr(potential, "dimensions", 3) == 2
    quantities = {"bias-norm-below": "bias_norm", "uncertainty-above": "uncertainty"}
    limits = {quantities[kind]: value for kind, value in thresholds.items() if kind in quantities}
    draw_sampling(
        {name: frames},
        path,
        surface=_landscape(potential, frames) if planar else None,
        descriptors=None if planar else {name: _descriptors(potential, descriptor, frames)},
        thresholds=limits or None,
    )


def _landscape(potential: Any, frames: Sequence[Atoms]) -> Any:
    """The surface where the frames are, with a margin."""
    from selectron.potentials import landscape

    points = np.array([atoms.positions[0, :2] for atoms in frames])
    low, high = points.min(0), points.max(0)
    margin = np.maximum(_MARGIN * (high - low), 0.25)
    low, high = low - margin, high + margin
    return landscape(potential, ((float(low[0]), float(high[0])), (float(low[1]), float(high[1]))))


def _descriptors(potential: Potential, descriptor: GlobalDescriptor | None, frames: Sequence[Atoms]) -> np.ndarray:
    """(n, D): the run's own descriptor, else node features where the model has them, else sorted inverse distances."""
    from selectron.sampling import InverseDistances, NodeFeatures

    if descriptor is None:
        descriptor = NodeFeatures() if "node-features" in potential.capabilities else InverseDistances()
    rows = []
    for first in range(0, len(frames), _BATCH):
        batch = potential.batch(frames[first : first + _BATCH])
        features = None
        if descriptor.needs_node_features:
            features = potential.evaluate(batch, forces=False, node_features=True).node_features
        rows.append(descriptor.values(batch.positions, features, batch).double().cpu().numpy())
    return np.concatenate(rows)
