"""Text to video in Wan's latents."""

import ml_collections

from videogen_jax import config


def get_config() -> ml_collections.ConfigDict:
    """The locked config."""
    return config.get_config(
        base="dit_512",
        batch_size=2,
        data=dict(path="runs/dit_512_wan/latents", frames=481),
        vae=dict(name="wan", path="Wan-AI/Wan2.1-T2V-1.3B-Diffusers/vae"),
        mesh=dict(fsdp=2, seq=1),
        sample=dict(batch_size=2),
    )
