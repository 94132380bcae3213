"""Known frames as the flags of `sample` name them: files of pictures and videos."""

import re
from collections.abc import Iterator, Sequence

import numpy as np

from videogen_jax.data import image_io, video_io


def read_frames(
    images: Sequence[str], known: Sequence[str], prompts: int, fps: float
) -> list[dict[int, np.ndarray]]:
    """The frames of --image and --known: of each prompt's video, or of all of them if there is one; none of none.

    Args:
      images: values of --image.
      known: values of --known.
      prompts: number of captions.
      fps: frames per second that are taken of a video.
    Raises:
      ValueError: a flag cannot be understood, or there are not as many pictures as prompts.
      OSError: a file cannot be read.
    """
    if len(images) > 1 and len(images) != prompts:
        raise ValueError(
            f"There are {len(images)} pictures for {prompts} captions: give one --image for all, or one for each."
        )
    shared: dict[int, np.ndarray] = {}
    for text in known:
        for number, frame in read_known_frames(text, fps):
            if number in shared:
                raise ValueError(f"Frame {number} is given twice by --known: name it once.")
            shared[number] = frame
    if images and 0 in shared:
        raise ValueError("Frame 0 is given by --image and by --known: leave one of them out.")
    if images:
        return [shared | {0: image_io.read_image(path)} for path in images]
    return [shared] if shared else []


def read_known_frames(text: str, fps: float) -> Iterator[tuple[int, np.ndarray]]:
    """Frames of `5:picture.png`, or `0-7:video.mp4`, whose first frames they are.

    Args:
      text: of the flag.
      fps: frames per second that are taken of a video.
    Yields:
      (number of the frame, (h, w, 3) uint8).
    Raises:
      ValueError: the text is neither, or the video is too short.
      OSError: the file cannot be read.
    """
    match = re.fullmatch(r"(\d+)(?:-(\d+))?:(.+)", text)
    first, last = (int(match[1]), int(match[2] or match[1])) if match else (0, -1)
    if last < first:
        raise ValueError(
            f"--known does not understand {text!r}: write it like 15:last.png or 0-7:begin.mp4."
        )
    if image_io.is_image(match[3]):
        if last > first:
            raise ValueError(
                f"--known={text} names several frames, but {match[3]} is one picture: give its number."
            )
        yield first, image_io.read_image(match[3])
        return
    wanted = last - first + 1
    frames = [frame for _, frame in video_io.read_frames(match[3], fps, count=wanted)]
    if len(frames) < wanted:
        raise ValueError(
            f"--known={text} wants {wanted} frames, but {match[3]} has {len(frames)} at {fps:g} a second: name fewer."
        )
    yield from enumerate(frames, first)
