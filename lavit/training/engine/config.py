"""Configurations: dataclasses, filled from a YAML file and from ``--key value`` on the command line.

One dataclass describes a run; a field that is itself a dataclass is a section. Precedence: defaults, then the YAML
file, then the command line. Every value is converted to the type of its field, and a key that no field has is an error
that names the nearest ones. Every field needs a default. The resolved configuration goes beside the run with `save`.
"""

from __future__ import annotations

import dataclasses
import difflib
import functools
import os
import types
import typing
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, Literal, TypeVar, Union, get_args, get_origin

import yaml

from lavit.data.atomic_write import atomic_write

Config = TypeVar("Config")


class ConfigError(ValueError):
    """A configuration that cannot be read: the key, what was wanted and what came."""


def setting(default: Any, help: str, **kwargs: Any) -> Any:
    """A dataclass field with a line of help, shown by ``--help``. A callable default makes a new value each time."""
    kind = "default_factory" if callable(default) else "default"
    return dataclasses.field(**{kind: default}, metadata={"help": help}, **kwargs)


# ---------------------------------------------------------------------------------------------------- values and types

TRUE, FALSE = ("true", "yes", "on", "1"), ("false", "no", "off", "0")


def convert(value: Any, kind: Any, where: str) -> Any:
    """`value` as the annotated type `kind`; ConfigError naming `where` if it cannot be.

    Text, as the command line gives it, is read as YAML where a mapping, a [list] or anything at all is wanted; a list
    may also be "a, b".
    """
    origin, inner = get_origin(kind) or kind, get_args(kind)
    if dataclasses.is_dataclass(kind):
        return from_dict(typing.cast(type, kind), value, where)
    if origin in (Union, types.UnionType):
        return _first_that_fits(value, inner, where)
    if origin is Any:
        return _plain(value)
    if origin is Literal:
        wanted = f"one of {', '.join(map(str, inner))}"
        if value in inner:
            return value
    elif origin is bool:
        wanted = "true or false"
        if str(value).lower() in TRUE + FALSE:
            return str(value).lower() in TRUE
    elif origin in (int, float):
        wanted = "a whole number" if origin is int else "a number"
        with suppress(ValueError, TypeError, OverflowError):
            return _number(value, origin)
    elif origin is str:
        wanted = "text"
        if value is not None and not isinstance(value, (Mapping, list, tuple)):
            return str(value).lower() if isinstance(value, bool) else str(value)
    elif origin is dict:
        wanted, found = "a mapping", _plain(value)
        if found is None:
            return {}
        if isinstance(found, Mapping):
            return {str(k): convert(v, inner[1] if inner else Any, f"{where}.{k}") for k, v in found.items()}
    elif origin in (list, tuple):
        if isinstance(value, str):
            value = _plain(value) if value.lstrip().startswith("[") else [v.strip() for v in value.split(",") if v]
        fixed = origin is tuple and inner and inner[-1] is not Ellipsis
        wanted = f"{len(inner)} values" if fixed else "a list"
        if isinstance(value, (list, tuple)) and (not fixed or len(value) == len(inner)):
            kinds = inner if fixed else (inner or [Any])[:1] * len(value)
            return origin(convert(v, k, f"{where}[{i}]") for i, (v, k) in enumerate(zip(value, kinds, strict=True)))
    else:
        raise TypeError(f"{where}: a configuration field cannot have the type {kind!r}")
    raise ConfigError(f"{where}: expected {wanted}, got {value!r}")


def _first_that_fits(value: Any, kinds: Sequence[Any], where: str) -> Any:
    if type(None) in kinds and str(value).lower() in ("none", "null", ""):
        return None
    problems = []
    for kind in kinds:
        if kind is not type(None):
            try:
                return convert(value, kind, where)
            except ConfigError as problem:
                problems.append(problem)
    raise problems[0]


def _number(value: Any, kind: type) -> int | float:
    """ValueError, TypeError or OverflowError where `value` is none. 5e4 and 3.0 are whole numbers to a reader."""
    if isinstance(value, bool):
        raise ValueError
    if kind is float:
        return float(value)
    if isinstance(value, str):
        value = float(value) if set(value) & set(".eE") else int(value)
    if int(value) != value:
        raise ValueError
    return int(value)


def _plain(value: Any) -> Any:
    """A value for an untyped place: text is read as YAML, and numbers like 1e-4, which YAML leaves as text, too."""
    if isinstance(value, str):
        with suppress(yaml.YAMLError):
            value = yaml.safe_load(value)
    if isinstance(value, str) and any(c.isdigit() for c in value):
        with suppress(ValueError):
            return float(value)
    return value


