"""YAML text to plain data that remembers where every key and value stood."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from selectron.errors import SelectronError

KeyPath = tuple[str | int, ...]

_NULL = re.compile(r"~|null|Null|NULL|")
_TRUE, _FALSE = re.compile(r"true|True|TRUE"), re.compile(r"false|False|FALSE")
_INTEGER = re.compile(r"[-+]?[0-9]+|0o[0-7]+|0x[0-9a-fA-F]+")
_FLOAT = re.compile(r"[-+]?(\.[0-9]+|[0-9]+(\.[0-9]*)?)([eE][-+]?[0-9]+)?|[-+]?\.(inf|Inf|INF)|\.(nan|NaN|NAN)")


class _Loader(yaml.SafeLoader):
    """Leaves every plain scalar a string: what it means is decided by the rules of YAML 1.2."""

    yaml_implicit_resolvers: dict[str, list[tuple[str, re.Pattern[str]]]] = {}  # noqa: RUF012  PyYAML's own hook


@dataclass(frozen=True)
class YamlDocument:
    """One YAML file: its ``data`` (dictionaries, lists, numbers, strings) and the places of keys and values in the text.

    Scalars follow the core schema of YAML 1.2: ``1e-3`` is a number, ``no`` and ``off`` are words.
    """

    path: Path
    data: Any
    values: Mapping[KeyPath, tuple[int, int]]
    keys: Mapping[KeyPath, tuple[int, int]]

    def place(self, where: KeyPath, *, key: bool = False) -> str:
        """``file:line:column`` (from 1) of the value at ``where``, or of its key; of what encloses it where it is absent."""
        marks = self.keys if key else self.values
        known = list(where)
        while known and tuple(known) not in marks:
            known.pop()
            marks = self.values
        line, column = marks.get(tuple(known), (1, 1))
        return f"{self.path.name}:{line}:{column}"


def read_yaml(path: str | Path) -> YamlDocument:
    """The document in the file ``path``.

    Raises SelectronError, with line and column, where the file cannot be read, is not YAML, or has a key twice.
    """
    path = Path(path)
    try:
        text = path.read_text(encoding="utf-8")
    except OSError as error:
        raise SelectronError(f"Cannot read {path}: {error.strerror or error}.") from None
    except UnicodeDecodeError as error:
        raise SelectronError(f"{path} is not UTF-8 text (byte {error.start}).") from None
    return parse_yaml(text, path)


def parse_yaml(text: str, path: Path) -> YamlDocument:
    """The document in ``text``; ``path`` names it in errors."""
    try:
        root = yaml.compose(text, Loader=_Loader)
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        where = f"{path.name}:{mark.line + 1}:{mark.column + 1}" if mark else path.name
        raise SelectronError(f"{where}: this is not YAML: {error.problem or error.context}.") from None
    except yaml.YAMLError as error:
        raise SelectronError(f"{path.name} is not YAML: {str(error).splitlines()[0]}.") from None
    if root is None:
        raise SelectronError(f"{path} is empty; 'selectron template campaign' prints a file to start from.")
    builder = _Builder(path)
    return YamlDocument(path, builder.build(root, ()), builder.values, builder.keys)


class _Builder:
    def __init__(self, path: Path) -> None:
        self.path = path
        self.values: dict[KeyPath, tuple[int, int]] = {}
        self.keys: dict[KeyPath, tuple[int, int]] = {}
        self._open: set[int] = set()

    def build(self, node: yaml.Node, where: KeyPath) -> Any:
        self.values[where] = _at(node)
        if isinstance(node, yaml.ScalarNode):
            return self._scalar(node)
        if id(node) in self._open:
            raise self._error(node, "an alias stands inside of what it names")
        self._open.add(id(node))
        if isinstance(node, yaml.SequenceNode):
            data: Any = [self.build(child, (*where, place)) for place, child in enumerate(node.value)]
        else:
            data = self._mapping(node, where)
        self._open.discard(id(node))
        return data

    def _mapping(self, node: yaml.Node, where: KeyPath) -> dict[str, Any]:
        data: dict[str, Any] = {}
        for key_node, value_node in node.value:
            if not isinstance(key_node, yaml.ScalarNode):
                raise self._error(key_node, "a key is a word, not a list or a mapping")
            key = str(key_node.value)
            if key in data:
                first = self.keys[(*where, key)][0]
                raise self._error(
                    key_node, f"the key {key!r} stands here twice (first in line {first}); keep one of them"
                )
            self.keys[(*where, key)] = _at(key_node)
            data[key] = self.build(value_node, (*where, key))
        return data

    def _scalar(self, node: yaml.ScalarNode) -> Any:
        kind = node.tag.rpartition(":")[2]
        if not node.tag.startswith("tag:yaml.org,2002:") or kind not in {"str", "int", "float", "bool", "null"}:
            raise self._error(node, f"the tag {node.tag!r} has no meaning here; write the value without it")
        text = node.value
        if node.style is not None or kind != "str":
            return text
        if _NULL.fullmatch(text):
            return None
        if _TRUE.fullmatch(text) or _FALSE.fullmatch(text):
            return text.lower() == "true"
        if _INTEGER.fullmatch(text):
            return int(text, 0) if text[:2] in {"0o", "0x"} else int(text)
        if _FLOAT.fullmatch(text):
            return _number(text)
        return text

    def _error(self, node: yaml.Node, text: str) -> SelectronError:
        line, column = _at(node)
        return SelectronError(f"{self.path.name}:{line}:{column}: {text}.")


def _number(text: str) -> float:
    lowered = text.lower()
    if lowered.endswith(".inf"):
        return -math.inf if lowered.startswith("-") else math.inf
    return math.nan if lowered == ".nan" else float(text)


def _at(node: yaml.Node) -> tuple[int, int]:
    return node.start_mark.line + 1, node.start_mark.column + 1
