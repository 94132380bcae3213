"""Stage 2 of 4 on the way to 20 seconds: 16 frames of 256x256, from the pictures of stage 1.

    python -m videogen_jax.pack --input=CLIPS --output=runs/stages/short --size=256 --fps=24 --frames=16
    python -m videogen_jax.encode --config=configs/stages_2_short.py --input=runs/stages/short
    python launch.py --config=configs/stages_2_short.py --workdir=runs/stages/2

Here the temporal blocks learn, of which pictures train nothing.

Hardware, and wall time by plan: docs/recipe.md. The result is unmeasured. A model of 141 M parameters.
"""

import ml_collections

from videogen_jax import config


def get_config() -> ml_collections.ConfigDict:
    """The locked config."""
    return config.get_config(
        base="stages_1_pictures",
        batch_size=64,
        data=dict(path="runs/stages/short_latents", frames=16, fps=24.0, shuffle_window=4096),
        init=dict(path="runs/stages/1", layout="run"),
        train=dict(steps=60_000),
        checkpoint=dict(every=2000),
    )
