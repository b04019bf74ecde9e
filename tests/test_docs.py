"""Links between the pages lead somewhere, and the index has them all."""

import pathlib
import re

import pytest

ROOT = pathlib.Path(__file__).parents[1]
PAGES = [*ROOT.glob("*.md"), *sorted((ROOT / "docs").rglob("*.md"))]


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


def test_guarantees_name_files_that_are_there():
    rows = re.findall(r"^\|.*\|$", (ROOT / "docs" / "guarantees.md").read_text(), flags=re.M)[2:]
    assert len(rows) > 20
    for row in rows:
        _, code, tests, _ = row.strip("|").split("|")
        names = re.findall(r"`([\w/]+\.py)`", tests)
        assert names, row
        assert [name for name in names if not (ROOT / "tests" / name).is_file()] == [], row
        places = re.findall(r"`([\w/]+(?:\.py|/))`", code)
        assert places, row
        assert [place for place in places if not (ROOT / "privimage_jax" / place).exists()] == [], row
