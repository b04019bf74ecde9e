"""The guide's measure from elsewhere is computed, shown and compared; wrong ones are told in a sentence."""

import json
import shutil

import pytest
from guides import extended
from pipelines import run

from privimage_jax import config as configs
from privimage_jax.commands import compare
from privimage_jax.errors import UserError
from privimage_jax.metrics.measures import MEASURES, with_outside

pytestmark = pytest.mark.usefixtures("programs_kept")


@pytest.fixture
def config(tmp_path, monkeypatch):
    config = extended("A measure", "spread", tmp_path, monkeypatch)
    config.privacy.accountant = "rdp"
    config.selection.method, config.pretrain.steps, config.finetune.enabled = "random", 0, False
    return config


def best_of(page: str, title: str) -> int:
    """How many values of a row are marked as the best."""
    row = page.split(f'<th scope="row">{title}</th>')[1].split("</tr>")[0]
    assert row.count("<td") == 2
    return row.count("best")


def test_it_is_computed_shown_and_compared(config, tmp_path):
    workdirs = [run(config, tmp_path / "one")]
    shutil.copytree(tmp_path / "one", tmp_path / "two")
    config.evaluate.max_images = 8
    workdirs.append(run(config, tmp_path / "two"))
    found = json.loads((workdirs[0].internal / "evaluation.json").read_text())
    assert found["spread"] > 0
    page = (workdirs[0].internal / "evaluation.html").read_text()
    assert "Standard deviation of synthetic features" in page
    compare.write([str(one.root) for one in workdirs], tmp_path / "comparison.html")
    page = (tmp_path / "comparison.html").read_text()
    assert best_of(page, "FID") == 0, "other numbers of images do not compare"
    assert f"{found['spread']:.3g}"[:4] in page.split('<th scope="row">spread</th>')[1].split("</tr>")[0]


@pytest.mark.parametrize(
    ("name", "culprit"),
    [
        ("nowhere:SPREAD", "nowhere:SPREAD cannot be loaded"),
        ("spread:ratio", "spread:ratio is of type function, not privimage_jax"),
        ("spread:NOTHING", "spread:NOTHING needs a name in lower case and a function"),
        ("spread:NAMELESS", "spread:NAMELESS needs a name in lower case"),
        ("spread:TAKEN", "spread:TAKEN has the name 'fid', which belongs to fid"),
        ("spread:LABEL", "spread:LABEL has the name 'private', which belongs to private"),
        ("spread:LONGER", "spread:LONGER has the name 'fid_of_mine', which belongs to fid"),
    ],
)
def test_a_wrong_record_is_told(config, tmp_path, name, culprit):
    with open(tmp_path / "spread.py", "a") as file:
        file.write("import dataclasses\n")
        file.write("NOTHING = dataclasses.replace(SPREAD, of=5)\n")
        for title, named in (("NAMELESS", ""), ("TAKEN", "fid"), ("LABEL", "private"), ("LONGER", "fid_of_mine")):
            file.write(f"{title} = dataclasses.replace(SPREAD, name={named!r})\n")
    with pytest.raises(UserError, match=culprit):
        with_outside((name,))


def test_a_name_that_is_no_import_string_is_told(config):
    config.evaluate.measures = ("spread",)
    with pytest.raises(
        UserError, match=r"config.evaluate.measures=\('spread',\) is not accepted; give a list of package"
    ):
        configs.check(config)


@pytest.mark.parametrize(
    ("body", "culprit"),
    [
        ("1 / 0", "config.evaluate.measures: spread fails .ZeroDivisionError"),
        ("'much'", "config.evaluate.measures: spread fails .ValueError"),
        ("float('nan')", "config.evaluate.measures: spread gives nan; let it give"),
    ],
)
def test_a_measure_that_fails_is_told(config, tmp_path, body, culprit):
    path = tmp_path / "spread.py"
    path.write_text(path.read_text().replace("sets.synthetic.features.std() / sets.test.features.std()", body))
    with pytest.raises(UserError, match=culprit):
        run(config, tmp_path / "run")


def test_every_measure_says_what_it_is():
    for name, measure in MEASURES.items():
        assert measure.title and measure.meaning.endswith(".") and measure.better in ("", "lower", "higher"), name
