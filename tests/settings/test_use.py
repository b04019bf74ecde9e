"""Which settings make a difference to a run."""

import pytest

from privimage_jax import config as configs
from privimage_jax.configs import base
from privimage_jax.errors import UserError
from privimage_jax.settings import methods, use


def settings_of(method: str = "", **values) -> dict:
    config = base.get_config()
    methods.apply(config, method)
    config.update_from_flattened_dict({key.replace("__", "."): value for key, value in values.items()})
    return dict(configs.flatten(configs.check(config)))


@pytest.mark.parametrize(
    ("settings", "key", "off"),
    [
        (settings_of(), "warmup.steps", "config.warmup.enabled=False"),
        (settings_of("dpdm"), "pretrain.batch_size", "config.pretrain.steps=0 and config.warmup.enabled=False"),
        (settings_of("dpgan"), "gan.pretrain_rate", "config.pretrain.steps=0 and config.warmup.enabled=False"),
        (settings_of("dpgan"), "pretrain.learning_rate", "config.generator=gan"),
        (settings_of("dpdm"), "gan.finetune_rate", "config.generator=diffusion"),
        (settings_of("dpgan", finetune__enabled=False), "gan.finetune_rate", "config.finetune.enabled=False"),
        (settings_of(finetune__enabled=False), "clipping.norm", "config.finetune.enabled=False"),
        (settings_of(), "finetune.lora_scale", "config.finetune.lora_rank=0"),
        (settings_of(finetune__steps=7), "finetune.epochs", "config.finetune.steps=7"),
        (settings_of(), "pretrain.perturbation_norm", "config.pretrain.perturbation=0.0"),
        (settings_of("random"), "query.noise_multiplier", "config.selection.method=random"),
        (settings_of("random"), "selection.assignment", "config.selection.method=random"),
        (settings_of("pdp_diffusion"), "selection.k2", "config.selection.method=all"),
        (settings_of(selection__ratio=0.1), "selection.k2", "config.selection.ratio=0.1"),
        (settings_of(), "sample.s_churn", "config.sample.sampler=ddim"),
        (
            settings_of("random", evaluate__enabled=False),
            "query_net.epochs",
            "config.selection.method=random and config.evaluate.enabled=False",
        ),
    ],
)
def test_what_is_off_makes_no_difference(settings, key, off):
    assert not use.matters(settings, key)
    with pytest.raises(UserError, match=f"^config.{key} makes no difference with {off}; leave it out, or change that"):
        use.check_given([settings], [key])
    assert use.check_given([settings, {**settings, "extra_stages": ("a:B",)}], [key]) == {key: [off]}


@pytest.mark.parametrize(
    ("settings", "key"),
    [
        (settings_of("dp_feta"), "pretrain.batch_size"),  # of the training on noisy means
        (settings_of("dpdm"), "pretrain.steps"),
        (settings_of("lora"), "finetune.lora_scale"),
        (settings_of("random"), "selection.k2"),
        (settings_of("random"), "query_net.epochs"),  # of the network whose features the evaluation takes
        (settings_of(), "selection.seed"),  # tells runs of one selection apart
        (settings_of(sample__sampler="heun"), "sample.s_churn"),
        (settings_of("dpgan"), "finetune.lora_rank"),  # refused with a reason of its own
    ],
)
def test_what_is_on_is_accepted(settings, key):
    assert use.check_given([settings], [key]) == {}
