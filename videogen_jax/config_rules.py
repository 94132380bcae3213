"""What a config must satisfy: types and ranges of single options, and combinations that make sense.

`config.validate` applies all of it. What depends on shapes (those of tokens, latents or packed clips) is checked where
these are known.
"""

import ast
import difflib
import math
import re
from collections.abc import Iterable
from typing import Any

from absl import logging

LARGEST_WHOLE = 2**31 - 1  # of JAX's int32, in which steps and sizes are counted
LARGEST = 3e38  # of float32
KINDS = {int: "a whole number", float: "a number", bool: "True or False", str: "a text"}
PLURALS = {int: "whole numbers", float: "numbers", str: "texts", tuple: "tuples of whole numbers"}


def describe_unknown(name: str, options: Iterable[str]) -> str:
    """A sentence about an option that does not exist, with the nearest ones or where they are listed."""
    near = nearest(name, list(options))
    hint = (
        f"did you mean {' or '.join(map(repr, near))}?"
        if near
        else "python -m videogen_jax.config lists them."
    )
    if any(option.startswith(f"{name}.") for option in options):
        return f"{name!r} is a section of options and has no value of its own: {hint}"
    return f"There is no option {name!r}: {hint}"


def nearest(name: str, options: list[str]) -> list[str]:
    """The options that a misspelt one most likely means, none to three.

    By the whole name first; then the same last part in other sections (train.width), a last part that is itself a
    section (optimizer.learning_rate), and last whatever is similar at all.
    """
    if near := difflib.get_close_matches(name, options, n=1, cutoff=0.8):
        return near
    last = name.rpartition(".")[2]
    same = [option for option in options if option.rpartition(".")[2] == last]
    if near := difflib.get_close_matches(name, same, n=3, cutoff=0.0):
        return near
    if inside := [option for option in options if option.startswith(f"{last}.")]:
        return inside[:1]
    return difflib.get_close_matches(name, options, n=1, cutoff=0.5)


def parse(name: str, option: Any, text: str | None) -> Any:
    """The value of an option from its text on a command line.

    Args:
      name: dotted name, for errors.
      option: of config.py.
      text: such as 1e3, true, None, (1, 2, 2) or fps,motion; None is "true".
    Raises:
      ValueError: names the option and what it takes.
    """
    wanted = type_of(option)
    if text is None:
        text = "true"
    if option.default is None and text.strip().lower() in ("none", ""):
        return None
    if wanted is str:
        return text
    if wanted is tuple:
        return convert(name, option, _parse_entries(name, option, text))
    if wanted is bool:
        truth = {"true": True, "t": True, "1": True, "false": False, "f": False, "0": False}
        return convert(name, option, truth.get(text.strip().lower(), text))
    return convert(name, option, _parse_number(text))


def _parse_number(text: str) -> int | float | str:
    """A number as exact as it is written; the text itself where it is none."""
    for kind in (int, float):
        try:
            return kind(text)
        except (ValueError, OverflowError):
            continue
    return text


def _parse_entries(name: str, option: Any, text: str) -> Any:
    text = text.strip()
    if option.of is str and text[:1] not in ("(", "[", "'", '"'):
        if not option.choices:
            return (text,) if text else ()
        return tuple(filter(None, (word.strip() for word in text.split(","))))
    try:
        value = ast.literal_eval(text) if text else ()
    except (SyntaxError, ValueError, MemoryError, RecursionError):
        raise ValueError(f"{name} is {text!r}: give {describe_type(option)}.") from None
    return value if isinstance(value, list | tuple) else (value,)


def type_of(option: Any) -> type:
    """The type of an option's value, apart from None."""
    return option.of if option.default is None else type(option.default)


def describe_type(option: Any) -> str:
    """What an option takes: "a whole number", "a tuple of 3 whole numbers"."""
    wanted = type_of(option)
    if wanted is not tuple:
        return KINDS[wanted] + (" or None" if option.default is None else "")
    counts = " or ".join(str(count) if count else "no" for count in option.lengths)
    examples = {int: "(1, 2, 2)", float: "(0.5, 0.9)", str: "('a', 'b')", tuple: "((1, 2, 2),)"}
    # An example has as many entries as are wanted.
    example = "" if counts else f", such as {examples[option.of]}"
    return f"a tuple of {counts + ' ' if counts else ''}{PLURALS[option.of]}{example}"


