"""What comes of a training."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from selectron.errors import SelectronError
from selectron.training.evaluate import Errors
from selectron.training.progress import Epoch
from selectron.training.references import ReferenceShift


class TrainingFailed(SelectronError):
    """The training came to nothing: it crashed, diverged or ran out of time. The model that it began with is untouched."""


class FineTuned(NamedTuple):
    """A training that came to an end, and what it was good for.

    ``before`` is the model with its new references, ``untouched`` the model as it was given; all errors are of the
    validation set. ``labels`` are sentences about where labels come from. ``kept_epoch`` is the epoch, counted from 0, whose
    model this is. ``core_s`` is CPU time of the training process, ``seconds`` wall time of everything.
    """

    model_path: Path
    history: list[Epoch]
    kept_epoch: int
    seconds: float
    core_s: float
    references: ReferenceShift | None
    untouched: Errors
    before: Errors
    after: Errors
    n_train: int
    n_valid: int
    warnings: list[str]
    labels: Sequence[str] = ()

    @property
    def improved(self) -> bool:
        """Whether forces or energies of the validation set got better and neither got much worse (a tenth)."""
        energy = self.after.energy_rmse_meV_atom / max(self.before.energy_rmse_meV_atom, 1e-12)
        force = self.after.force_rmse / max(self.before.force_rmse, 1e-12)
        known = [ratio for ratio in (energy, force) if not math.isnan(ratio)]  # NaN: the set has no such labels
        return min(known) < 1.0 and max(known) < 1.1
