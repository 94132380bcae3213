"""Packs a folder of captioned videos into TFRecord shards to train on.

    python -m videogen_jax.pack --input=FOLDER --output=DIR --size=256 --fps=8 --frames=16

FOLDER holds name.mp4 (or webm, mov, avi, gif, mkv, m4v) and its caption name.txt; with --frames=1
or a bucket of one frame also images (jpg, jpeg, png, webp). The result is a
TFDS data set: `tfds.builder_from_directory(DIR)` opens it. Beside the shards, statistics.json has
the words and motion scores that training reads, and pack_report.json what was skipped and why.

- Videos are resampled to --fps by their timestamps, resized to cover --size and cut in the centre,
  never squeezed; long ones become consecutive clips of --frames frames.
- Train and validation split follow a hash of the name: a video never changes sides.
- A run that was stopped (Ctrl-C, a kill, a full disk) continues when it is called again; the result
  is the same to the byte. A finished set is left as it is.

Clips of several shapes go to buckets, frames x height x width, each to the one that suits it best
(docs/data.md has the rule), images to those of one frame:

    python -m videogen_jax.pack --input=FOLDER --output=DIR --buckets=120x384x640,1x512x512

Many machines share the work as --shard=0/64 to --shard=63/64; then videogen_jax.merge makes one
data set of the parts.

Without videos of your own, generate some ("a red circle moving left"), packed the same way:

    python -m videogen_jax.pack --synthetic=moving_shapes --clips=1440 --output=DIR

and for long videos, in which walls reflect the shapes ("moving left" is how they begin):

    python -m videogen_jax.pack --synthetic=bouncing_shapes --clips=1440 --size=24 --frames=48 --output=DIR
"""

import errno
import os
import pathlib
import re

from absl import flags
from tqdm import tqdm

from videogen_jax import command
from videogen_jax.data import records, synthetic
from videogen_jax.data.workers import WorkerDied
from videogen_jax.packing import bucket_assignment, pack_buckets, pack_folder

DEFAULT_SIZE = 256
DEFAULT_SYNTHETIC_SIZE = 64
DEFAULT_FRAMES = 16
MAX_FPS = 240.0  # timestamps are rounded to milliseconds


def define_flags(flag_values=flags.FLAGS):
    """Defines the command's flags; not done on import, so that verbs can import one another."""

    def define(kind, name, default, text, **bounds):
        getattr(flags, f"DEFINE_{kind}")(name, default, text, flag_values=flag_values, **bounds)

    define("string", "input", None, "Folder of videos, with --synthetic a new one [OUTPUT_videos].")
    define("string", "output", None, "Folder of the data set.")
    size = f"HxW or N in pixels [{DEFAULT_SIZE}; {DEFAULT_SYNTHETIC_SIZE} with --synthetic]."
    define("string", "size", None, size)
    define("float", "fps", 8.0, "Frames per second of the clips.", upper_bound=MAX_FPS)
    frames = f"Frames of a clip; longer videos are cut [{DEFAULT_FRAMES}]."
    define("integer", "frames", None, frames, lower_bound=1)
    define("integer", "min_frames", None, "Fewest frames of a clip [--frames].", lower_bound=1)
    buckets = "Table like 120x384x640,1x512x512 instead of --size, --frames and --min_frames."
    define("string", "buckets", None, buckets)
    share = {"lower_bound": 0.0, "upper_bound": 0.9}
    define("float", "validation_fraction", 0.05, "Share of videos kept out of training.", **share)
    define("integer", "workers", None, "Worker processes [one per CPU].", lower_bound=1)
    define("integer", "clips_per_shard", 256, "Most clips in a shard.", lower_bound=1)
    define("string", "shard", None, "i/n: pack the i-th of n parts, counted from 0, for merge.")
    define("boolean", "strict", False, "Stop at the first video that would be skipped.")
    flags.DEFINE_enum(
        "synthetic", None, synthetic.KINDS, "Generate the videos.", flag_values=flag_values
    )
    define("integer", "clips", 1440, "Videos to generate with --synthetic.", lower_bound=1)
    define("integer", "seed", 0, "Seed of the generated videos.", lower_bound=0)


def parse_size(text: str) -> tuple[int, int]:
    """Reads "64" or "48x64" as (height, width).

    Raises:
      ValueError: it is neither, or a side is 0.
    """
    match = re.fullmatch(r"(\d+)(?:x(\d+))?", text.strip().lower())
    height, width = (int(side) for side in (match[1], match[2] or match[1])) if match else (0, 0)
    if not height or not width:
        raise ValueError(f"--size does not understand {text!r}: write it like 64 or 48x64.")
    return height, width


