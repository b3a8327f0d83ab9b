"""The documents: generated pages are current, links lead somewhere, every field is explained."""

import importlib.util
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
DOCUMENTS = [*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md")]


def load(name):
    spec = importlib.util.spec_from_file_location(name, ROOT / "docs" / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_configuration_reference_is_current():
    reference = load("make_configuration")
    assert reference.PAGE.read_text(encoding="utf-8") == reference.page(), "run: python docs/make_configuration.py"


def test_every_field_of_the_configuration_is_explained():
    silent = [line.split("|")[1] for line in load("make_configuration").page().splitlines() if line.endswith("|  |")]
    assert not silent, f"fields without a comment in config.py: {silent}"


def anchors(page: Path) -> set:
    """The names by which a page's headings can be linked to, as GitHub makes them."""
    titles = re.findall(r"^#+ (.+)$", page.read_text(encoding="utf-8"), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-") for title in titles}


@pytest.mark.parametrize("page", DOCUMENTS, ids=lambda page: str(page.relative_to(ROOT)))
def test_links_lead_somewhere(page):
    for target in re.findall(r"\]\(([^)\s]+)\)", page.read_text(encoding="utf-8")):
        if target.startswith(("http://", "https://", "mailto:")):
            continue
        path, _, anchor = target.partition("#")
        found = page if not path else (page.parent / path)
        assert found.exists(), f"{page.name} links to {target}, which is not there"
        if anchor:
            assert anchor in anchors(found), f"{page.name} links to {target}; {found.name} has no such heading"


def test_documents_were_found():
    assert len(DOCUMENTS) >= 8
