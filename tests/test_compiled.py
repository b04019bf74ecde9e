"""Compiled programs outlive a run on the disk: none of them holds a sensitive image or a key."""

import os
import pathlib
import subprocess
import sys

import numpy as np
import pytest
import quick
from commands import PYTHONPATH
from jax._src import compilation_cache
from pipelines import SIDE, tiny_config, write_npz
from small_models import use_small_models

HERE = pathlib.Path(__file__).parent
KEY = bytes(range(161, 193))
PATTERN = np.random.default_rng(99).permutation(256)[: SIDE * SIDE].astype(np.uint8)  # every sensitive image
WORDS = np.frombuffer(KEY, "<u4")
LEAKED = np.random.default_rng(98).permutation(256)[: SIDE * SIDE].astype(np.uint8)  # closed over on purpose


def program(folder: pathlib.Path) -> None:
    """What the subprocess runs: the pipeline with keys that we know, and a function that leaks two constants."""
    import jax
    import jax.numpy as jnp
    from pipelines import run

    from privimage_jax.privacy import chacha

    jax.config.update("jax_compilation_cache_dir", str(folder / "cache"))
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0)
    jax.config.update("jax_persistent_cache_min_entry_size_bytes", -1)
    chacha.new_key = lambda: chacha.key_from_bytes(KEY)
    run(config_in(folder), folder / "run")
    images, words = jnp.asarray(LEAKED), jnp.asarray(WORDS[::-1].copy())
    jax.jit(lambda i, x: (images[i], words[i % 8] + x))(3, jnp.uint32(1))


def config_in(folder: pathlib.Path):
    config = use_small_models(tiny_config(folder))
    config.data.path = str(folder / "sensitive.npz")
    config.data.class_names = ("a", "b", "c")
    config.privacy.fixed_seed = -1
    config.privacy.accountant = "rdp"
    config.evaluate.enabled = False
    config.finetune.noise_multiplicity = 1
    config.sample.steps = 2
    return config


def renderings(values: np.ndarray) -> list[bytes]:
    """How an array may look in a program: its bytes in several types, or its numbers as text or packed."""
    kinds = [values.astype(kind) for kind in (values.dtype, np.int32, np.int64, np.float32)]
    if values.dtype == np.uint8:
        kinds.append(values.astype(np.float32) / np.float32(127.5) - np.float32(1))
    texts = [", ".join(map(str, values.tolist())), ",".join(map(str, values.tolist()))]
    return [array.tobytes() for array in kinds] + [text.encode() for text in texts] + [b"".join(map(varint, values))]


def varint(value) -> bytes:
    value, out = int(value), b""
    while value > 127:
        out, value = out + bytes([value & 127 | 128]), value >> 7
    return out + bytes([value])


def contents(folder: pathlib.Path, pattern: str) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.rglob(pattern) if path.is_file()}


def unpacked(content: bytes) -> bytes:
    """A cached executable without its compression, which depends on what is installed here."""
    return compilation_cache.decompress_executable(content)


def holding(files: dict[str, bytes], values: np.ndarray) -> list[str]:
    """The files with eight values in a row, at the start or in the middle, in any rendering."""
    parts = [values[:8], values[len(values) // 2 :][:8]] if len(values) > 8 else [values]
    patterns = [pattern for part in parts for pattern in renderings(part)]
    return [name for name, content in files.items() if any(pattern in content for pattern in patterns)]


@pytest.fixture(scope="module")
def compiled(tmp_path_factory):
    """(dumped programs, cached executables) of a run on images that are all the same pattern."""
    folder = tmp_path_factory.mktemp("compiled")
    arrays = dict(np.load(write_npz(folder / "drawn.npz", 60, 3, seed=1)))
    for name in ("train_images", "test_images"):
        arrays[name][:] = PATTERN.reshape(SIDE, SIDE, 1)
    np.savez(folder / "sensitive.npz", **arrays)
    flags = (
        f"--xla_dump_to={folder / 'dump'} --xla_dump_hlo_as_text --xla_dump_large_constants=true "
        f"--xla_cpu_enable_concurrency_optimized_scheduler=false {' '.join(quick.FLAGS)}"
    )
    subprocess.run(
        [sys.executable, "-c", f"import pathlib, test_compiled; test_compiled.program(pathlib.Path({str(folder)!r}))"],
        env={**os.environ, "XLA_FLAGS": flags, "PYTHONPATH": os.pathsep.join([str(HERE), PYTHONPATH])},
        check=True,
        timeout=300,
    )
    cached = {name: unpacked(content) for name, content in contents(folder / "cache", "*-cache").items()}
    return contents(folder / "dump", "*"), cached


def test_the_search_finds_what_is_there(compiled):
    """The constants that were closed over on purpose are in the dump and in the cache."""
    for files in compiled:
        assert len(files) > 20
        assert holding(files, LEAKED)
        assert holding(files, WORDS[::-1])


def test_no_program_holds_a_sensitive_image(compiled):
    for files in compiled:
        assert holding(files, PATTERN) == []


def test_no_program_holds_the_key(compiled):
    for files in compiled:
        assert holding(files, WORDS) == []
