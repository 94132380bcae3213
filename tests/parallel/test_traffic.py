"""Bytes that kernels read and write, against counts by hand."""

import jax
import jax.numpy as jnp
import pytest

from tests.described_gpu import compile_text, find_devices, needs_cuda
from videogen_jax.parallel import hlo, kernels
from videogen_jax.parallel.traffic import Bytes, count_kernel_bytes


def kernel_bytes(text, name="kernel"):
    """Bytes of one instruction of the entry computation."""
    module = hlo.parse(text)
    computation = module.computations[module.entry]
    return count_kernel_bytes(module, computation, computation[name])


def fusion(parameters, body, result, called="fused"):
    """A program of one fusion: types of its parameters p0, p1, …, its body, and the type of its result."""
    fused = [f"  %p{i} = {kind} parameter({i})" for i, kind in enumerate(parameters)]
    main = [f"  %a{i} = {kind} parameter({i})" for i, kind in enumerate(parameters)]
    names = ", ".join(f"%a{i}" for i in range(len(parameters)))
    kernel = f"  ROOT %kernel = {result} fusion({names}), kind=kLoop, calls=%{called}"
    lines = [f"%{called} (p: f32[]) -> {result} {{", *fused, *body, "}", ""]
    return "\n".join([*lines, "ENTRY %main (a: f32[]) -> f32[] {", *main, kernel, "}", ""])


STACK = "bf16[12,64]{1,0}"  # 128 bytes a layer
INDEX = "s32[]"


def test_an_elementwise_fusion_reads_each_operand_once_and_writes_its_result():
    body = [
        "  %x = f32[8,64]{1,0} convert(%p0)",
        "  %scale = f32[8,64]{1,0} broadcast(%p1), dimensions={1}",
        "  %product = f32[8,64]{1,0} multiply(%x, %scale)",
        "  ROOT %square = f32[8,64]{1,0} multiply(%product, %x)",
    ]
    text = fusion(["bf16[8,64]{1,0}", "f32[64]{0}"], body, "f32[8,64]{1,0}")
    assert kernel_bytes(text) == Bytes(8 * 64 * 2 + 64 * 4 + 8 * 64 * 4, 0, 0)


def test_a_fused_dynamic_slice_reads_the_slice():
    body = [
        "  %zero = s32[] constant(0)",
        "  %slice = bf16[1,64]{1,0} dynamic-slice(%p0, %p1, %zero), dynamic_slice_sizes={1,64}",
        "  ROOT %out = bf16[64]{0} bitcast(%slice)",
    ]
    text = fusion([STACK, INDEX], body, "bf16[64]{0}")
    assert kernel_bytes(text) == Bytes(128 + 4 + 128, 0, 0)


@pytest.mark.parametrize("between", ["bitcast", "convert", "copy", "negate"])
def test_static_slices_behind_other_operations_read_what_they_take(between):
    """Two slices of a third each, of three; elementwise operations in front run for the slices alone."""
    body = [
        f"  %x = f32[3,64]{{1,0}} {between}(%p0)",
        "  %first = f32[1,64]{1,0} slice(%x), slice={[0:1], [0:64]}",
        "  %third = f32[1,64]{1,0} slice(%x), slice={[2:3], [0:64]}",
        "  ROOT %sum = f32[1,64]{1,0} add(%first, %third)",
    ]
    assert kernel_bytes(fusion(["f32[3,64]{1,0}"], body, "f32[1,64]{1,0}")) == Bytes(768, 0, 0)


def test_slices_that_overlap_read_the_whole_array_once():
    body = [
        "  %most = f32[2,64]{1,0} slice(%p0), slice={[0:2], [0:64]}",
        "  %rest = f32[2,64]{1,0} slice(%p0), slice={[1:3], [0:64]}",
        "  ROOT %sum = f32[2,64]{1,0} add(%most, %rest)",
    ]
    text = fusion(["f32[3,64]{1,0}"], body, "f32[2,64]{1,0}")
    assert kernel_bytes(text) == Bytes(3 * 256 + 2 * 256, 0, 0)


