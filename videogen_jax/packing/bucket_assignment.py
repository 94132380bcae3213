"""Assigns videos and images to buckets, from their shapes alone.

A bucket is a shape of clips, frames x height x width, written 120x384x640. Its sources are resized to cover
height x width and centre-cropped, without distortion. The rule minimizes what that costs:

1. Images go to buckets of one frame, videos to buckets of several. A video needs at least the bucket's frames, counted
   at the frame rate of the data set.
2. The bucket with the nearest aspect ratio (width / height) is chosen, by |log(source / bucket)|; buckets within
   ASPECT_TOLERANCE of the nearest count as equally near, because sides are rounded, for example to multiples of 16
   (288x512 and 480x832 are both 16:9). A source that would lose more than MAX_CROP of its area in the nearest bucket is
   skipped.
3. Of those, buckets that would enlarge the source more than MAX_ENLARGEMENT times are excluded; if all would, the ones
   that enlarge least are kept.
4. Of those, the largest is chosen: by frames x height x width, then frames, then the order of the table.

A video longer than its bucket becomes consecutive clips. The remaining frames go to the longest bucket of the same
height x width that they fill, but not to a bucket of one frame, and so on; frames that fill none are cut off.
"""

import collections
import math
import re
from collections.abc import Sequence
from typing import NamedTuple

from videogen_jax.data import records

ASPECT_TOLERANCE = 0.05  # in log(width / height): 5 %
MAX_CROP = 0.5  # fraction of the area: 16:9 in a square loses 0.44, portrait in landscape 0.68
MAX_ENLARGEMENT = 1.25  # factor per side
_ROUNDING = 1e-9  # absorbs floating-point error: 720x1280 and 360x640 have the same aspect ratio


class Bucket(NamedTuple):
    """A shape of clips."""

    frames: int
    height: int  # pixels
    width: int  # pixels

    @property
    def name(self) -> str:
        """The bucket as written in the table; also the name of its folder."""
        return "{}x{}x{}".format(*self)


class Shape(NamedTuple):
    """Shape of a video or an image."""

    height: int  # pixels
    width: int  # pixels
    frames: int  # at the frame rate of the data set; 1 for an image
    image: bool
    scenes: list[int] = []  # frames of each scene; empty: not split


class Segment(NamedTuple):
    """Consecutive clips of a video in one bucket."""

    bucket: Bucket
    first: int  # first frame
    count: int  # number of frames, a multiple of the bucket's


def parse_buckets(text: str) -> tuple[Bucket, ...]:
    """Parses a table such as "480x512x512,1x512x512".

    Raises:
      ValueError: names an entry that is malformed, repeated or too large.
    """
    buckets: list[Bucket] = []
    for entry in text.split(","):
        match = re.fullmatch(r"(\d+)x(\d+)x(\d+)", entry.strip().lower())
        bucket = Bucket(*map(int, match.groups())) if match else Bucket(0, 0, 0)
        if min(bucket) < 1:
            raise ValueError(
                f"invalid entry {entry.strip()!r} of --buckets: write frames x height x width, as in 120x384x640, "
                "separated by commas."
            )
        if bucket in buckets:
            raise ValueError(f"--buckets has {bucket.name} twice: remove one.")
        records.check_strip_size(bucket.frames, bucket.height, bucket.width, "buckets with frames")
        buckets.append(bucket)
    return tuple(buckets)


def plan_segments(shape: Shape, buckets: Sequence[Bucket]) -> tuple[list[Segment], str | None]:
    """Divides a video or an image into segments of clips, by the rule in this module's docstring.

    Args:
      shape: shape of the video or image.
      buckets: the table.
    Returns:
      (segments, None), in temporal order; or ([], the reason why no bucket accepts the source).
    """
    bucket, reason = choose_bucket(shape, buckets)
    if bucket is None:
        return [], reason
    segments, first = [], 0
    same = [b for b in buckets if b[1:] == bucket[1:] and (b.frames == 1) == shape.image]
    for fitting in sorted(same, reverse=True):
        count = (shape.frames - first) // fitting.frames * fitting.frames
        if fitting.frames <= bucket.frames and count:
            segments.append(Segment(fitting, first, count))
            first += count
    return segments, None


def choose_bucket(shape: Shape, buckets: Sequence[Bucket]) -> tuple[Bucket | None, str | None]:
    """Chooses the bucket of the first clip of a source.

    Args:
      shape: shape of the video or image.
      buckets: the table.
    Returns:
      (bucket, None), or (None, the reason why no bucket accepts the source).
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
            f"too wide or too narrow: {shape.height}x{shape.width} pixels would lose {lost:.0%} of the area in "
            f"the nearest bucket, {nearest.name}, and the limit is {MAX_CROP:.0%}"
        )
    limit = _mismatch(shape, nearest) + ASPECT_TOLERANCE
    left = [bucket for bucket in left if _mismatch(shape, bucket) <= limit]
    limit = max(MAX_ENLARGEMENT, min(_enlargement(shape, bucket) for bucket in left))
    left = [bucket for bucket in left if _enlargement(shape, bucket) <= limit + _ROUNDING]
    return max(left, key=lambda bucket: (math.prod(bucket), bucket.frames)), None


def _mismatch(shape, bucket):
    """Returns |log| of the quotient of the aspect ratios; cropping loses 1 - exp(-mismatch) of the area."""
    return abs(math.log(shape.width * bucket.height / (shape.height * bucket.width)))


def _enlargement(shape, bucket):
    """Returns the factor by which the source is scaled to cover the bucket."""
    return max(bucket.height / shape.height, bucket.width / shape.width)


def describe_unmatched(shapes: Sequence[Shape], reasons: Sequence[str], fps: float) -> str:
    """Describes sources of which none fits a bucket, and suggests a bucket.

    Args:
      shapes: shapes of the readable sources.
      reasons: the reason for each source.
      fps: frame rate of the data set.
    Returns:
      Part of an error message.
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
