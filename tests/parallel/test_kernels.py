"""The list of kernels of a program: order, runs, kinds, and where they come from."""

import jax
import jax.numpy as jnp
import pytest

from videogen_jax.parallel import hlo, kernels, op_names

ARRAY = "f32[8,64]{1,0}"  # 2048 bytes


def program(body, computations=""):
    """HLO text of an entry computation with one parameter, x."""
    lines = [f"  %x = {ARRAY} parameter(0)", *(f"  {line}" for line in body)]
    return "\n".join([computations, "ENTRY %main (x: f32[8,64]) -> f32[8,64] {", *lines, "}", ""])


def list_of(body, computations="", devices=1):
    return kernels.list_kernels(hlo.parse(program(body, computations)), devices)


def loop(name, body, trips):
    """Computations of a loop with a carry of (index, array), and the line that runs it."""
    state = f"(s32[], {ARRAY})"
    computations = "\n".join(
        [
            f"%{name}_body (s: {state}) -> {state} {{",
            f"  %s = {state} parameter(0)",
            "  %i = s32[] get-tuple-element(%s), index=0",
            f"  %x = {ARRAY} get-tuple-element(%s), index=1",
            *(f"  {line}" for line in body),
            f"  ROOT %next = {state} tuple(%i, %y)",
            "}",
            f"%{name}_condition (s: {state}) -> pred[] {{",
            f"  %s = {state} parameter(0)",
            "  ROOT %go = pred[] constant(true)",
            "}",
            "",
        ]
    )
    line = (
        f"%{name} = {state} while(%x), condition=%{name}_condition, body=%{name}_body, "
        f'backend_config={{"known_trip_count":{{"n":"{trips}"}}}}'
    )
    return computations, line


def test_kernels_are_listed_in_the_order_of_execution_with_the_runs_of_their_loops():
    inner, run_inner = loop("inner", [f"%y = {ARRAY} negate(%x)"], 3)
    outer, run_outer = loop("outer", [run_inner, f"%y = {ARRAY} sine(%x)"], 5)
    listed = list_of(
        [f"%a = {ARRAY} cosine(%x)", run_outer, f"%b = {ARRAY} copy(%x)"], inner + outer
    )
    assert [(one.name, one.runs, one.loops) for one in listed] == [
        ("a", 1, ()),
        ("y", 15, (1, 2)),
        ("y", 5, (1,)),
        ("b", 1, ()),
    ]
    assert kernels.count_traffic(listed) == (1 + 15 + 5 + 1) * 2 * 2048


def test_a_loop_of_unknown_length_is_rejected():
    computations, line = loop("loop", [f"%y = {ARRAY} negate(%x)"], 3)
    with pytest.raises(ValueError, match="loop loop .* runs an unknown number of times"):
        list_of([line.replace("known_trip_count", "unknown")], computations)


@pytest.mark.parametrize(
    "form",
    ["branch_computations={%small, %large}", "true_computation=%small, false_computation=%large"],
)
def test_of_the_branches_of_a_conditional_the_heaviest_is_listed(form):
    branches = "\n".join(
        f"%{name} (x: f32[8,64]) -> f32[8,64] {{\n  %x = {ARRAY} parameter(0)\n{body}\n}}"
        for name, body in {
            "small": f"  ROOT %one = {ARRAY} negate(%x)",
            "large": f"  %two = {ARRAY} negate(%x)\n  ROOT %three = {ARRAY} sine(%two)",
        }.items()
    )
    listed = list_of([f"ROOT %out = {ARRAY} conditional(%x, %x, %x), {form}"], branches + "\n")
    assert [one.name for one in listed] == ["two", "three"]


def test_values_and_buffers_are_no_kernels():
    lines = [
        "%flat = f32[512]{0} bitcast(%x)",
        f'%buffer = {ARRAY} custom-call(), custom_call_target="AllocateBuffer"',
        f"%pair = ({ARRAY}, {ARRAY}) tuple(%x, %buffer)",
        f"ROOT %one = {ARRAY} get-tuple-element(%pair), index=0",
    ]
    assert list_of(lines) == []


