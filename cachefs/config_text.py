"""The words of a configuration: YAML and environment in, plain data out; what pydantic found, in sentences.

Called by ``config`` only. Scalars stay the text that was written (no octal numbers, no base-60 times, no dates), so
that a token or a name made of digits survives; only null is more than text. Never repeats a value in a problem that
could hold a token.
"""

from __future__ import annotations

import copy
import difflib
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, fields, is_dataclass
from typing import Any, TypeAlias, get_args, get_origin

import yaml
from pydantic import BaseModel, ValidationError
from pydantic.fields import FieldInfo

from cachefs.errors import Problem

Key: TypeAlias = tuple[str | int, ...]
Data: TypeAlias = dict[str, object]

PREFIX = "CACHEFS_"
_ALMOST = 0.9
"""How near a variable must be to one of ours to be taken for it misspelled; the prefix counts as well."""
TOKEN_VARIABLE = "CACHEFS_PLEX_TOKEN"


def dotted(key: Key) -> str:
    """``sources[0].path``."""
    text = "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in key)
    return text.removeprefix(".")


# --- YAML ------------------------------------------------------------------------------------------------------------


class _Loader(yaml.SafeLoader):
    """Text, null, lists and mappings; everything else is text too, or has a tag that is refused."""


_Loader.yaml_implicit_resolvers = {
    first: [pair for pair in resolvers if pair[0].rpartition(":")[2] in ("null", "merge")]
    for first, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
}
_Loader.yaml_constructors = {
    tag: constructor
    for tag, constructor in yaml.SafeLoader.yaml_constructors.items()
    if tag is None or tag.rpartition(":")[2] in ("str", "seq", "map", "null")
}


def read_yaml(text: str) -> tuple[Data, tuple[Problem, ...]]:
    """A whole file: its mapping, or why it cannot be used. An empty file is an empty mapping."""
    value, problems = _parse(text)
    if problems or value is None:
        return {}, problems
    if not isinstance(value, dict):
        return {}, (Problem("", "must hold keys and values, such as mountpoint: /mnt/cachefs"),)
    return value, ()


def _parse(text: str) -> tuple[object, tuple[Problem, ...]]:
    loader = None
    try:
        loader = _Loader(text)
        node = loader.get_single_node()
        if node is None:
            return None, ()
        problems = tuple(_key_problems(node, (), set()))
        return (None, problems) if problems else (loader.construct_document(node), ())
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        place = f"line {mark.line + 1}, column {mark.column + 1}: " if mark else ""
        return None, (Problem("", f"{place}{_without_values(error.problem)}"),)
    except RecursionError:
        return None, (
            Problem("", "is nested far deeper than any configuration; look for brackets that are not closed"),
        )
    except yaml.YAMLError:
        return None, (Problem("", "holds a character that YAML does not allow; save it as plain text"),)
    finally:
        if loader is not None:
            loader.dispose()


def _without_values(problem: str | None) -> str:
    """What is wrong with the YAML, without what was written there: it may be a token that needs quotes."""
    text = re.sub(r"'[^'<]{2,}'", "…", problem or "cannot be understood")
    return f"{text}; check indentation and colons, and put quotes around text with special characters"


def _key_problems(node: yaml.Node, key: Key, seen: set[int]) -> Iterator[Problem]:
    """Keys that are written twice, or are no text: plain YAML would let the last one win."""
    if id(node) in seen:
        return
    seen.add(id(node))
    if isinstance(node, yaml.SequenceNode):
        for index, item in enumerate(node.value):
            yield from _key_problems(item, (*key, index), seen)
    if not isinstance(node, yaml.MappingNode):
        return
    names: set[str] = set()
    for name, value in node.value:
        line = name.start_mark.line + 1
        if not isinstance(name, yaml.ScalarNode) or name.tag.endswith(":null"):
            yield Problem(dotted(key), f"line {line}: a key must be one word")
            continue
        if name.value in names and name.tag != "tag:yaml.org,2002:merge":
            yield Problem(dotted((*key, name.value)), f"line {line}: is written twice; keep one of them")
        names.add(name.value)
        yield from _key_problems(value, (*key, name.value), seen)


# --- the environment -------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Overridden:
    """Data with the environment's overrides in it, and which variable each of them came from."""

    data: Data
    origins: dict[Key, str] = field(default_factory=dict)
    problems: tuple[Problem, ...] = ()
    warnings: tuple[str, ...] = ()