def test_a_slice_of_a_norm_reads_the_rows_of_the_slice():
    """A quarter of the rows of x / sqrt(sum(x^2)), with the sum broadcast back over the row."""
    body = [
        "  %zero = f32[] constant(0)",
        "  %squares = f32[8,64]{1,0} multiply(%p0, %p0)",
        "  %sums = f32[8]{0} reduce(%squares, %zero), dimensions={1}, to_apply=%add",
        "  %scales = f32[8]{0} rsqrt(%sums)",
        "  %rows = f32[8,64]{1,0} broadcast(%scales), dimensions={0}",
        "  %norm = f32[8,64]{1,0} multiply(%p0, %rows)",
        "  ROOT %part = f32[2,64]{1,0} slice(%norm), slice={[4:6], [0:64]}",
    ]
    text = fusion(["f32[8,64]{1,0}"], body, "f32[2,64]{1,0}")
    assert kernel_bytes(text) == Bytes(2 * 256 + 2 * 256, 0, 0)


UPDATE = "  %new = {} dynamic-update-slice(%{}, %{}, %p2, %zero)"


def test_an_update_in_place_reads_and_writes_the_update():
    body = ["  %zero = s32[] constant(0)", "  ROOT" + UPDATE.format(STACK, "p0", "p1")[1:]]
    text = fusion([STACK, "bf16[1,64]{1,0}", INDEX], body, STACK)
    assert kernel_bytes(text) == Bytes(128 + 4 + 128, 0, 0)


def test_an_update_in_place_behind_conversions_and_bitcasts_writes_the_update_in_the_type_of_the_result():
    wide = "f32[12,64]{1,0}"
    body = [
        "  %zero = s32[] constant(0)",
        f"  %old = {wide} convert(%p0)",
        UPDATE.format(wide, "old", "p1"),
        "  %narrow = bf16[12,64]{1,0} convert(%new)",
        "  ROOT %out = bf16[768]{0} bitcast(%narrow)",
    ]
    text = fusion([STACK, "f32[1,64]{1,0}", INDEX], body, "bf16[768]{0}")
    assert kernel_bytes(text) == Bytes(256 + 4 + 128, 0, 0)


def test_an_update_that_is_computed_with_is_not_in_place():
    """All of the other 11 layers and the update are read, and all 12 written."""
    body = [
        "  %zero = s32[] constant(0)",
        UPDATE.format(STACK, "p0", "p1"),
        f"  ROOT %out = {STACK} negate(%new)",
    ]
    text = fusion([STACK, "bf16[1,64]{1,0}", INDEX], body, STACK)
    assert kernel_bytes(text) == pytest.approx(Bytes(11 * 128 + 128 + 4 + 12 * 128, 0, 0))


def test_an_update_of_an_array_made_in_the_fusion_writes_all_of_it():
    body = [
        "  %zero = s32[] constant(0)",
        "  %none = bf16[] constant(0)",
        f"  %empty = {STACK} broadcast(%none), dimensions={{}}",
        f"  ROOT %new = {STACK} dynamic-update-slice(%empty, %p0, %p1, %zero)",
    ]
    text = fusion(["bf16[1,64]{1,0}", INDEX], body, STACK)
    assert kernel_bytes(text) == Bytes(128 + 4 + 12 * 128, 0, 0)


def test_a_fusion_of_several_results_writes_each():
    """A sum over rows beside the converted array."""
    body = [
        "  %x = f32[8,64]{1,0} convert(%p0)",
        "  %zero = f32[] constant(0)",
        "  %sum = f32[64]{0} reduce(%x, %zero), dimensions={0}, to_apply=%add",
        "  ROOT %out = (f32[64]{0}, f32[8,64]{1,0}) tuple(%sum, %x)",
    ]
    text = fusion(["bf16[8,64]{1,0}"], body, "(f32[64]{0}, f32[8,64]{1,0})")
    assert kernel_bytes(text) == Bytes(1024 + 256 + 2048, 0, 0)


