"""Weights of networks, images for them, and files of weights as strangers make them."""

import functools
import json
import struct
import zlib

import jax
import numpy as np

from privimage_jax.models.inception import shapes

RECORDED_PLACES = slice(None, None, 8)  # the features that tests/metrics/inception_features.npz holds


def random_images():
    """Uint8 images [3,20,28,3] of coarse patches, each of another brightness."""
    rng = np.random.default_rng(0)
    coarse = rng.integers(0, 120, (3, 5, 7, 3)) + 60 * np.arange(3)[:, None, None, None]
    return coarse.repeat(4, axis=1).repeat(4, axis=2).astype(np.uint8)


def random_weights():
    """Weights under pytorch-fid's names, drawn per name by numpy, so large that features vary from image to image."""
    return dict(_drawn())


@functools.cache
def _drawn():
    weights = {}
    for path, shape in jax.tree_util.tree_flatten_with_path(shapes())[0]:
        *modules, leaf = [key.key for key in path if key.key not in ("params", "batch_stats", "trunk")]
        name = ".".join(modules)
        rng = np.random.default_rng(zlib.crc32(f"{name}.{leaf}".encode()))
        if leaf == "kernel":
            axes = (3, 2, 0, 1) if len(shape.shape) == 4 else (1, 0)
            array = rng.normal(size=shape.shape).transpose(axes) * np.sqrt(2 / np.prod(shape.shape[:-1]))
            weights[f"{name}.weight"] = array.astype(np.float32)
        else:
            low, torch_name = {
                "scale": (0.9, "weight"),
                "bias": (-0.1, "bias"),
                "mean": (-0.1, "running_mean"),
                "var": (0.9, "running_var"),
            }[leaf]
            weights[f"{name}.{torch_name}"] = rng.uniform(low, low + 0.2, shape.shape).astype(np.float32)
    return weights


def safetensors(arrays, **changes):
    """The bytes of a safetensors file; `changes` go into the header's entry of the first array."""
    header, content = {"__metadata__": {"format": "pt"}}, b""
    for name, array in arrays.items():
        dtype = {"float32": "F32", "float64": "F64", "int64": "I64"}[array.dtype.name]
        offsets = [len(content), len(content) + array.nbytes]
        header[name] = {"dtype": dtype, "shape": list(array.shape), "data_offsets": offsets}
        content += array.tobytes()
    header[next(iter(arrays))] |= changes
    encoded = json.dumps(header).encode()
    return struct.pack("<Q", len(encoded)) + encoded + content
