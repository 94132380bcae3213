"""From a config to the model of a run on a mesh, without an optimizer. Nothing is allocated here.

Training, sampling, `plan` and the tests all start from `make_model`, so they cannot disagree about what a config means.
"""

import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import ml_collections
from absl import logging
from jax.sharding import Mesh, NamedSharding

from videogen_jax.data.vocabulary import MOST_WORDS
from videogen_jax.diffusion.objective import expand
from videogen_jax.diffusion.schedule import Schedule, make_schedule, size_shift
from videogen_jax.diffusion.tasks import TASKS, Tasks, check_tasks
from videogen_jax.models.attention import choose_kernel
from videogen_jax.models.dit import CONDITIONINGS, VideoDiT
from videogen_jax.models.kv_cache import KVCache
from videogen_jax.models.lora import BLOCKS, LoRA, adapt
from videogen_jax.models.parameter_paths import find_matches, list_paths
from videogen_jax.models.patches import patch_grid
from videogen_jax.models.positions import ADDED_IN_TIME
from videogen_jax.parallel import mesh as meshes
from videogen_jax.parallel import sharding
from videogen_jax.parallel.sequence_parallel import TokenSharding, check_token_grid
from videogen_jax.run import text_conditioning
from videogen_jax.run.conditioning import Conditioning
from videogen_jax.run.ema import make_decays
from videogen_jax.run.latent_space import LatentSpace
from videogen_jax.run.state import PARAMETERS, compute_dtype

MOST_NUMBERS = 4  # of a patch, over the hidden size, that nothing is said about
Shape = tuple[int, int, int]  # (frames, height, width) of a clip in pixels
Grid = tuple[int, int, int]  # (T, H, W) of tokens


class Model(NamedTuple):
    """What a config describes on a mesh: a diffusion model, or an autoencoder in training (autoencoder_model.py)."""

    config: ml_collections.ConfigDict
    mesh: Mesh
    # (params, x_t, t, condition) to the model's output, and with a KV cache as `VideoDiT`
    apply: Callable[..., Any]
    init_params: Callable[[], Any]  # to be jitted with `param_shardings` as its output's
    abstract_params: Any  # tree of jax.ShapeDtypeStruct with shardings
    param_shardings: Any  # tree of NamedSharding
    rules: dict[str, tuple[str, ...]]  # parameter path to logical axes, see parallel/sharding.py
    # Of diffusion models.
    schedule: Schedule | None = None
    conditioning: Conditioning | None = None
    latent_space: LatentSpace | None = None
    null_text: Any = None  # tree of rows without the batch axis, see text_conditioning.py

    @property
    def clip_shape(self) -> Shape:
        """(frames, height, width) of a clip in pixels."""
        return clip_shape(self.config)

    @property
    def video_shape(self) -> tuple[int, int, int, int]:
        """(T, H, W, C) of one clip as the model sees it: of its latents, where there is an autoencoder."""
        return self.latent_space.latent_shape(self.config.data.frames)

    @property
    def token_grid(self) -> Grid:
        """(T, H, W) of a clip's tokens."""
        return patch_grid(self.video_shape[:3], self.config.model.patch_size)

    @property
    def patch_frames(self) -> int:
        """Frames of a latent frame, pt."""
        return self.config.model.patch_size[0]

    @property
    def fps(self) -> float:
        """Frames per second of its videos."""
        return self.config.data.fps

    @property
    def prediction(self) -> str:
        """What the model predicts, one of `objective.PREDICTIONS`."""
        return self.config.objective.prediction

    @property
    def ema_names(self) -> tuple[str, ...]:
        """The moving averages of a run; the first one samples and is validated."""
        return tuple(make_decays(self.config.ema.decays, self.config.ema.widths))

    @property
    def sampling(self) -> dict[str, Any]:
        """The options of `sample` that are the sampler's: the fields of `SamplerSettings`."""
        others = ("every", "prompts", "motion", "shown_frames", "shown_side")
        return {name: value for name, value in self.config.sample.items() if name not in others}


