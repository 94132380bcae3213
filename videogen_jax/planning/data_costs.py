"""What the data of a config takes before training: disk, and the hours of `pack` and `encode`.

Clips are counted where there is a data set at data.path. Sizes of latents are exact; sizes and hours of packed clips
follow from two rates, which were measured with two real videos (docs/performance.md).
"""

import math
from pathlib import Path
from typing import NamedTuple

import jax
import ml_collections

from videogen_jax import config as configs
from videogen_jax.data import json_files
from videogen_jax.planning.programs import Plan, Program
from videogen_jax.run.model import make_latent_space

PACKED_BYTES = 0.32  # a pixel: JPEG of quality 95 without chroma subsampling
PACKED_PIXELS = 25e6  # a second on one core, decoding 720p and resizing included
ASSUMED_CLIPS = 10_000
DAY, HOUR = 86_400, 3_600  # seconds
DATASET_INFO = {"splits": [{"shardLengths": [str], "numBytes": str}]}


class DataCosts(NamedTuple):
    """Disk and hours of a data set."""

    clips: int
    source: str  # of their number
    packed: float  # bytes of the packed clips, by PACKED_BYTES
    packing: float  # seconds of one core, by PACKED_PIXELS
    latents: int  # bytes; 0 for a model of pixels
    encoding: float | None  # seconds on the target, where its speed is known
    found: int | None  # bytes of the data set that is there


def estimate_data(
    config: ml_collections.ConfigDict, null_text: object, plan: Plan, clips: int | None
) -> DataCosts:
    """Estimates what a config's data takes.

    Args:
      config: of the run.
      null_text: tree of rows of a caption's embedding; None without captions.
      plan: with the program `encode`, if there are latents.
      clips: number of clips; None: of the data set at data.path, or ASSUMED_CLIPS.
    Raises:
      FieldError: the data set's dataset_info.json is damaged.
    """
    found = count_clips(Path(config.data.path))
    if clips is not None:
        count, source = clips, "--clips"
    elif found:
        count, source = found[0], config.data.path
    else:
        count, source = ASSUMED_CLIPS, "assumed: give --clips"
    frames = config.data.frames
    pixels = count * frames * config.data.height * config.data.width
    encode = plan.get("encode")
    copies = count_copies(config)
    return DataCosts(
        clips=count,
        source=source,
        packed=pixels * PACKED_BYTES,
        packing=pixels / PACKED_PIXELS,
        latents=0 if encode is None else count * count_latent_bytes(config, null_text, copies),
        encoding=encode and count_encoding(encode, config, count * copies),
        found=found and found[1],
    )


def count_clips(folder: Path) -> tuple[int, int] | None:
    """Clips and bytes of a finished data set, of all its buckets; None if there is none.

    Raises:
      FieldError: a dataset_info.json is damaged.
    """
    paths = [folder / "dataset_info.json", *folder.glob("*/dataset_info.json")]
    splits = [
        split
        for path in paths
        if path.is_file()
        for split in json_files.read(path, DATASET_INFO)["splits"]
    ]
    if not splits:
        return None
    clips = sum(int(count) for split in splits for count in split["shardLengths"])
    return clips, sum(int(split["numBytes"]) for split in splits)


def count_copies(config: ml_collections.ConfigDict) -> int:
    """Latents that `encode` stores of each clip: of every augmented variant, and mirrored too."""
    if configs.is_autoencoder(config):
        return 1
    return config.augment.variants * (2 if config.data.flip else 1)


def count_latent_bytes(config: ml_collections.ConfigDict, null_text: object, copies: int) -> int:
    """Bytes of a clip's latents and caption, the longest that the model reads."""
    shape = make_latent_space(config).latent_shape(config.data.frames)
    embeddings = [leaf for leaf in jax.tree.leaves(null_text) if leaf.dtype == "float16"]
    return 2 * (copies * math.prod(shape) + sum(leaf.size for leaf in embeddings))


def count_encoding(encode: Program, config: ml_collections.ConfigDict, videos: int) -> float | None:
    """Seconds that the target takes to encode so many clips."""
    if encode.expected is None:
        return None
    chunk = min(config.vae.chunk_frames * encode.devices, config.data.frames)
    return videos * -(-config.data.frames // chunk) * encode.expected.total


def describe_data(costs: DataCosts) -> str:
    """One sentence on disk and hours."""
    packed = (
        f"{costs.clips:,} clips ({costs.source}) take about {to_size(costs.packed)} packed ({PACKED_BYTES} bytes a "
        f"pixel) and {costs.packing / HOUR:,.1f} core-hours to pack ({PACKED_PIXELS / 1e6:.0f} million pixels a second)"
    )
    if costs.latents:
        packed += f", {to_size(costs.latents)} as latents"
    if costs.encoding is not None:
        packed += f" and {costs.encoding / HOUR:,.1f} hours to encode on the target"
    if costs.found is not None:
        packed += f"; the data set that is there has {to_size(costs.found)}"
    return packed + "."


def to_size(count: float) -> str:
    """Bytes in TB, GB or MB."""
    unit, name = next(
        one for one in ((1e12, "TB"), (1e9, "GB"), (1e6, "MB")) if count >= one[0] or one[0] == 1e6
    )
    return f"{count / unit:,.1f} {name}"


def describe_days(config: ml_collections.ConfigDict, train: Program) -> str:
    """One sentence on the days of the whole run; empty where the card's speed is not known."""
    days = [
        f"{one.total * config.train.steps / DAY:.1f} days {how}"
        for one, how in ((train.roofline, "by the roofline"), (train.expected, "expected"))
        if one is not None
    ]
    if not days:
        return ""
    return f"{config.train.steps:,} steps take {' and '.join(days)}, without samples, validation and checkpoints."
