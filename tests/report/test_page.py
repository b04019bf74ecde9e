"""The page says what the ledger says, needs nothing from elsewhere, and is the same for the same inputs."""

import base64
import dataclasses
import hashlib
import html.parser
import io
import math
import re

import numpy as np
import page_inputs
import PIL.Image
import pytest
from page_inputs import ENTRIES

from privimage_jax.metrics.top_k import Accuracy
from privimage_jax.report import page, plots
from privimage_jax.report.curves import Metric
from privimage_jax.report.neighbours import Neighbourhood
from privimage_jax.report.page import render
from privimage_jax.report.text import rounded_up
from privimage_jax.settings.units import UNITS


@pytest.fixture
def inputs():
    return page_inputs.release()


class Outline(html.parser.HTMLParser):
    """Checks that tags nest and collects tags, attributes and text."""

    VOID = {"meta", "img", "rect", "polyline"}

    def __init__(self, text):
        super().__init__()
        self.open, self.tags, self.attributes, self.words = [], [], [], []
        self.feed(text)
        assert not self.open, f"left open: {self.open}"

    def handle_starttag(self, tag, attributes):
        self.tags.append(tag)
        self.attributes += attributes
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attributes):
        self.tags.append(tag)
        self.attributes += attributes

    def handle_endtag(self, tag):
        assert self.open.pop() == tag, f"misplaced </{tag}>"

    def handle_data(self, data):
        if self.open[-1:] not in (["style"], ["script"]):
            self.words.append(data)

    @property
    def text(self):
        return re.sub(r"\s+", " ", " ".join(self.words))


def test_well_formed_and_complete(inputs):
    outline = Outline(render(inputs))
    for words in (
        "The guarantee",
        "one image, not one person",
        "two steps",
        "this folder alone",
        "real numbers",
        "1,000",
    ):
        assert words in outline.text
    assert outline.tags.count("img") == 9


def test_a_person_as_the_unit_is_said_with_what_it_does_not_cover(inputs):
    said = Outline(render(dataclasses.replace(inputs, unit=UNITS["person"]))).text
    for words in (
        "A record is one person with all images",
        "two people in one picture",
        "relatives",
        "sensitive people",
        "For every single person of the sensitive set",
        "A second release made from images of the same people adds",
        "Somebody with two ids is two people",
    ):
        assert words in said
    assert "unit is one image" not in said and "Each person counts as one" in said


def test_needs_nothing_from_elsewhere(inputs):
    page = render(inputs)
    outline = Outline(page)
    assert not {"link", "iframe", "object"} & set(outline.tags)
    assert all(value.startswith("data:image/png;base64,") for name, value in outline.attributes if name == "src")
    assert not re.search(r"https?:|url\(|@import", page)


def test_the_page_runs_its_own_script_alone(inputs):
    page = render(inputs)
    (script,) = re.findall(r"<script>(.*?)</script>", page, re.DOTALL)
    (policy,) = re.findall(r'http-equiv="Content-Security-Policy" content="([^"]*)"', page)
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    assert f"script-src 'sha256-{digest}'" in policy and policy.startswith("default-src 'none'")


def test_same_inputs_same_bytes(inputs):
    assert render(inputs) == render(dataclasses.replace(inputs, images=inputs.images.copy()))


def test_every_text_is_escaped(inputs):
    evil = '"><script>alert(1)</script>'
    text = render(
        dataclasses.replace(
            inputs,
            title=evil,
            class_names=(evil, "dog"),
            settings={evil: evil, f"group.{evil}": evil, "$css": "$title"},
            entries=[{"index": evil, "kind": evil, "mechanism": evil, "epsilon": 0.5, "previous": evil, evil: [evil]}],
            semantics={"class_names": [evil], "semantic_names": [evil], "histogram": [[3]], "picked": [[0]]},
        )
    )
    assert text.count("<script") == 1  # the page's own
    assert Outline(text).tags.count("script") == 1
    assert "$title" in text


def test_a_sound_release_has_no_warning(inputs):
    text = render(inputs)
    assert "NOT PRIVATE" not in text and 'class="warning"' not in text
    assert "The chain of hashes holds" in text