def make_model(
    config: ml_collections.ConfigDict,
    mesh: Mesh | None = None,
    null_text: Any = None,
    grid: Grid | None = None,
) -> Model:
    """Builds a diffusion model.

    Args:
      config: complete and valid, as of `config.validate`.
      mesh: to use instead of the config's, e.g. for sampling on other devices.
      null_text: embedding of no caption; by default zeros of its shapes, as `text_conditioning.blank_text`.
      grid: (T, H, W) of the tokens that the mesh shares, of a chunk of a long video; by default a clip's.
    Returns:
      The model.
    Raises:
      ValueError: sizes in the config do not fit together, or not on the mesh; the sentence names them.
    """
    mesh = meshes.make_mesh(**config.mesh) if mesh is None else mesh
    space = make_latent_space(config)
    video_shape = space.latent_shape(config.data.frames)
    _check_known_frames(config, space)
    tokens = patch_grid(video_shape[:3], config.model.patch_size)
    condition_spec = make_conditioning(config, tokens[0])
    text = config.text
    if null_text is None:
        null_text = text_conditioning.blank_text(text)
    text_encoder = text_conditioning.MODEL_ENCODERS[text.encoder]
    check_token_grid(mesh, grid or tokens, config.model.attention, config.model.num_heads)
    schedule = _make_schedule(config, tokens)
    lora = make_lora(config)
    network = VideoDiT(
        **dict(config.model, position_grid=config.model.position_grid or None),
        text_encoder=text_encoder,
        vocabulary_size=text.vocabulary_size or MOST_WORDS,
        dtype=compute_dtype(config.train.precision),
        token_sharding=TokenSharding(mesh),
        kernel=choose_kernel(config.memory.attention_kernel, mesh.devices.flat),
        remat=config.memory.remat,
        offload=config.memory.offload_activations,
        pieces=config.memory.pieces if grid is None else 1,  # which a chunk need not divide by
        unroll=config.memory.unroll,
    )

    def apply(
        params: Any,
        x_t: jax.Array,
        t: jax.Array,
        condition: dict[str, Any],
        kv_cache: KVCache | None = None,
    ) -> Any:
        if schedule.clock == "sigma":
            scale = schedule.input_scale(t)
            if scale.ndim == 2:  # a time for each latent frame
                scale = jnp.repeat(scale, config.model.patch_size[0], axis=1)
            x_t = x_t * expand(scale, x_t.ndim)
        micro, frames = condition_spec.model_inputs(condition)
        inputs = (x_t, schedule.model_time(t), condition["text"], micro)
        return adapt(network.apply, lora)({"params": params}, *inputs, **frames, kv_cache=kv_cache)

    def init_params() -> Any:
        # An image passes by the temporal blocks, but videos that come later want their parameters.
        shape = (1, video_shape[0] * (1 + (tokens[0] == 1)), *video_shape[1:])
        condition = condition_spec.empty(shape)
        condition |= {name: jnp.zeros(1) for name in condition_spec.batch_conditions}
        micro, frames = condition_spec.model_inputs(condition)
        rng = jax.random.fold_in(jax.random.key(config.seed), PARAMETERS)
        rows = jax.tree.map(lambda row: jnp.zeros((1, *row.shape), row.dtype), null_text)
        inputs = (jnp.zeros(shape), jnp.zeros(1), rows, micro)
        # One clip cannot be split among the devices that share a batch; nor need it be.
        init = adapt(network.clone(token_sharding=None).init, lora)
        return init(rng, *inputs, **frames)["params"]

    rules = sharding.parameter_rules(
        modulation=config.model.modulation,
        qk_norm=config.model.qk_norm,
        cross_attention=config.model.cross_attention,
        text_encoder=text_encoder,
        detailer=bool(config.model.detailer_width),
        text_pooling=config.model.text_pooling,
    )
    abstract_params, param_shardings = place_abstract(mesh, init_params, rules)
    if lora is not None:
        kernels = [path for path in list_paths(abstract_params) if path.startswith(BLOCKS)]
        layers = [path[: -len("/kernel")] for path in kernels if path.endswith("/kernel")]
        find_matches("train.lora.layers", lora.layers, layers)
    return Model(
        config=config,
        mesh=mesh,
        apply=apply,
        init_params=init_params,
        abstract_params=abstract_params,
        param_shardings=param_shardings,
        rules=rules,
        schedule=schedule,
        conditioning=condition_spec,
        latent_space=space,
        null_text=null_text,
    )


