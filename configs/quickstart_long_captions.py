"""The quick start with captions of 60 words that name the shape last.

    python -m videogen_jax.pack --synthetic=moving_shapes --clips=2880 --size=24 --frames=8 --caption_words=60 \
        --output=runs/long_captions/data
    python launch.py --config=configs/quickstart_long_captions.py --workdir=runs/long_captions
    python -m videogen_jax.sample --workdir=runs/long_captions --prompts_file=configs/long_caption_prompts.txt \
        --batch_size=32

Hardware, wall time and result: docs/quickstart.md (94.1 % of 320 videos are right).
"""

import ml_collections

from videogen_jax import config


def get_config() -> ml_collections.ConfigDict:
    """The locked config."""
    return config.get_config(
        base="quickstart",
        data=dict(path="runs/long_captions/data"),
        text=dict(vocabulary_size=160, length=96),
        model=dict(text_pooling="weighted"),
        sample=dict(prompts=()),  # captions of the data
    )
