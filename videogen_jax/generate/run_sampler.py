"""From a run to videos: the config's sampler, what the model is told, and the way from latents to pixels."""

import functools
from collections.abc import Callable, Sequence
from typing import Any

import jax
import ml_collections
import numpy as np
from absl import logging
from jax.sharding import Mesh

from videogen_jax.data.latent_records import LatentInfo
from videogen_jax.generate.generator import Programs, make_programs
from videogen_jax.models.autoencoder import Autoencoder, with_statistics
from videogen_jax.models.chunks import ChunkProgram, decode_videos, make_decoder
from videogen_jax.models.weights import hash_params
from videogen_jax.parallel import mesh as meshes
from videogen_jax.parallel.sequence_parallel import check_tokens
from videogen_jax.run import conditioning
from videogen_jax.run import model as run_model
from videogen_jax.run.model import Run


def check_choices(run: Run) -> None:
    """Refuses an objective, a sampler or a number of the config that means nothing, before anything is computed.

    Raises:
      ValueError: names it.
    """
    config = run.config
    run_model.make_run_loss(run)
    check_known_guidance(config, config.sample.known_guidance_scale)
    make_run_programs(run, sampler_options(config))
    if config.sample.clip_x0 and config.vae.name != "identity":
        raise ValueError(
            f"sample.clip_x0 is on, but latents of vae.name={config.vae.name!r} have no bounds: set it to False."
        )
    if not 0 <= config.sample.motion <= 255:
        raise ValueError(
            f"sample.motion is {config.sample.motion}: buckets of the motion score are 0 to 255."
        )
    if not config.known.sampling_noise > 0:
        raise ValueError(
            f"known.sampling_noise is {config.known.sampling_noise}: give a sigma above 0, such as 0.02."
        )
    run_model.check_snapshots(config)


def check_known_guidance(config: ml_collections.ConfigDict, scale: float | None) -> None:
    """Refuses guidance by known frames of a model that is told of none.

    Raises:
      ValueError: it is so.
    """
    if scale is not None and config.model.conditioning != "frames":
        raise ValueError(
            f"known_guidance_scale is {scale:g}, but this model knows no frames (model.conditioning="
            f"{config.model.conditioning!r}): leave it out."
        )


def sampler_options(config: ml_collections.ConfigDict) -> dict[str, Any]:
    """The lines of config.sample that `make_run_programs` takes."""
    others = ("every", "prompts", "motion")
    return {name: value for name, value in config.sample.items() if name not in others}


def make_run_programs(run: Run, options: dict[str, Any], null_text: Any = None) -> Programs:
    """The config's sampler.

    Args:
      run: of `make_run`.
      options: of `sampler_options`.
      null_text: of a negative prompt, without the batch axis; by default that of no caption.
    Returns:
      The programs from seeds to videos.
    """
    return make_programs(
        run.apply,
        run.schedule,
        run.null_text if null_text is None else null_text,
        run.mesh,
        run.shardings.params,
        shape=run.video_shape,
        pixels=run.config.vae.name == "identity",
        prediction=run.config.objective.prediction,
        **options,
    )


def make_condition(
    config: ml_collections.ConfigDict,
    text: Any,
    motion: float,
    shape: tuple[int, int, int, int] | None = None,
) -> dict[str, Any]:
    """What the model is told of videos that are to be made.

    Args:
      config: of the run.
      text: tree of rows of N, of `Texts.embed`.
      motion: bucket of the motion score, 0 (least) to 255; read by models with that micro-condition.
      shape: (F, H, W, C) of a video as the model sees it; by default the config's.
    Returns:
      The condition, rows of N, where no frames are known.
    """
    values = {"fps": config.data.fps, "motion": motion}
    count = len(jax.tree.leaves(text)[0])
    micro = {
        name: np.full(count, values[name], np.float32)
        for name in conditioning.batch_conditions(config)
    }
    shape = run_model.video_shape(config) if shape is None else shape
    video = jax.ShapeDtypeStruct((count, *shape), np.float32)
    return {"text": text} | micro | conditioning.tell_nothing(config, video)


