"""Says which colour, shape and direction a moving-shapes video shows, from its pixels alone.

The judge of `python -m videogen_jax.evaluate` and of the quick start. It never sees a caption:
`judge` reads pixels, and `caption_rates` compares what it said with what the captions asked for.

How it looks, in order:

1. background = median colour of the video's outermost ring of pixels; contrast of a pixel = its
   Euclidean distance to the background in RGB; the mask is 0 below a quarter and 1 above three
   quarters of the object's contrast, so that noise and ghosts of a quarter are not seen at all;
2. colour = vote of the hues of the fully visible pixels;
3. object = in every frame the connected part of the mask around its densest place;
4. direction = angle of the least-squares line through the object's centroid over the frames;
5. shape = the soft template (disc, square, triangle pointing up) of the same centroid and area
   with the largest intersection over union, summed over the frames.

Whatever is doubtful is None, which no caption asks for: nothing visible, no dominant object, a
colour without a hue, motion that is too short, halting or crooked, an outline like none of the
three or like two of them. So guessing gains nothing, and an empty video is always wrong.

Its own errors on rendered clips, on seeds that were not looked at while the thresholds were chosen
(576 clips of 8 x 32 x 32, seeds 100-103, and 288 of 16 x 64 x 64, seeds 100-101, every combination
equally often). None in colour, shape or direction (below 0.5 % with 95 % confidence over the 864)
for each of: clean; Gaussian noise of 8/255 and of 16/255; blur of 1 pixel; H.264 as
`video_writer.write_video` makes it, and at crf 28; a reversed ghost of 20 %; half brightness; blur 0.7,
noise 6/255 and crf 12 together. Blur of 1.5 pixels: 2 of the 576 at 32 x 32 get no shape.
What it forgives: of objects smeared over their whole path 6 to 7 % still pass as the right shape,
over half of it 83 %; an ellipse of up to about 1 : 1.3, an octagon and a diamond pass as circles.
"""

import math
from typing import NamedTuple

import numpy as np

from videogen_jax.data.synthetic import COLOURS, DIRECTIONS, SHAPES, parse_caption

MIN_SIDE = 8  # pixels; in fewer the three shapes look the same
WORKING_SIDE = 64  # pixels; larger frames are shrunk to this or a little more
MIN_CONTRAST = 48.0  # RGB distance (of 442) below which nothing counts as visible
MIN_SOLID = 0.3  # share of the visible pixels all of whose neighbours are visible; noise has none
BRIGHTEST_SHARE = 0.02  # share of a frame's area whose mean contrast is "the object's contrast"
MIN_AREA = 0.01  # share of the frame that a visible object covers at least
MIN_SHARE = 0.6  # share of the visible pixels that the dominant object, or colour, holds at least
MIN_SATURATION = 0.4  # (max - min) / max of a pixel that has a hue
MAX_HUE_ERROR = 25.0  # degrees; neighbouring hues are 60 apart
MIN_VISIBLE_FRAMES = 0.75  # share of the frames that must show the object
MIN_DISPLACEMENT = 0.05  # of the shorter frame side, from the first to the last frame
MAX_BACKWARD = 0.15  # share of the path along its own axis that may lead backwards
MIN_LINEARITY = 0.8  # share of the centroid's variance that uniform straight motion explains
MIN_OVERLAP = 0.8  # intersection over union with the best template; corrupted clips keep 0.82
MIN_MARGIN = 0.02  # how much better than the second best template it must be

TEMPLATE_SCALES = (0.9, 0.95, 1.0, 1.05, 1.1)  # of the side that follows from the area
TEMPLATE_EDGES = (0.5, 1.5, 3.0)  # width of the edge ramp in pixels: crisp to blurred


class Verdict(NamedTuple):
    """What a video shows: names out of COLOURS, SHAPES, DIRECTIONS, or None for "cannot say"."""

    colour: str | None
    shape: str | None
    direction: str | None


NOTHING = Verdict(None, None, None)


