"""Embeds captions with the pretrained text encoders of a config: tokens of one, and the pooled vector of it or another.

Captions are sorted by length and run in batches of one of few lengths (`padded_lengths`), so that a short caption does
not cost the longest one's tokens; padding is masked, so that the embedding does not depend on it.
"""

import functools
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import ml_collections
import numpy as np

from videogen_jax.data.latent_records import Embeddings, TextInfo, store_embeddings
from videogen_jax.models.text_encoder import TextEncoder, make_text_encoder
from videogen_jax.models.weights import hash_params
from videogen_jax.parallel.batched import make_batched
from videogen_jax.run.text_tokenizer import Tokenize, open_tokenizer

CAPTIONS_AT_A_TIME = 32  # on each device; fewer of long ones
TOKENS_AT_A_TIME = 4096  # on each device
SHORTEST = 32  # tokens of the shortest batches
LARGEST_REPLICATED = (
    4 * 2**30
)  # bytes of parameters above which the devices of a process share them

cached_text_encoder = functools.cache(make_text_encoder)  # its shapes take a second to infer


class Embedder(NamedTuple):
    """The text encoders of a config with their weights, on this process's devices."""

    encoder: TextEncoder  # of the tokens
    weights: str  # hash of its parameters
    pooled_width: int
    pooled_weights: (
        str  # hash of the parameters of the encoder of the pooled vector; empty: `encoder`
    )
    precision: str  # in which they compute
    run: Callable[[Sequence[str]], Embeddings]  # of N captions


def make_encoders(
    text: ml_collections.ConfigDict, dtype: str = "float32", *, fetch: bool
) -> tuple[TextEncoder, TextEncoder]:
    """The encoder of the tokens and that of the pooled vector, of the section `text` of a config.

    Raises:
      ValueError: as `make_text_encoder`.
      FileNotFoundError: the weights are not there.
    """
    tokens = cached_text_encoder(text.encoder, text.path, text.layer, dtype=dtype, fetch=fetch)
    if not text.pooled_encoder:
        return tokens, tokens
    pooled = cached_text_encoder(text.pooled_encoder, text.pooled_path, dtype=dtype, fetch=fetch)
    return tokens, pooled


def load_embedder(text: ml_collections.ConfigDict, precision: str) -> Embedder:
    """Reads the weights of a config's text encoders and places them on this process's devices.

    Args:
      text: the section of the config.
      precision: float32 or bfloat16, in which to compute.
    Raises:
      ValueError: the weights do not fit, or the tokenizer is that of another model.
      FileNotFoundError: weights or tokenizer are not there.
    """
    if text.pooled_encoder and not text.pooled_path:
        raise ValueError(
            "text.pooled_path is empty: set it to the weights of CLIP (openai/clip-vit-large-patch14), or "
            "text.pooled_encoder to nothing."
        )
    encoder, pooler = make_encoders(text, precision, fetch=True)
    weights, run = _load(text.encoder, encoder)
    if pooler is encoder:
        return Embedder(encoder, weights, encoder.pooled_width, "", precision, run)
    pooled_weights, run_pooled = _load(text.pooled_encoder, pooler)

    def run_both(captions: Sequence[str]) -> Embeddings:
        return run(captions)._replace(pooled=run_pooled(captions).pooled)

    return Embedder(encoder, weights, pooler.pooled_width, pooled_weights, precision, run_both)


def _load(kind: str, encoder: TextEncoder) -> tuple[str, Callable[[Sequence[str]], Embeddings]]:
    """The hash of an encoder's weights, and what embeds captions with them."""
    tokenize = open_tokenizer(kind, encoder)
    params = encoder.load()
    encode = make_batched(
        encoder.encode, params, CAPTIONS_AT_A_TIME, largest_replicated=LARGEST_REPLICATED
    )
    return hash_params(params), functools.partial(_embed, encoder, tokenize, encode)


def _embed(
    encoder: TextEncoder, tokenize: Tokenize, encode: Callable[..., Any], captions: Sequence[str]
) -> Embeddings:
    ids, counts = tokenize(captions)
    tokens: list[Any] = [None] * len(ids)
    pooled = np.zeros((len(ids), encoder.pooled_width), np.float32)
    lengths = padded_lengths(encoder.length)
    batches = np.searchsorted(lengths, [len(row) for row in ids])
    for length, batch in zip(lengths, range(len(lengths)), strict=True):
        chosen = np.flatnonzero(batches == batch)
        padded = np.full((len(chosen), length), encoder.pad_id, np.int32)
        for row, number in zip(padded, chosen, strict=True):
            row[: len(ids[number])] = ids[number]
        done = 0
        for states, mask, vectors in encode(padded, count_rows(length)):
            for number, row, seen, vector in zip(
                chosen[done:], states, mask, vectors, strict=False
            ):
                tokens[number], pooled[number] = row[seen], vector
            done += len(states)
    if not all(np.isfinite(row).all() for row in (*tokens, pooled)):
        raise ValueError(
            f"The text encoder in {encoder.name!r} gives numbers that are not finite: download its weights again."
        )
    return Embeddings(tokens, pooled, np.asarray(counts, np.int32))


def padded_lengths(longest: int) -> list[int]:
    """Lengths of the batches of an encoder: powers of two from SHORTEST on, and its maximum."""
    lengths = [SHORTEST]
    while 2 * lengths[-1] < longest:
        lengths.append(2 * lengths[-1])
    return [*(length for length in lengths if length < longest), longest]


def count_rows(length: int) -> int:
    """Captions of a batch of `length` tokens, on each device."""
    return max(1, min(CAPTIONS_AT_A_TIME, TOKENS_AT_A_TIME // length))


def describe_embeddings(
    embedder: Embedder, text: ml_collections.ConfigDict, dtype: str
) -> TextInfo:
    """The metadata that `encode` stores beside caption embeddings.

    Args:
      embedder: of `load_embedder`.
      text: the section of the config.
      dtype: vae.stored.
    Returns:
      The metadata, with the embedding of the empty caption.
    """
    tokens, pooled, _ = embedder.run([""])
    null = [
        store_embeddings(values, dtype).astype(np.float32).tolist()
        for values in (tokens[0], pooled[0])
    ]
    return TextInfo(
        encoder=text.encoder,
        path=text.path,
        weights=embedder.weights,
        precision=embedder.precision,
        dtype=dtype,
        width=embedder.encoder.width,
        pooled_width=embedder.pooled_width,
        length=embedder.encoder.length,
        null_tokens=null[0],
        null_pooled=null[1],
        layer=text.layer,
        pooled_encoder=text.pooled_encoder,
        pooled_path=text.pooled_path,
        pooled_weights=embedder.pooled_weights,
    )
