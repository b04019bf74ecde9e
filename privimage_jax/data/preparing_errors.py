"""What TensorFlow Datasets says when a set cannot be prepared, as one sentence.

Its errors come from many libraries, are wrapped in each other and often fill a page: of each, the line that helps is
passed on, with what to do.
"""

import difflib
import errno
import os
import re
import urllib.error
import urllib.parse
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from privimage_jax.errors import one_line

_PACKAGES = {"cv2": "opencv-python-headless", "skimage": "scikit-image"}  # where a module's name is not its package's
_AGAIN = "run the same command again"
_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


def of_name(name: str, error: Exception) -> str:
    """Why TFDS has no builder for the set `name`."""
    import tensorflow_datasets as tfds

    plain, _, config = name.partition(":")[0].partition("/")
    if isinstance(error, tfds.core.DatasetNotFoundError):
        close = difflib.get_close_matches(plain.lower(), tfds.list_builders(with_community_datasets=False))
        advice = f"perhaps you mean {' or '.join(close)}" if close else "look for its name in their catalogue"
        return f"TensorFlow Datasets has no set {name!r}; {advice}."
    if told := _missing_package(error):
        return f"preparing {name} {told}."
    configs = tfds.builder_cls(plain).builder_configs
    if config and config not in configs:
        known = f"give one of {one_line(', '.join(configs), 500)}" if configs else f"give {plain} alone"
        return f"the set {plain!r} has no config {config!r}; {known}."
    said = re.sub(r'^Failed to construct dataset ".*?", builder_kwargs ".*?": ', "", str(error), flags=re.DOTALL)
    return f"TensorFlow Datasets has no set {name!r} ({one_line(said)}); give another version, or none."


def of_download(name: str, folder: Path, error: BaseException) -> str:
    """Why the set `name` could not be downloaded and prepared as `folder`."""
    links = list(_chain(error))
    told = (rule(link) for link in links for rule in (_by_hand, _checksum, _missing_package, _network, _system))
    while error.__cause__ is not None:  # TFDS puts its own words, and whole examples, before it
        error = error.__cause__
    said = one_line(str(error)) or type(error).__name__
    unknown = f"failed ({said}); see in the catalogue of TensorFlow Datasets what the set needs, and {_AGAIN}"
    return f"preparing {name} in {folder} {next(filter(None, told), unknown)}."


def _chain(error: BaseException) -> Iterator[BaseException]:
    """An error and those that led to it."""
    link: BaseException | None = error
    while link is not None:
        yield link
        link = link.__cause__ or link.__context__


def _by_hand(error: BaseException) -> str:
    found = re.match(r"Manual directory (.*) does not exist or is empty\..*?instructions:\n(.*)", str(error), re.DOTALL)
    if not found:
        return ""
    return f"needs files that you fetch by hand: put them into {found[1]} ({one_line(found[2], 500)}), and {_AGAIN}"


def _checksum(error: BaseException) -> str:
    found = re.match(r"Artifact (\S+), downloaded to .*, has wrong checksum", str(error))
    sizes = re.findall(r"\(size=([^,]*),", str(error))
    if not found:
        return ""
    seen = f", {sizes[1]} in place of {sizes[0]}" if len(sizes) == 2 and sizes[0] != sizes[1] else ""
    return (
        f"failed, as {found[1]} is not the file that TensorFlow Datasets knows (its checksum differs{seen}); "
        f"{_AGAIN}, and if the file stays another, fetch the set elsewhere"
    )


def _missing_package(error: BaseException) -> str:
    found = re.search(r"No module named '(\w+)|Failed importing (\w+)", str(error))
    if not (isinstance(error, ImportError) and found):
        return ""
    module = found[2] or found[1]
    package = _PACKAGES.get(module, module)
    return f"needs the Python package {package}; run `pip install {package}`, then the same command again"


def _network(error: BaseException) -> str:
    import requests

    if found := re.match(r"Failed to get url (.*)\. HTTP code: (\d+)", str(error)):
        return f"failed, as {found[1]} answers with HTTP code {found[2]}; {_AGAIN} later, or fetch the set elsewhere"
    if not isinstance(error, requests.RequestException | urllib.error.URLError):
        return ""
    cause: Any = error.args[0] if error.args else error
    said = re.sub(r"^\w+\(.*?\): ", "", str(getattr(cause, "reason", None) or error))
    request = getattr(error, "request", None)
    server = urllib.parse.urlsplit(request.url).hostname if request is not None else "the server"
    return (
        f"failed, as {server} does not answer as it should ({one_line(said)}); "
        f"check the network and the proxy in HTTPS_PROXY, and {_AGAIN}"
    )


def _system(error: BaseException) -> str:
    text = str(error)
    elsewhere = f"or give another --data_dir, and {_AGAIN}"
    if any(os.strerror(number) in text for number in _FULL) or "Not enough disk space" in text:  # of TensorFlow too
        return f"failed, as the disk is full ({one_line(text)}); free some space {elsewhere}"
    if isinstance(error, MemoryError):
        return f"failed, as the memory is full; {_AGAIN} on a machine with more"
    if isinstance(error, OSError) and error.filename and error.strerror:
        return f"failed ({error.strerror}: {error.filename}); see to that path {elsewhere}"
    return ""
