"""Disk and hours of a data set, and the days of a run, against arithmetic and a data set that was packed."""

import json

import numpy as np
import pytest

from tests.planning.plans import make_program, small_config
from videogen_jax.data import records
from videogen_jax.data.json_files import FieldError
from videogen_jax.parallel.kernel_times import Estimate
from videogen_jax.planning import data_costs


def seconds(total):
    return Estimate([], {}, total, {}, {}, total)


def test_clips_are_those_of_the_data_set(tmp_path):
    assert data_costs.count_clips(tmp_path) is None
    for bucket, counts in (("a", ["3", "4"]), ("b", ["5"])):
        (tmp_path / bucket).mkdir()
        split = {"name": "train", "shardLengths": counts, "numBytes": "1000"}
        (tmp_path / bucket / "dataset_info.json").write_text(json.dumps({"splits": [split]}))
    assert data_costs.count_clips(tmp_path) == (12, 2000)
    (tmp_path / "b" / "dataset_info.json").write_text("{}")
    with pytest.raises(FieldError, match="splits"):
        data_costs.count_clips(tmp_path)


def test_bytes_a_pixel_are_those_of_noise_and_flat_clips_at_least():
    """The assumed rate lies between a clip of one colour and one of noise, as `pack` stores them."""
    flat = np.full((16, 64, 64, 3), 128, np.uint8)
    noise = np.random.default_rng(0).integers(0, 256, flat.shape, np.uint8)
    low, high = (
        sum(map(len, records.encode_strips(clip))) / (16 * 64 * 64) for clip in (flat, noise)
    )
    assert low < data_costs.PACKED_BYTES < high


def test_latents_are_counted_exactly(tmp_path):
    config = small_config(**{"vae.name": "sd", "data.path": str(tmp_path), "data.flip": True})
    config.augment.variants = 3
    config.vae.chunk_frames = 8
    null = {"tokens": np.zeros((77, 768), np.float16), "mask": np.zeros(77, bool)}
    plan = {"encode": make_program(devices=2, expected=seconds(0.5)), "train": make_program()}
    costs = data_costs.estimate_data(config, null, plan, 10)
    latent = 16 * 4 * 4 * 4 * 2  # frames, places, channels and bytes
    assert costs.latents == 10 * (3 * 2 * latent + 77 * 768 * 2)
    assert costs.encoding == 10 * 3 * 2 * 1 * 0.5  # 16 frames are a chunk of two devices
    assert costs.packed == 10 * 16 * 32 * 32 * data_costs.PACKED_BYTES
    assert (costs.clips, costs.source, costs.found) == (10, "--clips", None)
    text = data_costs.describe_data(costs)
    assert text.startswith("10 clips (--clips) take about 0.1 MB packed") and "to encode" in text
    plan["encode"] = make_program()
    assert data_costs.estimate_data(config, null, plan, None).encoding is None
    assert data_costs.estimate_data(config, null, plan, None).clips == data_costs.ASSUMED_CLIPS


def test_pixels_are_not_encoded(tmp_path):
    costs = data_costs.estimate_data(small_config(), None, {"train": make_program()}, 10)
    assert costs.latents == 0 and costs.encoding is None
    assert "latents" not in data_costs.describe_data(costs)


def test_days_are_steps_times_seconds():
    config = small_config(**{"train.steps": 86_400})
    train = make_program(roofline=seconds(2.0), expected=seconds(2.5))
    text = data_costs.describe_days(config, train)
    assert text.startswith("86,400 steps take 2.0 days by the roofline and 2.5 days expected")
    assert data_costs.describe_days(config, make_program()) == ""
