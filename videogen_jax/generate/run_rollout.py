"""Long videos of a run: which chunks and prefixes it was trained for, its rollout, and the way to pixels on the fly."""

import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import ml_collections
import numpy as np
from absl import logging
from jax.sharding import Mesh

from videogen_jax.data.latent_records import LatentInfo
from videogen_jax.diffusion.tasks import allowed_lengths
from videogen_jax.generate import run_sampler
from videogen_jax.generate.rollout import Rollout, make_rollout
from videogen_jax.models.chunks import open_streams
from videogen_jax.parallel.sequence_parallel import check_tokens
from videogen_jax.run import model as run_model
from videogen_jax.run.model import Run
from videogen_jax.run.state import compute_dtype


class Plan(NamedTuple):
    """How a long video is made of chunks."""

    chunk: int  # latent frames made at a time
    lengths: tuple[int, ...]  # prefixes to go on from, in latent frames


def plan_rollout(
    config: ml_collections.ConfigDict, chunk: int | None = None, prefix: int | None = None
) -> Plan:
    """How a model makes long videos.

    Args:
      config: of the run.
      chunk: latent frames made at a time; by default the config's.
      prefix: latent frames that are remembered; by default the most that it was trained with.
    Returns:
      The plan.
    Raises:
      ValueError: the model makes no long videos, or was not trained for these numbers; the sentence names those.
    """
    if not config.tasks.prefix or config.model.attention != "factorized":
        raise ValueError(
            f"This model makes videos of {config.data.frames} frames and goes on from none (model.causal is "
            f"{config.model.causal}, tasks.prefix {config.tasks.prefix:g}, model.attention "
            f"{config.model.attention!r}): leave --num_frames out, or train one like configs/long_512.py."
        )
    frames = run_model.token_grid(config)[0]
    chunk = config.prefix.chunk if chunk is None else chunk
    trained = sorted(config.prefix.lengths)
    # What goes on from the first chunk must find the shortest prefix there.
    least, most = trained[0], frames - trained[0]
    if least > most:
        raise ValueError(
            f"This model was trained on {frames} latent frames that go on from {least} at least, so that none of its "
            "chunks is long enough to go on from: train one with a shorter one among prefix.lengths."
        )
    if not least <= chunk <= most:
        raise ValueError(
            f"A chunk of {chunk} latent frames is none that the model was trained with: its windows have {frames}, "
            f"which go on from {least} at least; choose one of {least} to {most}."
        )
    allowed = allowed_lengths(trained, frames, chunk)
    if prefix is not None and prefix not in allowed:
        raise ValueError(
            f"A prefix of {prefix} latent frames ahead of a chunk of {chunk} is none that the model was trained with: "
            f"choose one of {', '.join(map(str, allowed))}."
        )
    lengths = tuple(length for length in allowed if prefix is None or length <= prefix)
    return Plan(chunk, lengths)


def tell_hidden(plan: Plan, begun: int) -> None:
    """Says in the log where frames that were made are not seen, since no prefix of training is as long."""
    made = range(begun or plan.chunk, max(plan.lengths), plan.chunk)
    if hidden := [count for count in made if count not in plan.lengths]:
        logging.warning(
            "Behind %s latent frames a chunk sees fewer of them: prefix.lengths of training are %s.",
            *(" and ".join(map(str, hidden)), ", ".join(map(str, plan.lengths))),
        )


def check_beginning(config: ml_collections.ConfigDict, plan: Plan, pictured: bool) -> bool:
    """How a long video begins.

    Args:
      config: of the run.
      plan: of `plan_rollout`.
      pictured: a first frame is given.
    Returns:
      Whether the picture is the first latent frame, which the rest goes on from; else it is told beside the first
      chunk, or there is none.
    Raises:
      ValueError: the model was not trained to begin so.
    """
    if not pictured:
        if not config.tasks.text:
            raise ValueError(
                "This model was trained to go on from frames alone (tasks.text=0): give it the first one with --image."
            )
        return False
    if config.tasks.image or config.tasks.frames:
        return False
    if 1 not in plan.lengths or config.model.patch_size[0] != 1:
        raise ValueError(
            f"This model was not trained to begin with a picture (tasks.image is 0, prefix.lengths are {plan.lengths}, "
            f"patches are of {config.model.patch_size[0]} frames): leave --image out, or train one with tasks.image "
            "above 0, or with 1 in prefix.lengths and patches of one frame."
        )
    return True


