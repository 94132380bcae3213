"""Long videos: shapes that bounce on and on, trained on 16 frames, from scratch, on two CPU cores.

    python -m videogen_jax.pack --synthetic=bouncing_shapes --clips=1440 --size=24 --frames=48 \
        --output=runs/long_bouncing/data
    python launch.py --config=configs/long_bouncing.py --workdir=runs/long_bouncing
    python -m videogen_jax.sample --workdir=runs/long_bouncing --num_frames=64 \
        --prompts "a red circle moving left"

Causal attention over time, and clean prefixes to go on from (arXiv:2411.16375).
Hardware, wall time and result: docs/long_videos.md.
"""

import ml_collections

from videogen_jax import config


def get_config() -> ml_collections.ConfigDict:
    """The locked config."""
    return config.get_config(
        base="quickstart",
        data=dict(path="runs/long_bouncing/data", frames=16),
        model=dict(causal=True, conditioning="prefix", time_cycle=4),
        tasks=dict(text=0.3, prefix=0.7),
        prefix=dict(lengths=(1, 2, 3), chunk=1, noise=0.02, sampling_noise=0.01),
        sample=dict(guidance_scale=2.0, guidance_interval=()),
    )
