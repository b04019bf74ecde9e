"""Which programs a config has, and what they are compiled with."""

import dataclasses

import pytest
from pipelines import tiny_config

from privimage_jax.cli import forecast
from privimage_jax.errors import UserError
from privimage_jax.targets import programs, topologies
from privimage_jax.targets.facts import Facts

FACTS = Facts(60, 3, 60, 6)
TPUS = topologies.parse("v5e:2x4")


@pytest.fixture
def config(tmp_path):
    return tiny_config(tmp_path)


def names(made):
    return [program.name for program in made]


def test_every_stage_that_the_config_runs(config):
    assert names(programs.make(config, FACTS, TPUS, ("vmap",))) == list(programs.NAMES)
    config.query_net.workdir = "elsewhere"
    config.selection.method = "random"
    config.pretrain.steps = 0
    assert names(programs.make(config, FACTS, TPUS, ("nonprivate", "vmap"))) == ["finetune", "finetune", "sample"]
    config.finetune.enabled = False
    assert names(programs.make(config, FACTS, TPUS, ())) == ["sample"]


def test_the_help_names_every_program_and_method():
    assert not [name for name in (*programs.NAMES, *programs.METHODS) if name not in forecast.COMMAND.help]


def test_wrong_names_are_refused(config):
    with pytest.raises(UserError, match="--methods: 'auto' is not known; give some of nonprivate, "):
        programs.make(config, FACTS, TPUS, ("auto",))
    config.pretrain.steps = 0
    with pytest.raises(UserError, match="'pretrain' is no program of this config; give some of train-query, query, fi"):
        programs.make(config, FACTS, TPUS, ("vmap",), ("pretrain",))


def test_how_often_each_runs(config):
    config.sample.n = 13
    made = {program.name: program for program in programs.make(config, FACTS, TPUS, ("vmap",))}
    assert {name: program.times for name, program in made.items()} == {
        "train-query": 12,  # 4 epochs of 3 batches
        "query": 1,
        "pretrain": 6,
        "finetune": 6,
        "sample": 3,  # 6 images at a time
    }
    assert made["query"].batch == 8 * 128 and made["sample"].batch == 8  # of all devices


def test_steps_on_noisy_means_count_as_pre_training(config):
    config.warmup.enabled, config.warmup.steps, config.warmup.subset_size = True, 4, 20
    for steps, times in ((6, 10), (0, 4)):
        config.pretrain.steps, config.selection.method = steps, "semantic" if steps else "none"
        [program] = programs.make(config, FACTS, TPUS, ("vmap",), ("pretrain",))
        assert program.times == times


def test_the_memory_of_the_target_decides_the_microbatch(config):
    config.clipping.microbatch, config.finetune.batch_size = 0, 2048
    facts = dataclasses.replace(FACTS, n=10_000)
    [large] = programs.make(config, facts, TPUS, ("vmap",), ("finetune",))
    [small] = programs.make(config, facts, dataclasses.replace(TPUS, memory=2**18), ("vmap",), ("finetune",))
    assert large.microbatch == 2048 // 8 // 16 and 1 <= small.microbatch < large.microbatch
    assert large.rounds == (1, 16.5)  # the last is half empty
    with pytest.raises(UserError, match="one example needs .* but a device has"):
        programs.make(config, facts, dataclasses.replace(TPUS, memory=2**10), ("vmap",), ("finetune",))


def test_work_is_counted_without_loops(config):
    """Three evaluations of a network of two dense layers, for each of 8 images."""
    [one] = programs.make(config, FACTS, TPUS, ("vmap",), ("sample",))
    products = 2 * (64 * 16 + 16 * 64)
    assert 1 < one.flops() / (8 * 3 * products) < 1.5
    config.sample.sampler, config.sample.guidance = "heun", 1.0
    [two] = programs.make(config, FACTS, TPUS, ("vmap",), ("sample",))
    assert two.flops() == pytest.approx(one.flops() * 5 / 3 * 2)


def test_a_model_that_fails_is_named(config):
    config.query_net.model = "pipelines:Failing"
    with pytest.raises(UserError, match=r"config\.query_net\.model=pipelines:Failing fails with ZeroDivisionError"):
        programs.make(config, FACTS, TPUS, ("vmap",), ("query",))


def test_too_many_images_are_to_be_fewer(config):
    def remedy(public_n):
        [program] = programs.make(
            config, dataclasses.replace(FACTS, public_n=public_n), TPUS, ("vmap",), ("train-query",)
        )
        return program.remedy

    assert remedy(60) == remedy(10**9) == "give a smaller config.query_net.batch_size"  # each device has a share
    assert remedy(10**10) == "use more devices, or fewer images"
    config.public.residency = "replicated"
    assert remedy(10**9) == "give config.public.residency=auto"
