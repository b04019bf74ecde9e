"""CelebA under DP, two classes (the attribute Male), at 32x32, 64x64 or 128x128, with ImageNet as public set.

    privimage prepare celeb_a && privimage prepare imagenet_resized/32x32
    privimage run --config configs/celeba.py --workdir runs/celeba32
    privimage prepare imagenet_resized/64x64
    privimage run --config configs/celeba.py:64 --workdir runs/celeba64

| config | whose settings |
| --- | --- |
| celeba.py:32 (or nothing), :64, :128 | ours: the central 140 pixels, 1% of ImageNet, 5,000 steps, K = 8 |
| :official_32, :official_64 | the code of PrivImage: 1% of ImageNet, 72,000 steps, 50 epochs, sigma1 = 5300 |
| :dpimagebench_32, :dpimagebench_64, :dpimagebench_128 | DPImageBench: 5%, N = 145,064, K = 32, 16 and 4 |

PrivImage's own code makes faces without a label: it counts ten semantics of each image and picks ten for all. Here each
of the two classes picks five. How many images it took is not published; here N is that of the training part.
DPImageBench holds back 17,706 training images to choose classifiers by; here as many are left out. At 128x128 the
public set is TFDS's imagenet2012, resized here; it has to be downloaded by hand.

`--method dp_feta` has DPImageBench's 250 noisy means of each class, of 12,000 images at a time, with sigma = 10. Its
epochs and K are those of its PrivImage here. DPImageBench's DP-FETA has 150 epochs at 32x32 (K = 32), 50 at 64x64 and
100 at 128x128 (K = 4): add --config.finetune.epochs=150, and so on.

Data already on disk, as prepared TFDS folders:

    --config.data.path=DIR/celeb_a/2.1.0 --config.public.path=DIR/imagenet_resized/32x32/0.1.0

Photographs as class folders instead: --config.data.source=folder --config.data.path=FOLDER --config.data.n=0
"""

from ml_collections import ConfigDict

from privimage_jax.configs import base, published

VARIANTS = ("32", "64", "128", "official_32", "official_64", "dpimagebench_32", "dpimagebench_64", "dpimagebench_128")


def get_config(variant: str = "32") -> ConfigDict:
    """A size, or whose settings and a size."""
    published.check("celeba.py", variant, VARIANTS)
    whose, _, size = variant.rpartition("_")
    config = base.get_config()
    config.name = f"CelebA {size}x{size}"
    config.data.name = "celeb_a"
    config.data.label_key = "attributes/Male"
    config.data.class_names = ("female", "male")
    config.data.crop = 140
    config.data.n = 162770
    config.data.image_size = int(size)
    config.public.name = "imagenet2012" if size == "128" else f"imagenet_resized/{size}x{size}"
    config.query.k1 = 5
    config.selection.ratio = 0.01  # five semantics of 1,000 for each of the 2 classes
    if size != "32":
        config.model.kwargs.ch_mult = {"64": (1, 2, 2, 4), "128": (1, 1, 2, 2, 4)}[size]
        config.model.kwargs.attn = (16, 8)
    if whose:
        config.data.crop = 0  # the whole width
        {"official": _official, "dpimagebench": _dpimagebench}[whose](config, size)
    return config


def _official(config: ConfigDict, size: str) -> None:
    published.official(config)
    config.privacy.delta = 1e-6
    config.query.k1, config.query.noise_multiplier = 10, 5300.0
    config.selection.k2 = 5
    config.model.kwargs.ch_mult = {"32": (1, 2, 2), "64": (1, 1, 2, 2)}[size]
    config.model.kwargs.attn = (8, 16)
    config.pretrain.steps = published.steps(6000, 10, config.pretrain.batch_size)
    config.finetune.batch_size = {"32": 19384, "64": 8192}[size]


def _dpimagebench(config: ConfigDict, size: str) -> None:
    epochs, noise_multiplicity = {"32": (100.0, 32), "64": (100.0, 16), "128": (50.0, 4)}[size]
    pretrain_epochs, pretrain_batch_size = (800, 64) if size == "128" else (3200, 1024)
    published.dpimagebench(
        config,
        n_classes=2,
        sigma1=500.0,
        pretrain_epochs=pretrain_epochs,
        pretrain_batch_size=pretrain_batch_size,
        epochs=epochs,
        noise_multiplicity=noise_multiplicity,
    )
    config.model.kwargs.ch_mult = {"32": (2, 4), "64": (1, 2, 4), "128": (1, 2, 4)}[size]
    config.model.kwargs.attn = {"32": (16,), "64": (32, 16), "128": (64, 32)}[size]
    config.data.split, config.data.n = "train[:145064]", 145064
    published.noisy_means(config, means=250, subset_size=12000, sigma=10.0)
