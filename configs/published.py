"""What published experiments have in common; not an experiment itself.

Two public codes are meant: PrivImage's own (github.com/SunnierLee/DP-ImaGen), as of November 2024, and DPImageBench
(Gong et al., CCS 2025, github.com/2019ChenGong/DPImageBench), as of January 2026. Published epochs of pre-training are
given as steps here, counted for classes of average size; an epoch drops what fills no batch.
"""

from collections.abc import Sequence

from ml_collections import ConfigDict

from privimage_jax.errors import UserError

IMAGENET = (1_281_167, 1000)  # images and classes
PLACES365 = (1_803_460, 365)


def check(file: str, variant: str, known: Sequence[str]) -> None:
    """Refuses a text behind the colon of `--config FILE:TEXT` that the file does not know.

    Raises:
      UserError: with those that it knows.
    """
    if variant not in known:
        ways = ", ".join(f"{file}:{name}" if name else file for name in known)
        raise UserError(f"configs/{file} knows no {variant!r}; give one of {ways}.")


def steps(epochs: int, classes: int, batch_size: int, public: tuple[int, int] = IMAGENET) -> int:
    """Steps of pre-training in so many passes over the images of some public classes, each of the average size.

    >>> steps(3200, classes=50, batch_size=1024)
    198400
    """
    return epochs * (public[0] * classes // public[1] // batch_size)


def dpimagebench(
    config: ConfigDict,
    n_classes: int,
    share: float = 0.05,
    sigma1: float = 50.0,
    pretrain_epochs: int = 3200,
    pretrain_batch_size: int = 1024,
    epochs: float = 150.0,
    noise_multiplicity: int = 32,
    public: tuple[int, int] = IMAGENET,
) -> None:
    """DPImageBench's PrivImage: what its files for all data sets share, and by default those for CIFAR-10.

    Delta is 1 / (N ln N), as its loader sets it, whatever its files say. Its query network sees images of 32x32 in
    colour; ours sees them as the generator makes them. No file of it has a learning rate, an average or a clip norm
    other than those of base.py.
    """
    semantics = int(public[1] * share / n_classes)
    config.name = f"{config.name}, as DPImageBench has it"
    config.query_net.model = "resnet50"
    config.query.k1 = semantics
    config.query.noise_multiplier = sigma1
    config.selection.k2, config.selection.ratio = semantics, 0.0
    config.pretrain.batch_size = pretrain_batch_size
    config.pretrain.steps = steps(pretrain_epochs, semantics * n_classes, pretrain_batch_size, public)
    config.pretrain.flip = True
    config.finetune.epochs = epochs
    config.finetune.noise_multiplicity = noise_multiplicity
    config.sample.steps = 250
    config.evaluate.recipe = "benchmark"
    config.evaluate.classifiers = ("resnet110", "wide_resnet", "resnext")
    config.evaluate.classifier_kwargs.wide_resnet.update({"depth": 40, "width": 4})


def noisy_means(config: ConfigDict, means: int, subset_size: int, sigma: float) -> None:
    """DPImageBench's DP-FETA (configs/DP-FETA): what its two budgets say of the means, for `--method dp_feta`.

    Those of base.py are those of the two MNIST sets and of CIFAR-10.
    """
    config.warmup.means, config.warmup.subset_size = means, subset_size
    config.warmup.noise_multiplier = sigma


def benchmark_cifar(config: ConfigDict) -> None:
    """DPImageBench's evaluation of the two CIFAR sets."""
    config.evaluate.recipe = "benchmark_cifar"
    config.evaluate.classifier_kwargs.resnet110.update({"blocks": (27, 27, 27)})
    config.evaluate.classifier_kwargs.wide_resnet = ConfigDict()


def benchmark_grey(config: ConfigDict) -> None:
    """DPImageBench's sampler of the two MNIST sets: the one for accuracies; for FIDs it has others, with guidance."""
    config.sample.sampler = "heun"
    config.sample.steps = 1000
    config.sample.s_churn, config.sample.s_min, config.sample.s_max, config.sample.s_noise = 10.0, 0.025, 50.0, 1.0


def official(config: ConfigDict) -> None:
    """PrivImage's own code: what its files share."""
    config.name = f"{config.name}, as PrivImage's code has it"
    config.privacy.accountant = "rdp"
    config.query_net.epochs = 60.0
    config.query_net.batch_size = 8192
    config.selection.ratio = 0.0
    config.pretrain.learning_rate = 1e-4
    config.finetune.epochs = 50.0
    config.finetune.noise_multiplicity = 8
