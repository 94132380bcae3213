"""Packs captioned videos into TFRecord shards for training.

    python -m videogen_jax.pack --input=FOLDER --output=DIR --size=256 --fps=8 --frames=16

FOLDER holds name.mp4 (or webm, mov, avi, gif, mkv, m4v) and its caption name.txt, or name.json with several captions,
captions that change over time, the episode's name and numbers per frame (docs/data.md); with --frames=1 or a bucket of
one frame also images (jpg, jpeg, png, webp). FOLDER may also hold metadata.csv, .jsonl or .parquet (Hugging Face's
VideoFolder) or tar archives (WebDataset), and --input may be a table whose rows are videos or seconds of them.

The result is a TFDS data set, which `tfds.builder_from_directory(DIR)` opens. Next to the shards, statistics.json has
word counts and motion-score buckets for training, and pack_report.json lists the skipped files with reasons.

- Videos are resampled to --fps by their timestamps, resized to cover --size and centre-cropped, without distortion;
  long ones become consecutive clips of --frames frames.
- The split is a hash of the name, or of the episode's, so a video always stays in its split.
- An interrupted call (Ctrl-C, a kill, a full disk) resumes when it is repeated, with the same bytes as a result. A
  finished data set is left unchanged.

Clips of several shapes go to buckets, frames x height x width, each to the best match (the rule is in docs/data.md);
images go to buckets of one frame:

    python -m videogen_jax.pack --input=FOLDER --output=DIR --buckets=120x384x640,1x512x512

--split_scenes ends clips at scene cuts; --min_size, --max_aspect, --min_seconds, --min_motion and the like leave out
what is outside their bounds, and --drop_duplicates near-duplicates of other videos (docs/data.md).

Several machines can share the work with --shard=0/64 to --shard=63/64; videogen_jax.merge then merges the parts.
--engine=ray packs on a Ray cluster.

Synthetic videos ("a red circle moving left") are generated and packed by:

    python -m videogen_jax.pack --synthetic=moving_shapes --clips=1440 --output=DIR

and long ones, in which walls reflect the shapes and the caption names the first direction, by:

    python -m videogen_jax.pack --synthetic=bouncing_shapes --clips=1440 --size=24 --frames=48 --output=DIR

With --caption_words=60 their captions say the same in 60 words, of which the shape comes last.
"""

import contextlib
import os
import pathlib
import re

from absl import flags

from videogen_jax import command
from videogen_jax.data import read_limits, records, synthetic
from videogen_jax.data.output_folder import check_output_folder
from videogen_jax.data.progress import show_progress
from videogen_jax.data.workers import WorkerDied, count_usable_cpus
from videogen_jax.packing import (
    bucket_assignment,
    duplicates,
    filters,
    pack_buckets,
    pack_folder,
    ray_pool,
    scenes,
    sources,
    tables,
)
from videogen_jax.packing.report_summary import summarize
from videogen_jax.packing.settings import (
    Selection,
    Settings,
    finished_report,
    is_finished,
    settings_to_json,
)

ENGINES = ("processes", "ray")
OPTIONS_OF = {
    "scene_threshold": "split_scenes",
    "duplicate_distance": "drop_duplicates",
}
# (flag, column that is taken without it, what the column has)
TABLE_FLAGS = (
    ("path_column", " or ".join(tables.PATH_COLUMNS), "the video files"),
    (
        "caption_column",
        " or ".join(tables.CAPTION_COLUMNS),
        "captions; several, separated by commas; in archives, of name.json",
    ),
    ("start_column", "none", "the seconds at which clips begin"),
    ("end_column", "none", "the seconds at which clips end"),
    ("times_column", "none", "lists of [start, end]; captions are lists of as many"),
)
DEFAULT_SIZE = 256
DEFAULT_SYNTHETIC_SIZE = 64
DEFAULT_FRAMES = 16
MAX_FPS = 240.0  # timestamps are rounded to milliseconds


