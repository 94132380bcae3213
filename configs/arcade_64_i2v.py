"""The arcade games go on from a first frame: image to video, from the model of arcade_64, on two CPU cores.

    python -m videogen_jax.pack --input=runs/arcade/clips --output=runs/arcade/data --size=64 --fps=15 --frames=30 \
        --validation_fraction=0.2
    python launch.py --config=configs/arcade_64_i2v.py --workdir=runs/arcade/i2v
    python examples/predict_frames.py --workdir=runs/arcade/i2v --input=runs/arcade/data --num_clips=64 --frames=16 \
        --trajectories=1 --output=runs/arcade/i2v/predicted

The first frame beside the noise (Stable Video Diffusion, arXiv:2311.15127); needs the run of configs/arcade_64.py.
Hardware, wall time and result: docs/arcade.md.
"""

import ml_collections

from videogen_jax import config


def get_config() -> ml_collections.ConfigDict:
    """The locked config."""
    return config.get_config(
        base="arcade_64",
        init=dict(path="runs/arcade/64", layout="run"),
        model=dict(conditioning="frames", micro_conditions=("augmentation",)),
        tasks=dict(text=0.1, image=0.9),
        learning_rate=dict(peak=1e-3, warmup_steps=50),
        train=dict(steps=600),
        checkpoint=dict(every=200, keep=2),
        evaluation=dict(fvd_every=0),
        sample=dict(every=300),
    )
