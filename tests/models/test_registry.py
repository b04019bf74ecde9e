import pathlib
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from ml_collections import ConfigDict

from privimage_jax.config import check
from privimage_jax.errors import UserError
from privimage_jax.generators.edm import EDM, make_per_example_loss, sample
from privimage_jax.models.registry import build_classifier, build_denoiser, init_denoiser
from privimage_jax.settings.config_files import load

DOC = pathlib.Path(__file__).parents[2] / "docs" / "swap_a_model.md"


def section(name, **kwargs):
    return ConfigDict({"name": name, "kwargs": kwargs})


def test_zoo_model_from_a_config_section():
    model = build_denoiser(section("unet", nf=8, ch_mult=[1, 2], attn=[]), n_classes=4, channels=3)
    assert (model.n_classes, model.channels, model.nf, model.ch_mult) == (4, 3, 8, (1, 2))
    hash(model)  # a static argument of jit


@pytest.mark.parametrize(
    ("name", "kwargs", "message"),
    [
        ("unett", {}, r"config\.model\.name: unknown model 'unett'; choose unet or"),
        ("unet", {"width": 3}, r"config\.model\.kwargs: unet takes no argument width; it accepts .*nf.*num_blocks"),
        ("unet", {"dtype": "float16"}, r"config\.model\.kwargs\.dtype: must be 'float32' or 'bfloat16'"),
        ("no_such_module_a:B", {}, r"config\.model\.name: no_such_module_a:B cannot be loaded .*PYTHONPATH"),
        (
            "outside:Missing",
            {},
            r"config\.model\.name: outside:Missing cannot be loaded, as the module has no 'Missing'",
        ),
        ("outside:NOT_A_CLASS", {}, r"config\.model\.name: .*not a flax\.linen module class"),
        ("outside:Bare", {}, r"config\.model\.name: outside:Bare lacks the field\(s\) channels, n_classes"),
        ("outside:", {}, r"config\.model\.name: unknown model"),
    ],
)
def test_wrong_sections_name_the_key(name, kwargs, message):
    with pytest.raises(UserError, match=message):
        build_denoiser(section(name, **kwargs), n_classes=2, channels=1)


def test_classifier_errors_name_the_key():
    known = "cnn, resnet110, resnet18, resnet50, resnet9"
    with pytest.raises(UserError, match=rf"config\.query_net\.model: unknown model 'vgg'; choose {known}"):
        build_classifier("vgg", 3)
    with pytest.raises(UserError, match=r"config\.evaluate\.classifier_kwargs: cnn takes no argument depth"):
        build_classifier("cnn", 3, kwargs_key="evaluate.classifier_kwargs", depth=2)


@pytest.mark.parametrize(("name", "message"), [("Stateful", "batch_stats"), ("Doubled", "keep the shape")])
def test_denoisers_that_break_the_contract_are_refused(name, message):
    model = build_denoiser(section(f"outside:{name}"), n_classes=2, channels=1)
    with pytest.raises(UserError, match=message):
        init_denoiser(model, jax.random.key(0), (8, 8, 1))


def test_the_documented_outside_denoiser_learns_and_samples(tmp_path, monkeypatch):
    code, config_code = re.findall(r"```python\n(.*?)```", DOC.read_text(), re.DOTALL)
    (tmp_path / "my_denoiser.py").write_text(code)
    (tmp_path / "config.py").write_text(config_code)
    monkeypatch.chdir(tmp_path)  # found in the current directory, as the page says

    config = check(load("config.py"))
    model = build_denoiser(config.model, n_classes=2, channels=1)
    assert model.width == 24
    params = init_denoiser(model, jax.random.key(0), (8, 8, 1))
    edm = EDM()
    loss = make_per_example_loss(model, edm, n_classes=2, noise_multiplicity=4)
    batch = {"image": jnp.full((8, 8, 8, 1), 200, jnp.uint8), "label": jnp.arange(8, dtype=jnp.int32) % 2}
    keys = jax.random.split(jax.random.key(1), 8)

    @jax.jit
    def step(params):
        value, grads = jax.value_and_grad(lambda p: loss(p, batch, keys).mean())(params)
        return value, jax.tree.map(lambda p, g: p - 0.05 * g, params, grads)

    values = []
    for _ in range(20):
        value, params = step(params)
        values.append(float(value))
    assert values[0] == pytest.approx(1.0, abs=0.6) and values[-1] < 0.7 * values[0]
    images = sample(model, edm, params, batch["label"], keys, (8, 8, 1), steps=3, guidance=0.5)
    assert images.shape == (8, 8, 8, 1) and np.isfinite(images).all()