@pytest.mark.parametrize(
    ("line", "kind"),
    [
        (f"{ARRAY} negate(%x)", "elementwise"),
        ("f32[64]{0} reduce(%x, %x), dimensions={0}, to_apply=%add", "reduction"),
        (f"{ARRAY} copy(%x)", "copy"),
        ("bf16[8,64]{1,0} convert(%x)", "copy"),
        ("f32[64,8]{1,0} transpose(%x), dimensions={1,0}", "copy"),
        (f"{ARRAY} all-reduce(%x), replica_groups={{{{0,1}}}}, to_apply=%add", "collective"),
        (f'{ARRAY} custom-call(%x), custom_call_target="cub"', "library call"),
        (f"{ARRAY} sort(%x), dimensions={{1}}, to_apply=%less", "library call"),
        (
            "f32[8,8]{1,0} dot(%x, %x), lhs_contracting_dims={1}, rhs_contracting_dims={1}",
            "product",
        ),
    ],
)
def test_kernels_are_told_apart_by_what_they_do(line, kind):
    (kernel,) = list_of([f"ROOT %out = {line}"], devices=2)
    assert kernel.kind == kind and kernel.overlaps is None


@pytest.mark.parametrize(
    ("body", "kind"),
    [
        ([f"ROOT %y = {ARRAY} negate(%p)"], "elementwise"),
        (
            [
                "%y = f32[8,64]{1,0} negate(%p)",
                "ROOT %z = f32[64]{0} reduce(%y, %y), dimensions={0}",
            ],
            "reduction",
        ),
        (
            [
                "%i = s32[] constant(2)",
                "%j = s32[] add(%i, %i)",
                "ROOT %y = f32[1,64]{1,0} dynamic-slice(%p, %j, %j)",
            ],
            "copy",
        ),
    ],
)
def test_a_fusion_is_of_the_kind_of_its_largest_work(body, kind):
    fused = "\n".join(
        [
            "%fused (p: f32[8,64]) -> f32[] {",
            f"  %p = {ARRAY} parameter(0)",
            "  %i = s32[] constant(2)",
            *(f"  {line}" for line in body),
            "}",
            "",
        ]
    )
    (kernel,) = list_of([f"ROOT %out = {ARRAY} fusion(%x), kind=kLoop, calls=%fused"], fused)
    assert kernel.kind == kind


GROUPS = "replica_groups={{0,1}}, dimensions={0}"


def test_an_asynchronous_collective_overlaps_with_what_starts_before_its_end():
    lines = [
        f"%start = (({ARRAY}), f32[16,64]{{1,0}}) all-gather-start(%x), {GROUPS}",
        f"%one = {ARRAY} negate(%x)",
        f"%two = {ARRAY} sine(%one)",
        "%done = f32[16,64]{1,0} all-gather-done(%start)",
        f"ROOT %three = {ARRAY} cosine(%two)",
    ]
    gather, *rest = list_of(lines, devices=2)
    assert (gather.kind, gather.overlaps, gather.sent) == ("collective", 2, 2048)
    assert gather.traffic == 2048 + 2 * 2048
    assert [one.name for one in rest] == ["one", "two", "three"]


def test_a_collective_that_xla_made_synchronous_overlaps_with_nothing():
    lines = [
        f"%start = (({ARRAY}), f32[16,64]{{1,0}}) all-gather-start(%x), {GROUPS}, "
        'backend_config={"collective_backend_config":{"is_sync":true}}',
        "ROOT %done = f32[16,64]{1,0} all-gather-done(%start)",
    ]
    assert list_of(lines, devices=2)[0].overlaps is None


def test_a_wrapped_asynchronous_collective_counts_once():
    """As `async-start` of a computation, in the text of other versions of XLA."""
    wrapped = f"%wrapped (p: f32[8,64]) -> f32[16,64] {{\n  %p = {ARRAY} parameter(0)\n"
    wrapped += f"  ROOT %gather = f32[16,64]{{1,0}} all-gather(%p), {GROUPS}\n}}\n"
    lines = [
        f"%start = (({ARRAY}), f32[16,64]{{1,0}}, u32[]) async-start(%x), calls=%wrapped",
        f"%one = {ARRAY} negate(%x)",
        f"%update = (({ARRAY}), f32[16,64]{{1,0}}, u32[]) async-update(%start)",
        "ROOT %done = f32[16,64]{1,0} async-done(%update)",
    ]
    gather, one = list_of(lines, wrapped, devices=2)
    assert (gather.name, gather.overlaps, gather.sent) == ("gather", 1, 2048)
    assert one.name == "one"