# ------------------------------------------------------------------------------------------- dictionaries, files, words


def from_dict(cls: type[Config], data: Any, where: str = "", base: Config | None = None) -> Config:
    """`base`, or else the defaults of `cls`, changed by nested mappings; ConfigError names an unknown key's nearest."""
    if isinstance(data, cls):
        return data
    if not isinstance(data, Mapping) and data is not None:
        raise ConfigError(f"{where or cls.__name__}: expected a mapping of settings, got {data!r}")
    base = cls() if base is None else base
    hints, changes = typing.get_type_hints(cls), {}
    known = {f.name: f"{where}.{f.name}".lstrip(".") for f in dataclasses.fields(base)}  # type: ignore[arg-type]
    for key, value in (data or {}).items():
        if key not in known:
            raise ConfigError(_unknown(f"{where}.{key}".lstrip("."), list(known.values())))
        part, path = getattr(base, key), known[key]
        section = dataclasses.is_dataclass(part)
        changes[key] = from_dict(type(part), value, path, part) if section else convert(value, hints[key], path)
    return dataclasses.replace(base, **changes)  # type: ignore[type-var]


def to_dict(config: Any) -> Any:
    """Nested plain dictionaries and lists, as YAML writes them."""
    if dataclasses.is_dataclass(config) and not isinstance(config, type):
        config = dataclasses.asdict(config)
    if isinstance(config, Mapping):
        return {str(k): to_dict(v) for k, v in config.items()}
    if isinstance(config, (list, tuple)):
        return [to_dict(v) for v in config]
    return str(config) if isinstance(config, os.PathLike) else config


def to_yaml(config: Any) -> str:
    return yaml.safe_dump(to_dict(config), sort_keys=False, default_flow_style=None, width=100)


def save(config: Any, path: str | os.PathLike) -> None:
    """Writes the resolved configuration as YAML, whole or not at all."""
    with atomic_write(path) as file:
        file.write(to_yaml(config).encode())


EXTENDS = "extends"


def read_yaml(path: str | os.PathLike, presets: Path | None = None) -> dict[str, Any]:
    """The mapping in a YAML file. ``extends: NAME`` in it names the file whose settings come first: NAME.yaml of the
    same folder or, where there is none, of `presets`; nested mappings are merged.

    ConfigError: no such file, not YAML, not a mapping; files that extend each other.
    """
    chain = [Path(path).resolve()]
    data = _read_mapping(path)
    while EXTENDS in data:
        name, here = data.pop(EXTENDS), chain[-1]
        if not isinstance(name, str) or Path(name).name != name:
            raise ConfigError(f"{EXTENDS}: expected the name of a recipe of the same folder, got {name!r} in {here}")
        places = [folder / f"{name.removesuffix('.yaml')}.yaml" for folder in (here.parent, presets) if folder]
        # A recipe may extend the preset of its own name.
        found = next((place for place in places if place.is_file() and place.resolve() != here), places[0])
        if found.resolve() in chain:
            raise ConfigError(f"{EXTENDS}: {here} extends {name}, which extends it in turn")
        chain.append(found.resolve())
        data = _merged(_read_mapping(found), data)
    return data


def _merged(first: Mapping[str, Any], then: Mapping[str, Any]) -> dict[str, Any]:
    """The settings of both; where both have one it is the second's, but for mappings, which are merged."""
    both = dict(first)
    for key, value in then.items():
        inner = both.get(key)
        both[key] = _merged(inner, value) if isinstance(inner, Mapping) and isinstance(value, Mapping) else value
    return both


def _read_mapping(path: str | os.PathLike) -> dict[str, Any]:
    try:
        data = yaml.safe_load(Path(path).read_text(encoding="utf-8"))
    except OSError as problem:
        raise ConfigError(f"config: cannot read {path}: {problem.strerror or problem}") from None
    except (yaml.YAMLError, UnicodeDecodeError) as problem:
        raise ConfigError(f"config: {path} is not a YAML file: {problem}") from None
    if data is not None and not isinstance(data, dict):
        raise ConfigError(f"config: {path} must hold a mapping of settings, got {type(data).__name__}")
    return data or {}


