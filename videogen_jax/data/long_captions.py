"""Long captions of the synthetic videos: sentences among which those of the facts stand, the shape being named last.

    "The camera stands still. Its colour is red. The picture is calm and clear. It drifts up left. ... The object is a
    circle."

Sentences are drawn at random until the caption has the wanted number of words. Those that carry no fact have none of
the words for colours, shapes and directions. `parse_long_caption` is the inverse: it knows every sentence.
"""

import re

import numpy as np

# Choices are in parentheses, so that a sentence is a regular expression too. From 3 to 9 words.
OTHERS = (
    "The camera (stands|stays|is) still",
    "The background is (plain|black|empty|dark)",
    "The background (never|hardly) changes",
    "The picture is (calm|quiet|simple) and (clear|sharp|clean)",
    "This is a (short|brief|small) clip of one object",
    "Nothing else (appears|happens|moves) in the (scene|picture|frame)",
    "The (light|exposure) stays the same (throughout|everywhere)",
    "There is (no|not any) text or (logo|watermark|caption)",
    "There is (no|not any) shadow (behind|under|near) the object",
    "The (speed|pace) is (constant|steady|even) from the first to the last frame",
    "The object (keeps|never changes) its size",
    "The object stays inside the (frame|picture) for the whole clip",
    "The edges are (sharp|soft|smooth)",
    "(Nobody|No person) is (seen|shown)",
    "The (scene|video) was (drawn|made|rendered) by a (computer|program)",
    "It looks (flat|simple|clean)",
    "It does not (turn|spin|rotate)",
    "It does not (blink|fade|flicker) at any time",
    "The surface has no (pattern|texture|stripes)",
    "The style is (minimal|geometric|abstract)",
)
COLOURS = ("Its colour is {}", "It is painted {}", "All of it is {}")
DIRECTIONS = ("It is moving {}", "It drifts {}", "It goes {} all the time")
SHAPES = ("The object is a {}", "What we see is a {}", "Its outline is that of a {}")
SHORTEST = 3  # words of a sentence: what is left to fill is none, or as many or more
LEAST_WORDS = 24  # of a caption: the facts, and some others between them

_CHOICE = re.compile(r"\(([^)]*)\)")


def make_long_caption(
    colour: str, shape: str, direction: str, words: int, rng: np.random.Generator
) -> str:
    """Describes a combination in many words.

    Args:
      colour: of the shape.
      shape: named last.
      direction: of its motion.
      words: of the caption, at least LEAST_WORDS.
      rng: random generator of the caption.
    Returns:
      Sentences of `words` words together; those of colour and direction at random places.
    """

    def pick(sentences: tuple[str, ...]) -> str:
        return sentences[rng.integers(len(sentences))]

    facts = [pick(COLOURS).format(colour), pick(DIRECTIONS).format(direction)]
    last = pick(SHAPES).format(shape)
    left = words - sum(len(sentence.split()) for sentence in (*facts, last))
    sentences: list[str] = []
    unused: list[str] = []
    while left:
        if (
            not unused
        ):  # each is drawn, and left out where it does not fit, before any is drawn again
            unused = [OTHERS[i] for i in rng.permutation(len(OTHERS))]
        sentence = _CHOICE.sub(lambda choice: pick(tuple(choice[1].split("|"))), unused.pop())
        rest = left - len(sentence.split())
        if rest == 0 or rest >= SHORTEST:
            sentences.append(sentence)
            left = rest
    for fact in facts:
        sentences.insert(rng.integers(len(sentences) + 1), fact)
    return " ".join(f"{sentence}." for sentence in (*sentences, last))


def parse_long_caption(caption: str) -> tuple[str, str, str] | None:
    """The facts of a caption of `make_long_caption`, ignoring case and spacing.

    Returns:
      (colour, shape, direction), words that the caller knows or not; None where a sentence is another, a fact is
      missing or there twice, or the shape is not named last.
    """
    sentences = [part.strip() for part in " ".join(caption.lower().split()).split(".")]
    if len(sentences) < 4 or sentences.pop():  # the caption ends with a full stop
        return None
    read = [_read_sentence(sentence) for sentence in sentences]
    if any(match is None for _, match in read) or read[-1][0] != "shape":
        return None
    found = [(kind, match[1]) for kind, match in read if kind != "other"]
    facts = dict(found)
    if len(found) != 3 or len(facts) != 3:
        return None
    return facts["colour"], facts["shape"], facts["direction"]


def _read_sentence(sentence: str) -> tuple[str, re.Match | None]:
    for kind, patterns in _PATTERNS.items():
        for pattern in patterns:
            if match := pattern.fullmatch(sentence):
                return kind, match
    return "other", None


_PATTERNS = {
    kind: [re.compile(sentence.lower().replace("{}", "(.+)")) for sentence in sentences]
    for kind, sentences in (
        ("colour", COLOURS),
        ("direction", DIRECTIONS),
        ("shape", SHAPES),
        ("other", OTHERS),
    )
}
