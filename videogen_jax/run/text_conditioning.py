"""Caption conditioning of a run: from captions to model inputs, and what must not change when the run resumes.

| text.encoder    | rows of a batch                                              | no caption       | known by       |
| --------------- | ------------------------------------------------------------ | ---------------- | -------------- |
| words           | (B, L) int32, ids of words                                   | the null caption | its vocabulary |
| clip, t5, qwen3 | {"tokens": (B, L, E), "mask": (B, L) bool, "pooled": (B, P)} | the caption ""   | a hash         |

Embeddings of pretrained encoders are float16. Those of a data set's captions are computed once, by `encode`; training
reads no weights of the encoder, unless it shows samples.
"""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import ml_collections
import numpy as np
from absl import logging

from videogen_jax.data import clip_tokenizer
from videogen_jax.data.latent_records import TextInfo, store_embeddings
from videogen_jax.data.vocabulary import MOST_WORDS, Vocabulary, split_words
from videogen_jax.models.text_encoder import PRETRAINED
from videogen_jax.models.weights import hash_params
from videogen_jax.run.caption_embedder import load_embedder, make_encoders

ENCODERS = ("words", *PRETRAINED)
# What `VideoDiT` calls them.
MODEL_ENCODERS = {"words": "words"} | dict.fromkeys(PRETRAINED, "embeddings")
SHOWN_PROMPTS = 3  # of those that are cut


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


def blank_text(text: ml_collections.ConfigDict) -> Any:
    """An embedding of no caption of the right shapes, without data or weights; zeros but for words.

    Args:
      text: the section of the config.
    Returns:
      Tree of rows without the batch axis.
    Raises:
      ValueError: the length is too large for the encoder.
    """
    if text.encoder == "words":
        return Vocabulary(()).encode([""], text.length)[0]
    encoder, pooler = make_encoders(text, fetch=False)
    _check_length(text.length, encoder.length)
    zeros = np.zeros((2, encoder.width)), np.zeros((1, pooler.pooled_width))
    rows = _make_rows([zeros[0]], zeros[1], text.length, "float16")
    return jax.tree.map(lambda column: column[0], rows)


def open_texts(text: ml_collections.ConfigDict, data: Any) -> Texts:
    """The captions of a run in training.

    Args:
      text: the section of the config.
      data: of `pipeline.open_data`.
    Returns:
      The texts.
    Raises:
      ValueError: the data set has no caption embeddings, or those of another encoder than the config's.
      FileNotFoundError: the config names weights elsewhere than `encode` did, and they are not there.
    """
    if text.encoder == "words":
        vocabulary = Vocabulary.from_counts(data.words, text.vocabulary_size or MOST_WORDS)
        if len(data.words) > len(vocabulary.words):
            logging.warning(
                "The captions have %d words, of which the %d rarest are unknown to the model: "
                "raise --config.text.vocabulary_size.",
                len(data.words),
                len(data.words) - len(vocabulary.words),
            )
        return _make_words(vocabulary, text.length)
    info = data.texts
    if info is None:
        raise ValueError(
            f"text.encoder is {text.encoder!r}, but {data.folder} holds no caption embeddings: run videogen_jax.encode "
            "with this config and set --config.data.path to its output, or set --config.text.encoder=words."
        )
    for name in ("encoder", "layer", "pooled_encoder"):
        if text[name] != getattr(info, name):
            raise ValueError(
                f"The caption embeddings in {data.folder} are of text.{name}={getattr(info, name)!r}, but it is "
                f"{text[name]!r} now: set it back, or encode again."
            )
    encoders = None
    for name, hashed, i in (("path", "weights", 0), ("pooled_path", "pooled_weights", 1)):
        if getattr(info, name) == text[name]:
            continue
        encoders = encoders or make_encoders(text, info.precision, fetch=True)
        weights = hash_params(encoders[i].load())
        if weights != getattr(info, hashed):
            raise ValueError(
                f"The caption embeddings in {data.folder} are of the weights {getattr(info, hashed)[:12]} of "
                f"{getattr(info, name)!r}, but text.{name}={text[name]!r} has the weights {weights[:12]}: set "
                f"--config.text.{name}={getattr(info, name)}, or encode again."
            )
    return _make_pretrained(text, info)


