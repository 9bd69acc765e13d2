"""Structures that stand in a pool more than once, told apart from those that differ in their electrons alone."""

from __future__ import annotations

from ase import Atoms

from selectron.structures.electronic_state import StateError, stated
from selectron.wording import counted


class Repeats:
    """Which atoms stood before, by structure hash, and how many of the repeats state another charge or multiplicity.

    A model that sees no electrons cannot tell those from the first; a structure that states nothing differs from no other.
    """

    def __init__(self) -> None:
        self._states: dict[str | bytes, tuple[int | None, int | None]] = {}
        self.other_states = 0

    def seen(self, key: str | bytes, atoms: Atoms) -> bool:
        """Whether the structure hash ``key`` came before; notes it."""
        try:
            state = stated(atoms)[:2]
        except StateError:
            state = (None, None)
        if key not in self._states:
            self._states[key] = _same.setdefault(state, state)
            return False
        self.other_states += any(
            a is not None and b is not None and a != b for a, b in zip(state, self._states[key], strict=True)
        )
        return True


_same: dict[
    tuple[int | None, int | None], tuple[int | None, int | None]
] = {}  # one object a state, however long a pool is


def other_states_line(count: int, what: str) -> str:
    """For people: how many structures of ``what`` are left out though their charge or multiplicity differs; no full stop."""
    return (
        f"{counted(count, 'structure')} of the {what} {'differs' if count == 1 else 'differ'} from an earlier one in charge or "
        "multiplicity alone, which the model does not see: the first is used"
    )
