"""Damaged safetensors: read to the true values, or refused in a sentence that names the file.

A bit of an array that flips leaves a valid file, which the format cannot notice; that is counted apart.
"""

import json
import random
import time
from pathlib import Path

import numpy as np
import safetensors.numpy

from tests.campaign import commands
from tests.campaign.damage import MEDIA_DAMAGES
from tests.campaign.tallies import Tally

LIMIT = 10  # seconds that one file may take


def damage(place: Path, count: int, seed: int, log: Path) -> list[Tally]:
    """Reads `count` damaged files.

    Args:
      place: empty folder to work in.
      count: number of files; a third of the damage is to the header.
      seed: of the damage.
      log: file for bad trials.
    Returns:
      One tally; a trial is a file.
    """
    rng = random.Random(seed)
    tally = Tally("damaged safetensors", log)
    place.mkdir(parents=True)
    values = np.random.default_rng(seed)
    tensors = {
        f"blocks.{i}.{name}": values.standard_normal(shape, np.float32).astype(dtype)
        for i in range(4)
        for name, shape, dtype in (("weight", (8, 6), "float32"), ("bias", (8,), "float16"))
    }
    whole = safetensors.numpy.save(tensors)
    header = 8 + int.from_bytes(whole[:8], "little")
    paths = []
    for i in range(count):
        path = place / f"{i:04d}.safetensors"
        function = MEDIA_DAMAGES[rng.randrange(len(MEDIA_DAMAGES))]
        if i % 3 == 0:
            path.write_bytes(function(whole[:header], rng) + whole[header:])
        elif i % 3 == 1:
            path.write_bytes(_replace_field(whole, header, rng))
        else:
            path.write_bytes(function(whole, rng))
        paths.append(path)
    for path, (error, seconds, read) in zip(paths, commands.call(_read_all, paths), strict=True):
        if seconds > LIMIT:
            tally.add("hang", str(path))
        elif read is None:
            good = error.startswith("1") and path.name in error
            tally.add("refused in a sentence" if good else "traceback", str(path), error)
        elif read.keys() != tensors.keys():
            tally.add("other names, which the layout refuses", str(path))
        elif all(_equal(read[name], tensors[name]) for name in tensors):
            tally.add("the true values", str(path))
        elif path.read_bytes()[:header] == whole[:header]:
            tally.add("array changed, which the format cannot notice", str(path))
        elif all(np.issubdtype(array.dtype, np.floating) for array in read.values()):
            tally.add("other shapes or types, which the layout refuses", str(path))
        else:
            tally.add("silently wrong", str(path))
    return [tally]


def _equal(one: np.ndarray, other: np.ndarray) -> bool:
    return one.dtype == other.dtype and np.array_equal(one, other)


def _replace_field(whole: bytes, header: int, rng: random.Random) -> bytes:
    """Replaces one field of the description of one tensor by something odd."""
    table = json.loads(whole[8:header])
    name = rng.choice([key for key in table if key != "__metadata__"])
    odd = [
        None,
        -1,
        0,
        2**63,
        1e300,
        "F32",
        [],
        {},
        [0, 2**62],
        [3, 1],
        [-1, -1],
        "F4",
        "F8_E4M3",
        "U128",
    ]
    table[name][rng.choice(["dtype", "shape", "data_offsets"])] = rng.choice(odd)
    text = json.dumps(table).encode()
    return len(text).to_bytes(8, "little") + text + whole[header:]


def _read_all(paths: list[Path]) -> list[tuple[str, float, dict | None]]:
    from videogen_jax.models import weights

    results = []
    for path in paths:
        started = time.perf_counter()
        error, read = "", None
        try:
            read = {name: np.asarray(array) for name, array in weights.read_tensors(path).items()}
        except (ValueError, OSError) as known:
            error = f"1 {known}"
        except BaseException as unknown:
            error = f"0 {type(unknown).__name__}: {unknown}"
        results.append((error, time.perf_counter() - started, read))
    return results
