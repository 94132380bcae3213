"""Caption conditioning of a run: from captions to model inputs, and what must not change when the run resumes.

| text.encoder | rows of a batch                                              | no caption       | known by       |
| ------------ | ------------------------------------------------------------ | ---------------- | -------------- |
| words        | (B, L) int32, ids of words                                   | the null caption | its vocabulary |
| clip         | {"tokens": (B, L, E), "mask": (B, L) bool, "pooled": (B, P)} | the caption ""   | a hash         |

CLIP's embeddings are float16. Those of a data set's captions are computed once, by `encode`; training reads no weights
of CLIP, unless it shows samples.
"""

import functools
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np
from absl import logging

from videogen_jax.data import clip_tokenizer
from videogen_jax.data.latent_records import Embeddings, TextInfo, find_dtype
from videogen_jax.data.vocabulary import MOST_WORDS, Vocabulary, split_words
from videogen_jax.models.clip_text import TextEncoder, make_text_encoder
from videogen_jax.models.weights import hash_params
from videogen_jax.parallel.batched import make_batched

ENCODERS = ("words", "clip")
MODEL_ENCODERS = {"words": "words", "clip": "embeddings"}  # what `VideoDiT` calls them
CAPTIONS_AT_A_TIME = 32  # on each device
SHOWN_PROMPTS = 3  # of those that are cut

_make_text_encoder = functools.cache(make_text_encoder)  # its shapes take a second to infer


class Texts(NamedTuple):
    """The caption conditioning of a run."""

    null: Any  # tree of rows without the batch axis: no caption
    metadata: dict[str, Any]  # saved with checkpoints, JSON values
    # tokens of the stored embeddings that the pipeline reads; 0: none are stored
    stored_length: int
    # prompts to rows; raises ValueError for those that the model cannot read
    embed: Callable[[Sequence[str]], Any]
    read: Callable[[dict[str, np.ndarray]], Any]  # a batch of the pipeline to rows


def _refuse(*_: Any) -> Any:
    raise AssertionError("unreachable: a run without texts reads no captions")


# Of a run without captions.
NONE = Texts(
    null=None,
    metadata={"vocabulary": [], "text": None},
    stored_length=0,
    embed=_refuse,
    read=_refuse,
)


class Embedder(NamedTuple):
    """A text encoder with its weights, on this process's devices."""

    encoder: TextEncoder
    weights: str  # hash of its parameters
    precision: str  # in which it computes
    run: Callable[[Sequence[str]], Embeddings]  # of N captions


def blank_text(encoder: str, path: str, length: int) -> Any:
    """An embedding of no caption of the right shapes, without data or weights; CLIP's is zeros.

    Args:
      encoder: text.encoder, one of ENCODERS.
      path: text.path.
      length: text.length.
    Returns:
      Tree of rows without the batch axis.
    Raises:
      ValueError: the length is too large for the encoder.
    """
    if encoder == "words":
        return Vocabulary(()).encode([""], length)[0]
    clip = _make_text_encoder(path, fetch=False)
    _check_length(length, clip.length)
    zeros = _make_rows([np.zeros((2, clip.width))], np.zeros((1, clip.pooled_width)), length)
    return jax.tree.map(lambda rows: rows[0], zeros)


def open_texts(encoder: str, path: str, length: int, vocabulary_size: int, data: Any) -> Texts:
    """The captions of a run in training.

    Args:
      encoder: text.encoder, one of ENCODERS.
      path: text.path.
      length: text.length.
      vocabulary_size: text.vocabulary_size; 0: as many as MOST_WORDS.
      data: of `pipeline.open_data`.
    Returns:
      The texts.
    Raises:
      ValueError: the data set has no caption embeddings, or those of other weights than the config's.
      FileNotFoundError: the config names weights elsewhere than `encode` did, and they are not there.
    """
    if encoder == "words":
        vocabulary = Vocabulary.from_counts(data.words, vocabulary_size or MOST_WORDS)
        if len(data.words) > len(vocabulary.words):
            logging.warning(
                "The captions have %d words, of which the %d rarest are unknown to the model: "
                "raise --config.text.vocabulary_size.",
                len(data.words),
                len(data.words) - len(vocabulary.words),
            )
        return _make_words(vocabulary, length)
    info = data.texts
    if info is None:
        raise ValueError(
            f"text.encoder is 'clip', but {data.folder} holds no caption embeddings: run videogen_jax.encode with "
            "this config and set --config.data.path to its output, or set --config.text.encoder=words."
        )
    if info.path != path:
        weights = hash_params(_make_text_encoder(path, fetch=True).load())
        if weights != info.weights:
            raise ValueError(
                f"The caption embeddings in {data.folder} are of the weights {info.weights[:12]} of {info.path!r}, "
                f"but text.path={path!r} has the weights {weights[:12]}: set --config.text.path={info.path}, "
                "or encode again."
            )
    return _make_clip(path, length, info)


