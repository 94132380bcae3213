"""The target's autoencoder: 17 frames of 256x256 to train on, to be used on 477 frames of 512x512 (120 latents).

    python -m videogen_jax.pack --input=CLIPS --output=runs/vae_512/clips --size=288 --fps=24 --frames=17
    python launch.py --config=configs/vae_512.py --workdir=runs/vae_512
    python -m videogen_jax.pack --input=CLIPS --output=runs/vae_512/long --size=512 --fps=24 --frames=477
    python -m videogen_jax.encode --config=configs/dit_512.py --input=runs/vae_512/long --output=runs/vae_512/latents \
        --config.vae.name=workdir --config.vae.path=runs/vae_512 --config.data.frames=477

The network looks at neighbours only, so that it takes pictures and clips of any size; a clip for it has 1 + 4k frames.
The perceptual term wants VGG16's weights in perceptual.path (timm/vgg16.tv_in1k on the hub).
Hardware: two GPUs of 24 GB. 26.8 million parameters. Memory, wall time and result: unmeasured.
"""

import ml_collections

from videogen_jax import config


def get_config() -> ml_collections.ConfigDict:
    """The locked config."""
    return config.get_config(
        batch_size=4,
        data=dict(
            path="runs/vae_512/clips",
            frames=17,
            height=256,
            width=256,
            fps=24.0,
            flip=True,
            shuffle_window=512,
        ),
        # 4x in time, 8x in space
        autoencoder=dict(
            patch=(1, 2, 2), strides=((2, 2, 2), (2, 2, 2)), widths=(96, 256, 512), blocks=3
        ),
        learning_rate=dict(peak=1e-3, final_fraction=0.01),
        optimizer=dict(name="muon", b1=0.95, b2=0.95, weight_decay=0.05),
        train=dict(steps=200_000, log_every=100, validation_batches=4),
        memory=dict(remat="block"),
        ema=dict(decays=(0.999,)),
        mesh=dict(fsdp=2),
        checkpoint=dict(every=2000, keep=1),
    )