def convert(name: str, option: Any, value: Any) -> Any:
    """The value in the option's type: 8 becomes 8.0 where a float is wanted, 1e3 becomes 1000, lists become tuples.

    Raises:
      ValueError: it has another type.
    """
    if getattr(value, "ndim", None) == 0:  # of NumPy
        value = value.item()
    wanted = type_of(option)
    if value is None and option.default is None:
        return None
    converted = value
    if wanted is tuple and isinstance(value, list | tuple):
        converted = tuple(_convert_entry(option.of, entry) for entry in value)
    elif wanted is not tuple:
        converted = _convert_entry(wanted, value)
    if type(converted) is not wanted:
        raise ValueError(f"{name} is {shorten(value)}: give {describe_type(option)}.")
    return converted


def _convert_entry(wanted: type, value: Any) -> Any:
    """A number in the wanted type if it has the same value there; anything else unchanged."""
    if wanted is tuple and isinstance(value, list | tuple):
        return tuple(_convert_entry(int, entry) for entry in value)
    if isinstance(value, bool) or not isinstance(value, int | float):
        return value
    if wanted is float and abs(value) < LARGEST:
        return float(value)
    if wanted is int and isinstance(value, float) and value.is_integer():
        return int(value)
    return float("inf") if wanted is float and isinstance(value, int) else value


def shorten(value: Any) -> str:
    """A value as Python writes it, for a sentence: at most 80 characters."""
    text = repr(value)
    return text if len(text) <= 80 else f"{text[:77]}..."


def check_value(name: str, option: Any, value: Any) -> None:
    """Raises ValueError for a number out of bounds, one that is not finite, or an unknown choice."""
    wanted = type_of(option)
    if option.lengths and len(value) not in option.lengths:
        raise ValueError(f"{name} is {shorten(value)}: give {describe_type(option)}.")
    for entry in value if isinstance(value, tuple) else (value,):
        if option.choices and entry not in option.choices:
            near = difflib.get_close_matches(str(entry), option.choices, n=1)
            hint = f" ({near[0]}?)" if near else ""
            raise ValueError(
                f"Unknown {name} {shorten(entry)}{hint}: choose one of {', '.join(option.choices)}."
            )
        if wanted is tuple and option.of is tuple:
            if not _is_triple(entry):
                raise ValueError(
                    f"{name} is {shorten(value)}: give tuples of 3 whole numbers, such as ((1, 2, 2),)."
                )
            for number in entry:
                _check_number(name, option, number, value)
            continue
        if wanted is tuple and type(entry) is not option.of:
            raise ValueError(f"{name} is {shorten(value)}: give {PLURALS[option.of]}.")
        if isinstance(entry, int | float) and not isinstance(entry, bool):
            _check_number(name, option, entry, value)


def _is_triple(entry: Any) -> bool:
    return isinstance(entry, tuple) and len(entry) == 3 and all(type(one) is int for one in entry)


def _check_number(name: str, option: Any, number: float, value: Any) -> None:
    if isinstance(number, float) and not math.isfinite(number):
        raise ValueError(f"{name} is {shorten(value)}: give a finite number.")
    if option.bounds and not _inside(number, option.bounds):
        raise ValueError(
            f"{name} is {shorten(value)}: give a number {describe_bounds(option.bounds)}."
        )
    if isinstance(number, int) and number > LARGEST_WHOLE and "inf" in (option.bounds or "inf"):
        raise ValueError(
            f"{name} is {shorten(value)}: give a whole number of at most {LARGEST_WHOLE}."
        )
    if isinstance(number, float) and abs(number) > LARGEST:
        raise ValueError(f"{name} is {shorten(value)}: give a number that float32 can hold.")