def test_a_product_on_slices_reads_the_slices_and_writes_no_workspace():
    """A cuBLAS call between a dynamic slice of stacked weights and an update of a stacked result, in nested fusions."""
    text = """
%weights (w: bf16[12,64,32], i: s32[]) -> bf16[64,32] {
  %w = bf16[12,64,32]{2,1,0} parameter(0)
  %i = s32[] parameter(1)
  %zero = s32[] constant(0)
  %one = bf16[1,64,32]{2,1,0} dynamic-slice(%w, %i, %zero, %zero), dynamic_slice_sizes={1,64,32}
  ROOT %flat = bf16[64,32]{1,0} bitcast(%one)
}

%fused (x: bf16[128,64], w: bf16[12,64,32], y: bf16[12,128,32], i: s32[]) -> (bf16[12,128,32], s8[4096]) {
  %x = bf16[128,64]{1,0} parameter(0)
  %w = bf16[12,64,32]{2,1,0} parameter(1)
  %y = bf16[12,128,32]{2,1,0} parameter(2)
  %i = s32[] parameter(3)
  %zero = s32[] constant(0)
  %weight = bf16[64,32]{1,0} fusion(%w, %i), kind=kLoop, calls=%weights
  %call = (bf16[128,32]{1,0}, s8[4096]{0}) custom-call(%x, %weight), custom_call_target="__cublas$lt$matmul"
  %product = bf16[128,32]{1,0} get-tuple-element(%call), index=0
  %one = bf16[1,128,32]{2,1,0} bitcast(%product)
  %new = bf16[12,128,32]{2,1,0} dynamic-update-slice(%y, %one, %i, %zero, %zero)
  %workspace = s8[4096]{0} get-tuple-element(%call), index=1
  ROOT %out = (bf16[12,128,32]{2,1,0}, s8[4096]{0}) tuple(%new, %workspace)
}

ENTRY %main (x: bf16[128,64], w: bf16[12,64,32], y: bf16[12,128,32], i: s32[]) -> bf16[12,128,32] {
  %x = bf16[128,64]{1,0} parameter(0)
  %w = bf16[12,64,32]{2,1,0} parameter(1)
  %y = bf16[12,128,32]{2,1,0} parameter(2)
  %i = s32[] parameter(3)
  %kernel = (bf16[12,128,32]{2,1,0}, s8[4096]{0}) fusion(%x, %w, %y, %i), kind=kCustom, calls=%fused
  %call = (bf16[128,32]{1,0}, s8[4096]{0}) custom-call(%x, %w), custom_call_target="__cublas$lt$matmul"
  ROOT %out = bf16[12,128,32]{2,1,0} get-tuple-element(%kernel), index=0
}
"""
    product = 128 * 64 * 2 + 64 * 32 * 2 + 128 * 32 * 2
    assert kernel_bytes(text) == Bytes(product + 4, 0, 0)
    assert kernel_bytes(text, "call") == Bytes(product + 11 * 64 * 32 * 2, 0, 0)


def test_what_goes_to_the_host_crosses_the_link_and_is_read_once():
    stack, layer = "f32[12,64]{1,0:S(5)}", "f32[1,64]{1,0}"
    text = f"""
%out (p0: f32[12,64], p1: f32[1,64], p2: s32[]) -> f32[12,64] {{
  %p0 = {stack} parameter(0)
  %p1 = {layer} parameter(1)
  %copy = {layer} copy(%p1)
  %p2 = s32[] parameter(2)
  ROOT %new = {stack} dynamic-update-slice(%p0, %copy, %p2, %p2)
}}

%in (p0: f32[12,64], p1: s32[]) -> f32[1,64] {{
  %p0 = {stack} parameter(0)
  %p1 = s32[] parameter(1)
  ROOT %old = {layer} dynamic-slice(%p0, %p1, %p1), dynamic_slice_sizes={{1,64}}
}}

ENTRY %main (x: f32[1,64], i: s32[]) -> f32[1,64] {{
  %x = {layer} parameter(0)
  %i = s32[] parameter(1)
  %host = {stack} custom-call(), custom_call_target="AllocateBuffer"
  %send = (({stack}, {layer}, s32[]), {stack}, u32[]) fusion-start(%host, %x, %i), kind=kCustom, calls=%out
  %sent = {stack} fusion-done(%send)
  %fetch = (({stack}, s32[]), {layer}, u32[]) fusion-start(%sent, %i), kind=kCustom, calls=%in
  %whole = (f32[12,64]{{1,0}}, {stack}, u32[]) copy-start(%sent)
  %all = f32[12,64]{{1,0}} copy-done(%whole)
  ROOT %fetched = {layer} fusion-done(%fetch)
}}
"""
    assert kernel_bytes(text, "send") == Bytes(device=256 + 4, from_host=0, to_host=256)
    assert kernel_bytes(text, "fetch") == Bytes(device=4 + 256, from_host=256, to_host=0)
    assert kernel_bytes(text, "whole") == Bytes(device=12 * 256, from_host=12 * 256, to_host=0)
    listed = kernels.list_kernels(hlo.parse(text), 1)
    assert [kernel.name for kernel in listed] == ["send", "fetch", "whole"]
    assert {kernel.kind for kernel in listed} == {"host copy"}
    assert [kernel.overlaps for kernel in listed] == [0, 1, 0]


