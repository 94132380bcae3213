"""The machine of benchmarks/gpu.py, and what its card reaches: what the efficiencies of `plan` are compared with.

Rates are of random numbers, since products of zeros are faster. Each is the median of three
times several calls that are dispatched together.
"""

import importlib.metadata
import json
import os
import platform
import statistics
import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
from gpu_page import GIB

from videogen_jax.models import layers
from videogen_jax.models.attention import attend, choose_kernel
from videogen_jax.models.linear import Modulation
from videogen_jax.parallel import device_specs, gpu_pools

QUERIED = "driver_version,memory.total,pcie.link.gen.max,pcie.link.width.current,power.limit"
VERSIONS = ("jax", "jaxlib", "flax", "torch", "nvidia-cudnn-cu12", "nvidia-cudnn-cu13")

# Products of the models: tokens, contracted axis, columns.
PRODUCTS = {
    "large": (16384, 8192, 8192),
    "width 512, to queries": (491520, 512, 512),
    "width 512, MLP up": (491520, 512, 2048),
    "width 512, MLP down": (491520, 2048, 512),
    "width 1152, to queries": (245760, 1152, 1152),
    "width 1152, MLP up": (245760, 1152, 4608),
    "width 1152, MLP down": (245760, 4608, 1152),
}
# Self-attention of the models: sequences, tokens, heads, head dimension.
ATTENTIONS = {
    "spatial, 8 heads of 64": (120, 1024, 8, 64),
    "temporal, 8 heads of 64": (256, 480, 8, 64),
    "spatial, 16 heads of 72": (60, 1024, 16, 72),
    "temporal, 16 heads of 72": (128, 480, 16, 72),
}
BACKWARD = 2.5  # five products for the two of the forward pass
SMALL_KERNELS = 200
ENOUGH = 0.03  # seconds of calls, beside which dispatching one does not count


def measure(part: str, record: Callable[..., None], folder: Path, tiny: bool) -> None:
    """Records the machine, then one rate after the other.

    Args:
      part: of gpu.PARTS.
      record: takes results by name.
      folder: of the results of the other parts.
      tiny: for a dry run.
    """
    record(**describe_machine())
    if sentence := find_cudnn_error():
        record(kernel="xla", cudnn_error=sentence)
    card = device_specs.find_card(jax.devices()[0].device_kind)
    peaks = (card.flops, card.bandwidth, card.host_link) if card else (None, None, None)
    record(peaks=dict(zip(("flops", "bandwidth", "host_link"), peaks, strict=True)))
    rates: list[dict[str, Any]] = []
    for measured in (_products, _attentions, _streams, _host_link):
        for row in measured(tiny, attention_kernel(folder)):
            rates.append(row)
            record(rates=rates)
    record(small_kernel_seconds=_small_kernel())


