"""Package definition of privimage-jax; exact versions live in constraints.txt."""

import pathlib
import re

import setuptools

HERE = pathlib.Path(__file__).parent

AUDIT = ["jax-privacy"]
PARQUET = ["pyarrow"]
PEERS = [*AUDIT, "torch", "opacus"]
# What TensorFlow Datasets imports to download and prepare a set, and requires nowhere: the first for files on Google
# Drive. The suite prepares a set with them, and without TensorFlow.
PREPARE = ["beautifulsoup4", "importlib-resources"]
# The compiler for TPUs, which needs none; jax pins the version that it fits. It is made for this platform alone.
TARGETS = ['jax[tpu]>=0.10,<0.13; sys_platform == "linux" and platform_machine == "x86_64"']
TESTS = ["hypothesis", "mypy", "pytest", "pytest-xdist", "pyyaml", "ruff", "selenium"]

setuptools.setup(
    name="privimage-jax",
    version=re.search(r'__version__ = "(.*)"', (HERE / "privimage_jax" / "__init__.py").read_text())[1],
    description="Differentially private image synthesis after PrivImage (USENIX Security 2024), in JAX and Flax",
    long_description=(HERE / "README.md").read_text(encoding="utf-8"),
    long_description_content_type="text/markdown",
    license="Apache-2.0",
    python_requires=">=3.11",
    packages=setuptools.find_packages(include=["privimage_jax", "privimage_jax.*"]),
    package_dir={"privimage_jax.configs": "configs"},
    package_data={"privimage_jax": ["py.typed"], "privimage_jax.report": ["*.html", "*.css", "*.js"]},
    install_requires=[
        "absl-py",
        "array-record",
        "dp-accounting>=0.6",
        "flax>=0.12",
        "jax>=0.10,<0.13",
        "matplotlib",
        "ml-collections>=1.1",
        "numpy",
        "optax>=0.2.6",
        "orbax-checkpoint>=0.11",
        "pillow",
        "rich",
        "scikit-learn",
        "scipy",
        "tensorboardX",
        "tensorflow-datasets>=4.9.9",
    ],
    extras_require={
        "audit": AUDIT,
        "test": [*AUDIT, *PARQUET, *PREPARE, *TARGETS, *TESTS],
        "cuda": ["jax[cuda12]>=0.10,<0.13"],
        "tpu": ["jax[tpu]>=0.10,<0.13"],
        "prepare": [*PREPARE, "tensorflow"],
        "parquet": PARQUET,
        "peers": PEERS,
        "targets": TARGETS,
    },
    entry_points={"console_scripts": ["privimage = privimage_jax.main:entry_point"]},
)
