"""MNIST under DP with ImageNet, in grey, as public set: the published model for 28x28 images (1.5 M parameters).

    privimage prepare mnist && privimage prepare imagenet_resized/32x32
    privimage run --config configs/mnist.py --workdir runs/mnist

| config | whose settings |
| --- | --- |
| mnist.py | ours: 1% of ImageNet, 5,000 steps of pre-training, K = 8 |
| mnist.py:dpimagebench | DPImageBench: 5%, 198,400 steps, K = 32, N = 55,000, sampling with churn |

PrivImage's own code has none for this set. DPImageBench holds back 5,000 training images to choose classifiers by; here
as many are left out. It samples otherwise for FIDs than for accuracies; the latter's way stands here.

Data already on disk, as prepared TFDS folders (public images of any size are made grey and resized):

    --config.data.path=DIR/mnist/3.0.1 --config.public.path=DIR/imagenet_resized/32x32/0.1.0
"""

from ml_collections import ConfigDict

from privimage_jax.configs import base, published

VARIANTS = ("", "dpimagebench")


def get_config(whose: str = "") -> ConfigDict:
    """28x28 grey images; ResNet-18 as query network, or DPImageBench's ResNet-50."""
    published.check("mnist.py", whose, VARIANTS)
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
    if whose == "dpimagebench":
        published.dpimagebench(config, n_classes=10)
        published.benchmark_grey(config)
        config.data.split, config.data.n = "train[:55000]", 55000
    return config
