"""Parsed programs and their collectives, against programs whose bytes are known."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding, PartitionSpec

from videogen_jax.parallel import collectives, hlo

SIZE = 64  # float32 elements on each device


def mesh(*shape):
    names = ("a", "b")[: len(shape)]
    devices = np.array(jax.devices()[: int(np.prod(shape))]).reshape(shape)
    return jax.sharding.Mesh(devices, names)


def compiled_text(function, shape=(4,), spec=("a",), loops=()):
    """HLO text of a program that runs `function` per device, inside loops of these lengths."""
    on = mesh(*shape)

    def looped(x):
        for length in loops:
            inner = function_in(x, length)
            x = inner
        return x

    def function_in(x, length):
        return jax.lax.scan(lambda carry, _: (function(carry), None), x, None, length=length)[0]

    body = looped if loops else function
    run = jax.shard_map(
        body, mesh=on, in_specs=PartitionSpec(spec), out_specs=PartitionSpec(spec), check_vma=False
    )
    count = SIZE * int(np.prod([on.shape[axis] for axis in spec]))
    x = jax.ShapeDtypeStruct((count,), jnp.float32, sharding=NamedSharding(on, PartitionSpec(spec)))
    return jax.jit(run).lower(x).compile().as_text()


def exchange(x):
    return jax.lax.all_to_all(x.reshape(4, -1), "a", 0, 0, tiled=True).reshape(-1)


PER_DEVICE = {  # bytes that each of four devices sends for 64 elements per device
    "all-gather": (lambda x: jnp.sum(jax.lax.all_gather(x, "a"), 0) * x, 3 * 256),
    "all-reduce": (lambda x: jax.lax.psum(x, "a"), 2 * 3 / 4 * 256),
    "reduce-scatter": (
        lambda x: jnp.tile(jax.lax.psum_scatter(x, "a", tiled=True), 4),
        3 / 4 * 256,
    ),
    "all-to-all": (exchange, 3 / 4 * 256),
    "collective-permute": (
        lambda x: jax.lax.ppermute(x, "a", [(i, (i + 1) % 4) for i in range(4)]),
        256,
    ),
}


@pytest.mark.parametrize("kind", PER_DEVICE)
def test_collectives_send_the_bytes_of_ring_algorithms(kind):
    function, sent = PER_DEVICE[kind]
    assert collectives.count_sent_bytes(hlo.parse(compiled_text(function)), 4) == {kind: sent}


def test_replica_groups_are_those_of_one_axis():
    """Over an axis of size 2 in a mesh of 2 x 4: half of twice 256 bytes."""
    text = compiled_text(lambda x: jax.lax.psum(x, "a"), (2, 4), ("a", "b"))
    assert collectives.count_sent_bytes(hlo.parse(text), 8) == {"all-reduce": 256}
    text = compiled_text(lambda x: jax.lax.psum(x, "b"), (2, 4), ("a", "b"))
    assert collectives.count_sent_bytes(hlo.parse(text), 8) == {"all-reduce": 2 * 3 / 4 * 256}


def test_loops_count_by_their_trip_counts():
    text = compiled_text(lambda x: jnp.sin(jax.lax.psum(x, "a")), loops=(7,))
    assert collectives.count_sent_bytes(hlo.parse(text), 4) == {"all-reduce": 7 * 384}

    def inner(x):
        return jax.lax.scan(lambda c, _: (jnp.sin(jax.lax.psum(c, "a")), None), x, None, length=3)[
            0
        ]

    text = compiled_text(lambda x: inner(x) + 1, loops=(5,))
    assert collectives.count_sent_bytes(hlo.parse(text), 4) == {"all-reduce": 15 * 384}


def test_a_loop_of_unknown_length_is_rejected():
    def function(x):
        total = jax.lax.while_loop(lambda x: jnp.sum(x) < 1e9, lambda x: jax.lax.psum(x, "a"), x)
        return total

    with pytest.raises(ValueError, match="runs an unknown number of times"):
        collectives.count_sent_bytes(hlo.parse(compiled_text(function)), 4)


def test_the_largest_collective_counts_reads_and_writes():
    text = compiled_text(PER_DEVICE["all-gather"][0])
    assert collectives.largest_collective(hlo.parse(text), 4) == 256 + 4 * 256


GPU_TEXT = """HloModule step, is_scheduled=true

%fused_slice (p0: bf16[12,64], p1: s32[]) -> bf16[64] {
  %p0 = bf16[12,64]{1,0} parameter(0)
  %p1 = s32[] parameter(1)
  %zero = s32[] constant(0)
  %slice = bf16[1,64]{1,0} dynamic-slice(%p0, %p1, %zero), dynamic_slice_sizes={1,64}
  ROOT %out = bf16[64]{0} bitcast(%slice)
}

