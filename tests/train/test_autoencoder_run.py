"""Training the video autoencoder through the loop that trains everything, and using what it has become."""

import contextlib
import json
import signal

import jax
import numpy as np
import pytest
from safetensors.numpy import save_file

from tests.data.packed import random_clips, write_records
from tests.tiny import make_run, tiny_config, tiny_vae_config
from videogen_jax import config as configs
from videogen_jax.data import pipeline
from videogen_jax.data.latent_records import LatentInfo
from videogen_jax.models import perceptual
from videogen_jax.models.weights import hash_params, name_sources
from videogen_jax.packing import encode_latents
from videogen_jax.parallel import mesh as meshes
from videogen_jax.parallel.sharding import path_name
from videogen_jax.run import checkpoint, saved_config, trained_autoencoder
from videogen_jax.run import model as run_model
from videogen_jax.run.checkpoint import CheckpointError
from videogen_jax.train import autoencoder_run, log_samples, loop, training_run

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    clips = random_clips((9, 16, 16), 6)
    return write_records(tmp_path_factory.mktemp("packed") / "data", clips, 9, 3)


@pytest.fixture(scope="module")
def workdir(data, tmp_path_factory):
    folder = tmp_path_factory.mktemp("vae")
    loop.train(vae_config(data), folder)
    return folder


def vae_config(path, **mesh):
    config = tiny_vae_config()
    config.data.path = str(path)
    config.mesh.update(mesh)
    return config


def newest_state(folder, config):
    run = make_run(config)
    with checkpoint.open_checkpoints(folder, read_only=True) as manager:
        return checkpoint.restore(manager, run.abstract), manager.all_steps()


def test_the_loop_writes_checkpoints_reconstructions_and_psnr(workdir, data):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    state, steps = newest_state(workdir, vae_config(data))
    assert int(state.step) == 4 and 4 in steps
    assert (workdir / "samples" / "step_00000004.mp4").is_file()
    assert "data:video/mp4" in (workdir / "report.html").read_text()
    events = EventAccumulator(str(workdir / "tensorboard"))
    events.Reload()
    names = set(events.Tags()["scalars"]) | set(events.Tags()["tensors"])
    assert {"evaluation/psnr", "loss/validation", "loss/train"} <= names
    assert "samples/reconstructions" in names


def test_psnr_of_validation_is_float64s(data):
    config = vae_config(data)
    run = make_run(config)
    params = jax.jit(run.model.init_params)()
    clips = next(pipeline.make_validation_clips(str(data), batch_size=2, frames=5, num_batches=1))[
        "video"
    ]
    values = jax.jit(autoencoder_run.make_measure(run))(params, {"video": clips}, jax.random.key(0))
    described = trained_autoencoder.make_video_autoencoder(
        trained_autoencoder.make_network(**config.autoencoder), load=dict
    )
    x = clips / np.float32(127.5) - 1
    made = jax.jit(lambda x: described.decode(params, described.encode(params, x)))(x)
    made = np.clip(made, -1, 1).astype(float)
    expected = np.mean(
        [10 * np.log10(4 / np.mean((a - b) ** 2)) for a, b in zip(x, made, strict=True)]
    )
    assert values["psnr"] == pytest.approx(expected, abs=1e-4)


def test_a_resumed_run_is_the_same_to_the_bit(workdir, data, tmp_path):
    config = vae_config(data)
    config.train.steps = 4
    first = vae_config(data)
    interrupted = tmp_path / "run"
    calls = []

    @contextlib.contextmanager
    def stop_after_two(mesh):
        yield lambda: calls.append(1) or signal.SIGTERM * (len(calls) == 2)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(loop.processes, "catch_signals", stop_after_two)
        with pytest.raises(loop.Interrupted):
            loop.train(first, interrupted)
    loop.train(config, interrupted)
    ours, theirs = (
        jax.device_get(newest_state(folder, config)[0]) for folder in (interrupted, workdir)
    )
    for a, b in zip(jax.tree.leaves(ours.params), jax.tree.leaves(theirs.params), strict=True):
        np.testing.assert_array_equal(a, b)


def test_a_run_of_other_sizes_is_refused(workdir, data):
    config = vae_config(data)
    config.autoencoder.channels = 5
    config.train.steps = 6
    with pytest.raises(ValueError, match=r"autoencoder\.channels was \d, is 5"):
        loop.train(config, workdir)


def test_a_step_on_two_devices_is_that_of_one():
    def take_step(**mesh):
        run = make_run(vae_config("no data", **mesh))
        state = jax.jit(run.init, out_shardings=run.shardings)()
        video = np.random.default_rng(0).integers(0, 256, (2, 5, 16, 16, 3), np.uint8)
        batch = meshes.put_batch(run.mesh, {"video": video})
        state, values = training_run.compile_step(run)(state, batch)
        return jax.device_get((state.params, values))

    alone = jax.tree.leaves(take_step())
    for mesh in ({"data": 2}, {"fsdp": 2}):
        for a, b in zip(alone, jax.tree.leaves(take_step(**mesh)), strict=True):
            np.testing.assert_allclose(a, b, rtol=2e-4, atol=2e-5)


