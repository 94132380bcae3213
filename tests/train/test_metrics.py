"""What reaches the dashboard, and the reading back one step behind."""

import io

import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tensorboard.util import tensor_util

from videogen_jax.generate import contact_sheet
from videogen_jax.train import metrics


def test_samples_play_on_the_dashboard(tmp_path):
    videos = np.random.default_rng(0).integers(0, 256, (3, 5, 8, 8, 3), np.uint8)
    gif, size = contact_sheet.animation(videos, fps=10)
    writer = metrics.make_writer(tmp_path)
    writer.write_scalars(4, {"loss/train": 0.25})
    metrics.write_animation(writer, 4, "samples", gif, size)
    writer.close()
    events = EventAccumulator(str(tmp_path / "tensorboard"), {"images": 0, "tensors": 0})
    events.Reload()
    image = events.Tensors("samples")[0].tensor_proto.string_val
    assert (int(image[0]), int(image[1])) == size
    assert Image.open(io.BytesIO(image[2])).n_frames == 5
    loss = tensor_util.make_ndarray(events.Tensors("loss/train")[0].tensor_proto)
    assert float(loss) == 0.25


def test_window_reads_one_step_behind_and_means_over_all():
    window = metrics.Window(wait_seconds=lambda: 0.0)
    window.add(1, {"loss": jnp.float32(1.0), "gradient_norm": jnp.float32(2.0)}, clips=8)
    window.add(2, {"loss": jnp.float32(3.0), "gradient_norm": jnp.float32(4.0)}, clips=4)
    summary = window.summary()
    assert summary["loss/train"] == 2.0 and summary["optimisation/gradient_norm"] == 3.0
    assert summary["speed/input_wait"] == 0
    rate = summary["speed/clips_per_second"] * summary["speed/step_seconds"]
    np.testing.assert_allclose(rate, 6)


def test_the_time_of_compiling_is_not_the_speed_of_a_step(monkeypatch):
    now = [0.0]
    monkeypatch.setattr(metrics.time, "perf_counter", lambda: now[0])
    values = {"loss": jnp.float32(1.0), "gradient_norm": jnp.float32(2.0)}
    window = metrics.Window(wait_seconds=lambda: 0.0)
    now[0] = 60.0
    window.add(1, {"loss": jnp.float32(4.0), "gradient_norm": jnp.float32(2.0)}, clips=8)
    window.skip_time()
    assert window.summary()["loss/train"] == 4.0
    assert not [tag for tag in window.summary() if tag.startswith("speed")]
    for step in (2, 3):
        now[0] += 2.0
        window.add(step, values, clips=8)
    summary = window.summary()
    assert summary["loss/train"] == 2.0  # of all three
    assert (summary["speed/step_seconds"], summary["speed/clips_per_second"]) == (2.0, 4.0)
    window.restart()
    now[0] += 3.0
    window.add(4, values, clips=8)
    assert window.summary()["speed/step_seconds"] == 3.0


def test_the_models_operations_are_told_and_their_share_of_the_best():
    window = metrics.Window(wait_seconds=lambda: 0.0, peak_flops=8e12)
    values = {"loss": jnp.float32(1.0), "gradient_norm": jnp.float32(2.0)}
    window.add(1, values, clips=1, flops=2 * 10**12)
    window.add(2, values, clips=1, flops=4 * 10**12)
    summary = window.summary()
    done = summary["speed/model_tflops_per_second"] * summary["speed/step_seconds"]
    np.testing.assert_allclose(done, 3)
    share = summary["speed/model_flops_share"] / summary["speed/model_tflops_per_second"]
    np.testing.assert_allclose(share, 1 / 8)
    window = metrics.Window(wait_seconds=lambda: 0.0)
    window.add(1, values, clips=1)
    assert not [tag for tag in window.summary() if "flops" in tag]


def test_the_step_that_was_not_finite_is_named():
    window = metrics.Window(wait_seconds=lambda: 0.0)
    window.add(6, {"loss": jnp.float32(np.nan), "gradient_norm": jnp.float32(1.0)}, 1)
    with pytest.raises(metrics.TrainingDiverged, match="loss of step 6 is nan"):
        window.add(7, {"loss": jnp.float32(1.0), "gradient_norm": jnp.float32(1.0)}, 1)


def test_a_float16_gradient_may_overflow_but_its_loss_may_not():
    window = metrics.Window(wait_seconds=lambda: 0.0)
    scale = {"gradient_norm": jnp.float32(np.inf), "loss_scale": jnp.float32(8)}
    window.add(1, {"loss": jnp.float32(1.0)} | scale, 1)
    window.flush()
    window.add(2, {"loss": jnp.float32(np.inf)} | scale, 1)
    with pytest.raises(metrics.TrainingDiverged, match="loss of step 2 is inf"):
        window.flush()
