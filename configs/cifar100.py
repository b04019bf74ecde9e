"""CIFAR-100 under DP with ImageNet as public set.

    privimage prepare cifar100 && privimage prepare imagenet_resized/32x32
    privimage run --config configs/cifar100.py --workdir runs/cifar100

| config | whose settings |
| --- | --- |
| cifar100.py | ours: as cifar10.py, but 10% of ImageNet, as each of 100 classes needs a semantic of its own |
| cifar100.py:dpimagebench | DPImageBench: 10% of ImageNet, 200,000 steps of pre-training, K = 32, N = 45,000 |

PrivImage's own code has none for this set. DPImageBench holds back 5,000 training images to choose classifiers by; here
as many are left out. `--method dp_feta` has its one noisy mean of each class, of 12,000 images, with sigma = 5.

Data already on disk, as prepared TFDS folders:

    --config.data.path=DIR/cifar100/3.0.2 --config.public.path=DIR/imagenet_resized/32x32/0.1.0
"""

from ml_collections import ConfigDict

from privimage_jax.configs import base, published

VARIANTS = ("", "dpimagebench")


def get_config(whose: str = "") -> ConfigDict:
    """100 classes of 500 images."""
    published.check("cifar100.py", whose, VARIANTS)
    config = base.get_config()
    config.name = "CIFAR-100"
    config.data.name = "cifar100"
    config.data.n = 50000
    config.query.k1 = 1
    config.selection.k2 = 1
    if whose == "dpimagebench":
        published.dpimagebench(config, n_classes=100, share=0.1, pretrain_epochs=1600)
        published.noisy_means(config, means=1, subset_size=12000, sigma=5.0)
        published.benchmark_cifar(config)
        config.data.split, config.data.n = "train[:45000]", 45000
    return config
