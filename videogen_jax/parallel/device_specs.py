"""Specifications of the devices for which a plan can be computed; they need not be present.

FLOP/s are for dense bfloat16 matrix products with float32 accumulation. Link bandwidths are per direction and nominal:
32 GB/s for PCIe 4.0 x16, 64 GB/s for PCIe 5.0 x16, and NVLink's where all cards of a machine have it.

Source: NVIDIA's white papers of GA102 and Ada and data sheets of A40, A100, H100 and H200; the description format, and
those of A100 and H100, from OpenXLA, xla/backends/gpu/target_config/specs.
"""

import re
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import jax
from jax.experimental import topologies

MOST_DEVICES = 1024  # of a target
FULL_LANES = 16  # of PCIe, for which the links of CARDS are
# Without which XLA's compiler computes nonsense or divides by zero.
FIELDS = (
    *("threads_per_block_limit", "threads_per_warp", "threads_per_core_limit", "core_count"),
    *("fpus_per_core", "clock_rate_ghz", "block_dim_limit_x", "block_dim_limit_y"),
    *("block_dim_limit_z", "registers_per_core_limit", "registers_per_block_limit"),
    *("shared_memory_per_block", "shared_memory_per_core", "shared_memory_per_block_optin"),
    *("l2_cache_size", "memory_bandwidth", "device_memory_size", "major", "platform_name"),
)


class Card(NamedTuple):
    """A kind of device."""

    name: str
    memory: int | None  # bytes; None for the CPU, which uses the machine's memory
    bandwidth: float | None  # memory bandwidth, bytes/s
    flops: float | None  # peak FLOP/s
    link: float | None  # bandwidth between devices, bytes/s
    host_link: float | None  # bandwidth to the host, bytes/s
    description: str  # GpuTargetConfigProto in text form; empty for the CPU


# Per streaming multiprocessor, by compute capability: shared memory in bytes, threads, and float32 lanes.
CORES = {
    (8, 0): (167936, 2048, 64),
    (8, 6): (102400, 1536, 128),
    (8, 9): (102400, 1536, 128),
    (9, 0): (233472, 2048, 128),
}


def _gpu(
    name: str,
    title: str,
    capability: tuple[int, int],
    *,
    cores: int,
    ghz: float,
    memory: int,
    l2: int,
    bandwidth: float,
    flops: float,
    link: float,
    host_link: float,
) -> Card:
    shared, threads, lanes = CORES[capability]
    description = f"""gpu_device_info {{
  threads_per_block_limit: 1024 threads_per_warp: 32 threads_per_core_limit: {threads}
  core_count: {cores} fpus_per_core: {lanes} clock_rate_ghz: {ghz}
  block_dim_limit_x: 2147483647 block_dim_limit_y: 65535 block_dim_limit_z: 65535
  registers_per_core_limit: 65536 registers_per_block_limit: 65536
  shared_memory_per_block: 49152 shared_memory_per_core: {shared}
  shared_memory_per_block_optin: {shared - 1024} l2_cache_size: {l2}
  memory_bandwidth: {round(bandwidth)} device_memory_size: {memory}
  cuda_compute_capability {{ major: {capability[0]} minor: {capability[1]} }}
}}
platform_name: "CUDA"
dnn_version_info {{ major: 9 minor: 10 }}
device_description_str: "{title}"
"""
    return Card(name, memory, bandwidth, flops, link, host_link, description)


CARDS = {
    card.name: card
    for card in (
        _gpu(
            *("rtx3090", "NVIDIA GeForce RTX 3090", (8, 6)),
            **{"cores": 82, "ghz": 1.695, "memory": 25438126080, "l2": 6291456},
            **{"bandwidth": 936e9, "flops": 71e12, "link": 32e9, "host_link": 32e9},
        ),
        _gpu(
            *("a40", "NVIDIA A40", (8, 6)),
            **{"cores": 84, "ghz": 1.74, "memory": 47608692736, "l2": 6291456},
            **{"bandwidth": 696e9, "flops": 149.7e12, "link": 32e9, "host_link": 32e9},
        ),
        _gpu(
            *("rtx4090", "NVIDIA GeForce RTX 4090", (8, 9)),
            **{"cores": 128, "ghz": 2.52, "memory": 25393692672, "l2": 75497472},
            **{"bandwidth": 1008e9, "flops": 165.2e12, "link": 32e9, "host_link": 32e9},
        ),
        _gpu(
            *("a100", "NVIDIA A100-SXM4-80GB", (8, 0)),
            **{"cores": 108, "ghz": 1.41, "memory": 85095874560, "l2": 41943040},
            **{"bandwidth": 2039e9, "flops": 312e12, "link": 300e9, "host_link": 32e9},
        ),
        _gpu(
            *("h100", "NVIDIA H100 80GB HBM3", (9, 0)),
            **{"cores": 132, "ghz": 1.98, "memory": 85045010432, "l2": 52428800},
            **{"bandwidth": 3352e9, "flops": 989.4e12, "link": 450e9, "host_link": 64e9},
        ),
        _gpu(
            *("h200", "NVIDIA H200", (9, 0)),
            **{"cores": 132, "ghz": 1.98, "memory": 150754820096, "l2": 62914560},
            **{"bandwidth": 4800e9, "flops": 989.4e12, "link": 450e9, "host_link": 64e9},
        ),
        Card("cpu", None, None, None, None, None, ""),
    )
}


