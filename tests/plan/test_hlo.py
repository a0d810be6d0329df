"""The reader of compiled programs, on text written by hand and on programs compiled here."""

import jax
import jax.numpy as jnp
import pytest

from jaxdiff.plan import hlo, traffic

# A loop whose counter starts at 1, goes up by 2 and ends below 8: 1, 3, 5, 7. Within it a fusion reads a slice.
LOOP = """HloModule loop, is_scheduled=true

%fused (p.0: f32[10,4], p.1: s32[]) -> f32[4] {
  %p.0 = f32[10,4]{1,0:T(8,128)} parameter(0)
  %p.1 = s32[]{:T(128)} parameter(1)
  %zero = s32[] constant(0)
  %slice = f32[1,4]{1,0} dynamic-slice(%p.0, %p.1, %zero), dynamic_slice_sizes={1,4}
  ROOT %flat = f32[4]{0} bitcast(%slice)
}

%body (carry: (s32[], f32[10,4])) -> (s32[], f32[10,4]) {
  %carry = (s32[]{:T(128)}, f32[10,4]{1,0:T(8,128)}) parameter(0)
  %i = s32[]{:T(128)} get-tuple-element(%carry), index=0
  %all = f32[10,4]{1,0:T(8,128)} get-tuple-element(%carry), index=1
  %two = s32[] constant(2)
  %next = s32[] add(%i, %two)
  %one = f32[4]{0} fusion(%all, %i), kind=kLoop, calls=%fused, metadata={op_name="a(b)"}
  ROOT %out = (s32[], f32[10,4]{1,0}) tuple(%next, %all)
}

%condition (state: (s32[], f32[10,4])) -> pred[] {
  %limit = s32[] constant(8)
  %state = (s32[], f32[10,4]{1,0}) parameter(0)
  %counter = s32[] get-tuple-element(%state), index=0
  ROOT %less = pred[] compare(%counter, %limit), direction=LT
}

ENTRY %main (x: f32[10,4]) -> f32[10,4] {
  %x = f32[10,4]{1,0:T(8,128)} parameter(0)
  %start = s32[] constant(1)
  %first = s32[] copy(%start)
  %begin = (s32[], f32[10,4]{1,0}) tuple(%first, %x)
  %loop = (s32[], /*index=1*/f32[10,4]{1,0}) while(%begin), condition=%condition, body=%body
  ROOT %result = f32[10,4]{1,0} get-tuple-element(%loop), index=1
}
"""


def test_a_loop_counts_as_often_as_it_goes_round():
    times = {run.instruction.name: run.times for run in hlo.runs(hlo.parse(LOOP))}
    assert times["one"] == times["slice"] == 4
    assert times["loop"] == times["x"] == 1


@pytest.mark.parametrize(
    ("old", "new", "trips"),
    [
        ("body=%body", 'body=%body, backend_config={"known_trip_count":{"n":"17"}}', 17),
        ("constant(8)", "constant(9)", 4),
        ("constant(8)", "constant(10)", 5),
        ("direction=LT", "direction=NE", None),
        ("%start = s32[] constant(1)", "%start = s32[] custom-call()", None),
    ],
)
def test_trips(old, new, trips):
    module = hlo.parse(LOOP.replace(old, new))
    main = module.computations[module.entry]
    assert hlo.trips(module, main, main.instructions["loop"]) == trips


def test_bytes_of_a_slice_and_not_of_what_it_is_cut_from():
    # Each of 4 rounds: the counter's add reads 4 + 4 and writes 4; the fusion reads a slice of 16 bytes and the 4 of
    # the counter, and writes 16. The condition is not counted. Before the loop a copy reads 4 and writes 4.
    assert traffic.count_bytes(hlo.parse(LOOP)) == 4 * (12 + 16 + 4 + 16) + 8


def test_bytes_of_a_slice_in_a_fusion_within_a_fusion():
    """As TPUs put them: the outer fusion reads and writes what the inner ones cut and replace."""
    outer = """%outer (o.0: f32[10,4], o.1: s32[]) -> f32[10,4] {
  %o.0 = f32[10,4]{1,0} parameter(0)
  %o.1 = s32[] parameter(1)
  %cut = f32[4]{0} fusion(%o.0, %o.1), kind=kLoop, calls=%fused
  ROOT %put = f32[10,4]{1,0} fusion(%o.0, %o.1, %cut), kind=kLoop, calls=%replaced
}

%replaced (r.0: f32[10,4], r.1: s32[], r.2: f32[4]) -> f32[10,4] {
  %r.0 = f32[10,4]{1,0} parameter(0)
  %r.1 = s32[] parameter(1)
  %r.2 = f32[4]{0} parameter(2)
  %row = f32[1,4]{1,0} bitcast(%r.2)
  %nought = s32[] constant(0)
  ROOT %new = f32[10,4]{1,0} dynamic-update-slice(%r.0, %row, %r.1, %nought)
}

%body ("""
    text = LOOP.replace("%body (", outer, 1)
    text = text.replace(
        "%one = f32[4]{0} fusion(%all, %i), kind=kLoop, calls=%fused",
        "%one = f32[10,4]{1,0} fusion(%all, %i), kind=kLoop, calls=%outer",
    )
    assert traffic.count_bytes(hlo.parse(text)) == 4 * (12 + 16 + 4 + 16) + 8


def test_bytes_of_nearer_memories_do_not_count():
    near = LOOP.replace("%one = f32[4]{0} fusion", "%one = f32[4]{0:S(1)} fusion")
    assert traffic.count_bytes(hlo.parse(near)) == 4 * (12 + 16 + 4) + 8


def test_bytes_of_an_update_in_place():
    def put(x, y, i):
        return jax.lax.dynamic_update_slice(x, 2 * y, (i, jnp.zeros((), jnp.int32)))

    x, y = jnp.zeros((1000, 256)), jnp.zeros((1, 256))
    text = jax.jit(put, donate_argnums=0).lower(x, y, jnp.zeros((), jnp.int32)).compile().as_text()
    assert 2 * y.nbytes <= traffic.count_bytes(hlo.parse(text)) <= 4 * y.nbytes + 64


def test_arrays_of_a_type():
    read = hlo.arrays("(f32[2,3]{1,0:T(8,128)(2,1)}, /*index=1*/bf16[4]{0:S(1)}, pred[], u4[3], token[])")
    assert [(one.dtype, one.shape, one.space) for one in read] == [
        ("f32", (2, 3), 0), ("bf16", (4,), 1), ("pred", (), 0), ("u4", (3,), 0), ("token", (), 0),
    ]  # fmt: skip
    assert [one.bytes for one in read] == [24, 8, 1, 2, 0]


def test_text_that_is_no_program():
    with pytest.raises(ValueError, match="no ENTRY computation"):
        hlo.parse("HloModule nothing\n")
