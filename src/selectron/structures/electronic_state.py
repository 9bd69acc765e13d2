"""Total charge and spin multiplicity, as a structure states them under the names that programs and data sets use.

| what         | names in ``info`` (in any case, with or without _ and -)                        | read as                     |
|--------------|---------------------------------------------------------------------------------|-----------------------------|
| charge       | charge, total_charge, net_charge, molecular_charge                              | e, a whole number           |
| multiplicity | multiplicity, spin_multiplicity, molecular_multiplicity, mult, spin, total_spin | 2S + 1, a whole number >= 1 |

Besides: a comment line of two whole numbers (charge, multiplicity), the sum of the array ``initial_charges`` where it is not
zero, and, where nothing else states a multiplicity, the sum of ``initial_magmoms`` (unpaired electrons 2S) where it is not
zero: these moments are a start of the SCF and need not be its end. A key that looks like one of these and is not known is never
read, but named (:class:`Unread`). Sources of the conventions: docs/charge-and-spin.md.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from functools import lru_cache
from typing import Any, Literal, NamedTuple

import numpy as np
from ase import Atoms

Quantity = Literal["charge", "multiplicity"]

COMMENT_LINE, MOMENTS = "comment line", "initial_magmoms"
"""How a pair of whole numbers in place of a comment, and the sum of initial magnetic moments, are called among the keys."""

_KNOWN: dict[str, Quantity] = {
    **dict.fromkeys(("charge", "totalcharge", "netcharge", "molecularcharge"), "charge"),
    **dict.fromkeys(
        ("multiplicity", "spinmultiplicity", "molecularmultiplicity", "mult", "spin", "totalspin"), "multiplicity"
    ),
}
_LIKE_CHARGE = re.compile(r"charge|chg|^(tot)?q(tot|total|net)?$")
_LIKE_SPIN = re.compile(r"spin|multiplic|^s?mult$|unpaired|magmom|magneti|^n?uhf$|^2?s$|^nopen$")
_WEIGHT = re.compile(r"^config_.*weight$")  # mace-torch's factors of the loss
_WHOLE = re.compile(r"^[+-]?\d+$")
_PAIR = re.compile(r"^\s*([+-]?\d+)[\s,;]+(\d+)\s*$")
_PLAUSIBLE_CHARGE, _PLAUSIBLE_MULTIPLICITY = 10, 11  # of a comment line, which may count frames instead
_NEARLY = 0.05  # what the sum over atoms may be off a whole number: arrays are rounded
_NOTHING = ("", "none", "null")


class ElectronicState(NamedTuple):
    """Total charge in e and spin multiplicity 2S + 1."""

    charge: int = 0
    multiplicity: int = 1


class Unread(NamedTuple):
    """A key that looks like a charge or a multiplicity and is not read as one.

    ``telling``: it holds a number that does not mean neutral, or no unpaired electrons.
    """

    key: str
    value: str
    telling: bool


class Stated(NamedTuple):
    """What a structure says of its electrons: None where it says nothing; ``…_from`` are the keys that said it."""

    charge: int | None
    multiplicity: int | None
    charge_from: tuple[str, ...] = ()
    multiplicity_from: tuple[str, ...] = ()
    unread_charge: tuple[Unread, ...] = ()
    unread_multiplicity: tuple[Unread, ...] = ()


class StateError(ValueError):
    """A charge or multiplicity that cannot be meant, or two that contradict each other; the text names the keys."""


class _Said(NamedTuple):
    key: str
    shown: str
    value: int


def stated(atoms: Atoms) -> Stated:
    """What ``atoms`` states about charge and multiplicity.

    Raises:
        StateError: a value is no whole number, a multiplicity is below 1, or two keys contradict each other.
    """
    said: dict[Quantity, list[_Said]] = {"charge": [], "multiplicity": []}
    unread: dict[Quantity, list[_Seen]] = {"charge": [], "multiplicity": []}
    for key, value in atoms.info.items():
        quantity, known = _meaning(str(key))
        if quantity is None:
            continue
        if not known:
            unread[quantity].append(_Seen(str(key), value))
        elif not _empty(value):
            said[quantity].append(_Said(key, f"{key}={value}", _number(value, key, quantity)))
    _read_comment(atoms.info, said, unread)
    for name, values in atoms.arrays.items():
        if name in ("initial_charges", MOMENTS):
            _read_initial(name, values, said, unread)
        elif (quantity := _meaning(name)[0]) is not None:
            unread[quantity].append(_Seen(name, values))
    for name, value in getattr(atoms.calc, "results", {}).items():
        if (quantity := _meaning(name)[0]) is not None:
            unread[quantity].append(_Seen(name, value))
    charge, multiplicity = _one(said["charge"]), _one(said["multiplicity"])
    return Stated(
        charge,
        multiplicity,
        tuple(one.key for one in said["charge"]),
        tuple(one.key for one in said["multiplicity"]),
        tuple(_unread(unread["charge"], "charge", charge)),
        tuple(_unread(unread["multiplicity"], "multiplicity", multiplicity)),
    )


def named(atoms: Atoms) -> dict[str, Any]:
    """``atoms.info`` with what it states as ``charge`` and ``multiplicity`` besides; as it is where it contradicts itself.

    Other spellings, which say the same, stay: fairchem reads ``spin``, mace-torch ``total_charge`` and ``total_spin``.
    """
    try:
        found = stated(atoms)
    except StateError:
        return dict(atoms.info)
    return {**atoms.info, **_given(found.charge, found.multiplicity)}


def state_info(atoms: Atoms) -> dict[str, Any]:
    """The part of :func:`named` that is about charge and multiplicity of the whole structure, read or not."""
    return {
        key: value
        for key, value in named(atoms).items()
        if (_meaning(str(key))[0] and np.size(value) == 1) or _of_comment(key, value)
    }


def with_state(info: Mapping[str, Any], charge: int | None, multiplicity: int | None) -> dict[str, Any]:
    """``info`` with ``charge`` and ``multiplicity`` where they are given; a comment line that said them goes."""
    pair = _pair(info) is not None
    result = {key: value for key, value in info.items() if not (pair and _of_comment(key, value))}
    return result | _given(charge, multiplicity)


def _given(charge: int | None, multiplicity: int | None) -> dict[str, int]:
    both = {"charge": charge, "multiplicity": multiplicity}
    return {key: value for key, value in both.items() if value is not None}


def comment_pair(line: str) -> str | None:
    """The two whole numbers that are all of a comment line, as "charge multiplicity"; None for any other line."""
    found = _PAIR.match(line)
    return None if found is None else f"{int(found[1])} {int(found[2])}"


class _Seen(NamedTuple):
    key: str
    value: Any


@lru_cache(maxsize=4096)
def _meaning(key: str) -> tuple[Quantity | None, bool]:
    """What ``key`` is about, and whether it is known as that."""
    plain = re.sub(r"[^a-z0-9]", "", key.lower())
    if plain in _KNOWN:
        return _KNOWN[plain], True
    if _WEIGHT.match(key):
        return None, False
    if _LIKE_CHARGE.search(plain):
        return "charge", False
    return ("multiplicity" if _LIKE_SPIN.search(plain) else None), False


def _empty(value: Any) -> bool:
    if isinstance(value, str):
        return value.strip().lower() in _NOTHING
    return value is None or np.size(value) == 0


def _number(value: Any, key: str, quantity: Quantity) -> int:
    """The whole number ``value``, which may be text or an array of one number; raises StateError."""
    single = np.asarray(value).item() if np.size(value) == 1 and not isinstance(value, str) else value
    try:
        number = float(single)
        if isinstance(single, bool) or number != int(number):
            raise ValueError
    except (TypeError, ValueError, OverflowError):
        raise StateError(f"{key} is {_shown(value)}, not a whole number") from None
    if quantity == "multiplicity" and number < 1:
        raise StateError(f"{key} is {int(number)}, but a multiplicity 2S + 1 is at least 1")
    return int(number)


def _read_comment(
    info: Mapping[str, Any], said: dict[Quantity, list[_Said]], unread: dict[Quantity, list[_Seen]]
) -> None:
    """A comment line of two whole numbers; of one with a sign, or of more, the first is only named."""
    pair = _pair(info)
    if pair is not None:
        charge, multiplicity = pair
        if abs(charge) <= _PLAUSIBLE_CHARGE and 1 <= multiplicity <= _PLAUSIBLE_MULTIPLICITY:
            shown = f'the comment line "{charge} {multiplicity}"'
            said["charge"].append(_Said(COMMENT_LINE, shown, charge))
            said["multiplicity"].append(_Said(COMMENT_LINE, shown, multiplicity))
        else:
            unread["charge"].append(_Seen(COMMENT_LINE, f"{charge} {multiplicity}"))
        return
    flags = _flags(info)
    if len(flags) > 1 or (flags and flags[0][0] in "+-"):
        neutral = flags[:2] == ["0", "1"] or flags == ["0"]
        unread["charge"].append(_Seen(COMMENT_LINE, 0 if neutral else " ".join(flags)))


def _flags(info: Mapping[str, Any]) -> list[str]:
    """Whole numbers of a comment line, which ASE's reader of extended XYZ turns into keys that are true, in their order."""
    return [key for key, value in info.items() if _is_flag(key, value)]


