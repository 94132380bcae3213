"""CLIP score: similarity of a video's frames and its caption.

    score = mean over frames of  100 max(cos(image(frame), text(caption)), 0)

It ranges from 0 to 100. This is CLIPScore with 100 in place of its w = 2.5, as torchmetrics and most papers on video
report it; matching pairs have about 30 with ViT-B/32. Scores of different weights are not comparable.

Up to FRAMES evenly spaced frames of each video are scored, including the first and the last. Captions are truncated to
CLIP's 77 tokens. Networks compute in float32 (also on GPUs: TF32 is off), cosines and means in float64.

Source: CLIPScore, arXiv:2104.08718, section 3.
"""

import itertools
from collections.abc import Callable, Iterable, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np
from absl import logging

from videogen_jax.data import clip_tokenizer
from videogen_jax.evaluation.videos import check_video
from videogen_jax.models.clip_text import make_text_encoder
from videogen_jax.models.clip_vision import crop_frames, make_image_encoder
from videogen_jax.models.weights import hash_params
from videogen_jax.parallel.batched import in_full_precision, make_batched

FRAMES = 8  # scored in each video, at most
ROWS_AT_A_TIME = 32  # frames or captions on each device


class ClipScorer(NamedTuple):
    """A CLIP model on this process's devices."""

    path: str  # of its weights
    weights: str  # hash of the parameters of both encoders
    frames: int  # scored in each video, at most
    # (N videos (T, H, W, 3) uint8, N captions) -> (N,) float64
    score: Callable[[Iterable[np.ndarray], Sequence[str]], np.ndarray]


def make_clip_scorer(path: str) -> ClipScorer:
    """Loads CLIP on this process's devices.

    `score` reads the videos one at a time; their sizes and lengths may differ. It raises ValueError if the numbers of
    videos and captions differ, or if an array is not a video.

    Args:
      path: a safetensors file of a whole CLIP with config.json beside it, its folder, or a name on the Hugging Face hub
        (hub.py).
    Raises:
      FileNotFoundError: there are no weights at the path or on the hub.
      WeightsError: the weights are not CLIP's, or only those of its text encoder.
      ValueError: the weights belong to another tokenizer.
    """
    image, text = make_image_encoder(path), make_text_encoder(path)
    if text.vocabulary_size != clip_tokenizer.VOCABULARY_SIZE:
        raise ValueError(
            f"The CLIP in {path!r} has a vocabulary of {text.vocabulary_size} ids, but CLIP's tokenizer has "
            f"{clip_tokenizer.VOCABULARY_SIZE}: name weights of CLIP or OpenCLIP."
        )
    params = {"image": image.load(), "text": text.load()}
    weights = hash_params(params)

    @in_full_precision
    def encode_texts(params: Any, ids: jax.Array) -> jax.Array:
        return text.encode(params, ids)[2]

    embed_frames = make_batched(in_full_precision(image.encode), params["image"], ROWS_AT_A_TIME)
    embed_ids = make_batched(encode_texts, params["text"], ROWS_AT_A_TIME)
    videos_at_a_time = max(1, ROWS_AT_A_TIME * jax.local_device_count() // FRAMES)

    def embed_captions(captions: Sequence[str]) -> np.ndarray:
        distinct, inverse = np.unique(np.array(captions, object), return_inverse=True)
        ids, counts = clip_tokenizer.tokenize(distinct, text.length, text.pad_id)
        if cut := int((counts > text.length).sum()):
            logging.warning("%d captions were truncated to CLIP's %d tokens.", cut, text.length)
        return np.concatenate(list(embed_ids(ids)))[inverse]  # (N, P)

    def score(videos: Iterable[np.ndarray], captions: Sequence[str]) -> np.ndarray:
        videos, scores = iter(videos), []
        vectors = embed_captions(captions) if len(captions) else ()
        while squares := [
            crop_frames(pick_frames(check_video(video)), image.size)
            for video in itertools.islice(videos, videos_at_a_time)
        ]:
            frames = np.concatenate(list(embed_frames(np.concatenate(squares))))  # (F, P)
            ends = np.cumsum([len(part) for part in squares])
            for part in np.split(frames, ends[:-1]):
                if len(scores) == len(captions):
                    raise ValueError(
                        f"There are more videos than captions ({len(captions)}): give one caption for each."
                    )
                scores.append(score_frames(part, vectors[len(scores)]))
        if len(scores) != len(captions):
            raise ValueError(
                f"There are {len(scores)} videos for {len(captions)} captions: give one caption for each."
            )
        return np.array(scores, np.float64)

    return ClipScorer(path, weights, FRAMES, score)


def pick_frames(video: np.ndarray) -> np.ndarray:
    """Selects min(T, FRAMES) evenly spaced frames of a video (T, H, W, 3), including the first and the last."""
    indices = np.linspace(0, len(video) - 1, min(len(video), FRAMES))
    return video[np.rint(indices).astype(int)]


def score_frames(frames: np.ndarray, caption: np.ndarray) -> float:
    """Computes the score of one video, the mean of 100 max(cosine, 0).

    Args:
      frames: (F, P) embeddings of its frames.
      caption: (P,) embedding of its caption.
    """
    frames, caption = frames.astype(np.float64), caption.astype(np.float64)
    norms = np.linalg.norm(frames, axis=1) * np.linalg.norm(caption)  # (F,)
    return float(100 * np.maximum(frames @ caption / norms, 0).mean())
