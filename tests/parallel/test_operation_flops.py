"""FLOPs of compiled operations, against closed forms and against the model's own count."""

import functools
import math

import jax
import jax.numpy as jnp
import pytest

from tests.described_gpu import compile_text, find_devices, needs_cuda
from tests.tiny import make_run, tiny_config
from videogen_jax.parallel import hlo, kernels
from videogen_jax.parallel.mesh import make_mesh
from videogen_jax.parallel.operation_flops import count_operation_flops
from videogen_jax.train import diffusion_run, training_run


def operation(types, line):
    """Kind, FLOPs and type of an operation on operands x0, x1, … of these types."""
    operands = [f"  %x{i} = {kind} parameter({i})" for i, kind in enumerate(types)]
    text = "\n".join(["ENTRY %main () -> f32[] {", *operands, f"  ROOT %out = {line}", "}", ""])
    module = hlo.parse(text)
    computation = module.computations[module.entry]
    return count_operation_flops(computation, computation["out"])


GEMM = (
    'custom_call_target="__cublas$lt$matmul", backend_config={{"gemm_backend_config":{{"beta":1,'
    '"dot_dimension_numbers":{{"lhs_contracting_dimensions":["{0}"],"rhs_contracting_dimensions":["{1}"],'
    '"lhs_batch_dimensions":[{2}],"rhs_batch_dimensions":[{2}]}}}}}}'
)


@pytest.mark.parametrize(
    ("types", "line", "flops"),
    [
        # 128 x 64 by 64 x 32, in both layouts, with a workspace behind the result; and with a batch of 5.
        (
            ("bf16[128,64]{1,0}", "bf16[64,32]{1,0}"),
            "(bf16[128,32]{1,0}, s8[4096]{0}) custom-call(%x0, %x1), " + GEMM.format(1, 0, ""),
            2 * 128 * 64 * 32,
        ),
        (
            ("bf16[64,128]{1,0}", "bf16[32,64]{1,0}"),
            "(bf16[128,32]{1,0}, s8[4096]{0}) custom-call(%x0, %x1), " + GEMM.format(0, 1, ""),
            2 * 128 * 64 * 32,
        ),
        (
            ("bf16[5,128,64]{2,1,0}", "bf16[5,64,32]{2,1,0}"),
            "bf16[5,128,32]{2,1,0} custom-call(%x0, %x1), " + GEMM.format(2, 1, '"0"'),
            2 * 5 * 128 * 64 * 32,
        ),
        (
            ("bf16[5,64,128]{2,1,0}", "bf16[5,64,32]{2,1,0}"),
            "bf16[5,128,32]{2,1,0} dot(%x0, %x1), lhs_batch_dims={0}, lhs_contracting_dims={1}, "
            "rhs_batch_dims={0}, rhs_contracting_dims={1}",
            2 * 5 * 128 * 64 * 32,
        ),
    ],
)
def test_products_take_two_operations_for_each_factor(types, line, flops):
    assert operation(types, line) == ("product", flops, "bf16")


def attention(target, queries, mask="NO_MASK"):
    config = (
        '{"cudnn_fmha_backend_config": {"intermediate_tensor_shape": {"element_type": "BF16", '
        f'"dimensions": ["4", "8", "100", "80"]}}, "mask_type": "{mask}"}}}}'
    )
    line = f'bf16[] custom-call(%x0, %x1), custom_call_target="{target}", backend_config={config}'
    return operation((queries, "bf16[4,80,8,64]{3,2,1,0}"), line)


@pytest.mark.parametrize("queries", ["bf16[4,100,8,64]{3,2,1,0}", "bf16[4,8,100,64]{3,1,2,0}"])
def test_attention_counts_scores_and_values_in_any_layout(queries):
    scores = 2 * 4 * 8 * 100 * 80 * 64  # B K N M Dh
    assert attention("__cudnn$fmhaSoftmax", queries) == ("attention forward", 2 * scores, "bf16")
    # Scores again, and the gradients of values, of probabilities, of queries and of keys.
    backward = attention("__cudnn$fmhaSoftmaxBackward", queries)
    assert backward == ("attention backward", 5 * scores, "bf16")


def test_a_causal_mask_leaves_the_keys_up_to_the_query():
    queries = "bf16[4,100,8,64]{3,2,1,0}"
    _, masked, _ = attention("__cudnn$fmhaSoftmax", queries, "CAUSAL")
    _, padded, _ = attention("__cudnn$fmhaSoftmax", queries, "PADDING")
    _, full, _ = attention("__cudnn$fmhaSoftmax", queries)
    assert masked / full == 81 / 160 and padded == full


def test_attention_without_the_shape_of_its_scores_is_an_error():
    with pytest.raises(ValueError, match="%?out of the compiled program does not name the shape"):
        operation(("f32[2]",), 'f32[2] custom-call(%x0), custom_call_target="__cudnn$fmhaSoftmax"')


IMAGE, OUTPUT = "bf16[2,16,16,32]{3,2,1,0}", "bf16[2,8,8,48]{3,2,1,0}"  # 3x3 with a stride of 2
FILTER = "bf16[3,3,32,48]{3,2,1,0}"
LABELS = "window={size=3x3 stride=2x2}, dim_labels=b01f_01io->b01f"
CONVOLUTION = 2 * (2 * 8 * 8 * 48) * (3 * 3 * 32)


