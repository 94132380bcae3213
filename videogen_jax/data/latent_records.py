"""The record of an encoded clip, and what a set of them knows of itself.

A record holds latents as they are, caption and numbers, and where there is a text encoder the caption's embedding.

TensorFlow is imported inside the functions that need it, as in records.py.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

DTYPES = ("float16", "bfloat16")


class LatentInfo(NamedTuple):
    """What made a set of latents, and how they spread; JSON values, stored in its statistics.json."""

    autoencoder: str  # vae.name
    weights: str  # hash of the autoencoder's parameters
    dtype: str  # of the stored numbers, one of DTYPES
    shape: list[int]  # [h, w, C] of a latent frame
    mirrored: bool  # each clip is there a second time, mirrored before it was encoded
    mean: list[float]  # of each channel over the train split
    deviation: list[float]  # the same
    places: int = 0  # over how many they were measured; 0: not noted
    augment: dict[str, Any] | None = None  # lines of config.augment and the seed; None: as packed
    # Frames of each latent. Above 1 the first latent is of the first frame alone, so that clips cannot begin elsewhere.
    time_stride: int = 1

    def count_frames(self, frames: int) -> int:
        """Latent frames of so many frames of the video."""
        return 1 + (frames - 1) // self.time_stride


class TextInfo(NamedTuple):
    """What made a set's caption embeddings; JSON values, stored in its statistics.json."""

    encoder: str  # text.encoder
    path: str  # text.path, of its weights
    weights: str  # hash of its parameters
    precision: str  # in which it computed
    dtype: str  # of the stored numbers, one of DTYPES
    width: int  # E, of the tokens
    pooled_width: int  # P
    length: int  # tokens of a caption at most; longer ones were cut
    null_tokens: list[list[float]]  # (n, E), of no caption
    null_pooled: list[float]  # (P,), of no caption


class Embeddings(NamedTuple):
    """Captions as a text encoder has them."""

    tokens: Sequence[np.ndarray]  # for each (n, E) float32, up to the end of text
    pooled: np.ndarray  # (N, P) float32
    counts: np.ndarray  # (N,) int32, tokens before any cut


def make_features(shape: tuple[int, int, int], dtype: str, texts: TextInfo | None = None):
    """Makes the TFDS features of a record; the one list of its fields.

    Args:
      shape: (h, w, C) of a latent frame.
      dtype: one of DTYPES.
      texts: of the caption embeddings, where the set has them.
    Returns:
      tfds.features.FeaturesDict of
        latents: (T, h, w, C), as the autoencoder gives them: the data set's own mean and deviation are taken off when
          they are read.
        mirrored_latents: the same of the mirrored clip; T = 0 where the set has none.
        caption, motion_score, source: of the packed record.
        fps: of the packed record, or the rate that augmentation took the clip at.
        num_frames: T, of the latents.
        text_tokens, text_pooled: (n, E) and (P,), the caption's embedding up to its end of text; with `texts` alone.
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
    """Serializes a record that `features` (of `make_features`) reads.

    Args:
      features: of `make_features`.
      latents: (T, h, w, C) float32.
      mirrored: the same of the mirrored clip, or None.
      **fields: caption, fps, motion_score and source; text_tokens and text_pooled where `features` have them, float32.
    Returns:
      A tf.train.Example in wire format, the same bytes for the same clip.
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
    # TFDS writes the fields in an order that differs from process to process.
    return tf.train.Example.FromString(example).SerializeToString(deterministic=True)


def find_dtype(name: str) -> np.dtype:
    """The NumPy type of stored latents.

    Raises:
      ValueError: the name is none of DTYPES.
    """
    if name not in DTYPES:
        raise ValueError(f"Unknown vae.stored {name!r}: choose one of {', '.join(DTYPES)}.")
    if name == "float16":
        return np.dtype(np.float16)
    import ml_dtypes  # of JAX

    return np.dtype(ml_dtypes.bfloat16)