%body (state: (s32[], bf16[12,64], bf16[64])) -> (s32[], bf16[12,64], bf16[64]) {
  %state = (s32[], bf16[12,64]{1,0}, bf16[64]{0}) parameter(0)
  %i = s32[] get-tuple-element(%state), index=0
  %all = bf16[12,64]{1,0} get-tuple-element(%state), index=1
  %one = bf16[64]{0} fusion(%all, %i), kind=kLoop, calls=%fused_slice
  %start = ((bf16[64]{0}), bf16[128]{0}) all-gather-start(%one), replica_groups=mesh['x'=2,'y'=4] {'x'}, dimensions={0}
  %done = bf16[128]{0} all-gather-done(%start)
  %half = bf16[64]{0} slice(%done), slice={[0:64]}
  ROOT %next = (s32[], bf16[12,64]{1,0}, bf16[64]{0}) tuple(%i, %all, %half)
}

%condition (state: (s32[], bf16[12,64], bf16[64])) -> pred[] {
  %state = (s32[], bf16[12,64]{1,0}, bf16[64]{0}) parameter(0)
  ROOT %go = pred[] constant(true)
}

ENTRY %main (x: bf16[12,64], y: bf16[64]) -> bf16[64] {
  %x = bf16[12,64]{1,0} parameter(0)
  %y = bf16[64]{0} parameter(1)
  %zero = s32[] constant(0)
  %state = (s32[], bf16[12,64]{1,0}, bf16[64]{0}) tuple(%zero, %x, %y)
  %loop = (s32[], bf16[12,64]{1,0}, bf16[64]{0}) while(%state), condition=%condition, body=%body, backend_config={"known_trip_count":{"n":"12"}}
  ROOT %out = bf16[64]{0} get-tuple-element(%loop), index=2
}
"""  # noqa: E501


def test_asynchronous_collectives_of_gpus_count_once():
    assert collectives.count_sent_bytes(hlo.parse(GPU_TEXT), 8) == {"all-gather": 12 * 128}


@pytest.mark.parametrize(
    ("kind", "size"),
    [
        ("f32[2,3]{1,0}", 24),
        ("(bf16[4]{0}, pred[3]{0}, s32[])", 15),
        ("((f8e4m3fn[16]{0}), u64[2]{0:T(128)})", 32),
        ("token[]", 0),
    ],
)
def test_types_have_their_size_in_bytes(kind, size):
    assert hlo.count_bytes(kind) == size


@pytest.mark.parametrize(
    ("arguments", "names"),
    [
        ("%p0, %p1.2", ("p0", "p1.2")),
        ("/*index=0*/%p0, /*index=1*/%p1", ("p0", "p1")),
        ("f32[2,3]{1,0} %p0, (s32[], f32[4]{0}) %p1", ("p0", "p1")),
        ("p0, p1", ("p0", "p1")),
        ("f32[2,3]{1,0:T(8,128)} p0", ("p0",)),
        ("", ()),
    ],
)
def test_operands_are_found_with_and_without_types_and_percent_signs(arguments, names):
    text = f"ENTRY %main () -> f32[] {{\n  ROOT %out = f32[] add({arguments}), metadata={{}}\n}}\n"
    out = hlo.parse(text).computations["main"]["out"]
    assert out.operands == names and out.root


def test_the_number_of_a_parameter_and_the_value_of_a_constant_are_no_operands():
    text = (
        "ENTRY %main () -> f32[] {\n  %p = f32[] parameter(0)\n  ROOT %c = f32[] constant(3)\n}\n"
    )
    lines = hlo.parse(text).computations["main"]
    assert lines["p"].operands == lines["c"].operands == () and lines["p"].arguments == "0"


def test_the_memory_of_the_host_is_told_from_that_of_the_device():
    host, device = hlo.parse_type("(f32[2,3]{1,0:S(5)}, bf16[4]{0:T(128)})")
    assert host == ("f32", (2, 3), True) and device == ("bf16", (4,), False)


@pytest.mark.parametrize(
    ("groups", "size"),
    [
        ("{{0,1,2},{3,4,5}}", 3),
        ("[4,2]<=[8]", 2),
        ("[2,4]<=[4,2]T(1,0)", 4),
        ("mesh['x'=2,'y'=4] {'x'}", 2),
        ("mesh['x'=2,'y'=4] {'x','y'}", 8),
        ("mesh['a'=2,'b'=1,'c'=4], device_ids=([4,2]T(1,0)) {'a'}", 2),
        ("{}", 8),
    ],
)
def test_replica_groups_are_parsed_in_every_form(groups, size):
    text = GPU_TEXT.replace("mesh['x'=2,'y'=4] {'x'}", groups)
    assert collectives.count_sent_bytes(hlo.parse(text), 8) == {"all-gather": 12 * 128 * (size - 1)}


def test_replica_groups_in_another_form_are_rejected():
    text = GPU_TEXT.replace("mesh['x'=2,'y'=4] {'x'}", "all of them")
    with pytest.raises(ValueError, match="replica groups of a collective cannot be parsed"):
        collectives.count_sent_bytes(hlo.parse(text), 8)
