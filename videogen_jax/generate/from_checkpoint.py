"""A trained model as others use it: captions and seeds in, videos out, with the recipe that made them."""

import functools
import itertools
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import ml_collections
import numpy as np
from absl import logging
from jax.sharding import Mesh, NamedSharding

from videogen_jax import __version__
from videogen_jax.data import bucketed_data, pipeline
from videogen_jax.data.latent_records import LatentInfo
from videogen_jax.generate import known_frames, run_rollout, run_sampler
from videogen_jax.generate.generator import make_generator
from videogen_jax.generate.rollout import roll
from videogen_jax.models.chunks import to_pixels
from videogen_jax.parallel import mesh as meshes
from videogen_jax.run import checkpoint, ema_snapshots, saved_config, text_conditioning
from videogen_jax.run import model as run_model
from videogen_jax.train import autoencoder_run, checks, log_samples

Timeline = Sequence[tuple[int, str]]  # first frame (from 0, rising) and caption


class Model(NamedTuple):
    """A run's average on a mesh, ready to make videos."""

    config: ml_collections.ConfigDict
    run: run_model.Run
    params: Any
    text: Any  # rows of the captions
    null_text: Any  # of the negative prompt, without the batch axis
    latents: LatentInfo | None
    options: dict[str, Any]  # of `run_sampler.sampler_options`
    motion: float
    recipe: dict[str, Any]  # what is needed to make the videos again


