"""CLIP score: how well a video's frames fit its caption, as CLIP sees it.

    score = mean over frames of  100 max(cos(image(frame), text(caption)), 0)

It is between 0 and 100. This is CLIPScore with 100 in place of its w = 2.5, as torchmetrics and most papers on video
print it; fitting pairs of ViT-B/32 have about 30. Scores of different weights cannot be compared.

Up to FRAMES frames of each video are looked at, evenly spaced, the first and the last among them. Captions are cut at
the 77 tokens that CLIP reads. Networks compute in float32 (on GPUs too: TF32 is off), cosines and means in float64.

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

FRAMES = 8  # of a video, at most
ROWS_AT_A_TIME = 32  # frames or captions on each device


class ClipScorer(NamedTuple):
    """A CLIP with its weights on this process's devices."""

    path: str  # that it was made from
    weights: str  # hash of the parameters of both towers
    frames: int  # that it looks at of a video, at most
    # (videos (T, H, W, 3) uint8, as many captions) to scores (N,) float64
    score: Callable[[Iterable[np.ndarray], Sequence[str]], np.ndarray]


def make_clip_scorer(path: str) -> ClipScorer:
    """Reads a CLIP and lays it on this process's devices.

    `score` takes the videos one by one, whatever their sizes and lengths. It raises a ValueError where there are not as
    many videos as captions, or where something is no video.

    Args:
      path: a safetensors file of a whole CLIP, its folder, or a name on the Hugging Face hub (hub.py), with config.json
        beside the weights.
    Returns:
      The scorer.
    Raises:
      FileNotFoundError: there is nothing at the path, nor on the hub.
      WeightsError: these are weights of something else, or of the text encoder alone.
      ValueError: they are of another tokenizer.
    """
    image, text = make_image_encoder(path), make_text_encoder(path)
    if text.vocabulary_size != clip_tokenizer.VOCABULARY_SIZE:
        raise ValueError(
            f"The CLIP in {path!r} reads {text.vocabulary_size} ids, but CLIP's tokenizer has "
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
        distinct, places = np.unique(np.array(captions, object), return_inverse=True)
        ids, counts = clip_tokenizer.tokenize(distinct, text.length, text.pad_id)
        if cut := int((counts > text.length).sum()):
            logging.warning("CLIP reads the first %d tokens of %d captions.", text.length, cut)
        return np.concatenate(list(embed_ids(ids)))[places]  # (N, P)

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
                        f"There are more videos than captions ({len(captions)}): give one for each."
                    )
                scores.append(score_frames(part, vectors[len(scores)]))
        if len(scores) != len(captions):
            raise ValueError(
                f"There are {len(scores)} videos for {len(captions)} captions: give one for each."
            )
        return np.array(scores, np.float64)

    return ClipScorer(path, weights, FRAMES, score)


def pick_frames(video: np.ndarray) -> np.ndarray:
    """The frames that are looked at.

    Args:
      video: (T, H, W, 3).
    Returns:
      (min(T, FRAMES), H, W, 3), evenly spaced, the first and the last among them.
    """
    places = np.linspace(0, len(video) - 1, min(len(video), FRAMES))
    return video[np.rint(places).astype(int)]


def score_frames(frames: np.ndarray, caption: np.ndarray) -> float:
    """Computes the score of one video.

    Args:
      frames: (F, P) vectors of its frames.
      caption: (P,) vector of its caption.
    Returns:
      The mean of 100 max(cosine, 0).
    """
    frames, caption = frames.astype(np.float64), caption.astype(np.float64)
    lengths = np.linalg.norm(frames, axis=1) * np.linalg.norm(caption)  # (F,)
    return float(100 * np.maximum(frames @ caption / lengths, 0).mean())
