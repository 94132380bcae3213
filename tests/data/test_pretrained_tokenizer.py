"""Tokenizers of published models from small trained files, against transformers' with the same files."""

import io
import unicodedata

import numpy as np
import pytest

from tests.data.clip_captions import captions
from videogen_jax.data import pretrained_tokenizer

LENGTH = 40
TEXTS = captions(2000)
UNKNOWN = 2


def train_sentencepiece(folder, byte_fallback):
    """A SentencePiece model as T5's (pad 0, end 1, unknown 2), or as umT5's, with bytes for unknown characters."""
    sentencepiece = pytest.importorskip("sentencepiece", reason="is the extra t5")
    folder.mkdir(parents=True, exist_ok=True)
    written = io.BytesIO()
    lines = (" ".join(text.split()).replace("\0", " ") for text in TEXTS)
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=filter(None, lines),
        model_writer=written,
        model_type="unigram",
        vocab_size=1200,
        hard_vocab_limit=False,
        character_coverage=0.98,
        byte_fallback=byte_fallback,
        pad_id=0,
        eos_id=1,
        unk_id=UNKNOWN,
        bos_id=-1,
        num_threads=1,
        minloglevel=2,
    )
    file = folder / "spiece.model"
    file.write_bytes(written.getvalue())
    return file


def write_qwen(folder, vocabulary=600):
    """A byte-level BPE as Qwen's: its pre-tokenizer and normalizer, and its special tokens behind the vocabulary."""
    from tokenizers import (
        AddedToken,
        Regex,
        Tokenizer,
        models,
        normalizers,
        pre_tokenizers,
        trainers,
    )

    pieces = (
        r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+"
        r"|\s+(?!\S)|\s+"
    )
    tokenizer = Tokenizer(models.BPE())
    tokenizer.normalizer = normalizers.NFC()
    split = pre_tokenizers.Split(Regex(pieces), behavior="isolated")
    as_bytes = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([split, as_bytes])
    trainer = trainers.BpeTrainer(
        vocab_size=vocabulary,
        show_progress=False,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
    )
    tokenizer.train_from_iterator(TEXTS, trainer)
    words = ("<|endoftext|>", "<|im_start|>", "<|im_end|>")
    tokenizer.add_special_tokens(
        [AddedToken(word, normalized=False, special=True) for word in words]
    )
    folder.mkdir(parents=True, exist_ok=True)
    tokenizer.save(str(folder / "tokenizer.json"))
    return folder / "tokenizer.json"


def compare(file, reference, texts=TEXTS, ends=True):
    """All ids and counts, also truncated."""
    tokenizer = pretrained_tokenizer.open_tokenizer(file)
    rows, counts = tokenizer.tokenize(texts, LENGTH)
    assert rows == reference(list(texts), truncation=True, max_length=LENGTH)["input_ids"]
    whole = reference(list(texts))["input_ids"]
    assert counts == [len(row) for row in whole]
    assert sum(count > LENGTH for count in counts) > 50
    assert sum(count < 10 for count in counts) > 50
    if ends:
        assert all(row[-1] == 1 for row in rows)
    return tokenizer


@pytest.mark.parametrize("byte_fallback", [False, True], ids=["t5", "umt5"])
def test_2000_captions_of_tokenizer_json_match_transformers(tmp_path, byte_fallback):
    transformers = pytest.importorskip("transformers")
    train_sentencepiece(tmp_path, byte_fallback)
    reference = transformers.T5Tokenizer.from_pretrained(str(tmp_path))
    reference.save_pretrained(str(tmp_path / "fast"))
    tokenizer = compare(tmp_path / "fast" / "tokenizer.json", reference)
    assert {0, 1} <= tokenizer.special_ids and tokenizer.vocabulary_size == len(reference)


@pytest.mark.parametrize("byte_fallback", [False, True], ids=["t5", "umt5"])
def test_2000_captions_of_a_sentencepiece_model_match_transformers(tmp_path, byte_fallback):
    """Against transformers' class of tokenizers on top of SentencePiece, the one of the original T5."""
    pytest.importorskip("transformers")
    from transformers.tokenization_utils_sentencepiece import SentencePieceBackend

    class Reference(SentencePieceBackend):
        def build_inputs_with_special_tokens(self, ids, _=None):
            return [*ids, 1]

    file = train_sentencepiece(tmp_path, byte_fallback)
    words = {"eos_token": "</s>", "unk_token": "<unk>", "pad_token": "<pad>"}
    tokenizer = compare(file, Reference(vocab_file=str(file), **words))
    assert tokenizer.special_ids == {0, 1}


