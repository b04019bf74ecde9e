import types

import pytest

from privimage_jax.configs import base
from privimage_jax.errors import UserError
from privimage_jax.stages.finetune import StepRange, check_processed, factors, next_step_range


def blocks(*ranges):
    return [{"kind": "dp-sgd", "key_generation": generation, "steps": [a, b]} for generation, a, b in ranges]


@pytest.mark.parametrize(
    ("lines", "checkpoint", "keys", "expected"),
    [
        ([], 0, set(), StepRange(0, 0, 0, 10)),
        (blocks((0, 0, 4)), 0, {0}, StepRange(0, 0, 4, 10)),  # replayed for free
        (blocks((0, 0, 4), (0, 4, 8)), 6, {0}, StepRange(0, 6, 8, 10)),
        (blocks((0, 0, 4)), 2, set(), StepRange(1, 2, 2, 8)),  # 4 of 10 steps are spent, 6 remain
        (blocks((0, 0, 4), (1, 2, 6)), 4, {1}, StepRange(1, 4, 6, 8)),
        (blocks((0, 0, 4), (1, 2, 6)), 4, set(), StepRange(2, 4, 4, 6)),
        (blocks((0, 0, 10)), 5, set(), StepRange(1, 5, 5, 5)),  # nothing left: stop where it is
        (blocks((0, 0, 4), (1, 2, 6)), 0, {1}, StepRange(2, 0, 0, 2)),  # older than the present key
    ],
)
def test_steps_after_a_crash(lines, checkpoint, keys, expected):
    assert next_step_range(lines, checkpoint, 10, keys.__contains__) == expected


def test_noise_that_is_not_resumable_needs_its_key():
    """Its steps are replayed under their own key; without that, no fresh key takes over."""
    spent = blocks((0, 0, 4), (0, 4, 8))
    assert next_step_range([], 0, 10, set().__contains__, resumable=False) == StepRange(0, 0, 0, 10)
    assert next_step_range(spent, 6, 10, {0}.__contains__, resumable=False) == StepRange(0, 6, 8, 10)
    assert next_step_range(spent, 0, 10, {0}.__contains__, resumable=False) == StepRange(0, 0, 8, 10)
    with pytest.raises(UserError, match="the key of DP-SGD was lost, and its noise cannot go on"):
        next_step_range(spent, 6, 10, set().__contains__, resumable=False)


@pytest.mark.parametrize("lines", [[], blocks((0, 0, 4)), blocks((0, 0, 4), (1, 2, 6))])
def test_a_checkpoint_ahead_of_the_ledger_is_refused(lines):
    """Audit: a ledger of step 30 was put back beside the checkpoint of step 60; epsilon was 6.67, not 9.999."""
    last = max((line["steps"][1] for line in lines), default=0)
    next_step_range(lines, last, 10, {0, 1}.__contains__)
    for keys in (set(), {0, 1}):
        with pytest.raises(UserError, match=f"checkpoint of step {last + 1} is ahead of .* the steps before {last}: "):
            next_step_range(lines, last + 1, 10, keys.__contains__)


def test_the_noise_of_steps_is_that_of_their_ledger_line():
    """Audit: after another dp-accounting had solved another sigma2, reserved steps ran with that."""
    config = base.get_config()
    plan = types.SimpleNamespace(sampling_rate=0.1, noise_multiplier=1.159, n=1000)
    inputs = types.SimpleNamespace(plan=plan, config=config, workdir=types.SimpleNamespace(ledger="ledger.jsonl"))
    planned = factors(inputs, [])
    assert planned == {
        "sampling_rate": 0.1,
        "noise_multiplier": 1.159,
        "clip_norm": config.clipping.norm,
        "expected_batch_size": config.finetune.batch_size,
    }
    line = {"kind": "dp-sgd", **planned, "noise_multiplier": 1.238}
    assert factors(inputs, [line, {"kind": "closed"}]) == planned | {"noise_multiplier": 1.238}
    for name in ("sampling_rate", "clip_norm", "expected_batch_size"):
        with pytest.raises(UserError, match=f"ledger.jsonl states {name} = 3 of DP-SGD, but its steps would run with"):
            factors(inputs, [line | {name: 3}])


def test_a_record_that_was_drawn_but_not_processed_stops_the_run():
    check_processed(0, 2, {"drawn": 12.5, "processed": 12.5})
    with pytest.raises(RuntimeError, match="mean of 12.5 records was drawn, but 12 processed"):
        check_processed(0, 2, {"drawn": 12.5, "processed": 12.0})
