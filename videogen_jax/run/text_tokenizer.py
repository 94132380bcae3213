"""The tokenizer of a text encoder: CLIP's, which this package has, or that of files beside the weights.

T5's and Qwen3's tokenizer (data/pretrained_tokenizer.py) is in the folder of the weights, or, as in pipelines of
diffusers, in a folder beside it: `tokenizer` beside `text_encoder`, `tokenizer_2` beside `text_encoder_2`.
"""

from collections.abc import Callable, Sequence
from pathlib import Path, PurePosixPath

from videogen_jax.data import clip_tokenizer, pretrained_tokenizer
from videogen_jax.data.pretrained_tokenizer import FILES, Tokenizer
from videogen_jax.models.hub import find_file
from videogen_jax.models.text_encoder import TextEncoder

WEIGHTS_FOLDER, TOKENIZER_FOLDER = "text_encoder", "tokenizer"
# Largest number of ids that a model has beyond those of its tokenizer: its embeddings are padded to a round number.
SPARE_IDS = 1024

# Captions to the ids of each, truncated to the encoder's length, and their numbers before truncation.
Tokenize = Callable[[Sequence[str]], tuple[list[list[int]], list[int]]]


def open_tokenizer(kind: str, encoder: TextEncoder) -> Tokenize:
    """Opens the tokenizer of a text encoder.

    Args:
      kind: clip, t5 or qwen3.
      encoder: the text encoder.
    Raises:
      ValueError: the tokenizer is damaged or of another model.
      FileNotFoundError: there is none.
    """
    if kind == "clip":
        return _open_clip(encoder)
    tokenizer = pretrained_tokenizer.open_tokenizer(find_tokenizer(encoder.name))
    check_tokenizer(kind, tokenizer, encoder)

    def tokenize(captions: Sequence[str]) -> tuple[list[list[int]], list[int]]:
        rows, counts = tokenizer.tokenize(captions, encoder.length)
        # Qwen3's tokenizer ends no caption, but an embedding has at least one token.
        return [row or [encoder.eos_id] for row in rows], [max(count, 1) for count in counts]

    return tokenize


def _open_clip(encoder: TextEncoder) -> Tokenize:
    if encoder.vocabulary_size != clip_tokenizer.VOCABULARY_SIZE:
        raise ValueError(
            f"The text encoder in {encoder.name!r} reads {encoder.vocabulary_size} ids, but CLIP's tokenizer has "
            f"{clip_tokenizer.VOCABULARY_SIZE}: name weights of CLIP or OpenCLIP."
        )

    def tokenize(captions: Sequence[str]) -> tuple[list[list[int]], list[int]]:
        ids, counts = clip_tokenizer.tokenize(captions, encoder.length, encoder.pad_id)
        rows = [row[:count].tolist() for row, count in zip(ids, counts, strict=True)]
        return rows, counts.tolist()

    return tokenize


def find_tokenizer(path: str) -> Path:
    """Finds the file of a tokenizer, and downloads it if the weights are on the hub.

    Args:
      path: of the weights, see models/hub.py.
    Returns:
      Local path.
    Raises:
      FileNotFoundError: there is none.
    """
    here = Path(path)
    if here.exists():
        folder = here.absolute() if here.is_dir() else here.absolute().parent
    else:
        folder = PurePosixPath(path.removesuffix("/"))
        folder = folder.parent if folder.suffix == ".safetensors" else folder
    folders = [folder]
    if folder.name.startswith(WEIGHTS_FOLDER):
        folders.append(folder.with_name(folder.name.replace(WEIGHTS_FOLDER, TOKENIZER_FOLDER, 1)))
    for place in folders:
        for name in FILES:
            try:
                return find_file(str(place), name)
            except FileNotFoundError:
                continue
    raise FileNotFoundError(
        f"The text encoder in {path!r} has no tokenizer: put the {' or '.join(FILES)} of the same model into "
        f"{' or '.join(map(str, folders))}."
    )


def check_tokenizer(kind: str, tokenizer: Tokenizer, encoder: TextEncoder) -> None:
    """Raises ValueError where a tokenizer is that of another model.

    Args:
      kind: t5 or qwen3.
      tokenizer: of `pretrained_tokenizer.open_tokenizer`.
      encoder: the text encoder.
    """
    size, known = tokenizer.vocabulary_size, encoder.vocabulary_size
    (empty,), _ = tokenizer.tokenize([""], encoder.length)
    if size > known or size < known - SPARE_IDS:
        problem = f"{size} ids, but the text encoder in {encoder.name!r} {known}"
    elif encoder.eos_id not in tokenizer.special_ids:
        problem = (
            f"no end of text of the id {encoder.eos_id}, which the config.json in {encoder.name!r} names "
            "(eos_token_id)"
        )
    elif kind == "t5" and empty != [encoder.eos_id]:
        problem = f"the ids {empty} for an empty caption, but T5's is the end of text alone, {encoder.eos_id}"
    else:
        return
    raise ValueError(
        f"{tokenizer.file} is the tokenizer of another model: it has {problem}; put that of the same model there."
    )