def describe_machine() -> dict[str, Any]:
    """Card, driver, versions, and the host's cores and memory."""
    device = jax.devices()[0]
    described: dict[str, Any] = {
        "device": device.device_kind,
        "devices": len(jax.devices()),
        "capability": getattr(device, "compute_capability", None),
        "kernel": choose_kernel("auto", [device]),
        "cores": os.cpu_count(),
        "host_gib": gpu_pools.machine_memory() / GIB,
        "python": platform.python_version(),
        "versions": {},
    }
    if stats := device.memory_stats():
        described["jax_memory_gib"] = stats["bytes_limit"] / GIB
        described["memory_gib"] = stats["bytes_limit"] / GIB
    for name in VERSIONS:
        try:
            described["versions"][name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    command = ["nvidia-smi", f"--query-gpu={QUERIED}", "--format=csv,noheader,nounits"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=20, check=True)
        values = [value.strip() for value in done.stdout.splitlines()[0].split(",")]
        described |= dict(zip(QUERIED.split(","), values, strict=True))
        described["memory_gib"] = float(described["memory.total"]) / 1024
    except (OSError, subprocess.SubprocessError, IndexError, ValueError) as error:
        described["nvidia_smi"] = f"not read: {error}"
    return described


def find_cudnn_error() -> str:
    """Why attention of cuDNN, which the model would choose, does not run here; empty where it does."""
    kernel = choose_kernel("auto", jax.devices()[:1])
    x = draw(0, 2, 64, 2, 64)
    try:
        jax.block_until_ready(jax.jit(lambda x: attend(x, x, x, kernel=kernel))(x))
    except (RuntimeError, ValueError, NotImplementedError) as error:
        return str(error).splitlines()[0][:300]
    return ""


def attention_kernel(folder: Path) -> str:
    """The kernel of attention: the model's choice, or xla where the part "environment" found that it does not run.

    Args:
      folder: of the results of all parts.
    """
    file = folder / "environment.json"
    found = json.loads(file.read_text()) if file.is_file() else {}
    return found.get("kernel") or choose_kernel("auto", jax.devices()[:1])


def time_calls(run: Callable[..., Any], *arguments: Any) -> float:
    """Seconds of a call: the median of three times as many, dispatched together, as take `ENOUGH` seconds."""
    jax.block_until_ready(run(*arguments))
    started = time.perf_counter()
    jax.block_until_ready(run(*arguments))
    calls = max(2, min(50, round(ENOUGH / (time.perf_counter() - started))))
    times = []
    for _ in range(3):
        started = time.perf_counter()
        for _ in range(calls):
            result = run(*arguments)
        jax.block_until_ready(result)
        times.append((time.perf_counter() - started) / calls)
    return statistics.median(times)


def draw(seed: int, *shape: int) -> jax.Array:
    """Normal random numbers in bfloat16."""
    return jax.jit(lambda: jax.random.normal(jax.random.key(seed), shape, jnp.bfloat16))()


def _row(
    what: str, kind: str, seconds: float, flops: float = 0, moved: float = 0
) -> dict[str, Any]:
    """A result: FLOPs and bytes of a call beside its seconds."""
    return {"what": what, "kind": kind, "seconds": seconds, "flops": flops, "bytes": moved}


def _products(tiny: bool, _: str) -> Any:
    for name, sizes in PRODUCTS.items():
        rows, inner, columns = (size // 128 if tiny else size for size in sizes)
        a, b = draw(0, rows, inner), draw(1, inner, columns)
        seconds = time_calls(jax.jit(jnp.matmul), a, b)
        moved = 2 * (rows * inner + inner * columns + rows * columns)
        yield _row(name, "product", seconds, 2.0 * rows * inner * columns, moved)


def _attentions(tiny: bool, kernel: str) -> Any:
    for name, (count, tokens, heads, width) in ATTENTIONS.items():
        if tiny:
            count, tokens = 2, 32
        inputs = [draw(seed, count, tokens, heads, width) for seed in range(4)]

        def forward(query: jax.Array, key: jax.Array, value: jax.Array) -> jax.Array:
            return attend(query, key, value, kernel=kernel)

        def both(query: jax.Array, key: jax.Array, value: jax.Array, gradient: jax.Array) -> Any:
            return jax.vjp(forward, query, key, value)[1](gradient)

        flops = 4.0 * count * heads * tokens**2 * width
        once = time_calls(jax.jit(forward), *inputs[:3])
        moved = 2 * inputs[0].size
        yield _row(name, "attention forward", once, flops, 4 * moved)
        twice = time_calls(jax.jit(both), *inputs)
        yield _row(name, "attention backward", max(twice - once, 1e-9), BACKWARD * flops, 8 * moved)


def _streams(tiny: bool, _: str) -> Any:
    """Kernels that only move bytes: a copy, a sum, and adaLN's modulation."""
    size = 2**16 if tiny else 2**28
    a, b = draw(0, size // 512, 512), draw(1, size // 512, 512)
    yield _row("copy", "memory", time_calls(jax.jit(jnp.copy), a), moved=4 * size)
    yield _row("sum of two", "memory", time_calls(jax.jit(jnp.add), a, b), moved=6 * size)
    shift = jnp.full((1, 1, 1, 512), 0.5)
    modulation = Modulation(shift=shift, scale=shift)
    tokens = a.reshape(1, 1, -1, 512)
    modulate = jax.jit(lambda x: layers.modulate(x, modulation).astype(x.dtype))
    yield _row("layer norm and modulation", "memory", time_calls(modulate, tokens), moved=4 * size)


def _host_link(tiny: bool, _: str) -> Any:
    """Copies between the device's memory and pinned memory of the host."""
    size = 2**20 if tiny else 2**30
    on_device = draw(0, size // 2)
    device = on_device.sharding
    host = device.with_memory_kind("pinned_host")
    on_host = jax.device_put(on_device, host)
    to_host = time_calls(lambda x: jax.device_put(x, host), on_device)
    yield _row("to the host", "host link", to_host, moved=size)
    from_host = time_calls(lambda x: jax.device_put(x, device), on_host)
    yield _row("from the host", "host link", from_host, moved=size)


def _small_kernel() -> float:
    """Seconds of a product that is too small to take any: what a kernel costs by itself."""

    @jax.jit
    def run(x: jax.Array, weight: jax.Array) -> jax.Array:
        for _ in range(SMALL_KERNELS):
            x = x @ weight
        return x

    return time_calls(run, draw(0, 64, 64), draw(1, 64, 64) / 8) / SMALL_KERNELS
