"""Trees of small one-coloured pictures, as people have them: red is the first class, blue the second."""

import io
import zipfile

from PIL import Image

from privimage_jax.data import load

RED, BLUE, GREEN = (255, 0, 0), (0, 0, 255), (0, 128, 0)


def png(colour, kind="PNG"):
    """The bytes of a picture of one colour."""
    buffer = io.BytesIO()
    Image.new("RGB", (8, 8), colour).save(buffer, kind)
    return buffer.getvalue()


def tree(root, **colours):
    """Writes files: `tree(root, red=["cat/0.png"], text={"README": "…"})`."""
    for name, content in colours.pop("text", {}).items():
        _write(root / name, content.encode() if isinstance(content, str) else content)
    for name in colours.pop("folders", ()):
        (root / name).mkdir(parents=True, exist_ok=True)
    for colour, names in colours.items():
        for name in names:
            kind = "PNG" if name.lower().endswith(".png") else "JPEG"
            _write(root / name, png({"red": RED, "blue": BLUE, "green": GREEN}[colour], kind))
    return root


def pets(root, *parts, n=2):
    """`cat` and `dog` with n red and n blue pictures, in each of the parts or at the top."""
    for part in parts or ("",):
        tree(
            root,
            red=[f"{part}/cat/{i}.png".lstrip("/") for i in range(n)],
            blue=[f"{part}/dog/{i}.png".lstrip("/") for i in range(n)],
        )
    return root


def zipped(root, path):
    """The tree as a zip file."""
    with zipfile.ZipFile(path, "w") as archive:
        for file in sorted(root.rglob("*")):
            if file.is_file():
                archive.write(file, str(file.relative_to(root)))
    return path


def read(root, part="train", key="data", **settings):
    """Loads a tree (or zip file) at 4×4, with every picture in the training part unless the settings say otherwise."""
    source = "folder" if root.is_dir() else "zip"
    section = {"source": source, "path": str(root), "test_fraction": 0.0, **settings}
    return load(section, part, 4, 3, None, key=key)


def colours(dataset):
    """What each class holds: class name -> the sorted colours of its pictures, such as {"cat": "RR"}."""
    found = {name: "" for name in dataset.class_names}
    for image, label in zip(dataset.images, dataset.labels, strict=True):
        found[dataset.class_names[label]] += "RGB"[int(image.reshape(-1, 3).mean(0).argmax())]
    return {name: "".join(sorted(letters)) for name, letters in found.items()}


def _write(path, content):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)