def _inside(number: float, bounds: str) -> bool:
    low, high = (float(end) for end in bounds[1:-1].split(","))
    above = low <= number if bounds[0] == "[" else low < number
    return above and (number <= high if bounds[-1] == "]" else number < high)


def describe_bounds(bounds: str) -> str:
    """An interval in words: [1, inf) is "at least 1"."""
    low, high = (end.strip() for end in bounds[1:-1].split(","))
    if high == "inf":
        return f"at least {low}" if bounds[0] == "[" else f"above {low}"
    if bounds[0] == "(":
        return f"above {low} and {'below' if bounds[-1] == ')' else 'at most'} {high}"
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
    _check_patterns("train.frozen", config.train.frozen)
    if not autoencoder:
        _check_diffusion(config)
        return
    for axis in ("seq", "tensor"):
        if config.mesh[axis] > 1:
            raise ValueError(
                f"mesh.{axis} is {config.mesh[axis]}, but an autoencoder in training cannot split a clip among "
                "devices: put them on mesh.data or mesh.fsdp."
            )


def _check_text(config: Any) -> None:
    text = config.text
    if text.encoder != "words" and config.vae.name == "identity":
        raise ValueError(
            f"text.encoder is {text.encoder!r}, whose embeddings are stored beside latents, but vae.name='identity' "
            "has none: choose an autoencoder, or set --config.text.encoder=words."
        )
    if text.layer != -1 and text.encoder != "qwen3":
        raise ValueError(
            f"text.layer is {text.layer}, which is of text.encoder=qwen3, but that is {text.encoder!r}: set it to -1."
        )
    if text.pooled_path and not text.pooled_encoder:
        raise ValueError(
            f"text.pooled_path is {text.pooled_path!r}, but text.pooled_encoder is empty: set it to 'clip'."
        )
    if not text.pooled_encoder:
        return
    if text.encoder in ("words", text.pooled_encoder):
        raise ValueError(
            f"text.pooled_encoder is {text.pooled_encoder!r}, beside text.encoder={text.encoder!r}, which has its own "
            "pooled vector: leave it empty."
        )
    if not config.model.pooled_text:
        raise ValueError(
            f"text.pooled_encoder is {text.pooled_encoder!r}, but model.pooled_text is off and nothing reads its "
            "vector: leave it empty, or set --config.model.pooled_text=True."
        )


def _check_diffusion(config: Any) -> None:
    text, known = config.text, config.known
    _check_text(config)
    if config.vae.name == "workdir" and not config.vae.path:
        raise ValueError(
            "vae.name is 'workdir', but vae.path is empty: name the folder of a run of configs/vae_*.py."
        )
    if 0 < text.vocabulary_size < 4:
        raise ValueError(
            f"text.vocabulary_size is {text.vocabulary_size}, of which 3 are special: give at least 4, or 0 for all "
            "words of the captions."
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
    _check_lora(config)
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


def _check_lora(config: Any) -> None:
    lora = config.train.lora
    for name in ("layers", "full"):
        _check_patterns(f"train.lora.{name}", lora[name])
    if not lora.rank:
        for name in ("alpha", "full"):
            if lora[name]:
                raise ValueError(
                    f"train.lora.{name} is {lora[name]}, but train.lora.rank is 0: set the rank, such as 8, or leave "
                    f"{name} out."
                )
        return
    if not config.init.path:
        raise ValueError(
            f"train.lora.rank is {lora.rank}, but a run that starts from nothing has no parameters worth keeping: name "
            "the weights to start from with init.path and init.layout."
        )
    if config.train.frozen:
        raise ValueError(
            f"train.frozen is {config.train.frozen}, but with train.lora.rank={lora.rank} all parameters are frozen: "
            "leave it empty; train.lora.layers says which layers have an update."
        )


def _check_patterns(name: str, patterns: Iterable[str]) -> None:
    for pattern in patterns:
        try:
            re.compile(pattern)
        except re.error as error:
            raise ValueError(
                f"{name} has {pattern!r}, which is not a regular expression ({error}): write one such as "
                "'blocks/.*/kernel'."
            ) from error
