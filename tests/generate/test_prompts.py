"""Captions of flags and files: one rule for text, and the user is told what the model does not get."""

import codecs

import pytest
from absl import flags, logging
from absl.testing import flagsaver

from tests.conftest import ROOT
from tests.data.packed import random_clips, write_records
from videogen_jax.data import clip_tokenizer, pipeline
from videogen_jax.data.vocabulary import Vocabulary
from videogen_jax.generate import prompts
from videogen_jax.run import text_conditioning
from videogen_jax.train import caption_lengths

CASES = ROOT.parent / "shared" / "cases"


@pytest.fixture
def warned(caplog):
    logging.get_absl_logger().propagate = True
    caplog.set_level("WARNING")
    return lambda: [record.getMessage() for record in caplog.records]


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        (b"a red circle\na blue square", ["a red circle", "a blue square"]),
        (codecs.BOM_UTF8 + b"a red circle\r\n\r\n  \r\na blue square\r\n", ["a red circle", "a blue square"]),
        ("a red\u0085circle\n".encode(), ["a red\u0085circle"]),
        ("a\u2028b\x0bc\x0cd\n".encode(), ["a\u2028b\x0bc\x0cd"]),
        ("ein grüner Kreis\n赤い円".encode(), ["ein grüner Kreis", "赤い円"]),
    ],
)  # fmt: skip
def test_only_newlines_end_a_line(tmp_path, content, expected):
    path = tmp_path / "prompts.txt"
    path.write_bytes(content)
    assert prompts.read_prompts(["first"], str(path)) == ["first", *expected]


@pytest.mark.parametrize(
    ("content", "sentence"),
    [
        ("a red circle\r\n".encode("utf-16"), r"prompts\.txt is UTF-16 text: save it as UTF-8"),
        ("a red circle\r\n".encode("utf-16-le"), r"prompts\.txt has NUL bytes .*save it as UTF-8"),
        ("a café\n".encode("latin-1"), r"prompts\.txt is not UTF-8 text .*save it as UTF-8"),
        (b"\n\r\n  \n", r"prompts\.txt has no caption: write one a line"),
        (b"", r"prompts\.txt has no caption"),
    ],
)
def test_other_files_are_refused_by_name(tmp_path, content, sentence):
    path = tmp_path / "prompts.txt"
    path.write_bytes(content)
    with pytest.raises(ValueError, match=sentence):
        prompts.read_prompts([], str(path))


@pytest.mark.skipif(not CASES.is_dir(), reason="the folder of failing inputs is not here")
def test_collected_inputs():
    read = lambda name: prompts.read_prompts([], str(CASES / f"prompts_{name}.txt"))  # noqa: E731
    assert read("bom_crlf") == ["a red circle moving left", "a blue square moving up"]
    assert read("nel") == ["a red\u0085circle moving left"]
    for name in ("utf16", "utf16le", "latin1", "blank"):
        with pytest.raises(ValueError, match=f"prompts_{name}.txt"):
            read(name)


def test_a_schedule_has_a_byte_order_mark_and_a_next_line_character(tmp_path):
    path = tmp_path / "lines.txt"
    path.write_bytes(codecs.BOM_UTF8 + "0: a red\u0085circle\r\n24: b\r\n".encode())
    assert prompts.read_schedule(path) == [(0, "a red\u0085circle"), (24, "b")]
    path.write_bytes("0: a\n".encode("utf-16"))
    with pytest.raises(ValueError, match=r"lines\.txt is UTF-16"):
        prompts.read_schedule(path)


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("  ", r"""--prompts is '  ', which has no word: write --prompts "" for a video without"""),
        ("\n", "has no word"),
        ("a caf\udce9", r"--prompts is 'a caf\\udce9', which is not UTF-8 text"),
        ("a\0b", r"--prompts is 'a\\x00b', which has a NUL character"),
    ],
)
def test_prompts_that_are_no_text_are_refused(text, sentence):
    with pytest.raises(ValueError, match=sentence):
        prompts.read_prompts([text], None)


def test_the_empty_prompt_must_be_asked_for():
    assert prompts.read_prompts([""], None) == [""]
    with pytest.raises(ValueError, match="There is no prompt"):
        prompts.read_prompts([], None)


