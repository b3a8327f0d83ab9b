"""The documents: generated pages are current, links lead somewhere, snippets and examples run."""

import importlib
import os
import re
import shlex
import subprocess
import sys
from collections import Counter
from dataclasses import replace
from pathlib import Path

import pytest
from documents import ROOT, load

from mindspore_coupalign.__main__ import COMMANDS, main
from mindspore_coupalign.cli.examples import EXAMPLES, IMAGE

DOCUMENTS = [*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md")]
SOURCES = [path for pattern in ("mindspore_coupalign/**/*.py", "configs/**/*.yaml", "scripts/*.sh", "benchmarks/*.py")
           for path in ROOT.glob(pattern)]
FENCE = re.compile(r"^( *)```(\w*)\n(.*?)^ *```$", re.MULTILINE | re.DOTALL)
NOT_RUN = re.compile(r"<!-- not run: .+ -->\n$")  # in the line before a snippet that cannot run here, with the reason


def name_of(page: Path) -> str:
    return str(page.relative_to(ROOT))


def prose(page: Path) -> str:
    """A page without its code, in one line."""
    return " ".join(re.sub(r"`[^`\n]*`", "", FENCE.sub("", page.read_text(encoding="utf-8"))).split())


def blocks(page: Path, language: str) -> list[str]:
    """The page's code of a language that is meant to run, indentation of lists taken away."""
    text, found = page.read_text(encoding="utf-8"), []
    for match in FENCE.finditer(text):
        if match[2] == language and not NOT_RUN.search(text[:match.start()]):
            found.append(re.sub(f"^{match[1]}", "", match[3], flags=re.MULTILINE))
    return found


def test_documents_were_found():
    assert len(DOCUMENTS) >= 15 and len(SOURCES) >= 100


def test_the_configuration_reference_is_current():
    reference = load("make_configuration")
    assert reference.PAGE.read_text(encoding="utf-8") == reference.page(), "run: python docs/make_configuration.py"


def test_every_field_of_the_configuration_is_explained():
    silent = [line.split("|")[1] for line in load("make_configuration").page().splitlines() if line.endswith("|  |")]
    assert not silent, f"fields without a comment in config/sections.py: {silent}"


def test_the_import_graph_is_current_and_points_downwards():
    graph = load("make_imports")
    picture = graph.draw()
    assert graph.PICTURE.read_text(encoding="utf-8") == picture, "run: python docs/make_imports.py"
    assert "#dc2626" not in picture
    drawn = {name for row in graph.ROWS for name in row}
    assert {room for rooms in graph.imports().values() for room in rooms} - {"__version__"} <= drawn | {"errors"}


def anchors(page: Path) -> set:
    """The names by which a page's headings can be linked to, as GitHub makes them: repeated ones get a number."""
    titles = re.findall(r"^#+ (.+)$", FENCE.sub("", page.read_text(encoding="utf-8")), re.MULTILINE)
    titles = [re.sub(r"\[([^]]*)\]\([^)]*\)", r"\1", title) for title in titles]  # a link's text alone
    names = [re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-") for title in titles]
    seen, found = Counter(), set()
    for name in names:
        found.add(f"{name}-{seen[name]}" if seen[name] else name)
        seen[name] += 1
    return found


def links(page: Path) -> list[str]:
    """Targets of inline links, images and HTML, outside of code."""
    text = prose(page)
    return re.findall(r"\]\(([^)\s]+)\)", text) + re.findall(r"(?:href|src)=\"([^\"]+)\"", text)


@pytest.mark.parametrize("page", DOCUMENTS, ids=name_of)
def test_links_lead_somewhere(page):
    for target in links(page):
        if target.startswith(("http://", "https://", "mailto:")):
            continue
        path, _, anchor = target.partition("#")
        found = page if not path else (page.parent / path)
        assert found.exists(), f"{page.name} links to {target}, which is not there"
        if anchor:
            assert anchor in anchors(found), f"{page.name} links to {target}; {found.name} has no such heading"


def test_anchors_are_githubs(tmp_path):
    page = tmp_path / "page.md"
    page.write_text("# What `train` does\n## Again\n```bash\n# no heading\n```\n## Again\n## See [it](x.md), please\n")
    assert anchors(page) == {"what-train-does", "again", "again-1", "see-it-please"}


@pytest.mark.parametrize("page", [page for page in DOCUMENTS if page.stem != "CHANGELOG"], ids=name_of)
def test_files_that_a_page_names_exist(page):
    """`models/swin.py`, `configs/…`, `docs/…`, `tests/…`; the CHANGELOG names removed ones too."""
    known = [name_of(path) for folder in ("mindspore_coupalign", "tests", "docs", "scripts", "benchmarks", "configs")
             for path in (ROOT / folder).rglob("*.*")]
    for name in re.findall(r"`([\w/]+\.(?:py|sh|yaml))`", FENCE.sub("", page.read_text(encoding="utf-8"))):
        if name == "config.yaml":  # of a run's folder
            continue
        assert any(path == name or path.endswith(f"/{name}") for path in known), f"{page.name} names {name}"


def test_pages_that_the_sources_name_exist():
    for path in SOURCES:
        for page in re.findall(r"docs/[\w/-]+\.md", path.read_text(encoding="utf-8")):
            assert (ROOT / page).exists(), f"{name_of(path)} names {page}"


# What a user copies from a page -----------------------------------------------------------------------------------


def arguments_of(monkeypatch, command: str, line: str):
    """What the command's own parser makes of a line; nothing is run."""
    taken = []
    module = importlib.import_module(f"mindspore_coupalign.cli.{command.replace('-', '_')}")
    monkeypatch.setattr(module, "run", taken.append)
    try:
        main(shlex.split(line))
    except SystemExit:
        pytest.fail(f"not understood: {line}")
    return taken[0]


def shell_lines(page: Path) -> list[str]:
    """The lines that call a command, as `COMMAND …`, continuation lines joined, variables by their names."""
    found = []
    for block in blocks(page, "bash"):
        for line in re.sub(r"\\\n\s*", "", block).splitlines():
            called = re.match(r"\s*(?:\S*python\S* -m mindspore_coupalign|coupalign) ([a-z-]+ [^#]*)", line)
            if called and not called[1].startswith("--"):
                found.append(called[1].replace("$DEVICE", "auto"))
    return found


@pytest.mark.parametrize("page", [page for page in DOCUMENTS if shell_lines(page)], ids=name_of)
def test_commands_on_a_page_are_understood(page, monkeypatch):
    for line in shell_lines(page):
        if "--format NAME" not in line:  # a scheme, no command
            arguments_of(monkeypatch, line.split()[0], line)


SNIPPETS = {page: code for page in DOCUMENTS if (code := blocks(page, "python"))}


@pytest.fixture(scope="module")
def snippets_folder(tmp_path_factory, tiny_checkpoint, picture) -> Path:
    """The files that snippets name: a checkpoint, a photograph, a MINDIR, evaluate's details."""
    import cv2

    folder, code = tmp_path_factory.mktemp("snippets"), "".join("".join(code) for code in SNIPPETS.values())
    (folder / "best.safetensors").write_bytes(tiny_checkpoint.read_bytes())
    cv2.imwrite(str(folder / "photo.jpg"), picture.rgb[..., ::-1])
    row = '{"split": "val", "intersection": 3, "union": 4, "rle": {"size": [2, 3], "counts": "12"}}\n'
    (folder / "details.jsonl").write_text(row)
    if re.search(r"^[^#]*\.mindir", code, re.MULTILINE):
        assert main(["export", "--checkpoint", str(tiny_checkpoint), "--output", str(folder / "coupalign.mindir")]) == 0
    return folder


@pytest.mark.parametrize("page", SNIPPETS, ids=name_of)
def test_python_snippets_run(page, snippets_folder):
    """A page's snippets one after the other in one process, as a reader would paste them."""
    done = subprocess.run([sys.executable, "-c", "\n".join(SNIPPETS[page])], cwd=snippets_folder, text=True,
                          capture_output=True, timeout=300, env={**os.environ, "PYTHONPATH": str(ROOT)})
    assert done.returncode == 0, f"{page.name}:\n{done.stderr}"
    assert done.stdout
    if page.name == "python-api.md":
        for file in ("out/photo_the-red-circle_mask.png", "out/photo_the-red-circle_overlay.png", "overlay.png"):
            assert (snippets_folder / file).is_file()
        assert "skipped: missing.jpg" in done.stdout


def test_the_readmes_snippet_is_among_them():
    assert ROOT / "README.md" in SNIPPETS


# The examples of --help -------------------------------------------------------------------------------------------


def test_every_command_has_an_example_that_its_parser_takes(monkeypatch):
    assert EXAMPLES.keys() == COMMANDS.keys()
    for command, (line, _) in EXAMPLES.items():
        assert line.split()[0] == command
        arguments_of(monkeypatch, command, line)


@pytest.mark.parametrize("command", COMMANDS)
def test_help_shows_the_example(command, capsys):
    with pytest.raises(SystemExit) as done:
        main([command, "--help"])
    assert done.value.code == 0
    assert f"python -m mindspore_coupalign {EXAMPLES[command][0]}\n" in capsys.readouterr().out


@pytest.fixture(scope="module")
def world(tmp_path_factory) -> Path:
    """A folder with a small RefShapes where the example of make-shapes puts it."""
    folder = tmp_path_factory.mktemp("examples")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        sizes = ["--train", "3", "--val", "2", "--testA", "2", "--testB", "1", "--workers", "1"]
        assert main([*shlex.split(EXAMPLES["make-shapes"][0]), *sizes]) == 0
    return folder


def run_example(command: str, folder: Path, monkeypatch, *more: str):
    monkeypatch.chdir(folder)
    assert main([*shlex.split(EXAMPLES[command][0]), *more]) == 0


def test_examples_about_data_run(world, monkeypatch, capsys):
    """In the order of EXAMPLES; what an earlier one wrote a later one reads."""
    for command in ("describe", "check-data", "export-data", "import-data"):
        run_example(command, world, monkeypatch)
    assert (world / "data/own/own/vocabulary/vocab.txt").exists() or list(world.glob("data/own/*/vocabulary/vocab.txt"))


@pytest.fixture(scope="module")
def trained(world, tiny_checkpoint) -> Path:
    """The example's run, with the tests' random weights in the place of trained ones."""
    from mindspore_coupalign.weights.checkpoint import load_checkpoint, save_checkpoint

    checkpoint = load_checkpoint(tiny_checkpoint)
    data = replace(checkpoint.config.data, root="data/refshapes", dataset="refshapes", split_by="shapes")
    run = world / "runs" / "first"
    run.mkdir(parents=True, exist_ok=True)
    save_checkpoint(run / "best.safetensors", checkpoint.arrays, replace(checkpoint.config, data=data),
                    checkpoint.tokenizer, {"step": 7})
    return world


def test_the_example_of_plot_run_runs(world, monkeypatch, capsys):
    run = world / "runs" / "first"
    run.mkdir(parents=True, exist_ok=True)
    (run / "log.jsonl").write_text('{"step": 1, "loss": 2.0, "lr": 1e-3}\n{"step": 2, "loss": 1.5, "lr": 1e-3}\n')
    run_example("plot-run", world, monkeypatch)


@pytest.mark.slow
@pytest.mark.parametrize("command, writes", [
    ("doctor", ""), ("evaluate", "results.json"), ("show", "pictures/random.png"), ("export", "coupalign.mindir"),
    ("predict", "prediction/val_000000_1_bottom-left-circle_mask.png")])
def test_slower_examples_run(trained, monkeypatch, capsys, command, writes):
    run_example(command, trained, monkeypatch)
    assert (trained / "runs" / "first" / writes).exists()


@pytest.mark.slow
def test_the_example_of_train_runs(world, monkeypatch, capsys):
    monkeypatch.chdir(world)
    assert main([*shlex.split(EXAMPLES["train"][0]), "--dry-run", "train.batch_size=2"]) == 0


def test_the_quickstarts_sentence_is_one_of_its_data(world):
    """Its picture and sentence are val's, of a category that the network learns; the examples use the same."""
    from mindspore_coupalign.data.refer import read_refer

    script = (ROOT / "scripts" / "quickstart.sh").read_text(encoding="utf-8")
    image, text = re.search(r'--image "\$data/(\S+)"', script)[1], re.search(r'--text "([^"]+)"', script)[1]
    assert f"data/refshapes/{image}" == IMAGE and f'"{text}"' in EXAMPLES["predict"][0]
    data = read_refer(str(world / "data/refshapes"), "refshapes", "shapes", "")
    kinds = {(str(data.image_files[data.ref_image[data.sentence_ref[s]]]), data.sentence(s)):
             data.kind_names[data.sentence_kind[s]] for s in data.split("val")}
    assert kinds[Path(image).name, text] in ("corner", "combination")
