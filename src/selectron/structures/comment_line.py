"""Entries of the comment line of extended XYZ that ASE reads back as they were.

ASE 3.29 reads a value as numbers or truth values wherever it can, an empty one swallows the key after it, and a list of
unequal lists makes the frame unreadable. What its reader would change is written as JSON, which the same reader decodes
(``key="_JSON …"``); what that cannot hold is written as text or left out, with the reason.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping
from datetime import date, time
from decimal import Decimal
from functools import lru_cache
from numbers import Complex
from pathlib import PurePath
from typing import Any
from uuid import UUID

import numpy as np
from ase.io.extxyz import key_val_str_to_dict, per_config_properties
from ase.spacegroup.spacegroup import Spacegroup

RESERVED = frozenset({"Lattice", "Properties", "pbc"})
"""Keys whose values say how a frame is to be read."""

_TENSORS = frozenset({"stress", "virial"})  # nine numbers or an unreadable frame
_ARRAYS = frozenset(per_config_properties) - {"energy", "free_energy", "magmom"}  # become arrays of numbers when read
_SPECIAL = _TENSORS | _ARRAYS
_UNREAD = "uid"  # in any case: ASE leaves such a value the text that it is
_AS_TEXT = (date, time, PurePath, UUID, Decimal, Complex, Spacegroup)
_LARGEST = 1 << 63

_UNQUOTED = re.compile(r"[^\s\"'{}\[\]=\\,]+")
_BROKEN = re.compile(r"[\x00-\x08\x0a-\x1f\x7f-\x9f\u2028\u2029\ud800-\udfff]")  # ends a line, or is no text
_TEXT = re.compile(
    r"(?!(?:T|F|[tT]rue|TRUE|[fF]alse|FALSE|(?i:nan|inf|infinity))(?![^\s,]))[A-Za-z(\[{<'\"/$@#%&*!?|~^:;][ -~]*"
)
"""Printable ASCII whose first word cannot be taken for a number or a truth value: all of it is read as text."""


def entry(key: Any, value: Any) -> tuple[str, str]:
    """``key=value`` for the comment line ("" where it cannot be written), and what is lost ("" where nothing is)."""
    name = _name(key) if type(key) is str else ""
    if not name:
        return "", "left out, as extended XYZ cannot hold the key"
    if key in _SPECIAL:
        return _special(key, name, value)
    kind = type(value) if key.lower() != _UNREAD else None
    if kind is str:
        if _TEXT.fullmatch(value):
            return f"{name}={_quoted(value)}", ""
    elif kind in _NUMBERS:
        if kind is not int or -_LARGEST <= value < _LARGEST:
            return f"{name}={_NUMBERS[kind](value)}", ""
    elif kind is np.ndarray and value.ndim == 1 and value.size > 1 and value.dtype.char in "dflqi":
        return f'{name}="{" ".join(map(repr, value.tolist()))}"', ""
    return _odd(key, name, value)


@lru_cache(4096)
def _name(key: str) -> str:
    """``key`` as it is written; "" where it cannot be."""
    if not key or key in RESERVED or _BROKEN.search(key):
        return ""
    return _quoted(key)


def _quoted(text: str) -> str:
    if _UNQUOTED.fullmatch(text):
        return text
    escaped = text.replace("\\", "\\\\").replace('"', '\\"')
    return f'"{escaped}"'


def _truth(value: Any) -> str:
    return "T" if value else "F"


def _real(value: Any) -> str:
    return repr(float(value))


_NUMBERS: dict[type, Callable[[Any], str]] = {
    float: repr,
    np.float64: _real,
    np.float32: _real,
    int: repr,
    np.int64: str,
    np.int32: str,
    bool: _truth,
    np.bool_: _truth,
}


def _odd(key: str, name: str, value: Any) -> tuple[str, str]:
    """The first way to write ``value`` that ASE's reader takes back as it was."""
    try:
        plain = pure(value)
        as_json = json.dumps(plain)
    except (TypeError, ValueError, RecursionError):
        if isinstance(value, _AS_TEXT):
            text = value.symbol if isinstance(value, Spacegroup) else str(value)
            written, _ = _odd(key, name, text)
            return written, f"written as text, not as {type(value).__name__}"
        return "", f"left out, as text cannot hold a {type(value).__name__}"
    forms = [f"_JSON {as_json}"]
    if isinstance(plain, str):
        forms.insert(0, plain)
    elif isinstance(plain, bool | int | float):
        forms.insert(0, _NUMBERS[type(plain)](plain))
    changed = ""
    for form in forms:
        if _BROKEN.search(form):
            continue
        written = f"{name}={_quoted(form)}"
        try:
            read = key_val_str_to_dict(f"{written} pbc=T")[key]
        except Exception:  # ASE's reader raises whatever its conversions raise
            continue
        if _same(pure(read), plain) and not (isinstance(value, np.ndarray) and np.shape(read) != value.shape):
            return written, "written with its keys or arrays as JSON has them" if _altered(value) else ""
        changed = changed or written
    if changed:
        return changed, "written in another form than it had"
    return f"{name}={_quoted('_JSON ' + json.dumps(as_json))}", "written as JSON text, which has to be decoded"


