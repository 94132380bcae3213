"""A run in training: a model with its optimizer, averages, loss and compiled step. Nothing is allocated here."""

import contextlib
import time
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, NamedTuple

import jax
import ml_collections
import optax
from absl import logging
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from videogen_jax.models import parameter_paths
from videogen_jax.parallel import mesh as meshes
from videogen_jax.parallel import sharding
from videogen_jax.parallel.compiler_options import choose_step_options
from videogen_jax.parallel.offload import host_shardings
from videogen_jax.run import ema, frozen_params
from videogen_jax.run.model import Model, with_shardings
from videogen_jax.run.state import TRAINING, TrainState, init_state
from videogen_jax.train import optimizers
from videogen_jax.train.loss import Batch
from videogen_jax.train.step import make_train_step


class Run(NamedTuple):
    """A run of a diffusion model (diffusion_run.py), or of an autoencoder (autoencoder_run.py)."""

    model: Model
    optimizer: optax.GradientTransformation
    learning_rate: optax.Schedule
    ema_decays: dict[str, Callable[..., jax.Array]]  # of `ema.make_decays`; the first one samples
    loss: Callable[..., jax.Array]  # (params, batch, rng) to (), in training
    abstract_batch: Callable[[int], Batch]  # clips to shapes and types of a batch
    init: Callable[..., TrainState]  # from params, or new ones; to be jitted with `shardings`
    abstract: TrainState  # of jax.ShapeDtypeStruct with shardings
    shardings: TrainState  # of NamedSharding

    @property
    def config(self) -> ml_collections.ConfigDict:
        """The config of the model."""
        return self.model.config

    @property
    def mesh(self) -> Mesh:
        """The mesh of the model."""
        return self.model.mesh

    @property
    def ema_name(self) -> str:
        """The moving average that samples and is validated."""
        return next(iter(self.ema_decays))

    @property
    def offloaded(self) -> tuple[str, ...]:
        """The fields of the train state that are kept in pinned host memory."""
        memory = self.config.memory
        chosen = {"opt_state": memory.offload_optimizer, "ema": memory.offload_ema}
        return tuple(field for field, offload in chosen.items() if offload)


def assemble_run(
    model: Model, loss: Callable[..., jax.Array], abstract_batch: Callable[[int], Batch]
) -> Run:
    """Adds the optimizer and the averages to a model, and places all of the train state.

    Args:
      model: of `model.make_model` or `autoencoder_model.make_model`.
      loss: (params, batch, rng) to ().
      abstract_batch: clips to shapes and types of a batch.
    Returns:
      The run.
    Raises:
      ValueError: options of optimizer, averages or frozen parameters do not go together.
    """
    config = model.config
    frozen_names = frozen_params.find_frozen(config, model.abstract_params)
    learning_rate = optimizers.make_learning_rate(steps=config.train.steps, **config.learning_rate)
    optimizer = optimizers.make_optimizer(learning_rate=learning_rate, **config.optimizer)
    ema_decays = ema.make_decays(config.ema.decays, config.ema.widths)

    def init(params: Any = None) -> TrainState:
        params = model.init_params() if params is None else params
        rng = jax.random.fold_in(jax.random.key(config.seed), TRAINING)
        trained, frozen = parameter_paths.split(params, frozen_names)
        options = (ema_decays, rng, config.train.precision)
        return init_state(trained, optimizer.init, *options, frozen)

    shapes = jax.eval_shape(init)
    shardings = sharding.make_shardings(model.mesh, shapes, model.rules)
    run = Run(
        model, optimizer, learning_rate, ema_decays, loss, abstract_batch, init, shapes, shardings
    )
    for field in run.offloaded:
        place = host_shardings(getattr(shardings, field), getattr(shapes, field))
        shardings = shardings.replace(**{field: place})
    return run._replace(abstract=with_shardings(shapes, shardings), shardings=shardings)


def place_batch(run: Run) -> Batch:
    """A whole batch of the config, abstract, laid out on the mesh."""
    rows = NamedSharding(run.mesh, meshes.BATCH)
    return jax.tree.map(
        lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=rows),
        run.abstract_batch(run.config.batch_size),
    )


def trace_step(run: Run) -> Any:
    """The train step for the mesh and the batch's shape, ready to be lowered; the state is donated."""
    step = make_train_step(
        run.loss,
        run.optimizer,
        run.learning_rate,
        accumulation=run.config.train.accumulation,
        ema_decays=run.ema_decays,
        offloaded=run.offloaded,
    )
    whole = NamedSharding(run.mesh, PartitionSpec())
    memory = run.config.memory
    options = choose_step_options(run.mesh, memory.get("offload_activations", False))
    jitted = jax.jit(
        step,
        donate_argnums=0,
        out_shardings=(run.shardings, whole),
        compiler_options=options,
    )
    return jitted.trace(run.abstract, place_batch(run))


@contextlib.contextmanager
def compile_steps(runs: Mapping[str, Run]) -> Iterator[dict[str, Future]]:
    """Compiles the step of every bucket, one after the other, while the steps of the first ones run.

    Args:
      runs: of `make_bucket_runs`, in the order in which they are needed.
    Yields:
      Bucket to the future of its step, as of `compile_step`.
    """
    with ThreadPoolExecutor(1) as pool:
        try:
            yield {name: pool.submit(compile_step, run) for name, run in runs.items()}
        finally:
            pool.shutdown(wait=False, cancel_futures=True)


def compile_step(run: Run) -> Callable[..., Any]:
    """The train step, compiled for the mesh and the batch's shape; the state is donated."""
    started = time.perf_counter()
    compiled = trace_step(run).lower().compile()
    shape = "x".join(map(str, run.model.clip_shape))
    logging.info(
        "Compiled the step for clips of %s in %.1f s.", shape, time.perf_counter() - started
    )
    return compiled
