"""Classifies colour, shape and direction of moving-shapes videos from their pixels.

`judge` classifies a video without access to its caption, and `caption_rates` compares the result
with the caption. `python -m videogen_jax.evaluate` and the quick start report these rates.

The steps:

1. mask: the background is the median colour of the video's border pixels, and the contrast of a
   pixel its Euclidean RGB distance to the background. The mask is 0 below 1/4 and 1 above 3/4 of
   the object's contrast, so that noise and ghosts of up to 1/4 are ignored;
2. colour: majority vote of the hues of fully visible pixels;
3. object: in every frame, the connected component of the mask at its point of highest density;
4. direction: angle of the least-squares line through the object's centroids over time;
5. shape: the soft template (disc, square, triangle pointing up) of equal centroid and area with
   the highest intersection over union, summed over the frames.

Ambiguous attributes are None, which never matches a caption: nothing visible, no dominant object,
no clear hue, motion that is too short, paused or curved, an outline that matches none or two of
the templates. So guessing does not help, and an empty video is always wrong.

Error rates on rendered clips with seeds that were held out when the thresholds were chosen (576
clips of 8 x 32 x 32, seeds 100-103, and 288 of 16 x 64 x 64, seeds 100-101, all combinations equally
often): no error in colour, shape or direction (below 0.5 % with 95 % confidence over the 864) for
each of: clean; Gaussian noise of 8/255 and of 16/255; blur of 1 pixel; H.264 as written by
`video_writer.write_video`, and at crf 28; a reversed ghost of 20 %; half brightness; blur 0.7,
noise 6/255 and crf 12 together. Blur of 1.5 pixels: 2 of the 576 at 32 x 32 get no shape.
Tolerated distortions: objects smeared over their whole path still get the right shape in 6 to 7 %
of videos, over half of it in 83 %; an ellipse of up to about 1 : 1.3, an octagon and a diamond
count as circles.
"""

import math
from typing import NamedTuple

import numpy as np

from videogen_jax.data.synthetic import COLOURS, DIRECTIONS, SHAPES, parse_caption
from videogen_jax.evaluation.rates import Rate

MIN_SIDE = 8  # pixels; below, the three shapes are indistinguishable
WORKING_SIDE = 64  # pixels; larger frames are downscaled to this or slightly more
MIN_CONTRAST = 48.0  # RGB distance (of 442) of a visible object
MIN_SOLID = 0.3  # share of visible pixels whose neighbours are all visible; noise has none
BRIGHTEST_SHARE = 0.02  # share of a frame's area whose mean contrast is the object's contrast
MIN_AREA = 0.01  # share of the frame that a visible object covers
MIN_SHARE = 0.6  # share of visible pixels that belong to the dominant object, or colour
MIN_SATURATION = 0.4  # (max - min) / max of a pixel that has a hue
MAX_HUE_ERROR = 25.0  # degrees; neighbouring hues are 60 apart
MIN_VISIBLE_FRAMES = 0.75  # share of the frames that show the object
MIN_DISPLACEMENT = 0.05  # from the first to the last frame, relative to the shorter frame side
MAX_BACKWARD = 0.15  # share of the path length along its axis that may be backwards
MIN_LINEARITY = 0.8  # share of the centroid's variance explained by uniform linear motion
MIN_OVERLAP = 0.8  # intersection over union with the best template; corrupted clips reach 0.82
MIN_MARGIN = 0.02  # difference in IoU between the best and the second best template

TEMPLATE_SCALES = (0.9, 0.95, 1.0, 1.05, 1.1)  # relative to the side length given by the area
TEMPLATE_EDGES = (0.5, 1.5, 3.0)  # width of the edge ramp in pixels: sharp to blurred


class Verdict(NamedTuple):
    """Attributes of a video: names in COLOURS, SHAPES and DIRECTIONS, or None if ambiguous."""

    colour: str | None
    shape: str | None
    direction: str | None


NOTHING = Verdict(None, None, None)


def judge(video):
    """Classifies the colour, shape and direction of a video.

    Args:
      video: (T, H, W, 3) uint8 RGB. Frames with a shorter side of 128 pixels or more are downscaled
        to 64..127 by averaging blocks; those below 8 pixels show nothing.
    Raises:
      ValueError: the array has another shape or dtype.
    """
    video = np.asarray(video)
    if video.dtype != np.uint8 or video.ndim != 4 or video.shape[3] != 3:
        raise ValueError(
            f"a video to judge has shape (T, H, W, 3) and dtype uint8, not {video.shape} "
            f"{video.dtype}: convert it first."
        )
    if not len(video) or min(video.shape[1:3]) < MIN_SIDE:
        return NOTHING
    video = downscale(video)
    mask = visible_mask(video)
    if mask is None:
        return NOTHING
    colour = dominant_colour(video, mask)
    blob = dominant_blob(mask)
    area = blob.sum(axis=(1, 2))  # (T,) pixels
    visible = area >= max(MIN_AREA * mask[0].size, 0.25 * float(np.median(area)))  # (T,)
    if visible.mean() < MIN_VISIBLE_FRAMES:
        return NOTHING
    if blob.sum() < MIN_SHARE * mask.sum():
        return Verdict(colour, None, None)
    frames = np.flatnonzero(visible)
    centroids = blob_centroids(blob[frames])
    direction = direction_of_path(frames, centroids, len(video), min(video.shape[1:3]))
    return Verdict(colour, best_shape(blob[frames], centroids), direction)


