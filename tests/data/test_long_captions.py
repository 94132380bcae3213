"""Long captions say what short ones do, in as many words as asked for."""

import re

import numpy as np
import pytest

from tests.conftest import ROOT
from videogen_jax.data import long_captions, synthetic
from videogen_jax.data.long_captions import make_long_caption, parse_long_caption
from videogen_jax.data.synthetic import COLOURS, COMBINATIONS, DIRECTIONS, SHAPES
from videogen_jax.data.vocabulary import split_words

FACTS = {word for name in (*COLOURS, *SHAPES, *DIRECTIONS) for word in name.split()}


def caption(names=("red", "circle", "up left"), words=60, seed=0):
    return make_long_caption(*names, words, np.random.default_rng(seed))


def test_every_combination_is_parsed_back_from_a_caption_whose_last_word_is_the_shape():
    for index, names in enumerate(COMBINATIONS):
        text = caption(names, seed=index)
        assert parse_long_caption(text) == synthetic.parse_caption(text.upper()) == names
        assert split_words(text)[-1] == names[1]


@pytest.mark.parametrize("words", [24, 25, 26, 27, 60, 61, 62, 200])
def test_a_caption_has_as_many_words_as_asked_for(words):
    assert {len(split_words(caption(words=words, seed=i))) for i in range(40)} == {words}


def test_each_fact_is_named_once_and_at_no_fixed_place():
    places = set()
    for seed in range(40):
        words = split_words(caption(seed=seed))
        assert [word for word in words if word in FACTS].count("red") == 1
        assert sorted(word for word in words if word in FACTS) == ["circle", "left", "red", "up"]
        places.add((words.index("red"), words.index("up")))
    assert len(places) > 30
    assert {one < other for one, other in places} == {True, False}


def test_sentences_without_a_fact_are_many_and_hardly_repeated():
    for seed in range(40):
        sentences = caption(seed=seed).rstrip(".").split(". ")
        kinds = [
            next(
                i
                for i, one in enumerate(long_captions.OTHERS)
                if re.fullmatch(one.lower(), text.lower())
            )
            for text in sentences
            if not FACTS & set(split_words(text))
        ]
        assert len(set(kinds)) > 5
        assert len(kinds) - len(set(kinds)) <= 2  # a short one at the end fills the rest


@pytest.mark.parametrize(
    "change",
    [
        lambda text: text.removesuffix(".").rpartition(". ")[0] + ".",  # no shape
        lambda text: text + " The camera is still.",  # the shape is not last
        lambda text: "Its colour is green. " + text,  # two colours
        lambda text: "A dog barks. " + text,
        lambda text: text.removesuffix("."),
        lambda text: "",
    ],
)
def test_other_captions_are_none(change):
    text = caption()
    assert parse_long_caption(text) is not None
    assert parse_long_caption(change(text)) is None


def test_unknown_facts_are_refused_with_those_there_are():
    text = caption(("pink", "circle", "up"))
    with pytest.raises(ValueError, match="use the colours red"):
        synthetic.parse_caption(text)


def test_captions_are_a_function_of_seed_and_index_and_differ_from_clip_to_clip():
    texts = [synthetic.caption_clip(index, 3, 60) for index in range(288)]
    assert texts == [synthetic.caption_clip(index, 3, 60) for index in range(288)]
    assert len(set(texts)) == 288
    facts = [synthetic.pick_combination(index, 3) for index in range(288)]
    assert [synthetic.parse_caption(text) for text in texts] == facts
    assert synthetic.caption_clip(5, 3) == synthetic.make_caption(*facts[5])


def test_the_prompts_are_those_of_the_quick_start_in_60_words_that_training_does_not_have():
    short, long = (
        (ROOT / "configs" / f"{name}_prompts.txt").read_text().splitlines()
        for name in ("quickstart", "long_caption")
    )
    assert list(map(synthetic.parse_caption, short)) == list(map(synthetic.parse_caption, long))
    assert {len(split_words(text)) for text in long} == {60}
    assert not set(long) & {synthetic.caption_clip(index, 0, 60) for index in range(2880)}


def test_videos_are_written_with_them(tmp_path):
    settings = dict(clips=2, seed=0, size=16, frames=2)
    synthetic.write_shapes(tmp_path / "a", "moving_shapes", caption_words=30, **settings)
    texts = [path.read_text().strip() for path in sorted((tmp_path / "a").glob("*.txt"))]
    assert texts == [synthetic.caption_clip(index, 0, 30) for index in range(2)]
    with pytest.raises(ValueError, match="caption_words 30 instead of None"):
        synthetic.write_shapes(tmp_path / "a", "moving_shapes", **settings)
    with pytest.raises(ValueError, match="24 words or more, not 23"):
        synthetic.write_shapes(tmp_path / "b", "moving_shapes", caption_words=23, **settings)
