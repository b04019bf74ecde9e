"""CIFAR-10 under DP with ImageNet as public set.

    privimage prepare cifar10 && privimage prepare imagenet_resized/32x32
    privimage run --config configs/cifar10.py --workdir runs/cifar10

| config | whose settings |
| --- | --- |
| cifar10.py | ours: 1% of ImageNet, 5,000 steps of pre-training, K = 8, else as DPImageBench |
| cifar10.py:official | the code of PrivImage: 5% of ImageNet, 500,000 steps, 50 epochs in batches of 19,384, K = 8 |
| cifar10.py:dpimagebench | DPImageBench: 5% of ImageNet, 198,400 steps, K = 32, N = 45,000 |

PrivImage's README has sigma1 = 50, its script and its accounting 484, which stands here: which of them made its figures
is not published. DPImageBench holds back 5,000 training images to choose classifiers by; here as many are left out.

Data already on disk, as prepared TFDS folders:

    --config.data.path=DIR/cifar10/3.0.2 --config.public.path=DIR/imagenet_resized/32x32/0.1.0

Other budgets: --config.privacy.epsilon=1. The published runs take about 50 GPU-hours; sigma2 is 2.10 at epsilon 10
for 45,000 images (`privimage budget --config configs/cifar10.py --config.data.n=45000`).
"""

from ml_collections import ConfigDict

from privimage_jax.configs import base, published

VARIANTS = ("", "official", "dpimagebench")


def get_config(whose: str = "") -> ConfigDict:
    """3.84 M parameters but for `official`; 150 epochs of DP-SGD with expected batches of 4096 but for `official`."""
    published.check("cifar10.py", whose, VARIANTS)
    config = base.get_config()
    config.name = "CIFAR-10"
    config.data.name = "cifar10"
    config.data.n = 50000
    config.query.k1 = 1
    config.selection.ratio = 0.01  # one semantic of 1,000 for each of the 10 classes
    if whose == "official":
        published.official(config)
        config.privacy.delta = 1e-5
        config.query.k1, config.query.noise_multiplier = 5, 484.0
        config.selection.k2 = 5
        config.model.kwargs.ch_mult = (1, 2, 2)
        config.pretrain.batch_size = 512
        config.pretrain.steps = published.steps(4000, 50, 512)
        config.finetune.batch_size = 19384
        config.sample.n = 50000
    elif whose == "dpimagebench":
        published.dpimagebench(config, n_classes=10)
        published.benchmark_cifar(config)
        config.data.split, config.data.n = "train[:45000]", 45000
    return config