def judge(video):
    """Says which colour, shape and direction a video shows, from its pixels alone.

    Args:
      video: (T, H, W, 3) uint8 RGB. Frames of 128 pixels and more on their shorter side are shrunk
        to 64..127 by averaging whole blocks of pixels; under 8 pixels nothing can be told.
    Returns:
      A Verdict. A field is None where the video does not show it clearly.
    Raises:
      ValueError: the array is no such video.
    """
    video = np.asarray(video)
    if video.dtype != np.uint8 or video.ndim != 4 or video.shape[3] != 3:
        raise ValueError(
            f"a video to judge has shape (T, H, W, 3) and dtype uint8, not {video.shape} "
            f"{video.dtype}: convert it first."
        )
    if not len(video) or min(video.shape[1:3]) < MIN_SIDE:
        return NOTHING
    video = shrink(video)
    mask = visible_mask(video)
    if mask is None:
        return NOTHING
    colour = dominant_colour(video, mask)
    blob = dominant_blob(mask)
    area = blob.sum(axis=(1, 2))  # (T,) pixels
    seen = area >= max(MIN_AREA * mask[0].size, 0.25 * float(np.median(area)))  # (T,)
    if seen.mean() < MIN_VISIBLE_FRAMES:
        return NOTHING
    if blob.sum() < MIN_SHARE * mask.sum():
        return Verdict(colour, None, None)
    frames = np.flatnonzero(seen)
    centroids = blob_centroids(blob[frames])
    direction = direction_of_path(frames, centroids, len(video), min(video.shape[1:3]))
    return Verdict(colour, best_shape(blob[frames], centroids), direction)


