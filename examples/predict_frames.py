"""Continues held-out clips from their first frames, several times each, and scores the best: docs/protocols/bair.md.

    python examples/predict_frames.py --workdir=runs/bair --input=runs/bair/test --output=runs/bair/predicted \
        --frames=30 --trajectories=100

--input holds name.mp4 and name.txt, or is a data set of pack, whose held-out clips are continued. The model is one with
known frames, which knows the first config.known.first. Each trajectory goes to OUTPUT/000, OUTPUT/001, ... under the
names of the clips, and their true frames to OUTPUT/reference, so that `evaluate --generated=OUTPUT/000
--reference=OUTPUT/reference --frames=30` gives the FVD of one. Trajectories that are there are not made again.
OUTPUT/predictions.json has, over the frames that were not known,

    PSNR, SSIM = mean over clips of the largest over trajectories of the mean over frames

and beside it those of the last known frame standing still, which a model should beat.
"""

import argparse
import itertools
import json
import sys
from pathlib import Path

import numpy as np

import videogen_jax
from videogen_jax.data import text_files, video_io
from videogen_jax.data.atomic_files import write_json
from videogen_jax.data.video_writer import write_lossless
from videogen_jax.evaluation import clip_sets, psnr_ssim

MAX_CAPTION_BYTES = 2**16


def read_clips(
    folder: Path, shape: tuple[int, int, int], fps: float
) -> dict[str, tuple[str, np.ndarray]]:
    """Name of each clip of a folder to its caption and its first frames.

    Args:
      folder: of name.mp4 and name.txt.
      shape: (T, H, W) of the frames wanted.
      fps: frames per second to read at.
    Returns:
      Name to (caption, (T, H, W, 3) uint8).
    Raises:
      ValueError: there is no clip, or one is too short or of another size.
    """
    clips = {}
    for path in sorted(folder.glob("*.mp4")):
        caption = text_files.read_text(path.with_suffix(".txt"), MAX_CAPTION_BYTES).strip()
        video = [frame for _, frame in video_io.read_frames(path, fps=fps)]
        if len(video) < shape[0]:
            raise ValueError(f"{path} has {len(video)} frames: lower --frames, or leave it out.")
        if video[0].shape[:2] != shape[1:]:
            height, width = video[0].shape[:2]
            raise ValueError(
                f"{path} has {height}x{width} pixels, but the model makes {shape[1]}x{shape[2]}: resize it first."
            )
        clips[path.stem] = caption, np.stack(video[: shape[0]])
    if not clips:
        raise ValueError(
            f"{folder} holds no mp4: arrange the test split with examples/protocols.py."
        )
    return clips


def read_data(
    folder: Path, shape: tuple[int, int, int], fps: float, count: int
) -> dict[str, tuple[str, np.ndarray]]:
    """The first held-out clips of a data set of pack, as `read_clips`.

    Args:
      folder: of the data set, in pixels or of latents that were encoded from it.
      shape: (T, H, W) of the frames wanted.
      fps: frames per second of the model.
      count: clips.
    Returns:
      Number of the clip to (caption of these frames, (T, H, W, 3) uint8).
    Raises:
      ValueError: the clips are too few, too short, or of another size or frame rate.
    """
    clips = {}
    folder = clip_sets.find_pixels(folder)
    for clip in itertools.islice(clip_sets.read_data(folder, "validation")(), count):
        if clip.fps != fps:
            raise ValueError(
                f"{folder} has clips of {clip.fps:g} frames/s, but the model makes {fps:g}: pack at its rate."
            )
        video = clip.video[: shape[0]]
        if video.shape[:3] != shape:
            raise ValueError(
                f"{folder} has clips of {'x'.join(map(str, clip.video.shape[:3]))}, and {'x'.join(map(str, shape))} "
                "are needed: lower --frames, or pack at the size of the model."
            )
        clips[f"{len(clips):04d}"] = clip.annotations.describe(range(shape[0])), video
    if len(clips) < count:
        raise ValueError(
            f"{folder} has {len(clips)} held-out clips: lower --num_clips of {count}, or hold more out."
        )
    return clips


def score(video: np.ndarray, prediction: np.ndarray) -> tuple[float, float]:
    """Means over frames of PSNR in dB and SSIM; both (T, H, W, 3) uint8."""
    psnr = psnr_ssim.psnr(video.astype(np.float64), prediction.astype(np.float64), 255.0)
    ssim = [psnr_ssim.ssim(*pair) for pair in zip(video, prediction, strict=True)]
    return float(psnr.mean()), float(np.mean(ssim))