def place_abstract(
    mesh: Mesh, init: Callable[[], Any], rules: dict[str, tuple[str, ...]]
) -> tuple[Any, Any]:
    """Shapes with shardings, and the shardings alone, of what a function would return."""
    shapes = jax.eval_shape(init)
    shardings = sharding.make_shardings(mesh, shapes, rules)
    return with_shardings(shapes, shardings), shardings


def with_shardings(shapes: Any, shardings: Any) -> Any:
    """A tree of jax.ShapeDtypeStruct with shardings."""

    def place(leaf: Any, layout: NamedSharding) -> jax.ShapeDtypeStruct:
        return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=layout)

    return jax.tree.map(place, shapes, shardings)


def abstract_batch(model: Model, count: int) -> dict[str, Any]:
    """Shapes and types of a batch of `count` clips of a diffusion model, as the train step takes it."""
    dtype = jnp.uint8 if model.latent_space.pixels else jnp.float16
    text = jax.tree.map(
        lambda row: jax.ShapeDtypeStruct((count, *row.shape), row.dtype), model.null_text
    )
    video = jax.ShapeDtypeStruct((count, *model.video_shape), dtype)
    micro = {
        name: jax.ShapeDtypeStruct((count,), jnp.float32)
        for name in model.conditioning.batch_conditions
    }
    return {"video": video, "text": text} | micro


def abstract_condition(
    model: Model, count: int, shape: tuple[int, int, int, int]
) -> dict[str, Any]:
    """Shapes and types of the condition of `count` videos (T, H, W, C), as the sampler takes it; no frame is known."""
    condition = abstract_batch(model, count)
    del condition["video"]
    return condition | model.conditioning.empty((count, *shape))


def clip_shape(config: ml_collections.ConfigDict) -> Shape:
    """(frames, height, width) of the config's clips in pixels."""
    return config.data.frames, config.data.height, config.data.width


def token_grid(config: ml_collections.ConfigDict) -> Grid:
    """(T, H, W) of a clip's tokens.

    Raises:
      ValueError: the autoencoder's strides or the patches do not divide the clip.
    """
    shape = make_latent_space(config).latent_shape(config.data.frames)
    return patch_grid(shape[:3], config.model.patch_size)


def describe_large_patch(config: ml_collections.ConfigDict) -> str:
    """A sentence where a patch has far more numbers than the hidden size that it is projected to.

    A token then holds too little of its patch: such a model of three clips learned what their patches look like, but
    not where each belongs.

    Args:
      config: complete and valid, of a diffusion model or of an autoencoder, which has no such patches.
    Returns:
      The sentence, with the way out; empty where a patch has at most `MOST_NUMBERS` times the hidden size.
    Raises:
      ValueError: the autoencoder's strides do not divide the clip.
    """
    if "model" not in config:
        return ""
    size, width = tuple(config.model.patch_size), config.model.width
    channels = make_latent_space(config).latent_shape(config.data.frames)[-1]
    numbers = math.prod(size) * channels
    if numbers <= MOST_NUMBERS * width:
        return ""
    return (
        f"A patch of model.patch_size={size} has {numbers:,} numbers ({channels} channels), more than {MOST_NUMBERS} "
        f"times the hidden size of {width:,} that it is projected to, and the model may not learn where patches "
        f"belong: make model.patch_size smaller, or model.width at least {-(-numbers // MOST_NUMBERS):,}."
    )


def with_shape(config: ml_collections.ConfigDict, shape: Shape) -> ml_collections.ConfigDict:
    """A copy of the config for clips of another shape in pixels."""
    config = config.copy_and_resolve_references()
    with config.unlocked():
        config.data.update(dict(zip(("frames", "height", "width"), shape, strict=True)))
    return config


def make_sampling_mesh(
    config: ml_collections.ConfigDict, count: int, devices: Sequence[jax.Device]
) -> Mesh:
    """All devices, for `count` clips of the config at a time: see `choose_mesh`."""
    options, grid = config.model, token_grid(config)
    return choose_mesh(count, devices, grid, options.attention, options.num_heads)


