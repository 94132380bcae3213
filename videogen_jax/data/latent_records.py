"""Records of clips encoded to latents, and the metadata of a latent data set.

A record holds unnormalized latents, the caption, scalars and, with a text encoder, the caption's embedding.

TensorFlow is imported inside the functions that need it, as in records.py.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

DTYPES = ("float16", "bfloat16")


class LatentInfo(NamedTuple):
    """How latents were made, and their statistics: JSON values, stored in statistics.json."""

    autoencoder: str  # vae.name
    weights: str  # hash of the autoencoder's parameters
    dtype: str  # of the stored latents, one of DTYPES
    shape: list[int]  # [h, w, C] of a latent frame
    mirrored: bool  # a second copy of each clip was mirrored before encoding
    mean: list[float]  # per channel, over the train split
    deviation: list[float]  # standard deviation per channel, over the train split
    places: int = 0  # number of latent positions measured; 0: unknown
    augment: dict[str, Any] | None = None  # config.augment and the seed; None: not augmented
    # Video frames per latent frame. Above 1 the autoencoder is causal: the first latent encodes the first frame alone,
    # so latents cannot be cropped in time.
    time_stride: int = 1

    def count_frames(self, frames: int) -> int:
        """Number of latent frames of `frames` video frames."""
        return 1 + (frames - 1) // self.time_stride


class TextInfo(NamedTuple):
    """How caption embeddings were made: JSON values, stored in statistics.json."""

    encoder: str  # text.encoder
    path: str  # text.path, of its weights
    weights: str  # hash of its parameters
    precision: str  # dtype of the encoder's computation
    dtype: str  # of the stored embeddings, one of DTYPES
    width: int  # E, of the token embeddings
    pooled_width: int  # P
    length: int  # maximum number of tokens; longer captions were truncated
    null_tokens: list[list[float]]  # (n, E), of the empty caption
    null_pooled: list[float]  # (P,), of the empty caption


class Embeddings(NamedTuple):
    """Embeddings of N captions."""

    tokens: Sequence[np.ndarray]  # (n, E) float32 per caption, up to the end-of-text token
    pooled: np.ndarray  # (N, P) float32
    counts: np.ndarray  # (N,) int32, tokens before truncation


def make_features(shape: tuple[int, int, int], dtype: str, texts: TextInfo | None = None):
    """Makes the TFDS features of a record: the single definition of its fields.

    Args:
      shape: (h, w, C) of a latent frame.
      dtype: one of DTYPES.
      texts: metadata of the caption embeddings; None: the set has none.
    Returns:
      tfds.features.FeaturesDict of
        latents: (T, h, w, C), as the autoencoder returns them; they are normalized when they are read.
        mirrored_latents: latents of the mirrored clip; T = 0 if the set has none.
        caption, motion_score, source: as in the packed record.
        fps: as in the packed record, or the frame rate after augmentation.
        num_frames: T, number of latent frames.
        text_tokens, text_pooled: (n, E) and (P,), the caption's embedding up to its end of text; only with `texts`.
    """
    import tensorflow_datasets as tfds

    features = tfds.features
    latents = features.Tensor(
        shape=(None, *shape), dtype=find_dtype(dtype), encoding=features.Encoding.BYTES
    )
    embeddings = {}
    if texts is not None:
        shapes = {"text_tokens": (None, texts.width), "text_pooled": (texts.pooled_width,)}
        embeddings = {
            name: features.Tensor(
                shape=shape, dtype=find_dtype(texts.dtype), encoding=features.Encoding.BYTES
            )
            for name, shape in shapes.items()
        }
    return features.FeaturesDict(
        embeddings
        | {
            "latents": latents,
            "mirrored_latents": latents,
            "caption": features.Text(),
            "fps": np.float32,
            "num_frames": np.int32,
            "motion_score": np.float32,
            "source": features.Text(),
        }
    )


def serialize_latents(
    features, latents: np.ndarray, mirrored: np.ndarray | None, **fields
) -> bytes:
    """Serializes a record.

    Args:
      features: from `make_features`.
      latents: (T, h, w, C) float32.
      mirrored: (T, h, w, C) float32, latents of the mirrored clip, or None.
      **fields: caption, fps, motion_score and source; text_tokens and text_pooled, float32, if `features` has them.
    Returns:
      A serialized tf.train.Example; the bytes are deterministic.
    """
    import tensorflow as tf

    dtype = features["latents"].np_dtype
    mirrored = latents[:0] if mirrored is None else mirrored
    for name in fields.keys() & {"text_tokens", "text_pooled"}:
        fields[name] = fields[name].astype(features[name].np_dtype)
    example = features.serialize_example(
        {
            "latents": latents.astype(dtype),
            "mirrored_latents": mirrored.astype(dtype),
            "num_frames": len(latents),
            **fields,
        }
    )
    # The field order of TFDS differs between processes.
    return tf.train.Example.FromString(example).SerializeToString(deterministic=True)


def find_dtype(name: str) -> np.dtype:
    """Returns the NumPy dtype for a name in DTYPES.

    Raises:
      ValueError: the name is not in DTYPES.
    """
    if name not in DTYPES:
        raise ValueError(f"Unknown vae.stored {name!r}: choose one of {', '.join(DTYPES)}.")
    if name == "float16":
        return np.dtype(np.float16)
    import ml_dtypes  # a dependency of JAX

    return np.dtype(ml_dtypes.bfloat16)
