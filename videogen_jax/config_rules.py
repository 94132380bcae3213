"""What a config must satisfy: types and ranges of single options, and combinations that make sense.

`config.validate` applies all of it. What depends on shapes (those of tokens, latents or packed clips) is checked where
these are known.
"""

import difflib
import math
from collections.abc import Iterable
from typing import Any

from absl import logging


def nearest(name: str, options: Iterable[str]) -> str:
    """The end of a sentence about an unknown option: the nearest one, or where they are listed."""
    near = difflib.get_close_matches(name, options, n=1, cutoff=0.5)
    return f": did you mean {near[0]!r}?" if near else ": python -m videogen_jax.config lists them"


def convert(name: str, option: Any, value: Any) -> Any:
    """The value in the option's type: whole numbers become floats where these are wanted, lists tuples."""
    if getattr(value, "ndim", None) == 0:  # of NumPy
        value = value.item()
    wanted = option.of if option.default is None else type(option.default)
    if value is None and option.default is None:
        return None
    if wanted is tuple and isinstance(value, list | tuple):
        if option.of is tuple:
            return tuple(tuple(entry) for entry in value)
        if option.of is float:
            return tuple(float(entry) if isinstance(entry, int) else entry for entry in value)
        return tuple(value)
    if wanted is float and isinstance(value, int) and not isinstance(value, bool):
        return float(value)
    if type(value) is not wanted:
        kind = {int: "a whole number", float: "a number", bool: "True or False", str: "a text"}
        raise ValueError(f"{name} is {value!r}: give {kind.get(wanted, 'a tuple')}.")
    return value


def check_value(name: str, option: Any, value: Any) -> None:
    """Raises ValueError for a number out of bounds, one that is not finite, or an unknown choice."""
    entries = value if isinstance(value, tuple) else (value,)
    for entry in entries:
        if option.choices and entry not in option.choices:
            near = difflib.get_close_matches(str(entry), option.choices, n=1)
            hint = f" ({near[0]}?)" if near else ""
            raise ValueError(
                f"Unknown {name} {entry!r}{hint}: choose one of {', '.join(option.choices)}."
            )
        if option.of not in (None, tuple) and entry is not None:
            if not isinstance(entry, option.of) or isinstance(entry, bool):
                kind = {int: "whole numbers", float: "numbers", str: "texts"}[option.of]
                raise ValueError(f"{name} is {value!r}: give {kind}.")
        if isinstance(entry, float) and not math.isfinite(entry) and "inf]" not in option.bounds:
            raise ValueError(f"{name} is {value}: give a finite number.")
        if option.bounds and entry is not None and not _inside(entry, option.bounds):
            raise ValueError(f"{name} is {value}: give a number {describe_bounds(option.bounds)}.")


def _inside(number: float, bounds: str) -> bool:
    low, high = (float(end) for end in bounds[1:-1].split(","))
    above = low <= number if bounds[0] == "[" else low < number
    return above and (number <= high if bounds[-1] == "]" else number < high)


def describe_bounds(bounds: str) -> str:
    """An interval in words: [1, inf) is "at least 1"."""
    low, high = (end.strip() for end in bounds[1:-1].split(","))
    if high == "inf":
        return f"at least {low}" if bounds[0] == "[" else f"above {low}"
    return f"from {low} to {'below ' if bounds[-1] == ')' else ''}{high}"


