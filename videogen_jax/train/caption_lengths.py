"""Captions of a data set that are longer than the model reads."""

from absl import logging

from videogen_jax.data import pipeline
from videogen_jax.run.text_conditioning import count_units

MOST_CAPTIONS = 1000  # that are read, so that a large data set does not delay the first step


def warn_of_cut_captions(encoder: str, length: int, data: pipeline.PackedData) -> int:
    """Warns where training captions have more words or tokens than text.length, of which the rest is cut.

    Args:
      encoder: text.encoder.
      length: text.length.
      data: of `pipeline.open_data`.
    Returns:
      How many of the captions that were read, the first MOST_CAPTIONS of the training split.
    """
    counts: list[int] = []
    for path in data.files.get("train", []):
        if encoder in ("words", "clip"):
            clips = pipeline.read_annotations(path, data, MOST_CAPTIONS)
            captions = [text for clip in clips for text in clip.texts]
            counts += count_units(encoder, captions[:MOST_CAPTIONS])
        else:  # whose tokenizer need not be here; `encode` told of captions that it cut
            counts += pipeline.read_token_counts(path, data, MOST_CAPTIONS)
        if len(counts) >= MOST_CAPTIONS:
            counts = counts[:MOST_CAPTIONS]
            break
    cut = sum(count > length for count in counts)
    if cut:
        unit = "words" if encoder == "words" else "tokens"
        logging.warning(
            "%d of %d captions of %s have more than %d %s (the longest %d), of which the model reads the first %d: "
            "raise --config.text.length to read more.",
            *(cut, len(counts), data.folder, length, unit, max(counts), length),
        )
    return cut
