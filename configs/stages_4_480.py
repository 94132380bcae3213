"""Stage 4 of 4: 20 seconds of 512x512 at 24 fps (480 frames), from the 120 frames of stage 3.

    python -m videogen_jax.pack --input=CLIPS --output=runs/stages/long --size=512 --fps=24 --frames=480
    python -m videogen_jax.encode --config=configs/stages_4_480.py --input=runs/stages/long
    python launch.py --config=configs/stages_4_480.py --workdir=runs/stages/4

The clips are those of stage 3, whole.

Hardware, and wall time by plan: docs/recipe.md. The result is unmeasured. A model of 141 M parameters.
"""

import ml_collections

from videogen_jax import config


def get_config() -> ml_collections.ConfigDict:
    """The locked config."""
    return config.get_config(
        base="stages_3_120",
        batch_size=4,
        data=dict(frames=480),
        init=dict(path="runs/stages/3"),
        learning_rate=dict(peak=5e-5),
        train=dict(steps=10_000),
        mesh=dict(fsdp=1, seq=2),
    )
