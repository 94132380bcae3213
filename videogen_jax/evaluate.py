"""Measures whether generated videos show what their prompts asked for.

    python -m videogen_jax.evaluate --generated=FOLDER [--output=report.json]

or, for what `videogen_jax.sample` left in a run's folder,

    python -m videogen_jax.evaluate --workdir=runs/quickstart

reads every video of FOLDER with its prompt (from `samples.json`, which `videogen_jax.sample`
writes, else from `name.txt` beside `name.mp4`), judges colour, direction and shape from the pixels
alone (`evaluation/moving_shapes.py`), prints the three rates with N and the Wilson 95 % interval,
and writes them with the verdict on each video to FOLDER/evaluation.json. A video that cannot be
read counts as wrong and is listed.

`--require="colour=0.95,direction=0.80,shape=0.80"` makes it a gate: exit code 1 below any of them.
`--logdir=DIR --step=N` adds the three rates to the TensorBoard curves of a training run.
"""

import json
import math
import os
from pathlib import Path

import numpy as np
from absl import flags

from videogen_jax import command
from videogen_jax.data.synthetic import parse_caption
from videogen_jax.data.video_io import WRITABLE_SUFFIXES, read_frames
from videogen_jax.evaluation import moving_shapes

RATES = ("colour", "direction", "shape")
MAX_REPEATS = 16  # of one frame; a longer halt is judged no differently


def define_flags(flag_values=flags.FLAGS):
    """Defines the command's flags; not done on import, so that verbs can import one another."""
    flags.DEFINE_string(
        "workdir",
        None,
        "Folder of a run: stands for --generated=WORKDIR/generated --logdir=WORKDIR/tensorboard and "
        "the --step of its samples.json.",
        flag_values=flag_values,
    )
    flags.DEFINE_string(
        "generated", None, "Folder of videos with their prompts.", flag_values=flag_values
    )
    flags.DEFINE_string(
        "output", None, "Report to write [FOLDER/evaluation.json].", flag_values=flag_values
    )
    flags.DEFINE_string(
        "require",
        "",
        'Lowest rates that pass, such as "colour=0.95,direction=0.80,shape=0.80".',
        flag_values=flag_values,
    )
    flags.DEFINE_string(
        "logdir", None, "TensorBoard folder to log the rates to.", flag_values=flag_values
    )
    flags.DEFINE_integer(
        "step", None, "Training step to log them under.", lower_bound=0, flag_values=flag_values
    )