def test_a_caption_without_quotes_is_told(warned):
    prompts.warn_of_words(["a", "red", "circle"], ["red", "circle"])
    (line,) = warned()
    assert "'a', 'red', 'circle' are 3 captions" in line and '--prompts "a red circle"' in line
    prompts.warn_of_words(["a red circle", "a blue square"], ["a blue square"])
    prompts.warn_of_words(["circle", "square"], [])  # --prompts circle --prompts square
    assert len(warned()) == 1


def test_words_beyond_the_length_are_told_with_their_count(warned):
    vocabulary = Vocabulary(("red", "circle"))
    texts = text_conditioning._make_words(vocabulary, 4)
    texts.embed(["red circle red circle"])
    assert warned() == []
    texts.embed(["red, circle; red circle red", *["red " * 9] * 4])
    assert warned()[0] == (
        "The prompt 'red, circle; red circle red' has 5 words, of which the model reads the first 4 (text.length)."
    )
    assert warned()[-1] == "5 of 5 prompts are cut so." and len(warned()) == 4


def test_captions_are_counted_as_the_encoder_counts():
    assert text_conditioning.count_units("words", ["A red, red circle!", "", "..."]) == [4, 0, 0]
    captions = ["a photo of a cat", "", "word " * 200]
    _, counts = clip_tokenizer.tokenize(captions, 77, 0)
    assert text_conditioning.count_units("clip", captions) == counts.tolist() == [7, 2, 202]


def test_training_tells_how_many_captions_are_cut(tmp_path, warned, monkeypatch):
    captions = ["one two three", "one two three four", "one two three four five", "one"]
    data = write_records(tmp_path / "data", random_clips((2, 8, 8), 4), 2, 2, captions)
    opened = pipeline.open_data(str(data))
    assert caption_lengths.warn_of_cut_captions("words", 3, opened) == 2
    (line,) = warned()
    assert "2 of 4 captions" in line and "more than 3 words (the longest 5)" in line
    assert "--config.text.length" in line
    assert caption_lengths.warn_of_cut_captions("words", 5, opened) == 0 and len(warned()) == 1
    monkeypatch.setattr(caption_lengths, "MOST_CAPTIONS", 2)
    assert caption_lengths.warn_of_cut_captions("words", 3, opened) == 1
    assert "1 of 2 captions" in warned()[1]


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["--guidance_scale=nan"], "flag --guidance_scale=nan: give a finite number."),
        (["--known_guidance_scale=inf"], "flag --known_guidance_scale=inf"),
        (["--motion=nan"], "flag --motion=nan: give a finite number."),
        (["--ema_width=-inf"], "flag --ema_width=-inf"),
        (["--seed=-1"], "flag --seed=-1: -1 is not an integer in the range [0, 4294967295]"),
        (["--seed=4294967296"], "flag --seed=4294967296"),
        (["--step=-1"], "flag --step=-1"),
        (["--guidance_scale=-1"], "sample.guidance_scale is -1.0"),
        (["--num_inference_steps=0"], "sample.num_inference_steps is 0"),
        (["--seed=4294967295", "--num_videos=2"], "--seed=4294967295 and 2 videos would end above"),
        (["--negative_prompt= "], "--negative_prompt is ' ', which has no word"),
        (["--prompts= "], "--prompts is ' ', which has no word"),
    ],
)
def test_the_verb_refuses_before_it_looks_at_the_run(tmp_path, monkeypatch, arguments, sentence):
    from videogen_jax import sample

    monkeypatch.setattr(sample, "load_model", lambda *_: pytest.fail("the model was loaded"))
    monkeypatch.setattr(sample, "make_folder", lambda: pytest.fail("the folder was made"))
    if not flags.FLAGS.is_parsed():
        flags.FLAGS.mark_as_parsed()
    saved = flagsaver.save_flag_values(flags.FLAGS)
    try:
        with pytest.raises((ValueError, flags.Error)) as error:
            flags.FLAGS(["sample", "--workdir=x", "--prompts=a", *arguments])
            sample.write_samples()
    finally:
        flagsaver.restore_flag_values(saved, flags.FLAGS)
    assert sentence in str(error.value)
