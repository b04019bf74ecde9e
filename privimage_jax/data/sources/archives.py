"""What `zip` and `npz` share: no archive may unpack to far more than its own size."""

import zipfile
from pathlib import Path

from privimage_jax.errors import UserError

FREE_BYTES = 1 << 30  # any archive may unpack to this much…
MAX_RATIO = 200  # …and to so many times its size; pictures compress far less


def check_size(archive: zipfile.ZipFile, path: Path, where: str) -> None:
    """Raises `UserError` for an archive that announces too many bytes; none is read beyond what it announces."""
    unpacked = sum(entry.file_size for entry in archive.infolist())
    allowed = FREE_BYTES + MAX_RATIO * path.stat().st_size
    if unpacked > allowed:
        raise UserError(
            f"{where} would unpack to {unpacked:,} bytes, more than the {allowed:,} allowed for its size; "
            "unpack it yourself and use source=folder if you trust it."
        )
