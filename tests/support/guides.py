"""The code blocks of the documentation, for the tests that run them."""

import pathlib
import re
import sys

from pipelines import tiny_config

DOCS = pathlib.Path(__file__).parents[2] / "docs"


def code_of(page: str, heading: str) -> list[str]:
    """The Python blocks of a section of a page in docs/, in order."""
    text = (DOCS / page).read_text()
    section = re.search(rf"^## {re.escape(heading)}\n(.*?)(?=^## |\Z)", text, flags=re.M | re.S)
    assert section, f"{page} has no section {heading}"
    return re.findall(r"^```python\n(.*?)^```$", section[1], flags=re.M | re.S)


def extended(heading: str, name: str, folder: pathlib.Path, monkeypatch):
    """The smallest experiment with what a section of the guide to extending adds, whose module gets this name."""
    module, settings = code_of("guides/extending.md", heading)
    (folder / f"{name}.py").write_text(module)
    monkeypatch.syspath_prepend(str(folder))
    monkeypatch.delitem(sys.modules, name, raising=False)
    return configured(tiny_config(folder), settings)


def configured(config, code: str):
    """The config with the settings of a block."""
    exec(code, {"config": config})
    return config
