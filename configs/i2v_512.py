"""Image to video: 20 seconds of 512x512 from a picture and a prompt, on two GPUs of 24 GB, as Stable Video Diffusion.

    python -m videogen_jax.encode --config=configs/i2v_512.py --input=runs/dit_512/clips --output=runs/dit_512/latents
    python launch.py --config=configs/i2v_512.py --workdir=runs/i2v_512
    python -m videogen_jax.sample --workdir=runs/i2v_512 --image=first.png --prompts "..."

Starts from a text-to-video run of configs/dit_512.py and its latents (`python -m videogen_jax.pack --input=CLIPS
--output=runs/dit_512/clips --size=512 --fps=24 --frames=480` ahead of `encode`). EDM's objective and sampler, the first
frame beside the noise, fps, motion and its noise as micro-conditions, guidance that grows over the frames
(arXiv:2311.15127, sections 4.3 and D.2). A fifth of the clips learns to extend and to interpolate.

Hardware: two GPUs of 24 GB. A model of 142 M parameters. Memory: the README's table; wall time and result: unmeasured.
"""

import ml_collections

from videogen_jax import config


def get_config() -> ml_collections.ConfigDict:
    """The locked config."""
    return config.get_config(
        base="dit_512",
        init=dict(path="runs/dit_512", layout="run"),
        text=dict(dropout=0.05),
        model=dict(conditioning="frames", micro_conditions=("fps", "motion", "augmentation")),
        tasks=dict(text=0.1, image=0.7, frames=0.2),
        known=dict(dropout=0.05, joint_dropout=0.05),
        schedule=dict(name="edm", reference_tokens=0),
        objective=dict(
            prediction="edm",
            weighting="edm",
            time_distribution="log_normal",
            time_mean=0.7,
            time_std=1.6,
        ),
        train=dict(steps=12_500),
        sample=dict(
            guidance_scale=3.0,
            first_frame_guidance_scale=1.0,
            known_guidance_scale=3.0,
            spacing="linspace",
        ),
    )
