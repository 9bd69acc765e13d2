"""From a YAML file to a pydantic model; what is wrong is said with its line, and with what would be right."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from difflib import get_close_matches
from pathlib import Path
from types import UnionType
from typing import Annotated, Any, Literal, TypeVar, Union, get_args, get_origin

from pydantic import BaseModel, ConfigDict, ValidationError
from pydantic.fields import FieldInfo

from selectron.config.yaml_document import KeyPath, YamlDocument, read_yaml
from selectron.errors import SelectronError

Model = TypeVar("Model", bound=BaseModel)


class Section(BaseModel):
    """Base of all sections: no unknown keys, no change after reading; a field's docstring is its description."""

    model_config = ConfigDict(extra="forbid", frozen=True, use_attribute_docstrings=True)


def load_yaml(path: str | Path, model: type[Model]) -> Model:
    """The file ``path`` as a ``model``; relative paths in it are taken from the file's own folder.

    Raises SelectronError with ``file:line:column`` for each mistake: unknown keys (with the nearest known one), missing
    ones, wrong values, keys that stand twice, and what is no YAML.
    """
    return checked(read_yaml(path), model)


def checked(document: YamlDocument, model: type[Model]) -> Model:
    """``document`` as a ``model``; raises as :func:`load_yaml` does."""
    if not isinstance(document.data, dict):
        raise SelectronError(f"{document.place(())}: a mapping of keys to values belongs here.")
    try:
        return model.model_validate(document.data, context={"folder": document.path.resolve().parent})
    except ValidationError as error:
        mistakes = _without_echoes(model, error.errors())
        lines = [sentence for _, sentence in sorted(_sentence(document, model, one) for one in mistakes)]
    if len(lines) == 1:
        raise SelectronError(lines[0])
    raise SelectronError(
        f"{document.path.name} has {len(lines)} mistakes:\n" + "\n".join(f"  {line}" for line in lines)
    )


def _without_echoes(model: type[BaseModel], errors: Sequence[Any]) -> list[Any]:
    """``errors`` without keys that are missing because they stand there misspelt."""
    meant = set()
    for error in errors:
        if error["type"] == "extra_forbidden":
            inside = error["loc"][:-1]
            meant |= {(inside, near) for near in _close(error["loc"][-1], _keys_at(model, inside))}
    return [one for one in errors if one["type"] != "missing" or (one["loc"][:-1], one["loc"][-1]) not in meant]


def _sentence(document: YamlDocument, model: type[BaseModel], error: Mapping[str, Any]) -> tuple[int, str]:
    """The line of a mistake, and what to say of it."""
    key, where, text = _explained(document, model, error)
    place = document.place(where, key=key)
    return int(place.split(":")[-2]), f"{place}: {text}"


def _explained(document: YamlDocument, model: type[BaseModel], error: Mapping[str, Any]) -> tuple[bool, KeyPath, str]:
    """Whether a key or its value is wrong, where it stands, and why."""
    where = _path_in(document.data, error["loc"])
    kind, context = error["type"], error.get("ctx", {})
    if kind == "extra_forbidden":
        known = _keys_at(model, error["loc"][:-1])
        return True, where, _unknown(where, known)
    if kind == "missing":
        inside = f" of '{_dotted(where)}'" if where else ""
        return False, where, f"the key '{error['loc'][-1]}'{inside} is missing."
    if kind in {"literal_error", "enum", "union_tag_invalid"}:
        choices = _choices(context.get("expected") or context.get("expected_tags") or "")
        given = _value(document.data, where)
        if kind == "union_tag_invalid":
            tag = str(context.get("discriminator", "kind")).strip("'")
            where, given = (*where, tag), context.get("tag", given)
        near = _nearest(given, choices) or "."
        return False, where, f"{_dotted(where)} is {given!r}{near} {_of(choices)}."
    if kind == "union_tag_not_found":
        tag = str(context.get("discriminator", "kind")).strip("'")
        return False, where, f"the key '{tag}' of '{_dotted(where)}' is missing; it says which kind it is."
    reason = str(error["msg"]).removeprefix("Value error, ").removeprefix("Assertion failed, ").rstrip(".")
    if not where:
        return False, where, f"{reason}."
    given = _value(document.data, where)
    shown = f" (it is {given!r})" if not isinstance(given, dict | list) else ""
    return False, where, f"{_dotted(where)}: {reason[:1].lower() + reason[1:]}{shown}."