def make_videos(
    workdir: Path,
    prompts: Sequence[str],
    seeds: Sequence[int],
    *,
    known: Sequence[known_frames.Frames] = (),
    **choices: Any,
) -> tuple[Iterator[np.ndarray], dict[str, Any], ml_collections.ConfigDict]:
    """Restores a run's EMA and makes videos of it, on all devices; the checkpoint is not touched.

    Args:
      workdir: of the run.
      prompts: N captions.
      seeds: N seeds; each makes the same video in any company.
      known: frames that the videos are to show, of each of them, or of all of them if there is one; empty for none.
      **choices: of `open_model`.
    Returns:
      (batches of videos (B, T, H, W, 3) uint8 in order, all that is needed to make them again, the run's config).
    Raises:
      ValueError: an option, a prompt, a frame or the checkpoint does not fit; the sentence says how.
      OSError: a file cannot be read.
    """
    model = open_model(workdir, prompts, len(prompts), run_sampler.choose_sample_mesh, **choices)
    config = model.config
    known_frames.check_known(config, known)
    if not known and not config.tasks.text:
        raise ValueError(
            "This model never learned videos from their text alone (tasks.text=0): give it a first frame (--image), or "
            "--num_frames where it goes on from one."
        )
    decode = run_sampler.make_decode(config, model.latents)
    programs = run_sampler.make_run_programs(model.run, model.options, model.null_text)
    generate = make_generator(programs)
    logging.info(
        "Sampling %d videos from step %d on %d devices.",
        *(len(seeds), model.recipe["step"], model.run.mesh.size),
    )
    condition = run_sampler.make_condition(config, model.text, model.motion)
    if known:
        frames = known_frames.encode_known(config, model.latents, known)
        frames = (np.repeat(part, len(prompts) // len(known), axis=0) for part in frames)
        condition |= known_frames.tell_known(config, *frames, seeds)

    def make() -> Iterator[np.ndarray]:
        for start in range(0, len(prompts), programs.batch_size):
            part = slice(start, start + programs.batch_size)
            own = jax.tree.map(lambda column: column[part], condition)  # noqa: B023
            yield decode(generate(model.params, own, list(seeds[part])))

    return make(), model.recipe, config


def make_long_videos(
    workdir: Path,
    timelines: Sequence[Timeline],
    seeds: Sequence[int],
    num_frames: int,
    *,
    image: np.ndarray | None = None,
    chunk: int | None = None,
    prefix: int | None = None,
    **choices: Any,
) -> tuple[Iterator[Iterator[np.ndarray]], dict[str, Any], ml_collections.ConfigDict]:
    """Restores a run's EMA and makes videos of any length, which are never whole in memory.

    Args:
      workdir: of the run.
      timelines: N, the captions of each video and the frames from which on they hold; a chunk is made by the caption
        that holds at its first frame.
      seeds: N seeds.
      num_frames: of each video.
      image: (h, w, 3) uint8, the first frame of all videos.
      chunk: latent frames made at a time; by default the config's.
      prefix: latent frames that are remembered; by default the most that the model was trained with.
      **choices: of `open_model`.
    Returns:
      (for each batch of videos, in order, an iterator over what comes next of them, (B, n, H, W, 3) uint8; all that is
      needed to make them again; the run's config).
    Raises:
      ValueError: the model makes no long videos, or something does not fit; the sentence says how.
      OSError: a file cannot be read.
    """
    config = saved_config.read_config(workdir)
    check_diffusion(workdir, config)
    plan = run_rollout.plan_rollout(config, chunk, prefix)
    written = run_rollout.check_beginning(config, plan, image is not None)
    choose = lambda config, *rest: run_rollout.choose_rollout_mesh(config, plan, *rest)  # noqa: E731
    captions = sorted({caption for timeline in timelines for _, caption in timeline})
    grid = run_rollout.chunk_grid(config, plan)
    model = open_model(workdir, captions, len(timelines), choose, grid=grid, **choices)
    rollout = run_rollout.make_run_rollout(model.run, plan, model.options, model.null_text)
    shape = run_rollout.chunk_shape(config, plan)
    beginning = None
    if image is not None:
        video, mask = known_frames.encode_known(config, model.latents, [{0: image}])
        video, mask = video[:, : shape[0]], mask[:, : shape[0]]
        beginning = video[:, :1] if written else None
    begun = int(written)
    run_rollout.tell_hidden(plan, begun)
    count = run_rollout.count_chunks(config, plan, num_frames, begun)
    open_decode = run_rollout.make_open_decode(config, model.latents, 1 if written else shape[0])
    logging.info(
        "Making %d videos of %d frames from step %d in chunks of %d latent frames, on %d devices.",
        *(len(seeds), num_frames, model.recipe["step"], plan.chunk, model.run.mesh.size),
    )

    def condition_of(part: np.ndarray, chunk: int) -> dict[str, Any]:
        first = run_rollout.first_frame(config, begun + chunk * shape[0])
        spoken = [find_caption(timelines[i], first) for i in part]
        index = np.array([captions.index(caption) for caption in spoken])
        text = jax.tree.map(lambda column: column[index], model.text)
        condition = run_sampler.make_condition(config, text, model.motion, shape)
        if image is not None and not written and chunk == 0:
            told = (np.repeat(array, len(part), axis=0) for array in (video, mask))
            condition |= known_frames.tell_known(config, *told, [seeds[i] for i in part])
        return condition

    def make_batch(part: np.ndarray) -> Iterator[np.ndarray]:
        # The last batch is filled up.
        filled = np.resize(part, rollout.batch_size)
        decode = open_decode(len(part))
        first = None if beginning is None else np.repeat(beginning, rollout.batch_size, axis=0)
        left = num_frames
        chunks = roll(
            rollout,
            model.params,
            functools.partial(condition_of, filled),
            np.array([seeds[i] for i in filled]),
            count,
            first,
        )
        if first is not None:
            latent = first if model.latents is not None else np.asarray(to_pixels(first))
            chunks = itertools.chain([latent], chunks)
        for video in chunks:
            frames = decode(video[: len(part)])[:, :left]
            left -= frames.shape[1]
            yield frames

    def make() -> Iterator[Iterator[np.ndarray]]:
        for start in range(0, len(seeds), rollout.batch_size):
            yield make_batch(np.arange(start, min(start + rollout.batch_size, len(seeds))))

    recipe = model.recipe | {
        "num_frames": num_frames,
        "chunk": plan.chunk,
        "prefix_lengths": list(plan.lengths),
        "prefix_noise": config.prefix.sampling_noise,
    }
    return make(), recipe, config


def find_caption(timeline: Timeline, frame: int) -> str:
    """The caption that holds at a frame: the last one whose own frame is this one or earlier."""
    return [caption for first, caption in timeline if first <= frame][-1]


def open_model(
    workdir: Path,
    captions: Sequence[str],
    count: int,
    choose_mesh: Callable[..., Mesh],
    *,
    step: int | None = None,
    ema: str | None = None,
    ema_width: float | None = None,
    dtype: str | None = None,
    motion: float | None = None,
    negative_prompt: str = "",
    batch_size: int = 16,
    grid: tuple[int, int, int] | None = None,
    **options: Any,
) -> Model:
    """Restores a run's EMA for sampling.

    Args:
      workdir: of the run.
      captions: to embed.
      count: videos that are to be made.
      choose_mesh: (config, count, devices) to the mesh.
      step: of the checkpoint; by default the newest.
      ema: name of the moving average; by default the first one.
      ema_width: relative width of a power average to make of the run's snapshots instead.
      dtype: of the matrix products; by default the config's.
      motion: bucket of the motion score; by default the config's.
      negative_prompt: what the videos shall not show.
      batch_size: videos at a time.
      grid: (T, H, W) of the tokens that the model sees at a time; by default a clip's.
      **options: lines of config.sample in the place of the config's.
    Returns:
      The model.
    Raises:
      ValueError: an option or the checkpoint does not fit; the sentence says how.
      OSError: a file cannot be read.
    """
    if ema is not None and ema_width is not None:
        raise ValueError("--ema names an average and --ema_width makes one: give one of them.")
    config = saved_config.read_config(workdir)
    check_diffusion(workdir, config)
    if dtype is not None:
        with config.unlocked():
            config.train.precision = dtype
    given = run_sampler.sampler_options(config)
    if given["known_guidance_scale"] == given["guidance_scale"]:
        # One scale for both in the config, and so where another is chosen.
        both = options.get("guidance_scale", given["guidance_scale"])
        given["known_guidance_scale"] = both
    options = given | options
    options["batch_size"] = min(batch_size, count)
    run_sampler.check_known_guidance(config, options["known_guidance_scale"])
    motion = config.sample.motion if motion is None else motion
    metadata, step = read_metadata(workdir, step)
    own_texts = text_conditioning.restore_texts(config, metadata)
    rows = own_texts.embed([*captions, negative_prompt])
    text = jax.tree.map(lambda column: column[:-1], rows)
    null_text = jax.tree.map(lambda column: column[-1], rows)
    run = run_model.make_run(
        config, choose_mesh(config, count, jax.devices()), own_texts.null, grid
    )
    params = restore(run, workdir, step, ema, ema_width)
    latents = metadata.get("latents")
    recipe = {
        "workdir": str(workdir),
        "step": step,
        "weights": ema or run.ema_name if ema_width is None else f"width {ema_width}",
        "negative_prompt": negative_prompt,
        "motion": motion,
        "dtype": config.train.precision,
        "version": __version__,
        **{name: value for name, value in options.items() if name != "batch_size"},
    }
    latents = latents and LatentInfo(**latents)
    return Model(config, run, params, text, null_text, latents, options, motion, recipe)


def check_diffusion(workdir: Path, config: ml_collections.ConfigDict) -> None:
    """Refuses the run of an autoencoder."""
    if checks.is_autoencoder(config):
        raise ValueError(
            f"{workdir} is the run of an autoencoder, which makes no videos by itself: name the --workdir of a "
            "diffusion model."
        )


def read_metadata(workdir: Path, step: int | None) -> tuple[dict[str, Any], int]:
    """What was saved with a checkpoint, and its step.

    Raises:
      CheckpointError: it is not there.
    """
    with checkpoint.open_checkpoints(workdir, read_only=True) as manager:
        step = checkpoint.find_step(manager, step)
        return checkpoint.restore_metadata(manager, step), step


def restore(
    run: run_model.Run, workdir: Path, step: int, ema: str | None, ema_width: float | None
) -> Any:
    """A run's average, laid out on its mesh.

    Raises:
      CheckpointError: it is not there, or another model's.
    """
    abstract = run.abstract.params
    if ema_width is not None:
        params = ema_snapshots.reconstruct(
            workdir, abstract, run.config.ema.widths, ema_width, step
        )
        return jax.device_put(params, run.shardings.params)
    with checkpoint.open_checkpoints(workdir, read_only=True) as manager:
        return checkpoint.restore_ema(manager, abstract, ema or run.ema_name, step)[0]


def reconstruct_clips(
    workdir: Path,
    count: int,
    *,
    step: int | None = None,
    ema: str | None = None,
    batch_size: int = 16,
) -> tuple[Iterator[np.ndarray], dict[str, Any], int]:
    """Held-out clips of an autoencoder's run, each followed by what its EMA makes of it.

    Args:
      workdir: of the run.
      count: clips at most.
      step: of the checkpoint; by default the newest.
      ema: name of the moving average; by default the first one.
      batch_size: clips at a time, on each device.
    Returns:
      (batches (2 B, T, H, W, 3) uint8, what is needed to make them again, clips).
    Raises:
      ValueError: the data set has no held-out clips, or the checkpoint is another model's.
    """
    config = saved_config.read_config(workdir)
    devices = jax.local_devices()
    mesh = meshes.make_mesh(data=len(devices), devices=devices)
    run = autoencoder_run.make_run(config, mesh)
    _, step = read_metadata(workdir, step)
    params = restore(run, workdir, step, ema, None)
    data = log_samples.find_held_out(config, bucketed_data.open_buckets(config.data.path))
    if data is None:
        raise ValueError(f"{config.data.path} has no held-out clips of the run's shape.")
    count = min(count, sum(data.lengths["validation"]))
    rows = min(batch_size, count) * mesh.size
    batches = pipeline.make_validation_clips(
        data,
        batch_size=rows,
        frames=config.data.frames,
        num_batches=-(-count // rows),
        size=checks.make_augmentation(config).size,
    )
    recipe = {
        "workdir": str(workdir),
        "step": step,
        "weights": ema or run.ema_name,
        "version": __version__,
        "generated": "reconstructions of the validation clips",
    }
    place = NamedSharding(mesh, meshes.BATCH)
    program = jax.jit(functools.partial(autoencoder_run.reconstruct, run))

    def make() -> Iterator[np.ndarray]:
        left = count
        for batch in batches:
            video = batch["video"][: max(left, 0)]
            made = np.asarray(program(params, jax.device_put(batch["video"], place)))[: len(video)]
            yield autoencoder_run.pair_up(video, made)
            left -= len(video)

    return make(), recipe, count