def restore_texts(text: ml_collections.ConfigDict, metadata: dict[str, Any]) -> Texts:
    """The captions of a trained run.

    Args:
      text: the section of the config.
      metadata: saved with its checkpoint.
    Returns:
      The texts.
    Raises:
      FileNotFoundError: the weights of the text encoder are not at `text.path`.
    """
    if text.encoder == "words":
        return _make_words(Vocabulary.from_list(metadata["vocabulary"]), text.length)
    make_encoders(text, fetch=True)  # missing weights are an error now, and not at the first prompt
    return _make_pretrained(text, TextInfo(**metadata["text"]))


def restore_null(text: ml_collections.ConfigDict, metadata: dict[str, Any]) -> Any:
    """The embedding of no caption of a trained run, of the sizes that its model has; reads nothing at `text.path`.

    Args:
      text: the section of the config.
      metadata: saved with its checkpoint.
    Returns:
      Tree of rows without the batch axis.
    """
    if text.encoder == "words":
        return blank_text(text)
    return _make_pretrained(text, TextInfo(**metadata["text"])).null


def find_difference(texts: Texts, metadata: dict[str, Any]) -> str | None:
    """What gives the same parameters another meaning: words of a sentence, or None.

    Args:
      texts: of the run that resumes.
      metadata: saved with its checkpoint.
    """
    if texts.metadata["vocabulary"] != metadata["vocabulary"]:
        return "the captions have other words"

    # Through TextInfo: fields that came later have defaults.
    ours, theirs = (
        info and TextInfo(**info).content()
        for info in (texts.metadata["text"], metadata.get("text"))
    )
    if ours != theirs:
        return "the captions were embedded by another text encoder"
    return None


def count_units(encoder: str, captions: Sequence[str]) -> list[int]:
    """Words, or tokens of CLIP with begin and end, of each caption before it is cut to text.length.

    Args:
      encoder: words or clip; the others have no tokenizer without their files.
      captions: N captions.
    """
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


def _make_pretrained(text: ml_collections.ConfigDict, info: TextInfo) -> Texts:
    length = text.length
    _check_length(length, info.length)

    def embed(prompts: Sequence[str]) -> dict[str, np.ndarray]:
        # The weights are here for this call alone: the model wants their memory.
        embedder = load_embedder(text, info.precision)
        for name, hashed in (("path", "weights"), ("pooled_path", "pooled_weights")):
            found, wanted = getattr(embedder, hashed), getattr(info, hashed)
            if found != wanted:
                raise ValueError(
                    f"The weights {found[:12]} of text.{name}={text[name]!r} are not those that embedded the data "
                    f"set's captions, {wanted[:12]} of {getattr(info, name)!r}: name the same ones, or encode it again."
                )
        tokens, pooled, counts = embedder.run(prompts)
        reader = "the text encoder" if length == info.length else "the model"
        _warn_of_cut(prompts, counts, length, "tokens", reader)
        return _make_rows(tokens, pooled, length, info.dtype)

    def read(clips: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        mask = np.arange(length) < clips["text_count"][:, None]
        return {"tokens": clips["text_tokens"], "mask": mask, "pooled": clips["text_pooled"]}

    null = np.asarray(info.null_tokens), np.asarray([info.null_pooled])
    rows = _make_rows([null[0]], null[1], length, info.dtype)
    return Texts(
        null=jax.tree.map(lambda column: column[0], rows),
        metadata={"vocabulary": [], "text": info._asdict()},
        stored_length=length,
        embed=embed,
        read=read,
    )


def _make_rows(
    tokens: Sequence[np.ndarray], pooled: np.ndarray, length: int, dtype: str
) -> dict[str, np.ndarray]:
    """Rows of one length, as the pipeline makes them of what is stored in `dtype`: cut, or padded with zeros."""
    rows = np.zeros((len(tokens), length, tokens[0].shape[1]), np.float16)
    mask = np.zeros(rows.shape[:2], bool)
    for row, seen, states in zip(rows, mask, tokens, strict=True):
        row[: len(states)] = store_embeddings(states[:length], dtype)
        seen[: len(states)] = True
    return {
        "tokens": rows,
        "mask": mask,
        "pooled": store_embeddings(pooled, dtype).astype(np.float16),
    }


def _check_length(length: int, longest: int) -> None:
    if length > longest:
        raise ValueError(
            f"text.length is {length}, but the text encoder reads {longest} tokens: "
            f"set --config.text.length={longest}."
        )
