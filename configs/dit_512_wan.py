"""Text to video in a quarter of the tokens: 20 seconds of 512x512 in Wan 2.1's latents, of which one is four frames.

    python -m videogen_jax.pack --input=CLIPS --output=runs/dit_512_wan/clips --size=512 --fps=24 --frames=481
    python -m videogen_jax.encode --config=configs/dit_512_wan.py --input=runs/dit_512_wan/clips
    python launch.py --config=configs/dit_512_wan.py --workdir=runs/dit_512_wan
    python -m videogen_jax.plan --config=configs/dit_512_wan.py --target=rtx3090x2

481 frames are 121 latent frames, 123,904 tokens a clip instead of 491,520 in dit_512. 121 do not divide by two, so each
GPU has a clip of its own (mesh.fsdp) instead of half of one (mesh.seq).

Hardware: two GPUs of 24 GB. A model of 141 M parameters. Memory, by `plan`: 7.5 GiB a GPU (docs/choose.md);
wall time and result: unmeasured.
"""

import ml_collections

from videogen_jax import config


def get_config() -> ml_collections.ConfigDict:
    """The locked config."""
    return config.get_config(
        base="dit_512",
        data=dict(path="runs/dit_512_wan/latents", frames=481),
        vae=dict(name="wan", path="Wan-AI/Wan2.1-T2V-1.3B-Diffusers/vae"),
        train=dict(accumulation=4),
        mesh=dict(fsdp=2, seq=1),
        sample=dict(batch_size=2),
    )
