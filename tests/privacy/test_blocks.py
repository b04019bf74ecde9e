"""No block of the generator is drawn twice, in a run or after one was interrupted, and none before it is paid for."""

import jax
import numpy as np
import pytest
from audits import Trace, check_blocks_are_used_once, check_spent_before_use, recorded, shared_blocks
from pipelines import run, tiny_config
from small_models import use_small_models

from privimage_jax.privacy import chacha
from privimage_jax.stages import finetune

STEPS, BLOCK = 6, 3


class Stopped(Exception):
    """The run ends here."""


def make_config(folder):
    config = use_small_models(tiny_config(folder))
    config.privacy.fixed_seed = -1
    config.privacy.accountant = "rdp"
    config.finetune.steps, config.finetune.block = STEPS, BLOCK
    config.finetune.noise_multiplicity = 1
    config.sampler_choice.enabled = True
    config.evaluate.enabled = False
    return config


@pytest.fixture(scope="module")
def traces(tmp_path_factory):
    """Of three runs on one workdir: stopped after step 2 (a checkpoint holds steps 0 and 1), again, with a new key.

    The last goes on to the choice of the sampler.
    """
    folder = tmp_path_factory.mktemp("blocks")
    config, runs = make_config(folder), []

    def stop(begin, end, metrics):
        if end == BLOCK:
            raise Stopped

    for stopped, lost in ((True, False), (True, False), (False, True)):
        if lost:
            (folder / "run" / "internal" / "keys" / "finetune-0.key").unlink()
        runs.append(Trace())
        with recorded(runs[-1]), pytest.MonkeyPatch.context() as patch:
            if stopped:
                patch.setattr(finetune, "check_processed", stop)
                with pytest.raises(Stopped):
                    run(config, folder / "run", "finetune")
            else:
                run(config, folder / "run", "choose-sampler")
    return runs


def steps_of(trace, domain):
    blocks = np.concatenate(trace.blocks)
    return sorted(set(blocks[blocks[:, 8] == domain, 9].tolist()))


def test_every_mechanism_is_in_the_trace(traces):
    ran = [[0, 1, 2], [2], [2, 3, 4]]  # three of six steps were reserved under the key that was lost
    for domain in (chacha.DOMAIN_MEMBERSHIP, chacha.DOMAIN_NOISE):
        assert [steps_of(trace, domain) for trace in traces] == ran
    assert [steps_of(trace, chacha.DOMAIN_QUERY) for trace in traces] == [[0], [], [0]]
    assert [sorted(trace.gradients) for trace in traces] == ran


def test_no_block_is_drawn_twice(traces):
    for trace in traces:
        check_blocks_are_used_once(trace)


def test_a_block_is_drawn_again_for_the_same_computation_only(traces):
    """Equal noise on different inputs subtracts: the step that ran again gave the same bits."""
    first, again, _ = traces
    shared = shared_blocks(first, again)
    assert set(shared[:, 9].tolist()) == {2} and len(shared) == len(np.concatenate(again.blocks))
    jax.tree.map(np.testing.assert_array_equal, first.gradients[2], again.gradients[2])


def test_a_new_key_shares_no_block_with_a_lost_one(traces):
    first, again, anew = traces
    assert len(shared_blocks(first, anew)) == len(shared_blocks(again, anew)) == 0
    assert not np.array_equal(*(next(iter(jax.tree.leaves(trace.gradients[2]))) for trace in (first, anew)))


def test_every_block_is_paid_for_before_it_is_drawn(traces):
    lines = []
    for trace in traces:
        before, lines = lines, [*lines, *(line for _, line in trace.lines)]
        check_spent_before_use(Trace(blocks=trace.blocks, lines=[(0, line) for line in before] + trace.lines))
