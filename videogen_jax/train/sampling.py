"""From a run to videos: the config's sampler, what the model is told, and the way from latents to pixels."""

from collections.abc import Callable, Sequence
from typing import Any

import jax
import ml_collections
import numpy as np
from absl import logging
from jax.sharding import Mesh

from videogen_jax.data.latent_records import LatentInfo
from videogen_jax.generate.generator import Programs, make_programs
from videogen_jax.models.chunks import ChunkProgram, decode_chunks, make_decoder
from videogen_jax.models.vae import Autoencoder, with_statistics
from videogen_jax.models.weights import hash_params
from videogen_jax.parallel import mesh as meshes
from videogen_jax.parallel.tokens import check_tokens
from videogen_jax.train import setup
from videogen_jax.train.setup import Run


def check_choices(run: Run) -> None:
    """Refuses an objective, a sampler or a number of the config that means nothing, before anything is computed.

    Raises:
      ValueError: names it.
    """
    config = run.config
    setup.make_run_loss(run, config.text.dropout)
    make_run_programs(run, sampler_options(config))
    if config.sample.clip_x0 and config.vae.name != "identity":
        raise ValueError(
            f"sample.clip_x0 is on, but latents of vae.name={config.vae.name!r} have no bounds: set it to False."
        )
    if not 0 <= config.sample.motion <= 255:
        raise ValueError(
            f"sample.motion is {config.sample.motion}: buckets of the motion score are 0 to 255."
        )
    setup.check_snapshots(config)


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


def make_condition(config: ml_collections.ConfigDict, text: Any, motion: float) -> dict[str, Any]:
    """What the model is told of videos that are to be made.

    Args:
      config: of the run.
      text: tree of rows of N, of `Texts.embed`.
      motion: bucket of the motion score, 0 (least) to 255; read by models with that micro-condition.
    Returns:
      The condition, rows of N.
    """
    values = {"fps": config.data.fps, "motion": motion}
    count = len(jax.tree.leaves(text)[0])
    micro = {
        name: np.full(count, values[name], np.float32) for name in config.model.micro_conditions
    }
    return {"text": text} | micro


def make_run_decoder(
    config: ml_collections.ConfigDict, mesh: Mesh, autoencoder: Autoencoder | None = None
) -> ChunkProgram:
    """The config's way from latents to pixels; by default of its autoencoder as its weights' config has it."""
    autoencoder = setup.describe_autoencoder(config) if autoencoder is None else autoencoder
    frames = config.vae.chunk_frames * mesh.size
    return make_decoder(autoencoder, mesh, frames, setup.video_shape(config)[1:3], config.vae.tile)


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
    autoencoder = setup.describe_autoencoder(config, fetch=True)
    params = autoencoder.load()
    if hash_params(params) != latents.weights:
        raise ValueError(
            f"The weights of vae.path={config.vae.path!r} are not those that encoded the data set: "
            "name the same ones, or encode it again."
        )
    autoencoder = with_statistics(autoencoder, latents.mean, latents.deviation)
    devices = jax.local_devices()
    decoder = make_run_decoder(
        config, meshes.make_mesh(data=len(devices), devices=devices), autoencoder
    )
    params = decoder.put_params(params)

    def decode(videos: np.ndarray) -> np.ndarray:
        frames = np.concatenate(list(decode_chunks(decoder, params, videos)))
        return frames.reshape(len(videos), -1, *frames.shape[1:])

    return decode


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
    data = max(n for n in range(1, len(devices) + 1) if len(devices) % n == 0 and n <= count)
    mesh = meshes.make_mesh(data=data, seq=len(devices) // data, devices=devices)
    try:
        check_tokens(mesh, setup.token_grid(config), config.model.attention, config.model.num_heads)
    except ValueError as error:
        logging.info("Only %d of %d devices are used: %s", data, len(devices), error)
        return meshes.make_mesh(data=data, devices=devices)
    return mesh
