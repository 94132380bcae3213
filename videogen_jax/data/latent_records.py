"""The record of an encoded clip: its latents as they are, caption and numbers; and what a set of them knows of itself.

TensorFlow is imported inside the functions that need it, as in records.py.
"""

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


def make_features(shape: tuple[int, int, int], dtype: str):
    """Makes the TFDS features of a record; the one list of its fields.

    Args:
      shape: (h, w, C) of a latent frame.
      dtype: one of DTYPES.
    Returns:
      tfds.features.FeaturesDict of
        latents: (T, h, w, C), as the autoencoder gives them: the data set's own mean and deviation are taken off when
          they are read.
        mirrored_latents: the same of the mirrored clip; T = 0 where the set has none.
        caption, motion_score, source: of the packed record.
        fps: of the packed record, or the rate that augmentation took the clip at.
        num_frames: T, of the latents.
    """
    import tensorflow_datasets as tfds

    features = tfds.features
    latents = features.Tensor(
        shape=(None, *shape), dtype=find_dtype(dtype), encoding=features.Encoding.BYTES
    )
    return features.FeaturesDict(
        {
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
      **fields: caption, fps, motion_score and source.
    Returns:
      A tf.train.Example in wire format, the same bytes for the same clip.
    """
    import tensorflow as tf

    dtype = features["latents"].np_dtype
    mirrored = latents[:0] if mirrored is None else mirrored
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
