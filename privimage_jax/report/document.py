"""The frame of every page: one HTML document that needs no other file and no network.

Its policy lets it load nothing but images written into the page, and run nothing but its own script, known by its hash.
Without the script the page is whole, but for the choice of a class and the enlarging of images.
"""

import base64
import hashlib
import string
from importlib import resources

from privimage_jax.report.text import escape

MARKED_BYTES = 1000  # within which a page says what kind it is
NOT_PRIVATE = "Made by privimage_jax. Not private. The page loads nothing from elsewhere."  # a footer


def document(kind: str, title: str, body: str, footer: str) -> str:
    """The whole page.

    Args:
      kind: such as "release" or "comparison"; see `is_page`.
      title: plain text.
      body: HTML of the page's main part.
      footer: HTML of its last paragraph.
    """
    script = read("page.js")
    return template("document.html").substitute(
        kind=kind,
        title=escape(title),
        css=read("page.css"),
        script=script,
        script_hash=_hash_source(f"\n{script}"),  # as it stands between the tags
        body=body,
        footer=footer,
    )


def is_page(kind: str, beginning: bytes) -> bool:
    """Whether a file that begins so is a page of this kind."""
    return f'content="privimage_jax {kind}"'.encode() in beginning[:MARKED_BYTES]


def template(name: str) -> string.Template:
    """A file of this folder, to be filled in."""
    return string.Template(read(name))


def read(name: str) -> str:
    """A file of this folder."""
    return resources.files("privimage_jax.report").joinpath(name).read_text(encoding="utf-8")


def _hash_source(script: str) -> str:
    return f"sha256-{base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()}"
