"""Fashion-MNIST under DP with ImageNet, in grey, as public set: the settings of MNIST.

    privimage prepare fashion_mnist && privimage prepare imagenet_resized/32x32
    privimage run --config configs/fashion_mnist.py --workdir runs/fashion_mnist

| config | whose settings |
| --- | --- |
| fashion_mnist.py | ours: as mnist.py |
| fashion_mnist.py:dpimagebench | DPImageBench: as its MNIST |

Data already on disk, as prepared TFDS folders:

    --config.data.path=DIR/fashion_mnist/3.0.1 --config.public.path=DIR/imagenet_resized/32x32/0.1.0
"""

from ml_collections import ConfigDict

from privimage_jax.configs import mnist, published

VARIANTS = ("", "dpimagebench")


def get_config(whose: str = "") -> ConfigDict:
    """28x28 grey images of clothing."""
    published.check("fashion_mnist.py", whose, VARIANTS)
    config = mnist.get_config(whose)
    config.name = f"Fashion-{config.name}"
    config.data.name = "fashion_mnist"
    config.pretrain.flip = True  # clothes are as good mirrored
    return config
