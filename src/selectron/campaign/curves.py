"""What selection saved: labels at equal error, read off two learning curves."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np


class Saving(NamedTuple):
    """Labels that both arms need for the same error.

    ``error`` is the smallest that the selected arm reached, at ``selected`` labels; ``random`` is where the random twin's
    curve first reaches it, None where it never did; ``at_most`` is then how many labels the twin had without reaching it.
    ``random_best`` is the smallest error of the twin, and ``selected_at_random_best`` where the selected arm's curve first
    reaches that, None where it never did.
    """

    quantity: str
    error: float
    selected: float
    random: float | None
    at_most: int
    random_best: float | None = None
    selected_at_random_best: float | None = None

    @property
    def sentence(self) -> str:
        """For a person."""
        unit = "eV/Å" if self.quantity.endswith("eV_A") else "meV/atom"
        name = self.quantity.removesuffix("_eV_A").removesuffix("_meV_atom").replace("_", " ").replace("rmse", "RMSE")
        name = name.replace("mae", "MAE")
        head = f"{name} {self.error:.4g} {unit}: {_count(self.selected)} labels with selection"
        if self.selected == 0:
            return f"{name} {self.error:.4g} {unit} is that of the pretrained model: selection did not lower it."
        if self.random is None:
            rest = f"{head}; random picks did not reach it with {self.at_most}"
            if self.random_best is None or self.selected_at_random_best is None:
                return f"{rest}."
            reached = _count(self.selected_at_random_best)
            return f"{rest} (their best, {self.random_best:.4g}, selection had reached with {reached})."
        saved = 1.0 - self.selected / self.random if self.random > 0 else 0.0
        if abs(self.random - self.selected) < 0.5:
            return f"{head}, as many with random picks: nothing saved."
        word = (
            f"{100 * saved:.0f} % saved" if saved > 0 else f"{_count(self.selected - self.random)} more: nothing saved"
        )
        return f"{head}, {_count(self.random)} with random picks ({word})."


def labels_to_reach(labels: Sequence[int], errors: Sequence[float | None], target: float) -> float | None:
    """Labels at which a learning curve first reaches ``target``, or None where it does not.

    Between measurements the logarithm of the error is taken to be linear in the number of labels, and the curve is its
    lower envelope: an error once reached stays reached. Nothing is extrapolated.
    """
    best_labels, best = None, np.inf
    for count, error in zip(labels, errors, strict=True):
        if error is None or not np.isfinite(error):
            continue
        if error <= target:
            if best_labels is None or best <= error or error <= 0.0:
                return float(count)
            part = (np.log(best) - np.log(target)) / (np.log(best) - np.log(error))
            return float(best_labels + part * (count - best_labels))
        if error < best:
            best_labels, best = count, error
        elif best_labels is not None:
            best_labels = count  # the envelope is flat up to here
    return None


def saving(
    quantity: str,
    selected: tuple[Sequence[int], Sequence[float | None]],
    random: tuple[Sequence[int], Sequence[float | None]],
) -> Saving | None:
    """The comparison at the smallest error of the selected arm; each arm is (labels, errors). None without any error."""
    finite = [error for error in selected[1] if error is not None and np.isfinite(error)]
    if not finite or not random[0]:
        return None
    best = min(finite)
    reached = labels_to_reach(*selected, best)
    assert reached is not None
    of_random = [error for error in random[1] if error is not None and np.isfinite(error)]
    random_best = min(of_random, default=None)
    return Saving(
        quantity,
        best,
        reached,
        labels_to_reach(*random, best),
        max(random[0]),
        random_best,
        None if random_best is None else labels_to_reach(*selected, random_best),
    )


def _count(labels: float) -> str:
    return f"{labels:.0f}"
