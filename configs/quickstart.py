"""The quickstart: scikit-learn's 8x8 handwritten digits under epsilon = 10, with rendered glyphs as public set.

    privimage run --config configs/quickstart.py --workdir runs/quickstart

Two CPU cores, no data to download. Four fifths of the 1,797 digits are sensitive, one fifth is held out for evaluation.
The settings were chosen on a validation split of the sensitive part (--config.data.validation_fraction=0.2
--config.data.n=0), never on the held-out part. With images that are not public, such a choice would be outside the
guarantee.
"""

from ml_collections import ConfigDict

from privimage_jax.configs import base


def get_config() -> ConfigDict:
    """A small denoiser, 62 semantics, 1,437 sensitive images."""
    config = base.get_config()
    config.name = "Quickstart: handwritten digits"

    config.data.source = "digits"
    config.data.class_names = tuple("0123456789")
    config.data.n = 1437
    config.data.image_size = 8
    config.data.channels = 1

    config.public.source = "glyphs"
    config.public.test_fraction = 0.02

    config.query_net.model = "resnet9"
    config.query_net.kwargs.width = 16
    config.query_net.epochs = 8.0
    config.query_net.batch_size = 256
    config.query_net.learning_rate = 0.1
    config.query_net.flip = False
    config.query_net.shift = 1

    config.query.k1 = 1
    config.query.noise_multiplier = 5.0
    config.selection.k2 = 1
    config.selection.assignment = "optimal"

    config.model.kwargs.nf = 16
    config.model.kwargs.ch_mult = (2, 2)
    config.model.kwargs.attn = ()
    config.model.kwargs.num_blocks = 1

    config.gan.noise = 16
    config.gan.embedding = 16
    config.gan.generator_width = 32
    config.gan.discriminator_width = 32
    config.gan.discriminator_steps = 2
    config.gan.batch_size = 256

    config.pretrain.steps = 1500
    config.pretrain.batch_size = 128
    config.pretrain.learning_rate = 1e-3
    config.pretrain.flip = False

    config.warmup.subset_size = 500  # a third of the images
    config.warmup.steps = 1500
    config.warmup.learning_rate = 1e-3

    config.finetune.batch_size = 512
    config.finetune.steps = 100
    config.finetune.noise_multiplicity = 4
    config.finetune.learning_rate = 2e-3
    config.finetune.ema = 0.95

    config.sample.n = 2000
    config.sample.batch_size = 500
    config.sample.steps = 30

    config.sampler_choice.n = 1000
    config.sampler_choice.classifier_steps = 500
    config.sampler_choice.noise_multiplier = 10.0

    config.evaluate.classifier_steps = 1500

    config.log.every = 10
    config.log.sample_every = 500
    config.log.checkpoint_every = 50
    return config