def _is_flag(key: Any, value: Any) -> bool:
    return isinstance(key, str) and isinstance(value, bool | np.bool_) and bool(value) and bool(_WHOLE.match(key))


def _pair(info: Mapping[str, Any]) -> tuple[int, int] | None:
    """The two whole numbers that are all of a comment line."""
    comment = info.get("comment")
    if isinstance(comment, str) and (found := _PAIR.match(comment)):
        return int(found[1]), int(found[2])
    if isinstance(comment, np.ndarray) and comment.shape == (2,) and comment.dtype.kind == "i":
        return int(comment[0]), int(comment[1])
    flags = _flags(info)
    if len(flags) == 2 and not any(
        isinstance(value, bool | np.bool_) and key not in flags for key, value in info.items()
    ):
        return int(flags[0]), int(flags[1])
    return None


def _of_comment(key: Any, value: Any) -> bool:
    """Whether an entry of ``info`` holds a comment line of whole numbers."""
    return _is_flag(key, value) or (key == "comment" and _pair({key: value}) is not None)


def _read_initial(
    name: str, values: np.ndarray, said: dict[Quantity, list[_Said]], unread: dict[Quantity, list[_Seen]]
) -> None:
    """Sums over ASE's initial charges and initial magnetic moments (in μ_B: unpaired electrons)."""
    quantity: Quantity = "charge" if name == "initial_charges" else "multiplicity"
    total = _sum(values)
    second = quantity == "multiplicity" and said[quantity]
    if second or total is None or values.ndim != 1 or abs(total - round(total)) > _NEARLY:
        unread[quantity].append(_Seen(name, values))
    elif round(total):
        value = round(total) if quantity == "charge" else abs(round(total)) + 1
        said[quantity].append(_Said(name, f"the sum {total:g} of {name}", value))