def override(
    data: Mapping[str, object], environ: Mapping[str, str], top_keys: frozenset[str], known: frozenset[str]
) -> Overridden:
    """``data`` with what ``CACHEFS_PLEX__URL`` and its like say; two underscores go one level down.

    Variables with one word after ``CACHEFS_`` count when it is a top key; of others, those that are nearly one of
    ``known`` are refused, and the rest belong to somebody else. ``data`` itself is not changed.
    """
    result: Data = copy.deepcopy(dict(data))
    origins: dict[Key, str] = {}
    problems: list[Problem] = []
    for key, variable in sorted(_variables(environ, top_keys), key=lambda pair: _sortable(pair[0])):
        value, wrong = _environment_value(environ[variable])
        told = [problem.message for problem in wrong] if wrong else _put(result, key, value)
        problems += [Problem(dotted(key), f"{message} (from {variable})") for message in told]
        origins[key] = variable
    problems += _misspelled(environ, top_keys, known)
    warnings = _one_token(result, origins, environ)
    return Overridden(result, origins, tuple(problems), warnings)


def variables_of(model: type[Any], prefix: str = PREFIX) -> frozenset[str]:
    """The variables that a model's keys have, but for those of list items."""
    found = {TOKEN_VARIABLE}
    for name, info in model.model_fields.items():
        inner = _inner(info.annotation)
        found.add(f"{prefix}{name.upper()}")
        if hasattr(inner, "model_fields") and get_origin(info.annotation) is not tuple:
            found |= variables_of(inner, f"{prefix}{name.upper()}__")
    return frozenset(found)


def _misspelled(environ: Mapping[str, str], top_keys: frozenset[str], known: frozenset[str]) -> Iterator[Problem]:
    """Variables of one word that are no key, but were meant for one: others may begin with our name as well."""
    for variable in sorted(environ):
        word = variable.removeprefix(PREFIX)
        ours = variable in known or "__" in word or word.lower() in top_keys
        if not variable.startswith(PREFIX) or not word or ours:
            continue
        of_item = re.fullmatch(r"_*([A-Za-z]+)_+(\d+)_+(\w+)", word)
        if of_item is not None and of_item[1].lower() in top_keys:
            near = [f"{PREFIX}{'__'.join(of_item.groups())}".upper()]
        else:
            near = difflib.get_close_matches(variable.upper(), known, n=1, cutoff=_ALMOST)
        if near:
            yield Problem("", f"there is no variable {variable}; did you mean {near[0]}?")


def _variables(environ: Mapping[str, str], top_keys: frozenset[str]) -> Iterator[tuple[Key, str]]:
    for variable in environ:
        names = variable.removeprefix(PREFIX).lower().split("__")
        if variable.startswith(PREFIX) and (len(names) > 1 or names[0] in top_keys):
            yield tuple(int(name) if name.isdecimal() and len(name) < 10 else name for name in names), variable


def _sortable(key: Key) -> tuple[tuple[bool, int, str], ...]:
    """Numbers among themselves by value: the tenth source comes after the second."""
    return tuple((True, part, "") if isinstance(part, int) else (False, 0, part) for part in key)


def _environment_value(text: str) -> tuple[object, tuple[Problem, ...]]:
    """A variable as YAML would read it where it is quoted, a list or a mapping; text as it stands otherwise."""
    if text.lstrip()[:1] in ("[", "{", '"', "'"):
        return _parse(text)
    return (None if text.strip() in ("", "~", "null", "Null", "NULL") else text), ()


def _put(data: Data, key: Key, value: object) -> list[str]:
    """Set one key, making what leads to it; says why when a list has no such place."""
    node: object = data
    for part, following in zip(key, (*key[1:], None), strict=True):
        child = value if following is None else _container(node, part, following)
        if isinstance(node, dict):
            node[str(part)] = child
        elif isinstance(node, list) and isinstance(part, int):
            if part > len(node):
                return [f"the next free number is {len(node)}"]
            node[part : part + 1] = [child]
        node = child
    return []


def _container(node: object, part: str | int, following: str | int) -> object:
    """What is at ``part`` already if it can hold ``following``, or an empty one that can."""
    child: object = None
    if isinstance(node, dict):
        child = node.get(str(part))
    elif isinstance(node, list) and isinstance(part, int) and part < len(node):
        child = node[part]
    wanted = list if isinstance(following, int) else dict
    return child if isinstance(child, wanted) else wanted()