def make_run_decoder(
    config: ml_collections.ConfigDict,
    mesh: Mesh,
    autoencoder: Autoencoder | None = None,
    frames: int | None = None,
) -> ChunkProgram:
    """The config's way from latents to pixels.

    Args:
      config: of the run.
      mesh: to decode on.
      autoencoder: by default the config's, as its weights' config has it.
      frames: of the video in a chunk; by default vae.chunk_frames for each device.
    Returns:
      The program.
    """
    autoencoder = run_model.describe_autoencoder(config) if autoencoder is None else autoencoder
    frames = config.vae.chunk_frames * mesh.size if frames is None else frames
    return make_decoder(
        autoencoder, mesh, frames, run_model.video_shape(config)[1:3], config.vae.tile
    )


def make_decode(
    config: ml_collections.ConfigDict, latents: LatentInfo | None
) -> Callable[[np.ndarray], np.ndarray]:
    """From what the generator makes to pixels, on this process's devices; reads the autoencoder's weights.

    Args:
      config: of the run.
      latents: of its data set; None for pixels.
    Returns:
      (N, T, h, w, C) of mean 0 and deviation 1, or pixels, to (N, T, H, W, 3) uint8.
    Raises:
      ValueError: the weights are others than those that encoded the data set.
      FileNotFoundError: they are not there.
    """
    if latents is None:
        return lambda videos: videos
    return functools.partial(decode_videos, *load_decoder(config, latents))


def load_autoencoder(
    config: ml_collections.ConfigDict, latents: LatentInfo
) -> tuple[Autoencoder, Any]:
    """The autoencoder of a data set's latents, which it brings to mean 0 and deviation 1.

    Args:
      config: of the run.
      latents: of its data set.
    Returns:
      (autoencoder, its parameters on the host).
    Raises:
      ValueError: the weights are others than those that encoded the data set.
      FileNotFoundError: they are not there.
    """
    autoencoder = run_model.describe_autoencoder(config, fetch=True)
    params = autoencoder.load()
    if hash_params(params) != latents.weights:
        raise ValueError(
            f"The weights of vae.path={config.vae.path!r} are not those that encoded the data set: "
            "name the same ones, or encode it again."
        )
    return with_statistics(autoencoder, latents.mean, latents.deviation), params


def load_decoder(
    config: ml_collections.ConfigDict, latents: LatentInfo, latent_frames: int | None = None
) -> tuple[ChunkProgram, Any]:
    """The decoder of a data set's latents on this process's devices, and its weights.

    Args:
      config: of the run.
      latents: of its data set.
      latent_frames: of a chunk; by default as many as vae.chunk_frames says.
    Returns:
      (decoder, parameters on the devices).
    Raises:
      ValueError: the weights are others than those that encoded the data set.
      FileNotFoundError: they are not there.
    """
    autoencoder, params = load_autoencoder(config, latents)
    devices = jax.local_devices()
    mesh = meshes.make_mesh(data=len(devices), devices=devices)
    frames = None if latent_frames is None else latent_frames * autoencoder.downsample[0]
    decoder = make_run_decoder(config, mesh, autoencoder, frames)
    return decoder, decoder.put_params(params)


def choose_sample_mesh(
    config: ml_collections.ConfigDict, count: int, devices: Sequence[jax.Device]
) -> Mesh:
    """All devices: as many parts of the batch as there are videos for, and the rest at one video together.

    Where the videos' tokens do not divide by that rest, it stays idle.

    Args:
      config: of the run.
      count: videos.
      devices: to sample on.
    Returns:
      The mesh.
    """
    model, grid = config.model, run_model.token_grid(config)
    check = lambda mesh: check_tokens(mesh, grid, model.attention, model.num_heads)  # noqa: E731
    return choose_mesh(count, devices, check)


def choose_mesh(count: int, devices: Sequence[jax.Device], check: Callable[[Mesh], None]) -> Mesh:
    """As `choose_sample_mesh`, where `check` raises ValueError for a mesh on which videos do not divide."""
    data = max(n for n in range(1, len(devices) + 1) if len(devices) % n == 0 and n <= count)
    mesh = meshes.make_mesh(data=data, seq=len(devices) // data, devices=devices)
    try:
        check(mesh)
    except ValueError as error:
        logging.info("Only %d of %d devices are used: %s", data, len(devices), error)
        return meshes.make_mesh(data=data, devices=devices)
    return mesh
