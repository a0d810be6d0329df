"""Which devices send what to whom: groups in each form, and programs of 8 devices whose traffic theory knows."""

import jax
import jax.numpy as jnp
import pytest
from jax.sharding import AxisType
from jax.sharding import PartitionSpec as P

from jaxdiff.plan import hlo
from jaxdiff.plan.collectives import Collective, axes_of, collectives, factor, groups_of


@pytest.fixture(scope="module")
def mesh():
    return jax.make_mesh((2, 4), ("data", "fsdp"), axis_types=(AxisType.Auto,) * 2, devices=jax.devices()[:8])


@pytest.mark.parametrize(
    ("text", "groups"),
    [
        ("replica_groups={{0,1},{2,3}}, dimensions={0}", [[0, 1], [2, 3]]),
        ("replica_groups={}, to_apply=%add", [[0, 1, 2, 3]]),
        ("replica_groups=[2,2]<=[4], dimensions={1}", [[0, 1], [2, 3]]),
        ("replica_groups=[2,4]<=[4,2]T(1,0), x={}", [[0, 2, 4, 6], [1, 3, 5, 7]]),
        ("replica_groups=[4,2]<=[2,2,2]T(0,2,1)", [[0, 2], [1, 3], [4, 6], [5, 7]]),
        ("replica_groups=mesh['a'=2,'b'=2] {'b'}, x", [[0, 1], [2, 3]]),
        ("replica_groups=mesh['a'=2,'b'=2] {'a'}", [[0, 2], [1, 3]]),
        ("replica_groups=mesh['a'=2,'b'=2,'c'=2] {'a','c'}", [[0, 1, 4, 5], [2, 3, 6, 7]]),
        ("replica_groups=mesh['a'=2,'b'=2], device_ids=([2,2]T(1,0)) {'b'}", [[0, 2], [1, 3]]),
        ("replica_groups=mesh['a'=2,'b'=2], device_ids=(3,1,2,0) {'b'}", [[3, 1], [2, 0]]),
        ("replica_groups=mesh['a'=8] {'a':(2)2}", [[0, 2], [1, 3], [4, 6], [5, 7]]),
        ("channel_id=1, source_target_pairs={{0,1},{1,0}}, metadata={}", [[0, 1], [1, 0]]),
    ],
)
def test_groups(text, groups):
    assert groups_of(text, devices=4) == groups


def test_groups_that_cannot_be_read():
    with pytest.raises(ValueError, match="groups of devices"):
        groups_of("replica_groups=?", devices=4)


def test_axes(mesh):
    assert axes_of([[0, 4], [1, 5]], mesh) == ("data",)
    assert axes_of([[4, 5, 6, 7]], mesh) == ("fsdp",)
    assert axes_of([[0, 2], [1, 3]], mesh) == ("fsdp",)
    assert axes_of([[0, 5]], mesh) == ("data", "fsdp")


def _found(mesh, function, x=(64, 16)):
    sharded = jax.shard_map(
        function, mesh=mesh, in_specs=P(("data", "fsdp")), out_specs=P(("data", "fsdp")), check_vma=False
    )
    shape = jax.ShapeDtypeStruct(x, jnp.float32)
    return collectives(hlo.parse(jax.jit(sharded).lower(shape).compile().as_text()), mesh)


PART = 64 * 16 * 4 // 8  # bytes that a device holds of x


@pytest.mark.parametrize(("axes", "size"), [(("data",), 2), (("fsdp",), 4), (("data", "fsdp"), 8)])
@pytest.mark.parametrize(
    ("kind", "act"),
    [
        ("all-reduce", lambda x, axes, n: jax.lax.psum(x, axes)),
        ("all-gather", lambda x, axes, n: jax.lax.all_gather(x, axes)),
        ("reduce-scatter", lambda x, axes, n: jax.lax.psum_scatter(x, axes, tiled=True)),
        ("all-to-all", lambda x, axes, n: jax.lax.all_to_all(x, axes, 0, 0, tiled=True)),
        ("collective-permute", lambda x, axes, n: jax.lax.ppermute(x, axes, [(i, (i + 1) % n) for i in range(n)])),
    ],
)
def test_each_kind_on_each_axis(mesh, axes, size, kind, act):
    found = _found(mesh, lambda x: act(x, axes, size))
    bytes = PART * (size if kind == "all-gather" else 1)
    share = {"all-reduce": 2 * (size - 1) / size, "collective-permute": 1}.get(kind, (size - 1) / size)
    assert found == [Collective(kind, axes, 1, bytes, pytest.approx(share * bytes))]


