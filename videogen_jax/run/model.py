"""From a config to the objects of a run: mesh, model, optimizer, abstract state. Nothing is allocated here.

The train loop, `sample` and the tests all start from `make_run`, so they cannot disagree about what a config means.
"""

import contextlib
import functools
import math
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import ml_collections
import optax
from absl import logging
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from videogen_jax.diffusion.objective import expand
from videogen_jax.diffusion.schedule import Schedule, make_schedule, size_shift
from videogen_jax.diffusion.tasks import Tasks
from videogen_jax.models.attention import choose_kernel
from videogen_jax.models.autoencoder import Autoencoder, make_autoencoder
from videogen_jax.models.dit import History, VideoDiT
from videogen_jax.models.flops import count_flops
from videogen_jax.models.patches import patch_grid
from videogen_jax.parallel import mesh as meshes
from videogen_jax.parallel import sharding
from videogen_jax.parallel.communication import least_wire_bytes
from videogen_jax.parallel.offload import to_host
from videogen_jax.parallel.sequence_parallel import Tokens, check_tokens
from videogen_jax.run import conditioning, ema, text_conditioning
from videogen_jax.run.state import TrainState, compute_dtype, init_state
from videogen_jax.run.trained_autoencoder import SECTION, read_autoencoder
from videogen_jax.train import optimizers
from videogen_jax.train.step import (
    Batch,
    make_clip_losses,
    make_loss,
    make_loss_by_noise_level,
    make_train_step,
)

SIDES = {"left", "right"}  # where captions say these, a mirrored clip would belie them


class Run(NamedTuple):
    """What a config describes, on a mesh: of a diffusion model, or of an autoencoder (autoencoder_run.py)."""

    config: ml_collections.ConfigDict
    mesh: Mesh
    optimizer: optax.GradientTransformation
    learning_rate: optax.Schedule
    ema_decays: dict[str, Callable[..., jax.Array]]  # of `ema.make_decays`; the first one samples
    # (params, x_t, t, condition) to the model's output, and with a history as `VideoDiT`
    apply: Callable[..., Any]
    loss: Callable[
        ["Run"], Callable[..., jax.Array]
    ]  # to (params, batch, rng) to (), as it is trained
    batch: Callable[..., Batch]  # (config, clips) to shapes and types
    init_params: Callable[[], Any]  # to be jitted with `shardings.params` as its output's
    init: Callable[..., TrainState]  # from params, or new ones; to be jitted with `shardings`
    abstract: TrainState  # of jax.ShapeDtypeStruct with shardings
    shardings: TrainState  # of NamedSharding
    # Of diffusion models.
    schedule: Schedule | None = None
    null_text: Any = None  # tree of rows without the batch axis, see text_conditioning.py

    @property
    def video_shape(self) -> tuple[int, int, int, int]:
        """(T, H, W, C) of one clip as the model sees it."""
        return video_shape(self.config)

    @property
    def ema_name(self) -> str:
        """The moving average that samples and is validated."""
        return next(iter(self.ema_decays))


def video_shape(config: ml_collections.ConfigDict) -> tuple[int, int, int, int]:
    """(T, H, W, C) of one clip as the model sees it: of its latents, where there is an autoencoder.

    Raises:
      ValueError: the autoencoder is unknown, or its strides do not divide the clip.
    """
    data = config.data
    return describe_autoencoder(config).latent_shape(data.frames, data.height, data.width)


def describe_autoencoder(config: ml_collections.ConfigDict, fetch: bool = False) -> Autoencoder:
    """The config's autoencoder.

    Args:
      config: of the run.
      fetch: see `autoencoder.make_autoencoder`; True where weights are wanted.
    Returns:
      The autoencoder, its weights not read.
    Raises:
      ValueError: the autoencoder is unknown, or vae.path is no run of one.
      FileNotFoundError: there is nothing at vae.path.
    """
    dtype = encoder_dtype(config)
    if config.vae.name == "workdir":
        return read_autoencoder(config.vae.path, dtype)
    return _make_autoencoder(config.vae.name, config.vae.path, dtype=dtype, fetch=fetch)


_make_autoencoder = functools.cache(make_autoencoder)  # its shapes take a second to infer


def encoder_dtype(config: ml_collections.ConfigDict) -> str:
    """In what the autoencoder computes; float16 would overflow in Stable Diffusion's."""
    return "float32" if config.train.precision == "float32" else "bfloat16"


