"""The CLIP tokenizer, on top of the package `tokenizers`; downloads nothing.

The ids equal those of transformers' `CLIPTokenizer` after HTML entities are unescaped twice, as in OpenAI's tokenizer.
docs/text.md lists the rare texts for which OpenAI's ids differ.

The merges in clip_merges.txt.gz are OpenAI's (MIT, clip_merges.LICENSE). All CLIP and OpenCLIP models use them.

Source: openai/CLIP `simple_tokenizer.py`; transformers `models/clip/tokenization_clip.py`.
"""

import functools
import gzip
import html
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

MERGES = Path(__file__).with_name("clip_merges.txt.gz")
BEGIN, END = "<|startoftext|>", "<|endoftext|>"
BEGIN_ID, END_ID = 49_406, 49_407
VOCABULARY_SIZE = 49_408
# Contractions, runs of letters, single digits, runs of other non-space characters.
PIECES = r"<\|startoftext\|>|<\|endoftext\|>|'s|'t|'re|'ve|'m|'ll|'d|\p{L}+|\p{N}|[^\s\p{L}\p{N}]+"


def tokenize(captions: Sequence[str], length: int, pad_id: int) -> tuple[np.ndarray, np.ndarray]:
    """Tokenizes captions, truncated or padded to one length.

    Args:
      captions: B captions; an empty one becomes the begin and end tokens alone, which is the null text.
      length: L >= 2; truncated captions keep their begin and end tokens.
      pad_id: padding id, `TextEncoder.pad_id`.
    Returns:
      ids (B, L) int32; counts (B,) int32, number of tokens before truncation including begin and end.
    Raises:
      ValueError: length leaves no room, or captions is a single string.
    """
    if isinstance(captions, str):
        raise ValueError("tokenize takes a list of captions: write [caption] for a single one.")
    if length < 2:
        raise ValueError(f"{length} tokens have no room for begin and end of text: give 2 or more.")
    found = [encoding.ids for encoding in _tokenizer().encode_batch([_clean(c) for c in captions])]
    ids = np.full((len(captions), length), pad_id, np.int32)  # (B, L)
    for row, tokens in zip(ids, found, strict=True):
        kept = [BEGIN_ID, *tokens[: length - 2], END_ID]
        row[: len(kept)] = kept
    return ids, np.array([len(tokens) + 2 for tokens in found], np.int32)


def _clean(caption: str) -> str:
    # JSON files may contain lone surrogates, which are not valid text.
    caption = caption.encode("utf-8", "replace").decode("utf-8")
    return html.unescape(html.unescape(caption))


@functools.cache
def _tokenizer() -> Any:
    from tokenizers import AddedToken, Regex, Tokenizer, models, normalizers, pre_tokenizers

    lines = gzip.decompress(MERGES.read_bytes()).decode("utf-8").rstrip("\n").split("\n")
    merges = [tuple(line.split(" ")) for line in lines]
    characters = _byte_characters()
    words = characters + [f"{character}</w>" for character in characters]
    words += ["".join(merge) for merge in merges] + [BEGIN, END]
    tokenizer = Tokenizer(
        models.BPE(
            vocab={word: i for i, word in enumerate(words)},
            merges=merges,
            unk_token=END,
            end_of_word_suffix="</w>",
        )
    )
    spaces = normalizers.Replace(Regex(r"\s+"), " ")
    tokenizer.normalizer = normalizers.Sequence(
        [normalizers.NFC(), spaces, normalizers.Lowercase()]
    )
    split = pre_tokenizers.Split(Regex(PIECES), behavior="removed", invert=True)
    as_bytes = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([split, as_bytes])
    tokenizer.add_special_tokens(
        [AddedToken(word, normalized=False, special=True) for word in (BEGIN, END)]
    )
    return tokenizer


def _byte_characters() -> list[str]:
    """Returns a printable character for each byte in the order of their ids: printable bytes first, then the others."""
    ranges = ((0x21, 0x7E), (0xA1, 0xAC), (0xAE, 0xFF))
    visible = [byte for first, last in ranges for byte in range(first, last + 1)]
    others = [byte for byte in range(256) if byte not in visible]
    return [chr(byte) for byte in visible] + [chr(256 + i) for i in range(len(others))]
