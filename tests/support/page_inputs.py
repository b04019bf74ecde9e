"""What the pages of the tests show."""

from collections.abc import Sequence

import numpy as np

from privimage_jax.data.dataset import Dataset
from privimage_jax.data.inspection.findings import Finding
from privimage_jax.data.inspection.found import Found
from privimage_jax.data.inspection.statistics import measure
from privimage_jax.report.comparison import RunInputs
from privimage_jax.report.curves import Metric
from privimage_jax.report.evaluation import EvaluationInputs
from privimage_jax.report.gallery import ImageSet
from privimage_jax.report.inspection import ShownSet
from privimage_jax.report.page import ReportInputs
from privimage_jax.report.study import StudyInputs

ENTRIES = [
    {"index": 0, "kind": "open", "n": 1000, "accountant": "pld", "previous": "0" * 64},
    {
        "index": 1,
        "kind": "gaussian",
        "mechanism": "semantic query",
        "noise_multiplier": 50.0,
        "epsilon": 0.25,
        "previous": "ab12" * 16,
    },
    *(
        {
            "index": 2 + block,
            "kind": "dp-sgd",
            "mechanism": "fine-tuning",
            "noise_multiplier": 2.097,
            "sampling_rate": 0.09102,
            "steps": [1000 * block, 1000 * (block + 1)],
            "epsilon": epsilon,
            "previous": "cd34" * 16,
        }
        for block, epsilon in enumerate((0.75, 1.0))
    ),
    {"index": 4, "kind": "closed", "mechanism": "fine-tuning", "epsilon": 1.0, "previous": "ef56" * 16},
]
CURVE = Metric(np.array([10, 20]), np.array([1.0, 0.5]))
RESULTS = {
    "private": False,
    "extractor": "<query>",
    "accuracy_real": 0.75,
    "accuracy_synthetic": 0.5,
    "accuracy_synthetic_cnn_std": 0.015,
    "fid": 12.3456,
    "fid_inception": 20,
    "one_more": 3,
    "note": "keep it internal",
}


def release() -> ReportInputs:
    """Two classes with four and five images, a query, two mechanisms."""
    rng = np.random.default_rng(0)
    return ReportInputs(
        title="Cats & <dogs>",
        epsilon=1.0,
        delta=1e-5,
        n=1000,
        entries=ENTRIES,
        ledger_ok=True,
        semantics={
            "class_names": ["cat", "dog"],
            "semantic_names": [f"semantic {index}" for index in range(40)],
            "histogram": [[100 - index for index in range(40)], [index - 20 for index in range(40)]],
            "picked": [[0, 1], [39, 5]],
        },
        images=rng.integers(0, 256, (9, 4, 4, 3), np.uint8),
        labels=np.array([0, 1] * 4 + [1]),
        class_names=("cat", "dog"),
        settings={"name": "pets", "model.kwargs.nf": "32", "finetune.batch_size": "4,096"},
    )


def evaluation() -> EvaluationInputs:
    """Two sets, of which one has no dog, and one stage with a curve."""
    images = np.zeros((2, 4, 4, 1), np.uint8)
    return EvaluationInputs(
        title="Cats",
        results=RESULTS,
        sets=[ImageSet("real", images, np.array([0, 1])), ImageSet("synthetic", images, np.array([0, 0]))],
        class_names=("cat", "dog"),
        training=[("Fine-tuning", {"clipped": CURVE, "processed": CURVE}), ("Pre-training", {})],
    )


def run(name: str, **changes) -> RunInputs:
    """One of several runs."""
    values = {
        "epsilon": 1.0,
        "delta": 1e-5,
        "private": True,
        "settings": {"name": name, "seed": 1},
        "query_network": "ab12",
        "results": RESULTS,
        "images": np.zeros((4, 4, 4, 1), np.uint8),
        "labels": np.array([0, 1, 0, 1]),
        "class_names": ("cat", "dog"),
    }
    return RunInputs(name, **(values | changes))


def study(images: Sequence[ImageSet] = (), class_names: Sequence[str] = ()) -> StudyInputs:
    """Two methods at two budgets, of which the second lacks a seed at the second; a failed run and a missing one."""
    one = {"runs": 2, "failed": 0, "seeds": "0 1", "fid_sd": 0.25, "epsilon": 1.0001, "parameters": 1500}
    two = {**one, "accuracy_synthetic": 0.75, "accuracy_synthetic_sd": 0.0125, "seconds": 12.5, "seconds_sd": 0.5}
    table = [
        {"method": "<privimage>", "privacy.epsilon": 1.0, "fid": 12.5, **two},
        {"method": "dpdm", "privacy.epsilon": 1.0, "fid": 25.0, **one},
        {"method": "<privimage>", "privacy.epsilon": 10.0, "fid": 6.5, **two},
        {"method": "dpdm", "privacy.epsilon": 10.0, "fid": 3.25, **one, "runs": 1, "failed": 1, "seeds": "0"},
    ]
    runs = [
        {"run": "dpdm-eps10-seed0", "status": "done", "fid": 3.25, "epsilon": 9.5, "peak_host_bytes": 2**31},
        {"run": "dpdm-eps10-seed1", "status": "failed", "error": "the <memory> does not suffice."},
    ]
    return StudyInputs("Cats & <dogs>", table, runs, ["dpdm-eps1-seed2"], "A sentence.", images, class_names)


def found(class_names) -> dict[str, Found]:
    """Two sets with all that can be known of them, a warning and a refusal."""
    classes = {name: 10 * (number + 1) for number, name in enumerate(class_names)}
    people = {"count": 9, "most_images_of_one": 4}
    one = Found("folder", "class folders", 40, classes, {"train": 40, "val": 8}, {"28×28": 40}, {"8-bit": 40}, people)
    wrong = Finding("nearly_black", "20 of 40 images are <black>; give config.data.intensity=0:4095.", refuses=True)
    note = Finding("unread", "the part val is not read.")
    many = Found("npz", classes={f"semantic {number}": number for number in range(40)})
    return {"data": one.with_findings([note, wrong]), "public": many}


def shown(images: ImageSet, class_names) -> ShownSet:
    """A set of images as the page of an inspection takes it."""
    dataset = Dataset(np.asarray(images.images), images.labels.astype(np.int32), tuple(class_names), images.name)
    return ShownSet("data", images.name, dataset, measure(dataset.images).histogram)
