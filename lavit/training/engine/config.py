"""Configurations: dataclasses, filled from a YAML file and from ``--key value`` on the command line.

One dataclass describes a run; a field that is itself a dataclass is a section. Precedence: defaults, then the YAML
file, then the command line. Every value is converted to the type of its field, and a key that no field has is an error
that names the nearest ones. The resolved configuration goes beside the run with `save`.
"""

from __future__ import annotations

import dataclasses
import difflib
import io
import os
import types
import typing
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, TypeVar, Union, get_args, get_origin

import yaml

from lavit.data.atomic_write import atomic_write

Config = TypeVar("Config")


class ConfigError(ValueError):
    """A configuration that cannot be read: the key, what was wanted and what came."""


def setting(default: Any, help: str, **kwargs: Any) -> Any:
    """A dataclass field with a line of help, shown by ``--help``. A callable default makes a new value each time."""
    if callable(default):
        return dataclasses.field(default_factory=default, metadata={"help": help}, **kwargs)
    return dataclasses.field(default=default, metadata={"help": help}, **kwargs)


# ---------------------------------------------------------------------------------------------------- values and types


def convert(value: Any, kind: Any, where: str) -> Any:
    """`value` as the annotated type `kind`; ConfigError naming `where` if it cannot be."""
    origin, arguments = get_origin(kind), get_args(kind)
    if kind is Any:
        return _plain(value)
    if origin in (Union, types.UnionType):
        return _convert_union(value, arguments, where)
    if dataclasses.is_dataclass(kind):
        return from_dict(typing.cast(type, kind), value, where)
    if origin is Literal:
        if value in arguments:
            return value
        raise ConfigError(f"{where}: expected one of {', '.join(map(str, arguments))}, got {value!r}")
    if origin in (tuple, list) or kind in (tuple, list):
        return _convert_sequence(value, origin or kind, arguments, where)
    if origin is dict or kind is dict:
        return _convert_dict(value, arguments, where)
    if kind is bool:
        return _convert_bool(value, where)
    if kind in (int, float):
        return _convert_number(value, kind, where)
    if kind is str:
        if isinstance(value, (Mapping, list, tuple)) or value is None:
            raise ConfigError(f"{where}: expected text, got {value!r}")
        return str(value).lower() if isinstance(value, bool) else str(value)
    raise TypeError(f"{where}: a configuration field cannot have the type {kind!r}")


def _convert_union(value: Any, kinds: Sequence[Any], where: str) -> Any:
    if type(None) in kinds and (value is None or (isinstance(value, str) and value.lower() in ("none", "null", ""))):
        return None
    problems: list[ConfigError] = []
    for kind in kinds:
        if kind is type(None):
            continue
        try:
            return convert(value, kind, where)
        except ConfigError as problem:
            problems.append(problem)
    raise problems[0] if problems else ConfigError(f"{where}: expected none, got {value!r}")


def _convert_sequence(value: Any, container: type, kinds: Sequence[Any], where: str) -> Any:
    if isinstance(value, str):
        value = yaml.safe_load(value) if value.lstrip().startswith("[") else [v.strip() for v in value.split(",") if v]
    if not isinstance(value, (list, tuple)):
        raise ConfigError(f"{where}: expected a list, got {value!r}")
    fixed = container is tuple and kinds and kinds[-1] is not Ellipsis
    if fixed and len(kinds) != len(value):
        raise ConfigError(f"{where}: expected {len(kinds)} values, got {len(value)}: {value!r}")
    inner = list(kinds) if fixed else [kinds[0] if kinds else Any] * len(value)
    return container(convert(v, k, f"{where}[{i}]") for i, (v, k) in enumerate(zip(value, inner, strict=True)))