def define_flags(flag_values=flags.FLAGS):
    """Defines the flags; not at import time, so that commands can import one another."""

    def define(kind, name, default, text, **bounds):
        getattr(flags, f"DEFINE_{kind}")(name, default, text, flag_values=flag_values, **bounds)

    text = "Folder of videos, table or tar archives; a new folder with --synthetic [OUTPUT_videos]."
    define("string", "input", None, text)
    define("string", "output", None, "Folder of the data set.")
    size = f"HxW or N in pixels [{DEFAULT_SIZE}; {DEFAULT_SYNTHETIC_SIZE} with --synthetic]."
    define("string", "size", None, size)
    define("float", "fps", 8.0, "Frames per second of the clips.", upper_bound=MAX_FPS)
    frames = f"Frames of a clip; longer videos are split [{DEFAULT_FRAMES}]."
    define("integer", "frames", None, frames, lower_bound=1)
    define("integer", "min_frames", None, "Minimum frames of a clip [--frames].", lower_bound=1)
    buckets = "Table like 120x384x640,1x512x512 instead of --size, --frames and --min_frames."
    define("string", "buckets", None, buckets)
    share = {"lower_bound": 0.0, "upper_bound": 0.9}
    define("float", "validation_fraction", 0.05, "Fraction of videos for validation.", **share)
    define("integer", "workers", None, "Worker processes [one per usable CPU].", lower_bound=1)
    define("integer", "clips_per_shard", 256, "Maximum clips of a shard.", lower_bound=1)
    define("string", "shard", None, "i/n: pack part i of n, counted from 0, for merge.")
    define("boolean", "strict", False, "Stop at the first video that would be skipped.")
    limits = read_limits.DEFAULTS
    damaged = "Skip a damaged video, or cut it before the damage."
    flags.DEFINE_enum(
        "damaged", limits.damaged, read_limits.DAMAGED, damaged, flag_values=flag_values
    )
    text = "Megapixels of a frame or an image, at most; it takes up to 30 bytes a pixel."
    define("float", "max_megapixels", limits.max_megapixels, text)
    text = "Seconds from one frame to the next, at most; a longer gap ends the video."
    define("float", "max_gap", limits.max_gap, text)
    text = "Frames due per frame that the file holds, at most."
    define("float", "max_repeats", limits.max_repeats, text)
    links = "Follow links to folders, and to files outside --input."
    define("boolean", "follow_links", False, links)
    define("string", "video_folder", None, "Folder of the paths in a table [that of the table].")
    for flag, default, text in TABLE_FLAGS:
        define("string", flag, None, f"Column of a table with {text} [{default}].")
    bytes_of_caption = "Captions of more bytes are skipped."
    default = sources.MAX_CAPTION_BYTES
    define("integer", "max_caption_bytes", default, bytes_of_caption, lower_bound=1)
    _define_selection(define)
    flags.DEFINE_enum(
        "engine", "processes", ENGINES, "What runs the workers.", flag_values=flag_values
    )
    address = "Ray cluster, such as auto or ray://HOST:10001 [RAY_ADDRESS, or this machine]."
    define("string", "ray_address", None, address)
    flags.DEFINE_enum(
        "synthetic", None, synthetic.KINDS, "Generate videos of this kind.", flag_values=flag_values
    )
    define("integer", "clips", 1440, "Number of videos for --synthetic.", lower_bound=1)
    text = "Words of the captions of --synthetic; 0: as few as name the facts."
    define("integer", "caption_words", 0, text, lower_bound=0)
    define(
        "integer", "seed", 0, "Seed for --synthetic.", lower_bound=0, upper_bound=command.MAX_SEED
    )


def _define_selection(define):
    """Defines the flags of `Selection`."""
    define("boolean", "split_scenes", False, "End clips at scene cuts (needs scenedetect).")
    text = f"Change at a cut by the mean of the changes around it [{scenes.THRESHOLD:g}]."
    define("float", "scene_threshold", None, text)
    define("integer", "min_size", None, "Shorter side of the source in pixels, at least.")
    for bound, end in (("min", "least"), ("max", "most")):
        define("float", f"{bound}_aspect", None, f"Width / height of the source, at {end}.")
        length = f"Seconds of a video, or of a scene with --split_scenes, at {end}."
        define("float", f"{bound}_seconds", None, length)
        define("float", f"{bound}_motion", None, f"Motion score of a clip, at {end}.")
    define("boolean", "drop_duplicates", False, "Leave out near-duplicates of other videos.")
    text = f"Bits of 64 by which near-duplicates differ, at most [{duplicates.DISTANCE}]."
    define("integer", "duplicate_distance", None, text, lower_bound=0, upper_bound=32)


