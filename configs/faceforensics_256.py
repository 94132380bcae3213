"""FaceForensics without conditioning, 16 frames of 256x256, every third frame: docs/protocols/faceforensics.md.

    python examples/protocols.py faceforensics --input=preprocess_ffs/train/videos --output=runs/faceforensics/videos
    python -m videogen_jax.pack --input=runs/faceforensics/videos --output=runs/faceforensics/clips --size=256 \
        --fps=8 --frames=2000 --min_frames=16 --validation_fraction=0
    python -m videogen_jax.encode --config=configs/faceforensics_256.py --input=runs/faceforensics/clips
    python launch.py --config=configs/faceforensics_256.py --workdir=runs/faceforensics

Hardware: two GPUs of 24 GB (the page has the plan). A model of 676 M parameters, of the size of
Latte-XL/2 (arXiv:2401.03048); wall time and result: unmeasured.
"""

import ml_collections

from videogen_jax import config


def get_config() -> ml_collections.ConfigDict:
    """The locked config."""
    return config.get_config(
        base="ucf101_256",
        data=dict(path="runs/faceforensics/latents"),
        # One caption for all clips, never dropped, conditions on nothing.
        text=dict(vocabulary_size=4, dropout=0.0),
        sample=dict(guidance_scale=1.0, prompts=("face",)),
    )
