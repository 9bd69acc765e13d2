"""Sets of several levels of theory, whose frames say which by ``head`` (mace-torch's key for models with several heads)."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import NamedTuple

from ase import Atoms

from selectron.errors import SelectronError
from selectron.wording import counted, listed

HEAD_KEY = "head"


class OfOneHead(NamedTuple):
    """Places of the structures that are used, and a sentence where they are not all, or empty."""

    places: list[int]
    note: str = ""


def head_of(atoms: Atoms) -> str | None:
    """What the structure says its head is; None where it says nothing."""
    given = atoms.info.get(HEAD_KEY)
    return None if given is None or given == "" else str(given)


def of_one_head(structures: Sequence[Atoms], head: str | None, *, what: str = "training") -> OfOneHead:
    """The structures of one head: all, where they say the same or nothing, else those that say ``head``.

    Raises SelectronError where they say different heads and ``head`` is none of them.
    """
    said = [head_of(atoms) for atoms in structures]
    counts = Counter(said)
    if len(counts) < 2:
        only = said[0] if said else None
        if only is None or head is None or only == head:
            return OfOneHead(list(range(len(said))))
        return OfOneHead(
            list(range(len(said))), f"The structures of the {what} set say head={only}, not {head}; all are used."
        )
    check_heads(counts, head, what=what)
    places = [place for place, name in enumerate(said) if name == head]
    return OfOneHead(
        places,
        f"Of the {what} set {counted(len(places), 'structure')} with head={head} of {counted(len(said), 'structure')} are used "
        f"(head: {_named(counts)}).",
    )


def check_heads(counts: Mapping[str | None, int], head: str | None, *, what: str = "training") -> None:
    """Raises SelectronError where structures say different heads (``counts``, by head) and ``head`` is none of them."""
    if len(counts) > 1 and (head is None or head not in counts):
        raise SelectronError(
            f"The {what} set holds structures of several heads, which are levels of theory: {_named(counts)}; name one of "
            f"them with --head{'' if head is None else f', which is {head} now'}, or leave out the others."
        )


def _named(counts: Mapping[str | None, int]) -> str:
    return listed([f"{name or 'none'} in {count:,}" for name, count in Counter(dict(counts)).most_common(12)])
