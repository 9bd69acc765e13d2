"""Epochs of a training, read from mace-torch's results file while it is written."""

from __future__ import annotations

import json
from pathlib import Path
from typing import NamedTuple


class Epoch(NamedTuple):
    """What mace-torch says after an epoch; ``epoch`` is −1 for the model before any step.

    Losses are weighted as the stage weights them and so not comparable between stages. ``train_loss`` is the mean over
    the steps of the epoch, NaN before any step.
    """

    epoch: int
    stage: int
    train_loss: float
    valid_loss: float
    energy_rmse_meV_atom: float
    force_rmse: float
    energy_mae_meV_atom: float
    force_mae: float


class EpochReader:
    """A reader of ``run``'s results that remembers where it stopped."""

    def __init__(self, run: Path, stage_two_start: int | None) -> None:
        self._run, self._start = run, stage_two_start
        self._offset, self._losses = 0, list[float]()

    def new(self) -> list[Epoch]:
        """Epochs that were finished since the last call."""
        files = sorted((self._run / "results").glob("*_train.txt"))
        if not files:
            return []
        with open(files[0], "rb") as stream:
            stream.seek(self._offset)
            content = stream.read()
        whole = content[: content.rfind(b"\n") + 1]
        self._offset += len(whole)
        found = []
        for line in whole.splitlines():
            entry = json.loads(line)
            if entry.get("mode") == "opt":
                self._losses.append(float(entry["loss"]))
            elif entry.get("mode") == "eval":
                found.append(self._epoch(entry))
                self._losses = []
        return found

    def _epoch(self, entry: dict[str, float | None]) -> Epoch:
        number = -1 if entry["epoch"] is None else int(entry["epoch"])
        return Epoch(
            epoch=number,
            stage=2 if self._start is not None and number >= self._start else 1,
            train_loss=sum(self._losses) / len(self._losses) if self._losses else float("nan"),
            valid_loss=_number(entry, "loss"),
            energy_rmse_meV_atom=1e3 * _number(entry, "rmse_e_per_atom"),
            force_rmse=_number(entry, "rmse_f"),
            energy_mae_meV_atom=1e3 * _number(entry, "mae_e_per_atom"),
            force_mae=_number(entry, "mae_f"),
        )


def _number(entry: dict[str, float | None], key: str) -> float:
    value = entry.get(key)
    return float("nan") if value is None else float(value)
