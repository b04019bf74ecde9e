"""From a compiler's words to figures."""

import dataclasses

import pytest

from privimage_jax.targets import cost, topologies

FOUND = cost.Estimate(
    peak_bytes=10**9,
    refused=False,
    collectives=1,
    kernels=10.0,
    bytes_moved=3.352e9,
    cycles=3e6,
    loop_bytes=None,
    loop_cycles=None,
    model_flops=8 * 989e9,
    compile_seconds=1.0,
)


def test_tpus_take_the_compilers_cycles():
    machine = topologies.parse("v5e:2x4")
    assert cost.seconds(FOUND, machine, "bfloat16") == pytest.approx(0.002)
    assert cost.seconds(dataclasses.replace(FOUND, cycles=None), machine, "bfloat16") is None


def test_gpus_take_the_larger_of_two_bounds():
    machine = topologies.parse("h100:8")
    assert cost.seconds(FOUND, machine, "bfloat16") == pytest.approx(0.001)
    assert cost.seconds(FOUND, machine, "tf32") == pytest.approx(0.002)
    slow = dataclasses.replace(FOUND, bytes_moved=10 * FOUND.bytes_moved)
    assert cost.seconds(slow, machine, "bfloat16") == pytest.approx(0.01)
    assert cost.seconds(dataclasses.replace(FOUND, bytes_moved=None), machine, "bfloat16") is None


@pytest.mark.parametrize(
    ("text", "needed"),
    [
        ("the total memory required for HLO temporaries (96.00G) exceeds available HBM (15.75G).", 96 * 2**30),
        ("Ran out of memory in memory space hbm. Used 17.5G of 15.75G hbm.", int(17.5 * 2**30)),
        ("out of memory", None),
    ],
)
def test_what_a_refusal_says_of_memory(text, needed):
    assert cost.memory_needed(text) == needed


def test_only_a_loop_over_microbatches_has_figures_of_its_own():
    text = """HloModule m
%condition (p: (s32[], s32[])) -> pred[] {
  %p = (s32[], s32[]) parameter(0)
  ROOT %lt = pred[] compare(%p, %p), direction=LT
}
%body (q: (s32[], s32[])) -> (s32[], s32[]) {
  %q = (s32[], s32[]) parameter(0)
  ROOT %copy = (s32[], s32[]) copy(%q), backend_config={"estimated_cycles":"7"}
}
ENTRY %main (x: (s32[], s32[])) -> (s32[], s32[]) {
  %x = (s32[], s32[]) parameter(0)
  ROOT %while = (s32[], s32[]) while(%x), condition=%condition, body=%body
}
"""
    assert cost.read(text, 5, (1,), 2.0, 3.0).loop_cycles is None
    inner = text.replace("ROOT %copy", "%w = (s32[], s32[]) while(%q), condition=%condition, body=%body2\n  ROOT %copy")
    inner = inner.replace("ENTRY", text[text.index("%body") : text.index("ENTRY")].replace("%body", "%body2") + "ENTRY")
    found = cost.read(inner, 5, (1, 4.5), 2.0, 3.0)
    assert found.loop_cycles == 7 and found.cycles == 4.5 * 7 + 7
    assert (found.peak_bytes, found.model_flops, found.compile_seconds) == (5, 2.0, 3.0)
