"""The house rules: imports run one way, and the privacy core is flat."""

import ast
import functools
import pathlib
import re
import subprocess

import pytest

import privimage_jax

ROOT = pathlib.Path(privimage_jax.__file__).parent
LAYERS = (
    ("errors",),
    ("settings",),
    ("cluster",),
    ("storage", "configs"),
    ("data",),
    ("config",),
    ("models",),
    ("privacy",),
    ("training",),
    ("generators",),
    ("metrics",),
    ("report",),
    ("run",),
    ("stages",),
    ("pipeline",),
    ("commands",),
    ("targets",),
    ("light",),
    ("cli",),
    ("main",),
)
ALLOWED = {  # among the files of privacy/; dp_sgd.py composes them
    "sampling.py": {"privacy.chacha"},
    "accounting.py": {"privacy.events"},
    "people.py": {"privacy.records"},
    "noise.py": {"privacy.chacha", "privacy.events"},  # a noise knows what it costs
    "clipping.py": {"privacy.flat_rules", "privacy.flat_vmap", "privacy.summation", "privacy.weight_gradients"},
    "flat_rules.py": {"privacy.weight_gradients"},
    "flat_vmap.py": {"privacy.flat_rules"},
    "ledger.py": {"privacy.ledger_lines"},
    "objective_check.py": {"privacy.clipping", "privacy.operations", "privacy.weight_gradients"},
    "sum_check.py": {"privacy.summation"},
    "verification.py": {"privacy.ledger"},
}
WRITES = {"write_text", "write_bytes", "mkdir", "makedirs", "touch", "unlink", "rmdir", "rename", "rmtree", "truncate"}
WRITES |= {"symlink_to", "chmod", "savez", "savez_compressed", "os.replace", "os.remove", "os.write", "np.save", "open"}
MAY_WRITE = {  # besides storage/durable.py, through which all durable writes go
    "data/cache.py": {"open", "np.save", "write_text"},  # inside `atomic_dir`
    "data/conversion.py": {"os.replace", "unlink"},  # a shard of a public set; it takes its name once it is whole
    "storage/workdir.py": {"chmod"},  # of `internal/`
    "storage/locks.py": {"open"},  # of a lock, a file that holds nothing
    "commands/export.py": {"mkdir", "write_bytes"},  # inside `atomic_dir`
    "training/writers.py": {"open", "unlink"},  # metrics: a crash loses their last rows, and a resumed run drops more
}
RANK = {name: rank for rank, layer in enumerate(LAYERS) for name in layer}


def modules():
    return [path for path in ROOT.rglob("*.py") if path.name != "__init__.py" or path.parent != ROOT]


def owner(path: pathlib.Path) -> str:
    return path.relative_to(ROOT).parts[0].removesuffix(".py")


def imported(path: pathlib.Path) -> set[str]:
    """Dotted names inside the package that a file imports anywhere, also within functions."""
    names = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom) and node.module and node.module.split(".")[0] == "privimage_jax":
            names |= {f"{node.module}.{alias.name}" for alias in node.names}
        elif isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names if alias.name.startswith("privimage_jax.")}
    return {name.removeprefix("privimage_jax.") for name in names}


@pytest.mark.parametrize("path", modules(), ids=lambda path: str(path.relative_to(ROOT)))
def test_imports_run_one_way(path):
    rank = RANK[owner(path)]
    for name in imported(path):
        target = name.split(".")[0]
        if target in RANK and target != owner(path):
            assert RANK[target] < rank, f"{path.name} imports {name}"


@pytest.mark.parametrize("path", modules(), ids=lambda path: str(path.relative_to(ROOT)))
def test_a_file_is_read_in_one_sitting(path):
    assert len(path.read_text().splitlines()) <= 400


def test_the_checkout_has_no_symlink():
    """Where a file system has none, it would be a text file."""
    listed = subprocess.run(["git", "ls-files", "-s"], cwd=ROOT.parent, capture_output=True, text=True, check=True)
    assert [line for line in listed.stdout.splitlines() if line.startswith("120000")] == []


