"""I3D: the network whose features FVD compares.

    video (B, T, 224, 224, 3) in [-1, 1] --inflated Inception--> logits over Kinetics-400, mean over time (B, 400)

Batch normalisation is folded into the convolutions when the weights are converted: each channel's kernel is multiplied
by 1 / sqrt(var + 0.001), and bias - mean / sqrt(var + 0.001) is added.

Source: I3D, arXiv:1705.07750; FVD, arXiv:1812.01717; layer sizes of deepmind/kinetics-i3d `i3d.py`.
"""

import itertools
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

import einops
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from videogen_jax.parallel.batched import in_full_precision, make_batched

SIZE = 224  # pixels, height and width
FEATURES = 400  # classes of Kinetics-400
MIN_FRAMES = 9  # the last average pool spans two steps of 8 frames; the second may be partial

# Channels of each module's convolutions: branch 0; branch 1, 1x1x1 and 3x3x3; branch 2, the same; branch 3.
MODULES = {
    "Mixed_3b": (64, 96, 128, 16, 32, 32),
    "Mixed_3c": (128, 128, 192, 32, 96, 64),
    "Mixed_4b": (192, 96, 208, 16, 48, 64),
    "Mixed_4c": (160, 112, 224, 24, 64, 64),
    "Mixed_4d": (128, 128, 256, 24, 64, 64),
    "Mixed_4e": (112, 144, 288, 32, 64, 64),
    "Mixed_4f": (256, 160, 320, 32, 128, 128),
    "Mixed_5b": (256, 160, 320, 32, 128, 128),
    "Mixed_5c": (384, 192, 384, 48, 128, 128),
}
# Window and strides of the max pool before a module.
POOLS = {"Mixed_4b": ((3, 3, 3), (2, 2, 2)), "Mixed_5b": ((2, 2, 2), (2, 2, 2))}