@pytest.mark.parametrize("byte_fallback", [False, True], ids=["t5", "umt5"])
def test_a_sentencepiece_model_matches_an_independent_implementation(tmp_path, byte_fallback):
    """The package tokenizers with the same pieces, on normalized captions without characters that it does not know."""
    sentencepiece = pytest.importorskip("sentencepiece", reason="is the extra t5")
    from tokenizers import Tokenizer, models, pre_tokenizers

    file = train_sentencepiece(tmp_path, byte_fallback)
    model = sentencepiece.SentencePieceProcessor(model_file=str(file))
    size = range(model.get_piece_size())
    pieces = [(model.id_to_piece(i), model.get_score(i)) for i in size]
    plain = Tokenizer(models.Unigram(pieces, unk_id=UNKNOWN, byte_fallback=byte_fallback))
    plain.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.WhitespaceSplit(),
            pre_tokenizers.Metaspace(replacement="▁", prepend_scheme="always"),
        ]
    )
    texts = [" ".join(unicodedata.normalize("NFKC", text).split()) for text in TEXTS]
    texts = [text for text in texts if text.isprintable() and "\ufffd" not in text]
    expected = [[*row.ids, 1] for row in plain.encode_batch(texts)]
    rows, _ = pretrained_tokenizer.open_tokenizer(file).tokenize(texts, 10_000)
    known = [pair for pair in zip(rows, expected, strict=True) if UNKNOWN not in pair[1]]
    assert len(known) > 300
    assert sum(len(row) for row, _ in known) > 5000
    for row, other in known:
        assert row == other


def test_2000_captions_of_a_byte_level_bpe_match_transformers(tmp_path):
    transformers = pytest.importorskip("transformers")
    file = write_qwen(tmp_path)
    reference = transformers.Qwen2Tokenizer.from_pretrained(str(tmp_path))
    tokenizer = compare(file, reference, ends=False)
    assert tokenizer.special_ids == {600, 601, 602} and tokenizer.vocabulary_size == 603
    assert tokenizer.tokenize([""], LENGTH) == ([[]], [0])
    assert tokenizer.tokenize(["<|im_end|>"], LENGTH)[0] == [[602]]


def test_truncated_captions_keep_their_end(tmp_path):
    tokenizer = pretrained_tokenizer.open_tokenizer(train_sentencepiece(tmp_path, False))
    (whole,), (count,) = tokenizer.tokenize(["a red ball rolls " * 9], 500)
    (cut,), (same,) = tokenizer.tokenize(["a red ball rolls " * 9], 7)
    assert count == same == len(whole) and cut == [*whole[:6], 1]
    assert tokenizer.tokenize([""], 7) == ([[1]], [1])


def test_lone_surrogates_are_replaced(tmp_path):
    for file in (train_sentencepiece(tmp_path, True), write_qwen(tmp_path)):
        tokenizer = pretrained_tokenizer.open_tokenizer(file)
        assert tokenizer.tokenize(["\ud83d cat"], 9) == tokenizer.tokenize(["? cat"], 9)


def test_damaged_files_are_refused(tmp_path):
    pytest.importorskip("sentencepiece", reason="is the extra t5")
    (tmp_path / "tokenizer.json").write_text('{"version": "1.0"')
    (tmp_path / "spiece.model").write_bytes(np.arange(99, dtype=np.uint8).tobytes())
    for name, kind in (
        ("tokenizer.json", "tokenizer of the package tokenizers"),
        ("spiece.model", "SentencePiece model"),
    ):
        with pytest.raises(ValueError, match=rf"{name} is no {kind} .*: download it again\."):
            pretrained_tokenizer.open_tokenizer(tmp_path / name)


def test_the_missing_package_is_named(tmp_path, monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "sentencepiece", None)
    with pytest.raises(ValueError, match=r"wants the package sentencepiece.*videogen-jax\[t5\]"):
        pretrained_tokenizer.open_tokenizer(tmp_path / "spiece.model")
