"""The target: 20 seconds of 512x512 at 24 fps (480 frames) on two GPUs of 24 GB, in latents of 64x64.

    python -m videogen_jax.pack --input=CLIPS --output=runs/dit_512/clips --size=512 --fps=24 --frames=480
    python -m videogen_jax.encode --config=configs/dit_512.py --input=runs/dit_512/clips
    python launch.py --config=configs/dit_512.py --workdir=runs/dit_512
    python -m videogen_jax.plan --config=configs/dit_512.py --target=rtx3090x2

A step takes 8 clips, one after the other (train.accumulation); 50,000 steps are 400,000 clips.

Hardware: two GPUs of 24 GB. A model of 141 M parameters, 491,520 tokens a clip; half of a clip's frames, or half of its
places, is on each GPU. Memory: the README's table; wall time and
result: unmeasured.
"""

import ml_collections

from videogen_jax import config


def get_config() -> ml_collections.ConfigDict:
    """The locked config."""
    return config.get_config(
        batch_size=8,
        data=dict(
            path="runs/dit_512/latents",
            frames=480,
            height=512,
            width=512,
            fps=24.0,
            flip=True,
            shuffle_window=64,
        ),
        vae=dict(name="sd", path="stabilityai/sd-vae-ft-mse"),
        text=dict(encoder="clip", path="openai/clip-vit-large-patch14"),
        model=dict(cross_attention="gated", residual_dtype="float32"),
        schedule=dict(reference_tokens=16_384),  # 16 frames of 512x512
        train=dict(steps=50_000, accumulation=8, log_every=10),
        checkpoint=dict(every=200),  # 1.8 hours at best
        memory=dict(remat="block", offload_activations=True),
        mesh=dict(seq=2),
        sample=dict(batch_size=1, every=1000),
    )
