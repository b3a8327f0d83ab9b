"""Rules of the architecture, read from the sources: the direction of imports, deprecated calls, environment variables,
and handlers that catch everything."""

import ast
import dataclasses
import functools
import re
import typing
from pathlib import Path

import pytest
from documents import ROOT, load

from mindspore_coupalign.config import Config

PACKAGE = ROOT / "mindspore_coupalign"
SOURCES = sorted(PACKAGE.rglob("*.py"))
DEPRECATED = re.compile(r"assign(_add|_sub)?|expand_dims|slice|unstack|[sg]et_context|[sg]et_auto_parallel_context")
ENVIRONMENT = {  # who reads or sets environment variables
    "__init__.py": "MindSpore's own, before it is imported", "cuda.py": "where CUDA lies, for the plugin",
    "data/tokenizer.py": "transformers' advice", "doctor/": "shows them, and probes without the job's",
    "distributed/": "the launcher's", "models/parts.py": "the user's parts",
    "runtime.py": "the launcher's", "cli/web.py": "Gradio's folder, and no calls home"}
FIELD = re.compile(r"(data|model|loss|train|eval)(\.(?!pkl|mindir|safetensors)[a-z_0-9]+)+")  # and no file
LAUNCHER = re.compile(r"MS_(ROLE|NODE_ID|WORKER_NUM|SERVER_NUM|SCHED\w*)|RANK_\w+|DEVICE_ID|COUPALIGN_\w+")
LAUNCHER_READERS = ("distributed/", "runtime.py", "doctor/", "models/parts.py")
CATCH_ALL = {  # handlers of Exception or BaseException per file, and why; whoever adds one says which errors it means
    "__main__.py": (1, "a rank's last message, whatever ends it"),
    "data/inputs.py": (2, "conversions of foreign objects; PIL's decoders"),
    "data/pickles.py": (1, "damaged pickles raise nearly anything"),
    "data/tokenizer.py": (5, "tokenizers raises plain Exception, transformers and the HTTP library many kinds"),
    "cli/doctor.py": (1, "a report with a hole is better than none"),
    "doctor/probe.py": (1, "what a device says when it is tried"),
    "inference/onnx/session.py": (1, "onnxruntime's own errors have no common base"),
    "web/page.py": (1, "what a program sends: Gradio's, pydantic's and Python's own errors"),
    "weights/torch_files.py": (1, "damaged pickles raise nearly anything"),
}


def short(path: Path) -> str:
    return path.relative_to(PACKAGE if path.is_relative_to(PACKAGE) else ROOT).as_posix()


@functools.cache
def tree(path: Path) -> ast.Module:
    return ast.parse(path.read_text(encoding="utf-8"))


@pytest.fixture(scope="module")
def drawing():
    """docs/make_imports.py, which knows how the packages are read."""
    return load("make_imports")


def test_sources_were_found():
    assert len(SOURCES) > 80


# -- who imports whom

def imported(path: Path, known) -> set:
    """The modules of ``known`` that a file names in an import, wherever in it, as dotted names below the package."""
    found = set()
    for node in ast.walk(tree(path)):
        if isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{short(path)}: a relative import, which these tests do not read"
            if (node.module or "").split(".")[0] == PACKAGE.name:
                place = node.module.removeprefix(PACKAGE.name).strip(".")
                inside = {f"{place}.{alias.name}".strip(".") for alias in node.names}
                found |= {name if name in known else place for name in inside}
        elif isinstance(node, ast.Import):
            names = {alias.name.split(".")[0] for alias in node.names}
            assert PACKAGE.name not in names, f"{short(path)}: write `from {PACKAGE.name} import …`"
    return found & known


@functools.cache
def modules() -> dict:
    """Dotted name below the package -> the names of the modules that it imports; the package itself is ""."""
    paths = {}
    for path in SOURCES:
        parts = path.relative_to(PACKAGE).with_suffix("").parts
        paths[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path
    return {name: imported(path, paths.keys()) - {""} for name, path in paths.items()}


def reachable(start: set, graph: dict) -> set:
    found, waiting = set(), list(start)
    while waiting:
        name = waiting.pop()
        if name not in found:
            found.add(name)
            waiting += graph.get(name, ())
    return found


def circles(graph: dict) -> list:
    """The imports that lie on a circle."""
    return sorted(f"{here} -> {there}" for here, others in graph.items() for there in others
                  if here in reachable({there}, graph))


def below(package: str, names) -> set:
    return {name for name in names if name.split(".")[0] == package}


def test_packages_import_each_other_in_one_direction(drawing):
    graph = drawing.imports()
    assert {"distributed"} <= graph["runtime"] and "runtime" not in graph["distributed"]
    assert not circles(graph), "packages import each other"
    assert circles({"a": {"b"}, "b": {"c", "d"}, "c": {"a"}, "d": set()}) == ["a -> b", "b -> c", "c -> a"]


def test_modules_import_each_other_in_one_direction():
    assert not circles(modules()), "modules import each other"


def test_models_are_numbers_and_cells_alone():
    """A network knows no configuration, no data and no run, but whether it is one of several ranks (batch norms)."""
    found = {other for name, others in modules().items() if name.startswith("models") for other in others}
    assert {name.split(".")[0] for name in found} <= {"models", "errors", "mindspore_calls", "distributed"}


@pytest.mark.parametrize("user", ["inference", "build"])
def test_a_network_is_built_without_the_training_stack(user):
    graph = modules()
    needed = reachable(below(user, graph), graph)
    assert below("models", needed) and not below("training", needed), sorted(below("training", needed))


# -- what stands where

def deprecated_calls(module: ast.Module) -> list:
    """(line, name) of what MindSpore documents as going after 2.9: ops.assign and so on, and the old contexts."""
    aliases, found = set(), []
    for node in ast.walk(module):
        if isinstance(node, ast.Import):
            aliases |= {(a.asname or a.name).split(".")[0] for a in node.names if a.name.split(".")[0] == "mindspore"}
        elif isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] == "mindspore":
            aliases |= {a.asname or a.name for a in node.names}
            found += [(node.lineno, a.name) for a in node.names if DEPRECATED.fullmatch(a.name)]
    for node in ast.walk(module):
        if isinstance(node, ast.Attribute) and DEPRECATED.fullmatch(node.attr):
            root = node.value
            while isinstance(root, ast.Attribute):
                root = root.value
            if isinstance(root, ast.Name) and root.id in aliases:
                found.append((node.lineno, node.attr))
    return found