def parse_size(text: str) -> tuple[int, int]:
    """Parses "64" or "48x64" to (height, width).

    Raises:
      ValueError: the text is malformed, or a side is 0.
    """
    match = re.fullmatch(r"(\d+)(?:x(\d+))?", text.strip().lower())
    height, width = (int(side) for side in (match[1], match[2] or match[1])) if match else (0, 0)
    if not height or not width:
        raise ValueError(f"invalid --size={text!r}: write it as in 64 or 48x64.")
    return height, width


def read_settings(values) -> Settings | pack_buckets.BucketSettings:
    """Makes the settings of the data set from the flags.

    Raises:
      ValueError: names the missing or contradictory flags.
    """
    _check_flags(values)
    shared = {
        "fps": values.fps,
        "validation_fraction": values.validation_fraction,
        "clips_per_shard": values.clips_per_shard,
        "limits": read_limits.Limits(
            values.damaged, values.max_megapixels, values.max_gap, values.max_repeats
        ),
        "selection": read_selection(values),
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
            f"frames: use at most {records.MAX_JPEG_SIDE // records.FRAMES_PER_STRIP} rows."
        )
    min_frames = values.min_frames or frames
    if min_frames > frames:
        raise ValueError(f"--min_frames={min_frames} exceeds --frames={frames}: lower it.")
    return Settings((height, width), frames=frames, min_frames=min_frames, **shared)


def read_selection(values) -> Selection:
    """Makes the settings of what is packed from the flags.

    Raises:
      ValueError: a bound makes no sense, an option has no effect, or PySceneDetect is missing.
    """
    bounds = filters.Filters(**{name: values[name].value for name in filters.NAMES})
    bounds.check()
    for option, needed in OPTIONS_OF.items():
        if values[option].value is not None and not values[needed].value:
            raise ValueError(
                f"--{option} has no effect without --{needed}: add --{needed}, or remove it."
            )
    threshold = distance = None
    if values.split_scenes:
        scenes.check_installed()
        threshold = values.scene_threshold
        threshold = scenes.THRESHOLD if threshold is None else threshold
        if not threshold > scenes.MIN_THRESHOLD:
            raise ValueError(
                f"invalid --scene_threshold={threshold:g}: set it above {scenes.MIN_THRESHOLD:g}, such as "
                f"{scenes.THRESHOLD:g}."
            )
    if values.drop_duplicates:
        given = values.duplicate_distance
        distance = duplicates.DISTANCE if given is None else given
    return Selection(threshold, bounds, distance)


def read_columns(values) -> tables.Columns:
    """Makes the names of the columns of a table from the flags."""
    captions = [name.strip() for name in (values.caption_column or "").split(",")]
    return tables.Columns(
        path=values.path_column or "",
        captions=tuple(filter(None, captions)),
        start=values.start_column or "",
        end=values.end_column or "",
        times=values.times_column or "",
    )


