"""What is read from a compiled program's text."""

import pytest

from privimage_jax.targets import hlo

TEXT = """HloModule jit_run, is_scheduled=true

%fused_gather (param_0: f32[1000,8], param_1: s32[4]) -> f32[4,8] {
  %param_0 = f32[1000,8]{1,0} parameter(0)
  %param_1 = s32[4]{0} parameter(1)
  %bitcast.1 = f32[1000,8]{1,0} bitcast(%param_0)
  ROOT %gather.1 = f32[4,8]{1,0} gather(%bitcast.1, %param_1), offset_dims={1}
}

%fused_update (param_0.1: f32[1000,8], param_1.1: f32[1,8], param_2: s32[]) -> f32[1000,8] {
  %param_0.1 = f32[1000,8]{1,0} parameter(0)
  %param_1.1 = f32[1,8]{1,0} parameter(1)
  %param_2 = s32[] parameter(2)
  ROOT %dynamic-update-slice.1 = f32[1000,8]{1,0} dynamic-update-slice(%param_0.1, %param_1.1, %param_2, %param_2)
}

%known_condition (p.1: (s32[], f32[4,8])) -> pred[] {
  %p.1 = (s32[]{:T(128)}, f32[4,8]{1,0}) parameter(0)
  %constant.7 = s32[]{:T(128)} constant(7)
  %i.1 = s32[]{:T(128)} get-tuple-element(%p.1), index=0
  ROOT %lt.1 = pred[] compare(%i.1, %constant.7), direction=LT
}

%known_body (p.2: (s32[], f32[4,8])) -> (s32[], f32[4,8]) {
  %p.2 = (s32[], f32[4,8]{1,0}) parameter(0)
  %x.2 = f32[4,8]{1,0} get-tuple-element(%p.2), index=1
  %add.2 = f32[4,8]{1,0} add(%x.2, %x.2), backend_config={"estimated_cycles":"10"}
  %i.2 = s32[] get-tuple-element(%p.2), index=0
  ROOT %tuple.2 = (s32[], f32[4,8]{1,0}) tuple(%i.2, %add.2)
}

%inner_condition (p.3: (s32[], s32[])) -> pred[] {
  %p.3 = (s32[], s32[]) parameter(0)
  %i.3 = s32[] get-tuple-element(%p.3), index=0
  %n.3 = s32[] get-tuple-element(%p.3), index=1
  ROOT %lt.3 = pred[] compare(%i.3, %n.3), direction=LT
}

%inner_body (p.4: (s32[], s32[])) -> (s32[], s32[]) {
  %p.4 = (s32[], s32[]) parameter(0)
  %y.4 = f32[4,8]{1,0} custom-call(), custom_call_target="draw", backend_config={"estimated_cycles":"1000"}
  ROOT %tuple.4 = (s32[], s32[]) tuple(%p.4, %p.4)
}

%outer_body (p.5: (s32[], s32[])) -> (s32[], s32[]) {
  %p.5 = (s32[], s32[]) parameter(0)
  %while.5 = (s32[], s32[]) while(%p.5), condition=%inner_condition, body=%inner_body
  %while.6 = (s32[], f32[4,8]{1,0}) while(%p.5), condition=%known_condition, body=%known_body
  %small.5 = (s32[], s32[]) while(%p.5), condition=%inner_condition, body=%small_body
  %all-reduce.5 = f32[16]{0} all-reduce(%v.5), to_apply=%sum, backend_config={"estimated_cycles":"5"}
  ROOT %tuple.5 = (s32[], s32[]) tuple(%p.5, %p.5)
}

%small_body (p.6: (s32[], s32[])) -> (s32[], s32[]) {
  %p.6 = (s32[], s32[]) parameter(0)
  ROOT %copy.6 = (s32[], s32[]) copy(%p.6), backend_config={"estimated_cycles":"1"}
}

ENTRY %main (a: f32[1000,8], b: s32[4], c: f32[1,8]) -> f32[4,8] {
  %a = f32[1000,8]{1,0} parameter(0)
  %b = s32[4]{0} parameter(1)
  %c = f32[1,8]{1,0} parameter(2)
  %z = s32[] constant(0)
  %fusion.1 = f32[4,8]{1,0} fusion(%a, %b), kind=kLoop, calls=%fused_gather
  %fusion.2 = f32[1000,8]{1,0} fusion(%a, %c, %z), kind=kLoop, calls=%fused_update
  %copy-start.1 = (f32[4,8]{1,0:T(8,128)S(1)}, f32[4,8]{1,0}, u32[]{:S(2)}) copy-start(%fusion.1)
  %copy-done.1 = f32[4,8]{1,0:T(8,128)S(1)} copy-done(%copy-start.1)
  %while.7 = (s32[], s32[]) while(%t), condition=%inner_condition, body=%outer_body
  ROOT %slice.1 = f32[4,8]{1,0} dynamic-slice(%a, %z, %z)
}
"""


