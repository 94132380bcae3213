"""The CLIP tokenizer against reference implementations, in many scripts; truncation and padding."""

import gzip
import html
import importlib.util
import unicodedata
from pathlib import Path

import numpy as np
import pytest

from tests.data.clip_captions import captions
from videogen_jax.data import clip_tokenizer

CAT = [49406, 320, 1125, 539, 320, 2368, 49407]


def published_merges():
    """Reads OpenAI's merges from the package open_clip_torch without importing it, as it needs torchvision."""
    found = importlib.util.find_spec("open_clip")
    if found is None:
        pytest.skip(
            "open_clip_torch is not installed: it provides OpenAI's bpe_simple_vocab_16e6.txt.gz"
        )
    file = Path(found.origin).with_name("bpe_simple_vocab_16e6.txt.gz")
    lines = gzip.decompress(file.read_bytes()).decode("utf-8").split("\n")
    return [tuple(line.split()) for line in lines[1 : 49152 - 256 - 2 + 1]]


def make_vocabulary(merges):
    """Builds the vocabulary in OpenAI's order: bytes, word-final bytes, merges, begin and end tokens."""
    visible = [*range(33, 127), *range(161, 173), *range(174, 256)]
    hidden = sorted(set(range(256)) - set(visible))
    byte_of = {byte: chr(byte) for byte in visible}
    byte_of |= {byte: chr(256 + i) for i, byte in enumerate(hidden)}
    words = [byte_of[byte] for byte in visible + hidden]
    words += [word + "</w>" for word in words] + ["".join(merge) for merge in merges]
    words += ["<|startoftext|>", "<|endoftext|>"]
    return {word: i for i, word in enumerate(words)}, byte_of


@pytest.fixture(scope="module")
def reference():
    """transformers' tokenizer with the published merges."""
    transformers = pytest.importorskip("transformers")
    merges = published_merges()
    vocabulary, _ = make_vocabulary(merges)
    return transformers.CLIPTokenizer(vocab=vocabulary, merges=merges)


class PlainTokenizer:
    """OpenAI's byte pair encoding in plain Python: repeatedly merges the best pair."""

    def __init__(self, merges):
        import regex  # a dependency of transformers

        self.ids, self.byte_of = make_vocabulary(merges)
        self.ranks = {merge: i for i, merge in enumerate(merges)}
        special = r"<\|startoftext\|>|<\|endoftext\|>"
        pieces = r"|'s|'t|'re|'ve|'m|'ll|'d|[\p{L}]+|[\p{N}]|[^\s\p{L}\p{N}]+"
        self.pieces = regex.compile(special + pieces, regex.IGNORECASE)
        self.known = {}

    def encode(self, caption):
        text = html.unescape(html.unescape(caption))
        text = " ".join(unicodedata.normalize("NFC", text).split()).lower()
        return [i for piece in self.pieces.findall(text) for i in self.split(piece)]

    def split(self, piece):
        if piece in ("<|startoftext|>", "<|endoftext|>"):
            return [self.ids[piece]]
        if piece not in self.known:
            parts = [self.byte_of[byte] for byte in piece.encode("utf-8")]
            parts[-1] += "</w>"
            while len(parts) > 1:
                pairs = list(zip(parts, parts[1:], strict=False))
                best = min(pairs, key=lambda pair: self.ranks.get(pair, len(self.ranks)))
                if best not in self.ranks:
                    break
                merged, i = [], 0
                while i < len(parts):
                    both = tuple(parts[i : i + 2]) == best
                    merged.append("".join(parts[i : i + 1 + both]))
                    i += 1 + both
                parts = merged
            self.known[piece] = [self.ids[part] for part in parts]
        return self.known[piece]


def test_known_ids_of_a_caption():
    ids, counts = clip_tokenizer.tokenize(["a photo of a cat", "A  photo\nof a CAT "], 9, 0)
    np.testing.assert_array_equal(ids, [[*CAT, 0, 0]] * 2)
    assert ids.dtype == np.int32 and counts.tolist() == [7, 7]


def test_empty_caption_is_begin_and_end_token():
    for caption in ("", "  \n"):
        ids, counts = clip_tokenizer.tokenize([caption], 4, clip_tokenizer.END_ID)
        np.testing.assert_array_equal(ids, [[49406, 49407, 49407, 49407]])
        assert counts.tolist() == [2]


def test_truncated_captions_keep_the_end_token():
    ids, counts = clip_tokenizer.tokenize(["cat " * 75, "cat " * 76], 77, 0)
    assert counts.tolist() == [77, 78]
    np.testing.assert_array_equal(ids, [[49406, *[2368] * 75, 49407]] * 2)


def test_merges_are_openais():
    lines = gzip.decompress(clip_tokenizer.MERGES.read_bytes()).decode("utf-8").split("\n")
    assert [tuple(line.split()) for line in lines[:-1]] == published_merges()
    vocabulary, _ = make_vocabulary(published_merges())
    assert clip_tokenizer._tokenizer().get_vocab() == vocabulary
    assert len(vocabulary) == clip_tokenizer.VOCABULARY_SIZE


def test_2000_captions_match_transformers(reference):
    """After unescaping HTML entities, which OpenAI's tokenizer does and transformers' does not."""
    texts = captions(2000)
    assert len(set(texts)) > 1900
    ids, counts = clip_tokenizer.tokenize(texts, 77, clip_tokenizer.END_ID)
    plain = [html.unescape(html.unescape(text)) for text in texts]
    expected = reference(plain, padding="max_length", max_length=77, truncation=True)["input_ids"]
    np.testing.assert_array_equal(ids, expected)
    expected = [len(row) for row in reference(plain)["input_ids"]]
    np.testing.assert_array_equal(counts, expected)
    assert (counts > 77).sum() > 50 and (counts < 20).sum() > 200


def test_2000_captions_match_openai():
    """Against an independent implementation, with NFC in place of OpenAI's call of ftfy."""
    pytest.importorskip("regex")
    plain = PlainTokenizer(published_merges())
    texts = [text.replace("<|E", "<|e").replace("<|S", "<|s") for text in captions(2000)]
    ids, counts = clip_tokenizer.tokenize(texts, 77, 0)
    for row, count, text in zip(ids, counts, texts, strict=True):
        expected = [49406, *plain.encode(text), 49407]
        assert count == len(expected), ascii(text)
        kept = [*expected[:76], 49407][: len(expected)]
        assert row.tolist() == kept + [0] * (77 - len(kept)), ascii(text)


@pytest.mark.parametrize("text", ["ΟΔΟΣ", "a\x1cb", "<|Endoftext|>"])
def test_transformers_is_followed_where_the_references_disagree(reference, text):
    """The cases of docs/text.md: final capital sigma, separators U+001C to U+001F, capitals in special tokens."""
    plain = PlainTokenizer(published_merges())
    ids = reference([text])["input_ids"][0]
    assert clip_tokenizer.tokenize([text], len(ids), 0)[0][0].tolist() == ids
    assert ids != [49406, *plain.encode(text), 49407]


def test_lone_surrogates_are_replaced():
    ids, _ = clip_tokenizer.tokenize(["\ud83d cat"], 6, 0)
    expected, _ = clip_tokenizer.tokenize(["? cat"], 6, 0)
    np.testing.assert_array_equal(ids, expected)


def test_invalid_arguments_are_refused():
    with pytest.raises(ValueError, match=r"list of captions: write \[caption\]"):
        clip_tokenizer.tokenize("a cat", 77, 0)
    with pytest.raises(ValueError, match="1 tokens have no room .*: give 2 or more"):
        clip_tokenizer.tokenize(["a cat"], 1, 0)