def read_settings(values) -> pack_folder.Settings | pack_buckets.BucketSettings:
    """Makes the settings of the data set out of the flags.

    Raises:
      ValueError: flags that contradict each other, named.
    """
    _check_flags(values)
    shared = {
        "fps": values.fps,
        "validation_fraction": values.validation_fraction,
        "clips_per_shard": values.clips_per_shard,
    }
    if values.buckets is not None:
        return pack_buckets.BucketSettings(
            bucket_assignment.parse_buckets(values.buckets), **shared
        )
    default = DEFAULT_SYNTHETIC_SIZE if values.synthetic else DEFAULT_SIZE
    height, width = parse_size(values.size or str(default))
    frames = values.frames or DEFAULT_FRAMES
    if max(height * min(frames, records.FRAMES_PER_STRIP), width) > records.MAX_JPEG_SIDE:
        raise ValueError(
            f"--size={height}x{width} is too large for JPEG strips of {records.FRAMES_PER_STRIP} "
            f"frames: {records.MAX_JPEG_SIDE // records.FRAMES_PER_STRIP} rows always fit."
        )
    min_frames = values.min_frames or frames
    if min_frames > frames:
        raise ValueError(f"--min_frames={min_frames} is more than --frames={frames}: lower it.")
    return pack_folder.Settings((height, width), frames=frames, min_frames=min_frames, **shared)


def _check_flags(values):
    """Raises ValueError for flags that are missing or exclude each other."""
    if not values.output:
        raise ValueError("--output is missing: write --output=FOLDER.")
    if not values.input and not values.synthetic:
        raise ValueError(
            "there is nothing to pack: write --input=FOLDER, or --synthetic=moving_shapes."
        )
    if not values.fps > 0:
        raise ValueError(f"--fps={values.fps:g} is no frame rate: give more than 0.")
    if values.buckets is not None:
        for name in ("size", "frames", "min_frames"):
            if getattr(values, name) is not None:
                raise ValueError(f"--buckets says what --{name} does: leave --{name} out.")
    for name in ("buckets", "shard"):
        if values.synthetic and getattr(values, name) is not None:
            raise ValueError(
                f"--synthetic makes few and equal videos, and --{name} is for others: leave it out."
            )


def run(values) -> dict:
    """Runs the command.

    Args:
      values: parsed flags.
    Returns:
      The report, as of `pack_folder.pack`.
    Raises:
      ValueError, OSError, WorkerDied: one sentence that says what is wrong and what to do.
    """
    settings = read_settings(values)
    share = None if values.shard is None else command.parse_share(values.shard)
    workers = values.workers or os.cpu_count() or 1
    output = pathlib.Path(values.output)
    folder, origin = values.input, None
    if values.synthetic:
        folder = folder or output.resolve().with_name(f"{output.resolve().name}_videos")
        origin = {"kind": values.synthetic, "clips": values.clips, "seed": values.seed}
        # Before the videos are looked at: they may have been deleted after packing.
        report = pack_folder.finished_report(output, pack_folder.note_settings(settings, origin))
        if report:
            return report
        _generate(folder, settings, origin, workers)
    options = {"workers": workers, "strict": values.strict, "share": share}
    if values.buckets is not None:
        return pack_buckets.pack_buckets(folder, output, settings, **options)
    return pack_folder.pack(folder, output, settings, origin=origin, **options)


def _generate(folder, settings, origin, workers):
    """Writes the generated videos, with a progress bar."""
    if settings.size[0] != settings.size[1]:
        raise ValueError("--synthetic makes square videos: write --size=N.")
    with tqdm(total=origin["clips"], unit="video", desc="generating", disable=None) as bar:
        synthetic.write_shapes(
            folder,
            origin["kind"],
            clips=origin["clips"],
            seed=origin["seed"],
            size=settings.size[0],
            frames=settings.frames,
            fps=settings.fps,
            workers=workers,
            on_progress=bar.update,
        )


def summarize(report: dict, output) -> str:
    """Says in a few lines what was packed and what was not."""
    clips, skipped = report["clips"], report["skipped"]
    if report["finished_before"]:
        return f"{output} is packed already with these settings: {sum(clips.values())} clips."
    lines = [
        f"packed {sum(clips.values())} clips ({clips['train']} train, {clips['validation']} "
        f"validation) into {output} in {report['seconds']} s"
    ]
    lines += [
        f"  {name}: {counts['train']} train, {counts['validation']} validation"
        for name, counts in report.get("buckets", {}).items()
    ]
    lines += [f"  {name} is left out: {why}" for name, why in report.get("left_out", {}).items()]
    lines += [f"  skipped {item['file']}: {item['reason']}" for item in skipped[:10]]
    if len(skipped) > 10:
        lines.append(f"  skipped {len(skipped) - 10} more: see pack_report.json there")
    if long := report["long_captions"]:
        lines.append(
            f"  {len(long)} captions have more than {pack_folder.LONG_CAPTION} words, such as that of "
            f"{long[0]}: a text encoder may read only their beginning"
        )
    if part := report["settings"].get("shard"):
        lines.append(
            f"  this is part {part}: when all parts are there, call python -m videogen_jax.merge "
            f"--output={output}"
        )
    elif not clips["validation"]:
        lines.append("  there is no validation split: training will log no validation loss")
    return "\n".join(lines)


def main(arguments):
    """Runs the verb; returns the exit code."""
    command.refuse(arguments)
    values = flags.FLAGS
    try:
        print(summarize(run(values), values.output))
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
            raise
        raise ValueError(
            f"no space is left for {error.filename or values.output} ({error.strerror}): free some "
            "and call the same command again, which continues behind the finished shards."
        ) from error
    except KeyboardInterrupt:
        print("pack: stopped: the same command again continues behind the finished shards.")
        return 130


if __name__ == "__main__":
    define_flags()
    command.start("pack", main, errors=(ValueError, OSError, WorkerDied))