@pytest.mark.parametrize(
    "mark",
    [
        {"note": "NOT PRIVATE: fixed seed"},
        {"private": False},
    ],
)
def test_a_fixed_seed_voids_the_promise(inputs, mark):
    text = render(dataclasses.replace(inputs, entries=[{**ENTRIES[0], **mark}, *ENTRIES[1:]]))
    assert "<h2>NOT PRIVATE: fixed seed</h2>" in text
    assert "makes no promise" in text and "differentially private with" not in text


def test_no_fixed_seed(inputs):
    entries = [{**ENTRIES[0], "private": True}, *ENTRIES[1:]]
    assert "NOT PRIVATE" not in render(dataclasses.replace(inputs, entries=entries))


@pytest.mark.parametrize(
    ("change", "headline"),
    [
        ({"ledger_ok": False}, "The ledger does not verify"),
        ({"epsilon": 0.9}, "NOT PRIVATE: budget exceeded"),
    ],
)
def test_what_else_voids_the_promise(inputs, change, headline):
    text = render(dataclasses.replace(inputs, **change))
    assert f"<h2>{headline}</h2>" in text
    assert "makes no promise" in text


def test_the_guarantee_in_numbers(inputs):
    text = render(inputs)
    assert "e<sup>ε</sup>&nbsp;=&nbsp;2.719," in text  # rounded up
    assert "hands out one random record with the chance N&nbsp;δ&nbsp;=&nbsp;1%" in text
    assert "struck out" not in text and "null record in the place of any one" in text
    assert "<strong>73.1062%</strong>" in text  # (e + 1e-5) / (e + 1) = 0.7310613
    assert "ε&nbsp;=&nbsp;2 and δ&nbsp;=&nbsp;3.719&nbsp;×&nbsp;10<sup>−5</sup>" in text  # (1 + e) 1e-5


def test_huge_budgets_do_not_break_the_page(inputs):
    text = render(dataclasses.replace(inputs, epsilon=5000.0))
    assert "<strong>100%</strong>" in text and "nothing follows about swapped images" in text


def test_costs_are_increments_of_the_ledger():
    assert page.mechanism_costs(ENTRIES) == [("semantic query", 0.25), ("fine-tuning", 0.75)]


def test_the_bar_shows_shares_of_the_budget(inputs):
    text = render(dataclasses.replace(inputs, epsilon=2.0))
    widths = re.findall(r'<rect class="(part-\d|rest)" x="([\d.]+)" y="0" width="([\d.]+)"', text)
    assert widths == [("rest", "0", "1000"), ("part-0", "0.00", "125.00"), ("part-1", "125.00", "375.00")]
    assert "<span>left</span><b>1</b>" in text


def test_histogram_shows_the_strongest_and_every_pick(inputs):
    text = render(inputs)
    cat, dog = re.findall(r"<article>(.*?)</article>", text)
    assert len(re.findall("<li", cat)) == page.SEMANTICS_SHOWN
    assert re.findall(r'<li class="picked"><span class="name" title="([^"]+)"', cat) == ["semantic 0", "semantic 1"]
    # Semantic 5 was picked although it is far from the top: it is shown after the 15 strongest.
    assert re.findall(r'<li class="picked"><span class="name" title="([^"]+)"', dog) == ["semantic 39", "semantic 5"]
    assert len(re.findall("<li", dog)) == page.SEMANTICS_SHOWN + 1 and "and 24 more" in dog
    assert '<i style="width:0.0%"></i></span><b>−15</b>' in dog


def test_without_semantics_images_or_entries(inputs):
    bare = dataclasses.replace(
        inputs, semantics=None, images=inputs.images[:0], labels=inputs.labels[:0], entries=[], settings={}
    )
    text = Outline(render(bare)).text
    assert "No images have been made yet" in text and "Nothing has been spent yet" in text
    assert "What the images are like" not in text


