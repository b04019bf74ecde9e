"""The networks whose features the measures compare, by the names that `config.evaluate.extractors` takes.

`query` is the public query network of the run; `inception` the network of 2015 that published FIDs use, with weights
from a file of the user; `package.module:function` any other.
"""

import dataclasses
import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from privimage_jax.data.dataset import Subset
from privimage_jax.errors import UserError, one_line
from privimage_jax.metrics import weight_files
from privimage_jax.metrics.features import Outputs, extract, forward_both
from privimage_jax.models.inception import InceptionV3, variables_from_torch
from privimage_jax.settings import import_strings
from privimage_jax.settings.evaluation import INCEPTION_WEIGHTS
from privimage_jax.storage import fingerprints
from privimage_jax.training.state import tree_digest

QUERY, INCEPTION = "query", "inception"
_VERSION = 1  # raise it when the same weights give other features, so that kept features are not used
_PROBES = 8


@dataclasses.dataclass(frozen=True)
class Extractor:
    """A network for the measures.

    Attributes:
      name: as the config names it.
      apply: from float32 images in [-1, 1] [B,H,W,C] to `Outputs`, each row from its own image alone.
      digest: SHA-256 (hex) of what decides the features: the network and its parameters.
      batch_size: images at a time, over all devices.
    """

    name: str
    apply: Callable[[jax.Array], Outputs]
    digest: str
    batch_size: int = 512

    def shapes(self, image_shape: tuple[int, ...], n: int) -> Outputs:
        """Shapes and dtypes of the outputs for n images [H,W,C]; nothing is computed.

        Raises:
          UserError: if the network fails on such images or does not give one row of features for each.
        """
        images = jax.ShapeDtypeStruct((n, *image_shape), jnp.float32)
        try:
            outputs = jax.eval_shape(self.apply, images)
        except Exception as error:
            reason = one_line(str(error))
            raise UserError(
                f"config.evaluate.extractors: {self.name} fails on images {list(image_shape)} with "
                f"{type(error).__name__}: {reason}; correct it."
            ) from error
        features = outputs.features
        fits = getattr(features, "ndim", 0) == 2 and len(features) == n
        if not (fits and jnp.issubdtype(features.dtype, jnp.floating)):
            given = type(features).__name__
            if hasattr(features, "shape"):
                given = f"{features.dtype} {list(features.shape)}"
            raise UserError(
                f"config.evaluate.extractors: {self.name} turns images {[n, *image_shape]} into {given}; it must give "
                "floating-point features of the shape [images, features]."
            )
        return outputs

    def outputs(self, images: np.ndarray | Subset, of: str, on_images: Callable[[int], None] | None = None) -> Outputs:
        """Features and logits of all images (see `features.extract`); `of` says for errors whose images they are.

        Raises:
          UserError: if a value is a NaN or an infinity.
        """
        self.shapes(images.shape[1:], 1)
        outputs = extract(self.apply, images, self.batch_size, on_images)
        for values in filter(lambda values: values is not None, outputs):
            if bad := int((~np.isfinite(values).all(axis=1)).sum()):
                raise UserError(
                    f"config.evaluate.extractors: {self.name} gives a NaN or an infinity for {bad} of the "
                    f"{len(images)} {of} images; correct it or its training, or choose another."
                )
        return outputs


def of_network(module: nn.Module, variables: Any) -> Extractor:
    """The public query network, a classifier of `models.registry` with its variables."""
    return _of_module(QUERY, module, variables)


def of_inception(variables: Any) -> Extractor:
    """The FID Inception network with the variables that `models.inception.variables_from_torch` makes."""
    return _of_module(INCEPTION, InceptionV3(), variables, batch_size=32)  # an image takes some 30 MB on its way


def load(name: str, inception_weights: str, image_shape: tuple[int, int, int]) -> Extractor:
    """An extractor that does not depend on the run: `inception` or `package.module:function`.

    Args:
      name: as in `config.evaluate.extractors`. A function is called with float32 images in [-1, 1] [B,H,W,C] and
        returns features [B,D]; jax compiles it. The arrays of a `jax.tree_util.Partial` stay out of the program.
      inception_weights: the file for `inception`, safetensors or PyTorch, with pytorch-fid's names.
      image_shape: [H,W,C] of the images to come.

    Raises:
      UserError: if the weights or the function cannot be had or do not fit the images.
    """
    if name == INCEPTION:
        inception_sha256(inception_weights)  # before a byte of it is believed
        where = _where(inception_weights)
        return of_inception(
            variables_from_torch(weight_files.read(Path(inception_weights), where, INCEPTION_WEIGHTS), where)
        )
    function = import_strings.load(name, "config.evaluate.extractors")
    if not callable(function):
        raise UserError(f"config.evaluate.extractors: {name} is of type {type(function).__name__}; give a function.")
    if not isinstance(function, jax.tree_util.Partial):
        function = jax.tree_util.Partial(function)
    extractor = Extractor(name, jax.tree_util.Partial(_without_logits, function), digest="", batch_size=128)
    # Nobody can tell what a function holds, but other parameters or code show in what it makes of some fixed images.
    probes = np.random.default_rng(0).integers(0, 256, (_PROBES, *image_shape), np.uint8)
    features = extractor.outputs(probes, "random").features
    return dataclasses.replace(extractor, digest=fingerprints.fingerprint([_VERSION, name, features.tolist()]))


def weights_digest(names: Sequence[str], inception_weights: str) -> dict[str, str]:
    """`inception_sha256`, the digest of the weights for `inception`, where it is among the extractors; else {}.

    Raises:
      UserError: if the file cannot be read.
    """
    return {"inception_sha256": inception_sha256(inception_weights)} if INCEPTION in names else {}


def inception_sha256(path: str) -> str:
    """SHA-256 (hex) of the weights for `inception`, compared with its first digits where the file's name ends in them.

    Raises:
      UserError: if the file cannot be read or is not what its name says.
    """
    digest = weight_files.sha256(Path(path), _where(path), INCEPTION_WEIGHTS)
    named = re.search(r"-([0-9a-f]{8,64})\.pth$", path)
    if named and not digest.startswith(named[1]):
        raise UserError(
            f"{_where(path)} has the SHA-256 {digest[:16]}…, but its name says that it begins with {named[1]}; "
            f"{INCEPTION_WEIGHTS}."
        )
    return digest


def _where(inception_weights: str) -> str:
    return f"config.evaluate.inception_weights={inception_weights}"


def _of_module(name: str, module: nn.Module, variables: Any, **more: Any) -> Extractor:
    digest = fingerprints.fingerprint([_VERSION, name, repr(module), tree_digest(variables)])
    return Extractor(name, forward_both(module, variables), digest, **more)


def _without_logits(function: Callable[[jax.Array], jax.Array], x: jax.Array) -> Outputs:
    return Outputs(function(x))
