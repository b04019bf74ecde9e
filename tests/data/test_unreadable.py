"""All images of a set that cannot be read are told at once, and nothing of it is kept."""

import io
import json
import shutil
import zipfile

import numpy as np
import pytest
from PIL import Image
from prepared import example, write_tfds

from privimage_jax.data import load
from privimage_jax.data.sources.base import Source
from privimage_jax.data.sources.specs import Spec
from privimage_jax.data.transforms import decode_image
from privimage_jax.errors import UserError


def png(value=0, size=8):
    file = io.BytesIO()
    Image.new("L", (size, size), value).save(file, "PNG")
    return file.getvalue()


BAD = {"b/2.png": b"", "a/140.png": b"<html>404</html>", "a/7.png": png()[:-40], "b/3.png": b"\0" * 128 + b"DICM"}
FILES = {f"{'ab'[i % 2]}/{i}.png": png(i % 256) for i in range(300)}


def folder(tmp_path, files):
    for name, content in files.items():
        path = tmp_path / "set" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
    return {"source": "folder", "path": str(tmp_path / "set")}


def zipped(tmp_path, files):
    with zipfile.ZipFile(tmp_path / "set.zip", "w") as archive:
        for name, content in files.items():
            archive.writestr(name, content)
    return {"source": "zip", "path": str(tmp_path / "set.zip")}


def read(section, cache=None, **more):
    return load({**section, "test_fraction": 0.0, **more}, "train", 8, 1, cache)


@pytest.mark.parametrize("source", [folder, zipped])
@pytest.mark.parametrize("cached", [False, True])
def test_all_are_told_at_once(tmp_path, source, cached):
    section, cache = source(tmp_path, FILES | BAD), tmp_path / "cache"
    with pytest.raises(UserError) as caught:
        read(section, cache if cached else None)
    text = str(caught.value)
    assert text.startswith("4 of 302 images are not readable: ") and "\n" not in text
    for name, fault in (
        ("a/140.png", "is a web page"),
        ("a/7.png", "is cut short"),
        ("b/2.png", "is empty"),
        ("b/3.png", "is a DICOM file"),
    ):
        assert name in text and fault in text[text.index(name) :].split(", ")[0]
    assert text.endswith("; download them again, or remove or repair them, or convert them to 16-bit PNG.")
    assert all(path.suffix == ".lock" for path in cache.glob("*"))
    if source is folder:
        shutil.rmtree(tmp_path / "set")
    assert read(source(tmp_path, FILES), cache).n == 300


def test_ten_are_shown_and_all_are_counted(tmp_path):
    with pytest.raises(UserError) as caught:
        read(folder(tmp_path, FILES | {f"a/x{i}.png": b"" for i in range(1200)}))
    text = str(caught.value)
    assert text.startswith("1,200 of 1,500 images are not readable: ")
    assert text.count("is empty") == 10 and text.endswith("is empty, and 1,190 more; remove or repair them.")


def test_wrong_settings_are_told_before_the_images_are_looked_at(tmp_path):
    section = folder(tmp_path, {"a/0.png": png(), "a/1.png": b"", "b/0.png": png()})
    with pytest.raises(UserError, match="smaller than config.data.crop=9; lower crop"):
        read(section, crop=9)


def test_pixels_that_cannot_be_converted_are_told_too(tmp_path):
    file = io.BytesIO()
    Image.fromarray(np.array([[np.nan]], np.float32)).save(file, "TIFF")
    section = folder(tmp_path, {"a/0.png": png(), "a/1.tif": file.getvalue(), "b/0.png": b""})
    with pytest.raises(UserError, match=r"2 of 3 images .*a/1.tif holds NaN, .*b/0.png is empty; remove or repair"):
        read(section, intensity="0:255")


def test_records_of_tfds(tmp_path):
    pictures = [png(), b"", png(), b"no image"]
    folder = write_tfds(tmp_path, {"train": 4}, lambda i: example(i) | {"image": pictures[i]})
    with pytest.raises(
        UserError, match="2 of 4 images are not readable: example 1 .* is empty, example 3 .* is a text;"
    ):
        read({"source": "tfds", "path": str(folder)})


EAGER = Spec(f"{__name__}", "a source that decodes all it is asked for before it yields")


def open_source(settings, part, image_size):
    def read(indices):
        return [(decode_image(b"" if i in (3, 5) else png(), f"picture {i}"), 0) for i in indices]

    return Source("eager", ("a",), n=8, divided=False, read=read, fingerprint=0)


def test_each_is_told_once_by_a_source_that_decodes_ahead():
    with pytest.raises(UserError, match="^2 of 8 images are not readable: picture 3 is empty, picture 5 is empty; rem"):
        read({"source": f"{__name__}:EAGER", "class_names": ("a",)})


def test_what_was_found_is_kept_in_the_cache(tmp_path):
    rgb = io.BytesIO()
    Image.new("RGB", (9, 11)).save(rgb, "JPEG")
    section = folder(tmp_path, {"a/0.png": png(), "a/1.png": png(1), "b/0.jpg": rgb.getvalue()})
    cache = tmp_path / "cache"
    for kept in (None, cache, cache):
        facts = read(section, kept).facts
        assert dict(facts.sizes) == {"8×8": 2, "9×11": 1}
        assert dict(facts.depths) == {"8-bit grey": 2, "8-bit RGB": 1}
    (meta,) = cache.glob("*/meta.json")
    for damage in ({"sizes": []}, {"depths": {"8-bit grey": "2"}}):
        meta.write_text(json.dumps(json.loads(meta.read_text()) | damage))
        assert dict(read(section, cache).facts.depths) == {"8-bit grey": 2, "8-bit RGB": 1}


def test_sizes_without_end_are_summed_up(tmp_path):
    files = {f"a/{i}.png": png(size=8 + i) for i in range(120)} | {f"b/{i}.png": png() for i in range(3)}
    facts = read(folder(tmp_path, files)).facts
    assert len(facts.sizes) == 101 and facts.sizes["8×8"] == 4 and facts.sizes["others"] == 20


def test_arrays_have_sizes_and_depths_too(tmp_path):
    np.savez(tmp_path / "set.npz", images=np.zeros((5, 6, 7, 3), np.uint8), labels=np.zeros(5, int))
    facts = read({"source": "npz", "path": str(tmp_path / "set.npz")}).facts
    assert (facts.sizes, facts.depths) == ({"7×6": 5}, {"8-bit RGB": 5})
