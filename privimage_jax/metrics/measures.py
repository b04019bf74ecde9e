"""All measures, a row each; evaluation, pages and comparison loop over them."""

import re
from collections.abc import Iterable, Sequence

from privimage_jax.errors import UserError
from privimage_jax.metrics import fid, fld, inception_score, kid
from privimage_jax.metrics.measure import Measure
from privimage_jax.settings import import_strings

_CLASSIFIER = ("evaluate.classifier_",)
_FACTS = ("private", "note", "extractor", "recipe", "classifier", "inception_sha256", "pretrained")  # in the JSON

MEASURES: dict[str, Measure] = {
    "fid": Measure(
        "FID",
        "Fréchet distance between the features of synthetic and real images, each taken for one Gaussian cloud.",
        "lower",
        of=lambda sets: fid.frechet_distance(
            sets.test.mean, sets.test.covariance, *fid.mean_and_covariance(sets.synthetic.features)
        ),
    ),
    "kid": Measure(
        "KID",
        "Kernel distance between the two sets of features; unlike FID it does not depend on the number of images, and "
        "may fall slightly below 0.",
        "lower",
        of=lambda sets: kid.kid(sets.test.features, sets.synthetic.features),
    ),
    "inception_score": Measure(
        "Inception Score",
        "How sure the feature network is of single synthetic images and how varied it finds all of them; 1 is the "
        "worst, and real images are not looked at.",
        "higher",
        of=lambda sets: inception_score.of_logits(sets.synthetic.logits),
    ),
    "precision": Measure(
        "Precision",
        "Share of synthetic images that lie where real ones are: how believable they are.",
        "higher",
        True,
        of=lambda sets: sets.precision_recall[0],
    ),
    "recall": Measure(
        "Recall",
        "Share of real images that lie where synthetic ones are: how much of their variety is met.",
        "higher",
        True,
        of=lambda sets: sets.precision_recall[1],
    ),
    "fld": Measure(
        "FLD",
        "How much less likely real test images are under the synthetic set than under the training set; synthetic "
        "images that copy training images make it worse.",
        "lower",
        of=lambda sets: fld.fld(sets.train, sets.test.features, sets.synthetic.features),
    ),
    "sds": Measure(
        "SDS",
        "Likeness of the semantics that the query network sees in both sets; 1 is the same.",
        "higher",
        needs="query network",
        comparable_when=("query.k1", "evaluate.max_images"),
    ),
    "accuracy_synthetic": Measure(
        "Accuracy, trained on synthetic",
        "Share of held-out real images that a classifier gets right which has seen synthetic images only.",
        "higher",
        True,
        needs="classifier",
        comparable_when=_CLASSIFIER,
    ),
    "accuracy_real": Measure(
        "Accuracy, trained on real",
        "The same classifier after training on the real images themselves: the ceiling of the line above.",
        "higher",
        True,
        needs="classifier",
        comparable_when=_CLASSIFIER,
    ),
    "accuracy_labels": Measure(
        "Labels that a classifier agrees with",
        "Share of synthetic images that the classifier which learnt from real ones gives their label. Where it is low, "
        "images show something else than their label says; where it is high, they may still be much alike.",
        "higher",
        True,
        needs="classifier",
        comparable_when=_CLASSIFIER,
    ),
    "accuracy_majority": Measure(
        "Accuracy of the commonest class",
        "Share of held-out real images that are of their commonest class: what always answering it gets right. An "
        "accuracy near it says little.",
        is_share=True,
        needs="",
        comparable_when=(),
    ),
    "accuracy_features": Measure(
        "Accuracy by features",
        "Share of held-out real images whose class has the nearest mean of features: what the network that measures "
        "fidelity sees of the classes.",
        is_share=True,
        comparable_when=("evaluate.max_images",),
    ),
    "query_accuracy": Measure(
        "Accuracy of the query network",
        "Share of held-out public images that it gets right.",
        "higher",
        True,
        needs="",
        comparable_when=("public.",),
    ),
    "query_accuracy_top5": Measure(
        "Accuracy of the query network, five strongest",
        "Share of held-out public images whose class is among its five strongest.",
        "higher",
        True,
        needs="",
        comparable_when=("public.",),
    ),
    "picks_agreeing": Measure(
        "Picks that the noise left alone",
        "Share of the picked semantics that the exact counts of the query would have picked as well.",
        "higher",
        True,
        needs="query network",
        comparable_when=("query.k1", "selection."),
    ),
    "sigma1": Measure("σ1", "Noise multiplier of the semantic query, a setting."),
    "sigma2": Measure(
        "σ2",
        "Noise multiplier of DP-SGD that the budget asks for, by either accountant; the run used that of "
        "config.privacy.accountant.",
    ),
    "classifier_seeds": Measure("Seeds", "Classifiers that each accuracy is the mean of."),
    "real_test_images": Measure(
        "Held-out real images",
        "Real images that training never saw; the accuracies use all of them, the Inception Score none, the rest at "
        "most config.evaluate.max_images.",
    ),
    "real_test_people": Measure("Held-out people", "People whom the held-out images show, and no other."),
    "synthetic_images": Measure("Synthetic images", "Images of the synthetic set."),
    "public_test_images": Measure("Held-out public images", "Those that the query network was tried on."),
}


def with_outside(names: Sequence[str]) -> dict[str, Measure]:
    """`MEASURES`, and those that `config.evaluate.measures` names.

    Args:
      names: "package.module:NAME" of a `Measure` that has a name and an `of`.

    Raises:
      UserError: if one cannot be loaded, is no such record, or takes a name of another.
    """
    table = dict(MEASURES)
    for name in names:
        found = import_strings.load_record(name, "config.evaluate.measures", Measure)
        key = f"config.evaluate.measures: {name}"
        if not callable(found.of) or not re.fullmatch(r"[a-z][a-z0-9_]*", found.name):
            raise UserError(f"{key} needs a name in lower case and a function `of`; give both.")
        if taken := _stem(found.name, (*table, *_FACTS)):
            raise UserError(f"{key} has the name {found.name!r}, which belongs to {taken}; rename it.")
        table[found.name] = found
    return table


def _stem(name: str, table: Iterable[str]) -> str:
    """The entry whose numbers have names of this kind, or that has the name itself; "" if there is none."""
    return next((each for each in table if f"{name}_".startswith(f"{each}_")), "")
