"""Arcade games of any length, chunk by chunk, from the model of arcade_64, on two CPU cores.

    python -m videogen_jax.pack --input=runs/arcade/clips --output=runs/arcade/data --size=64 --fps=15 --frames=30 \
        --validation_fraction=0.2
    python launch.py --config=configs/arcade_64_long.py --workdir=runs/arcade/long
    python -m videogen_jax.sample --workdir=runs/arcade/long --num_frames=256 --prompts "pong, random play"

Causal attention over time, and clean prefixes to continue (arXiv:2411.16375); needs the run of configs/arcade_64.py.
Hardware, wall time and result: docs/arcade.md.
"""

import ml_collections

from videogen_jax import config


def get_config() -> ml_collections.ConfigDict:
    """The locked config."""
    return config.get_config(
        base="arcade_64",
        init=dict(path="runs/arcade/64", layout="run"),
        model=dict(causal=True, conditioning="prefix", time_cycle=4),
        tasks=dict(text=0.3, prefix=0.7),
        prefix=dict(lengths=(1, 2, 3), chunk=1, noise=0.02, sampling_noise=0.01),
        learning_rate=dict(peak=1e-3, warmup_steps=50),
        train=dict(steps=600),
        checkpoint=dict(every=200, keep=2),
        evaluation=dict(fvd_every=0),
        sample=dict(every=300),
    )
