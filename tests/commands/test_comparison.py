"""`privimage report W W …`: finished runs side by side, in a page for its owner alone that replaces no other file."""

import dataclasses
import json
import stat

import numpy as np
import page_inputs
import pytest
from finished_runs import SETTINGS, make_run, mark

from privimage_jax.report import comparison, measures
from privimage_jax.storage.workdir import Workdir


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """A folder with the runs a, b (other settings, classes and numbers) and c (not evaluated); not to be changed."""
    folder = tmp_path_factory.mktemp("runs")
    make_run(folder / "a")
    make_run(folder / "b", {"selection.k2": 2}, {"fid": 2.5, "kid": 0.1}, ("dog", "eel"))
    make_run(folder / "c", evaluation={})
    return folder


@pytest.fixture
def report(runs, privimage, tmp_path, monkeypatch):
    """Calls `privimage report` in an empty folder on runs by their names."""
    monkeypatch.chdir(tmp_path)
    return lambda *arguments: privimage(
        "report", *(runs / each if (runs / each).exists() else each for each in map(str, arguments))
    )


def test_the_page_shows_what_differs(report, tmp_path):
    said = report("a", "b", "c").succeeds().out
    path = tmp_path / "comparison.html"
    assert said == f"wrote {path}, which is not private: keep it internal\n"
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    page = path.read_text()
    assert "Not private: keep internal" in page
    assert '<th scope="row">selection.k2</th><td>1</td><td>2</td><td>1</td>' in page and "privacy.epsilon" not in page
    assert '<td class="number">3.5</td><td class="number best">2.5</td><td class="number">–</td>' in page
    assert '<td class="number">–</td><td class="number">0.1</td><td class="number">–</td>' in page
    assert "Without a finished evaluation of these images: c." in page
    assert page.count("<figure data-class") == 3  # cat, dog and eel
    assert page.count("<img") == 3 * 2 * 3  # three runs with two classes of three images each


def test_no_more_images_are_kept_than_a_page_shows(report, tmp_path, monkeypatch):
    root, kept = make_run(tmp_path / "run", per_class=60), []
    monkeypatch.setattr(comparison, "render", lambda runs, _: kept.extend(runs) or "")
    report(root).succeeds()
    with np.load(root / "release" / "synthetic.npz") as arrays:
        np.testing.assert_array_equal(kept[0].images, arrays["images"][:96])  # of two classes in turn
        np.testing.assert_array_equal(kept[0].labels, arrays["labels"][:96])


def test_epsilons_are_composed(report, tmp_path):
    report("a", "b").succeeds()
    page = (tmp_path / "comparison.html").read_text()
    assert '<td class="number">0.5</td><td class="number">0.5</td>' in page
    assert "Together: epsilon = " in page and "that of each run" in page


def test_one_run_alone_has_nothing_to_add_up(report, tmp_path):
    report("a", "--out", "one.html").succeeds()
    assert "Together" not in (tmp_path / "one.html").read_text()


def test_a_page_in_the_home_folder(report, tmp_path, monkeypatch):
    (tmp_path / "home").mkdir()
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    report("a", "--out=~/x.html").succeeds()
    assert (tmp_path / "home" / "x.html").exists()


def test_only_such_a_page_is_replaced(report, runs, tmp_path):
    report("a").succeeds()
    before = (tmp_path / "comparison.html").read_text()
    report("a", "b").succeeds()
    assert (tmp_path / "comparison.html").read_text() != before
    (tmp_path / "comparison.html").write_text("mine")
    report("a").refuses("comparison.html exists and was not written by this command", "--out")
    report("a", "--out", runs / "a" / "release" / "x.html").refuses("lies in the release")
    report("a", "--out", tmp_path / "nowhere" / "x.html").refuses("--out", "cannot be written")
    report("a", "--out", tmp_path).refuses("--out", "cannot be written")
    assert (tmp_path / "comparison.html").read_text() == "mine"
    assert not (runs / "a" / "release" / "x.html").exists()


def test_what_is_no_finished_run_is_refused(report, runs, tmp_path):
    report("nowhere").refuses("nowhere/release/ledger.jsonl does not exist")
    report("a", runs / "a" / ".." / "a").refuses("is given twice")
    make_run(tmp_path / "run")
    (tmp_path / "run" / "release" / "synthetic.npz").unlink()
    report(tmp_path / "run").refuses("run holds no finished run", "privimage run")
    report("--out", "x.html").refuses("the PATH of one or more finished workdirs")
    report("--verify", "a").refuses("verify")


def test_images_that_were_drawn_again_are_not_shown_with_what_is_older(report, tmp_path):
    root = make_run(tmp_path / "run")
    mark(root, "sample", SETTINGS | {"sample.guidance": 2.0})
    report(root).refuses("synthetic.npz was made with other settings than its report", "`privimage run`")
    mark(root, "report", SETTINGS | {"sample.guidance": 2.0, "evaluate.enabled": False})
    report(root).succeeds()
    page = (tmp_path / "comparison.html").read_text()
    assert "Without a finished evaluation of these images: run." in page and "FID" not in page


def test_an_evaluation_of_images_that_were_drawn_again_is_none(report, tmp_path):
    """A run reports before it evaluates: one that stopped between the two still has what it had evaluated before."""
    root = make_run(tmp_path / "run")
    for images, is_shown in (("f", True), ("of other settings", False)):
        mark(root, "evaluate", SETTINGS, reads={"sample": images})
        report(root).succeeds()
        page = (tmp_path / "comparison.html").read_text()
        assert ("Without a finished evaluation of these images: run." not in page) == ("FID" in page) == is_shown


