"""How every verb starts and ends: flags in, an exit code out, user errors as one sentence."""

import atexit
import contextlib
import ctypes
import errno
import io
import logging as python_logging
import math
import os
import platform
import re
import sys
import traceback
from collections.abc import Callable, Iterator
from importlib import metadata
from pathlib import Path
from typing import Any

from absl import app, flags, logging

from videogen_jax import config, interrupts
from videogen_jax.parallel import gpu_pools
from videogen_jax.paths import local_path

# TensorFlow only reads records here, and is not to greet on stderr. It reads these when a verb imports it, so they are
# set before that; on some CPUs it reports oneDNN, which nothing here would be faster with, whatever the level.
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
os.environ.setdefault("TF_ENABLE_ONEDNN_OPTS", "0")

# Flags of all verbs whose values are paths. Those of weights may also be names on the Hugging Face hub.
PATH_FLAGS = (
    *("workdir", "input", "output", "output_dir", "data", "generated", "reference", "logdir", "compare"),
    *("prompts_file", "prompts_schedule", "image", "known", "clip", "i3d", "model"),
    *("video_folder", "samples", "report", "vae_path", "text_path"),
)  # fmt: skip

# Parameters of glibc's mallopt, from its malloc.h.
M_TRIM_THRESHOLD, M_MMAP_MAX, M_ARENA_MAX = -1, -4, -8

CONFIG_PATH = r"([^:]+(?:://[^:]*)?)"  # up to the colon before the argument of a config's file

# What a config's file raises where it is wrong: it is read with the flags.
CONFIG_FILE_ERRORS = (AttributeError, ImportError, KeyError, NameError, SyntaxError, TypeError)

# Variables that change what JAX computes, and what a run has.
JAX_NUMBERS = {
    "JAX_ENABLE_X64": False,
    "JAX_DEFAULT_PRNG_IMPL": "threefry2x32",
    "JAX_THREEFRY_PARTITIONABLE": True,
    "JAX_RANDOM_SEED_OFFSET": 0,
    "JAX_DEFAULT_MATMUL_PRECISION": None,
    "JAX_NUMPY_DTYPE_PROMOTION": "standard",
}
SPELLINGS = {  # as JAX reads them
    False: ("0", "n", "no", "f", "false", "off"),
    True: ("1", "y", "yes", "t", "true", "on"),
}

MAX_SEED = 2**32 - 1  # JAX's keys take 32 bits

QUIET = (
    "orbax",
    "tensorflow_datasets",
    "httpx",
    "httpx2",
)  # packages whose warnings alone are shown
# Warnings of Orbax that are about files which this project never writes.
HARMLESS = ("metadata file does not exist", "missing metrics", "_sharding file", "item_metadata")


def start(
    name: str,
    body: Callable[[list[str]], int | None],
    errors: tuple[type[Exception], ...] = (ValueError, OSError),
    error_code: int = 1,
) -> None:
    """Parses the flags, runs the verb and exits.

    Args:
      name: of the verb, in front of its errors.
      body: takes the arguments that are no flags; returns an exit code, None for 0.
      errors: what counts as the user's to mend: no traceback (--verbosity=1 shows it).
      error_code: exit code of these.
    """

    def fail(error: Exception) -> int:
        logging.debug("Where it came from:", exc_info=True)
        print(f"{name}: error: {describe_error(error)}", file=sys.stderr)
        return error_code

    def parse(argv: list[str]) -> list[str]:
        try:
            arguments = parse_flags(argv)
            _refuse_empty_folders()
            read_paths(flags.FLAGS)
            gpu_pools.set_defaults()
            return arguments
        except (flags.Error, *CONFIG_FILE_ERRORS, OSError, *errors) as error:
            sys.exit(fail(error))

    def main(argv: list[str]) -> int | None:
        try:
            return body(argv[1:])
        except errors as error:
            return fail(error)
        except (RuntimeError, AssertionError) as error:
            if (explained := _explain_platform(error) or _explain_cudnn(error)) is None:
                raise
            return fail(explained)
        except KeyboardInterrupt:
            interrupts.stop(name)

    keep_freed_memory()
    quiet_libraries()
    for stream in (sys.stdout, sys.stderr):  # a name that the locale cannot show is no error
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")
    atexit.register(_flush_stdout)
    ignore_jax_variables()
    app.run(main, flags_parser=parse)


