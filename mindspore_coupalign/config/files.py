"""YAML files (with a ``base:``) and ``key=value`` overrides -> a Config.

Every field has one type; an unknown key, a wrong type or an impossible combination raises UserError in one line that
names the file and the field.
"""

import dataclasses
import difflib
import math
import types
import typing
from pathlib import Path

import yaml

from mindspore_coupalign.config.renamed import translate
from mindspore_coupalign.config.sections import Config, ModelConfig
from mindspore_coupalign.errors import UserError, one_line
from mindspore_coupalign.models.parts import find, known

PARTS = {f"model.{f.name}": (f.metadata["part"], f.metadata["default"]) for f in dataclasses.fields(ModelConfig)
         if "part" in f.metadata}  # section -> (kind, name of the default part)


def shipped_configs() -> dict[str, Path]:
    """The shipped configurations by name (the file's, without .yaml), wherever the package is installed."""
    package = Path(__file__).resolve().parents[1]
    folders = (package / "configs", package.parent / "configs")  # of an installation, of a source tree
    files = next((sorted(folder.rglob("*.yaml")) for folder in folders if folder.is_dir()), [])
    return {file.stem: file for file in files}


def find_config(name: str | Path) -> Path:
    """The file of that path, or else the shipped configuration: ``refcoco_swin_b``, also as ``configs/….yaml``.

    Raises:
        UserError: there is neither.
    """
    path = Path(name)
    if path.exists():
        return path
    shipped = shipped_configs()
    if path.stem in shipped and path.suffix in ("", ".yaml") and path.parts[:1] in (path.parts[-1:], ("configs",)):
        return shipped[path.stem]
    near = difflib.get_close_matches(path.stem, shipped, n=3) or sorted(shipped)
    raise UserError(f"{name}: no such configuration file, and none of that name is shipped; shipped are "
                    f"{', '.join(near)}")


def load_config(path: str | Path, overrides: typing.Sequence[str] = ()) -> Config:
    """Read a YAML file (following its ``base:``) and apply ``section.key=value`` overrides.

    Args:
        path: a file, or the name of a shipped configuration such as ``refcoco_swin_b``.

    Raises:
        UserError: missing or malformed file, unknown key, wrong type, impossible combination.
    """
    path = find_config(path)
    values, moved = _read_yaml(path, seen=())
    moved |= _apply(values, overrides)
    source = str(path) if not overrides else f"{path} with its overrides"
    return _checked(values, moved, source)


def with_overrides(config: Config, overrides: typing.Sequence[str], source: str) -> Config:
    """A copy of a Config with ``section.key=value`` overrides; ``source`` is named in errors."""
    values = config_to_dict(config)
    moved = _apply(values, overrides)
    return _checked(values, moved, source)


def _apply(values: dict, overrides: typing.Sequence[str]) -> set:
    """Merge overrides into ``values``; returns the keys that were given under a name of an earlier version."""
    moved: set[str] = set()
    for text in overrides:
        key, eq, value = text.partition("=")
        if not eq or not key:
            raise UserError(f"override {text!r}: expected section.key=value, for example train.lr=1e-4")
        try:
            parsed = yaml.safe_load(value)
        except (yaml.YAMLError, ValueError, RecursionError) as exc:  # ValueError: 2012-13-45, a date that is none
            raise UserError(f"override {text!r}: the value is not valid YAML ({one_line(exc, 200)})") from exc
        update, names = translate(_nest(key.split("."), parsed), f"override {text}")
        moved |= names
        _merge(values, update)
    return moved


def config_from_dict(values: dict, source: str) -> Config:
    """Build and validate a Config from nested dicts; ``source`` is named in errors."""
    return _checked(*translate(values, source), source)


def _checked(values: dict, moved: set, source: str) -> Config:
    for name in moved:
        _drop_unless_known(values, name)
    config = _build(Config, values, source, "")
    if problem := next((message for fulfilled, message in config.rules() if not fulfilled), ""):
        raise UserError(f"{source}: {problem}")
    return config


def config_to_dict(config: Config) -> dict:
    """The resolved configuration as plain containers (tuples become lists), ready for YAML or JSON."""

    def plain(value):
        if isinstance(value, dict):
            return {k: plain(v) for k, v in value.items()}
        return [plain(v) for v in value] if isinstance(value, list | tuple) else value

    return plain(dataclasses.asdict(config))