def test_an_interrupted_evaluation_is_none(report, tmp_path):
    root = make_run(tmp_path / "run")
    Workdir(root).clear_mark("evaluate")
    report(root).succeeds()
    page = (tmp_path / "comparison.html").read_text()
    assert "Without a finished evaluation of these images: run." in page and "FID" not in page


def test_the_settings_are_those_of_the_images_and_the_numbers(report, runs, tmp_path):
    root = make_run(tmp_path / "run")
    (root / "config.json").write_text(json.dumps(SETTINGS | {"sample.guidance": 2.0, "data.path": "elsewhere"}))
    mark(root, "evaluate", SETTINGS | {"evaluate.max_images": 50})
    report("a", root).succeeds()
    page = (tmp_path / "comparison.html").read_text()
    assert '<th scope="row">data.path</th><td>–</td><td>elsewhere</td>' in page and "sample.guidance" not in page
    assert '<th scope="row">evaluate.max_images</th><td>–</td><td>50</td>' in page
    assert "Without a finished evaluation" not in page


def test_how_it_was_measured_is_shown(report, tmp_path):
    make_run(tmp_path / "a", evaluation={"extractor": "<query>"})
    make_run(tmp_path / "b", evaluation={"extractor": "inception", "recipe": "quick", "note": "said on top"})
    report(tmp_path / "a", tmp_path / "b").succeeds()
    page = (tmp_path / "comparison.html").read_text()
    assert '<th scope="row">extractor</th><td>&lt;query&gt;</td><td>inception</td>' in page
    assert '<th scope="row">recipe</th><td>–</td><td>quick</td>' in page and "said on top" not in page


RESULTS = {
    "extractor": "query", "classifier": "cnn", "recipe": "quick", "inception_sha256": "ab",
    "fid": 1.0, "fid_query": 1.0, "fid_inception": 1.0, "sds": 0.5, "accuracy_synthetic": 0.5,
    "pretrained_fid": 2.0, "query_accuracy": 0.5,
}  # fmt: skip
BETTER = {
    "fid": 0.5, "fid_query": 0.5, "fid_inception": 0.5, "sds": 0.75, "accuracy_synthetic": 0.75,
    "pretrained_fid": 1.0, "query_accuracy": 0.75,
}  # fmt: skip


@pytest.mark.parametrize(
    ("change", "unmarked"),
    [
        ({}, set()),
        ({"settings": {"privacy.epsilon": 1.0, "seed": 2}}, set()),
        ({"query_network": "cd"}, {"fid", "fid_query", "sds", "pretrained_fid"}),
        (
            {"query_network": "cd", "results": {"extractor": "inception"}},
            {"fid", "fid_query", "sds", "pretrained_fid"},
        ),
        ({"settings": {"query.k1": 2}}, {"sds"}),
        ({"settings": {"public.test_split": "other"}}, {"query_accuracy"}),
        ({"results": {"extractor": "inception"}}, {"fid", "pretrained_fid"}),
        ({"results": {"inception_sha256": "cd"}}, {"fid_inception"}),
        (
            {"results": {"inception_sha256": "cd", "extractor": "inception"}},
            {"fid", "fid_inception", "pretrained_fid"},
        ),
        ({"results": {"classifier": "resnet9"}}, {"accuracy_synthetic"}),
        ({"results": {"recipe": "benchmark"}}, {"accuracy_synthetic"}),
        ({"settings": {"evaluate.classifier_steps": 7}}, {"accuracy_synthetic"}),
        ({"settings": {"evaluate.neighbours": 7}}, {"fid", "fid_query", "fid_inception", "pretrained_fid"}),
        ({"settings": {"data.test_fraction": 0.5}}, set(BETTER)),
    ],
)
def test_the_best_is_marked_among_what_was_measured_alike(change, unmarked):
    better = page_inputs.run("b", results=RESULTS | BETTER)
    merged = {key: getattr(better, key) | value for key, value in change.items() if key != "query_network"}
    changed = dataclasses.replace(better, **(change | merged))
    page = comparison.render([page_inputs.run("a", results=RESULTS), changed, page_inputs.run("c", results={})], "")
    for name in BETTER:
        line = page.partition(f'<th scope="row">{measures.describe(name).title}</th>')[2].partition("</tr>")[0]
        assert ("best" in line) == (name not in unmarked), name


@pytest.mark.parametrize(
    ("name", "content", "culprit"),
    [
        ("release/synthetic.npz", b"PK", "is not a readable .npz file"),
        ("config.json", b"[]", "is no JSON object"),
        ("config.json", None, "is missing"),
        ("internal/evaluation.json", b"{", "is not JSON"),
    ],
)
def test_damage_is_named(report, tmp_path, name, content, culprit):
    path = make_run(tmp_path / "run") / name
    path.unlink() if content is None else path.write_bytes(content)
    report(tmp_path / "run").refuses(name, culprit, "privimage run")


@pytest.mark.parametrize("change", [{"labels": np.full(6, 2, np.int32)}, {"images": np.zeros((6, 8, 8), np.uint8)}])
def test_a_synthetic_set_that_does_not_fit_is_refused(report, tmp_path, change):
    path = make_run(tmp_path / "run") / "release" / "synthetic.npz"
    arrays = dict(np.load(path))
    np.savez(path, **(arrays | change))
    report(tmp_path / "run").refuses("synthetic.npz", "privimage run")
