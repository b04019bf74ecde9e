"""MNIST under DP with ImageNet, in grey, as public set: the published model for 28x28 images (1.5 M parameters).

    privimage prepare mnist && privimage prepare imagenet_resized/32x32
    privimage run --config configs/mnist.py --workdir runs/mnist

Data already on disk, as prepared TFDS folders (public images of any size are made grey and resized):

    --config.data.path=DIR/mnist/3.0.1 --config.public.path=DIR/imagenet_resized/32x32/0.1.0
"""

from ml_collections import ConfigDict

from privimage_jax.configs import base


def get_config() -> ConfigDict:
    """28x28 grey images, ResNet-18 as query network."""
    config = base.get_config()
    config.name = "MNIST"
    config.data.name = "mnist"
    config.data.n = 60000
    config.data.image_size = 28
    config.data.channels = 1
    config.query_net.model = "resnet18"
    config.query.k1 = 1
    config.selection.ratio = 0.01
    config.model.kwargs.ch_mult = (2, 2)
    config.model.kwargs.attn = (14,)
    config.pretrain.flip = False  # a mirrored digit is another sign
    return config