def predict(model, clips, known: int, seed: int, output: Path) -> None:
    """Continues each clip once and writes it to a folder; clips that are there are not made again.

    Args:
      model: of `videogen_jax.load`.
      clips: of `read_clips`.
      known: first frames that the model is given.
      seed: of the first clip; the next ones count on.
      output: folder to write to.
    """
    output.mkdir(parents=True, exist_ok=True)
    names = list(clips)
    batches = model.plan_batches(
        [clips[name][0] for name in names],
        seeds=list(range(seed, seed + len(names))),
        known_frames=[dict(enumerate(clips[name][1][:known])) for name in names],
    )
    for part, make in batches:
        paths = [output / f"{names[index]}.mp4" for index in part]
        if all(path.is_file() for path in paths):
            continue
        for index, path, video in zip(part, paths, make(), strict=True):
            true = clips[names[index]][1]
            video = np.concatenate([true[:known], video[known : len(true)]])
            write_lossless(path, video, model.fps)


def evaluate(clips, known: int, folders: list[Path]) -> dict:
    """The scores of predictions.json, from the written trajectories.

    Args:
      clips: of `read_clips`.
      known: first frames that the model was given.
      folders: of the trajectories.
    """
    best, still = [], []
    for name, (_, video) in clips.items():
        true = video[known:]
        scores = []
        for folder in folders:
            made = [frame for _, frame in video_io.read_frames(folder / f"{name}.mp4")]
            if len(made) != known + len(true):
                raise ValueError(
                    f"{folder / name}.mp4 has {len(made)} frames, and {known + len(true)} are wanted: give --output an "
                    "empty folder."
                )
            scores.append(score(true, np.stack(made[known:])))
        best.append(np.max(scores, axis=0))
        still.append(score(true, np.repeat(video[known - 1 : known], len(true), axis=0)))
    means = [np.mean(values, axis=0).tolist() for values in (best, still)]
    return {
        "clips": len(clips),
        "trajectories": len(folders),
        "known": known,
        "predicted": len(next(iter(clips.values()))[1]) - known,
        "best": dict(zip(("psnr", "ssim"), means[0], strict=True)),
        "standing still": dict(zip(("psnr", "ssim"), means[1], strict=True)),
    }


def main(arguments: list[str] | None = None) -> int:
    """Runs the script; returns the exit code."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--workdir", type=Path, required=True, help="Folder of the run.")
    parser.add_argument("--input", type=Path, required=True, help="Folder of clips, or data set.")
    parser.add_argument("--num_clips", type=int, default=64, help="Of a data set.")
    parser.add_argument("--output", type=Path, required=True, help="Folder to write to.")
    parser.add_argument("--frames", type=int, default=30, help="Of a clip, known ones included.")
    parser.add_argument("--trajectories", type=int, default=100, help="Predictions per clip.")
    parser.add_argument("--batch_size", type=int, default=64, help="Videos at a time.")
    given = parser.parse_args(arguments)
    try:
        model = videogen_jax.load(given.workdir, batch_size=given.batch_size)
        known = model.model.config.known.first
        if not known < given.frames <= model.shape[0]:
            parser.error(f"--frames is {given.frames}: give {known + 1} to {model.shape[0]}.")
        shape = (given.frames, *model.shape[1:3])
        if (given.input / "dataset_info.json").is_file():
            clips = read_data(given.input, shape, model.fps, given.num_clips)
        else:
            clips = read_clips(given.input, shape, model.fps)
        (given.output / "reference").mkdir(parents=True, exist_ok=True)
        for name, (_, video) in clips.items():
            write_lossless(given.output / "reference" / f"{name}.mp4", video, model.fps)
        folders = [given.output / f"{number:03d}" for number in range(given.trajectories)]
        for number, folder in enumerate(folders):
            predict(model, clips, known, number * len(clips), folder)
        scores = evaluate(clips, known, folders)
    except (ValueError, OSError) as error:
        parser.error(str(error))
    write_json(given.output / "predictions.json", scores)
    print(json.dumps(scores, indent=1))
    return 0


if __name__ == "__main__":
    sys.exit(main())
