"""Runs a command as in an environment that holds an extra of the package and nothing else:
`python as_if_fresh.py EXTRA COMMAND …`.

Modules of distributions that the extra neither names nor brings cannot be imported, whatever is installed. TensorFlow
is there in name alone: who imports it fails.
"""

import collections
import importlib.metadata
import sys
import tempfile
from pathlib import Path

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name


def distributions(name: str, extra: str) -> set[str]:
    """What is installed with `name[extra]`, as far as it is installed here."""
    found, waiting = set(), [(name, extra)]
    while waiting:
        name, extra = waiting.pop()
        if (canonicalize_name(name), extra) in found:
            continue
        found.add((canonicalize_name(name), extra))
        try:
            wanted = map(Requirement, importlib.metadata.requires(name) or ())
        except importlib.metadata.PackageNotFoundError:
            continue
        for one in wanted:
            if one.marker is None or one.marker.evaluate({"extra": extra}):
                waiting += [(one.name, more) for more in ("", *one.extras)]
    return {name for name, _ in found}


class Missing:
    """Finds no module of a distribution that is not `there`."""

    def __init__(self, there: set[str]):
        owners = collections.defaultdict(set)
        for module, names in importlib.metadata.packages_distributions().items():
            owners[module] |= {canonicalize_name(name) for name in names}
        self.modules = {module for module, names in owners.items() if not names & there}

    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in self.modules:
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)


def main(extra: str, *command: str) -> int:
    with tempfile.TemporaryDirectory() as folder:
        (Path(folder) / "tensorflow.py").write_text("raise AssertionError('TensorFlow was asked for')\n")
        sys.path.insert(0, folder)
        sys.meta_path.insert(0, Missing(distributions("privimage-jax", extra)))
        from catalogue import own_sets  # noqa: F401

        from privimage_jax.main import main as privimage

        return privimage(["privimage", *command])


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