def _read_yaml(path: Path, seen: tuple) -> tuple[dict, set]:
    """The file's values over its base's, and the keys that were given under a name of an earlier version."""
    if path.resolve() in seen:
        raise UserError(f"{path}: 'base' leads back to this file; remove the loop")
    try:
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError as exc:
        raise UserError(f"{path}: no such configuration file, which another one names as its base") from exc
    except (OSError, UnicodeDecodeError) as exc:
        raise UserError(f"{path}: cannot be read as a YAML text file ({one_line(exc, 200)})") from exc
    try:
        values = yaml.safe_load(text) or {}
    except (yaml.YAMLError, ValueError, RecursionError) as exc:
        raise UserError(f"{path}: not valid YAML ({one_line(exc, 200)})") from exc
    if not isinstance(values, dict):
        raise UserError(f"{path}: expected 'section: values' at the top level, found {type(values).__name__}")
    base = values.pop("base", None)
    values, moved = translate(values, str(path))
    if base is None:
        return values, moved
    if not isinstance(base, str):
        raise UserError(f"{path}: base must be a file name, found {base!r}")
    merged, earlier = _read_yaml(path.parent / base, seen + (path.resolve(),))
    _merge(merged, values)
    return merged, moved | earlier


def _nest(keys: list, value):
    for key in reversed(keys):
        value = {key: value}
    return value


def _merge(into: dict, update: dict, prefix: str = ""):
    for key, value in update.items():
        if isinstance(value, dict) and isinstance(into.get(key), dict):
            if f"{prefix}{key}" in PARTS and value.get("name"):
                _choose_part(into[key], *PARTS[f"{prefix}{key}"], value["name"])
            _merge(into[key], value, f"{prefix}{key}.")
        else:
            into[key] = value


def _choose_part(section: dict, kind: str, default: str, name):
    """Another part of its kind takes the settings that it shares with the one before; the others are dropped."""
    if name != section.get("name", default) and isinstance(name, str) and name in known(kind):
        fields = _fields(kind, name)
        for key in [key for key in section if key not in fields]:
            del section[key]


def _fields(kind: str, name: str) -> set:
    return {f.name for f in dataclasses.fields(find(kind, name).Settings)}


def _drop_unless_known(values: dict, name: str):
    """Earlier versions kept every backbone's and fusion's settings in one section, whichever part was chosen."""
    *sections, key = name.split(".")
    kind, default = PARTS.get(".".join(sections), ("", ""))
    for section in sections:
        values = values.get(section, {}) if isinstance(values, dict) else {}
    if kind and isinstance(values, dict) and key in values:
        chosen = values.get("name", default)
        fields = {name: _fields(kind, name) for name in known(kind)}
        if key not in fields.get(chosen, {key}) and any(key in other for other in fields.values()):
            del values[key]


def _build(cls, values, source: str, prefix: str):
    if not isinstance(values, dict):
        raise UserError(f"{source}: {prefix.rstrip('.') or 'the file'} must be a section of keys, found {values!r}")
    fields, hints = {f.name: f for f in dataclasses.fields(cls)}, typing.get_type_hints(cls)
    for key in values:
        if key not in fields:
            near = difflib.get_close_matches(str(key), fields, n=1)
            hint = f"did you mean {prefix}{near[0]}?" if near else f"known here: {', '.join(fields)}"
            raise UserError(f"{source}: unknown key {prefix}{key}; {hint}")
    return cls(**{key: _build_part(fields[key].metadata, value, source, prefix + key) if "part" in fields[key].metadata
                  else _convert(hints[key], value, source, prefix + key) for key, value in values.items()})


def _build_part(metadata, value, source: str, key: str):
    """The settings of a part, or of each part of a list (a field without a default part)."""
    kind, default = metadata["part"], metadata["default"]
    if default is None:
        if not isinstance(value, list | tuple):
            raise UserError(f"{source}: {key} must be a list of sections, found {value!r}")
        return tuple(_build_part({"part": kind, "default": ""}, entry, source, f"{key}[{i}]")
                     for i, entry in enumerate(value))
    if not isinstance(value, dict):
        raise UserError(f"{source}: {key} must be a section of keys, found {value!r}")
    try:
        settings = find(kind, value.get("name", default), key).Settings
    except UserError as exc:
        raise UserError(f"{source}: {exc}") from exc
    return _build(settings, value, source, f"{key}.")


def _convert(kind, value, source: str, name: str):
    if dataclasses.is_dataclass(kind):
        return _build(kind, value, source, name + ".")
    if typing.get_origin(kind) is tuple:
        if not isinstance(value, list | tuple):
            raise UserError(f"{source}: {name} must be a list, found {value!r}")
        item = typing.get_args(kind)[0]
        return tuple(_convert(item, v, source, f"{name}[{i}]") for i, v in enumerate(value))
    if kind is float and isinstance(value, str):  # YAML 1.1 reads 5e-5 as a string
        try:
            value = float(value)
        except ValueError:
            pass
    if kind is float and isinstance(value, int) and not isinstance(value, bool):
        value = float(value)
    if type(value) is not kind or (kind is float and not math.isfinite(value)):
        raise UserError(f"{source}: {name} must be {_TYPE_NAMES[kind]}, found {value!r}")
    return value


_TYPE_NAMES = types.MappingProxyType({bool: "true or false", int: "a whole number", float: "a number", str: "a text"})


