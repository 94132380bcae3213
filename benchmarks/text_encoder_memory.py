"""Memory of the text encoders on a GPU that need not be there: parameters, and the peak of the largest batches.

    python benchmarks/text_encoder_memory.py --target=rtx3090x1
    python benchmarks/text_encoder_memory.py --target=rtx3090x2 --dtype=float32

Compiles `encode` for batches of 512 tokens as `videogen_jax.encode` runs them; needs the wheels of jax[cuda12].
"""

import argparse

import jax
import jax.numpy as jnp

from videogen_jax.models.text_encoder import make_text_encoder
from videogen_jax.parallel import batched, device_specs, memory
from videogen_jax.run import caption_embedder

ENCODERS = (
    ("t5", "google/t5-v1_1-base"),
    ("t5", "google/t5-v1_1-large"),
    ("t5", "google/t5-v1_1-xl"),
    ("t5", "google/t5-v1_1-xxl"),
    ("t5", "google/umt5-xxl"),
    ("qwen3", "Qwen/Qwen3-0.6B"),
    ("qwen3", "Qwen/Qwen3-1.7B"),
    ("qwen3", "Qwen/Qwen3-4B"),
)


def measure(kind: str, name: str, dtype: str, devices: list[jax.Device]) -> tuple[float, float]:
    """GiB of the parameters on each device, and of the peak."""
    encoder = make_text_encoder(kind, name, dtype=dtype, fetch=False)
    shardings, rows, results = batched.lay_out(
        encoder.abstract_params, devices, caption_embedder.LARGEST_REPLICATED
    )
    count = caption_embedder.count_rows(encoder.length) * len(devices)
    ids = jax.ShapeDtypeStruct((count, encoder.length), jnp.int32)
    run = jax.jit(encoder.encode, in_shardings=(shardings, rows), out_shardings=results)
    traced = run.trace(encoder.abstract_params, ids)
    used = memory.measure(traced, len(devices), cuda=devices[0].platform != "cpu")
    return used.arguments / 2**30, used.peak / 2**30


def main() -> None:
    """Prints a line per encoder."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--target", default="rtx3090x1", help="card and number, as of plan")
    parser.add_argument("--dtype", default="bfloat16", choices=("float32", "bfloat16"))
    parser.add_argument("--only", default="", help="part of the names to measure")
    options = parser.parse_args()
    jax.config.update("jax_platforms", "cpu")
    devices = list(device_specs.find_devices(*device_specs.parse_target(options.target)))
    print(f"{options.target}, {options.dtype}, GiB per device")
    for kind, name in ENCODERS:
        if options.only in name:
            params, peak = measure(kind, name, options.dtype, devices)
            print(f"{name:24} parameters {params:6.2f}   peak {peak:6.2f}", flush=True)


if __name__ == "__main__":
    main()
