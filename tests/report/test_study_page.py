"""The page of a study marks what may be compared, names what failed, and needs nothing from elsewhere."""

import dataclasses
import re

import numpy as np
import page_inputs
import pytest

from privimage_jax.report import study
from privimage_jax.report.document import is_page
from privimage_jax.report.gallery import ImageSet


@pytest.fixture
def inputs():
    images = np.zeros((2, 4, 4, 1), np.uint8)
    return page_inputs.study([ImageSet("<privimage>", images, np.array([0, 1]))], ("cat", "dog"))


def test_it_is_a_page_that_is_not_private_and_loads_nothing(inputs):
    page = study.render(inputs)
    assert is_page("study", page.encode()) and "Not private: keep internal" in page
    assert not re.search(r"https?:|url\(|@import", page)
    assert page.count("<script") == 1 and "&lt;privimage&gt;" in page and "<privimage>" not in page
    assert page.count("<img") == 2


def test_means_have_their_spread_and_resources_their_units(inputs):
    page = study.render(inputs)
    for cell in (
        "12.5&nbsp;±&nbsp;0.25",
        "75.0%&nbsp;±&nbsp;1.2%",
        "12.5&nbsp;±&nbsp;0.5",
        ">1.001<",
        ">1,500<",
        ">2<",
    ):
        assert cell in page


def test_the_best_is_marked_only_among_the_same_seeds(inputs):
    page = study.render(inputs)
    assert 'number best">12.5&nbsp;±' in page and 'number">25&nbsp;±' in page
    assert 'number">6.5&nbsp;±' in page and 'number">3.25&nbsp;±' in page, "one of them lacks a seed"
    assert page.count("<li class=picked>") == 1
    same = [{**row, "seeds": "0 1"} for row in inputs.table]
    assert 'number best">3.25&nbsp;±' in study.render(dataclasses.replace(inputs, table=same))


def test_failures_and_what_is_missing_are_told(inputs):
    page = study.render(inputs)
    assert "1, 1 failed" in page and "the &lt;memory&gt; does not suffice." in page
    assert "Not done yet: dpdm-eps1-seed2." in page and "A sentence." in page


def test_a_study_without_results():
    page = study.render(study.StudyInputs("empty", [], [], [], "", [], []))
    assert "There is none yet." in page and "There is no image." in page and "None is missing." in page
    assert "At a glance" not in page