def writes_in(path: pathlib.Path) -> set[str]:
    """Names of the calls that change the file system, as far as they can be told from their text."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if not isinstance(node, ast.Call):
            continue
        text = ast.unparse(node.func)
        modes = [
            argument.value for argument in [*node.args, *(key.value for key in node.keywords)] if is_mode(argument)
        ]
        for name in (text, text.rpartition(".")[2]):
            if name in WRITES and (name != "open" or any(set(mode) & set("wax+") for mode in modes)):
                found.add(name)
    return found


def is_mode(argument: ast.expr) -> bool:
    return (
        isinstance(argument, ast.Constant) and isinstance(argument.value, str) and set(argument.value) <= set("rwaxbt+")
    )


def test_durable_writes_go_through_one_file():
    found = {str(path.relative_to(ROOT)): writes for path in modules() if (writes := writes_in(path))}
    assert {"open", "unlink", "os.replace", "rmtree", "mkdir", "chmod"} <= found.pop("storage/durable.py")
    assert found == MAY_WRITE


def test_the_files_of_the_privacy_core_stand_alone():
    for path in (ROOT / "privacy").glob("*.py"):
        siblings = {name for name in imported(path) if name.startswith("privacy.")}
        if path.name in ("dp_sgd.py", "__init__.py"):  # the latter imports for type checkers alone
            continue
        allowed = ALLOWED.get(path.name, set())
        assert {".".join(name.split(".")[:2]) for name in siblings} <= allowed, path.name


def test_only_the_privacy_core_imports_the_accountant():
    for path in modules():
        text = path.read_text()
        if "dp_accounting" in text:
            assert owner(path) == "privacy", path


def test_configs_import_nothing_heavy():
    for path in [ROOT / "config.py", *(ROOT / "configs").glob("*.py")]:
        assert "import jax" not in path.read_text()


TESTS = pathlib.Path(__file__).parent
OURS = {"privimage_jax", *(path.stem for path in (TESTS / "support").glob("*.py"))}
THOSE_THAT_REACH_NONE = sorted({*TESTS.rglob("*.py")} - {pathlib.Path(__file__)})  # this file has examples


def is_private(name: str) -> bool:
    return name.startswith("_") and not name.startswith("__")


@functools.cache
def private_names() -> set[str]:
    """What the files of the package define for themselves alone: functions, methods, classes and constants."""
    nodes = [node for path in modules() for node in ast.walk(ast.parse(path.read_text()))]
    names = {node.name for node in nodes if isinstance(node, ast.FunctionDef | ast.ClassDef)}
    names |= {node.id for node in nodes if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store)}
    return {name for name in names if is_private(name)}


def reached(text: str) -> list[str]:
    """Private names that a test takes from elsewhere: imported, as attributes, or named by a string.

    `self` and `cls` may have their own, and what is imported from neither the package nor the tests is not ours.
    """
    nodes = list(ast.walk(ast.parse(text)))
    parts = [part for node in nodes if isinstance(node, ast.JoinedStr) for part in node.values]
    others, found = {"self", "cls"}, []
    for node in nodes:
        if isinstance(node, ast.Import):
            others |= {(a.asname or a.name).split(".")[0] for a in node.names if a.name.split(".")[0] not in OURS}
        elif isinstance(node, ast.ImportFrom):
            if node.module.split(".")[0] not in OURS:
                others |= {alias.asname or alias.name for alias in node.names}
            else:
                found += [name for a in node.names for name in [*node.module.split("."), a.name] if is_private(name)]
    for node in nodes:
        if isinstance(node, ast.Attribute) and is_private(node.attr):
            root = node.value
            while isinstance(root, ast.Attribute | ast.Call | ast.Subscript):
                root = root.func if isinstance(root, ast.Call) else root.value
            if not (isinstance(root, ast.Name) and root.id in others):
                found.append(node.attr)
        elif isinstance(node, ast.Constant) and isinstance(node.value, str):
            start = "" if node in parts else "^|"  # what follows a value is the end of a name
            named = re.findall(rf"(?:{start}\w\.)(_\w+)", node.value)
            found += [name for name in named if name in private_names()]
    return found


@pytest.mark.parametrize("path", THOSE_THAT_REACH_NONE, ids=lambda path: str(path.relative_to(TESTS)))
def test_no_test_reaches_a_private_name(path):
    assert reached(path.read_text()) == []


@pytest.mark.parametrize(
    "text",
    [
        "from privimage_jax.main import _help",
        "from privimage_jax._main import help",
        "from privimage_jax.privacy import ledger\nledger._Order()",
        "import privimage_jax.main\nprivimage_jax.main._help",
        "import audits\naudits._products",
        "from privimage_jax.targets import hlo\nhlo.Program('')._read",
        "from privimage_jax import main\nmonkeypatch.setattr(main, '_with_short_first_axis', None)",
        "monkeypatch.setattr('privimage_jax.privacy.clipping._with_short_first_axis', None)",
        "program = f'clipping._with_short_first_axis({1})'",
    ],
)
def test_a_private_name_is_noticed(text):
    assert len(reached(text)) == 1


def test_own_and_foreign_private_names_are_not_meant():
    assert reached("import os\nself._x = os._exit\nname.partition('_')\nf'{measure}_with_short_first_axis'") == []