def test_instructions_outside_of_fusions_count_like_fused_ones():
    text = """
ENTRY %main (x: f32[12,64], u: f32[1,64], i: s32[], n: s32[5,1]) -> f32[5,64] {
  %x = f32[12,64]{1,0} parameter(0)
  %u = f32[1,64]{1,0} parameter(1)
  %i = s32[] parameter(2)
  %n = s32[5,1]{1,0} parameter(3)
  %slice = f32[2,64]{1,0} slice(%x), slice={[0:2], [0:64]}
  %update = f32[12,64]{1,0} dynamic-update-slice(%x, %u, %i, %i)
  %copy = f32[12,64]{0,1} copy(%x)
  %fill = f32[12,64]{1,0} broadcast(%i), dimensions={}
  %rows = f32[5,64]{1,0} gather(%x, %n), offset_dims={1}, slice_sizes={1,64}
  ROOT %sum = f32[12,64]{1,0} scatter(%x, %n, %rows), update_window_dims={1}, to_apply=%add
}
"""
    count = {"slice": 2 * 512, "update": 8 + 2 * 256, "copy": 2 * 12 * 256, "fill": 4 + 12 * 256}
    count |= {"rows": 20 + 2 * 5 * 256, "sum": 20 + 3 * 5 * 256}
    for name, size in count.items():
        assert kernel_bytes(text, name) == Bytes(size, 0, 0)


@needs_cuda
def test_the_traffic_of_a_block_is_that_of_a_count_by_hand():
    """Three layers of attention and MLP in bfloat16, compiled for an RTX 3090, within 5 % of the sum of these kernels.

    With u = B N D elements: qkv reads u and writes 3 u; queries, keys and values are sliced from it, 3 u read and 3 u
    written; attention reads 3 u and writes u; the output product reads u and the residual u and writes u; up reads u
    and writes 4 u with GELU in its epilogue; down reads 4 u and the residual u and writes u. 12 D^2 elements of weights
    are sliced from their stacks (read, written) and read. The result is copied once.
    """
    batch, tokens, width, heads, layers = 32, 1024, 512, 8, 3

    def layer(x, weights):
        qkv = (x @ weights["qkv"]).reshape(batch, tokens, 3, heads, width // heads)
        queries, keys, values = (qkv[:, :, index] for index in range(3))
        attended = jax.nn.dot_product_attention(queries, keys, values, implementation="cudnn")
        x = x + attended.reshape(x.shape) @ weights["out"]
        return x + jax.nn.gelu(x @ weights["up"]) @ weights["down"], None

    sharding = jax.sharding.SingleDeviceSharding(find_devices()[0])
    shapes = {"qkv": (width, 3 * width), "out": (width, width)}
    shapes |= {"up": (width, 4 * width), "down": (4 * width, width)}

    def array(*shape):
        return jax.ShapeDtypeStruct(shape, jnp.bfloat16, sharding=sharding)

    weights = {name: array(layers, *shape) for name, shape in shapes.items()}
    traced = jax.jit(lambda x, weights: jax.lax.scan(layer, x, weights)[0]).trace(
        array(batch, tokens, width), weights
    )
    listed = kernels.list_kernels(hlo.parse(compile_text(traced)), 1)
    unit = 2 * batch * tokens * width
    by_hand = layers * (unit * (4 + 6 + 4 + 3 + 5 + 6) + 3 * 12 * 2 * width**2) + 2 * unit
    assert kernels.count_traffic(listed) == pytest.approx(by_hand, rel=0.05)
    products = 2 * batch * tokens * 12 * width**2 + 4 * batch * tokens**2 * width
    assert kernels.count_executed_flops(listed) == layers * products
