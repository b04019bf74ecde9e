"""EuroSAT, satellite images of land in ten uses, under DP with ImageNet as public set, at 32x32.

    privimage prepare eurosat/rgb && privimage prepare imagenet_resized/32x32
    privimage run --config configs/eurosat.py --workdir runs/eurosat

| config | whose settings |
| --- | --- |
| eurosat.py | ours: as cifar10.py |
| eurosat.py:dpimagebench | DPImageBench: as its CIFAR-10, N = 21,000 |

The set has no test part: of its 27,000 images 23,000 train and 4,000 test, as in DPImageBench, which draws others. It
holds back 2,000 of the former to choose classifiers by; here as many are left out.

`--method dp_feta` has DPImageBench's one noisy mean of each class, of 12,000 images, with sigma = 5. Batches are 4,096
here, as in its file for DP-FETA at epsilon 1. Its file for epsilon 10 had 2,048 at first and has 10 by now: add
--config.finetune.batch_size=2048 for the former.

Data already on disk, as prepared TFDS folders:

    --config.data.path=DIR/eurosat/rgb/2.0.0 --config.public.path=DIR/imagenet_resized/32x32/0.1.0
"""

from ml_collections import ConfigDict

from privimage_jax.configs import base, published

VARIANTS = ("", "dpimagebench")


def get_config(whose: str = "") -> ConfigDict:
    """Pictures of 64x64 pixels, resized."""
    published.check("eurosat.py", whose, VARIANTS)
    config = base.get_config()
    config.name = "EuroSAT"
    config.data.name = "eurosat/rgb"
    config.data.split, config.data.test_split = "train[:23000]", "train[23000:]"
    config.data.n = 23000
    config.query.k1 = 1
    config.selection.ratio = 0.01
    if whose == "dpimagebench":
        published.dpimagebench(config, n_classes=10)
        published.noisy_means(config, means=1, subset_size=12000, sigma=5.0)
        config.data.split, config.data.n = "train[:21000]", 21000
    return config
