"""Which rule computes a layer's weight gradients: found by tracing, measured, kept, and the same after a restart."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from audits import OPTIONS
from pipelines import run, tiny_config
from small_models import SmallConvolutions

from privimage_jax.errors import UserError
from privimage_jax.privacy import clipping, dp_sgd, weight_gradients
from privimage_jax.stages import finetune
from privimage_jax.training import convolution_choice
from privimage_jax.training.convolution_choice import FILE, fastest, kept, layers, measure

SETTINGS = dp_sgd.DPSGD(n=50, batch_size=10, clip_norm=1.0, noise_multiplier=1.0, microbatch=2)
SHAPE = (6, 6, 1)
MODEL = SmallConvolutions(n_classes=2, channels=1)


def loss(params, batch, keys):
    x = batch["image"] / 127.5 - 1
    out = MODEL.apply({"params": params}, x, jnp.zeros(len(x)), batch["label"])
    return jnp.sum((out - x) ** 2, axis=(1, 2, 3))


@pytest.fixture(scope="module")
def params():
    return MODEL.init(jax.random.key(0), jnp.zeros((1, *SHAPE)), jnp.zeros(1), jnp.zeros(1, jnp.int32))["params"]


@pytest.fixture
def timed(monkeypatch):
    """Times that a test makes up, for layers by their number; counts how often they are asked for."""
    asked = []

    def made_up(found, device, rules):
        assert rules == tuple(weight_gradients.RULES)
        asked.append(list(found))
        return {name: {"compiler": 1.0 + i % 2, "channels": 3.0, "offsets": 1.5} for i, name in enumerate(found)}

    monkeypatch.setattr(convolution_choice, "measure", made_up)
    return asked


def test_the_layers_of_a_step_are_found(params):
    found = layers(loss, params, SHAPE, SETTINGS)
    assert len(found) == 3  # of four
    assert {(layer.x.shape, layer.dy.shape) for layer in found.values()} == {
        ((2, 6, 6, 1), (2, 6, 6, 2)),
        ((2, 6, 6, 2), (2, 6, 6, 2)),
        ((2, 6, 6, 2), (2, 6, 6, 1)),
    }
    assert list(layers(loss, params, SHAPE, SETTINGS)) == list(found)


def test_names_depend_on_all_but_the_microbatch(params):
    def names(**changed):
        settings = dp_sgd.DPSGD(**{**vars(SETTINGS), **changed})
        return set(layers(loss, params, SHAPE, settings))

    assert names() == names(microbatch=5)
    assert not names() & names(precision="bfloat16")
    assert names(method="vmap") == set()


def test_every_rule_is_timed_and_one_that_mixes_examples_is_not_usable(params, monkeypatch):
    def mixing(x, dy, size, params):
        return weight_gradients.by_offsets(x, dy, size, params) + 0 * jnp.sum(x)

    def failing(x, dy, size, params):
        raise jax.errors.JaxRuntimeError("no kernel")

    rules = {"offsets": weight_gradients.by_offsets, "mixing": mixing, "failing": failing}
    monkeypatch.setattr(weight_gradients, "RULES", rules)
    monkeypatch.setattr(convolution_choice, "REPEAT_SECONDS", 1e-4)
    name, layer = next(iter(layers(loss, params, SHAPE, SETTINGS).items()))
    seconds = measure({name: layer}, jax.devices()[0], rules)
    assert list(seconds) == [name] and fastest(seconds) == {name: "offsets"}
    assert 0 < seconds[name]["offsets"] < 1 and seconds[name]["mixing"] is None and seconds[name]["failing"] is None


def test_the_fastest_usable_rule_is_chosen():
    times = {"a": {"compiler": 1.0, "channels": None, "offsets": 2.0}, "b": {"compiler": None, "channels": None}}
    assert fastest(times) == {"a": "compiler", "b": "offsets"}


def test_a_step_of_several_rules_agrees_with_vmap(params):
    choice = dict(zip(layers(loss, params, SHAPE, SETTINGS), weight_gradients.RULES, strict=True))
    rule = weight_gradients.by_table(choice, lambda *args: pytest.fail("a layer is not in the table"))
    rng = np.random.default_rng(0)
    batch = {"image": rng.integers(0, 256, (3, *SHAPE)).astype(np.uint8), "label": np.arange(3) % 2}
    keys, mask = jax.random.split(jax.random.key(0), 3), np.ones(3, bool)
    got, wanted = (
        jax.jit(clipping.clipped_grad(loss, 1.0, method, convolution=convolution), compiler_options=OPTIONS)(
            params, batch, keys, mask
        )
        for method, convolution in (("bookkeeping", rule), ("vmap", None))
    )
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5), got, wanted)


def test_a_tpu_tries_its_rule_in_the_runs_microbatch(tmp_path, params, monkeypatch):
    """And takes the one that keeps examples apart by its form for a layer whose program lets a NaN through."""
    sizes = []

    def leaking(x, dy, size, params):
        sizes.append(size)
        gradients = weight_gradients.by_offsets(x, dy, size, params)
        return gradients + 0 * jnp.sum(x) if dy.shape[-1] == 1 else gradients

    monkeypatch.setattr(weight_gradients, "RULES", {"compiler": leaking, "offsets": weight_gradients.by_offsets})
    monkeypatch.setattr(convolution_choice, "REPEAT_SECONDS", 1e-4)
    found = layers(loss, params, SHAPE, SETTINGS)
    choice = kept(tmp_path, False, lambda: found, jax.devices()[0], "tpu")
    assert set(sizes) == {SETTINGS.microbatch}
    assert choice == {name: "offsets" if layer.dy.shape[-1] == 1 else "compiler" for name, layer in found.items()}


@pytest.mark.parametrize("rule", ["mixes", "fails"])
@pytest.mark.parametrize(("microbatch", "kind"), [(2, None), (5, None), (3, None), (2, "another")])
def test_after_spending_another_microbatch_or_device_is_tried_again(
    tmp_path, params, monkeypatch, microbatch, kind, rule
):
    """A rule that mixes examples in one size, or is not there for it; the run cannot turn to another rule."""
    tried = []

    def sized(x, dy, size, params):
        tried.append(size)
        if size == 5 and rule == "fails":
            raise jax.errors.JaxRuntimeError("no kernel")
        gradients = weight_gradients.by_offsets(x, dy, size, params)
        return gradients + 0 * jnp.sum(x) if size == 5 else gradients

    def find(size):
        return layers(loss, params, SHAPE, dp_sgd.DPSGD(**{**vars(SETTINGS), "microbatch": size}))

    monkeypatch.setattr(weight_gradients, "RULES", {"compiler": sized, "offsets": weight_gradients.by_offsets})
    monkeypatch.setattr(convolution_choice, "REPEAT_SECONDS", 1e-4)
    device = jax.devices()[0]
    choice = kept(tmp_path, False, lambda: find(2), device, "tpu")
    assert set(choice.values()) == {"compiler"}
    if kind:
        content = json.loads((tmp_path / FILE).read_text())
        (tmp_path / FILE).write_text(json.dumps({**content, "device": kind}))
    tried.clear()
    if microbatch == 5:
        with pytest.raises(UserError, match=r"microbatch=5 on cpu does not keep .*; go on with .*microbatch=2 on cpu"):
            kept(tmp_path, True, lambda: find(5), device, "tpu")
    else:
        assert kept(tmp_path, True, lambda: find(microbatch), device, "tpu") == choice
        assert set(tried) == ({microbatch} if microbatch != 2 or kind else set())


def test_until_budget_is_spent_the_choice_is_made_afresh_and_then_kept(tmp_path, params, timed):
    def find():
        return layers(loss, params, SHAPE, SETTINGS)

    device = jax.devices()[0]
    assert kept(tmp_path, False, find, device) == {}  # a CPU
    assert not list(tmp_path.iterdir())
    for _ in range(2):
        choice = kept(tmp_path, False, find, device, "gpu")
    assert len(timed) == 2 and set(choice.values()) == {"compiler", "offsets"}
    # Once it is spent, on whatever devices:
    for platform in ("gpu", "cpu"):
        assert kept(tmp_path, True, find, device, platform) == choice
    assert len(timed) == 2
    assert kept(tmp_path, False, find, device) == {} and not (tmp_path / FILE).exists()
    assert kept(tmp_path, True, find, device, "gpu") == {}


@pytest.mark.parametrize(
    "content", ["", "{", "[]", "{}", '{"rules": []}', '{"rules": {"a": "fastest"}}', '{"rules": {"a": {}}}']
)
def test_a_damaged_choice_is_named_and_refused(tmp_path, content):
    (tmp_path / FILE).write_text(content)
    with pytest.raises(UserError, match=rf"{FILE} .*; restore it from a copy, or start a new workdir\.$"):
        kept(tmp_path, True, dict, jax.devices()[0], "gpu")


class Stopped(Exception):
    """The run ends here."""


def test_a_run_goes_on_with_the_choice_it_began_with(tmp_path, monkeypatch, timed):
    """Once a block is reserved under it; and a run whose choice was lost or changed is refused. Nothing is trained."""
    config = tiny_config(tmp_path)
    config.model.name, config.pretrain.steps = "small_models:SmallConvolutions", 0
    config.clipping.microbatch, config.privacy.accountant, config.evaluate.enabled = 4, "rdp", False
    used, rule_of, is_stopped = [], finetune.convolution_rule, True

    def train(name, step, state, inputs, start, stop, folder, log, *, before=None, **others):
        if before:
            before(start, start + 1)
            if is_stopped:
                raise Stopped
        return state

    monkeypatch.setattr(convolution_choice, "TRIED", {"cpu": tuple(weight_gradients.RULES)})
    monkeypatch.setattr(finetune, "convolution_rule", lambda *args: used.append(args[0]) or rule_of(*args))
    monkeypatch.setattr(finetune.loop, "train", train)
    monkeypatch.setattr(finetune.objective_check, "check_objective", lambda *args: None)
    with pytest.raises(Stopped):
        run(config, tmp_path / "run", "finetune")
    began = used[-1]
    assert len(timed) == 1 and set(began.values()) == {"compiler", "offsets"}

    path = tmp_path / "run" / "internal" / "finetune" / FILE
    content = json.loads(path.read_text())
    for changed in ({**content, "rules": dict.fromkeys(began, "offsets")}, None):
        path.unlink() if changed is None else path.write_text(json.dumps(changed))
        with pytest.raises(UserError, match=r"has spent budget on other inputs \(changed: convolutions\)"):
            run(config, tmp_path / "run", "finetune")
    path.write_text(json.dumps({**content, "seconds": {}, "device": "another"}))
    is_stopped = False
    run(config, tmp_path / "run", "finetune")
    assert len(used) == 4 and all(choice == began for choice in used) and len(timed) == 1