def load(
    cls: type[Config],
    path: str | os.PathLike | None = None,
    overrides: Mapping[str, Any] | None = None,
    presets: Path | None = None,
) -> Config:
    """A `cls` from a YAML file, which may extend one of `presets` (`read_yaml`), and dotted overrides,
    ``{"optimizer.lr": "1e-3"}``.

    A name without its section is enough where only one section has it: ``lr`` for ``optimizer.lr``. What the overrides
    imply for other settings, ``cls.implied`` adds, where the class has it: full names in, full names out.
    """
    data = read_yaml(path, presets) if path is not None else {}
    given = {resolve(cls, key): value for key, value in (overrides or {}).items()}
    implied = getattr(cls, "implied", None)
    for key, value in (given if implied is None else implied(given)).items():
        *sections, last = key.split(".")
        part = data
        for section in sections:
            if part.get(section) is None:
                part[section] = {}
            part = part[section]
            if not isinstance(part, dict):
                raise ConfigError(f"{section}: expected a mapping of settings, got {part!r}")
        part[last] = value
    return from_dict(cls, data)


def words(cls: type, argv: Sequence[str], *, flags: Sequence[str] = ()) -> tuple[dict[str, str], set[str]]:
    """``[--config FILE] [--key value | --section.key value | --key=value]...`` as overrides for `load`.

    `flags` are words without a value that are not settings (``--resume``); those seen are returned as a set. A setting
    that is true or false may stand without its value. ``--config`` is an entry like the others.
    """
    left, given, seen = list(argv), {}, set()
    while left:
        word = left.pop(0)
        if not word.startswith("--") or word == "--":
            raise ConfigError(f"{word}: expected --key value")
        key, equals, value = word[2:].partition("=")
        key = key.replace("-", "_")
        if key in flags and not equals:
            seen.add(key)
            continue
        name = key if key == "config" else resolve(cls, key)
        if not equals:
            if left and not left[0].startswith("--"):
                value = left.pop(0)
            elif names(cls).get(name) is bool:
                value = "true"
            else:
                raise ConfigError(f"--{key}: a value is missing")
        given[name] = value
    return given, seen


def parse(cls: type[Config], argv: Sequence[str], *, flags: Sequence[str] = ()) -> tuple[Config, set[str]]:
    """The configuration that the words of a command line describe, and the flags among them; see `words`."""
    given, seen = words(cls, argv, flags=flags)
    return load(cls, given.pop("config", None), given), seen


# ------------------------------------------------------------------------------------------------------ names and help


def _entries(config: Any, prefix: str = "") -> Iterator[tuple[str, Any, Any, str]]:
    """(dotted name, type, value, help) of every setting, a section before its entries."""
    kinds = typing.get_type_hints(type(config))
    for field in dataclasses.fields(config):
        name, value = prefix + field.name, getattr(config, field.name)
        yield name, kinds[field.name], value, field.metadata.get("help", "")
        if dataclasses.is_dataclass(value):
            yield from _entries(value, name + ".")


@functools.cache
def names(cls: type) -> dict[str, Any]:
    """Dotted names of all settings with their types, a section before its entries."""
    return {name: kind for name, kind, _, _ in _entries(cls())}


def resolve(cls: type, key: str) -> str:
    """The full dotted name of `key`, which may leave out a section; ConfigError where none or several fit."""
    known = names(cls)
    # An entry of a free mapping: its own reader checks the name.
    free = any((get_origin(kind) or kind) is dict and key.startswith(name + ".") for name, kind in known.items())
    fitting = [key] if free or key in known else [name for name in known if name.endswith("." + key)]
    if not fitting:
        raise ConfigError(_unknown(key, list(known)))
    if len(fitting) > 1:
        raise ConfigError(f"--{key}: several settings have this name: {', '.join(fitting)}")
    return fitting[0]


def describe(config: Any) -> str:
    """The settings as ``--help`` shows them: name, help, value. config: a configuration, or its class: the defaults."""
    return "\n".join(
        f"  --{name:<32} {help} [{_shown(value)}]"
        for name, _, value, help in _entries(config() if isinstance(config, type) else config)
        if not dataclasses.is_dataclass(value)
    )


def _shown(value: Any) -> Any:
    """A value as it is written on the command line."""
    value = to_dict(value)
    return "none" if value is None else str(value).lower() if isinstance(value, bool) else value


def _unknown(key: str, known: Sequence[str]) -> str:
    leaves = {name.rpartition(".")[2]: name for name in known}
    near = difflib.get_close_matches(key, known)
    near += [leaves[leaf] for leaf in difflib.get_close_matches(key.rpartition(".")[2], list(leaves))]
    near = list(dict.fromkeys(near))[:3]
    return f"{key}: no such setting" + (f"; did you mean {' or '.join(near)}?" if near else "")
