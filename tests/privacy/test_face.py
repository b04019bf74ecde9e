"""The library face: names that load on first use, and sentences that speak of arguments, not of a config."""

import ast
import importlib
import pathlib
import re
import subprocess
import sys

import pytest

from privimage_jax import privacy

FACE = pathlib.Path(privacy.__file__)
FILES = sorted(FACE.parent.glob("*.py"))


@pytest.mark.parametrize("name", privacy.__all__)
def test_every_name_is_there_and_described(name):
    assert getattr(privacy, name).__doc__ and name in dir(privacy)


def test_type_checkers_see_the_same_names():
    imports = [node for node in ast.walk(ast.parse(FACE.read_text())) if isinstance(node, ast.ImportFrom)]
    seen = {alias.asname: node.module for node in imports for alias in node.names if alias.asname}
    assert sorted(seen) == privacy.__all__
    assert all(getattr(privacy, name) is getattr(importlib.import_module(seen[name]), name) for name in seen)


def test_importing_it_imports_nothing_heavy():
    code = "import sys, privimage_jax.privacy; print({'jax', 'numpy', 'dp_accounting'} & set(sys.modules))"
    made = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert made.stdout == "set()\n"


def test_an_unknown_name_is_no_attribute():
    with pytest.raises(AttributeError, match="has no attribute 'dp_sdg'"):
        _ = privacy.dp_sdg


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_no_sentence_speaks_of_a_config_key(path):
    raised = [node for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, ast.Raise)]
    texts = [part.value for node in raised for part in ast.walk(node) if isinstance(part, ast.Constant)]
    assert not re.search(r"config\.|privacy\.|clipping\.(method|norm|microbatch)", "".join(map(str, texts)))


def test_what_is_wrong_with_a_ledger_is_a_value_error(tmp_path):
    (tmp_path / "ledger.jsonl").write_text("no line of a ledger\n")
    with pytest.raises(ValueError, match="line 1 of .* was edited or damaged"):
        privacy.Ledger.open(tmp_path / "ledger.jsonl")
