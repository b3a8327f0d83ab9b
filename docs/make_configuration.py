"""Write docs/configuration.md from the dataclasses of config/sections.py: `python docs/make_configuration.py`.

A field's description is the comment behind it. The test tests/repo/test_docs.py fails where the page is out of date.
"""

import dataclasses
import inspect
import io
import sys
import tokenize
import typing
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # the source tree's own package

from mindspore_coupalign import config
from mindspore_coupalign.config.renamed import CHANGED, RENAMED
from mindspore_coupalign.models import parts

PAGE = Path(__file__).with_name("configuration.md")
HEAD = """# Configuration reference

Generated from `mindspore_coupalign/config/sections.py` by `python docs/make_configuration.py`.

A configuration is a YAML file of these sections; `base: other.yaml` takes another file's values first. Every field can
be set on the command line as `section.key=value`, for example `train.lr=1e-4` or `model.fusion.stages=[3,4]`. An
unknown key or a value of the wrong type is refused. `config.yaml` in a run's folder is the configuration that the run
used.
"""


def comments(cls) -> dict[str, str]:
    """Field name -> the comment behind it."""
    found, name = {}, ""
    for token in tokenize.generate_tokens(io.StringIO(inspect.getsource(cls)).readline):
        if token.type == tokenize.NAME and token.start[1] == 4:
            name = token.string
        elif token.type == tokenize.COMMENT and name:
            found[name] = f"{found.get(name, '')} {token.string.lstrip('# ')}".strip()
    return found


def kind(hint) -> str:
    names = {int: "integer", float: "number", str: "text", bool: "true/false"}
    if typing.get_origin(hint) is tuple:
        return f"list of {names.get(typing.get_args(hint)[0], 'section')}s"
    return names[hint]


def default(value) -> str:
    if isinstance(value, tuple):
        return f"`[{', '.join(map(str, value))}]`"
    if isinstance(value, bool):
        return f"`{str(value).lower()}`"
    return '`""`' if value == "" else f"`{value}`"


def fields(cls) -> list:
    return [f for f in dataclasses.fields(cls) if f.name != "name" or not issubclass(cls, parts.Settings)]


def section(cls, name: str) -> list[str]:
    hints, said = typing.get_type_hints(cls), {}
    for base in reversed(cls.__mro__[:-1]):
        said |= comments(base)
    plain = [f for f in fields(cls) if not dataclasses.is_dataclass(hints[f.name]) and "part" not in f.metadata]
    lines = [f"\n## {name}\n", "| key | type | default | meaning |", "| --- | --- | --- | --- |"]
    lines += [f"| `{name}.{f.name}` | {kind(hints[f.name])} | {default(f.default)} | "
              f"{said.get(f.name, '').replace('|', chr(92) + '|')} |" for f in plain]
    for inner in fields(cls):
        if "part" in inner.metadata:
            lines += part(f"{name}.{inner.name}", **inner.metadata)
        elif dataclasses.is_dataclass(hints[inner.name]):
            lines += section(hints[inner.name], f"{name}.{inner.name}")
        elif dataclasses.is_dataclass(entry := next(iter(typing.get_args(hints[inner.name])), None)):
            lines += section(entry, f"{name}.{inner.name}[]")
    return lines


def part(name: str, part: str, default: str | None) -> list[str]:
    """The part's choices, each with its settings."""
    known = parts.known(part)
    if default is None:
        return [f"\n## {name}[]\n", f"A list of {part} sections beside the terms above, each with its `name`, its "
                "`weight` and its settings: [extending.md](extending.md)."]
    choices = ", ".join(f"`{choice}`" for choice in known)
    lines = [f"\n## {name}\n", f"`{name}.name` chooses the {part}: {choices} (default: `{default}`). To add one: "
             "[extending.md](extending.md)."]
    for choice, cell in known.items():
        lines += [f"\n### {name}.name={choice}\n", *section(cell.Settings, name)[1:]]
    return lines


def renamed() -> list[str]:
    known = RENAMED | CHANGED
    return ["\n## Keys of earlier versions\n", "They are read still, with one line of warning.\n", "| key | now |",
            "| --- | --- |", *(f"| `{old}` | {new if ' ' in new or '.' not in new else f'`{new}`'} |"
                              for old, new in known.items())]


def page() -> str:
    hints = typing.get_type_hints(config.Config)
    lines = [line for name, cls in hints.items() for line in section(cls, name)]
    return HEAD + "\n".join(lines + renamed()) + "\n"


if __name__ == "__main__":
    PAGE.write_text(page(), encoding="utf-8")
