"""UCF-101 by class, 16 frames of 128x128, every third frame, in latents of 16x16: docs/protocols/ucf101.md.

    python examples/protocols.py ucf101 --input=UCF-101 --output=runs/ucf101/videos
    python -m videogen_jax.pack --input=runs/ucf101/videos --output=runs/ucf101_128/clips --size=128 \
        --fps=8 --frames=600 --min_frames=16 --validation_fraction=0
    python -m videogen_jax.encode --config=configs/ucf101_128.py --input=runs/ucf101_128/clips
    python launch.py --config=configs/ucf101_128.py --workdir=runs/ucf101_128

Hardware: GPUs, not planned yet. A model of 459 M parameters, of the size of FAR-L
(arXiv:2503.19325), trained as long: 400,000 steps of 32 clips; wall time and result: unmeasured.
"""

import ml_collections

from videogen_jax import config


def get_config() -> ml_collections.ConfigDict:
    """The locked config."""
    return config.get_config(
        base="ucf101_256",
        data=dict(path="runs/ucf101_128/latents", height=128, width=128),
        model=dict(width=1024, depth=24),
    )
