"""Your own clips, small: 16 frames of 64x64 pixels at 8 fps, with words learned from their captions.

CLIPS is a folder of name.mp4 beside name.txt with the caption.

    python -m videogen_jax.pack --input=CLIPS --output=runs/clips/data --size=64 --fps=8 --frames=16
    python launch.py --config=configs/own_clips.py --workdir=runs/clips
    python -m videogen_jax.sample --workdir=runs/clips --prompts_file=runs/clips/samples/prompts.txt

Hardware: one GPU; two CPU cores for a first try with --config.model.width=128 --config.model.depth=4. A first model to
see that clips and captions are right, before their latents at 512x512 (dit_512); wall time and result: unmeasured.
"""

import ml_collections

from videogen_jax import config


def get_config() -> ml_collections.ConfigDict:
    """The locked config."""
    return config.get_config(
        batch_size=8,
        data=dict(path="runs/clips/data"),
        text=dict(length=32),
        model=dict(patch_size=(2, 8, 8), width=384, depth=12, num_heads=6),
        # Large shapes show through much noise, and a patch has more values than the hidden size.
        schedule=dict(name="cosine", zero_terminal_snr=True, shift=4.0),
        objective=dict(prediction="x0", time_distribution="uniform"),
        learning_rate=dict(peak=3e-4),
        train=dict(steps=50_000),
        sample=dict(every=2500, batch_size=4, sampler="ddim", guidance_scale=2.0, clip_x0=True),
    )
