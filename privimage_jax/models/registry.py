"""Models by name: the zoo, or ``package.module:Class`` for any flax.linen module with the same call signature.

Denoiser: ``(x [B,H,W,C] float, c_noise [B] float, label [B] int32) -> [B,H,W,C]``; label ``n_classes`` means "none".
Classifier: ``(x [B,H,W,C] float, train: bool = False) -> logits [B,n_classes]`` and a method ``features`` of the same
arguments that returns [B,D].
"""

import dataclasses
from collections.abc import Mapping
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from privimage_jax.errors import UserError
from privimage_jax.models.cnn import CNN
from privimage_jax.models.resnet import ResNet9, ResNet18, ResNet50, ResNet110
from privimage_jax.models.resnext import ResNeXt
from privimage_jax.models.unet import UNet
from privimage_jax.models.wide_resnet import WideResNet
from privimage_jax.settings import import_strings

DENOISERS: dict[str, type[nn.Module]] = {"unet": UNet}
CLASSIFIERS: dict[str, type[nn.Module]] = {
    "cnn": CNN,
    "resnet9": ResNet9,
    "resnet18": ResNet18,
    "resnet50": ResNet50,
    "resnet110": ResNet110,
    "wide_resnet": WideResNet,
    "resnext": ResNeXt,
}


def build_denoiser(section: Any, n_classes: int, channels: int, dtype: str = "") -> nn.Module:
    """The denoising network that ``config.model`` describes.

    >>> from ml_collections import ConfigDict
    >>> section = ConfigDict({"name": "unet", "kwargs": {"nf": 8}})
    >>> model = build_denoiser(section, n_classes=10, channels=1, dtype="bfloat16")
    >>> model.nf, model.channels, model.dtype
    (8, 1, 'bfloat16')

    Args:
      section: has ``name`` and ``kwargs`` (a mapping of constructor arguments); a ConfigDict.
      n_classes: sensitive classes; passed to the constructor, as is ``channels``.
      channels: image channels.
      dtype: of activations, for a model with such a field that ``kwargs`` leave open; "" is the model's own default.

    Raises:
      UserError: unknown name or argument, or a class that cannot be imported.
    """
    given = {"n_classes": n_classes, "channels": channels}
    return _build(section.name, DENOISERS, given, section.kwargs, dtype, "config.model.name", "config.model.kwargs")


def build_classifier(
    name: str,
    n_classes: int,
    *,
    name_key: str = "query_net.model",
    kwargs_key: str = "query_net.kwargs",
    dtype: str = "",
    **kwargs: Any,
) -> nn.Module:
    """A classifier by name; ``kwargs`` go to its constructor, and ``dtype`` of activations where they leave it open.

    ``name_key`` and ``kwargs_key`` say where the config holds the name and the arguments, for the text of a UserError,
    which is raised as by `build_denoiser`.

    >>> build_classifier("cnn", n_classes=10, width=8).width
    8
    >>> build_classifier("cnn", n_classes=10, depth=8)
    Traceback (most recent call last):
    privimage_jax.errors.UserError: config.query_net.kwargs: cnn takes no argument depth; it accepts dtype, width.
    """
    given = {"n_classes": n_classes}
    return _build(name, CLASSIFIERS, given, kwargs, dtype, f"config.{name_key}", f"config.{kwargs_key}")


def denoiser_class(name: str, name_key: str = "config.model.name") -> type[nn.Module]:
    """The class that a name of a denoiser stands for, without making one; a UserError speaks of ``name_key``.

    >>> denoiser_class("unet").__name__
    'UNet'
    """
    return _class_of(name, DENOISERS, name_key)


def classifier_class(name: str, name_key: str) -> type[nn.Module]:
    """The class that a name of a classifier stands for, as `denoiser_class`."""
    return _class_of(name, CLASSIFIERS, name_key)


