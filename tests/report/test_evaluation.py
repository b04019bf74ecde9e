"""The internal page of one run: it says that it is not private, and what every number means."""

import page_inputs
import pytest
from page_inputs import RESULTS

from privimage_jax.report import evaluation, measures


@pytest.fixture
def page():
    return evaluation.render(page_inputs.evaluation())


def test_the_page_is_marked_and_holds_everything(page):
    assert "Not private: keep internal" in page
    for words in ("Lower is better.", "FID (inception)", "50.0%", "± Accuracy, trained on synthetic (cnn)", "1.5%"):
        assert words in page
    assert "extractor: &lt;query&gt;." in page
    assert page.count("<img") == 4 and page.count("<polyline") == 1
    assert "<h2>Fine-tuning</h2>" in page and "<h2>Pre-training</h2>" not in page


def test_known_numbers_come_first_and_unknown_ones_last():
    expected = ["fid", "fid_inception", "accuracy_synthetic", "accuracy_synthetic_cnn_std", "accuracy_real", "one_more"]
    assert list(measures.numbers(RESULTS)) == expected


@pytest.mark.parametrize(
    ("name", "title"),
    [
        ("fid", "FID"),
        ("kid_inception", "KID (inception)"),
        ("accuracy_synthetic_resnet9", "Accuracy, trained on synthetic (resnet9)"),
        ("accuracy_real_std", "± Accuracy, trained on real"),
        ("pretrained_fid", "FID before fine-tuning"),
        ("pretrained_recall_inception", "Recall (inception) before fine-tuning"),
        ("query_accuracy_top5", "Accuracy of the query network, five strongest"),
        ("sigma2_rdp", "σ2 (rdp)"),
        ("fiddle", None),
        ("pretrained_fiddle", None),
    ],
)
def test_names_are_understood(name, title):
    measure = measures.describe(name)
    assert (measure and measure.title) == title


def test_what_was_drawn_before_fine_tuning_stands_behind_the_same_measure():
    given = {"recall": 1, "pretrained_fid": 2, "fid_query": 3, "pretrained_fid_query": 4, "fid": 5}
    assert list(measures.numbers(given)) == ["fid", "pretrained_fid", "fid_query", "pretrained_fid_query", "recall"]


def test_the_best_of_a_line():
    assert measures.best("fid", [2.0, None, 1.0, 1.0]) == {2, 3}
    assert measures.best("recall", [0.2, 0.1]) == {0}
    assert measures.best("recall", [0.2, 0.2]) == measures.best("fiddle", [1, 2]) == set()
    assert measures.best("accuracy_real_std", [0.1, 0.2]) == set()