def _convert_dict(value: Any, kinds: Sequence[Any], where: str) -> dict:
    if isinstance(value, str):
        value = yaml.safe_load(value)
    if value is None:
        return {}
    if not isinstance(value, Mapping):
        raise ConfigError(f"{where}: expected a mapping, got {value!r}")
    inner = kinds[1] if kinds else Any
    return {str(k): convert(v, inner, f"{where}.{k}") for k, v in value.items()}


def _convert_bool(value: Any, where: str) -> bool:
    if isinstance(value, bool):
        return value
    text = str(value).lower()
    if text in ("true", "yes", "on", "1"):
        return True
    if text in ("false", "no", "off", "0"):
        return False
    raise ConfigError(f"{where}: expected true or false, got {value!r}")


def _convert_number(value: Any, kind: type, where: str) -> int | float:
    wanted = "a whole number" if kind is int else "a number"
    if isinstance(value, bool) or not isinstance(value, (int, float, str)):
        raise ConfigError(f"{where}: expected {wanted}, got {value!r}")
    try:
        if kind is float:
            return float(value)
        if isinstance(value, float) or (isinstance(value, str) and not value.strip().lstrip("+-").isdigit()):
            number = float(str(value).replace("_", ""))  # 5e4 and 5.0e4 are whole numbers to a reader
            if number != int(number):
                raise ValueError
            return int(number)
        return int(value)
    except (ValueError, OverflowError):
        raise ConfigError(f"{where}: expected {wanted}, got {value!r}") from None


def _plain(value: Any) -> Any:
    """A value for an untyped place: text is read as YAML, and numbers like 1e-4, which YAML leaves as text, too."""
    if not isinstance(value, str):
        return value
    try:
        value = yaml.safe_load(value)
    except yaml.YAMLError:
        return value
    if isinstance(value, str):
        try:
            return float(value) if any(c.isdigit() for c in value) else value
        except ValueError:
            return value
    return value


# ------------------------------------------------------------------------------------------- dictionaries, files, words


def from_dict(cls: type[Config], data: Any, where: str = "") -> Config:
    """A `cls` from nested mappings; ConfigError names an unknown key's nearest names."""
    if isinstance(data, cls):
        return data
    if data is None:
        data = {}
    if not isinstance(data, Mapping):
        raise ConfigError(f"{where or cls.__name__}: expected a mapping of settings, got {data!r}")
    hints = typing.get_type_hints(cls)
    names = [f.name for f in dataclasses.fields(cls) if f.init]  # type: ignore[arg-type]
    for key in data:
        if key not in names:
            raise ConfigError(_unknown(_join(where, str(key)), [_join(where, n) for n in names]))
    try:
        return cls(**{key: convert(value, hints[key], _join(where, key)) for key, value in data.items()})
    except TypeError as problem:
        raise ConfigError(f"{where or cls.__name__}: {problem}") from None


def to_dict(config: Any) -> Any:
    """Nested plain dictionaries and lists, as YAML writes them."""
    if dataclasses.is_dataclass(config) and not isinstance(config, type):
        return {f.name: to_dict(getattr(config, f.name)) for f in dataclasses.fields(config)}
    if isinstance(config, Mapping):
        return {str(k): to_dict(v) for k, v in config.items()}
    if isinstance(config, (list, tuple)):
        return [to_dict(v) for v in config]
    return str(config) if isinstance(config, os.PathLike) else config


def to_yaml(config: Any) -> str:
    text = io.StringIO()
    yaml.safe_dump(to_dict(config), text, sort_keys=False, default_flow_style=None, width=100)
    return text.getvalue()


def save(config: Any, path: str | os.PathLike) -> None:
    """Writes the resolved configuration as YAML, whole or not at all."""
    with atomic_write(path) as file:
        file.write(to_yaml(config).encode())


