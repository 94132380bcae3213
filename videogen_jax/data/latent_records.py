"""Records of clips encoded to latents, and the metadata of a latent data set.

A record holds unnormalized latents, captions, scalars and, with a text encoder, the embeddings of the captions' texts.

TensorFlow is imported inside the functions that need it, as in records.py.
"""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from videogen_jax.data import annotations
from videogen_jax.data.annotations import Annotations

DTYPES = ("float16", "bfloat16")
LARGEST_STORED = 65_280.0  # largest number that bfloat16 holds and float16 too
EXTRA = {"tokens": np.int32}  # of each entry of the captions, where these are embedded


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
    layer: int = -1  # text.layer
    pooled_encoder: str = ""  # text.pooled_encoder, of the pooled embedding; empty: `encoder`
    pooled_path: str = ""  # text.pooled_path, of its weights
    pooled_weights: str = ""  # hash of its parameters; empty without one

    def content(self) -> dict[str, Any]:
        """What determines the embeddings: not where weights lay, nor the null embedding, which rounding may change."""
        left_out = ("path", "pooled_path", "null_tokens", "null_pooled")
        return {name: value for name, value in self._asdict().items() if name not in left_out}


class Embeddings(NamedTuple):
    """Embeddings of N captions."""

    tokens: Sequence[np.ndarray]  # (n, E) float32 per caption, up to the end-of-text token
    pooled: np.ndarray  # (N, P) float32
    counts: np.ndarray  # (N,) int32, tokens before truncation


def make_features(
    shape: tuple[int, int, int], dtype: str, texts: TextInfo | None = None, annotated: bool = True
):
    """Makes the TFDS features of a record: the single definition of its fields.

    Args:
      shape: (h, w, C) of a latent frame.
      dtype: one of DTYPES.
      texts: metadata of the caption embeddings; None: the set has none.
      annotated: whether the packed records have annotations; False: one text, as those of earlier versions.
    Returns:
      tfds.features.FeaturesDict of
        latents: (T, h, w, C), as the autoencoder returns them; they are normalized when they are read.
        mirrored_latents: latents of the mirrored clip; T = 0 if the set has none.
        captions, episode, numbers (or caption), motion_score, source: as in the packed record; frames are those of the
          video, not of the latents.
        fps: as in the packed record, or the frame rate after augmentation.
        num_frames: T, number of latent frames.
        text_tokens, text_pooled: only with `texts`, the embeddings of the captions' entries up to their ends of text:
          (sum of n, E), one after the other, and (entries, P). The entry's n is in its "tokens" among the captions.
          Of one text: (n, E) and (P,).
    """
    import tensorflow_datasets as tfds

    features = tfds.features
    latents = features.Tensor(
        shape=(None, *shape), dtype=find_dtype(dtype), encoding=features.Encoding.BYTES
    )
    said = {"caption": features.Text()}
    if annotated:
        said = annotations.make_features(EXTRA if texts is not None else {})
    embeddings = {}
    if texts is not None:
        entries = (None,) if annotated else ()
        shapes = {"text_tokens": (None, texts.width), "text_pooled": (*entries, texts.pooled_width)}
        embeddings = {
            name: features.Tensor(
                shape=shape, dtype=find_dtype(texts.dtype), encoding=features.Encoding.BYTES
            )
            for name, shape in shapes.items()
        }
    return features.FeaturesDict(
        embeddings
        | said
        | {
            "latents": latents,
            "mirrored_latents": latents,
            "fps": np.float32,
            "num_frames": np.int32,
            "motion_score": np.float32,
            "source": features.Text(),
        }
    )


def serialize_latents(
    features,
    latents: np.ndarray,
    mirrored: np.ndarray | None,
    said: Annotations,
    embeddings: Mapping[str, tuple[np.ndarray, np.ndarray]] | None = None,
    **scalars,
) -> bytes:
    """Serializes a record.

    Args:
      features: from `make_features`.
      latents: (T, h, w, C) float32.
      mirrored: (T, h, w, C) float32, latents of the mirrored clip, or None.
      said: captions, episode and numbers of the clip's frames.
      embeddings: text -> its tokens (n, E) and pooled embedding (P,), float32, if `features` has them.
      **scalars: fps, motion_score and source.
    Returns:
      A serialized tf.train.Example; the bytes are deterministic.
    """
    import tensorflow as tf

    dtype = features["latents"].np_dtype
    mirrored = latents[:0] if mirrored is None else mirrored
    annotated = "captions" in features
    fields = said.to_record() if annotated else {"caption": said.texts[0]}
    if embeddings is not None:
        tokens, pooled = zip(*(embeddings[text] for text in said.texts), strict=True)
        if annotated:
            for entry, rows in zip(fields["captions"], tokens, strict=True):
                entry["tokens"] = len(rows)
        pooled = np.stack(pooled) if annotated else pooled[0]
        fields |= {"text_tokens": np.concatenate(tokens), "text_pooled": pooled}
        for name in ("text_tokens", "text_pooled"):
            fields[name] = store_embeddings(fields[name], features[name].np_dtype.name)
    example = features.serialize_example(
        {
            "latents": latents.astype(dtype),
            "mirrored_latents": mirrored.astype(dtype),
            "num_frames": len(latents),
            **fields,
            **scalars,
        }
    )
    # The field order of TFDS differs between processes.
    return tf.train.Example.FromString(example).SerializeToString(deterministic=True)


def store_embeddings(values: np.ndarray, dtype: str) -> np.ndarray:
    """Converts embeddings to the type that they are stored in.

    Hidden states within a language model may have a channel beyond the range of float16, in which batches are: it is
    clipped.

    Args:
      values: float32, finite.
      dtype: one of DTYPES.
    """
    return np.clip(values, -LARGEST_STORED, LARGEST_STORED).astype(find_dtype(dtype))


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