def test_deprecated_calls_are_recognised():
    module = ast.parse("import mindspore as ms\nimport numpy as np\nfrom mindspore import ops\nops.assign(p, x)\n"
                       "np.expand_dims(x, 0)\nx[slice(1, 2)]\nms.ops.unstack(x)\nms.set_context(mode=0)\nops.stack(x)\n"
                       "from mindspore.ops import assign_add as add\nx.slice\n")
    assert [name for _, name in sorted(deprecated_calls(module))] == ["assign", "unstack", "set_context", "assign_add"]


def test_deprecated_calls_stand_behind_one_module():
    users = {short(path): calls for path in SOURCES if (calls := deprecated_calls(tree(path)))}
    assert users.keys() == {"mindspore_calls.py"}, users


def test_the_environment_is_read_in_few_places():
    readers = {short(path) for path in SOURCES for node in ast.walk(tree(path))
               if isinstance(node, ast.Attribute) and node.attr in ("environ", "environb", "getenv", "putenv")}
    unlisted = {name for name in readers if not name.startswith(tuple(ENVIRONMENT))}
    assert not unlisted, f"environment variables are read in {sorted(unlisted)}"
    idle = {place for place in ENVIRONMENT if not any(name.startswith(place) for name in readers)}
    assert not idle, f"listed, but read no environment variable: {sorted(idle)}"


def test_the_launchers_variables_are_known_to_few():
    users = {short(path) for path in SOURCES for node in ast.walk(tree(path))
             if isinstance(node, ast.Constant) and isinstance(node.value, str) and LAUNCHER.fullmatch(node.value)}
    assert "runtime.py" in users and "distributed/process.py" in users
    assert not {name for name in users if not name.startswith(LAUNCHER_READERS)}


def fields(cls, prefix: str = "") -> set:
    """The configuration's sections and fields, dotted."""
    found = set()
    for name, kind in typing.get_type_hints(cls).items():
        kind = next((part for part in typing.get_args(kind) if dataclasses.is_dataclass(part)), kind)  # a list of them
        found |= {prefix + name} | (fields(kind, f"{prefix}{name}.") if dataclasses.is_dataclass(kind) else set())
    return found


def test_fields_that_are_named_in_texts_exist():
    """Tables of fields are read by getattr, which no type checker follows: a field's new name has to reach them."""
    known, named = fields(Config), {}
    for path in SOURCES:
        if short(path) != "config/renamed.py":  # which has the old names
            for node in ast.walk(tree(path)):
                if isinstance(node, ast.Constant) and isinstance(node.value, str) and FIELD.fullmatch(node.value):
                    named.setdefault(node.value, short(path))
    assert "model.text.activation" in named and len(named) > 20
    known |= {name[:end.end()] for name in known for end in re.finditer("_", name)}  # beginnings of names serve as well
    assert not {name: path for name, path in named.items() if name not in known}


def catches_all(handler: ast.ExceptHandler) -> bool:
    kinds = handler.type.elts if isinstance(handler.type, ast.Tuple) else [handler.type]
    return any(kind is None or ast.unparse(kind) in ("Exception", "BaseException") for kind in kinds)


def test_who_catches_everything_is_listed():
    assert [catches_all(node) for node in ast.walk(ast.parse(
        "try: x\nexcept (OSError, Exception): y\nexcept ValueError: z\nexcept: a")) if isinstance(
            node, ast.ExceptHandler)] == [True, False, True]
    found = {}
    for path in SOURCES:
        count = sum(isinstance(node, ast.ExceptHandler) and catches_all(node) for node in ast.walk(tree(path)))
        if count:
            found[short(path)] = count
    assert found == {name: count for name, (count, _) in CATCH_ALL.items()}
