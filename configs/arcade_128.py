"""The arcade games of arcade_64 at 128x128: a night on two CPU cores, or a GPU.

    python -m videogen_jax.pack --input=runs/arcade/clips --output=runs/arcade/data_128 --size=128 --fps=15 \
        --frames=30 --validation_fraction=0.2
    python launch.py --config=configs/arcade_128.py --workdir=runs/arcade/128

Hardware, wall time and result: docs/arcade.md.
"""

import ml_collections

from videogen_jax import config


def get_config() -> ml_collections.ConfigDict:
    """The locked config."""
    return config.get_config(
        base="arcade_64",
        data=dict(path="runs/arcade/data_128", height=128, width=128),
        # Twice the side: four times the tokens, and a noise that hides as much of larger shapes.
        model=dict(width=256, num_heads=4),
        schedule=dict(shift=5.0),
        learning_rate=dict(peak=1.5e-3),
        train=dict(steps=3000),
        checkpoint=dict(every=300),
        evaluation=dict(fvd_every=1500),
        sample=dict(every=1500),
    )
