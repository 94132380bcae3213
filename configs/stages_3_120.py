"""Stage 3 of 4 on the way to 20 seconds: 120 frames of 512x512, from the short clips of stage 2.

    python -m videogen_jax.pack --input=CLIPS --output=runs/stages/long --size=512 --fps=24 --frames=480
    python -m videogen_jax.encode --config=configs/stages_3_120.py --input=runs/stages/long
    python launch.py --config=configs/stages_3_120.py --workdir=runs/stages/3

Its clips are cut at random from those of stage 4.

Hardware, and wall time by plan: docs/recipe.md. The result is unmeasured. A model of 141 M parameters.
"""

import ml_collections

from videogen_jax import config


def get_config() -> ml_collections.ConfigDict:
    """The locked config."""
    return config.get_config(
        base="dit_512",
        data=dict(path="runs/stages/long_latents", frames=120),
        model=dict(position_grid=(32, 32)),
        init=dict(path="runs/stages/2", layout="run"),
        learning_rate=dict(peak=1e-4),
        train=dict(steps=20_000, accumulation=4),
        checkpoint=dict(every=500),
        mesh=dict(fsdp=2, seq=1),
    )
