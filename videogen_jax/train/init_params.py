"""What the parameters of a new run start as: random numbers, published weights, or those of another run.

A run that learns more than the one it starts from has inputs that are new: the channels of known frames, and
micro-conditions. They start at zero, so that its first output is the other one's.
"""

import functools
import json
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import ml_collections
from absl import logging

from videogen_jax.models import weights
from videogen_jax.models.weight_layouts import LAYOUTS
from videogen_jax.parallel.sharding import path_name
from videogen_jax.run import checkpoint, conditioning, saved_config
from videogen_jax.run import model as run_model
from videogen_jax.run.model import Run
from videogen_jax.run.text_conditioning import Texts, find_difference
from videogen_jax.train import checks

RUN = "run"  # init.layout of another run; the others are of models/weight_layouts.py
FIRST_LAYER = "patch_embed/kernel"
# Lines of config.model that leave the parameters what they are, or are told by new inputs.
MAY_DIFFER = ("conditioning", "micro_conditions", "causal", "time_cycle")


def init_params(run: Run, own_texts: Texts) -> Any:
    """The parameters that config.init asks for.

    Args:
      run: of `model.make_run`.
      own_texts: of its data.
    Returns:
      A tree of arrays, on the host or laid out on the mesh.
    Raises:
      ValueError: weights or run do not fit; the sentence says what.
      FileNotFoundError: there are none.
    """
    path, layout = run.config.init.path, run.config.init.layout
    if layout not in (choices := (*LAYOUTS, RUN)):
        raise ValueError(f"Unknown init.layout {layout!r}: choose one of {', '.join(choices)}.")
    if layout == RUN:
        return start_from_run(run, Path(path), own_texts)
    params = jax.jit(run.init_params, out_shardings=run.shardings.params)()
    return weights.load_weights(path, layout, params)


def start_from_run(run: Run, workdir: Path, own_texts: Texts) -> Any:
    """The newest EMA of another run, and zeros for inputs that it has not.

    Args:
      run: that starts.
      workdir: of the other run.
      own_texts: of the run that starts.
    Returns:
      Its parameters, laid out on the mesh.
    Raises:
      ValueError: the other run has another model, or other words.
      FileNotFoundError: there is no run.
    """
    config = saved_config.read_config(workdir)
    if checks.is_autoencoder(config):
        raise ValueError(
            f"init.path={workdir} is the run of an autoencoder: name that of a diffusion model."
        )
    check_model(run.config, config, workdir)
    other = run_model.make_run(config, run.mesh, grid=run_model.token_grid(run.config))
    with checkpoint.open_checkpoints(workdir, read_only=True) as manager:
        step = checkpoint.find_step(manager, None)
        metadata = checkpoint.restore_metadata(manager, step)
        if difference := find_difference(own_texts, metadata):
            raise ValueError(f"init.path={workdir} cannot be started from: {difference}.")
        theirs = checkpoint.restore_ema(manager, other.abstract.params, other.ema_name, step)[0]
    channels = run.video_shape[-1]
    sizes = [conditioning.input_channels(one, channels) for one in (config, run.config)]
    found = {path_name(path): leaf for path, leaf in jax.tree_util.tree_leaves_with_path(theirs)}
    params = jax.jit(run.init_params, out_shardings=run.shardings.params)()
    embedders = [f"{name}_embed" for name in run.config.model.micro_conditions]
    taken = set()

    def begin(path: Any, leaf: Any) -> Any:
        name = path_name(path)
        if name not in found:
            if name.split("/")[0] in embedders:
                return jnp.zeros_like(leaf) if "/out/" in name else leaf
            raise ValueError(
                f"init.path={workdir} has no {name}: its model is another; set the same config.model."
            )
        taken.add(name)
        value = found[name]
        if name == FIRST_LAYER and sizes[0] < sizes[1]:
            wider = functools.partial(widen, channels=sizes[0], wanted=sizes[1], video=channels)
            value = jax.jit(wider, out_shardings=leaf.sharding)(value)
        if value.shape != leaf.shape:
            raise ValueError(
                f"{name} is {value.shape} in init.path={workdir} and {leaf.shape} here: its model is another; set the "
                "same config.model."
            )
        return value

    begun = jax.tree_util.tree_map_with_path(begin, params)
    if unread := sorted(set(found) - taken):
        raise ValueError(
            f"init.path={workdir} has {unread[0]}, which this model lacks: set the same config.model."
        )
    logging.info("Starting from step %d of %s.", step, workdir)
    return begun


def check_model(
    config: ml_collections.ConfigDict, other: ml_collections.ConfigDict, workdir: Path
) -> None:
    """Refuses a run in which the same parameters mean something else; warns where they answer another question.

    Args:
      config: of the run that starts.
      other: of the run that it starts from.
      workdir: of that run.
    Raises:
      ValueError: names the line of the config.
    """

    def lines(one: ml_collections.ConfigDict) -> dict[str, Any]:
        model = {f"model.{name}": one.model[name] for name in one.model if name not in MAY_DIFFER}
        # As JSON has it, which knows no tuples.
        return json.loads(json.dumps(model | {"vae.name": one.vae.name}))

    ours, theirs = lines(config), lines(other)
    for name in ours:
        if ours[name] != theirs.get(name):
            raise ValueError(
                f"{name} is {ours[name]!r}, but {theirs.get(name)!r} in init.path={workdir}: its model is another; set "
                f"--config.{name} to the same."
            )
    told, known = config.model.conditioning, other.model.conditioning
    if conditioning.input_channels(config, 1) < conditioning.input_channels(other, 1):
        raise ValueError(
            f"model.conditioning is {told!r}, but {known!r} in init.path={workdir}: a run learns what the one that it "
            f"starts from does, and not less; set --config.model.conditioning={known}."
        )
    for section, name in (("objective", "prediction"), ("schedule", "name")):
        ours, theirs = config[section][name], other[section][name]
        if ours != theirs:
            logging.warning(
                "%s learned with %s.%s=%s, and this run has %s: its first steps go into that.",
                *(workdir, section, name, theirs, ours),
            )


def widen(kernel: jax.Array, channels: int, wanted: int, video: int) -> jax.Array:
    """Zeros for channels that are new: they come right behind the video's own, at each place of a patch.

    Args:
      kernel: (pt ph pw channels, D).
      channels: that there are.
      wanted: more.
      video: those of the video.
    Returns:
      (pt ph pw wanted, D).
    """
    kernel = kernel.reshape(-1, channels, kernel.shape[-1])
    zeros = jnp.zeros((len(kernel), wanted - channels, kernel.shape[-1]), kernel.dtype)
    kernel = jnp.concatenate([kernel[:, :video], zeros, kernel[:, video:]], axis=1)
    return kernel.reshape(-1, kernel.shape[-1])
