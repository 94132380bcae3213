"""From a config to the objects of a run: mesh, model, optimizer, abstract state. Nothing is allocated here.

The train loop, `sample` and the tests all start from `make_run`, so they cannot disagree about what a config means.
"""

import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import ml_collections
import numpy as np
import optax
from absl import logging
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from videogen_jax.data.captions import Vocabulary
from videogen_jax.diffusion.schedule import Schedule, make_schedule
from videogen_jax.models.dit import VideoDiT
from videogen_jax.parallel import mesh as meshes
from videogen_jax.parallel import sharding
from videogen_jax.train import optim
from videogen_jax.train.state import TrainState, compute_dtype, init_state
from videogen_jax.train.step import make_loss, make_train_step

CHANNELS = 3


class Run(NamedTuple):
    """What a config describes, on a mesh."""

    config: ml_collections.ConfigDict
    mesh: Mesh
    schedule: Schedule
    optimizer: optax.GradientTransformation
    learning_rate: optax.Schedule
    null_text: np.ndarray  # (L,) int32, the ids of no caption
    apply: Callable[..., jax.Array]  # (params, x_t, t, text) to the model's output
    init: Callable[[], TrainState]  # to be jitted with `shardings` as its output's
    abstract: TrainState  # of jax.ShapeDtypeStruct with shardings
    shardings: TrainState  # of NamedSharding

    @property
    def video_shape(self) -> tuple[int, int, int, int]:
        """(T, H, W, C) of one clip as the model sees it."""
        data = self.config.data
        return (data.frames, data.height, data.width, CHANNELS)


def make_run(config: ml_collections.ConfigDict, mesh: Mesh | None = None) -> Run:
    """Builds everything that needs no data.

    Args:
      config: as in configs/.
      mesh: to use instead of the config's, e.g. for sampling on other devices.
    Returns:
      The run.
    Raises:
      ValueError: a name or size in the config does not fit; the sentence names it.
    """
    mesh = meshes.make_mesh(**config.mesh) if mesh is None else mesh
    model = VideoDiT(
        **config.model,
        vocabulary_size=config.text.vocabulary_size,
        dtype=compute_dtype(config.train.precision),
    )
    learning_rate = optim.make_learning_rate(steps=config.train.steps, **config.learning_rate)
    optimizer = optim.make_optimizer(learning_rate=learning_rate, **config.optimizer)
    data, length = config.data, config.text.length

    def init() -> TrainState:
        rng = jax.random.key(config.seed)
        shape = (1, data.frames, data.height, data.width, CHANNELS)
        inputs = (jnp.zeros(shape), jnp.zeros(1), jnp.zeros((1, length), jnp.int32))
        params = model.init(jax.random.fold_in(rng, 0), *inputs)["params"]
        return init_state(params, optimizer, jax.random.fold_in(rng, 1), config.train.precision)

    shapes = jax.eval_shape(init)
    rules = sharding.parameter_rules(config.model.cross_attention)
    shardings = sharding.make_shardings(mesh, shapes, rules)
    abstract = jax.tree.map(
        lambda leaf, place: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=place),
        shapes,
        shardings,
    )
    return Run(
        config=config,
        mesh=mesh,
        schedule=make_schedule(**config.schedule),
        optimizer=optimizer,
        learning_rate=learning_rate,
        null_text=Vocabulary(()).encode([""], length)[0],
        apply=lambda params, x_t, t, text: model.apply({"params": params}, x_t, t, text),
        init=init,
        abstract=abstract,
        shardings=shardings,
    )


def compile_step(run: Run) -> Callable[..., Any]:
    """The train step, compiled for the mesh and the batch's shape; the state is donated."""
    config = run.config
    loss = make_loss(
        run.apply, run.schedule, run.null_text, text_dropout=config.text.dropout, **config.objective
    )
    step = make_train_step(
        loss,
        run.optimizer,
        run.learning_rate,
        accumulation=config.train.accumulation,
        ema_decay=config.train.ema_decay,
    )
    whole = NamedSharding(run.mesh, PartitionSpec())
    rows = NamedSharding(run.mesh, meshes.BATCH)
    batch = {
        "video": jax.ShapeDtypeStruct(
            (config.batch_size, *run.video_shape), np.uint8, sharding=rows
        ),
        "text": jax.ShapeDtypeStruct(
            (config.batch_size, config.text.length), np.int32, sharding=rows
        ),
    }
    started = time.perf_counter()
    jitted = jax.jit(step, donate_argnums=0, out_shardings=(run.shardings, whole))
    compiled = jitted.lower(run.abstract, batch).compile()
    logging.info("Compiled the step in %.1f s.", time.perf_counter() - started)
    return compiled


def write_config(workdir: Path, config: ml_collections.ConfigDict) -> None:
    """Writes the resolved config to `workdir`/config.json, whole or not at all."""
    write_json(workdir / "config.json", config.to_dict())


def read_config(workdir: Path) -> ml_collections.ConfigDict:
    """Reads back the config of a run.

    Args:
      workdir: of the run.
    Returns:
      The config, locked.
    Raises:
      FileNotFoundError: the folder holds no run.
    """
    path = workdir / "config.json"
    if not path.is_file():
        raise FileNotFoundError(
            f"There is no {path}: name the --workdir of a run that launch.py has started."
        )
    config = ml_collections.ConfigDict(json.loads(path.read_text(encoding="utf-8")))
    # JSON has lists where Flax wants something hashable.
    config.model.patch_size = tuple(config.model.patch_size)
    return config.lock()


def write_json(path: Path, content: Any) -> None:
    """Writes JSON under a temporary name first, so that a crash leaves the old file or the new one."""
    temporary = path.with_suffix(".tmp")
    temporary.write_text(json.dumps(content, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
    temporary.replace(path)
