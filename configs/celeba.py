"""CelebA under DP, two classes (the attribute Male), at 32x32 or 64x64, with ImageNet as public set.

    privimage prepare celeb_a && privimage prepare imagenet_resized/32x32
    privimage run --config configs/celeba.py --workdir runs/celeba32
    privimage prepare imagenet_resized/64x64
    privimage run --config configs/celeba.py:64 --workdir runs/celeba64

Data already on disk, as prepared TFDS folders:

    --config.data.path=DIR/celeb_a/2.1.0 --config.public.path=DIR/imagenet_resized/32x32/0.1.0

Photographs as class folders instead: --config.data.source=folder --config.data.path=FOLDER --config.data.n=0
"""

from ml_collections import ConfigDict

from privimage_jax.configs import base


def get_config(size: str = "32") -> ConfigDict:
    """Faces cropped to the central 140 pixels; `size` is 32 or 64."""
    if size not in ("32", "64"):
        raise ValueError(f"size {size!r} is not published; give celeba.py:32 or celeba.py:64")
    config = base.get_config()
    config.name = f"CelebA {size}x{size}"
    config.data.name = "celeb_a"
    config.data.label_key = "attributes/Male"
    config.data.class_names = ("female", "male")
    config.data.crop = 140
    config.data.n = 162770
    config.data.image_size = int(size)
    config.public.name = f"imagenet_resized/{size}x{size}"
    config.query.k1 = 5
    config.selection.ratio = 0.01  # five semantics of 1,000 for each of the 2 classes
    if size == "64":
        config.model.kwargs.ch_mult = (1, 2, 2, 4)
        config.model.kwargs.attn = (16, 8)
    return config
