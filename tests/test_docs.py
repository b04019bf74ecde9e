"""Links between pages lead somewhere, the index has every page, and docstrings have one style and true examples."""

import ast
import doctest
import importlib
import pathlib
import re

import pytest

ROOT = pathlib.Path(__file__).parents[1]
PAGES = [*ROOT.glob("*.md"), *sorted((ROOT / "docs").rglob("*.md"))]
MODULES = sorted((ROOT / "privimage_jax").rglob("*.py"))
DOCUMENTED = (ast.Module, ast.ClassDef, ast.FunctionDef)
SECTIONS = ("Args:", "Attributes:", "Returns:", "Yields:", "Raises:")
WITH_EXAMPLES = """
data.loading.load data.pixels.to_float data.sources.base.Source data.sources.base.numbered_classes
data.sources.base.shifted_labels data.transforms.fit
generators.build metrics.fid.fid metrics.fid.frechet_distance metrics.fidelity.measure metrics.fld.fld
metrics.inception_score.inception_score metrics.inception_score.of_logits metrics.kid.kid metrics.kid.mmd
metrics.precision_recall.precision_recall metrics.sds.sds models.registry.build_classifier
models.registry.build_denoiser models.registry.parameter_count run.stage.keys run.stage.named run.stage.value
settings.import_strings.is_one settings.import_strings.load settings.import_strings.load_record
settings.rules.check_type settings.rules.one_of storage.fingerprints.fingerprint
""".split()  # noqa: SIM905


def anchors(page: pathlib.Path) -> set[str]:
    """What a link may name behind "#": the headings as pages on the web call them."""
    headings = re.findall(r"^#+ (.*)$", page.read_text(), flags=re.M)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_links_lead_somewhere(page):
    for link in re.findall(r"\]\(([^)\s]+)\)", page.read_text()):
        if re.match(r"https?:", link):
            continue
        name, _, anchor = link.partition("#")
        target = (page.parent / name) if name else page
        assert target.exists(), link
        assert not anchor or anchor in anchors(target), link


def test_the_index_has_every_page():
    index = (ROOT / "docs" / "README.md").read_text()
    pages = [page.relative_to(ROOT / "docs") for page in PAGES if page.parent != ROOT and page.name != "README.md"]
    assert [str(page) for page in pages if f"({page})" not in index] == []


def documented(path: pathlib.Path) -> list[list[str]]:
    """The lines of every docstring of a file."""
    nodes = [node for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, DOCUMENTED)]
    return [text.split("\n") for node in nodes if (text := ast.get_docstring(node))]


@pytest.mark.parametrize("path", MODULES, ids=lambda path: str(path.relative_to(ROOT)))
def test_sections_of_docstrings_are_indented_by_two(path):
    for lines in documented(path):
        for heading, first in zip(lines, lines[1:], strict=False):
            if heading in SECTIONS:
                assert re.match(r"  \S", first), f"{heading} {first}"


@pytest.mark.parametrize(
    "path", [path for path in MODULES if ">>> " in path.read_text()], ids=lambda path: str(path.relative_to(ROOT))
)
def test_the_examples_in_docstrings_run(path):
    parts = path.relative_to(ROOT).with_suffix("").parts
    module = importlib.import_module(".".join(parts[:-1] if parts[-1] == "__init__" else parts))
    assert doctest.testmod(module).failed == 0


@pytest.mark.parametrize("name", WITH_EXAMPLES)
def test_what_extensions_call_has_an_example(name):
    module, _, found = name.rpartition(".")
    assert ">>> " in getattr(importlib.import_module(f"privimage_jax.{module}"), found).__doc__


def test_guarantees_name_files_that_are_there():
    claims, _, _ = (ROOT / "docs" / "guarantees.md").read_text().partition("\n## ")
    rows = re.findall(r"^\|.*\|$", claims, flags=re.M)[2:]
    assert len(rows) > 20
    for row in rows:
        _, code, tests, _ = row.strip("|").split("|")
        names = re.findall(r"`([\w/]+\.py)`", tests)
        assert names, row
        assert [name for name in names if not (ROOT / "tests" / name).is_file()] == [], row
        places = re.findall(r"`([\w/]+(?:\.py|/))`", code)
        assert places, row
        assert [place for place in places if not (ROOT / "privimage_jax" / place).exists()] == [], row
