"""Camelyon17-WILDS, patches of lymph nodes with or without tumour, under DP with ImageNet as public set, at 32x32.

    privimage prepare imagenet_resized/32x32
    privimage run --config configs/camelyon.py --workdir runs/camelyon --config.data.path=FOLDER

TFDS does not have this set. FOLDER holds the parts train and test of WILDS as pictures, and in each the folders normal
and tumor: FOLDER/train/normal/1.png and so on.

| config | whose settings |
| --- | --- |
| camelyon.py | ours: as cifar10.py, with five semantics for each of the 2 classes |
| camelyon.py:dpimagebench | DPImageBench: 5% of ImageNet, sigma1 = 500, 50 epochs, K = 32, N = 269,538 |

DPImageBench holds back 32,898 of the 302,436 training images to choose classifiers by; here as many are left out.
`--method dp_feta` has its 250 noisy means of each class, of 12,000 images at a time, with sigma = 10.
Patches of one patient are many: the unit of the guarantee is one patch.
"""

from ml_collections import ConfigDict

from privimage_jax.configs import base, published

VARIANTS = ("", "dpimagebench")


def get_config(whose: str = "") -> ConfigDict:
    """Pictures of 96x96 pixels, resized."""
    published.check("camelyon.py", whose, VARIANTS)
    config = base.get_config()
    config.name = "Camelyon17"
    config.data.name = ""
    config.data.source, config.data.path = "folder", "camelyon17"
    config.data.class_names = ("normal", "tumor")
    config.data.n = 302436
    config.query.k1 = 5
    config.selection.ratio = 0.01
    if whose == "dpimagebench":
        published.dpimagebench(config, n_classes=2, sigma1=500.0, epochs=50.0)
        published.noisy_means(config, means=250, subset_size=12000, sigma=10.0)
        config.data.max_examples = config.data.n = 269538
    return config
