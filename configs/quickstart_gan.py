"""The quickstart with a GAN in place of the diffusion model (PrivImage+G).

    privimage run --config configs/quickstart_gan.py --workdir runs/quickstart_gan

The settings were chosen on a validation split of the sensitive part, as those of configs/quickstart.py. Few and gentle
steps do best: the discriminator's noised gradients take from the variety that pre-training has given.
"""

from ml_collections import ConfigDict

from privimage_jax.configs import quickstart
from privimage_jax.settings import methods


def get_config() -> ConfigDict:
    """Networks of 0.1 M parameters in all."""
    config = quickstart.get_config()
    methods.apply(config, "privimage_gan")
    config.name = "Quickstart with a GAN: handwritten digits"

    config.pretrain.steps = 3000
    config.gan.pretrain_rate = 1e-3
    return config
