"""FVD and KVD while a run trains: of a small fixed number of clips, which the tag says, against held-out ones."""

from collections.abc import Callable, Mapping
from typing import Any

import jax
import numpy as np
from absl import logging

from videogen_jax.data import bucketed_data, pipeline
from videogen_jax.evaluation import clip_sets, frechet, i3d, i3d_weights, kernel_distance
from videogen_jax.evaluation.feature_cache import load_or_extract
from videogen_jax.generate import run_sampler
from videogen_jax.generate.generator import Generate
from videogen_jax.parallel import processes
from videogen_jax.run.text_conditioning import Texts
from videogen_jax.train.training_run import Run


def make_measure_fvd(
    run: Run,
    texts: Texts,
    sets: Mapping[str, pipeline.PackedData],
    generate: Generate | None,
) -> Callable[[Any, int, Any], None]:
    """FVD and KVD of the EMA's videos for captions drawn from training, the same and with the same seeds each time.

    So few clips bias FVD upwards: it compares steps of one run, and not with published scores. KVD is unbiased.

    Args:
      run: of a diffusion model, or of an autoencoder, whose FVD is not measured.
      texts: of its captions.
      sets: of `bucketed_data.open_buckets`.
      generate: of `generator.make_generator`.
    Returns:
      (writer, step, EMA) to nothing; does nothing where evaluation.fvd_every is 0.
    Raises:
      ValueError: the clips have too few frames, or there is no reference for them.
      FileNotFoundError: I3D's weights are not here.
    """
    config = run.config
    if not find_interval(run):
        return lambda writer, step, ema: None
    options = config.evaluation
    frames = min(config.data.frames, clip_sets.CLIP_FRAMES // options.fvd_repeat)
    window = clip_sets.Window(frames, repeat=options.fvd_repeat)
    with processes.propagate_errors():
        i3d.check_frames(window.frames * window.repeat)
        held_out = open_held_out(run, sets)
        count = min(options.fvd_clips, sum(held_out.lengths.get("validation", [])))
        if options.fvd_clips < 2:
            raise ValueError(
                f"evaluation.fvd_clips is {options.fvd_clips}: 2 are the least that have a spread."
            )
        if count < 2:
            raise ValueError(
                f"FVD wants 2 held-out clips at least, and {held_out.folder} has {count}: name packed clips in "
                "evaluation.reference, or set evaluation.fvd_every to 0."
            )
        prompts = bucketed_data.draw_captions(config.data.path, count, config.seed)
        text = texts.embed(prompts)
    condition = run_sampler.make_condition(run.model, text, config.sample.motion)
    first = jax.process_index() == 0
    with processes.propagate_errors():
        if first:
            extract = i3d.make_extractor(i3d_weights.load())
            decode = run.model.latent_space.make_decode(next(iter(sets.values())).latents)
            size = (config.data.height, config.data.width)
            read = clip_sets.read_data(held_out.folder, "validation", size)
            found = clip_sets.summarize(read, window, count)
            reference = load_or_extract(read, window, extract, i3d_weights.HASH, summary=found)

    def measure(writer: Any, step: int, ema: Any) -> None:
        videos = generate(ema, condition, list(range(count)))
        if not first:
            return
        # One at a time: all of them in pixels may be larger than memory.
        seen = (window.repeat_frames(window.crop(decode(video[None])[0])) for video in videos)
        ours = np.stack(list(extract(seen)))
        value = frechet.distance(ours, reference)
        low, high = frechet.bootstrap_interval(ours, reference)
        kernel = kernel_distance.distance(ours, reference)
        scores = {f"evaluation/fvd_{count}": value, f"evaluation/kvd_{count}": kernel}
        writer.write_scalars(step, scores)
        logging.info(
            "FVD of %d clips at step %d: %.1f (%.1f to %.1f)", count, step, value, low, high
        )

    return measure


def find_interval(run: Run) -> int:
    """Steps between two measurements; 0: never, as for autoencoders."""
    return run.config.evaluation.fvd_every if "evaluation" in run.config else 0


def open_held_out(run: Run, sets: Mapping[str, pipeline.PackedData]) -> pipeline.PackedData:
    """The data set whose validation clips are the reference.

    Raises:
      ValueError: it holds no pixels, or clips of several shapes.
    """
    config = run.config
    path = config.evaluation.reference
    found = list((bucketed_data.open_buckets(path) if path else sets).values())
    if len(found) > 1 or found[0].latents is not None:
        raise ValueError(
            "FVD compares with clips of one shape in pixels: name such packed clips in evaluation.reference (one "
            "bucket's folder will do), or set evaluation.fvd_every to 0."
        )
    data = found[0]
    if (
        data.fps != config.data.fps
        or min(data.height - config.data.height, data.width - config.data.width) < 0
    ):
        raise ValueError(
            f"The clips in {data.folder} have {data.height}x{data.width} pixels at {data.fps:g} frames/s, but this run "
            f"makes {config.data.height}x{config.data.width} at {config.data.fps:g}: name others in "
            "evaluation.reference, or set evaluation.fvd_every to 0."
        )
    return data