def _check_flags(values):
    """Raises ValueError for missing or mutually exclusive flags."""
    if not values.output:
        raise ValueError("--output is missing: set --output=FOLDER.")
    if not values.input and not values.synthetic:
        raise ValueError("nothing to pack: set --input=FOLDER, or --synthetic=moving_shapes.")
    if values["input"].present > 1:
        raise ValueError(
            f"--input is given {values['input'].present} times: put a pattern in quotes, as --input='shard-{{000..012}}"
            ".tar', so that the shell leaves it alone."
        )
    given = [flag for flag, _, _ in TABLE_FLAGS if getattr(values, flag) is not None]
    if values.synthetic and (given or values.video_folder):
        name = (given or ["video_folder"])[0]
        raise ValueError(f"--synthetic and --{name} are mutually exclusive: remove --{name}.")
    if values.times_column and (values.start_column or values.end_column):
        raise ValueError(
            "--times_column has both ends of the clips: remove --start_column and --end_column."
        )
    if values.caption_words and not values.synthetic:
        raise ValueError(
            "--caption_words writes captions of --synthetic videos: remove it with --input."
        )
    if not values.fps > 0:
        raise ValueError(f"invalid --fps={values.fps:g}: set it above 0.")
    for name in ("max_megapixels", "max_gap", "max_repeats"):
        if not getattr(values, name) > 0:
            raise ValueError(f"invalid --{name}={getattr(values, name):g}: set it above 0.")
    if values.buckets is not None:
        for name in ("size", "frames", "min_frames"):
            if getattr(values, name) is not None:
                raise ValueError(f"--buckets and --{name} are mutually exclusive: remove --{name}.")
    if values.ray_address is not None and values.engine != "ray":
        raise ValueError(
            "--ray_address has no effect without --engine=ray: add it, or remove this."
        )
    if values.synthetic and values.engine == "ray":
        raise ValueError("--synthetic and --engine=ray are mutually exclusive: remove --engine.")
    for name in ("buckets", "shard"):
        if values.synthetic and getattr(values, name) is not None:
            raise ValueError(f"--synthetic and --{name} are mutually exclusive: remove --{name}.")


def run(values) -> dict:
    """Runs the command.

    Args:
      values: parsed flags.
    Returns:
      The report, as `pack_folder.pack`.
    Raises:
      ValueError, OSError, WorkerDied: the message names the problem and the solution.
    """
    settings = read_settings(values)
    share = None if values.shard is None else command.parse_share(values.shard)
    workers = values.workers or count_usable_cpus()
    output = pathlib.Path(values.output)
    if not is_finished(output):
        check_output_folder(output, "--output")
    folder, origin = values.input, None
    if values.synthetic:
        folder = folder or output.resolve().with_name(f"{output.resolve().name}_videos")
        origin = {"kind": values.synthetic, "clips": values.clips, "seed": values.seed}
        if values.caption_words:  # data sets with short captions do not name it
            origin["caption_words"] = values.caption_words
        # Without reading the videos, which may have been deleted after packing.
        report = finished_report(output, settings_to_json(settings, origin))
        if report:
            return report
        _generate(folder, settings, origin, workers)
    options = {"workers": workers, "strict": values.strict, "share": share}
    names = ("follow_links", "max_caption_bytes", "video_folder")
    options |= {name: values[name].value for name in names} | {"columns": read_columns(values)}
    with contextlib.ExitStack() as stack:
        if values.engine == "ray":
            folder, output = os.path.abspath(folder), os.path.abspath(output)
            if values.video_folder:  # workers have another working directory
                options["video_folder"] = os.path.abspath(values.video_folder)
            videos = options["video_folder"] or folder
            while not os.path.isdir(videos):  # a table, an archive or a pattern: the folder above
                videos = os.path.dirname(videos)
            address = values.ray_address
            pool = stack.enter_context(ray_pool.connect(address, workers, [videos, output]))
            options |= {"pool": pool, "workers": values.workers or pool.workers}
        if values.buckets is not None:
            return pack_buckets.pack_buckets(folder, output, settings, **options)
        return pack_folder.pack(folder, output, settings, origin=origin, **options)


def _generate(folder, settings, origin, workers):
    """Generates the synthetic videos, with a progress bar."""
    if settings.size[0] != settings.size[1]:
        raise ValueError("--synthetic generates square videos: set --size=N.")
    with show_progress("Generating", origin["clips"], "video") as advance:
        synthetic.write_shapes(
            folder,
            origin["kind"],
            clips=origin["clips"],
            seed=origin["seed"],
            size=settings.size[0],
            frames=settings.frames,
            fps=settings.fps,
            caption_words=origin.get("caption_words", 0),
            workers=workers,
            on_progress=advance,
        )


def main(arguments):
    """Runs the command; returns the exit code."""
    command.refuse(arguments)
    command.log_progress()
    values = flags.FLAGS
    try:
        with command.explain_full_disk(values.output):
            report = run(values)
        command.say(summarize(report, values.output))
    except KeyboardInterrupt:
        command.say(
            "pack: stopped: call the same command again to resume after the finished shards."
        )
        return 130


if __name__ == "__main__":
    define_flags()
    command.start("pack", main, errors=(ValueError, OSError, WorkerDied))
