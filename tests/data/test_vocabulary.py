import json

import numpy as np
import pytest

from videogen_jax.data.vocabulary import NULL_ID, PADDING_ID, UNKNOWN_ID, Vocabulary, split_words


@pytest.mark.parametrize(
    ("caption", "words"),
    [
        ("a red circle moving up left", ["a", "red", "circle", "moving", "up", "left"]),
        ("  A Cat,\n(two) cats; up-left!  ", ["a", "cat", "two", "cats", "up", "left"]),
        ("", []),
        ("?!... --", []),
        ("Ｆｕｌｌ width ﬁne ２", ["full", "width", "fine", "2"]),  # NFKC
        ("Кошка БЕЖИТ", ["кошка", "бежит"]),
        ("cafe\u0301 Zoë", ["café", "zoë"]),  # decomposed and composed
        ("猫が走る", ["猫", "が", "走", "る"]),
        ("a 猫cat runs", ["a", "猫", "cat", "runs"]),
        ("हिन्दी में", ["हिन्दी", "में"]),  # vowel signs are marks, not letters
        # Thai: a mark above stays with its letter; NFKC cuts the vowel am into a mark and "aa".
        ("\u0e01\u0e33\u0e25\u0e31\u0e07", ["\u0e01\u0e4d", "\u0e32", "\u0e25\u0e31", "\u0e07"]),
        ("می\u200cخواهم", ["میخواهم"]),  # an invisible joiner does not split a word
        ("a 🐈 sleeps", ["a", "sleeps"]),
        ("snake_case 3d", ["snake_case", "3d"]),
    ],
)
def test_words_of_many_scripts(caption, words):
    assert split_words(caption) == words


def test_ascii_fast_path_matches_the_general_path():
    text = "It's 9 o'clock; a_b -- (x)  Yes\tno"
    # A non-ASCII letter selects the general path.
    assert split_words(text + " é") == [*split_words(text), "é"]


def test_most_frequent_words_come_first_with_alphabetical_ties():
    vocabulary = Vocabulary.from_counts({"b": 2, "a": 2, "z": 9, "rare": 1}, size=6)
    assert vocabulary.words == ("z", "a", "b")
    assert len(vocabulary) == 6


def test_encode_pads_truncates_and_uses_special_ids():
    vocabulary = Vocabulary(("red", "circle"))
    ids = vocabulary.encode(["Red circle!", "", "blue", "red red red red", "..."], length=3)
    assert ids.dtype == np.int32
    np.testing.assert_array_equal(
        ids,
        [
            [3, 4, PADDING_ID],
            [NULL_ID, PADDING_ID, PADDING_ID],
            [UNKNOWN_ID, PADDING_ID, PADDING_ID],
            [3, 3, 3],
            [NULL_ID, PADDING_ID, PADDING_ID],
        ],
    )


def test_encode_of_no_captions_and_of_a_long_one():
    vocabulary = Vocabulary(("a",))
    assert vocabulary.encode([], 4).shape == (0, 4)
    assert (vocabulary.encode(["a " * 5000], 7) == 3).all()


def test_check_names_unknown_words_and_the_nearest_known_word():
    vocabulary = Vocabulary(("red", "circle", "moving"))
    vocabulary.check("Red circle, moving")
    vocabulary.check("")
    with pytest.raises(ValueError, match=r"'cirle' \(nearest: 'circle'\), 'xyzzy'"):
        vocabulary.check("red cirle xyzzy")


def test_list_round_trips_through_json():
    vocabulary = Vocabulary(("red", "猫"))
    again = Vocabulary.from_list(json.loads(json.dumps(vocabulary.to_list())))
    assert again == vocabulary
    np.testing.assert_array_equal(again.encode(["猫 red"], 2), [[4, 3]])


def test_invalid_arguments_are_refused():
    with pytest.raises(ValueError, match="'a' occurs twice"):
        Vocabulary(("a", "b", "a"))
    with pytest.raises(ValueError, match="no room"):
        Vocabulary.from_counts({"a": 1}, size=3)
    with pytest.raises(ValueError, match="list of captions"):
        Vocabulary(("a",)).encode("a", 3)
    with pytest.raises(ValueError, match="length"):
        Vocabulary(("a",)).encode(["a"], 0)