def init_denoiser(model: nn.Module, key: jax.Array, image_shape: tuple[int, int, int]) -> dict:
    """Fresh parameters of a denoiser for images [H,W,C]; equal keys give equal values on devices of the same kind.

    Raises:
      UserError: the model keeps state besides parameters (such as batch statistics), or changes the images' shape.
    """
    x, c_noise, label = jnp.zeros((1, *image_shape)), jnp.zeros(1), jnp.zeros(1, jnp.int32)
    (out, variables) = jax.eval_shape(model.init_with_output, key, x, c_noise, label)
    name = type(model).__name__
    if set(variables) != {"params"}:
        raise UserError(
            f"config.model.name: {name} keeps the collections {sorted(variables)}, but a denoiser may have 'params' "
            "only, as all that it learns must pass through clipped gradients; use GroupNorm, not BatchNorm."
        )
    if out.shape != x.shape:
        raise UserError(
            f"config.model.name: {name} maps images {x.shape} to {out.shape}; a denoiser must keep the shape."
        )
    return jax.jit(model.init)(fast_key(key), x, c_noise, label)["params"]


def init_classifier(model: nn.Module, key: jax.Array, image_shape: tuple[int, int, int]) -> dict:
    """Fresh variables {"params": ..., "batch_stats": ... if it has any} of a classifier for images [H,W,C]."""
    return dict(jax.jit(model.init)(fast_key(key), jnp.zeros((1, *image_shape))))


def classifier_shapes(model: nn.Module, image_shape: tuple[int, int, int]) -> dict:
    """Shapes and dtypes of what `init_classifier` makes; nothing is computed."""
    return jax.eval_shape(lambda key: init_classifier(model, key, image_shape), jax.random.key(0))


def parameter_count(params: Any) -> int:
    """Number of scalars in a pytree of arrays (or shapes).

    >>> parameter_count({"kernel": jnp.zeros((3, 4)), "bias": jnp.zeros(4)})
    16
    """
    return sum(leaf.size for leaf in jax.tree.leaves(params))


def fast_key(key: jax.Array) -> jax.Array:
    """A key of the generator that XLA has built in: on CPUs, threefry takes 0.2 s to compile for every parameter."""
    return jax.random.wrap_key_data(jax.random.bits(key, (4,), jnp.uint32), impl="unsafe_rbg")


def _build(
    name: str,
    zoo: Mapping[str, type[nn.Module]],
    given: dict[str, Any],
    kwargs: Mapping[str, Any],
    dtype: str,
    name_key: str,
    kwargs_key: str,
) -> nn.Module:
    cls = _class_of(name, zoo, name_key)
    fields = {field.name for field in dataclasses.fields(cls) if field.init} - {"parent", "name"}
    if missing := sorted(set(given) - fields):
        raise UserError(f"{name_key}: {name} lacks the field(s) {', '.join(missing)}; it must have {', '.join(given)}.")
    accepted = sorted(fields - set(given))
    if unknown := sorted(set(kwargs) - set(accepted)):
        raise UserError(
            f"{kwargs_key}: {name} takes no argument {', '.join(unknown)}; it accepts {', '.join(accepted) or 'none'}."
        )
    if dtype and "dtype" in fields:
        kwargs = {"dtype": dtype, **kwargs}
    if name in zoo and kwargs.get("dtype", "float32") not in ("float32", "bfloat16"):
        raise UserError(f"{kwargs_key}.dtype: must be 'float32' or 'bfloat16', not {kwargs['dtype']!r}.")
    # Linen modules are hashed by their fields, so lists become tuples.
    arguments = {key: tuple(value) if isinstance(value, list) else value for key, value in kwargs.items()}
    try:
        return cls(**given, **arguments)
    except (TypeError, ValueError) as error:
        raise UserError(f"{kwargs_key}: {name} rejects {arguments} ({error}); correct them.") from error


def _class_of(name: str, zoo: Mapping[str, type[nn.Module]], name_key: str) -> type[nn.Module]:
    if name in zoo:
        return zoo[name]
    if not import_strings.is_one(name):
        raise UserError(
            f"{name_key}: unknown model {name!r}; choose {', '.join(sorted(zoo))} or give an import string "
            "'package.module:Class'."
        )
    cls = import_strings.load(name, name_key)
    if not (isinstance(cls, type) and issubclass(cls, nn.Module)):
        raise UserError(f"{name_key}: {name} is not a flax.linen module class; name one.")
    return cls