class Convolution(nn.Module):
    """A 3-D convolution with a cubic kernel, as a sum of 2-D convolutions over the kernel's frames.

    This is several times faster than XLA's 3-D convolution on CPUs.
    """

    channels: int
    size: int
    stride: int = 1

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """Maps (B, T, H, W, C) to (B, T / stride, H / stride, W / stride, channels), with "SAME" padding."""
        zeros, size, stride = nn.initializers.zeros, self.size, self.stride
        kernel = self.param("kernel", zeros, (size, size, size, x.shape[-1], self.channels))
        bias = self.param("bias", zeros, (self.channels,))
        if size == 1:
            return x @ kernel[0, 0, 0] + bias
        batch, frames = x.shape[:2]
        out = -(-frames // stride)
        missing = max((out - 1) * stride + size - frames, 0)
        x = jnp.pad(x, [(0, 0), (missing // 2, missing - missing // 2), (0, 0), (0, 0), (0, 0)])
        total = bias
        for i in range(size):
            taken = x[:, i : i + (out - 1) * stride + 1 : stride]
            total += jax.lax.conv_general_dilated(
                einops.rearrange(taken, "b t h w c -> (b t) h w c"),
                kernel[i],
                (stride, stride),
                "SAME",
                dimension_numbers=("NHWC", "HWIO", "NHWC"),
            )
        return einops.rearrange(total, "(b t) h w c -> b t h w c", b=batch)


def convolve(x: jax.Array, channels: int, size: int, name: str, stride: int = 1) -> jax.Array:
    """A convolution with folded batch normalisation, then ReLU."""
    return nn.relu(Convolution(channels, size, stride, name=name)(x))


class InceptionModule(nn.Module):
    """Four parallel branches, concatenated over channels."""

    channels: tuple[int, ...]

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """Maps (B, T, H, W, C) to (B, T, H, W, sum of the branches' channels)."""
        single, reduced_1, out_1, reduced_2, out_2, pooled = self.channels
        y_0 = convolve(x, single, 1, "Branch_0/Conv3d_0a_1x1")
        y_1 = convolve(x, reduced_1, 1, "Branch_1/Conv3d_0a_1x1")
        y_1 = convolve(y_1, out_1, 3, "Branch_1/Conv3d_0b_3x3")
        y_2 = convolve(x, reduced_2, 1, "Branch_2/Conv3d_0a_1x1")
        y_2 = convolve(y_2, out_2, 3, "Branch_2/Conv3d_0b_3x3")
        y_3 = nn.max_pool(x, (3, 3, 3), (1, 1, 1), "SAME")
        y_3 = convolve(y_3, pooled, 1, "Branch_3/Conv3d_0b_1x1")
        return jnp.concatenate((y_0, y_1, y_2, y_3), axis=-1)


class I3D(nn.Module):
    """The network; its modules are named as in the original."""

    @nn.compact
    def __call__(self, video: jax.Array) -> jax.Array:
        """Classifies videos.

        Args:
          video: (B, T, 224, 224, 3) float32 in [-1, 1], T >= MIN_FRAMES.
        Returns:
          (B, 400) float32 logits, the mean over time.
        """
        x = convolve(video, 64, 7, "Conv3d_1a_7x7", stride=2)
        x = nn.max_pool(x, (1, 3, 3), (1, 2, 2), "SAME")
        x = convolve(x, 64, 1, "Conv3d_2b_1x1")
        x = convolve(x, 192, 3, "Conv3d_2c_3x3")
        x = nn.max_pool(x, (1, 3, 3), (1, 2, 2), "SAME")
        for name, channels in MODULES.items():
            if name in POOLS:
                x = nn.max_pool(x, *POOLS[name], "SAME")
            x = InceptionModule(channels, name=name)(x)
        x = nn.avg_pool(x, (2, 7, 7), (1, 1, 1), "VALID")  # (B, T / 8 - 1, 1, 1, C)
        logits = Convolution(FEATURES, 1, name="Logits/Conv3d_0c_1x1")(x)
        return jnp.mean(logits, axis=(1, 2, 3))


def fit_pixels(video: jax.Array) -> jax.Array:
    """Converts videos to the network's input.

    Args:
      video: (B, T, H, W, 3) uint8.
    Returns:
      (B, T, 224, 224, 3) float32 in [-1, 1], resized bilinearly with half-pixel centres and without antialiasing.
    """
    video = video.astype(jnp.float32) / 127.5 - 1
    shape = (*video.shape[:2], SIZE, SIZE, video.shape[-1])
    return jax.image.resize(video, shape, "bilinear", antialias=False)


def make_extractor(
    params: Any,
    batch_size: int = 4,
    *,
    raw: bool = False,
    devices: Sequence[jax.Device] | None = None,
) -> Callable[[Iterable[np.ndarray]], Iterator[np.ndarray]]:
    """Makes a function that extracts features of any number of videos, batch by batch.

    Args:
      params: result of `i3d_weights.load`.
      batch_size: videos per device in a batch.
      raw: whether videos are given as the network's input, (T, 224, 224, 3) float32.
      devices: to use; by default all of this process.
    Returns:
      A function from an iterable of videos (T, H, W, 3) uint8 of equal shapes to an iterator over their features,
      (400,) float32, in order.
    """

    def apply(params: Any, videos: jax.Array) -> jax.Array:
        return I3D().apply({"params": params}, videos if raw else fit_pixels(videos))

    run = make_batched(in_full_precision(apply), params, batch_size, devices)
    count = batch_size * (jax.local_device_count() if devices is None else len(devices))

    def extract(videos: Iterable[np.ndarray]) -> Iterator[np.ndarray]:
        videos = iter(videos)
        while batch := list(itertools.islice(videos, count)):
            check_frames(len(batch[0]))
            for features in run(np.stack(batch)):
                yield from features

    return extract


def check_frames(count: int) -> None:
    """Checks that videos of `count` frames, repetitions included, are long enough for the network.

    Raises:
      ValueError: they have fewer than MIN_FRAMES.
    """
    if count < MIN_FRAMES:
        raise ValueError(
            f"I3D needs at least {MIN_FRAMES} frames of each video, but would get {count}: use more --frames, or "
            "repeat each of them with --repeat (in both sets)."
        )
