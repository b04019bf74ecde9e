"""Methods by name: what each sets, and that nothing contradicts it."""

import importlib
import pathlib
import re

import pytest

from privimage_jax import config as configs
from privimage_jax.configs import base, quickstart
from privimage_jax.errors import UserError
from privimage_jax.run.plan import make_plan
from privimage_jax.run.stage import counting, enabled_stages
from privimage_jax.settings import families, methods
from privimage_jax.settings.families import FAMILIES
from privimage_jax.settings.methods import METHODS

ROWS = [(name, key) for name, method in METHODS.items() for key in (*method.settings, *method.needs)]
OTHER = {
    "generator": {"diffusion": "gan", "gan": "diffusion"},
    "selection.method": dict.fromkeys(("semantic", "all", "unlabelled", "none"), "random") | {"random": "all"},
    "warmup.enabled": {False: True, True: False},
    "pretrain.perturbation": {0.0: 0.5},
    "pretrain.perturbation_norm": {"global": "layer"},
    "sample.guidance": {0.0: 1.5},
    "pretrain.steps": {0: 100},
    "finetune.trainable": {".*": ".*attention.*|label/.*"},
    "finetune.lora_rank": {0: 3},
}


def of(name: str, config=None):
    """A config with the settings of a method."""
    config = base.get_config() if config is None else config
    methods.apply(config, name)
    return config


def change(config, key: str, value) -> None:
    config.update_from_flattened_dict({key: value})


@pytest.mark.parametrize("experiment", ["base", "quickstart", "mnist_cpu"])
@pytest.mark.parametrize("name", METHODS)
def test_every_method_fits_every_experiment(name, experiment):
    config = of(name, importlib.import_module(f"privimage_jax.configs.{experiment}").get_config())
    settings = dict(configs.flatten(configs.check(config)))
    assert settings["method"] == name
    assert METHODS[name].settings.items() <= settings.items()
    assert METHODS[name].what and METHODS[name].source and METHODS[name].defaults.keys() <= METHODS[name].needs.keys()


def test_the_table_of_the_docs_is_that_of_the_code():
    page = (pathlib.Path(base.__file__).parents[1] / "docs" / "methods.md").read_text()
    rows = [f"| `{name}` | {method.what} | {method.source} |" for name, method in METHODS.items()]
    assert "\n".join(rows) in page


@pytest.mark.parametrize("name", METHODS)
def test_every_method_can_be_planned_for_the_quickstart(name):
    config = of(name, quickstart.get_config())
    config.privacy.accountant = "rdp"
    solved = make_plan(configs.check(config), config.data.n)
    counted = {"privimage", "privimage_gan", "lora", "attention", "rpgen"}
    asked = ["semantic query"] * (name in counted) + ["noisy means"] * (name == "dp_feta")
    assert solved.mechanisms == [*asked, "DP-SGD fine-tuning"]


def test_no_two_methods_are_the_same():
    decided = {key for method in METHODS.values() for key in (*method.settings, *method.defaults)}
    settings = [{key: dict(configs.flatten(of(name)))[key] for key in decided} for name in METHODS]
    assert all(settings.count(one) == 1 for one in settings)


@pytest.mark.parametrize(("name", "key"), ROWS)
def test_a_setting_that_contradicts_is_named_with_the_method(name, key):
    config, method = of(name), METHODS[name]
    wrong = OTHER[key][method.settings[key]] if key in method.settings else base_value(key)
    change(config, key, wrong)
    with pytest.raises(UserError) as caught:
        configs.check(config)
    said = str(caught.value)
    assert said.startswith(f"config.method={name} means ") and f"config.{key}" in said and f"it is {wrong!r}: " in said


def base_value(key: str):
    """A value that no method accepts which leaves the setting open: that of no pre-training, or of configs/base.py."""
    return 0 if key == "pretrain.steps" else dict(configs.flatten(base.get_config()))[key]


