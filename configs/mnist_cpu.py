"""MNIST under epsilon = 10 with small ImageNet images, in grey, as public set, at a size for two CPU cores and an hour.

    XLA_FLAGS=--xla_force_host_platform_device_count=2 privimage run --config configs/mnist_cpu.py \\
        --workdir runs/mnist_cpu --config.data.path=DIR/mnist/3.0.1 --config.public.path=DIR/tiny_imagenet32/1.0.0

The flag shares each batch between two simulated devices, which uses two cores better than one device does. Any prepared
TFDS set of labelled pictures can take the public role. The published size is configs/mnist.py: at 28x28, two cores see
too few examples in an hour for a generator to learn which digit is which.
"""

from ml_collections import ConfigDict

from privimage_jax.configs import mnist


def get_config() -> ConfigDict:
    """16x16 images, a denoiser of 0.26 M parameters, 40 of 200 public classes, 1000 DP-SGD steps of ~1024 images."""
    config = mnist.get_config()
    config.name = "MNIST at 16x16 on two CPU cores"
    config.data.image_size = 16

    config.query_net.model = "resnet9"
    config.query_net.kwargs.width = 16
    config.query_net.epochs = 3.0
    config.query_net.batch_size = 128
    config.query_net.learning_rate = 0.1

    config.query.k1 = 4
    config.selection.ratio = 0.0
    config.selection.k2 = 4

    config.model.kwargs.nf = 16
    config.model.kwargs.ch_mult = (2, 2)
    config.model.kwargs.attn = ()
    config.model.kwargs.num_blocks = 1

    config.diffusion.p_mean = -0.5  # which digit it is shows at larger noise levels than how it is drawn

    config.gan.noise = 16
    config.gan.embedding = 16
    config.gan.generator_width = 16
    config.gan.discriminator_width = 16
    config.gan.discriminator_steps = 2
    config.gan.batch_size = 256

    config.pretrain.steps = 1200
    config.pretrain.batch_size = 128
    config.pretrain.learning_rate = 1e-3

    config.finetune.batch_size = 1024
    config.finetune.steps = 1000
    config.finetune.noise_multiplicity = 1
    config.finetune.learning_rate = 3e-3
    config.finetune.ema = 0.99

    config.sample.n = 4000
    config.sample.batch_size = 500
    config.sample.steps = 30
    config.sample.guidance = 2.0

    config.evaluate.max_images = 4000
    config.evaluate.classifier_steps = 800
    config.evaluate.classifier_batch_size = 64

    config.log.every = 10
    config.log.sample_every = 200
    config.log.checkpoint_every = 50
    return config