@pytest.mark.parametrize(
    ("types", "line"),
    [
        ((IMAGE, FILTER), f"{OUTPUT} convolution(%x0, %x1), {LABELS}"),
        ((IMAGE, FILTER), f"({OUTPUT}, u8[9]{{0}}) custom-call(%x0, %x1), {LABELS}, {{Forward}}"),
        ((OUTPUT, FILTER), f"({IMAGE}, u8[9]{{0}}) custom-call(%x0, %x1), {LABELS}, {{Input}}"),
        ((IMAGE, OUTPUT), f"({FILTER}, u8[9]{{0}}) custom-call(%x0, %x1), {LABELS}, {{Filter}}"),
    ],
)
def test_a_convolution_and_its_gradients_take_the_same(types, line):
    names = {"{Forward}": "convForward", "{Input}": "convBackwardInput"}
    for short, name in (names | {"{Filter}": "convBackwardFilter"}).items():
        line = line.replace(short, f'custom_call_target="__cudnn${name}"')
    assert operation(types, line) == ("convolution", CONVOLUTION, "bf16")


def test_elementwise_operations_and_other_library_calls_count_as_none():
    assert operation(("f32[8]",), "f32[8] add(%x0, %x0)") == ("", 0, "")
    assert operation(("f32[8]",), 'f32[8] custom-call(%x0), custom_call_target="x"') == ("", 0, "")


def count_step(depth, remat):
    """(executed, of the model's forward pass) FLOPs of a train step on the CPU, and its kernels."""
    config = tiny_config()
    config.mesh.update({"data": 1, "fsdp": 1, "seq": 1, "tensor": 1})
    config.model.update({"width": 32, "depth": depth, "mlp_ratio": 4, "patch_size": (1, 2, 2)})
    config.data.update({"frames": 8, "height": 32, "width": 32})
    config.batch_size, config.memory.remat = 1, remat
    run = make_run(config)
    text = training_run.trace_step(run).lower().compile().as_text()
    listed = kernels.list_kernels(hlo.parse(text), 1)
    return kernels.count_executed_flops(listed), diffusion_run.forward_flops(run.model), listed, run


def down_flops(config, tokens, blocks):
    """Of the MLPs' second products, which no gradient reads: that of their gate comes from the folded weights'."""
    return blocks * 2 * tokens * config.model.mlp_ratio * config.model.width**2


@pytest.mark.parametrize("remat", ["none", "block"])
def test_a_compiled_step_executes_three_forward_passes_and_one_more_with_recomputation(remat):
    """Of the blocks: the difference of four and two. Modulation, which `count_flops` leaves out, is 0.02 percent."""
    few, few_forward, _, _ = count_step(2, remat)
    more, more_forward, listed, run = count_step(4, remat)
    down = functools.partial(down_flops, run.config, math.prod(run.model.token_grid))
    blocks = more_forward - few_forward
    again = blocks - down(2) if remat == "block" else 0
    assert more - few == pytest.approx(3 * blocks + again, rel=1e-3)

    def part(phase):
        flops = sum(kernel.runs * kernel.flops for kernel in listed if kernel.phase == phase)
        return flops / more_forward

    # The embedding and the last layer are not computed again.
    assert part("forward") == pytest.approx(1, abs=0.01)
    again = 1 - down(4) / more_forward if remat == "block" else 0
    assert part("recomputed") == pytest.approx(again, abs=0.01)
    assert part("backward") == pytest.approx(2, abs=0.01)


@needs_cuda
def test_a_step_compiled_for_gpus_executes_what_its_closed_form_says():
    """As above with cuBLAS and cuDNN: flash attention computes its scores a second time in the backward pass."""
    executed, forward, scores = {}, {}, {}
    for depth in (2, 4):
        config = tiny_config()
        config.mesh.update({"data": 1, "fsdp": 1, "seq": 1, "tensor": 1})
        config.model.update({"width": 128, "depth": depth, "mlp_ratio": 4, "patch_size": (1, 2, 2)})
        config.data.update({"frames": 8, "height": 32, "width": 32})
        config.train.precision = "bfloat16"
        config.batch_size, config.memory.remat = 1, "block"
        run = make_run(config, make_mesh(devices=find_devices()))
        text = compile_text(training_run.trace_step(run))
        assert "fmha" in text and "cublas" in text
        executed[depth] = kernels.count_executed_flops(kernels.list_kernels(hlo.parse(text), 1))
        forward[depth] = diffusion_run.forward_flops(run.model)
        tokens = 8 * 256
        scores[depth] = depth // 2 * 2 * tokens * (256 + 8) * 128
    blocks = 4 * (forward[4] - forward[2]) + scores[4] - scores[2] - down_flops(config, tokens, 2)
    assert executed[4] - executed[2] == pytest.approx(blocks, rel=1e-3)


def test_attention_without_cudnn_counts_its_two_products():
    """On the CPU, 4 B K N M Dh."""
    x = jax.ShapeDtypeStruct((2, 16, 4, 8), jnp.float32)
    text = jax.jit(jax.nn.dot_product_attention).lower(x, x, x).compile().as_text()
    listed = kernels.list_kernels(hlo.parse(text), 1)
    assert kernels.count_executed_flops(listed) == 4 * 2 * 4 * 16 * 16 * 8