def make_run(
    config: ml_collections.ConfigDict,
    mesh: Mesh | None = None,
    null_text: Any = None,
    grid: tuple[int, int, int] | None = None,
) -> Run:
    """Builds everything that needs no data.

    Args:
      config: as in configs/.
      mesh: to use instead of the config's, e.g. for sampling on other devices.
      null_text: of `text_conditioning.Texts`; by default `text_conditioning.blank_text`, which has its shapes.
      grid: (T, H, W) of the tokens that are to lie on the mesh, of a chunk of a long video; by default a clip's.
    Returns:
      The run.
    Raises:
      ValueError: a name or size in the config does not fit; the sentence names it.
    """
    mesh = meshes.make_mesh(**config.mesh) if mesh is None else mesh
    conditioning.check_micro_conditions(config)
    conditioning.make_tasks(config, token_grid(config)[0])
    null_text = text_conditioning.blank_text(config) if null_text is None else null_text
    text_encoder = text_conditioning.MODEL_ENCODERS[config.text.encoder]
    model = VideoDiT(
        **dict(config.model, position_grid=tuple(config.model.position_grid) or None),
        text_encoder=text_encoder,
        vocabulary_size=config.text.vocabulary_size,
        dtype=compute_dtype(config.train.precision),
        tokens=Tokens(mesh),
        kernel=choose_kernel(config.memory.attention_kernel, mesh.devices.flat),
        remat=config.memory.remat,
        saved=tuple(config.memory.saved),
        offload=config.memory.offload_activations,
        pieces=config.memory.pieces if grid is None else 1,  # which a chunk need not divide by
        unroll=config.memory.unroll,
    )
    lies = token_grid(config) if grid is None else grid
    check_tokens(mesh, lies, config.model.attention, config.model.num_heads)
    schedule = make_run_schedule(config)
    batch = abstract_batch(config, 1, null_text)
    told = conditioning.frame_conditions(config)

    def apply(
        params: Any,
        x_t: jax.Array,
        t: jax.Array,
        condition: dict[str, Any],
        history: History | None = None,
    ) -> Any:
        if schedule.clock == "sigma":
            scale = schedule.input_scale(t)
            if scale.ndim == 2:  # of latent frames
                scale = jnp.repeat(scale, config.model.patch_size[0], axis=1)
            x_t = x_t * expand(scale, x_t.ndim)
        micro = {name: condition[name] for name in config.model.micro_conditions}
        frames = {name: condition[name] for name in told}
        inputs = (x_t, schedule.model_time(t), condition["text"], micro)
        return model.apply({"params": params}, *inputs, **frames, history=history)

    def init_params() -> Any:
        zeros = jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), batch)
        if token_grid(config)[0] == 1:
            # A picture passes by the temporal blocks; videos that come later want them.
            zeros["video"] = jnp.repeat(zeros["video"], 2, axis=1)
        zeros |= conditioning.tell_nothing(config, zeros["video"])
        micro = {name: zeros[name] for name in config.model.micro_conditions}
        frames = {name: zeros[name] for name in told}
        rng = jax.random.fold_in(jax.random.key(config.seed), 0)
        inputs = (zeros["video"].astype(jnp.float32), jnp.zeros(1), zeros["text"], micro)
        # One clip cannot be split among the devices that a batch is; nor need it be.
        return model.clone(tokens=None).init(rng, *inputs, **frames)["params"]

    rules = sharding.parameter_rules(
        modulation=config.model.modulation,
        qk_norm=config.model.qk_norm,
        cross_attention=config.model.cross_attention,
        text_encoder=text_encoder,
    )
    return assemble_run(
        config,
        mesh,
        init_params,
        rules,
        apply=apply,
        loss=make_run_loss,
        batch=lambda config, count: abstract_batch(config, count, null_text),
        schedule=schedule,
        null_text=null_text,
    )


def assemble_run(
    config: ml_collections.ConfigDict,
    mesh: Mesh,
    init_params: Callable[[], Any],
    rules: dict[str, tuple[str, ...]],
    **fields: Any,
) -> Run:
    """A run of any model: its optimizer, its averages, and where all of its state lies.

    Args:
      config: as in configs/.
      mesh: of the run.
      init_params: () to new parameters.
      rules: of the parameters, see sharding.py.
      **fields: what else `Run` has.
    Returns:
      The run.
    Raises:
      ValueError: a name or size in the config does not fit.
    """
    learning_rate = optimizers.make_learning_rate(steps=config.train.steps, **config.learning_rate)
    optimizers.check_rate(config.optimizer.name, config.learning_rate.final_fraction)
    optimizer = optimizers.make_optimizer(learning_rate=learning_rate, **config.optimizer)
    ema_decays = ema.make_decays(config.ema.decays, config.ema.widths)

    def init(params: Any = None) -> TrainState:
        params = init_params() if params is None else params
        rng = jax.random.fold_in(jax.random.key(config.seed), 1)
        return init_state(params, optimizer, ema_decays, rng, config.train.precision)

    shapes = jax.eval_shape(init)
    shardings = sharding.make_shardings(mesh, shapes, rules)
    for field in offloaded(config):
        place = to_host(getattr(shardings, field), getattr(shapes, field))
        shardings = shardings.replace(**{field: place})
    abstract = jax.tree.map(
        lambda leaf, place: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=place),
        shapes,
        shardings,
    )
    return Run(
        config=config,
        mesh=mesh,
        optimizer=optimizer,
        learning_rate=learning_rate,
        ema_decays=ema_decays,
        init_params=init_params,
        init=init,
        abstract=abstract,
        shardings=shardings,
        **fields,
    )


