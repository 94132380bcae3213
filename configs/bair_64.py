"""BAIR robot pushing, 64x64 pixels: two frames known, 28 to follow: docs/protocols/bair.md.

    python examples/protocols.py bair --input=softmotion30_44k/train --output=runs/bair/train
    python -m videogen_jax.pack --input=runs/bair/train --output=runs/bair/clips --size=64 --fps=8 --frames=30 \
        --validation_fraction=0
    python launch.py --config=configs/bair_64.py --workdir=runs/bair

Hardware: one H100, 17.8 GiB of it (the page has the plan). A model of 132 M parameters, of the width and depth of FAR-B
(arXiv:2503.19325) but in pixels: 200,000 steps of 32 clips, as there; wall time and result: unmeasured.
"""

import ml_collections

from videogen_jax import config


def get_config() -> ml_collections.ConfigDict:
    """The locked config."""
    return config.get_config(
        batch_size=32,
        data=dict(path="runs/bair/clips", frames=30),
        text=dict(vocabulary_size=4, length=1, dropout=0.0),  # one caption for all clips
        model=dict(
            patch_size=(1, 4, 4),
            width=768,
            depth=12,
            num_heads=12,
            conditioning="frames",
            micro_conditions=("augmentation",),
        ),
        tasks=dict(text=0.0, image=1.0),
        known=dict(first=2),
        learning_rate=dict(peak=1e-4, final_fraction=1.0),
        optimizer=dict(b2=0.999, weight_decay=0.0),
        train=dict(steps=200_000, validation_batches=0),
        memory=dict(remat="block"),
        checkpoint=dict(every=5000),
        sample=dict(
            every=0, guidance_scale=1.0
        ),  # all clips are trained on: none is left to continue
    )
