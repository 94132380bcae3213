"""Augmentation that a run's data or model do not bear out is refused before anything is computed."""

import pytest

from tests.tiny import tiny_config
from videogen_jax.data.latent_records import LatentInfo
from videogen_jax.data.pipeline import PackedData
from videogen_jax.train import setup


def packed(augment=None, latents=True):
    info = LatentInfo(
        "sd", "abc", "float16", [1, 1, 4], True, [0.0] * 4, [1.0] * 4, augment=augment
    )
    data = PackedData({}, {}, {}, 8, 8, 8, 8, 8.0, [])
    return data._replace(latents=info if latents else None, folder="FOLDER")


NOTED = {"fps_min": 2.0, "fps_max": 4.0, "jitter": 0.1, "variants": 3, "seed": 9}
LINES = {name: value for name, value in NOTED.items() if name != "seed"}


def test_latents_serve_the_augmentation_that_they_were_made_with_alone():
    config = tiny_config()
    setup.check_augmentation(config, packed())
    for name, value in LINES.items():
        with pytest.raises(ValueError, match=f"augment.{name} is .*: set --config.augment.{name}="):
            config.augment.update(LINES | {name: value + 1})
            setup.check_augmentation(config, packed(NOTED))
    config.augment.update(LINES)
    setup.check_augmentation(config, packed(NOTED))
    with pytest.raises(ValueError, match="the latents in FOLDER were encoded with 0.0: set"):
        setup.check_augmentation(config, packed())


def test_windows_are_cut_out_of_pixels():
    config = tiny_config()
    config.data.update({"height": 4, "width": 8})
    setup.check_augmentation(config, packed(latents=False))
    config.data.width = 9
    with pytest.raises(ValueError, match=r"data\.width is 9, but the clips in FOLDER were packed"):
        setup.check_augmentation(config, packed(latents=False))