def shrink(video):
    """Averages blocks of k x k pixels, k the whole number of 64s in the shorter side (at least 1).

    Args:
      video: (T, H, W, 3) uint8.
    Returns:
      (T, H // k, W // k, 3) float32 in [0, 255]; the rest at the right and lower border is cut.
    """
    block = max(1, min(video.shape[1:3]) // WORKING_SIDE)
    frames, height, width = len(video), video.shape[1] // block, video.shape[2] // block
    video = video[:, : height * block, : width * block]
    video = video.reshape(frames, height, block, width, block, 3)
    return video.mean(axis=(2, 4), dtype=np.float32)


def visible_mask(video):
    """Computes how visible each pixel is: 0 background, 1 object.

    With d the RGB distance to the background and D the mean d of the brightest 2 % of all pixels:
    mask = clip((d/D - 1/4) / (1/2), 0, 1). The 1/2 level, which defines the outline, stays at d =
    D/2, where the edge of an object lies whatever the blur.

    Args:
      video: (T, H, W, 3) float32 in [0, 255].
    Returns:
      (T, H, W) float32 in [0, 1], or None where nothing stands out from the background, or only
      scattered pixels do.
    """
    ring = np.ones(video.shape[1:3], bool)
    ring[1:-1, 1:-1] = False
    background = np.median(video[:, ring], axis=(0, 1))  # (3,)
    contrast = np.sqrt(((video - background) ** 2).sum(axis=-1))  # (T, H, W)
    count = max(1, round(BRIGHTEST_SHARE * contrast.size))
    peak = float(np.partition(contrast, -count, axis=None)[-count:].mean())
    if peak < MIN_CONTRAST:
        return None
    mask = np.clip(2.0 * contrast / peak - 0.5, 0.0, 1.0)
    outside = mask <= 0.5
    solid = 1.0 - _dilate(outside).mean()  # of all pixels
    return mask if solid >= MIN_SOLID * (1.0 - outside.mean()) else None


def hue_degrees(rgb):
    """Computes the hue of colours.

    Args:
      rgb: (..., 3) float, any scale.
    Returns:
      (...) hue in degrees, [0, 360), NaN where (max - min) / max < MIN_SATURATION; red is 0.
    """
    rgb = np.asarray(rgb, np.float32)
    red, green, blue = rgb[..., 0], rgb[..., 1], rgb[..., 2]
    high, low = rgb.max(axis=-1), rgb.min(axis=-1)
    hue = np.degrees(np.arctan2(math.sqrt(3.0) * (green - blue), 2.0 * red - green - blue)) % 360.0
    return np.where(high - low >= MIN_SATURATION * np.maximum(high, 1.0), hue, np.nan)


def dominant_colour(video, mask):
    """Names the colour that most of the visible pixels have.

    Args:
      video: (T, H, W, 3) float32 in [0, 255].
      mask: (T, H, W) float32 in [0, 1].
    Returns:
      A name out of COLOURS, or None where no colour holds MIN_SHARE of the visible pixels.
    """
    pixels = video[mask > 0.75]  # (P, 3); edge pixels carry the codec's chroma, not the object's
    if not len(pixels):
        return None
    names = list(COLOURS)
    wanted = hue_degrees([COLOURS[name] for name in names])  # (6,)
    error = np.abs((hue_degrees(pixels)[:, None] - wanted + 180.0) % 360.0 - 180.0)  # (P, 6)
    shares = (error <= MAX_HUE_ERROR).mean(axis=0)  # (6,); NaN compares false
    best = int(shares.argmax())
    return names[best] if shares[best] >= MIN_SHARE else None


def dominant_blob(mask):
    """Keeps, in every frame, the connected part of the mask around its densest place.

    Args:
      mask: (T, H, W) float32 in [0, 1].
    Returns:
      (T, H, W) float32: the mask inside that part and two pixels around it, 0 elsewhere.
    """
    frames, height, width = mask.shape
    side = max(3, round(0.2 * min(height, width)))
    sums = np.zeros((frames, height + 1, width + 1))
    sums[:, 1:, 1:] = mask.cumsum(axis=1, dtype=np.float64).cumsum(axis=2)
    boxes = (sums[:, side:, side:] - sums[:, :-side, side:] - sums[:, side:, :-side]) + sums[
        :, :-side, :-side
    ]  # (T, H - side + 1, W - side + 1): mass of each side x side box
    peaks = boxes.reshape(frames, -1).argmax(axis=1)
    inside = mask > 0.5
    part = np.zeros_like(inside)
    for frame, peak in enumerate(peaks):
        top, left = divmod(int(peak), boxes.shape[2])
        part[frame, top : top + side, left : left + side] = True
    part &= inside
    size = -1
    while (count := int(part.sum())) != size:
        size = count
        part = _dilate(part) & inside
    return mask * _dilate(_dilate(part))


def _dilate(region):
    """Grows a (T, H, W) bool region by one pixel up, down, left and right within each frame."""
    grown = region.copy()
    grown[:, 1:] |= region[:, :-1]
    grown[:, :-1] |= region[:, 1:]
    grown[:, :, 1:] |= region[:, :, :-1]
    grown[:, :, :-1] |= region[:, :, 1:]
    return grown


def blob_centroids(blob):
    """Computes the centre of mass of each frame, (T, 2) as (x, y) in pixels, y down."""
    area = blob.sum(axis=(1, 2), dtype=np.float64)
    x = (blob.sum(axis=1) * np.arange(blob.shape[2])).sum(axis=1)
    y = (blob.sum(axis=2) * np.arange(blob.shape[1])).sum(axis=1)
    return np.stack([x, y], axis=1) / area[:, None]


def direction_of_path(frames, centroids, num_frames, side):
    """Names the direction in which the centroids move, if they move steadily on a line.

    Least squares fits c(f) = c0 + v f. It counts as motion if |v| (num_frames - 1) is at least
    MIN_DISPLACEMENT of the side, the fit explains MIN_LINEARITY of the variance of c (a jump from
    one place to another explains 3/4 of it), and at most MAX_BACKWARD of the steps' length along
    v leads backwards.

    Args:
      frames: (F,) indices of the frames in which the object was seen.
      centroids: (F, 2) float, (x, y) in pixels, y down.
      num_frames: frames of the whole video.
      side: shorter side of a frame in pixels.
    Returns:
      A name out of DIRECTIONS, or None.
    """
    if len(frames) < 2:
        return None
    time = frames - frames.mean()
    offsets = centroids - centroids.mean(axis=0)  # (F, 2)
    velocity = time @ offsets / (time @ time)  # (2,) pixels per frame
    speed = float(np.hypot(*velocity))
    if speed * (num_frames - 1) < MIN_DISPLACEMENT * side:
        return None
    explained = speed**2 * (time @ time) / (offsets**2).sum()
    steps = np.diff(offsets @ velocity)  # (F - 1,) progress along the path's own axis
    backward = -steps[steps < 0].sum() / np.abs(steps).sum()
    if explained < MIN_LINEARITY or backward > MAX_BACKWARD:
        return None
    cosines = {
        name: (velocity[0] * dx + velocity[1] * dy) / math.hypot(dx, dy)
        for name, (dx, dy) in DIRECTIONS.items()
    }
    return max(cosines, key=cosines.get)


def shape_overlaps(blob, centroids):
    """Computes how well each shape fits the object: soft IoU, pooled over the frames.

    The template of a frame has the frame's centroid and area; a common scale and a common width of
    the edge are fitted, the same choices for all shapes.

    Args:
      blob: (F, H, W) float32 in [0, 1].
      centroids: (F, 2) float, (x, y) in pixels.
    Returns:
      dict of shape name -> sum min(blob, template) / sum max(blob, template), in [0, 1].
    """
    x = np.arange(blob.shape[2], dtype=np.float32) - centroids[:, 0, None, None]  # (F, 1, W)
    y = np.arange(blob.shape[1], dtype=np.float32)[:, None] - centroids[:, 1, None, None]
    length = np.sqrt(blob.sum(axis=(1, 2)))[:, None, None]  # (F, 1, 1): side of the equal square
    overlaps = {}
    for shape in SHAPES:
        unit, inradius = _inner_distance(shape, x, y)
        overlaps[shape] = 0.0
        for scale in TEMPLATE_SCALES:
            depth = inradius * scale * length - unit  # (F, H, W) pixels inside the outline
            for edge in TEMPLATE_EDGES:
                template = np.clip(0.5 + depth / edge, 0.0, 1.0)
                union = np.maximum(blob, template).sum()
                overlap = float(np.minimum(blob, template).sum() / union)
                overlaps[shape] = max(overlaps[shape], overlap)
    return overlaps


def _inner_distance(shape, x, y):
    """Returns (gauge in pixels, in-radius of the shape of area 1): inside where gauge < in-radius.

    For a convex outline around its centroid, gauge = max over its edges of the distance from the
    centroid along the edge's normal; for the triangle pointing up the edges' normals are down and
    30 degrees above right and left.
    """
    if shape == "circle":
        return np.hypot(x, y), 1.0 / math.sqrt(math.pi)
    if shape == "square":
        return np.maximum(np.abs(x), np.abs(y)), 0.5
    slanted = 0.5 * math.sqrt(3.0) * np.abs(x) - 0.5 * y
    return np.maximum(slanted, y), 1.0 / math.sqrt(3.0 * math.sqrt(3.0))


def best_shape(blob, centroids):
    """Names the shape that fits best, or None where none fits or two fit alike."""
    overlaps = shape_overlaps(blob, centroids)
    first, second = sorted(overlaps, key=overlaps.get, reverse=True)[:2]
    if overlaps[first] < MIN_OVERLAP or overlaps[first] - overlaps[second] < MIN_MARGIN:
        return None
    return first


def wilson_interval(right, total):
    """Computes the Wilson 95 % interval of a rate.

    (p + z^2/2n +- z sqrt(p (1 - p)/n + z^2/4n^2)) / (1 + z^2/n) with z = 1.96.

    Args:
      right: successes.
      total: trials, n; with 0 trials nothing is known and the interval is (0, 1).
    Returns:
      (low, high), both in [0, 1].
    Source: E. B. Wilson, JASA 22 (1927) 209-212.
    """
    if total == 0:
        return 0.0, 1.0
    z = 1.959963984540054
    rate = right / total
    centre = rate + z * z / (2 * total)
    spread = z * math.sqrt(rate * (1.0 - rate) / total + (z / (2 * total)) ** 2)
    scale = 1.0 + z * z / total
    return max(0.0, (centre - spread) / scale), min(1.0, (centre + spread) / scale)


def rate_of(right, total, chance):
    """Makes the entry of a rate: {"rate", "right", "low", "high", "chance"}; 0 of no trials is 0."""
    low, high = wilson_interval(right, total)
    rate = right / total if total else 0.0
    return {"rate": rate, "right": right, "low": low, "high": high, "chance": chance}


def caption_rates(videos, captions):
    """Counts how many videos show what their captions ask for.

    Args:
      videos: iterable of (T, H, W, 3) uint8 videos, read one at a time; None stands for a video
        that could not be read, which counts as wrong in all respects.
      captions: as many captions of the moving-shapes grammar.
    Returns:
      dict with "num_videos", then "colour", "direction", "shape" and "all" (the three at once),
      each {"rate", "right", "low", "high", "chance"} with the Wilson 95 % interval and the rate
      that guessing would reach, then "videos": per video the caption, what was asked for ("asked"),
      what was seen ("seen") and which of it was right ("right").
    Raises:
      ValueError: a caption is not of the grammar, or there are not as many captions as videos.
    """
    captions = list(captions)
    asked = [Verdict(*parse_caption(caption)) for caption in captions]
    records = []
    for index, video in enumerate(videos):
        if index >= len(captions):
            raise ValueError(
                f"there are more videos than captions ({len(captions)}): give one for each video."
            )
        seen = NOTHING if video is None else judge(video)
        right = {name: getattr(seen, name) == getattr(asked[index], name) for name in seen._fields}
        right["all"] = all(right.values())
        record = {"caption": captions[index], "asked": asked[index]._asdict()}
        records.append(record | {"seen": seen._asdict(), "right": right})
    total = len(records)
    if total != len(captions):
        raise ValueError(
            f"there are {total} videos for {len(captions)} captions: give one caption for each."
        )
    chances = {
        "colour": 1 / len(COLOURS),
        "direction": 1 / len(DIRECTIONS),
        "shape": 1 / len(SHAPES),
    }
    chances["all"] = math.prod(chances.values())
    rates = {"num_videos": total}
    for name, chance in chances.items():
        rates[name] = rate_of(sum(record["right"][name] for record in records), total, chance)
    return rates | {"videos": records}
