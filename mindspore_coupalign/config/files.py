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
from mindspore_coupalign.config.sections import Config
from mindspore_coupalign.errors import UserError


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
    values = _read_yaml(path, seen=())
    _apply(values, overrides)
    source = str(path) if not overrides else f"{path} with its overrides"
    return config_from_dict(values, source)


def with_overrides(config: Config, overrides: typing.Sequence[str], source: str) -> Config:
    """A copy of a Config with ``section.key=value`` overrides; ``source`` is named in errors."""
    values = config_to_dict(config)
    _apply(values, overrides)
    return config_from_dict(values, source)


def _apply(values: dict, overrides: typing.Sequence[str]):
    for text in overrides:
        key, eq, value = text.partition("=")
        if not eq or not key:
            raise UserError(f"override {text!r}: expected section.key=value, for example train.lr=1e-4")
        try:
            parsed = yaml.safe_load(value)
        except (yaml.YAMLError, ValueError, RecursionError) as exc:  # ValueError: 2012-13-45, a date that is none
            raise UserError(f"override {text!r}: the value is not valid YAML ({_first_line(exc)})") from exc
        _merge(values, translate(_nest(key.split("."), parsed), f"override {text}"))


def config_from_dict(values: dict, source: str) -> Config:
    """Build and validate a Config from nested dicts; ``source`` is named in errors."""
    config = _build(Config, translate(values, source), source, "")
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


def _read_yaml(path: Path, seen: tuple) -> dict:
    if path.resolve() in seen:
        raise UserError(f"{path}: 'base' leads back to this file; remove the loop")
    try:
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError as exc:
        raise UserError(f"{path}: no such configuration file, which another one names as its base") from exc
    except (OSError, UnicodeDecodeError) as exc:
        raise UserError(f"{path}: cannot be read as a YAML text file ({_first_line(exc)})") from exc
    try:
        values = yaml.safe_load(text) or {}
    except (yaml.YAMLError, ValueError, RecursionError) as exc:
        raise UserError(f"{path}: not valid YAML ({_first_line(exc)})") from exc
    if not isinstance(values, dict):
        raise UserError(f"{path}: expected 'section: values' at the top level, found {type(values).__name__}")
    base = values.pop("base", None)
    values = translate(values, str(path))
    if base is None:
        return values
    if not isinstance(base, str):
        raise UserError(f"{path}: base must be a file name, found {base!r}")
    merged = _read_yaml(path.parent / base, seen + (path.resolve(),))
    _merge(merged, values)
    return merged


def _first_line(exc: Exception) -> str:
    return " ".join(str(exc).split())[:200]


def _nest(keys: list, value):
    for key in reversed(keys):
        value = {key: value}
    return value


def _merge(into: dict, update: dict):
    for key, value in update.items():
        if isinstance(value, dict) and isinstance(into.get(key), dict):
            _merge(into[key], value)
        else:
            into[key] = value


def _build(cls, values, source: str, prefix: str):
    if not isinstance(values, dict):
        raise UserError(f"{source}: {prefix.rstrip('.') or 'the file'} must be a section of keys, found {values!r}")
    hints = typing.get_type_hints(cls)
    for key in values:
        if key not in hints:
            near = difflib.get_close_matches(str(key), hints, n=1)
            hint = f"did you mean {prefix}{near[0]}?" if near else f"known here: {', '.join(hints)}"
            raise UserError(f"{source}: unknown key {prefix}{key}; {hint}")
    return cls(**{k: _convert(hints[k], v, source, prefix + k) for k, v in values.items()})


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