def make_bucket_runs(
    run: Run,
    shapes: Mapping[str, tuple[int, int, int]],
    make_run: Callable[..., Run] = make_run,
    grid_of: Callable[..., tuple[int, int, int]] | None = None,
) -> dict[str, Run]:
    """A run for each bucket of a data set: the same state and model, clips of the bucket's shape.

    As many clips make a batch as have about the tokens of a batch of the config's own shape. Pictures cannot be split
    among the devices of `seq`: there these are more of `fsdp`, which lays the state out in the same way.

    Args:
      run: of `make_run`.
      shapes: bucket to (frames, height, width) of its clips in pixels.
      make_run: of the kind of run.
      grid_of: config to (T, H, W) of a clip's tokens; by default those of a diffusion model.
    Returns:
      Bucket to its run.
    Raises:
      ValueError: a bucket's clips do not fit the model or the mesh; the sentence names the bucket.
    """
    if set(shapes.values()) == {clip_shape(run.config)}:
        return dict.fromkeys(shapes, run)
    grid_of = token_grid if grid_of is None else grid_of
    tokens = run.config.batch_size * math.prod(grid_of(run.config))
    runs = {}
    for bucket, shape in shapes.items():
        config = with_shape(run.config, shape)
        mesh = run.mesh
        try:
            grid = grid_of(config)
            if grid[0] == 1:
                sizes = dict(mesh.shape)
                sizes |= {"fsdp": sizes["fsdp"] * sizes["seq"], "seq": 1}
                mesh = meshes.make_mesh(**sizes, devices=list(mesh.devices.flat))
            step = meshes.batch_parts(mesh) * config.train.accumulation
            with config.unlocked():
                config.batch_size = max(step, tokens // math.prod(grid) // step * step)
            # The state stays where the config's own mesh lays it.
            runs[bucket] = make_run(config, mesh, run.null_text)._replace(
                abstract=run.abstract, shardings=run.shardings
            )
        except ValueError as error:
            raise ValueError(f"Bucket {bucket}: {error}") from error
    return runs


def clip_shape(config: ml_collections.ConfigDict) -> tuple[int, int, int]:
    """(frames, height, width) of the config's clips in pixels."""
    return config.data.frames, config.data.height, config.data.width


def with_shape(
    config: ml_collections.ConfigDict, shape: tuple[int, int, int]
) -> ml_collections.ConfigDict:
    """The config for clips of another shape.

    Args:
      config: of the run.
      shape: (frames, height, width) in pixels.
    Returns:
      A copy.
    """
    config = config.copy_and_resolve_references()
    with config.unlocked():
        config.data.update(dict(zip(("frames", "height", "width"), shape, strict=True)))
    return config


def mirrors(config: ml_collections.ConfigDict, words: Iterable[str]) -> bool:
    """Whether clips may be mirrored: data.flip is on, and no words that a model reads name sides."""
    return config.data.flip and (SECTION in config or not SIDES & set(words))


def video_dtype(config: ml_collections.ConfigDict) -> jnp.dtype:
    """The type of clips in a batch: bytes for pixels, half floats for latents."""
    return jnp.dtype(jnp.uint8 if config.vae.name == "identity" else jnp.float16)


def make_run_schedule(config: ml_collections.ConfigDict) -> Schedule:
    """The config's schedule, shifted for the size of its videos if schedule.reference_tokens says so."""
    options = dict(config.schedule)
    reference = options.pop("reference_tokens")
    if reference < 0:
        raise ValueError(
            f"schedule.reference_tokens is {reference}: give a number of tokens, or 0 for no shift by size."
        )
    if reference and options["name"] == "edm":
        raise ValueError(
            f"schedule.reference_tokens of {reference} shifts the schedule, which has no meaning for edm: set it to 0."
        )
    if reference:
        options["shift"] *= size_shift(math.prod(token_grid(config)), reference)
    return make_schedule(**options)


def offloaded(config: ml_collections.ConfigDict) -> tuple[str, ...]:
    """The fields of the train state that wait in the host's memory."""
    chosen = {"opt_state": config.memory.offload_optimizer, "ema": config.memory.offload_ema}
    return tuple(field for field, waits in chosen.items() if waits)


def abstract_batch(
    config: ml_collections.ConfigDict, count: int, null_text: Any = None
) -> dict[str, Any]:
    """Shapes and types of a batch of `count` clips, as the step takes it.

    Args:
      config: of the run.
      count: clips.
      null_text: of the run; by default as `make_run`'s.
    Returns:
      The batch, abstract.
    """
    null_text = text_conditioning.blank_text(config) if null_text is None else null_text
    batch = {
        "video": jax.ShapeDtypeStruct((count, *video_shape(config)), video_dtype(config)),
        "text": jax.tree.map(
            lambda leaf: jax.ShapeDtypeStruct((count, *leaf.shape), leaf.dtype), null_text
        ),
    }
    return batch | conditioning.abstract_conditions(config, count)


def check_snapshots(config: ml_collections.ConfigDict) -> None:
    """Refuses snapshots of no average.

    Raises:
      ValueError: it is so.
    """
    if config.ema.snapshot_every and not config.ema.widths:
        raise ValueError(
            f"ema.snapshot_every is {config.ema.snapshot_every}, but ema.widths names no power average to keep: "
            "give it widths such as (0.05, 0.1), or set snapshot_every to 0."
        )


def make_run_loss(run: Run, drops: bool = True) -> Callable[[Any, Batch, jax.Array], jax.Array]:
    """The config's loss of a batch; without `drops`, the model is always told all there is."""
    config = run.config
    return make_loss(
        run.apply,
        run.schedule,
        run.null_text,
        make_run_tasks(run),
        text_dropout=config.text.dropout * drops,
        known_dropout=config.known.dropout * drops,
        joint_dropout=config.known.joint_dropout * drops,
        **config.objective,
    )


def make_run_tasks(run: Run) -> Tasks | None:
    """The config's tasks; None for a model that is told of no frames."""
    return conditioning.make_tasks(run.config, token_grid(run.config)[0])


def make_run_level_losses(run: Run, count: int) -> Callable[[Any, Batch, jax.Array], jax.Array]:
    """The config's loss of a batch at each of `count` noise levels, as of `make_loss_by_noise_level`."""
    chosen = {name: run.config.objective[name] for name in ("prediction", "weighting", "gamma")}
    clip_losses = make_clip_losses(run.apply, run.schedule, make_run_tasks(run), **chosen)
    return make_loss_by_noise_level(clip_losses, run.schedule, count)


def place_batch(run: Run) -> dict[str, Any]:
    """A whole batch of the config, abstract, laid out on the mesh."""
    rows = NamedSharding(run.mesh, meshes.BATCH)
    return jax.tree.map(
        lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=rows),
        run.batch(run.config, run.config.batch_size),
    )