def test_parameters_lie_apart_on_fsdp():
    run = make_run(vae_config("no data", fsdp=2))
    kernel = run.shardings.params["encoder"]["block_0_0"]["spatial"]["kernel"]
    assert kernel.shard_shape((3, 3, 8, 8)) == (3, 3, 8, 4)
    for axis in ("seq", "tensor"):
        with pytest.raises(ValueError, match=f"mesh.{axis} is 2"):
            configs.validate(vae_config("no data", **{axis: 2}))


def dit_config(workdir, path="no data"):
    config = tiny_config()
    config.vae.update({"name": "workdir", "path": str(workdir)})
    config.data.update({"path": str(path), "frames": 9, "height": 16, "width": 16})
    config.model.patch_size = (1, 1, 1)
    config.mesh.update({"data": 1, "fsdp": 1})
    config.sample.clip_x0 = False
    return config


def test_a_run_serves_as_autoencoder(workdir, data):
    config = dit_config(workdir)
    assert run_model.make_latent_space(config).latent_shape(9) == (3, 2, 2, 4)
    described = run_model.make_latent_space(config).describe()
    params = described.load()
    state, _ = newest_state(workdir, vae_config(data))
    ema = jax.device_get(state.ema["decay_0.99"])
    for a, b in zip(jax.tree.leaves(params), jax.tree.leaves(ema), strict=True):
        np.testing.assert_array_equal(a, b)


def test_latents_are_encoded_read_whole_and_decoded(workdir, data, tmp_path):
    from videogen_jax import encode

    config = dit_config(workdir, tmp_path / "latents")
    described = run_model.make_latent_space(config).describe()
    params = described.load()
    shaped = run_model.with_shape(config, (9, 16, 16))
    encoder = encode.make_encoder(shaped, described, params, ["left"])
    report = encode_latents.encode(data, tmp_path / "latents", encoder)
    assert report["finished"]
    opened = pipeline.open_data(tmp_path / "latents")
    assert opened.latents.time_stride == 4 and opened.latents.weights == hash_params(params)
    options = {"batch_size": 6, "frames": 9, "seed": 0}
    clips = next(pipeline.make_clips(opened, "train", **options))
    pixels = next(pipeline.make_clips(str(data), "train", **options))
    assert clips["video"].shape == (6, 3, 2, 2, 4)
    decode = run_model.make_latent_space(config).make_decode(opened.latents)
    x = pixels["video"] / np.float32(127.5) - 1
    whole = jax.jit(lambda x: described.decode(params, described.encode(params, x)))(x)
    made = decode(clips["video"].astype(np.float32))
    assert made.shape == pixels["video"].shape
    assert np.abs(made / 127.5 - 1 - whole).max() < 0.03  # float16 and bytes
    with pytest.raises(pipeline.DataError, match=r"set --config\.data\.frames=9"):
        next(pipeline.make_clips(opened, "train", batch_size=2, frames=5, seed=0))


def test_latents_of_single_frames_are_cropped_as_pixels_are(data, tmp_path):
    from videogen_jax import encode

    config = vae_config(data)
    config.autoencoder.update({"patch": (1, 4, 4), "strides": ((1, 2, 2),), "temporal_kernel": 1})
    config.data.frames = 3
    config.train.steps = config.checkpoint.every = 3
    config.sample.every = 0
    loop.train(config, tmp_path / "vae")
    config = dit_config(tmp_path / "vae", tmp_path / "latents")
    described = run_model.make_latent_space(config).describe()
    params = described.load()
    encoder = encode.make_encoder(config, described, params, ["left"])
    encode_latents.encode(data, tmp_path / "latents", encoder)
    opened = pipeline.open_data(tmp_path / "latents")
    options = {"batch_size": 6, "frames": 5, "seed": 0}
    clips = next(pipeline.make_clips(opened, "train", **options))
    pixels = next(pipeline.make_clips(str(data), "train", **options))
    assert clips["video"].shape == (6, 5, 2, 2, 4)
    x = pixels["video"] / np.float32(127.5) - 1
    expected = jax.jit(lambda x: described.encode(params, x))(x)
    found = clips["video"] * np.float32(opened.latents.deviation) + opened.latents.mean
    np.testing.assert_allclose(found, expected, atol=2e-3 * float(np.abs(expected).max()))


