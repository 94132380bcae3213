"""Tokenizers of published language models, from their files: tokenizer.json, or a SentencePiece model.

tokenizer.json is read by the package `tokenizers`, and its own rules say which tokens begin and end a caption. A
SentencePiece model is read by the package `sentencepiece` (extra `t5`), and the end of text is added, as T5 does.
"""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

FILES = ("tokenizer.json", "spiece.model")  # the first one that is there


class Tokenizer(NamedTuple):
    """A tokenizer."""

    file: Path
    vocabulary_size: int  # one more than the largest id
    special_ids: frozenset[int]  # of tokens that no text has, such as the end of text
    # (captions, L) to the ids of each, truncated to L with its begin and end, and their numbers before truncation
    tokenize: Callable[[Sequence[str], int], tuple[list[list[int]], list[int]]]


def open_tokenizer(file: Path) -> Tokenizer:
    """Opens a tokenizer.

    Args:
      file: a tokenizer.json, or a SentencePiece model.
    Raises:
      ValueError: the file is damaged, or is a SentencePiece model and the package is not installed.
    """
    return _open_json(file) if file.suffix == ".json" else _open_sentencepiece(file)


def clean_text(caption: str) -> str:
    """Replaces lone surrogates, which JSON files may contain and which are not valid text."""
    return caption.encode("utf-8", "replace").decode("utf-8")


def _open_json(file: Path) -> Tokenizer:
    import tokenizers

    try:
        tokenizer = tokenizers.Tokenizer.from_file(str(file))
    except Exception as error:  # the package raises nothing more special
        raise ValueError(
            f"{file} is no tokenizer of the package tokenizers ({error}): download it again."
        ) from None
    # Those of the file are for another length.
    tokenizer.no_truncation()
    tokenizer.no_padding()
    ends = tokenizer.num_special_tokens_to_add(False)

    def tokenize(captions: Sequence[str], length: int) -> tuple[list[list[int]], list[int]]:
        texts = [clean_text(caption) for caption in captions]
        found = tokenizer.encode_batch(texts, add_special_tokens=False)
        counts = [len(encoding) + ends for encoding in found]
        for encoding in found:
            encoding.truncate(length - ends)
        return [tokenizer.post_process(encoding).ids for encoding in found], counts

    added = tokenizer.get_added_tokens_decoder()
    return Tokenizer(
        file=file,
        vocabulary_size=max(tokenizer.get_vocab().values()) + 1,
        special_ids=frozenset(number for number, token in added.items() if token.special),
        tokenize=tokenize,
    )


def _open_sentencepiece(file: Path) -> Tokenizer:
    try:
        import sentencepiece
    except ImportError:
        raise ValueError(
            f"{file} wants the package sentencepiece, which is not installed: pip install 'videogen-jax[t5]', or put "
            "the model's tokenizer.json there."
        ) from None
    try:
        processor = sentencepiece.SentencePieceProcessor(model_file=str(file))
    except (RuntimeError, OSError) as error:
        raise ValueError(
            f"{file} is no SentencePiece model ({error}): download it again."
        ) from None
    end = [processor.eos_id()] if processor.eos_id() >= 0 else []

    def tokenize(captions: Sequence[str], length: int) -> tuple[list[list[int]], list[int]]:
        texts = [clean_text(caption) for caption in captions]
        found = processor.encode(texts, out_type=int)
        rows = [row[: length - len(end)] + end for row in found]
        return rows, [len(row) + len(end) for row in found]

    size = processor.get_piece_size()
    return Tokenizer(
        file=file,
        vocabulary_size=size,
        special_ids=frozenset(number for number in range(size) if processor.is_control(number)),
        tokenize=tokenize,
    )