def test_a_loop_of_sums_within_a_loop(mesh):
    def often(x):
        def inner(x, _):
            return jnp.sin(jax.lax.psum(x, "fsdp")), None

        def outer(x, _):
            return jax.lax.scan(inner, x, length=3)[0], None

        return jax.lax.scan(outer, x, length=5)[0] + jax.lax.psum(x[:1], "data")

    assert set(_found(mesh, often)) == {
        Collective("all-reduce", ("fsdp",), 15, 15 * PART, 15 * PART * 1.5),
        Collective("all-reduce", ("data",), 1, 64, 64.0),
    }


# As libtpu writes them: a gather that runs beside products, in a loop too, stands in several fusions; a sum whose slice
# each device keeps stands in one of a telling name; a start's results hold its operand again.
TPU = """HloModule tpu

%start (p: f32[4,8]) -> (f32[4,8], f32[16,8]) {
  %p = f32[4,8]{1,0} parameter(0)
  %g1 = f32[16,8]{1,0} all-gather(%p), channel_id=7, replica_groups=mesh['a'=2,'b'=4] {'b'}, dimensions={0}
  ROOT %s = (f32[4,8]{1,0}, f32[16,8]{1,0}) custom-call(%g1), custom_call_target="AsyncCollectiveStart"
}

%done (p: f32[4,8]) -> f32[16,8] {
  %p = f32[4,8]{1,0} parameter(0)
  %g2 = f32[16,8]{1,0} all-gather(%p), channel_id=7, replica_groups=mesh['a'=2,'b'=4] {'b'}, dimensions={0}
  ROOT %d = f32[16,8]{1,0} custom-call(%p, %g2), custom_call_target="AsyncCollectiveDone"
}

%all-reduce-scatter.3 (p: f32[16,8]) -> f32[4,8] {
  %p = f32[16,8]{1,0} parameter(0)
  %r = f32[16,8]{1,0} all-reduce(%p), channel_id=1, replica_groups={{0,1,2,3},{4,5,6,7}}, to_apply=%add
  %zero = s32[] constant(0)
  ROOT %slice = f32[4,8]{1,0} dynamic-slice(%r, %zero, %zero), dynamic_slice_sizes={4,8}
}

%meanwhile (p: f32[4,8]) -> f32[4,8] {
  %p = f32[4,8]{1,0} parameter(0)
  %g3 = f32[16,8]{1,0} all-gather(%p), channel_id=7, replica_groups=mesh['a'=2,'b'=4] {'b'}, dimensions={0}
  ROOT %q = f32[4,8]{1,0} negate(%p)
}

%body (p: f32[4,8]) -> f32[4,8] {
  %p = f32[4,8]{1,0} parameter(0)
  ROOT %f = f32[4,8]{1,0} fusion(%p), kind=kOutput, calls=%meanwhile
}

%never (p: f32[4,8]) -> pred[] {
  %p = f32[4,8]{1,0} parameter(0)
  ROOT %n = pred[] constant(false)
}

ENTRY %main (x: f32[4,8]) -> f32[4,8] {
  %x = f32[4,8]{1,0} parameter(0)
  %w = f32[4,8]{1,0} while(%x), condition=%never, body=%body, backend_config={"known_trip_count":{"n":"5"}}
  %a = (f32[4,8]{1,0}, f32[16,8]{1,0}) fusion(%x), kind=kCustom, calls=%start
  %b = f32[16,8]{1,0} fusion(%x), kind=kCustom, calls=%done
  %c = (f32[4,8]{1,0:S(1)}, f32[4,8]{1,0}, u32[]) collective-permute-start(%x), source_target_pairs={{0,4},{4,0},{1,1}}
  ROOT %e = f32[4,8]{1,0} fusion(%b), kind=kCustom, calls=%all-reduce-scatter.3
}
"""


def test_fused_and_asynchronous_forms(mesh):
    assert set(collectives(hlo.parse(TPU), mesh)) == {
        Collective("all-gather", ("fsdp",), 1, 512, 384.0),
        Collective("reduce-scatter", ("fsdp",), 1, 512, 384.0),
        Collective("collective-permute", ("data",), 1, 128, 128.0),
    }


def test_a_sum_among_many_sends_nearly_twice_its_bytes():
    assert factor("all-reduce", 1024) == pytest.approx(2, rel=1e-3)
    assert factor("all-gather", 2) == 0.5
