"""The exact counts of the query: kept inside alone, where the run is evaluated, and shown beside the noisy ones."""

import json
import re
import stat

import numpy as np
import pytest
from pipelines import CLASSES, SEMANTICS, release_bytes, run, tiny_config

from privimage_jax import config as configs
from privimage_jax.errors import UserError
from privimage_jax.report import query_noise as page
from privimage_jax.run.inputs import make_inputs
from privimage_jax.stages import query, selection
from privimage_jax.stages.parts import query_noise

pytestmark = pytest.mark.usefixtures("programs_kept")


def make_noise(**changes):
    values = {
        "class_names": ("cat", "<dog>"),
        "semantic_names": [f"semantic {number}" for number in range(40)],
        "exact": np.stack([np.arange(40), np.arange(40)[::-1]]),
        "noisy": np.stack([np.arange(40), -np.arange(40)]),
        "picked": np.array([[39, 38], [0, 1]]),
        "picked_from_exact": np.array([[38, 37], [1, 0]]),
        "noise_std": 5.0,
    }
    return page.NoiseOfQuery(**(values | changes))


@pytest.fixture(scope="module")
def queried(tmp_path_factory):
    """The tiny config and its run up to the choice of semantics; tests must not change it."""
    folder = tmp_path_factory.mktemp("queried")
    config = tiny_config(folder)
    config.query.k1 = 2
    return config, run(config, folder / "run", "select")


def test_exact_and_noisy_counts_are_of_the_same_images(queried):
    config, workdir = queried
    found = query_noise.compare(make_inputs(configs.check(config), workdir))
    assert found.exact.shape == found.noisy.shape == (CLASSES, SEMANTICS)
    assert found.exact.sum(axis=1).tolist() == [2 * 20] * CLASSES  # k1 for each image
    assert found.noise_std == pytest.approx(5 * 2**0.5)
    assert 0 < np.abs(found.noisy - found.exact).max() < 8 * found.noise_std
    released = json.loads((workdir.release / "semantics.json").read_text())
    assert (found.noisy.tolist(), found.picked.tolist()) == (released["histogram"], released["picked"])
    everything = np.arange(SEMANTICS)
    assert found.picked_from_exact.tolist() == selection.pick(found.exact, 1, "sequential", everything).tolist()


def test_the_exact_counts_stay_inside_for_their_owner_alone(queried):
    config, workdir = queried
    path = query.STAGE.note(workdir)
    assert path.is_relative_to(workdir.internal) and stat.S_IMODE(path.stat().st_mode) == 0o600
    exact = query.load_exact(make_inputs(configs.check(config), workdir)).tolist()
    released = b" ".join(release_bytes(workdir).values()).decode()
    assert json.dumps(exact) not in re.sub(r"\s+", " ", released) and "exact" not in released
    assert query.STAGE.published == ()


def test_without_an_evaluation_they_are_not_kept(queried, tmp_path):
    config = tiny_config(tmp_path)
    config.evaluate.enabled = False
    workdir = run(config, tmp_path / "run", "query")
    assert not query.STAGE.note(workdir).exists()
    assert query_noise.compare(make_inputs(configs.check(config), workdir)) is None


def test_damaged_ones_are_refused(queried, tmp_path):
    config = tiny_config(tmp_path)
    workdir = run(config, tmp_path / "run", "query")
    query.STAGE.note(workdir).write_text('{"exact": [[1]]}')
    with pytest.raises(UserError, match=r"exact.json holds no 3 by 6 whole numbers; delete it, and the page goes"):
        query_noise.compare(make_inputs(configs.check(config), workdir))


def test_picks_agree_whatever_their_order():
    assert make_noise().agreeing.tolist() == [1, 2] and make_noise().share_agreeing == 0.75


def test_the_page_shows_counts_and_picks_of_both_kinds():
    shown = page.section(make_noise())
    assert "3 of 4 picks are those" in shown and "not private" in shown
    assert "<h3>&lt;dog&gt;</h3>" in shown and "<dog>" not in shown
    rows = re.findall(r"<tr><td>(.*?)</td><td.*?>(.*?)</td><td.*?>(.*?)</td><td>(.*?)</td></tr>", shown)
    assert rows[:3] == [
        ("semantic 39", "39", "39", "with noise"),
        ("semantic 38", "38", "38", "either way"),
        ("semantic 37", "37", "37", "without noise"),
    ]
    assert ("semantic 1", "38", "−1", "either way") in rows
    assert len(rows) == 2 * page.SHOWN and shown.count("and 30 more") == 2


def test_many_classes_have_fewer_rows_each():
    names, counts = [f"class {number}" for number in range(500)], np.tile(np.arange(40), (500, 1))
    picks = np.full((500, 1), 39)
    noise = make_noise(class_names=names, exact=counts, noisy=counts, picked=picks, picked_from_exact=picks)
    assert page.section(noise).count("<tr><td>") == page.SHOWN_IN_ALL
