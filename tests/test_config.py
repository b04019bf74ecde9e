import math

import pytest

from privimage_jax import config as configs
from privimage_jax.configs import base
from privimage_jax.errors import UserError
from privimage_jax.models.registry import CLASSIFIERS
from privimage_jax.settings import derived


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("privacy.epsilon", 0.0),
        ("privacy.epsilon", -1.0),
        ("privacy.epsilon", math.inf),
        ("privacy.epsilon", math.nan),
        ("privacy.delta", 1.0),
        ("privacy.accountant", "moments"),
        ("data.source", "hdf5"),
        ("data.channels", 4),
        ("finetune.batch_size", 0),
        ("finetune.trainable", "("),
        ("clipping.norm", 0.0),
        ("selection.assignment", "greedy"),
        ("sample.steps", 1),
        ("sample.class_weights", (0.0, 0.0)),
        ("evaluate.extractors", ()),
        ("evaluate.extractors", ("query", "vgg")),
        ("evaluate.extractors", (3,)),
    ],
)
def test_a_wrong_value_names_its_key(key, value):
    config = base.get_config()
    section, name = key.split(".")
    config[section][name] = value
    with pytest.raises(UserError, match=rf"config\.{key}=.*give "):
        configs.check(config)


@pytest.mark.parametrize(
    ("extractors", "says"),
    [
        (("query", "query"), "names query twice"),
        (("a:features", "b:features"), "names features twice"),
        (
            ("query", "inception"),
            r"inception_weights is empty.*pt_inception-2015-12-05-6726825d\.pth",
        ),
    ],
)
def test_extractors_that_do_not_go_together(extractors, says):
    config = base.get_config()
    config.evaluate.extractors = extractors
    with pytest.raises(UserError, match=says):
        configs.check(config)
    config.evaluate.enabled = False
    configs.check(config)


def test_an_unknown_key_is_named_with_the_closest_one():
    with pytest.raises(UserError, match=r"config\.privacy\.epsilonn .*did you mean config\.privacy\.epsilon\?"):
        configs.check_key("privacy.epsilonn")


def test_a_wrong_type_is_named():
    config = base.get_config()
    with config.ignore_type():
        config.seed = "zero"
    with pytest.raises(UserError, match=r"config\.seed='zero' is of type str; give a whole number"):
        configs.check(config)


def test_every_classifier_of_the_zoo_can_be_given_arguments():
    assert set(base.get_config().evaluate.classifier_kwargs) == set(CLASSIFIERS)


def test_arguments_of_a_model_are_free():
    config = base.get_config()
    config.model.kwargs.width = 7
    configs.check(config)


def test_what_depends_on_n():
    config = base.get_config()
    config.privacy.delta = 1e-3
    with pytest.raises(UserError, match=r"delta=0\.001 is not below 1/N"):
        derived.check_against_n(config, 5000)
    config.privacy.delta = 0.0
    with pytest.raises(UserError, match="batch_size=4096 is larger than the N=1000"):
        derived.check_against_n(config, 1000)
    config.warmup.enabled, config.warmup.subset_size, config.data.n = True, 6001, 6000
    with pytest.raises(UserError, match=r"warmup\.subset_size=6001 is larger than the N=6000 .*; give at most 6000"):
        configs.check(config)
    assert derived.delta(config, 45000) == 1 / (45000 * math.log(45000))
    assert (derived.delta(config, 5000), derived.delta(config, 4999)) == (1 / (5000 * math.log(5000)), 4999**-1.5)
    assert derived.finetune_steps(config, 45000) == 1647


def test_what_depends_on_the_classes():
    config = base.get_config()
    config.selection.k2 = 7
    with pytest.raises(UserError, match=r"k2=7 .* give a k2 of at most 6"):
        derived.check_against_classes(config, 10, 62, 62)
    config.selection.ratio = 0.05
    assert derived.k2(config, 10, 1000) == 5
    config.query.k1 = 1001
    with pytest.raises(UserError, match=r"query\.k1=1001"):
        derived.check_against_classes(config, 10, 1000, 1000)


def test_sections_leave_out_where_things_lie():
    config = base.get_config()
    before = configs.section(config, "data", "seed")
    config.data.path = "/elsewhere"
    assert configs.section(config, "data", "seed") == before
    assert before["seed"] == 0
    assert "data.source" in before


def test_arguments_of_a_model_are_never_taken_for_places():
    """Whatever they are called: they are part of what is fingerprinted and published."""
    config = base.get_config()
    names = {key.rpartition(".")[2] for key in configs.PLACES}
    for section in ("model", "query_net"):
        config[section].kwargs.update({name: 1 for name in names})
    for section in ("model", "query_net"):
        assert {f"{section}.kwargs.{name}" for name in names} <= configs.section(config, section).keys()
    assert not [key for key in configs.public_settings(config) if configs.is_place(key)]


def test_what_a_sensitive_source_from_elsewhere_is_given_is_never_published():
    """A list of patients, or a folder by another name than `path`."""
    config = base.get_config()
    config.data.kwargs = {"folder": "/wards/7", "patients": ("A. B.", "C. D.")}
    config.public.kwargs = {"widths": (1, 2), "path": "/public"}
    for settings in (configs.settings_in_use(config), configs.section(config, "data", "public")):
        assert [key for key in settings if ".kwargs." in key and "model" not in key and "net" not in key] == [
            "public.kwargs.widths"
        ]


def test_every_place_is_a_setting():
    config = base.get_config()
    given = {key for key in configs.PLACES if ".kwargs." not in key}
    assert given < dict(configs.flatten(config)).keys()


@pytest.mark.parametrize("source", ["folder", "zip", "npz"])
def test_classes_of_a_sensitive_set_must_be_declared(source):
    config = base.get_config()
    config.data.source, config.data.path = source, "somewhere"
    with pytest.raises(UserError, match=rf"config\.data\.class_names is empty; declare .* sensitive {source} set"):
        configs.check(config)
    config.public.source, config.public.path = source, "elsewhere"
    config.data.class_names = ("cat", "dog")
    configs.check(config)


def test_noise_levels_must_be_in_order():
    config = base.get_config()
    config.diffusion.sigma_min = 100.0
    with pytest.raises(UserError, match=r"sigma_min=100\.0 is not below config\.diffusion\.sigma_max=80\.0"):
        configs.check(config)


def test_a_ratio_is_not_lost_to_rounding():
    config = base.get_config()
    config.selection.ratio = 0.57
    assert derived.k2(config, 1, 100) == 57


def test_the_report_shows_only_what_the_sources_read():
    config = base.get_config()
    config.public.source = "glyphs"
    shown = configs.settings_in_use(config)
    assert "data.name" in shown
    assert "public.name" not in shown
    assert "public.per_class" in shown
    assert not any(key.endswith("path") or key.startswith(("log.", "audit.")) for key in shown)


@pytest.mark.parametrize(("unit", "several"), [("image", "images"), ("person", "people")])
def test_n_is_asked_for_in_the_unit_that_it_counts(unit, several):
    config = base.get_config()
    config.privacy.unit = unit
    with pytest.raises(UserError, match=f"config.data.n is 0; give the number of sensitive training {several}, as"):
        derived.declared_n(config)