def describe_error(error: Exception) -> str:
    """The sentence of an error, in one line; of one in a config's file, without its traceback."""
    text = str(error)
    # ml_collections puts the whole traceback into the message.
    if "Error whilst parsing config file" in text:
        files = re.findall(r'File "([^"]+)", line (\d+), in get_config', text)
        where = f"{files[0][0]}, line {files[0][1]}: " if files else ""
        text = where + text.strip().splitlines()[-1].partition(": ")[2]
    return " ".join(text.split())


def parse_flags(argv: list[str]) -> list[str]:
    """Parses a command line into absl's flags, and overrides of options into the flag `config`.

    Args:
      argv: with the program's name in front.
    Returns:
      The arguments that are no flags, behind the program's name.
    Raises:
      ValueError: an option does not exist, or its text is not of its type.
      flags.Error: a flag does not exist, or its text is not of its type.
    """
    overrides: dict[str, str | None] = {}
    if "config" in flags.FLAGS:
        argv, overrides = split_overrides(argv)
    for name, text in overrides.items():
        config.parse_option(name, text)  # before absl sees --help, and exits
    with _program_arguments(argv):  # ml_collections looks for overrides there
        rest = flags.FLAGS(_find_configs(argv))
    if overrides:
        flag = flags.FLAGS["config"]
        if flag.value is None:
            raise ValueError(
                f"--config.{next(iter(overrides))} overrides an option of a config, but there is no --config: name a "
                "file, or one in configs/."
            )
        flag.value = config.override(flag.value, overrides)
    return rest


def split_overrides(argv: list[str]) -> tuple[list[str], dict[str, str | None]]:
    """Takes the overrides of options out of a command line.

    Args:
      argv: among others --config.NAME=VALUE, --config.NAME VALUE, and --config.NAME or --noconfig.NAME for a truth.
    Returns:
      (the other arguments in their order, dotted name to text; None is "true").
    """
    rest: list[str] = []
    overrides: dict[str, str | None] = {}
    i = 0
    while i < len(argv):
        if argv[i] == "--":
            return rest + argv[i:], overrides
        match = re.fullmatch(r"--?(no)?config\.([^=]*)(?:=(.*))?", argv[i], re.DOTALL)
        i += 1
        if not match:
            rest.append(argv[i - 1])
            continue
        negated, name, text = match.groups()
        if text is None and negated:
            text = "false"
        elif text is None and not _is_truth(name) and i < len(argv):
            text, i = argv[i], i + 1
        overrides[name] = text
    return rest, overrides


def _is_truth(name: str) -> bool:
    option = (config.SHARED | config.DIFFUSION | config.VIDEO_AUTOENCODER).get(name)
    return option is not None and isinstance(option.default, bool)


def say(text: str) -> None:
    """Prints what a verb has done; that nobody reads it (`| head`, a full disk) does not undo the work."""
    with contextlib.suppress(OSError, ValueError):
        print(text, flush=True)


@contextlib.contextmanager
def explain_full_disk(folder: str | os.PathLike) -> Iterator[None]:
    """Turns the error of a full disk into a sentence, for verbs that resume.

    Args:
      folder: that the verb writes to.
    Raises:
      ValueError: the disk is full, a quota is used up, or a file may not be as large.
    """
    try:
        yield
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
            raise
        raise ValueError(
            f"no space left for {error.filename or folder} ({error.strerror}): free some space and call the same "
            "command again, which resumes after the finished shards."
        ) from error


