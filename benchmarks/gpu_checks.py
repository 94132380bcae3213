"""Correctness on the card of benchmarks/gpu.py: attention, offloading, and a train step against the CPU.

Errors are norms: |result - reference| / |reference|. Attention in bfloat16, as the model runs it, is held against
float32 attention of the same rounded inputs, whose products the card computes in full float32 (not TF32). Steps are of
a small factorized DiT with random parameters, since new ones have gates of zero, through which no gradient flows; the
first moment after one step is the gradient times 1 - b1.
"""

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from gpu_environment import attention_kernel

from videogen_jax import config as configs
from videogen_jax.models.attention import attend
from videogen_jax.parallel import mesh as meshes
from videogen_jax.run.model import make_model
from videogen_jax.train import diffusion_run, training_run

# Sequences, query tokens, keys, heads, head dimension, causal, valid keys: self-attention where there are none, and
# else text, whose keys all sequences of a clip share.
ATTENTIONS = {
    "dit_512, spatial": (4, 1024, 1024, 8, 64, False, ()),
    "dit_512, temporal": (4, 480, 480, 8, 64, False, ()),
    "dit_512, temporal and causal": (4, 480, 480, 8, 64, True, ()),
    "dit_512, text of 77 and 9 tokens": (4, 1024, 77, 8, 64, False, (77, 9)),
    "XL, spatial": (2, 1024, 1024, 16, 72, False, ()),
    "XL, temporal": (2, 480, 480, 16, 72, False, ()),
    "XL, text of 40 and 1 tokens": (4, 1024, 77, 16, 72, False, (40, 1)),
    "33 frames, padded": (4, 33, 33, 8, 64, False, ()),
    "33 frames, padded and causal": (4, 33, 33, 8, 64, True, ()),
}
TOLERANCES = {"output": 1e-2, "gradients": 2e-2}  # bfloat16 has 8 bits: 4e-3 for each rounding

# Changes of the small config, what its results are held against, and the largest error; "cpu" is a step on the CPU.
MOVES = {"memory.offload_optimizer": True, "memory.offload_ema": True}
STEPS = {
    "float32": ({}, "cpu", 1e-4),
    "float32, offloaded inputs of blocks": ({"memory.offload_activations": True}, "float32", 1e-5),
    "float32, offloaded optimizer and EMA": (MOVES, "float32", 1e-5),
    "bfloat16": ({"train.precision": "bfloat16"}, "cpu", 5e-2),
}
REFERENCES = {"cpu": "float32 on the CPU", "float32": "float32 without offloading"}
# Of all parameters together; Adam's first update is about +-learning rate whatever the gradient, so its rounding may
# turn the sign of some.
UPDATE_TOLERANCE = 1e-3
SMALL = {
    "batch_size": 2,
    "data.frames": 24,
    "data.height": 128,
    "data.width": 128,
    "model.width": 256,
    "model.depth": 4,
    "model.num_heads": 4,
    "learning_rate.warmup_steps": 0,
    "train.precision": "float32",
    "train.accumulation": 1,
    "memory.offload_activations": False,
    **{f"mesh.{axis}": 1 for axis in ("data", "fsdp", "seq", "tensor")},
}
TINY = {"data.frames": 8, "data.height": 64, "data.width": 64, "model.width": 64, "model.depth": 2}
CPU_STEP = "cpu_step.npz"


def measure(part: str, record: Callable[..., None], folder: Path, tiny: bool) -> None:
    """Records a row for each check; arguments as of gpu_environment."""
    # Beside the first checks, on cores that the card does not need.
    command = [sys.executable, __file__, str(folder / CPU_STEP), *["--tiny"] * tiny]
    reference = subprocess.Popen(command, env=os.environ | {"JAX_PLATFORMS": "cpu"})
    kernel = attention_kernel(folder)
    rows: list[dict[str, Any]] = []

    def add(what: str, errors: dict[str, float], tolerances: dict[str, float]) -> None:
        row = {"what": what, "errors": errors, "tolerances": tolerances}
        rows.append(row | {"passed": within(errors, tolerances)})
        record(checks=rows)

    names = [*ATTENTIONS][2:4] + [*ATTENTIONS][-1:] if tiny else [*ATTENTIONS]
    for name in names:
        errors = check_attention(*ATTENTIONS[name], kernel=kernel, tiny=tiny)
        add(f"attention by {kernel}, {name}", errors, TOLERANCES)
    if code := reference.wait():
        raise RuntimeError(f"The step on the CPU ended with exit code {code}.")
    with np.load(folder / CPU_STEP) as stored:
        results = {"cpu": dict(stored)}
    for name, (changes, against, tolerance) in STEPS.items():
        results[name] = run_step(changes | {"memory.attention_kernel": kernel}, tiny)
        errors = {
            what: relative_error(value, results[against][what])
            for what, value in results[name].items()
        }
        limits = dict.fromkeys(errors, tolerance) | {"parameters": UPDATE_TOLERANCE}
        add(f"step in {name}, against {REFERENCES[against]}", errors, limits)