def read_yaml(path: str | os.PathLike) -> dict[str, Any]:
    """The mapping in a YAML file. ConfigError: no such file, not YAML, not a mapping."""
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
    cls: type[Config], path: str | os.PathLike | None = None, overrides: Mapping[str, Any] | None = None
) -> Config:
    """A `cls` from a YAML file and dotted overrides, ``{"optimizer.lr": "1e-3"}``.

    A name without its section is enough where only one section has it: ``lr`` for ``optimizer.lr``.
    """
    data = read_yaml(path) if path is not None else {}
    for key, value in (overrides or {}).items():
        _assign(data, resolve(cls, key), value)
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
        if not equals:
            if left and not left[0].startswith("--"):
                value = left.pop(0)
            elif key != "config" and _kind_of(cls, resolve(cls, key)) is bool:
                value = "true"
            else:
                raise ConfigError(f"--{key}: a value is missing")
        given[key if key == "config" else resolve(cls, key)] = value
    return given, seen


def parse(cls: type[Config], argv: Sequence[str], *, flags: Sequence[str] = ()) -> tuple[Config, set[str]]:
    """The configuration that the words of a command line describe, and the flags among them; see `words`."""
    given, seen = words(cls, argv, flags=flags)
    return load(cls, given.pop("config", None), given), seen


def resolve(cls: type, key: str) -> str:
    """The full dotted name of `key`, which may leave out a section; ConfigError where none or several fit."""
    known = names(cls)
    if key in known:
        return key
    for name, kind in known.items():  # an entry of a free mapping: its own reader checks the name
        if (get_origin(kind) or kind) is dict and key.startswith(name + "."):
            return key
    fitting = [name for name in known if name.endswith("." + key)]
    if len(fitting) == 1:
        return fitting[0]
    if fitting:
        raise ConfigError(f"--{key}: several settings have this name: {', '.join(fitting)}")
    raise ConfigError(_unknown(key, list(known)))


def names(cls: type, prefix: str = "") -> dict[str, Any]:
    """Dotted names of all settings with their types, sections before their entries."""
    found: dict[str, Any] = {}
    hints = typing.get_type_hints(cls)
    for name, kind in ((f.name, hints[f.name]) for f in dataclasses.fields(cls)):
        found[_join(prefix, name)] = kind
        if dataclasses.is_dataclass(kind):
            found.update(names(typing.cast(type, kind), _join(prefix, name)))
    return found


def describe(cls: type) -> str:
    """The settings as ``--help`` shows them: name, default, help."""
    lines: list[str] = []

    def walk(part: type, prefix: str) -> None:
        hints = typing.get_type_hints(part)
        for field in dataclasses.fields(part):
            name = _join(prefix, field.name)
            if dataclasses.is_dataclass(hints[field.name]):
                walk(typing.cast(type, hints[field.name]), name)
                continue
            default = field.default if field.default is not dataclasses.MISSING else None
            if field.default_factory is not dataclasses.MISSING:
                default = field.default_factory()
            lines.append(f"  --{name:<32} {field.metadata.get('help', '')} [{to_dict(default)}]")

    walk(cls, "")
    return "\n".join(lines)


def _kind_of(cls: type, name: str) -> Any:
    return names(cls).get(name)


def _assign(data: dict[str, Any], name: str, value: Any) -> None:
    *sections, last = name.split(".")
    for section in sections:
        inner = data.get(section)
        if inner is None:
            inner = data[section] = {}
        if not isinstance(inner, dict):
            raise ConfigError(f"{section}: expected a mapping of settings, got {inner!r}")
        data = inner
    data[last] = value


def _join(prefix: str, name: str) -> str:
    return f"{prefix}.{name}" if prefix else name


def _unknown(key: str, known: Sequence[str]) -> str:
    leaves = {name.rsplit(".", 1)[-1]: name for name in known}
    near = difflib.get_close_matches(key, known, n=3, cutoff=0.6)
    near += [leaves[leaf] for leaf in difflib.get_close_matches(key.rsplit(".", 1)[-1], list(leaves), n=3, cutoff=0.6)]
    near = list(dict.fromkeys(near))[:3]
    return f"{key}: no such setting" + (f"; did you mean {' or '.join(near)}?" if near else "")
