"""The autoencoders by name, and the shape of what they make of a clip.

| name     | frames, rows and columns to one latent | channels | weights                               |
| -------- | -------------------------------------- | -------- | ------------------------------------- |
| identity | 1, 1, 1                                | 3        | none: pixels                          |
| taef2    | 1, 8, 8                                | 32       | madebyollin/taesd, tiny, MIT          |
| sd       | 1, 8, 8                                | 4        | Stable Diffusion's AutoencoderKL      |
"""

from typing import NamedTuple


class Strides(NamedTuple):
    """What an autoencoder makes one latent of."""

    frames: int
    height: int  # pixels
    width: int  # pixels
    channels: int  # of the latent


AUTOENCODERS = {
    "identity": Strides(1, 1, 1, 3),
    "taef2": Strides(1, 8, 8, 32),
    "sd": Strides(1, 8, 8, 4),
}


def latent_shape(name: str, frames: int, height: int, width: int) -> tuple[int, int, int, int]:
    """Shape of a clip's latents.

    Args:
      name: one of AUTOENCODERS.
      frames: of the clip.
      height: pixels.
      width: pixels.
    Returns:
      (T, H, W, C).
    Raises:
      ValueError: the name is unknown, or a size does not divide.
    """
    if name not in AUTOENCODERS:
        raise ValueError(f"Unknown vae.name {name!r}: choose one of {', '.join(AUTOENCODERS)}.")
    strides = AUTOENCODERS[name]
    sizes = {"frames": frames, "height": height, "width": width}
    for (what, size), stride in zip(sizes.items(), strides, strict=False):
        if size % stride:
            raise ValueError(
                f"data.{what} is {size}, but the autoencoder {name} makes one latent of {stride}: choose a multiple."
            )
    return (
        frames // strides.frames,
        height // strides.height,
        width // strides.width,
        strides.channels,
    )