def within(errors: dict[str, float], tolerances: dict[str, float]) -> bool:
    """Whether every error is at most its tolerance; NaN is not."""
    return all(errors[name] <= tolerances[name] for name in errors)


def relative_error(result: Any, reference: Any) -> float:
    """|result - reference| / |reference| over all arrays of a tree."""
    pairs = zip(jax.tree.leaves(result), jax.tree.leaves(reference), strict=True)
    pairs = [[np.asarray(one, np.float64) for one in pair] for pair in pairs]
    difference = sum(float(np.sum((a - b) ** 2)) for a, b in pairs)
    return float(np.sqrt(difference / sum(float(np.sum(b**2)) for _, b in pairs)))


def check_attention(
    count: int,
    queries: int,
    keys: int,
    heads: int,
    width: int,
    causal: bool,
    lengths: tuple[int, ...],
    *,
    kernel: str,
    tiny: bool,
) -> dict[str, float]:
    """Errors of the output and of the worst of the three gradients.

    Args:
      count: sequences, of all clips together.
      queries: tokens of a sequence.
      keys: tokens that they attend to.
      heads: of attention.
      width: of a head.
      causal: whether query i attends to keys 0 to i.
      lengths: valid keys of each clip; empty for self-attention.
      kernel: of the model.
      tiny: fewer tokens, for a dry run.
    """
    if tiny and queries > 64:
        queries, keys = queries // 16, keys if lengths else keys // 16
    clips = len(lengths) or 1
    query_shape = (clips, count // clips, queries, heads, width)
    key_shape = (clips, keys, heads, width) if lengths else query_shape
    rng = np.random.default_rng(0)
    shapes = (query_shape, key_shape, key_shape, query_shape)
    arrays = [jnp.asarray(rng.standard_normal(shape), jnp.bfloat16) for shape in shapes]
    valid = jnp.array(lengths, jnp.int32) if lengths else None

    def run(dtype: Any, kernel: str) -> tuple[Any, Any]:
        *inputs, gradient = (array.astype(dtype) for array in arrays)

        @jax.jit
        def both(*inputs: jax.Array) -> tuple[jax.Array, Any]:
            output, backward = jax.vjp(
                lambda *args: attend(*args, causal=causal, lengths=valid, kernel=kernel), *inputs
            )
            return output, backward(gradient)

        return jax.device_get(both(*inputs))

    output, gradients = run(jnp.bfloat16, kernel)
    with jax.default_matmul_precision("highest"):
        expected, expected_gradients = run(jnp.float32, "xla")
    errors = [relative_error(*pair) for pair in zip(gradients, expected_gradients, strict=True)]
    return {"output": relative_error(output, expected), "gradients": max(errors)}


def run_step(changes: dict[str, Any], tiny: bool) -> dict[str, np.ndarray]:
    """One step of the small config on the first device: loss, norm and entries of the gradient, averages."""
    config = configs.load_config("dit_512")
    lines = dict(configs.flatten(config.to_dict())) | SMALL | (TINY if tiny else {}) | changes
    config = configs.validate(configs.nest(lines))
    mesh = meshes.make_mesh(**config.mesh, devices=jax.devices()[:1])
    run = diffusion_run.make_run(make_model(config, mesh))
    rng = np.random.default_rng(0)
    params = jax.tree.map(
        lambda leaf: np.float32(0.1 * rng.standard_normal(leaf.shape)), run.model.abstract_params
    )
    with jax.default_matmul_precision("highest"):  # no TF32
        step = training_run.compile_step(run)
        state = jax.jit(run.init, out_shardings=run.shardings)(params)
        batch = jax.tree.map(
            lambda leaf: (
                np.asarray(rng.standard_normal(leaf.shape), leaf.dtype)
                if np.issubdtype(leaf.dtype, np.floating)
                else np.ones(leaf.shape, leaf.dtype)
            ),
            run.abstract_batch(config.batch_size),
        )
        batch = jax.device_put(batch, jax.sharding.NamedSharding(mesh, meshes.BATCH))
        state, metrics = step(state, batch)
    moments = [leaf for leaf in jax.tree.leaves(state.opt_state) if leaf.ndim]
    flat = {"gradients": moments, "parameters": jax.tree.leaves((state.ema, state.params))}
    arrays = {
        name: np.concatenate([np.ravel(leaf) for leaf in jax.device_get(leaves)])
        for name, leaves in flat.items()
    }
    scalars = {"loss": metrics["loss"], "gradient norm": metrics["gradient_norm"]}
    return {name: np.asarray(value) for name, value in scalars.items()} | arrays


if __name__ == "__main__":  # the reference, in a process that sees no GPU
    np.savez(sys.argv[1], **run_step({}, "--tiny" in sys.argv))