def _unknown(where: KeyPath, known: Sequence[str]) -> str:
    inside = f" of '{_dotted(where[:-1])}'" if len(where) > 1 else ""
    near = _nearest(where[-1], known) or "."
    listed = f" Its keys are {', '.join(known)}." if known else ""
    return f"'{where[-1]}' is no key{inside}{near}{listed}"


def _nearest(given: object, known: Sequence[str]) -> str:
    near = _close(given, known)
    return f"; did you mean {near[0]!r}?" if near else ""


def _close(given: object, known: Sequence[str]) -> list[str]:
    """The one of ``known`` that is most like ``given``, if any is."""
    lowered = {name.lower(): name for name in known}
    near = get_close_matches(str(given).lower(), list(lowered), n=1, cutoff=0.6)
    return [lowered[one] for one in near if lowered[one] != given]


def _of(choices: Sequence[str]) -> str:
    return f"It may be {choices[0]}" if len(choices) == 1 else f"It may be one of {', '.join(choices)}"


def _choices(expected: str) -> list[str]:
    return [part.strip().strip("'") for part in expected.replace(" or ", ", ").split(",") if part.strip()]


def _path_in(data: Any, location: Sequence[str | int]) -> KeyPath:
    """``location`` without what pydantic adds to it: tags of unions, names of validators, a key that is missing."""
    where: list[str | int] = []
    for part in location:
        if (isinstance(data, dict) and part in data) or (isinstance(data, list) and isinstance(part, int)):
            where.append(part)
            data = data[part]  # type: ignore[index]
    return tuple(where)


def _value(data: Any, where: KeyPath) -> Any:
    for part in where:
        data = data[part]
    return data


def _dotted(where: KeyPath) -> str:
    text = ""
    for part in where:
        text += f"[{part}]" if isinstance(part, int) else f".{part}" if text else part
    return text


def _keys_at(model: type[BaseModel], location: Sequence[str | int]) -> list[str]:
    """The keys that the model at ``location`` has; several where a union leaves it open."""
    kinds: list[Any] = [model]
    for part in location:
        entered: list[Any] = []
        for kind in kinds:
            entered += _enter(kind, part)
        kinds = entered or kinds
    keys: dict[str, None] = {}
    for kind in kinds:
        if _is_model(kind):
            keys.update(dict.fromkeys(field.alias or name for name, field in kind.model_fields.items()))
    return list(keys)


def _enter(kind: Any, part: str | int) -> list[Any]:
    """The types that may stand under ``part`` of ``kind``: a field, an entry of a list, or a member of a union by tag."""
    if _is_model(kind):
        if part in kind.model_fields:
            return _members(kind.model_fields[part].annotation)
        return [kind] if part == kind.__name__ or part in _tags(kind) else []
    entries = [one for one in get_args(kind) if one is not ...]
    return _members(entries[-1]) if entries and isinstance(part, int) else []


def _members(annotation: Any) -> list[Any]:
    origin = get_origin(annotation)
    if origin is Annotated:
        return _members(get_args(annotation)[0])
    if origin in {Union, UnionType}:
        return [member for one in get_args(annotation) for member in _members(one)]
    return [annotation]


def _tags(kind: type[BaseModel]) -> set[str]:
    fields: Mapping[str, FieldInfo] = kind.model_fields
    return {
        str(tag)
        for field in fields.values()
        if get_origin(field.annotation) is Literal
        for tag in get_args(field.annotation)
    }


def _is_model(kind: Any) -> bool:
    return isinstance(kind, type) and issubclass(kind, BaseModel)