@pytest.mark.parametrize(("first", "then", "published"), [("dpgan", "dpdm", 8), ("dpdm", "dpgan", 1)])
def test_another_family_of_generators_has_the_k_that_is_published_for_it(first, then, published):
    config = of(first)
    config.finetune.noise_multiplicity = 7
    methods.apply(config, then)
    assert config.finetune.noise_multiplicity == published
    config.finetune.noise_multiplicity = 7
    methods.apply(config, "random" if then == "dpdm" else "privimage_gan")
    assert config.finetune.noise_multiplicity == 7, "of the same family it is the config's"


def test_every_family_has_rates_of_its_own():
    config = base.get_config()
    for name in FAMILIES:
        config.generator = name
        said = [families.rate(config, stage) for stage in ("pretrain", "warmup", "finetune")]
        read = [one.removeprefix("config.").split("=")[0] for one in said]
        assert all(families.reads(name, key) for key in read)
        assert not any(families.reads(other, key) for other in FAMILIES if other != name for key in read)


@pytest.mark.parametrize(
    ("method", "key", "value", "instead"),
    [
        ("privimage", "finetune.lora_rank", 4, "give the method lora in its place"),
        ("pdp_diffusion", "finetune.lora_rank", 4, "give the method lora with config.selection.method=all in"),
        ("random", "finetune.trainable", "a.*", "give the method attention with config.selection.method=random in"),
        ("privimage", "pretrain.perturbation", 0.3, "give the method rpgen in its place"),
        ("privimage", "selection.method", "random", "give the method random in its place"),
        ("lora", "pretrain.steps", 0, "leave the method out"),
        ("dpdm", "pretrain.steps", 100, "leave the method out"),
        ("dpgan", "pretrain.perturbation", 0.3, "leave the method out"),
    ],
)
def test_the_method_that_would_do_instead_is_named(method, key, value, instead):
    config = of(method)
    change(config, key, value)
    with pytest.raises(UserError, match=rf"it is {value!r}: change that, or {re.escape(instead)}"):
        configs.check(config)
    if name := re.match(r"give the method (\w+)", instead):  # with what stands beside it
        kept = of(name[1])
        change(kept, key, value)
        for one, given in re.findall(r"config\.(\S+)=(\S+)", instead):
            change(kept, one, given)
        assert configs.check(kept).selection.method == config.selection.method
    config.method = ""
    if key != "selection.method" and method != "dpdm" and method != "dpgan":
        configs.check(config)


def test_defaults_give_way_to_what_would_do():
    for name, key, value in (("lora", "finetune.lora_rank", 8), ("rpgen", "pretrain.perturbation", 0.1)):
        config = base.get_config()
        config.pretrain.perturbation_norm = "global"
        change(config, key, value)
        assert dict(configs.flatten(of(name, config)))[key] == value
        assert dict(configs.flatten(of(name)))[key] == METHODS[name].defaults[key] != value
    assert of("attention").finetune.trainable == ".*attention.*|label/.*"


def test_a_perturbation_of_another_norm_gives_way():
    config = base.get_config()
    config.pretrain.perturbation, config.pretrain.perturbation_norm = 0.01, "layer"
    assert of("rpgen", config).pretrain.perturbation == 0.2


@pytest.mark.parametrize("name", ["dpdm", "dpgan"])
def test_without_public_images_there_is_neither_query_nor_selection(name):
    config = of(name)
    assert counting(config) == ()
    assert not {"query", "select"} & {stage.name for stage in enabled_stages(config)}


def test_a_selection_of_nothing_cannot_pre_train():
    config = base.get_config()
    config.selection.method = "none"
    with pytest.raises(UserError, match=r"config\.selection\.method=none leaves no .* config\.pretrain\.steps=5000"):
        configs.check(config)


def test_an_unknown_method_is_told_with_the_known_ones():
    config = base.get_config()
    config.method = "dp-dm"
    with pytest.raises(UserError, match=r"config\.method='dp-dm' is not accepted; give .*privimage, .*, dpdm, "):
        configs.check(config)
    with pytest.raises(UserError, match=r"config\.method='dp-dm' is not accepted"):
        methods.apply(config, "dp-dm")