def test_a_diffusion_model_trains_on_the_latents_and_shows_samples(
    workdir, data, tmp_path, monkeypatch
):
    from videogen_jax import encode

    config = dit_config(workdir, tmp_path / "latents")
    described = run_model.make_latent_space(config).describe()
    encoder = encode.make_encoder(config, described, described.load(), ["left"])
    encode_latents.encode(data, tmp_path / "latents", encoder)
    config.train.update({"steps": 2, "log_every": 1})
    config.learning_rate.warmup_steps = 1
    config.sample.update({"every": 1, "prompts": ("1",), "batch_size": 1})
    config.checkpoint.every = 2
    shown, write_videos = [], log_samples.write_videos

    def note(writer, workdir, step, tag, videos, *rest):
        shown.append((step, tag, videos))
        write_videos(writer, workdir, step, tag, videos, *rest)

    monkeypatch.setattr(log_samples, "write_videos", note)
    loop.train(config, tmp_path / "dit")
    for name in ("step_00000001", "step_00000002", "reconstructions"):
        assert (tmp_path / "dit" / "samples" / f"{name}.mp4").is_file()
    order = [(step, tag) for step, tag, _ in shown]
    assert order == [(1, "prompts"), (1, "reconstructions"), (2, "prompts")]
    options = {
        "batch_size": log_samples.RECONSTRUCTED,
        "frames": config.data.frames,
        "num_batches": 1,
    }
    clips = next(pipeline.make_validation_clips(str(data), **options))["video"]
    x, params = clips / np.float32(127.5) - 1, described.load()
    whole = jax.jit(lambda x: described.decode(params, described.encode(params, x)))(x)
    assert np.abs(shown[1][2] / 127.5 - 1 - whole).max() < 0.03  # float16 and bytes


def test_what_is_no_run_of_an_autoencoder_is_refused(workdir, data, tmp_path):
    def describe(path):
        return run_model.make_latent_space(dit_config(path)).describe()

    with pytest.raises(ValueError, match=r"vae\.path is empty"):
        configs.validate(dit_config(""))
    with pytest.raises(FileNotFoundError, match=r"config\.json: name in vae\.path"):
        describe(tmp_path / "nothing")
    saved_config.write_config(tmp_path, tiny_config())
    with pytest.raises(ValueError, match="run of a diffusion model"):
        describe(tmp_path)
    (tmp_path / "begun").mkdir()
    saved_config.write_config(tmp_path / "begun", vae_config(data))
    with pytest.raises(CheckpointError, match="train the autoencoder first"):
        describe(tmp_path / "begun").load()
    with pytest.raises(ValueError, match="use 5 or 9 frames"):
        config = dit_config(workdir)
        config.data.frames = 8
        make_run(config)


def test_a_run_that_went_on_is_not_the_one_that_encoded(workdir):
    info = LatentInfo("workdir", "0" * 64, "float16", [2, 2, 4], False, [0.0] * 4, [1.0] * 4)
    with pytest.raises(ValueError, match="not those that encoded the data set"):
        run_model.make_latent_space(dit_config(workdir)).make_decode(info)


def test_latents_are_no_clips_to_train_an_autoencoder_on(workdir, data, tmp_path):
    from videogen_jax import encode

    described = run_model.make_latent_space(dit_config(workdir)).describe()
    encoder = encode.make_encoder(dit_config(workdir), described, described.load(), ["left"])
    encode_latents.encode(data, tmp_path / "latents", encoder)
    with pytest.raises(ValueError, match="trained on pixels"):
        loop.train(vae_config(tmp_path / "latents"), tmp_path / "run")


def test_config_json_is_read_back(workdir, data):
    saved = json.loads((workdir / "config.json").read_text())
    assert saved == json.loads(json.dumps(vae_config(data).to_dict()))
    found = trained_autoencoder.make_network(**saved_config.read_config(workdir).autoencoder)
    assert found == trained_autoencoder.make_network(**tiny_vae_config().autoencoder)


def test_a_perceptual_term_joins_the_step_on_a_mesh(tmp_path):
    shapes = perceptual.abstract_vgg()
    rng = np.random.default_rng(0)
    vgg = jax.tree.map(lambda leaf: 0.05 * rng.standard_normal(leaf.shape, np.float32), shapes)
    sources = name_sources(shapes)
    tensors = {}
    for path, leaf in jax.tree_util.tree_leaves_with_path(vgg):
        (name,), _ = sources[path_name(path)]
        tensors[name] = np.ascontiguousarray(leaf.transpose(3, 2, 0, 1) if leaf.ndim == 4 else leaf)
    save_file(tensors, tmp_path / "model.safetensors")
    config = vae_config("no data", fsdp=2)
    config.perceptual.update({"path": str(tmp_path), "weight": 3.0, "frames": 9})
    run = make_run(config)
    params = jax.jit(run.model.init_params, out_shardings=run.shardings.params)()
    video = rng.integers(0, 256, (2, 5, 16, 16, 3), np.uint8)
    batch = meshes.put_batch(run.mesh, {"video": video})
    value = jax.jit(run.loss)(params, batch, jax.random.key(0))
    without = make_run(vae_config("no data", fsdp=2))
    plain = jax.jit(without.loss)(params, batch, jax.random.key(0))
    rng_latents, _ = jax.random.split(jax.random.key(0))
    x = video / np.float32(127.5) - 1
    made, _, _ = jax.jit(run.model.apply)(params, x, rng_latents)
    frames = (np.asarray(a).reshape(-1, 16, 16, 3) for a in (x, made))
    distance = jax.jit(perceptual.distance)(vgg, *frames)
    assert value - plain == pytest.approx(3 * float(distance), rel=1e-3)