def choose_mesh(
    count: int, devices: Sequence[jax.Device], grid: Grid, attention: str, num_heads: int
) -> Mesh:
    """All devices: as many parts of the batch as there are videos for, and the rest split the tokens of each video.

    Where the tokens do not divide by that rest, it stays idle.

    Args:
      count: videos at a time.
      devices: to sample on.
      grid: (T, H, W) of a video's tokens.
      attention: of the model.
      num_heads: of the model.
    Returns:
      The mesh.
    """
    data = max(n for n in range(1, len(devices) + 1) if len(devices) % n == 0 and n <= count)
    mesh = meshes.make_mesh(data=data, seq=len(devices) // data, devices=devices)
    try:
        check_token_grid(mesh, grid, attention, num_heads)
    except ValueError as error:
        logging.info("Only %d of %d devices are used: %s", data, len(devices), error)
        return meshes.make_mesh(data=data, devices=devices)
    return mesh


def _make_schedule(config: ml_collections.ConfigDict, tokens: Grid) -> Schedule:
    """The config's schedule, shifted for the size of its videos if schedule.reference_tokens says so."""
    options = dict(config.schedule)
    if reference := options.pop("reference_tokens"):
        options["shift"] *= size_shift(math.prod(tokens), reference)
    return make_schedule(**options)


def make_conditioning(config: ml_collections.ConfigDict, frames: int) -> Conditioning:
    """The config's conditioning.

    Args:
      config: of the run.
      frames: latent frames of a clip, T.
    Returns:
      The conditioning.
    Raises:
      ValueError: shares, prefixes and model do not go together; the sentence names the option.
    """
    model = config.model
    shares = {name: config.tasks[name] for name in TASKS}
    if frames == 1:
        # An image, in a bucket beside those of videos, has no other frames to be conditioned on.
        shares = dict.fromkeys(TASKS, 0.0) | {"text": 1.0}
    tasks = Tasks(
        shares=shares,
        patch_frames=model.patch_size[0],
        causal=model.causal,
        noise_mean=config.known.noise_mean,
        noise_std=config.known.noise_std,
        lengths=config.prefix.lengths,
        prefix_noise=config.prefix.noise,
        time_cycle=model.time_cycle,
        first=config.known.first,
    )
    check_tasks(tasks, frames)
    # Each of these takes in what the ones before it do.
    if model.conditioning in CONDITIONINGS[: CONDITIONINGS.index(tasks.conditioning)]:
        raise ValueError(
            f"model.conditioning is {model.conditioning!r}, but the tasks of the config have known frames: set it to "
            f"{tasks.conditioning!r}, or tasks.text to 1 and the others to 0."
        )
    if tasks.shares["prefix"] and not model.time_cycle and model.positions in ADDED_IN_TIME:
        raise ValueError(
            f"tasks.prefix is {tasks.shares['prefix']:g}, but positions {model.positions!r} without a cycle end with "
            f"the clip: set model.time_cycle to {frames} or more, or model.positions to 'rope' or 'dit'."
        )
    if model.time_cycle and model.time_cycle < frames:
        raise ValueError(
            f"model.time_cycle of {model.time_cycle} is less than the {frames} latent frames of a clip, two of which "
            "would have the same position: set it to at least as many, or to 0."
        )
    return Conditioning(
        tasks=None if model.conditioning == "none" and not model.time_cycle else tasks,
        kind=model.conditioning,
        micro_conditions=model.micro_conditions,
        sampling_noise=config.known.sampling_noise,
        cyclic=bool(model.time_cycle),
    )


def make_lora(config: ml_collections.ConfigDict) -> LoRA | None:
    """The config's LoRA; None where there is none, as in autoencoders."""
    options = config.train.get("lora")
    if not options or not options.rank:
        return None
    alpha = options.rank if options.alpha is None else options.alpha
    return LoRA(options.rank, alpha / options.rank, options.layers)


def _check_known_frames(config: ml_collections.ConfigDict, space: LatentSpace) -> None:
    stride = space.describe().downsample[0]
    if config.known.first > 1 and stride > 1:
        raise ValueError(
            f"known.first is {config.known.first}, but latents of vae.name={space.name!r} are of {stride} frames each: "
            "set it to 1, or use tasks.frames."
        )


def make_latent_space(config: ml_collections.ConfigDict) -> LatentSpace:
    """The config's latent space."""
    return LatentSpace(
        name=config.vae.name,
        path=config.vae.path,
        # float16 would overflow in Stable Diffusion's.
        dtype="float32" if config.train.precision == "float32" else "bfloat16",
        encode_dtype=config.vae.encode_precision,
        size=(config.data.height, config.data.width),
        chunk_frames=config.vae.chunk_frames,
        tile=config.vae.tile,
    )
