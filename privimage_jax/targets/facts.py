"""The public numbers of a config's data sets that its programs' shapes depend on, without reading any data."""

import dataclasses

from ml_collections import ConfigDict

from privimage_jax.data.sources.glyphs import CHARACTERS
from privimage_jax.errors import UserError
from privimage_jax.settings import derived

# TFDS sets by name: images of the training part, and classes, as the TFDS catalogue has them.
_KNOWN = {
    "cifar10": (50_000, 10),
    "cifar100": (50_000, 100),
    "emnist": (697_932, 62),
    "eurosat": (27_000, 10),
    "fashion_mnist": (60_000, 10),
    "imagenet2012": (1_281_167, 1000),
    "imagenet_resized": (1_281_167, 1000),
    "mnist": (60_000, 10),
    "places365_small": (1_803_460, 365),
    "svhn_cropped": (73_257, 10),
}
_DIGITS = (1797, 10)  # scikit-learn's


@dataclasses.dataclass(frozen=True)
class Facts:
    """Images and classes of the sensitive and of the public training part."""

    n: int
    n_classes: int
    public_n: int
    public_classes: int


def gather(config: ConfigDict, n_classes: int = 0, public_n: int = 0, public_classes: int = 0) -> Facts:
    """What the config says, and the flags for what it does not.

    Args:
      config: a checked config.
      n_classes, public_n, public_classes: of the flags `--classes`, `--public_n` and `--public_classes`; 0 = not given.

    Raises:
      UserError: naming the setting or flag that is missing.
    """
    n = derived.declared_n(config)
    n_classes = n_classes or len(config.data.class_names) or _of_source(config.data)[1]
    if not n_classes:
        raise UserError("config.data.class_names is empty; give the number of sensitive classes, as --classes=10.")
    found = _of_source(config.public)
    public_n, public_classes = public_n or found[0], public_classes or len(config.public.class_names) or found[1]
    for flag, value, example in (("public_n", public_n, 1281167), ("public_classes", public_classes, 1000)):
        if not value and _needs_public(config):
            what = "images" if flag == "public_n" else "classes"
            raise UserError(
                f"config.public does not say how many {what} it has; give their number, as --{flag}={example}."
            )
    if config.public.max_examples and public_n:
        public_n = min(public_n, config.public.max_examples)
    derived.check_against_n(config, n)
    if _needs_public(config):
        derived.check_against_classes(config, n_classes, public_classes, public_classes)
    return Facts(n, n_classes, public_n, public_classes)


def _needs_public(config: ConfigDict) -> bool:
    return bool(config.selection.method == "semantic" or config.evaluate.enabled or config.pretrain.steps)


def selected(config: ConfigDict, facts: Facts) -> int:
    """How many images pre-training sees: all public ones, or the picked share of classes of equal size, or means."""
    if not config.pretrain.steps:
        return config.warmup.means * facts.n_classes
    if not derived.picks_semantics(config):
        return facts.public_n
    picked = derived.k2(config, facts.n_classes, facts.public_classes) * facts.n_classes
    return max(1, facts.public_n * picked // facts.public_classes)


def _of_source(section: ConfigDict) -> tuple[int, int]:
    """Images of the training part and classes; 0 where the source does not tell."""
    if section.source == "tfds" and not section.path:
        return _KNOWN.get(section.name.partition("/")[0].partition(":")[0], (0, 0))
    if section.source == "digits":
        return round(_DIGITS[0] * (1 - section.test_fraction)), _DIGITS[1]
    if section.source == "glyphs":
        characters = len(section.characters or CHARACTERS)
        return round(characters * section.per_class * (1 - section.test_fraction)), characters
    return 0, 0
