"""Places365 in place of ImageNet as public set, for DPImageBench's settings of another config.

    privimage prepare cifar10 && privimage prepare places365_small
    privimage run --config configs/places365.py --workdir runs/cifar10_places

| config | the sensitive set |
| --- | --- |
| places365.py:cifar10 (or nothing) | CIFAR-10 |
| places365.py:fashion_mnist | Fashion-MNIST; DPImageBench publishes figures for these two |
| places365.py:mnist, :eurosat, :camelyon | those of the files of these names |

Settings are those of `configs/NAME.py:dpimagebench`; only the public set changes, and what is counted by its 365
classes: 5% of them are one semantic for each of ten classes, nine for each of two. Steps of pre-training are as many as
the same number of epochs has. The pictures of 256x256 pixels are resized once.

For another config of yours: --config.public.name=places365_small (or --config.public.path=DIR/places365_small/VERSION).
"""

import importlib

from ml_collections import ConfigDict

from privimage_jax.configs import published

CLASSES = {"cifar10": 10, "fashion_mnist": 10, "mnist": 10, "eurosat": 10, "camelyon": 2}
VARIANTS = ("", *CLASSES)


def get_config(sensitive: str = "") -> ConfigDict:
    """Scenes teach the generator."""
    published.check("places365.py", sensitive, VARIANTS)
    name = sensitive or "cifar10"
    config = importlib.import_module(f"privimage_jax.configs.{name}").get_config("dpimagebench")
    config.name = f"{config.name}, Places365 as public set"
    config.public.name = "places365_small"
    images, classes = published.PLACES365
    semantics = int(0.05 * classes / CLASSES[name])
    config.query.k1 = config.selection.k2 = semantics
    config.pretrain.steps = published.steps(
        3200, semantics * CLASSES[name], config.pretrain.batch_size, published.PLACES365
    )
    return config