def check_combinations(config: Any, autoencoder: bool) -> None:
    """Raises ValueError, naming the options and the way out, where options contradict each other.

    Args:
      config: complete, each option valid by itself.
      autoencoder: whether it trains a video autoencoder.
    """
    warmup, steps = config.learning_rate.warmup_steps, config.train.steps
    if not config.train.epochs and warmup >= steps:
        raise ValueError(
            f"learning_rate.warmup_steps of {warmup} is not below train.steps of {steps}: shorten the warm-up."
        )
    parts, accumulation = config.mesh.data * config.mesh.fsdp, config.train.accumulation
    if config.batch_size % (parts * accumulation):
        raise ValueError(
            f"batch_size of {config.batch_size} does not divide into {parts} parts (data={config.mesh.data} x "
            f"fsdp={config.mesh.fsdp}) in {accumulation} accumulation steps: make it a multiple of "
            f"{parts * accumulation}, or put devices on mesh.seq."
        )
    if config.optimizer.name == "schedule_free" and config.learning_rate.final_fraction != 1:
        raise ValueError(
            "schedule_free averages instead of lowering the learning rate, but learning_rate.final_fraction is "
            f"{config.learning_rate.final_fraction}: set it to 1.0."
        )
    if config.ema.snapshot_every and not config.ema.widths:
        raise ValueError(
            f"ema.snapshot_every is {config.ema.snapshot_every}, but ema.widths names no power-function average to "
            "keep: give it widths such as (0.05, 0.1), or set snapshot_every to 0."
        )
    low, high = config.augment.fps_min, config.augment.fps_max
    if (low or high) and not 0 < low <= high:
        raise ValueError(
            f"augment.fps_min is {low} and augment.fps_max is {high}: give two rates above 0, the lower one first, or "
            "0 and 0 to take clips as they were packed."
        )
    if low < high and "model" in config and "fps" not in config.model.micro_conditions:
        raise ValueError(
            f"augment.fps_min and fps_max resample clips to {low} to {high} frames per second, but the model is not "
            "conditioned on the rate: add 'fps' to model.micro_conditions, or make them equal."
        )
    if 0 < high < config.data.fps:
        logging.warning(
            "Training sees at most %g frames per second, but validation and samples have data.fps of %g: "
            "raise --config.augment.fps_max.",
            high,
            config.data.fps,
        )
    if not autoencoder:
        _check_diffusion(config)
        return
    for axis in ("seq", "tensor"):
        if config.mesh[axis] > 1:
            raise ValueError(
                f"mesh.{axis} is {config.mesh[axis]}, but an autoencoder in training cannot split a clip among "
                "devices: put them on mesh.data or mesh.fsdp."
            )
    if config.memory.remat == "selective":
        raise ValueError(
            "memory.remat is 'selective', which an autoencoder does not have: choose none or block."
        )


def _check_diffusion(config: Any) -> None:
    text, known = config.text, config.known
    if text.encoder == "clip" and config.vae.name == "identity":
        raise ValueError(
            "text.encoder is 'clip', whose embeddings are stored beside latents, but vae.name is 'identity': choose "
            "an autoencoder, or set --config.text.encoder=words."
        )
    if config.vae.name == "workdir" and not config.vae.path:
        raise ValueError(
            "vae.name is 'workdir', but vae.path is empty: name the folder of a run of configs/vae_*.py."
        )
    shares = (text.dropout, known.dropout, known.joint_dropout)
    if sum(shares) > 1:
        raise ValueError(
            f"text.dropout, known.dropout and known.joint_dropout are {', '.join(map(str, shares))}: their sum is at "
            "most 1."
        )
    if "augmentation" in config.model.micro_conditions and config.model.conditioning != "frames":
        raise ValueError(
            "model.micro_conditions have 'augmentation', the noise on known frames, but model.conditioning is "
            f"{config.model.conditioning!r}: set it to 'frames', or leave the micro-condition out."
        )
    sample = config.sample
    if sample.clip_x0 and config.vae.name != "identity":
        raise ValueError(
            f"sample.clip_x0 is on, but latents of vae.name={config.vae.name!r} have no bounds: set it to False."
        )
    if sample.known_guidance_scale is not None and config.model.conditioning != "frames":
        raise ValueError(
            f"sample.known_guidance_scale is {sample.known_guidance_scale:g}, but this model takes no known frames "
            f"(model.conditioning={config.model.conditioning!r}): leave it out."
        )
    if config.evaluation.fvd_every and not config.tasks.text:
        raise ValueError(
            "evaluation.fvd_every scores videos made from captions alone, which this run never learns "
            "(tasks.text=0): set it to 0."
        )