def test_a_loop_costs_what_its_rounds_say():
    """3 steps of 5.5 microbatches of 1000 cycles, of 7 rounds of 10, of one costless other loop, and an all-reduce."""
    total, loop = hlo.Program(TEXT).cost((3, 5.5))
    assert total.cycles == 3 * (5.5 * 1000 + 7 * 10 + 1 + 5)
    assert loop.cycles == 1000


def test_a_loop_whose_rounds_nobody_says_counts_once():
    total, loop = hlo.Program(TEXT).cost()
    assert total.cycles == 1000 + 70 + 1 + 5 and loop is None


def test_rounds_that_the_program_says_itself():
    loop = 'while(%p.5), condition=%inner_condition, body=%inner_body, backend_config={"known_trip_count":{"n":"9"}}'
    text = TEXT.replace("while(%p.5), condition=%inner_condition, body=%inner_body", loop)
    assert hlo.Program(text).cost()[0].cycles == 9000 + 70 + 1 + 5


def test_messages_between_devices_are_counted_once():
    assert hlo.Program(TEXT).collectives() == 1
    started = TEXT.replace("= f32[16]{0} all-reduce(", "= f32[16]{0} all-reduce-start(")
    assert hlo.Program(started).collectives() == 1


def test_only_what_is_read_of_a_large_operand_is_moved():
    program = hlo.Program(TEXT)
    moved = {op.name: program.bytes_moved("main", op) for op in program.computations["main"]}
    assert moved["fusion.1"] == 2 * 4 * 8 * 4 + 4 * 4  # four rows of a thousand, in and out, and their numbers
    assert moved["fusion.2"] == 2 * 8 * 4 + 4  # one row is replaced in place
    assert moved["copy-start.1"] == 4 * 8 * 4  # into fast memory
    assert moved["slice.1"] == 2 * 4 * 8 * 4 + 2 * 4


def test_free_operations_are_no_kernels():
    flat = TEXT.replace("  %while.7 = (s32[], s32[]) while(%t), condition=%inner_condition, body=%outer_body\n", "")
    assert hlo.Program(flat).cost()[0].kernels == 4
    assert hlo.Program(flat).cost()[0].cycles is None


def test_of_two_branches_the_costlier_counts():
    text = """HloModule m
%left (p: s32[]) -> s32[] {
  %p = s32[] parameter(0)
  ROOT %a = s32[] add(%p, %p), backend_config={"estimated_cycles":"3"}
}
%right (q: s32[]) -> s32[] {
  %q = s32[] parameter(0)
  ROOT %b = s32[] add(%q, %q), backend_config={"estimated_cycles":"8"}
}
%called (r: s32[]) -> s32[] {
  %r = s32[] parameter(0)
  ROOT %c = s32[] add(%r, %r), backend_config={"estimated_cycles":"20"}
}
ENTRY %main (x: s32[]) -> s32[] {
  %x = s32[] parameter(0)
  %d = s32[] conditional(%x, %x, %x), branch_computations={%left, %right}
  ROOT %e = s32[] call(%d), to_apply=%called
}
"""
    assert hlo.Program(text).cost()[0].cycles == 28


@pytest.mark.parametrize(
    ("shape", "expected"),
    [
        ("f32[16,8]{1,0}", 512),
        ("pred[10]", 10),
        ("s4[10]{0}", 5),
        ("f8e4m3fn[10]{0}", 10),
        ("bf16[16,8]{1,0:T(8,128)(2,1)}", 16 * 128 * 2),
        ("f32[3,8,16]{1,2,0:T(8,128)}", 3 * 128 * 16 * 4),
        ("f32[16]{0:T(128)S(1)}", 0),
        ("f32[]", 4),
        ("token[]", 0),
        ("(f32[2]{0}, /*index=1*/bf16[2]{0}, token[])", 12),
    ],
)
def test_the_size_of_an_array(shape, expected):
    assert hlo.size(shape) == expected