def token_grid(config: ml_collections.ConfigDict) -> tuple[int, int, int]:
    """(T, H, W) of a clip's tokens."""
    return patch_grid(video_shape(config)[:3], config.model.patch_size)


def forward_flops(config: ml_collections.ConfigDict) -> int:
    """Operations of the model's forward pass over one clip."""
    model = config.model
    places, channels = math.prod(model.patch_size), video_shape(config)[-1]
    return count_flops(
        token_grid(config),
        width=model.width,
        depth=model.depth,
        mlp_ratio=model.mlp_ratio,
        attention=model.attention,
        causal=model.causal,
        cross_attention=model.cross_attention,
        patch_in=places * conditioning.input_channels(config, channels),
        patch_out=places * channels,
        text_tokens=config.text.length,
        text_depth=model.text_depth,
    )


def least_step_wire(run: Run) -> int:
    """The fewest bytes that a device must send in a train step."""
    config, model = run.config, run.config.model
    reads = {"none": 0, "gated": model.depth, "pixart": model.depth}[model.cross_attention]
    if model.cross_attention == "pixart" and model.attention == "factorized":
        reads //= 2  # spatial blocks alone
    return least_wire_bytes(
        run.abstract.params,
        run.mesh.shape,
        tokens=config.batch_size * math.prod(token_grid(config)),
        width=model.width,
        depth=model.depth,
        attention=model.attention,
        branches=2 * model.depth + reads,
        item_bytes=jnp.dtype(compute_dtype(config.train.precision)).itemsize,
        accumulation=config.train.accumulation,
    )


def trace_step(run: Run) -> Any:
    """The train step for the mesh and the batch's shape, ready to be lowered; the state is donated."""
    config = run.config
    step = make_train_step(
        run.loss(run),
        run.optimizer,
        run.learning_rate,
        accumulation=config.train.accumulation,
        ema_decays=run.ema_decays,
        offloaded=offloaded(config),
    )
    whole = NamedSharding(run.mesh, PartitionSpec())
    jitted = jax.jit(step, donate_argnums=0, out_shardings=(run.shardings, whole))
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
    shape = "x".join(map(str, clip_shape(run.config)))
    logging.info(
        "Compiled the step for clips of %s in %.1f s.", shape, time.perf_counter() - started
    )
    return compiled
