"""What all autoencoders between video and latents have in common: their interface, configs and weights.

`encode` returns and `decode` takes latents normalized per channel, (latents - shift) * scale.
"""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from videogen_jax.models import hub
from videogen_jax.models.hub import CONFIG_FILE, find_weights
from videogen_jax.models.weights import WeightsError, name_sources, place_tensors, read_tensors

NAMES = ("identity", "taef2", "sd", "wan", "ltx", "workdir")
# Of diffusers' folders.
FILE = "diffusion_pytorch_model.safetensors"
FOLDER = "vae"  # of the autoencoder, in the folder of a pipeline

Frames = Callable[[Any, jax.Array], jax.Array]  # (params, (N, ...)) to (N, ...)
# (params, state, a chunk of frames or of their latents or features) to (output, state); the first state is None.
Stream = Callable[[Any, Any, jax.Array], tuple[jax.Array, Any]]


class Autoencoder(NamedTuple):
    """An autoencoder; its parameters are read by `load`."""

    name: str
    channels: int  # C, latent channels
    downsample: tuple[int, int, int]  # pixels per latent in (time, height, width)
    shift: np.ndarray  # (C,) float32
    scale: np.ndarray  # (C,) float32
    abstract_params: Any  # tree of jax.ShapeDtypeStruct, float32
    load: Callable[[], Any]  # () to parameters, float32 NumPy
    # Without normalization of the latents:
    encode_raw: Callable[[Any, jax.Array, jax.Array | None], jax.Array]  # (params, video, key)
    decode_head: Frames  # (params, (B, T, h, w, C)) to features (B, T, h, w, D)
    decode_tail: Frames  # (params, features) to video (B, T, H, W, 3), about [-1, 1], not clipped
    tile_margin: int  # latents at a tile's edge where decode_tail differs from the full image
    tile_blend: int  # latents over which neighbouring tiles are blended
    # For autoencoders that encode the first frame alone and stream a video with a state, else None:
    encode_stream: Stream | None = None  # of whole groups of frames, to the mean
    head_stream: Stream | None = None
    tail_stream: Stream | None = None
    delay: int = 0  # frames by which the output of `decode_stream` is behind its input

    @property
    def causal(self) -> bool:
        """Whether the first frame is encoded alone, and long videos are streamed with a state."""
        return self.tail_stream is not None

    def decode_stream(
        self, params: Any, state: Any, latents: jax.Array
    ) -> tuple[jax.Array, dict[str, Any]]:
        """Decodes the next chunk of latents, without their normalization; the first state is None.

        Args:
          params: from `load`.
          state: behind the chunk before.
          latents: (B, T, h, w, C).
        Returns:
          ((B, 4 T, H, W, 3) for a stride in time of 4, state). The first `delay` + 3 frames of a video do not count;
          where there is a delay, `video_convolutions.set_length` gives the state the length of the video.
        """
        state = state or {"head": None, "tail": None}
        features, head = self.head_stream(params, state["head"], latents)
        video, tail = self.tail_stream(params, state["tail"], features)
        return video, {"head": head, "tail": tail}

    def video_frames(self, latents: int) -> int:
        """Number of video frames for a number of latent frames."""
        group = self.downsample[0]
        return 1 + group * (latents - 1) if self.causal else group * latents

    def latent_shape(self, frames: int, height: int, width: int) -> tuple[int, int, int, int]:
        """Shape (T, h, w, C) of the latents of a video with `frames` frames of height x width pixels.

        Raises:
          ValueError: a size is not a multiple of `downsample`, or frames are not 1 + 4k if it is causal.
        """
        sizes = {"frames": frames, "height": height, "width": width}
        if self.causal:
            group = self.downsample[0]
            if frames < 1 or frames % group != 1 % group:
                below = max(frames - 1, 0) // group * group + 1
                raise ValueError(
                    f"A video of {frames} frames does not fit the autoencoder {self.name!r}, which encodes the first "
                    f"frame and then every {group} frames as one latent: use {below} or {below + group} frames."
                )
            sizes["frames"] = frames + group - 1
        for (axis, size), factor in zip(sizes.items(), self.downsample, strict=True):
            if size % factor:
                raise ValueError(
                    f"A video's {axis} of {size} is not a multiple of {factor}, as the autoencoder {self.name!r} "
                    f"requires: use {size // factor * factor} or {-(-size // factor) * factor}."
                )
        sizes = zip(sizes.values(), self.downsample, strict=True)
        return (*(size // factor for size, factor in sizes), self.channels)

    def encode(self, params: Any, video: jax.Array, key: jax.Array | None = None) -> jax.Array:
        """Encodes videos.

        Args:
          params: from `load`.
          video: (B, T, H, W, 3) in [-1, 1].
          key: None for the mean of the latents, or a random key to sample them (not `taef2`).
        Returns:
          (B, T, h, w, C) float32, normalized.
        Raises:
          ValueError: the video does not fit (see `latent_shape`), or a key is given to a deterministic encoder.
        """
        self.latent_shape(*video.shape[1:4])
        return self.normalize(self.encode_raw(params, video, key))

    def normalize(self, latents: jax.Array) -> jax.Array:
        """(latents - shift) * scale for latents (..., C) of the network, float32."""
        return (latents.astype(jnp.float32) - self.shift) * self.scale

    def decode(self, params: Any, latents: jax.Array) -> jax.Array:
        """Decodes latents.

        Args:
          params: from `load`.
          latents: (B, T, h, w, C), normalized.
        Returns:
          (B, T, H, W, 3) float32 in [-1, 1].
        """
        video = self.decode_tail(params, self.decode_features(params, latents))
        return jnp.clip(video.astype(jnp.float32), -1, 1)

    def decode_features(self, params: Any, latents: jax.Array) -> jax.Array:
        """The decoder's head: normalized latents (B, T, h, w, C) to features (B, T, h, w, D)."""
        return self.decode_head(params, self.denormalize(latents))

    def denormalize(self, latents: jax.Array) -> jax.Array:
        """The inverse of `normalize`."""
        return latents.astype(jnp.float32) / self.scale + self.shift


def with_statistics(
    autoencoder: Autoencoder, mean: Sequence[float], deviation: Sequence[float]
) -> Autoencoder:
    """The autoencoder with shift and scale replaced, so that the latents of a data set have mean 0 and variance 1.

    Args:
      autoencoder: the autoencoder that encoded the data set.
      mean: (C,), mean of these latents per channel.
      deviation: (C,), their standard deviation.
    """
    shift = autoencoder.shift + np.asarray(mean) / autoencoder.scale
    scale = autoencoder.scale / np.asarray(deviation)
    return autoencoder._replace(shift=shift.astype(np.float32), scale=scale.astype(np.float32))


def find_config(path: str, fetch: bool, read: Callable[[Path], Any], default: Any) -> Any:
    """The network that config.json describes.

    Args:
      path: a safetensors file, a folder, or a name on the Hugging Face hub (hub.py).
      fetch: whether to ask the hub; if False, what an earlier call left in its cache is read.
      read: reads the file.
      default: where there is none.
    Raises:
      FileNotFoundError: the path exists neither here nor on the hub.
      WeightsError: the file describes another network.
    """
    path = path and str(_own_folder(Path(path)))
    return hub.find_config(path, read, default, lambda path: default, fetch=fetch)


def load_params(
    name: str,
    path: str,
    file: str,
    abstract_params: Any,
    rename: Callable[[Mapping[str, np.ndarray]], dict[str, np.ndarray]] = dict,
) -> Any:
    """Reads the weights of an autoencoder whose modules are named like its tensors.

    Args:
      name: of the autoencoder, one of NAMES.
      path: see `find_config`.
      file: name of the weights in a folder.
      abstract_params: shapes.
      rename: from the tensors of the file to those of `weights.name_sources`.
    Returns:
      The tree, float32 NumPy.
    Raises:
      ValueError: the path is empty.
      FileNotFoundError: there are no weights.
      WeightsError: they are a pickle, damaged, or those of another network.
    """
    if not path:
        raise ValueError(
            f"The autoencoder {name!r} has no weights: set vae.path to {file}, its folder or a model on the hub."
        )
    found = find_weights(str(_own_folder(Path(path))), file)
    tensors = rename(read_tensors(found))
    try:
        return place_tensors(
            tensors,
            name_sources(abstract_params),
            abstract_params,
            what=f"the autoencoder {name!r}",
            remedy=f"Set vae.path to weights of that autoencoder ({file}), or choose another vae.name of "
            f"{', '.join(NAMES)}.",
        )
    except WeightsError as error:
        raise WeightsError(f"{found}: {error}") from None


def _own_folder(path: Path) -> Path:
    """The folder of the autoencoder in that of a pipeline, else the path itself."""
    inside = path / FOLDER
    return (
        inside if (inside / CONFIG_FILE).is_file() and not (path / CONFIG_FILE).exists() else path
    )


def reject_key(name: str, key: Any) -> None:
    """Raises ValueError for a random key to an encoder that draws nothing."""
    if key is not None:
        raise ValueError(f"The encoder {name!r} is deterministic: encode without a key.")


def infer_shapes(module: nn.Module, *shape: int) -> Any:
    """Shapes of a module's parameters, for an input of this shape."""
    x = jax.ShapeDtypeStruct(shape, jnp.float32)
    return jax.eval_shape(module.init, jax.random.key(0), x)["params"]
