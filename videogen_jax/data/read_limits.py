"""What reading one video or image may cost, and how much of a damaged video is kept."""

import dataclasses


@dataclasses.dataclass(frozen=True)
class Limits:
    """Bounds for one file, named as the options of `pack` that set them."""

    damaged: str = (
        "skip"  # "skip": a damaged video is an error; "cut": its frames before the damage are read
    )
    max_megapixels: float = 50.0  # of a frame or an image, which takes up to 30 bytes a pixel
    max_gap: float = 60.0  # seconds from one frame to the next; a longer gap ends the video
    max_repeats: float = 300.0  # frames due per frame of the file, on average

    @property
    def max_pixels(self) -> int:
        """Pixels of a frame or an image, at most, as an integer of 32 bits."""
        return int(min(self.max_megapixels * 1e6, 2**31 - 1))

    def too_many_pixels(self, height: int, width: int) -> str | None:
        """Returns why a picture of this size is refused, as the rest of a sentence, or None."""
        megapixels = height * width / 1e6
        if megapixels <= self.max_megapixels:
            return None
        return (
            f"has pictures of {height}x{width} ({megapixels:.1f} megapixels), more than "
            f"--max_megapixels={self.max_megapixels:g}: scale it down, or raise this option of pack."
        )


DEFAULTS = Limits()
DAMAGED = ("skip", "cut")