def list_videos(folder):
    """Lists the videos of a folder with their prompts.

    `samples.json` decides where there is one: {"videos": [{"file": "000.mp4", "prompt": "...",
    "seed": 0}, ...]}. Else each video's prompt is the text of `name.txt` beside it.

    Args:
      folder: path of the folder.
    Returns:
      (entries, not_listed): list of {"file", "prompt", maybe "seed"}, and the names of videos in
      the folder that `samples.json` does not mention.
    Raises:
      ValueError: no folder, no videos, no prompt for a video, or a damaged `samples.json`.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise ValueError(f"{folder} is not a folder: give --generated the folder of the videos.")
    found = sorted(
        path.name
        for path in folder.iterdir()
        if path.suffix.lower() in WRITABLE_SUFFIXES and not path.name.startswith(".")
    )
    listing = folder / "samples.json"
    if listing.is_file():
        entries = _read_listing(listing)
        named = {entry["file"] for entry in entries}
        return entries, [name for name in found if name not in named]
    if not found:
        raise ValueError(
            f"{folder} holds no videos: it needs {', '.join(WRITABLE_SUFFIXES)} files, each with its "
            "prompt in name.txt, or the output of videogen_jax.sample."
        )
    entries = []
    for name in found:
        text = folder / (Path(name).stem + ".txt")
        try:
            prompt = text.read_text(encoding="utf-8").strip()
        except FileNotFoundError:
            raise ValueError(
                f"{folder / name} has no prompt: write it to {text.name} beside the video."
            ) from None
        except UnicodeDecodeError:
            raise ValueError(f"{text} is not UTF-8 text: save the prompt as UTF-8.") from None
        entries.append({"file": name, "prompt": prompt})
    return entries, []


def _read_listing(path):
    """Reads and checks `samples.json`; returns its entries cut down to file, prompt and seed."""
    advice = "make it again with videogen_jax.sample, or delete it to read name.txt files instead."
    try:
        listing = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:  # JSONDecodeError and UnicodeDecodeError
        raise ValueError(f"{path} is not valid JSON ({error}): {advice}") from None
    videos = listing.get("videos") if isinstance(listing, dict) else None
    if not isinstance(videos, list) or not videos:
        raise ValueError(f'{path} names no "videos": {advice}')
    entries = []
    for index, video in enumerate(videos):
        fields = video if isinstance(video, dict) else {}
        if not all(isinstance(fields.get(key), str) for key in ("file", "prompt")):
            raise ValueError(f'video {index} of {path} lacks "file" or "prompt": {advice}')
        entries.append({key: fields[key] for key in ("file", "prompt", "seed") if key in fields})
    return entries


def evaluate_folder(folder):
    """Judges every video of a folder against its prompt.

    Args:
      folder: path of the folder; see `list_videos`.
    Returns:
      dict with "generated", then what `moving_shapes.caption_rates` returns, its "videos" with
      "file" and "seed" added, then "unreadable": [{"file", "reason"}], which are counted as wrong,
      and "not_listed": videos that `samples.json` does not mention, which are not counted.
    Raises:
      ValueError: as `list_videos`, or a prompt is not of the moving-shapes grammar.
    """
    entries, not_listed = list_videos(folder)
    for entry in entries:
        try:
            parse_caption(entry["prompt"])
        except ValueError:
            raise ValueError(
                f"the prompt of {Path(folder) / entry['file']}, {_shorten(entry['prompt'])!r}, is "
                'not like "a red circle moving up left": only such prompts can be judged from '
                "pixels."
            ) from None
    unreadable = []

    def read_all():
        for entry in entries:
            video, reason = _try_to_read(Path(folder) / entry["file"])
            if video is None:
                unreadable.append({"file": entry["file"], "reason": reason})
            yield video

    report = moving_shapes.caption_rates(read_all(), [entry["prompt"] for entry in entries])
    for entry, record in zip(entries, report["videos"], strict=True):
        record.update({key: entry[key] for key in ("file", "seed") if key in entry})
    return {
        "generated": str(folder),
        **report,
        "unreadable": unreadable,
        "not_listed": not_listed,
    }


def _try_to_read(path):
    """Returns (video, None), or (None, one line that says why it cannot be read)."""
    try:
        return read_evenly(path), None
    except Exception as error:  # a decoder fails in ways of its own; none may end the evaluation
        return None, _shorten(" ".join(f"{error}".split()) or type(error).__name__, 200)


def read_evenly(path):
    """Reads a video as frames of equal duration: a frame shown for k times the shortest is repeated.

    A GIF shows equal neighbouring frames as one longer one, so that motion that halts would look
    steady if its frames were merely counted.

    Args:
      path: a video file.
    Returns:
      (T, H, W, 3) uint8 RGB.
    Raises:
      VideoError, FileNotFoundError: as `video_io.read_frames`.
      ValueError: the frame size changes on the way.
    """
    seconds, frames = zip(*read_frames(path), strict=True)
    gaps = np.diff(seconds)
    if len(gaps) and gaps.min() > 0:
        repeats = np.clip(np.rint(gaps / gaps.min()), 1, MAX_REPEATS).astype(int)
        return np.repeat(np.stack(frames), [*repeats, 1], axis=0)
    return np.stack(frames)


def _shorten(text, length=80):
    """Cuts a text that would flood a line of output."""
    return text if len(text) <= length else text[: length - 3] + "..."


def format_table(report):
    """Formats the rates as the small table that the command prints."""
    lines = [f"{'':<11}{'rate':>7}{'right':>7}{'of':>6}{'95 % interval':>20}{'chance':>9}"]
    for name in (*RATES, "all"):
        rate = report[name]
        interval = f"{rate['low']:.1%} - {rate['high']:.1%}"
        lines.append(
            f"{'all three' if name == 'all' else name:<11}{rate['rate']:>7.1%}{rate['right']:>7}"
            f"{report['num_videos']:>6}{interval:>20}{rate['chance']:>9.1%}"
        )
    return "\n".join(lines)


def parse_requirements(text):
    """Reads "colour=0.95,shape=0.8" into {"colour": 0.95, "shape": 0.8}.

    Raises:
      ValueError: an unknown name, or a value that is not a rate in [0, 1].
    """
    required = {}
    for item in filter(None, (part.strip() for part in text.split(","))):
        name, _, value = (part.strip() for part in item.partition("="))
        try:
            rate = float(value)
        except ValueError:
            rate = math.nan
        if name not in (*RATES, "all") or not 0.0 <= rate <= 1.0:
            raise ValueError(
                f"--require does not understand {item!r}: write it like "
                '"colour=0.95,direction=0.80,shape=0.80", each rate between 0 and 1.'
            )
        required[name] = rate
    return required


def log_rates(report, logdir, step):
    """Writes the three rates to TensorBoard as evaluation/colour, direction and shape.

    Raises:
      ValueError: clu or TensorBoard is not installed.
    """
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")  # TensorFlow greets on stderr otherwise
    try:
        from clu import metric_writers  # takes seconds, for it imports TensorFlow
    except ImportError as error:
        raise ValueError(
            f"--logdir needs the module {error.name}: pip install -r requirements.txt."
        ) from None
    writer = metric_writers.SummaryWriter(str(logdir))
    writer.write_scalars(step, {f"evaluation/{name}": report[name]["rate"] for name in RATES})
    writer.flush()
    writer.close()


def write_report(report, path):
    """Writes the report as JSON, whole or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    draft = path.with_name(f".{path.name}.unfinished")
    draft.write_text(json.dumps(report, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
    draft.replace(path)


def read_places(values):
    """Says where the videos are and where their rates are logged.

    Returns:
      (folder, logdir or None, step or None).
    Raises:
      ValueError: flags are missing or contradict each other.
    """
    given = (values.generated, values.logdir, values.step)
    if values.workdir is not None:
        if given != (None, None, None):
            raise ValueError(
                "--workdir stands for --generated, --logdir and --step: leave them out."
            )
        generated = Path(values.workdir) / "generated"
        listing = generated / "samples.json"
        if not listing.is_file():
            raise ValueError(f"There is no {listing}: run videogen_jax.sample --workdir first.")
        step = json.loads(listing.read_text(encoding="utf-8"))["step"]
        return generated, Path(values.workdir) / "tensorboard", step
    if values.generated is None:
        raise ValueError(
            "--workdir or --generated is missing: name the run, or a folder of videos."
        )
    if (values.logdir is None) != (values.step is None):
        raise ValueError("--logdir and --step go together: give both or neither.")
    return Path(values.generated), values.logdir, values.step


def run(values):
    """Evaluates as the flags say; the body of the command.

    Args:
      values: parsed flags, see `define_flags`.
    Raises:
      ValueError: anything the user can mend, a rate below --require included.
      OSError: the report or the log cannot be written.
    """
    generated, logdir, step = read_places(values)
    required = parse_requirements(values.require)
    report = evaluate_folder(generated)
    output = Path(values.output or generated / "evaluation.json")
    write_report(report, output)
    print(format_table(report))
    for video in report["unreadable"]:
        print(f"counted as wrong, unreadable: {video['file']}: {video['reason']}")
    for name in report["not_listed"]:
        print(f"not counted, not in samples.json: {name}")
    print(f"verdict on each video: {output}")
    if logdir is not None:
        log_rates(report, logdir, step)
    below = [
        f"{name} {report[name]['rate']:.1%} < {rate:.1%}"
        for name, rate in required.items()
        if report[name]["rate"] < rate
    ]
    if below:
        raise ValueError(
            f"below what --require asks: {', '.join(below)}; {output} says which videos failed."
        )


def main(arguments):
    """Runs the verb."""
    command.refuse(arguments)
    run(flags.FLAGS)


if __name__ == "__main__":
    define_flags()
    command.start("evaluate", main)
