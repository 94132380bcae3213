"""Which clips of which bucket a video or an image becomes: the rule, without a file being touched.

A bucket is a shape of clips, frames x height x width, written 120x384x640. What is packed into it is resized until it
covers height x width and cut in the centre, never squeezed; so the rule is about what that costs:

1. Images go to buckets of one frame, videos to buckets of more. A video needs at least the bucket's frames, counted at
   the frame rate of the data set.
2. The nearest aspect ratio (width / height) wins: the least |log(source / bucket)|, where buckets within
   ASPECT_TOLERANCE of the nearest count as equally near (sides are rounded to multiples of 16 or so: 288x512 and
   480x832 both are 16:9). A source that would lose more than MAX_CROP of its picture in the nearest is skipped.
3. Of those, buckets that would enlarge the source more than MAX_ENLARGEMENT times are left out, unless all would; then
   the ones that enlarge least stay.
4. Of those, the largest wins: frames x height x width, then frames, then the place in the table.

A video longer than its bucket becomes consecutive clips. What remains behind them goes in the same way to the longest
bucket of the same height x width that it fills, never to one of a single frame; the rest is cut off.
"""

import collections
import math
import re
from collections.abc import Sequence
from typing import NamedTuple

from videogen_jax.data import records

ASPECT_TOLERANCE = 0.05  # in log(width / height): 5 %
MAX_CROP = 0.5  # of the picture: 16:9 into a square loses 0.44, upright into lying 0.68
MAX_ENLARGEMENT = 1.25  # times per side
_ROUNDING = 1e-9  # 720x1280 is 360x640 enlarged, but not to the last bit


class Bucket(NamedTuple):
    """A shape of clips."""

    frames: int
    height: int  # pixels
    width: int  # pixels

    @property
    def name(self) -> str:
        """The bucket as the table has it, and the name of its folder."""
        return "{}x{}x{}".format(*self)


class Shape(NamedTuple):
    """What the rule wants to know of a video or an image."""

    height: int  # pixels
    width: int  # pixels
    frames: int  # at the frame rate of the data set; 1 for an image
    image: bool


class Run(NamedTuple):
    """Consecutive clips of a video that go to one bucket."""

    bucket: Bucket
    first: int  # frame
    count: int  # frames, a multiple of the bucket's


def parse_buckets(text: str) -> tuple[Bucket, ...]:
    """Reads a table like "480x512x512,1x512x512".

    Raises:
      ValueError: names the piece that is no bucket, occurs twice or is too large.
    """
    buckets: list[Bucket] = []
    for piece in text.split(","):
        match = re.fullmatch(r"(\d+)x(\d+)x(\d+)", piece.strip().lower())
        bucket = Bucket(*map(int, match.groups())) if match else Bucket(0, 0, 0)
        if min(bucket) < 1:
            raise ValueError(
                f"--buckets does not understand {piece.strip()!r}: write frames x height x width, like 120x384x640, "
                "and commas between buckets."
            )
        if bucket in buckets:
            raise ValueError(f"--buckets has {bucket.name} twice: write it once.")
        records.check_strip_size(bucket.frames, bucket.height, bucket.width, "buckets with frames")
        buckets.append(bucket)
    return tuple(buckets)


def plan_runs(shape: Shape, buckets: Sequence[Bucket]) -> tuple[list[Run], str | None]:
    """Says which clips a video or an image becomes, as the head of this module has it.

    Args:
      shape: of the video or image.
      buckets: the table.
    Returns:
      (runs, None), in the order of their frames; or ([], the reason why no bucket takes it).
    """
    bucket, reason = choose_bucket(shape, buckets)
    if bucket is None:
        return [], reason
    runs, first = [], 0
    same = [b for b in buckets if b[1:] == bucket[1:] and (b.frames == 1) == shape.image]
    for fitting in sorted(same, reverse=True):
        count = (shape.frames - first) // fitting.frames * fitting.frames
        if fitting.frames <= bucket.frames and count:
            runs.append(Run(fitting, first, count))
            first += count
    return runs, None


def choose_bucket(shape: Shape, buckets: Sequence[Bucket]) -> tuple[Bucket | None, str | None]:
    """Chooses the bucket of a source's first clip.

    Args:
      shape: of the video or image.
      buckets: the table.
    Returns:
      (bucket, None), or (None, the reason why no bucket takes it).
    """
    kind = [bucket for bucket in buckets if (bucket.frames == 1) == shape.image]
    if not kind:
        return None, f"no bucket for {'images (of one frame)' if shape.image else 'videos'}"
    left = [bucket for bucket in kind if bucket.frames <= shape.frames]
    if not left:
        shortest = min(bucket.frames for bucket in kind)
        return None, f"too short: {shape.frames} frames, and the shortest bucket has {shortest}"
    nearest = min(left, key=lambda bucket: _mismatch(shape, bucket))
    lost = 1 - math.exp(-_mismatch(shape, nearest))
    if lost > MAX_CROP:
        return None, (
            f"too wide or too narrow: {shape.height}x{shape.width} pixels would lose {lost:.0%} of the picture in "
            f"the nearest bucket, {nearest.name}, and {MAX_CROP:.0%} is the most"
        )
    limit = _mismatch(shape, nearest) + ASPECT_TOLERANCE
    left = [bucket for bucket in left if _mismatch(shape, bucket) <= limit]
    limit = max(MAX_ENLARGEMENT, min(_enlargement(shape, bucket) for bucket in left))
    left = [bucket for bucket in left if _enlargement(shape, bucket) <= limit + _ROUNDING]
    return max(left, key=lambda bucket: (math.prod(bucket), bucket.frames)), None


def _mismatch(shape, bucket):
    """Returns |log| of the ratio of the aspects; cutting loses 1 - exp(-mismatch) of the picture."""
    return abs(math.log(shape.width * bucket.height / (shape.height * bucket.width)))


def _enlargement(shape, bucket):
    """Returns how many times a side grows until the source covers the bucket."""
    return max(bucket.height / shape.height, bucket.width / shape.width)


def describe_misfit(shapes: Sequence[Shape], reasons: Sequence[str], fps: float) -> str:
    """Says what sources are like that no bucket covers, and what to write instead.

    Args:
      shapes: of those that can be read.
      reasons: why nothing became of each source.
      fps: frame rate of the data set.
    Returns:
      A piece of a sentence.
    """
    parts = []
    for image in (False, True):
        some = [shape for shape in shapes if shape.image == image]
        if some:
            sizes = sorted({shape[:2] for shape in some}, key=math.prod)
            span = "{}x{}".format(*sizes[0])
            span += " to {}x{}".format(*sizes[-1]) if len(sizes) > 1 else ""
            lengths = sorted(shape.frames for shape in some)
            long = f" and {lengths[0]} to {lengths[-1]} frames at {fps:g} per second"
            kind = ("image" if image else "video") + ("s" if len(some) > 1 else "")
            parts.append(f"{len(some)} {kind} of {span} pixels{'' if image else long}")
    common, count = collections.Counter(reasons).most_common(1)[0]
    text = f"there are {' and '.join(parts) or 'no readable files'}"
    text += f"; the most frequent reason ({count} of {len(reasons)}): {common}"
    usable = [shape for shape in shapes if shape.image or shape.frames > 1]
    if usable:
        typical = sorted(usable, key=lambda shape: shape.frames)[len(usable) // 2]
        text += f"; --buckets={typical.frames}x{typical.height}x{typical.width} would take one"
    return text