def find_card(device_kind: str) -> Card | None:
    """The card with JAX's `device_kind`; None if it is unknown."""
    field = f'device_description_str: "{device_kind}"'
    return next((card for card in CARDS.values() if field in card.description), None)


def parse_target(text: str) -> tuple[Card, int]:
    """Parses a card and a count, such as rtx4090, rtx3090x2, "RTX 4090" or cpux8.

    Args:
      text: card name or path of a GpuTargetConfigProto in text form, and optionally x with a count. A name that is a
        card's as it stands has no count: rtx4090 is one card, and not 4090 of "rt".
    Returns:
      (card, count).
    Raises:
      ValueError: the card is unknown, the count is 0, or the file lacks a field.
    """
    if card := _find_target(text):
        return card, 1
    match = re.fullmatch(r"(.+?)\s*x\s*(\d+)", text, re.IGNORECASE)
    if match and (card := _find_target(match[1])):
        count = int(match[2])
        if not 1 <= count <= MOST_DEVICES:
            raise ValueError(
                f"The target {text!r} has {count} devices: write {match[1]}x1 to {match[1]}x{MOST_DEVICES}."
            )
        return card, count
    raise ValueError(
        f"Unknown target {text!r}: choose {', '.join(CARDS)}, or the path of a description, with x2 for two devices."
    )


def _find_target(name: str) -> Card | None:
    """The card of a plain name, in any spelling with spaces, dashes and capitals, or of a file."""
    plain = re.sub(r"[\s_-]", "", name).lower()
    plain = re.sub(r"^(nvidia|geforce)+", "", plain)
    if plain in CARDS:
        return CARDS[plain]
    return read_card(Path(name)) if name and Path(name).is_file() else None


def read_card(path: Path) -> Card:
    """Reads a card from a GpuTargetConfigProto in text form; of its speed, only memory bandwidth is known.

    Raises:
      ValueError: the description lacks one of FIELDS.
    """
    description = path.read_text(encoding="utf-8")
    found = dict(re.findall(r'\b(\w+)\s*:\s*("[^"]*"|[\w.+-]+)', description))
    if missing := [field for field in FIELDS if field not in found]:
        raise ValueError(
            f"{path} lacks {', '.join(missing)}: write a GpuTargetConfigProto in text form with all fields that "
            "those of OpenXLA have."
        )
    for field in ("device_memory_size", "memory_bandwidth"):
        if not found[field].isdecimal() or not int(found[field]):
            raise ValueError(f"{field} in {path} is {found[field]}: write a number of bytes.")
    memory, bandwidth = int(found["device_memory_size"]), int(found["memory_bandwidth"])
    return Card(path.stem, memory, bandwidth, None, None, None, description)


def with_lanes(card: Card, lanes: int) -> Card:
    """The card in a PCIe slot with fewer lanes than FULL_LANES: its links have that share; NVLink stays as it is."""
    if card.host_link is None:
        return card
    share = lanes / FULL_LANES
    link = card.link * share if card.link <= card.host_link else card.link
    return card._replace(link=link, host_link=card.host_link * share)


def find_devices(card: Card, count: int) -> Sequence[jax.Device]:
    """Devices to compile for: made from a description, or this process's CPU devices.

    Args:
      card: from `parse_target`.
      count: number of devices.
    Raises:
      ImportError: the CUDA wheels are missing.
      ValueError: XLA cannot read the description, or this process has fewer CPU devices.
    """
    if not card.description:
        devices = jax.devices("cpu")
        if len(devices) < count:
            raise ValueError(
                f"There are {len(devices)} CPU devices, not {count}: set jax_num_cpu_devices before JAX starts."
            )
        return devices[:count]
    try:
        topology = topologies.get_topology_desc(
            platform="cuda", target_config=card.description, topology=f"1x1x{count}"
        )
    except NotImplementedError as error:
        raise ImportError(
            "A plan for GPUs needs XLA's CUDA compiler, which works without a GPU: "
            f"pip install 'jax[cuda12]=={jax.__version__}'."
        ) from error
    except RuntimeError as error:
        raise ValueError(
            f"XLA cannot make devices from the description of {card.name}: {error}"
        ) from error
    return topology.devices