STACK = (
    "jit(step)/transpose(jvp(VideoDiT))/VideoDiT._blocks/while/body/closed_call/checkpoint/blocks"
)


@pytest.mark.parametrize(
    ("name", "layer", "phase"),
    [
        (
            "jit(step)/jvp(VideoDiT)/VideoDiT._blocks/while/body/closed_call/blocks/checkpoint/spatial/"
            "spatial._run_mlp/mlp/up/dot_general",
            *("spatial/mlp/up", "forward"),
        ),
        (
            f"{STACK}/checkpoint/rematted_computation/temporal/attention/add",
            "temporal/attention",
            "recomputed",
        ),
        (f"{STACK}/checkpoint/temporal/attention/shard_map/dot", "temporal/attention", "backward"),
        (f"{STACK}/checkpoint/spatial/(attention/qkv/dot:mlp/up/dot)", "spatial", "backward"),
        ("jit(step)/(jvp(VideoDiT)/patch_embed/dot:jvp(VideoDiT)/unembed/dot)", "", "forward"),
        ("jit(step)/jvp(VideoDiT)/patch_embed/dot_general", "patch_embed", "forward"),
        ("jit(step)/text_encoder/layers/dot_general", "text_encoder/layers", "forward"),
        ("jit(step)/mul;jit(step)/add", "", "update"),
        (
            "jit(step)/transpose(jvp(VideoDiT))/VideoDiT._blocks/while/body/closed_call/jvp(spatial)/mlp/dot_general",
            "spatial/mlp",
            "recomputed",
        ),
        (
            "jit(step)/transpose(jvp(VideoDiT))/while/body/transpose(jvp(temporal))/attention/dot_general",
            "temporal/attention",
            "backward",
        ),
    ],
)
def test_layer_and_phase_are_read_from_the_stack_of_names(name, layer, phase):
    assert op_names.find_layer(name) == layer
    assert op_names.find_phase(name, training=True) == phase


def test_without_a_backward_pass_all_is_forward():
    metadata = 'metadata={op_name="jit(denoise)/while/body/mul"}'
    (kernel,) = list_of([f"ROOT %y = {ARRAY} negate(%x), {metadata}"])
    assert kernel.phase == "forward" and kernel.layer == ""


def test_what_has_no_name_counts_with_what_is_before_it():
    lines = [
        f'%a = {ARRAY} negate(%x), metadata={{op_name="jit(step)/transpose(jvp(M))/out/mul"}}',
        f"%b = {ARRAY} copy(%a)",
        f'ROOT %c = {ARRAY} negate(%b), metadata={{op_name="jit(step)/mul"}}',
    ]
    assert [(one.layer, one.phase) for one in list_of(lines)] == [
        ("out", "backward"),
        ("", "backward"),
        ("", "update"),
    ]


def test_programs_of_the_cpu_are_listed():
    """A scan with a product, a sort, a gather and a conditional; the product's FLOPs are exact."""

    def step(x, _):
        y = jnp.sort(x @ x, axis=0)[jnp.argsort(x[0])]
        return jax.lax.cond(jnp.sum(y) > 0, jnp.sin, jnp.cos, y), jnp.sum(y)

    x = jax.ShapeDtypeStruct((32, 32), jnp.float32)
    text = jax.jit(lambda x: jax.lax.scan(step, x, length=7)).lower(x).compile().as_text()
    listed = kernels.list_kernels(hlo.parse(text), 1)
    assert kernels.count_executed_flops(listed) == 7 * 2 * 32**3
    assert {one.kind for one in listed} <= set(kernels.KINDS)
    assert {one.kind for one in listed} >= {"product", "library call"}
