"""The studies of docs/methods.md: every method with equal steps of DP-SGD, at a size for two CPU cores.

    privimage study --config configs/study.py:mnist_glyphs --config.data.path=DIR/mnist/3.0.1 --workdir runs/study \\
        --methods privimage,pdp_diffusion,dpdm --epsilons 1,10 --seeds 3 --acknowledge_looks

| config | sensitive set | public set |
| --- | --- | --- |
| study.py:mnist_glyphs | MNIST, 28x28 | rendered letters and digits |
| study.py:mnist_glyphs_long | the same, with twenty times the gradients | the same |
| study.py:mnist_natural | MNIST, 16x16 | 200 classes of 32x32 ImageNet pictures, in grey |
| study.py:cifar10_natural | CIFAR-10, 16x16 | the same pictures, in colour |

The last two take --config.public.path=DIR/tiny_imagenet32/1.0.0, or another prepared TFDS set of labelled pictures, as
well. All but the long one, which is a run of its own, suit every method of docs/methods.md.
"""

from ml_collections import ConfigDict

from privimage_jax.configs import cifar10, mnist, published

VARIANTS = ("mnist_glyphs", "mnist_glyphs_long", "mnist_natural", "cifar10_natural")


def get_config(which: str = "") -> ConfigDict:
    """A denoiser of 0.3 M parameters that sees squares of 4x4 or 2x2 pixels as one position."""
    published.check("study.py", which, VARIANTS)
    config = cifar10.get_config() if which == "cifar10_natural" else mnist.get_config()
    _for_two_cores(config)
    if which.endswith("_natural"):
        _natural(config)
        return config
    _glyphs(config)
    if which.endswith("_long"):
        _long(config)
    return config


def _for_two_cores(config: ConfigDict) -> None:
    """What all studies share."""
    config.query_net.model = "resnet9"
    config.query_net.kwargs.width = 16
    config.query_net.epochs = 3.0
    config.query_net.batch_size = 128
    config.query_net.learning_rate = 0.1

    config.query.noise_multiplier = 50.0
    config.selection.ratio = 0.0
    config.selection.assignment = "optimal"

    config.model.kwargs.nf = 32
    config.model.kwargs.ch_mult = (1, 1)
    config.model.kwargs.attn = ()
    config.model.kwargs.num_blocks = 1

    config.diffusion.p_mean = 0.0  # what an image shows is told by larger noise levels than how it is drawn

    config.gan.noise = 16
    config.gan.embedding = 16
    config.gan.generator_width = 16
    config.gan.discriminator_width = 16
    config.gan.discriminator_steps = 1
    config.gan.batch_size = 64

    config.pretrain.learning_rate = 4e-3
    config.pretrain.ema = 0.998
    config.warmup.steps = 3000
    config.warmup.learning_rate = 4e-3

    config.finetune.batch_size = 1024
    config.finetune.noise_multiplicity = 1
    config.finetune.learning_rate = 5e-3
    config.finetune.ema = 0.96
    config.finetune.lora_scale = 10.0  # two narrow factors in place of a kernel move it far less at the same rate

    config.sample.n = 4000
    config.sample.batch_size = 500
    config.sample.steps = 30
    config.sample.guidance = 2.0

    config.evaluate.max_images = 4000
    config.evaluate.classifier_steps = 1500
    config.evaluate.classifier_batch_size = 64
    config.evaluate.classifier_kwargs.cnn.width = 16

    config.log.every = 10
    config.log.sample_every = 0
    config.log.checkpoint_every = 50


def _glyphs(config: ConfigDict) -> None:
    """Rendered letters and digits as public set; 75 steps of DP-SGD."""
    config.name = "MNIST from glyphs"
    config.public.source, config.public.name, config.public.test_split = "glyphs", "", "test"
    config.public.per_class = 400
    config.public.test_fraction = 0.05

    config.query_net.flip = False
    config.query_net.shift = 2
    config.selection.k2 = 1

    config.model.kwargs.patch = 4
    config.pretrain.steps = 10000
    config.pretrain.batch_size = 32
    config.finetune.steps = 75


def _long(config: ConfigDict) -> None:
    """Finer patches, 750 steps of twice the batch, and the noisy means of DP-FETA: two hours of one core."""
    config.name = "MNIST from glyphs and noisy means"
    config.model.kwargs.patch = 2
    config.warmup.enabled = True

    config.finetune.batch_size = 2048
    config.finetune.steps = 750
    config.finetune.learning_rate = 4e-3
    config.finetune.ema = 0.98

    config.sample.n = 30000
    config.sample.guidance = 0.0  # a generator that knows the digits needs none

    config.evaluate.classifier_steps = 4000
    config.evaluate.classifier_kwargs.cnn.width = 32
    config.log.checkpoint_every = 25


def _natural(config: ConfigDict) -> None:
    """Small ImageNet pictures as public set; 16x16 pixels and 150 steps of DP-SGD."""
    config.name = f"{config.name} from small pictures"
    config.data.image_size = 16

    config.query.k1 = 4
    config.selection.k2 = 4

    config.model.kwargs.patch = 2
    config.pretrain.steps = 4000
    config.pretrain.batch_size = 64
    config.finetune.steps = 150
