"""Damage to files, each kind a function of the bytes and a random generator."""

import random
from collections.abc import Callable

BLOCK = 512  # bytes, a sector


def truncate(data: bytes, rng: random.Random) -> bytes:
    """Ends the file early, as an interrupted copy does."""
    return data[: rng.randrange(1, len(data))] if len(data) > 1 else b""


def empty(data: bytes, rng: random.Random) -> bytes:
    """Leaves nothing, as a crash does between creating a file and writing it."""
    return b""


def flip_bit(data: bytes, rng: random.Random) -> bytes:
    """Inverts one bit."""
    if not data:
        return data
    place = rng.randrange(8 * len(data))
    result = bytearray(data)
    result[place // 8] ^= 1 << place % 8
    return bytes(result)


def flip_bits(data: bytes, rng: random.Random) -> bytes:
    """Inverts 2 to 64 bits."""
    for _ in range(rng.randint(2, 64)):
        data = flip_bit(data, rng)
    return data


def zero_block(data: bytes, rng: random.Random) -> bytes:
    """Overwrites a sector with zeros, as a hole in a download does."""
    start = rng.randrange(max(len(data) - BLOCK, 1))
    block = data[start : start + BLOCK]
    return data[:start] + bytes(len(block)) + data[start + len(block) :]


def drop_block(data: bytes, rng: random.Random) -> bytes:
    """Removes a sector."""
    start = rng.randrange(max(len(data) - BLOCK, 1))
    return data[:start] + data[start + BLOCK :]


def append_noise(data: bytes, rng: random.Random) -> bytes:
    """Adds random bytes behind the end."""
    return data + rng.randbytes(rng.randint(1, 4 * BLOCK))


MEDIA_DAMAGES: tuple[Callable[[bytes, random.Random], bytes], ...] = (
    truncate,
    flip_bit,
    flip_bits,
    zero_block,
    drop_block,
    append_noise,
)
FILE_DAMAGES: tuple[Callable[[bytes, random.Random], bytes], ...] = (truncate, empty, flip_bit)
