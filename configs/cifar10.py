"""CIFAR-10 under DP with ImageNet as public set: the published setting of PrivImage (Li et al. 2024, section 5).

    privimage prepare cifar10 && privimage prepare imagenet_resized/32x32
    privimage run --config configs/cifar10.py --workdir runs/cifar10

Data already on disk, as prepared TFDS folders:

    --config.data.path=DIR/cifar10/3.0.2 --config.public.path=DIR/imagenet_resized/32x32/0.1.0

Other budgets: --config.privacy.epsilon=1. The published runs take about 50 GPU-hours; sigma2 is 2.10 at epsilon 10
for 45,000 images (`privimage budget --config configs/cifar10.py --config.data.n=45000`).
"""

from ml_collections import ConfigDict

from privimage_jax.configs import base


def get_config() -> ConfigDict:
    """3.84 M parameters, 1% of ImageNet, 150 epochs of DP-SGD with expected batches of 4096."""
    config = base.get_config()
    config.name = "CIFAR-10"
    config.data.name = "cifar10"
    config.data.n = 50000
    config.query.k1 = 1
    config.selection.ratio = 0.01  # one semantic of 1,000 for each of the 10 classes
    return config