def _one(said: list[_Said]) -> int | None:
    for other in said[1:]:
        if other.value != said[0].value:
            raise StateError(f"{said[0].shown} and {other.shown} contradict each other")
    return said[0].value if said else None


def _unread(seen: list[_Seen], quantity: Quantity, known: int | None) -> Iterator[Unread]:
    """Those of ``seen`` that say something else than what is known."""
    for key, value in seen:
        total = _sum(value)
        if _empty(value) or value is False or (total is not None and _says_no_more(total, key, quantity, known)):
            continue
        text = isinstance(value, str) and bool(re.search(r"\d", value))
        many = np.size(value) > 1 and total is not None
        yield Unread(key, f"{total:g} in all" if many else _shown(value), total is not None or text)


def _says_no_more(total: float, key: str, quantity: Quantity, known: int | None) -> bool:
    """Whether ``total`` under a key of unknown convention agrees with ``known``, or means neutral or singlet."""
    if quantity == "charge":
        return abs(total - (known or 0)) < 0.5
    if known is not None:
        return min(abs(abs(total) - other) for other in (known, known - 1, (known - 1) / 2)) < 0.25
    return abs(total) < 0.5 or (total == 1.0 and "mult" in key.lower())


def _sum(value: Any) -> float | None:
    """The sum of numbers, the length of the sum of vectors; None for anything else (also for booleans)."""
    if isinstance(value, str):
        try:
            return float(value)
        except ValueError:
            return None
    try:
        numbers = np.asarray(value)
    except ValueError:  # lists of lists of different lengths
        return None
    if numbers.dtype.kind not in "iuf" or not np.isfinite(numbers).all():
        return None
    return float(numbers.sum()) if numbers.ndim < 2 else float(np.linalg.norm(numbers.sum(axis=0)))


def _shown(value: Any) -> str:
    plain = value.item() if isinstance(value, np.generic) else value
    text = repr(plain)
    return text if len(text) <= 40 else f"{text[:37]}..."
