"""The arcade games of arcade_64 at 128x128: a night on two CPU cores, or a GPU.

    python -m videogen_jax.pack --input=runs/arcade/clips --output=runs/arcade/data_128 --size=128 --fps=15 \
        --frames=30 --validation_fraction=0.2
    python launch.py --config=configs/vae_arcade.py --workdir=runs/arcade/vae_128 \
        --config.data.path=runs/arcade/data_128 --config.data.height=128 --config.data.width=128
    python -m videogen_jax.encode --config=configs/arcade_128.py --input=runs/arcade/data_128
    python launch.py --config=configs/arcade_128.py --workdir=runs/arcade/128

Hardware, wall time and result: docs/arcade.md.
"""

import ml_collections

from videogen_jax import config


def get_config() -> ml_collections.ConfigDict:
    """The locked config."""
    return config.get_config(
        base="arcade_64",
        data=dict(path="runs/arcade/latents_128", height=128, width=128),
        vae=dict(path="runs/arcade/vae_128"),
        # Twice the side: four times the tokens, and a noise that hides as much of larger shapes.
        model=dict(width=256, num_heads=4),
        schedule=dict(shift=3.0),
        learning_rate=dict(peak=1.5e-3),
        evaluation=dict(reference="runs/arcade/data_128"),
    )