def restore_texts(encoder: str, path: str, length: int, metadata: dict[str, Any]) -> Texts:
    """The captions of a trained run.

    Args:
      encoder: text.encoder, one of ENCODERS.
      path: text.path.
      length: text.length.
      metadata: saved with its checkpoint.
    Returns:
      The texts.
    Raises:
      FileNotFoundError: the weights of CLIP are not at `path`.
    """
    if encoder == "words":
        return _make_words(Vocabulary.from_list(metadata["vocabulary"]), length)
    _make_text_encoder(
        path, fetch=True
    )  # missing weights are an error now, and not at the first prompt
    return _make_clip(path, length, TextInfo(**metadata["text"]))


def find_difference(texts: Texts, metadata: dict[str, Any]) -> str | None:
    """What gives the same parameters another meaning: words of a sentence, or None.

    Args:
      texts: of the run that resumes.
      metadata: saved with its checkpoint.
    """
    if texts.metadata["vocabulary"] != metadata["vocabulary"]:
        return "the captions have other words"

    def content(info: dict[str, Any] | None) -> dict[str, Any]:
        # The hash of the weights determines the embedding of no caption, but for rounding.
        left_out = ("path", "null_tokens", "null_pooled")
        return {name: value for name, value in (info or {}).items() if name not in left_out}

    ours, theirs = texts.metadata["text"], metadata.get("text")
    if content(ours) != content(theirs):
        return "the captions were embedded by another text encoder"
    return None


def load_embedder(path: str, precision: str) -> Embedder:
    """Reads the weights of a CLIP and lays them on this process's devices.

    Args:
      path: text.path.
      precision: float32 or bfloat16, in which to compute.
    Returns:
      The embedder.
    Raises:
      ValueError: the weights do not fit, or are of another tokenizer.
      FileNotFoundError: they are not there.
    """
    encoder = _make_text_encoder(path, dtype=precision, fetch=True)
    if encoder.vocabulary_size != clip_tokenizer.VOCABULARY_SIZE:
        raise ValueError(
            f"The text encoder in text.path={path!r} reads {encoder.vocabulary_size} ids, but CLIP's tokenizer has "
            f"{clip_tokenizer.VOCABULARY_SIZE}: name weights of CLIP or OpenCLIP."
        )
    params = encoder.load()
    encode = make_batched(encoder.encode, params, CAPTIONS_AT_A_TIME)

    def run(captions: Sequence[str]) -> Embeddings:
        ids, counts = clip_tokenizer.tokenize(captions, encoder.length, encoder.pad_id)
        tokens: list[np.ndarray] = []
        pooled: list[np.ndarray] = []
        for states, mask, vectors in encode(ids):
            tokens += [row[seen] for row, seen in zip(states, mask, strict=True)]
            pooled += list(vectors)
        return Embeddings(tokens, np.stack(pooled), counts)

    return Embedder(encoder, hash_params(params), precision, run)


def describe_embeddings(embedder: Embedder, path: str, dtype: str) -> TextInfo:
    """What `encode` notes of the caption embeddings that it stores.

    Args:
      embedder: of `load_embedder`.
      path: text.path.
      dtype: vae.stored.
    Returns:
      The note, with the embedding of no caption.
    """
    tokens, pooled, _ = embedder.run([""])
    kind = find_dtype(dtype)
    return TextInfo(
        encoder="clip",
        path=path,
        weights=embedder.weights,
        precision=embedder.precision,
        dtype=dtype,
        width=embedder.encoder.width,
        pooled_width=embedder.encoder.pooled_width,
        length=embedder.encoder.length,
        null_tokens=tokens[0].astype(kind).astype(np.float32).tolist(),
        null_pooled=pooled[0].astype(kind).astype(np.float32).tolist(),
    )