def _flush_stdout() -> None:
    """Replaces a stdout that cannot be written to, for which Python would exit with code 120."""
    try:
        sys.stdout.flush()
    except (OSError, ValueError):
        with contextlib.suppress(OSError, ValueError):
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _refuse_empty_folders() -> None:
    """Raises ValueError for a folder that is given as nothing, which would be the current one."""
    for name in PATH_FLAGS:
        if name in flags.FLAGS and flags.FLAGS[name].value == "":
            raise ValueError(f"--{name} is empty: name a folder.")


def ignore_jax_variables() -> None:
    """Undoes the environment's changes to what JAX computes, and says so: a run's config alone decides its numbers."""
    for variable, usual in JAX_NUMBERS.items():
        given = os.environ.pop(variable, None)
        spellings = SPELLINGS[usual] if isinstance(usual, bool) else (str(usual),)
        if given is None or given.lower() in spellings:
            continue
        logging.warning("%s=%s is ignored: it would change the numbers of a run.", variable, given)
        if "jax" in sys.modules:  # has read it
            sys.modules["jax"].config.update(variable.lower(), usual)


def _explain_platform(error: Exception) -> ValueError | None:
    """The sentence on an error of JAX that comes of JAX_PLATFORMS; None for any other."""
    platform_name = os.environ.get("JAX_PLATFORMS")
    frames = traceback.extract_tb(error.__traceback__)
    if not platform_name or not frames or Path(frames[-1].filename).name != "xla_bridge.py":
        return None
    cause = str(error).split(" (set JAX_PLATFORMS")[0]
    cause = f" ({cause})" if cause else ""
    return ValueError(
        f"JAX_PLATFORMS={platform_name} names devices that JAX cannot use here{cause}: unset it, "
        "or install their plug-in (for NVIDIA: pip install 'jax[cuda12]')."
    )


def _explain_cudnn(error: Exception) -> ValueError | None:
    """The sentence on an error of JAX's attention by cuDNN, such as a missing wheel; None for any other."""
    frames = traceback.extract_tb(error.__traceback__)
    if not frames or Path(frames[-1].filename).name != "fused_attention_stablehlo.py":
        return None
    return ValueError(
        f"Attention of cuDNN does not work here ({str(error).rstrip('.')}): install its wheel (pip install "
        "'jax[cuda12]'), or take XLA's attention by --config.memory.attention_kernel=xla."
    )


@contextlib.contextmanager
def _program_arguments(argv: list[str]) -> Iterator[None]:
    before, sys.argv = sys.argv, argv
    try:
        yield
    finally:
        sys.argv = before


def _find_configs(argv: list[str]) -> list[str]:
    """--config=dit_512 and --config dit_512 with the path of that config; other arguments as they are."""
    result: list[str] = []
    for i in range(len(argv)):
        match = re.fullmatch(rf"(--?config=){CONFIG_PATH}(:.*)?", argv[i], re.DOTALL)
        if not match and i and argv[i - 1] in ("--config", "-config"):
            match = re.fullmatch(rf"(){CONFIG_PATH}(:.*)?", argv[i], re.DOTALL)
        if match:
            path = config.find_config(local_path(match[2], "--config"))
            result.append(f"{match[1]}{path}{match[3] or ''}")
        else:
            result.append(argv[i])
    return result


def read_paths(values: flags.FlagValues) -> None:
    """Expands "~" in the flags of PATH_FLAGS that were given.

    Raises:
      ValueError: a path is not local; see `local_path`.
    """
    for name in PATH_FLAGS:
        given = values[name].value if name in values else None
        if isinstance(given, list):
            values[name].value = [_read_path(text, name) for text in given]
        elif given and isinstance(given, str):  # `plan --report` is no path
            values[name].value = _read_path(given, name)


def _read_path(text: str, flag: str) -> str:
    # Known frames are written N:PICTURE or N-M:VIDEO.
    match = re.match(r"\d+(-\d+)?:", text) if flag == "known" else None
    frames = match[0] if match else ""
    return frames + local_path(text.removeprefix(frames), f"--{flag}")