def _special(key: str, name: str, value: Any) -> tuple[str, str]:
    """Results of a calculator, which ASE takes out of ``info`` as arrays of numbers."""
    try:
        numbers = np.array(value, dtype=float)
    except (TypeError, ValueError):
        return "", "left out, as it is not made of numbers and ASE reads it as a result of a calculator"
    if key in _TENSORS:
        if numbers.shape == (6,):
            numbers = numbers[[0, 5, 4, 5, 1, 3, 4, 3, 2]].reshape(3, 3)
        if numbers.size != 9:
            return "", "left out, as ASE reads nothing but nine numbers there"
        return f'{name}="{" ".join(map(repr, numbers.reshape(3, 3).ravel(order="F").tolist()))}"', ""
    if numbers.ndim == 1 and numbers.size > 1:
        return f'{name}="{" ".join(map(repr, numbers.tolist()))}"', ""
    return f"{name}={_quoted('_JSON ' + json.dumps(numbers.tolist()))}", ""


def pure(value: Any) -> Any:
    """``value`` out of what JSON knows; raises TypeError where something in it has no such form."""
    if value is None or type(value) in (str, bool, int, float):
        return value
    for kind, known in ((str, str), (bool, np.bool_), (int, int | np.integer), (float, float | np.floating)):
        if isinstance(value, known):
            return kind(value)
    if isinstance(value, np.ndarray) and value.dtype.kind in "biufUO":
        return pure(value.tolist())
    if isinstance(value, list | tuple):
        return [pure(one) for one in value]
    if isinstance(value, Mapping):
        return {str(key) if isinstance(key, str | int) else _no_key(key): pure(one) for key, one in value.items()}
    raise TypeError(f"{type(value).__name__} has no form in JSON")


def _no_key(key: Any) -> str:
    raise TypeError(f"{key!r} is no key in JSON")


def _same(one: Any, other: Any) -> bool:
    """Whether two values out of :func:`pure` are equal; NaN equals itself, a truth value is no number."""
    if isinstance(one, list) and isinstance(other, list):
        return len(one) == len(other) and all(map(_same, one, other))
    if isinstance(one, dict) and isinstance(other, dict):
        return one.keys() == other.keys() and all(_same(one[key], other[key]) for key in one)
    if isinstance(one, bool) or isinstance(other, bool) or not isinstance(one, int | float):
        return type(one) is type(other) and bool(one == other)
    return isinstance(other, int | float) and (one == other or (one != one and other != other))


def _altered(value: Any) -> bool:
    """Whether a mapping in ``value`` has keys that are no text, or arrays, which come back as lists."""
    if isinstance(value, Mapping):
        return any(
            not isinstance(key, str) or isinstance(one, np.ndarray) or _altered(one) for key, one in value.items()
        )
    return isinstance(value, list | tuple) and any(map(_altered, value))
