"""What the settings of `config.evaluate` ask of each other."""

from ml_collections import ConfigDict

from privimage_jax.errors import UserError

INCEPTION_WEIGHTS = (  # what to do where they are missing or wrong
    "download pt_inception-2015-12-05-6726825d.pth from the release fid_weights of "
    "https://github.com/mseitzer/pytorch-fid"
)


def short_name(name: str) -> str:
    """What results and settings call a model or extractor: its own name, or the last part of "package.module:Class"."""
    return name.rpartition(":")[2]


def check(evaluate: ConfigDict) -> None:
    """Refuses extractors whose names are alike or that lack a file, and arguments of models that are not used.

    Raises:
      UserError: naming the setting.
    """
    if evaluate.enabled:
        _check_extractors(evaluate)
    _check_classifier_kwargs(evaluate)


def _check_extractors(evaluate: ConfigDict) -> None:
    names = [short_name(name) for name in evaluate.extractors]
    if len(set(names)) < len(names):
        raise UserError(
            f"config.evaluate.extractors={evaluate.extractors} names {max(names, key=names.count)} twice, and the "
            "names tell the figures apart; give each once, under a name of its own."
        )
    if "inception" in evaluate.extractors and not evaluate.inception_weights:
        raise UserError(
            "config.evaluate.inception_weights is empty, but config.evaluate.extractors names inception; "
            f"{INCEPTION_WEIGHTS}, and give its path."
        )


def _check_classifier_kwargs(evaluate: ConfigDict) -> None:
    section, names = "config.evaluate.classifier_kwargs", [short_name(name) for name in evaluate.classifiers]
    for name, value in evaluate.classifier_kwargs.items():
        if not isinstance(value, ConfigDict):
            raise UserError(
                f"{section}.{name}={value!r} is of no model; give it under a model's name: {section}.{names[0]}.{name}."
            )
        if value and name not in names:
            raise UserError(
                f"{section}.{name} has arguments of a model that config.evaluate.classifiers does not name (it names "
                f"{', '.join(names)}); add the model or leave them out."
            )