def count_units(encoder: str, captions: Sequence[str]) -> list[int]:
    """Words, or tokens of CLIP with begin and end, of each caption before it is cut to text.length."""
    if encoder == "words":
        return [len(split_words(caption)) for caption in captions]
    return clip_tokenizer.tokenize(captions, length=2, pad_id=0)[1].tolist()


def _warn_of_cut(
    prompts: Sequence[str], counts: Sequence[int], length: int, unit: str, reader: str
) -> None:
    """Warns of prompts of which the model reads the beginning only."""
    cut = [pair for pair in zip(prompts, counts, strict=True) if pair[1] > length]
    for prompt, count in cut[:SHOWN_PROMPTS]:
        shown = prompt if len(prompt) <= 80 else prompt[:77] + "..."
        logging.warning(
            "The prompt %r has %d %s, of which %s reads the first %d (text.length).",
            *(shown, count, unit, reader, length),
        )
    if len(cut) > SHOWN_PROMPTS:
        logging.warning("%d of %d prompts are cut so.", len(cut), len(prompts))


def _make_words(vocabulary: Vocabulary, length: int) -> Texts:
    def embed(prompts: Sequence[str]) -> np.ndarray:
        for prompt in prompts:
            vocabulary.check(prompt)
        _warn_of_cut(prompts, count_units("words", prompts), length, "words", "the model")
        return vocabulary.encode(prompts, length)

    def read(clips: dict[str, np.ndarray]) -> np.ndarray:
        return vocabulary.encode([caption.decode() for caption in clips["caption"]], length)

    return Texts(
        null=vocabulary.encode([""], length)[0],
        metadata={"vocabulary": vocabulary.to_list(), "text": None},
        stored_length=0,
        embed=embed,
        read=read,
    )


def _make_clip(path: str, length: int, info: TextInfo) -> Texts:
    _check_length(length, info.length)

    def embed(prompts: Sequence[str]) -> dict[str, np.ndarray]:
        # The weights are here for this call alone: the model wants their memory.
        embedder = load_embedder(path, info.precision)
        if embedder.weights != info.weights:
            raise ValueError(
                f"The weights {embedder.weights[:12]} of text.path={path!r} are not those that embedded the data set's "
                f"captions, {info.weights[:12]} of {info.path!r}: name the same ones, or encode it again."
            )
        tokens, pooled, counts = embedder.run(prompts)
        reader = "CLIP" if length == info.length else "the model"
        _warn_of_cut(prompts, counts, length, "tokens", reader)
        kind = find_dtype(info.dtype)
        return _make_rows([row.astype(kind) for row in tokens], pooled.astype(kind), length)

    def read(clips: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        mask = np.arange(length) < clips["text_count"][:, None]
        return {"tokens": clips["text_tokens"], "mask": mask, "pooled": clips["text_pooled"]}

    null = _make_rows([np.asarray(info.null_tokens)], np.asarray([info.null_pooled]), length)
    return Texts(
        null=jax.tree.map(lambda rows: rows[0], null),
        metadata={"vocabulary": [], "text": info._asdict()},
        stored_length=length,
        embed=embed,
        read=read,
    )


def _make_rows(
    tokens: Sequence[np.ndarray], pooled: np.ndarray, length: int
) -> dict[str, np.ndarray]:
    """Rows of one length, as the pipeline makes them of what is stored: cut, or padded with zeros."""
    rows = np.zeros((len(tokens), length, tokens[0].shape[1]), np.float16)
    mask = np.zeros(rows.shape[:2], bool)
    for row, seen, states in zip(rows, mask, tokens, strict=True):
        row[: len(states)] = states[:length]
        seen[: len(states)] = True
    return {"tokens": rows, "mask": mask, "pooled": pooled.astype(np.float16)}


def _check_length(length: int, longest: int) -> None:
    if length > longest:
        raise ValueError(
            f"text.length is {length}, but the text encoder reads {longest} tokens: "
            f"set --config.text.length={longest}."
        )
