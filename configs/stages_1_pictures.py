"""Stage 1 of 4 on the way to 20 seconds: pictures of 256x256.

    python -m videogen_jax.pack --input=CLIPS --output=runs/stages/pictures --size=256 --fps=1 --frames=1
    python -m videogen_jax.encode --config=configs/stages_1_pictures.py --input=runs/stages/pictures
    python launch.py --config=configs/stages_1_pictures.py --workdir=runs/stages/1

A picture a second of the clips; CLIPS may hold pictures as well. The plan of all stages, for two to eight GPUs:
docs/recipe.md.

Hardware, and wall time by plan: docs/recipe.md. The result is unmeasured. A model of 141 M parameters.
"""

import ml_collections

from videogen_jax import config


def get_config() -> ml_collections.ConfigDict:
    """The locked config."""
    return config.get_config(
        base="dit_512",
        batch_size=256,
        data=dict(
            path="runs/stages/pictures_latents",
            frames=1,
            height=256,
            width=256,
            fps=1.0,
            shuffle_window=16_384,
        ),
        # A place has the position that it has at 512x512, in 32x32 patches.
        model=dict(position_grid=(32, 32)),
        train=dict(steps=200_000, accumulation=1, log_every=50),
        checkpoint=dict(every=5000),
        memory=dict(offload_activations=False),
        mesh=dict(fsdp=2, seq=1),
        sample=dict(batch_size=8, every=10_000),
    )