def chunk_shape(config: ml_collections.ConfigDict, plan: Plan) -> tuple[int, int, int, int]:
    """(F, H, W, C) of a chunk as the model sees it."""
    return (plan.chunk * config.model.patch_size[0], *run_model.video_shape(config)[1:])


def chunk_grid(config: ml_collections.ConfigDict, plan: Plan) -> tuple[int, int, int]:
    """(T, H, W) of a chunk's tokens."""
    return (plan.chunk, *run_model.token_grid(config)[1:])


def choose_rollout_mesh(
    config: ml_collections.ConfigDict, plan: Plan, count: int, devices: Sequence[jax.Device]
) -> Mesh:
    """All devices, as of `run_sampler.choose_sample_mesh`, for the tokens of a chunk."""
    grid = chunk_grid(config, plan)
    check = lambda mesh: check_tokens(mesh, grid, "factorized", config.model.num_heads)  # noqa: E731
    return run_sampler.choose_mesh(count, devices, check)


def make_run_rollout(
    run: Run, plan: Plan, options: dict[str, Any], null_text: Any = None
) -> Rollout:
    """The config's sampler, chunk by chunk.

    Args:
      run: of `model.make_run`.
      plan: of `plan_rollout`.
      options: of `run_sampler.sampler_options`.
      null_text: of a negative prompt, without the batch axis; by default that of no caption.
    Returns:
      The rollout.
    """
    config, model = run.config, run.config.model
    options = dict(options)
    if options.pop("first_frame_guidance_scale") is not None:
        logging.warning(
            "A long video has no last frame for guidance to grow to: guidance_scale is %g everywhere.",
            options["guidance_scale"],
        )
    grid = run_model.token_grid(config)
    return make_rollout(
        run.apply,
        run.schedule,
        run.null_text if null_text is None else null_text,
        run.mesh,
        run.shardings.params,
        shape=chunk_shape(config, plan),
        memory=(
            model.depth // 2,
            grid[1] * grid[2],
            model.num_heads,
            model.width // model.num_heads,
        ),
        dtype=jnp.dtype(compute_dtype(config.train.precision)),
        patch_frames=model.patch_size[0],
        lengths=plan.lengths,
        prefix_noise=config.prefix.sampling_noise,
        pixels=config.vae.name == "identity",
        prediction=config.objective.prediction,
        **options,
    )


def make_open_decode(
    config: ml_collections.ConfigDict, latents: LatentInfo | None, frames: int
) -> Callable[[int], Callable[[np.ndarray], np.ndarray]]:
    """From chunks of latents to chunks of pixels; reads the autoencoder's weights, once for all videos.

    Args:
      config: of the run.
      latents: of its data set; None for pixels.
      frames: a number of latent frames that divides those of every chunk.
    Returns:
      B videos that begin to a function of their chunks in order, (B, n, h, w, C) to (B, m, H, W, 3) uint8.
    Raises:
      ValueError: the weights are others than those that encoded the data set.
      FileNotFoundError: they are not there.
    """
    if latents is None:
        return lambda count: lambda videos: videos
    autoencoder = run_model.describe_autoencoder(config)
    if not autoencoder.causal:
        frames = None
    else:  # no more at a time than vae.chunk_frames says
        frames = math.gcd(frames, max(1, config.vae.chunk_frames // autoencoder.downsample[0]))
    decoder, params = run_sampler.load_decoder(config, latents, frames)
    return lambda count: open_streams(decoder, params, count)


def count_chunks(config: ml_collections.ConfigDict, plan: Plan, frames: int, begun: int) -> int:
    """Chunks that a video needs.

    Args:
      config: of the run.
      plan: of `plan_rollout`.
      frames: of the video.
      begun: latent frames that are there to begin with.
    Returns:
      How many.
    """
    stride = run_model.describe_autoencoder(config).downsample[0]
    wanted = 1 + -(-(frames - 1) // stride)  # latents: the first one is of one frame
    return max(0, -(-(wanted - begun) // (plan.chunk * config.model.patch_size[0])))


def first_frame(config: ml_collections.ConfigDict, latent: int) -> int:
    """The first frame of the video that a latent is of, both counted from 0."""
    stride = run_model.describe_autoencoder(config).downsample[0]
    return max(0, 1 + (latent - 1) * stride)