def _one_token(data: Data, origins: dict[Key, str], environ: Mapping[str, str]) -> tuple[str, ...]:
    """``CACHEFS_PLEX_TOKEN``, and the environment's token in place of the file's. Returns what to warn of."""
    plex = data.get("plex")
    names = {("plex", "token"), ("plex", "token_file")}
    token = environ.get(TOKEN_VARIABLE, "").strip()
    if token and not isinstance(plex, dict):
        return (f"{TOKEN_VARIABLE} is set but there is no plex section: Plex is not followed",)
    if isinstance(plex, dict):
        if token and not names & origins.keys():
            plex["token"] = token
            origins["plex", "token"] = TOKEN_VARIABLE
        if len(names & origins.keys()) == 1:
            (_, other) = next(iter(names - origins.keys()))
            plex.pop(other, None)
    return ()


# --- what pydantic found ---------------------------------------------------------------------------------------------

_SENTENCES = {
    "bool_parsing": "write true or false",
    "bool_type": "write true or false",
    "int_parsing": "write a whole number",
    "int_type": "write a whole number",
    "int_from_float": "write a whole number",
    "string_type": "write text",
    "tuple_type": "write a list, one item to a line, each after a dash",
    "too_short": "name at least one",
    "model_type": "write keys and values below it",
    "dataclass_type": "write keys and values below it",
}


def explain(error: ValidationError, model: type[BaseModel], origins: Mapping[Key, str]) -> Iterator[Problem]:
    """Each thing pydantic refused as a dotted key and a sentence that says what to do."""
    for found in error.errors(include_url=False):
        if found["type"] == "too_short" and found["input"]:
            continue  # pydantic counts only the valid items; what is wrong with the others is reported for each
        key = _written(found["loc"])
        message = _sentence(found["type"], key, model, dict(found))
        unknown = found["type"] == "extra_forbidden"  # then the variable may have named something below it
        near = (
            name for origin, name in origins.items() if key[: len(origin)] == origin[: len(key) if unknown else None]
        )
        variable = next(near, "")
        yield Problem(dotted(key), f"{message} (from {variable})" if variable else message)


def _written(location: Key) -> Key:
    """A place as the file has it: pydantic also names the variant of ``plex.path_map`` that it tried."""
    tried = location[:2] == ("plex", "path_map")
    return location[:2] + location[3:] if tried else location


def _sentence(kind: str, key: Key, model: type[BaseModel], found: dict[str, Any]) -> str:
    context = found.get("ctx", {})
    if kind in ("extra_forbidden", "unexpected_keyword_argument"):
        return _nearest(str(key[-1]), _names_at(model, key[:-1]))
    if kind == "missing" or found["input"] is None:
        example = _example(model, key)
        what = "is missing" if kind == "missing" else "is empty"
        return f"{what}; write it like {key[-1]}: {example}" if example else f"{what}; write a value or remove the line"
    if kind == "value_error":
        return str(context["error"])
    if kind in ("greater_than", "greater_than_equal", "less_than_equal"):
        bound, words = next((context[name], word) for name, word in _BOUNDS if name in context)
        return f"write a value {words} {bound:g}"
    if key == ("plex", "path_map"):
        return "write auto, or a list of {plex: …, mount: …}"
    if kind == "literal_error":
        return f"write {str(context['expected']).replace(chr(39), '')}"
    return _SENTENCES.get(kind, str(found["msg"]))


_BOUNDS = (("gt", "above"), ("ge", "of at least"), ("le", "of at most"))


def _nearest(name: str, known: list[str]) -> str:
    near = difflib.get_close_matches(name.lower(), known, n=1, cutoff=0.5)
    if near:
        return f"there is no such key; did you mean {near[0]}?"
    return f"there is no such key; here may stand {', '.join(known)}"


def _names_at(model: type[Any], key: Key) -> list[str]:
    """The keys that may stand at a place of the configuration."""
    for part in key:
        if isinstance(part, str):
            model = _inner(_field_type(model, part))
    if is_dataclass(model):
        return [item.name for item in fields(model)]
    return list(model.model_fields)


def _example(model: type[Any], key: Key) -> str:
    for part in key[:-1]:
        if isinstance(part, str):
            model = _inner(_field_type(model, part))
    info: FieldInfo | None = getattr(model, "model_fields", {}).get(key[-1])
    return str(info.examples[0]) if info and info.examples else ""


def _field_type(model: type[Any], name: str) -> object:
    info: FieldInfo = model.model_fields[name]
    return info.annotation


def _inner(annotation: object) -> type[Any]:
    """The model or dataclass inside ``X | None``, ``tuple[X, ...]`` and their like."""
    if isinstance(annotation, type) and (issubclass(annotation, BaseModel) or is_dataclass(annotation)):
        return annotation
    for inner in get_args(annotation):
        found = _inner(inner)
        if found is not object:
            return found
    return object