def keep_freed_memory() -> None:
    """Keeps freed memory in the process instead of returning it to the system.

    On the CPU a compiled program allocates its whole workspace in each call, gigabytes in a train step; the system maps
    and zeroes it page by page, which takes a tenth of the step's time. Call it before JAX starts its threads. It does
    nothing if the C library is not glibc, or if JAX has a plug-in for other devices, whose memory is not the process's.

    Source: mallopt(3) of the Linux manual.
    """
    if platform.libc_ver()[0] != "glibc" or metadata.entry_points(group="jax_plugins"):
        return
    libc = ctypes.CDLL(None)
    libc.mallopt(M_TRIM_THRESHOLD, -1)  # never return the top of the heap
    libc.mallopt(M_MMAP_MAX, 0)  # no separate mappings for large blocks, which free would return
    libc.mallopt(M_ARENA_MAX, 1)  # a thread's arena is too small for such blocks


def check_seeds(first: int, count: int) -> None:
    """Raises ValueError if `count` videos with rising seeds would end above MAX_SEED."""
    if first + count - 1 > MAX_SEED:
        raise ValueError(
            f"--seed={first} and {count} videos would end above the last seed, {MAX_SEED}: begin with a lower one."
        )


def log_progress() -> None:
    """Lets the log show messages of level INFO, such as lines of progress, unless more is shown already."""
    logging.set_verbosity(max(logging.INFO, logging.get_verbosity()))


def want_finite(*names: str, flag_values: flags.FlagValues = flags.FLAGS) -> None:
    """Lets float flags refuse NaN and infinity, which their bounds let pass."""
    for name in names:
        flags.register_validator(
            name,
            lambda value: value is None or math.isfinite(value),
            message="give a finite number.",
            flag_values=flag_values,
        )


def quiet_libraries() -> None:
    """Keeps messages of libraries that mean nothing at normal work out of the log; see `is_worth_showing`."""
    logging.get_absl_handler().addFilter(is_worth_showing)
    shown = sys.unraisablehook

    def show(unraisable: Any) -> None:
        # TensorStore cannot tell Orbax, which has given up for another error: that one is raised.
        if str(unraisable.exc_value) != "Event loop is closed":
            shown(unraisable)

    sys.unraisablehook = show


def is_worth_showing(record: python_logging.LogRecord) -> bool:
    """Whether a message of the log says something to the user.

    Not: those of Orbax and TFDS on each file they open, of the Hugging Face hub's client on each request, and Orbax's
    warnings on metadata that is as it should be; the tracebacks that Orbax logs of errors in its threads, which it
    raises too; that JAX finds no TPU; that the CUDA wheels find no GPU on a machine without one, with a traceback.
    """
    text = record.getMessage()
    if f"{os.sep}jax{os.sep}" in record.pathname:
        if "Unable to initialize backend 'tpu'" in text:
            return False
        no_gpu = not any(Path("/dev").glob("nvidia[0-9]*"))
        return not (no_gpu and "Jax plugin configuration error" in text)
    if not any(f"{os.sep}{name}{os.sep}" in record.pathname for name in QUIET):
        return True
    if record.levelno < python_logging.WARNING or "_SignalingThread" in str(record.msg):
        return False
    return not any(part in text.lower() for part in HARMLESS)


def refuse(arguments: list[str]) -> None:
    """Refuses arguments that are no flags.

    Raises:
      ValueError: there are some.
    """
    if arguments:
        raise ValueError(f"{arguments[0]!r} is not a flag: flags look like --name=value.")


def parse_share(text: str) -> tuple[int, int]:
    """Reads "3/64" as (3, 64).

    Raises:
      ValueError: it is no part of a whole.
    """
    match = re.fullmatch(r"(\d+)/(\d+)", text.strip())
    part, count = (int(match[1]), int(match[2])) if match else (0, 0)
    if part >= count:
        raise ValueError(
            f"--shard does not understand {text!r}: write it like 3/64, for the parts 0/64 to 63/64."
        )
    return part, count
