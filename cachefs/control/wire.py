"""Our frozen values to JSON and back, driven by their type hints.

The control socket and every ``--json`` speak this. Keys are field names, enums are their members' names in lower
case, tuples and sets are lists (sets sorted). What comes back must fit the hints exactly: no unknown, missing or
converted values. Pure; knows none of the types it carries.
"""

from __future__ import annotations

import enum
import functools
import json
import math
import types
import typing
from collections.abc import Mapping
from dataclasses import fields, is_dataclass
from pathlib import Path
from typing import Any, TypeAlias, TypeVar

Json: TypeAlias = "bool | int | float | str | list[Json] | dict[str, Json] | None"
T = TypeVar("T")


class WireError(ValueError):
    """A value does not fit; the text starts with where it was found (``copies[0].key``)."""

    def __init__(self, where: str, message: str) -> None:
        super().__init__(f"{where or 'value'}: {message}")


def dumps(value: object, indent: int | None = None) -> str:
    """``value`` as JSON in pure ASCII, so that undecodable bytes in names (surrogates) survive any transport."""
    return json.dumps(to_wire(value), ensure_ascii=True, allow_nan=False, indent=indent)


def loads(form: type[T], text: str | bytes) -> T:
    """The value of type ``form`` that ``dumps`` wrote. Raises ``WireError``."""
    try:
        return from_wire(form, json.loads(text))
    except WireError:
        raise
    except ValueError as error:
        raise WireError("", f"is not JSON ({error})") from error
    except RecursionError:
        raise WireError("", "is nested far deeper than anything that travels") from None


def to_wire(value: object) -> Json:
    """``value`` as what JSON can hold. Raises ``TypeError`` for a value that is none of ours."""
    if isinstance(value, enum.Enum):
        return value.name.lower()
    if value is None or isinstance(value, (bool, int, float, str)):
        return value
    if isinstance(value, Path):
        return str(value)
    if is_dataclass(value) and not isinstance(value, type):
        return {item.name: to_wire(getattr(value, item.name)) for item in fields(value)}
    if isinstance(value, tuple) and hasattr(value, "_fields"):
        return {name: to_wire(getattr(value, name)) for name in value._fields}
    if isinstance(value, tuple):
        return [to_wire(item) for item in value]
    if isinstance(value, frozenset):
        return [to_wire(item) for item in sorted(value)]
    raise TypeError(f"{type(value).__name__} does not travel")


def from_wire(form: type[T], data: object, where: str = "") -> T:
    """The value of type ``form`` that ``to_wire`` turned into ``data``. Raises ``WireError``."""
    value: T = _decode(form, data, where)
    return value


def _decode(form: Any, data: object, where: str) -> Any:
    while isinstance(form, typing.NewType):
        form = form.__supertype__
    origin = typing.get_origin(form)
    if origin in (types.UnionType, typing.Union):
        return _decode_optional(form, data, where)
    if origin in (tuple, frozenset):
        return _decode_collection(form, data, where)
    if isinstance(form, type):
        if issubclass(form, enum.Enum):
            return _decode_enum(form, data, where)
        if is_dataclass(form) or hasattr(form, "_fields"):
            return _decode_record(form, data, where)
        if form in (bool, int, float, str, Path):
            return _decode_plain(form, data, where)
    raise TypeError(f"{where or 'value'}: {form!r} does not travel")


def _decode_plain(form: type, data: object, where: str) -> object:
    """Strict but for two steps that JSON forces: a whole float may be written as an integer, a path is a string.

    JSON can spell surrogates that stand for no byte of any name: no system call takes them."""
    if type(data) is str and not _is_encodable(data):
        raise WireError(where, f"is no text: {data!r:.80}")
    if form is float and type(data) in (int, float):
        number = float(typing.cast(float, data))
        if math.isfinite(number):
            return number
    elif form is Path and type(data) is str:
        return Path(data)
    elif type(data) is form:
        return data
    raise WireError(where, f"is no {form.__name__}: {data!r:.80}")


def _is_encodable(text: str) -> bool:
    try:
        text.encode("utf-8", "surrogateescape")
    except UnicodeEncodeError:
        return False
    return True


def _decode_enum(form: type[enum.Enum], data: object, where: str) -> enum.Enum:
    members = {name.lower(): member for name, member in form.__members__.items()}
    if not isinstance(data, str) or data not in members:
        raise WireError(where, f"is none of {', '.join(members)}: {data!r:.80}")
    return members[data]


def _decode_optional(form: Any, data: object, where: str) -> object:
    """``X | None``; no other union is among our values."""
    others = [item for item in typing.get_args(form) if item is not types.NoneType]
    if len(others) != 1:
        raise TypeError(f"{where or 'value'}: {form!r} does not travel")
    return None if data is None else _decode(others[0], data, where)


def _decode_collection(form: Any, data: object, where: str) -> object:
    """``tuple[X, ...]`` and ``frozenset[X]``."""
    origin, arguments = typing.get_origin(form), typing.get_args(form)
    if origin is tuple and (len(arguments) != 2 or arguments[1] is not Ellipsis):
        raise TypeError(f"{where or 'value'}: {form!r} does not travel")
    if not isinstance(data, list):
        raise WireError(where, f"is no list: {data!r:.80}")
    items = (_decode(arguments[0], item, f"{where}[{index}]") for index, item in enumerate(data))
    return tuple(items) if origin is tuple else frozenset(items)


def _decode_record(form: Any, data: object, where: str) -> object:
    """A dataclass or a named tuple, written as an object."""
    hints = _hints(form)
    if not isinstance(data, dict):
        raise WireError(where, f"is no object: {data!r:.80}")
    unknown = sorted(data.keys() - hints.keys())
    missing = sorted(hints.keys() - data.keys())
    if unknown or missing:
        raise WireError(where, f"has unknown keys {unknown} and lacks {missing}")
    dot = f"{where}." if where else ""
    return form(**{name: _decode(hint, data[name], f"{dot}{name}") for name, hint in hints.items()})


@functools.cache
def _hints(form: Any) -> Mapping[str, Any]:
    hints = typing.get_type_hints(form)
    names = [item.name for item in fields(form)] if is_dataclass(form) else form._fields
    return {name: hints[name] for name in names}