def test_selection_without_a_query(inputs):
    blind = {"class_names": ["cat", "dog"], "semantic_names": ["a", "<b>", "c"], "histogram": None}
    text = render(dataclasses.replace(inputs, semantics={**blind, "picked": [[1], [2, 0]]}))
    assert "<dt>cat</dt><dd>&lt;b&gt;</dd>" in text and "<dt>dog</dt><dd>c, a</dd>" in text
    unlabelled, folded = (
        render(dataclasses.replace(inputs, semantics={**blind, "picked": None, "method": method}))
        for method in ("unlabelled", "all")
    )
    assert "All public images" in unlabelled and "They taught no class." in unlabelled
    assert "All public images" in folded and "Public class s taught class s mod 2" in folded


def test_many_classes_take_less_room(inputs):
    many = dataclasses.replace(
        inputs,
        images=np.zeros((30 * 10, 2, 2, 1), np.uint8),
        labels=np.arange(300) % 30,
        class_names=tuple(f"class {index}" for index in range(30)),
    )
    outline = Outline(render(many))
    assert outline.tags.count("img") == 30 * 10
    assert outline.attributes.count(("class", "extra")) == 30 * 4  # of each class, 6 are seen at first


def test_settings_are_grouped(inputs):
    text = render(inputs)
    assert "<h3>finetune</h3><dl><div><dt>batch size</dt><dd>4,096</dd></div></dl>" in text
    assert "<h3>model</h3><dl><div><dt>kwargs nf</dt>" in text


@pytest.mark.parametrize(
    ("value", "shown"),
    [
        (10, "10"),
        (10.0, "10"),
        (1.00001, "1.001"),
        (0.25, "0.25"),
        (22026.47, "22,030"),
        (0, "0"),
        (9.57e-5, "9.57&nbsp;×&nbsp;10<sup>−5</sup>"),
        (1.23451e9, "1.235&nbsp;×&nbsp;10<sup>9</sup>"),
        (math.inf, "∞"),
    ],
)
def test_numbers_are_rounded_up(value, shown):
    assert rounded_up(value) == shown


def test_png_reads_back():
    image = np.random.default_rng(0).integers(0, 256, (3, 5, 1), np.uint8)
    encoded = plots.data_uri(image).removeprefix("data:image/png;base64,")
    with PIL.Image.open(io.BytesIO(base64.b64decode(encoded))) as read:
        assert np.array_equal(np.asarray(read), image[..., 0])


def test_the_query_networks_accuracy_is_shown_where_it_is_known(inputs):
    shown = Outline(render(dataclasses.replace(inputs, query_accuracy=Accuracy(10_000, 0.329, 0.5725))))
    assert "is right on 32.9% of 10,000 held-out public images" in shown.text and "57.2%" in shown.text
    assert "held-out" not in Outline(render(inputs)).text


def test_neighbours_and_curves_have_a_section_where_they_are_given(inputs):
    bare = render(inputs)
    assert 'id="neighbours"' not in bare and 'id="training"' not in bare
    near = Neighbourhood(inputs.images[0], "cat", inputs.images[1:3], ["lynx", "<i>"])
    metric = Metric(np.array([10, 20]), np.array([2.0, 1.0]))
    outline = Outline(render(dataclasses.replace(inputs, neighbourhoods=[near], training=[("a loss", metric)])))
    assert outline.tags.count("img") == 9 + 3 and outline.tags.count("polyline") == 1
    assert "cat beside lynx, <i>" in outline.text
    assert ("aria-label", "a loss: 2 at first, 1 at the end") in outline.attributes


def test_the_page_stays_small_however_much_there_is(inputs):
    n = 1000
    names = [f"a class of a thousand, number {index}" for index in range(n)]
    large = dataclasses.replace(
        inputs,
        images=np.random.default_rng(0).integers(0, 256, (n, 64, 64, 3), np.uint8),
        labels=np.arange(n),
        class_names=names,
        semantics={
            "class_names": names,
            "semantic_names": names,
            "histogram": np.random.default_rng(0).integers(0, 50, (n, n)),
            "picked": np.arange(n)[:, None].repeat(40, 1).tolist(),
        },
    )
    text = render(large)
    assert len(text) < 3_000_000
    assert "more classes, for which this page has no room" in text and "and 997 more" in text