def downscale(video):
    """Averages blocks of k x k pixels, k = max(1, shorter side // 64).

    Args:
      video: (T, H, W, 3) uint8.
    Returns:
      (T, H // k, W // k, 3) float32 in [0, 255]; remaining columns and rows on the right and at the
      bottom are dropped.
    """
    block = max(1, min(video.shape[1:3]) // WORKING_SIDE)
    frames, height, width = len(video), video.shape[1] // block, video.shape[2] // block
    video = video[:, : height * block, : width * block]
    video = video.reshape(frames, height, block, width, block, 3)
    return video.mean(axis=(2, 4), dtype=np.float32)


def visible_mask(video):
    """Computes the soft mask of the object: 0 background, 1 object.

    With d the RGB distance to the background and D the mean d of the 2 % of pixels with the largest
    d: mask = clip((d/D - 1/4) / (1/2), 0, 1). Its level 1/2, which defines the outline, is at d =
    D/2, the position of an object's edge at any blur.

    Args:
      video: (T, H, W, 3) float32 in [0, 255].
    Returns:
      (T, H, W) float32 in [0, 1], or None if nothing or only scattered pixels differ from the
      background.
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
    solid = 1.0 - _dilate(outside).mean()  # share of pixels inside by more than one pixel
    return mask if solid >= MIN_SOLID * (1.0 - outside.mean()) else None


def hue_degrees(rgb):
    """Computes the hue of colours (..., 3), at any scale.

    Returns:
      (...) degrees in [0, 360), red at 0; NaN where (max - min) / max < MIN_SATURATION.
    """
    rgb = np.asarray(rgb, np.float32)
    red, green, blue = rgb[..., 0], rgb[..., 1], rgb[..., 2]
    high, low = rgb.max(axis=-1), rgb.min(axis=-1)
    hue = np.degrees(np.arctan2(math.sqrt(3.0) * (green - blue), 2.0 * red - green - blue)) % 360.0
    return np.where(high - low >= MIN_SATURATION * np.maximum(high, 1.0), hue, np.nan)


def dominant_colour(video, mask):
    """Finds the colour of most of the visible pixels.

    Args:
      video: (T, H, W, 3) float32 in [0, 255].
      mask: (T, H, W) float32 in [0, 1].
    Returns:
      A name in COLOURS, or None if no colour has MIN_SHARE of the visible pixels.
    """
    pixels = video[mask > 0.75]  # (P, 3); at edges, codecs mix chroma of object and background
    if not len(pixels):
        return None
    names = list(COLOURS)
    wanted = hue_degrees([COLOURS[name] for name in names])  # (6,)
    error = np.abs((hue_degrees(pixels)[:, None] - wanted + 180.0) % 360.0 - 180.0)  # (P, 6)
    shares = (error <= MAX_HUE_ERROR).mean(axis=0)  # (6,); NaN compares false
    best = int(shares.argmax())
    return names[best] if shares[best] >= MIN_SHARE else None


def dominant_blob(mask):
    """Keeps, in every frame, the connected component of the mask at its point of highest density.

    Args:
      mask: (T, H, W) float32 in [0, 1].
    Returns:
      (T, H, W) float32: the mask within two pixels of that component, 0 elsewhere.
    """
    frames, height, width = mask.shape
    side = max(3, round(0.2 * min(height, width)))
    # Sums over all boxes of side x side pixels, from the integral image.
    sums = np.zeros((frames, height + 1, width + 1))
    sums[:, 1:, 1:] = mask.cumsum(axis=1, dtype=np.float64).cumsum(axis=2)
    boxes = (sums[:, side:, side:] - sums[:, :-side, side:] - sums[:, side:, :-side]) + sums[
        :, :-side, :-side
    ]  # (T, H - side + 1, W - side + 1)
    peaks = boxes.reshape(frames, -1).argmax(axis=1)
    inside = mask > 0.5
    part = np.zeros_like(inside)
    for frame, peak in enumerate(peaks):
        top, left = divmod(int(peak), boxes.shape[2])
        part[frame, top : top + side, left : left + side] = True
    part &= inside
    # Grow from the densest box within the mask until the component is complete.
    size = -1
    while (count := int(part.sum())) != size:
        size = count
        part = _dilate(part) & inside
    return mask * _dilate(_dilate(part))


def _dilate(region):
    """Dilates a (T, H, W) bool region by one pixel up, down, left and right within each frame."""
    grown = region.copy()
    grown[:, 1:] |= region[:, :-1]
    grown[:, :-1] |= region[:, 1:]
    grown[:, :, 1:] |= region[:, :, :-1]
    grown[:, :, :-1] |= region[:, :, 1:]
    return grown


def blob_centroids(blob):
    """Computes the centre of mass of each frame, (T, 2) as (x, y) in pixels, y pointing down."""
    area = blob.sum(axis=(1, 2), dtype=np.float64)
    x = (blob.sum(axis=1) * np.arange(blob.shape[2])).sum(axis=1)
    y = (blob.sum(axis=2) * np.arange(blob.shape[1])).sum(axis=1)
    return np.stack([x, y], axis=1) / area[:, None]


def direction_of_path(frames, centroids, num_frames, side):
    """Finds the direction of the centroids' motion, if it is steady and linear.

    Least squares fits c(f) = c0 + v f. It counts as motion if |v| (num_frames - 1) is at least
    MIN_DISPLACEMENT of the side, the fit explains MIN_LINEARITY of the variance of c (for a single
    jump it explains 3/4), and at most MAX_BACKWARD of the path length along v is backwards.

    Args:
      frames: (F,) indices of the frames in which the object is visible.
      centroids: (F, 2) float, (x, y) in pixels, y pointing down.
      num_frames: number of frames of the video.
      side: shorter side of a frame in pixels.
    Returns:
      A name in DIRECTIONS, or None.
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
    steps = np.diff(offsets @ velocity)  # (F - 1,) progress along v
    backward = -steps[steps < 0].sum() / np.abs(steps).sum()
    if explained < MIN_LINEARITY or backward > MAX_BACKWARD:
        return None
    cosines = {
        name: (velocity[0] * dx + velocity[1] * dy) / math.hypot(dx, dy)
        for name, (dx, dy) in DIRECTIONS.items()
    }
    return max(cosines, key=cosines.get)


def shape_overlaps(blob, centroids):
    """Computes the soft IoU of the object and each shape's template, pooled over the frames.

    The template of a frame has the centroid and area of the object there. A common scale and edge
    width are fitted, over the same choices for all shapes.

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
    """Returns (gauge in pixels, inradius of the shape of area 1): inside is gauge < inradius.

    For a convex outline around its centroid, the gauge is the maximum over its edges of the
    distance from the centroid along the edge's normal. The normals of the triangle pointing up
    are down and 30 degrees above right and left.
    """
    if shape == "circle":
        return np.hypot(x, y), 1.0 / math.sqrt(math.pi)
    if shape == "square":
        return np.maximum(np.abs(x), np.abs(y)), 0.5
    slanted = 0.5 * math.sqrt(3.0) * np.abs(x) - 0.5 * y
    return np.maximum(slanted, y), 1.0 / math.sqrt(3.0 * math.sqrt(3.0))


def best_shape(blob, centroids):
    """Finds the shape with the best overlap, or None if none fits or two fit equally well."""
    overlaps = shape_overlaps(blob, centroids)
    first, second = sorted(overlaps, key=overlaps.get, reverse=True)[:2]
    if overlaps[first] < MIN_OVERLAP or overlaps[first] - overlaps[second] < MIN_MARGIN:
        return None
    return first


def rate_of(right, total, chance):
    """The entry of a rate, {"rate", "right", "low", "high", "chance"}; the rate of 0 trials is 0."""
    found = Rate(right, total).describe()
    return {name: found[name] for name in ("rate", "right", "low", "high")} | {"chance": chance}


def caption_rates(videos, captions):
    """Computes the rates at which videos match their captions.

    Args:
      videos: iterable of N videos (T, H, W, 3) uint8, read one at a time; None for a video that
        could not be read, which counts as wrong.
      captions: N captions of the moving-shapes grammar.
    Returns:
      dict with "num_videos", then "colour", "direction", "shape" and "all" (all three correct),
      each {"rate", "right", "low", "high", "chance"} with the Wilson 95 % interval and the rate of
      random guessing, then "videos": for each video its caption, the requested attributes
      ("asked"), the detected ones ("seen") and whether each is correct ("right").
    Raises:
      ValueError: a caption is not of the grammar, or the numbers of captions and videos differ.
    """
    captions = list(captions)
    requested = [Verdict(*parse_caption(caption)) for caption in captions]
    records = []
    for index, video in enumerate(videos):
        if index >= len(captions):
            raise ValueError(
                f"there are more videos than captions ({len(captions)}): give one for each video."
            )
        seen = NOTHING if video is None else judge(video)
        right = {
            name: getattr(seen, name) == getattr(requested[index], name) for name in seen._fields
        }
        right["all"] = all(right.values())
        record = {"caption": captions[index], "asked": requested[index]._asdict()}
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
