"""In a checkout, the folder configs/ at its top, where users look for it; an installation has its files here."""

from pathlib import Path

__path__ = [str(Path(__file__).parents[2] / "configs")]
