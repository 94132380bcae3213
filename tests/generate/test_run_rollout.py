"""Which long videos a run can make, and its way from chunks of latents to pixels."""

import jax
import numpy as np
import pytest

from tests.models.autoencoders import random_taef2
from tests.models.randomise import randomise
from tests.saved_runs import CAPTIONS, image_config, joint_config, long_config, write_run
from videogen_jax.data.latent_records import LatentInfo
from videogen_jax.generate import from_checkpoint, run_rollout
from videogen_jax.models import autoencoder as autoencoders
from videogen_jax.models import causal_vae
from videogen_jax.models.weights import hash_params
from videogen_jax.run import latent_space
from videogen_jax.run.latent_space import LatentSpace
from videogen_jax.run.model import choose_mesh, make_model

pytestmark = pytest.mark.slow

NETWORK = causal_vae.Network(
    channels=3, patch=(2, 4, 4), strides=((2, 2, 2),), widths=(6, 8), blocks=1
)


def paper_config():
    """Windows of 33 latent frames, as ViD-GPT's."""
    config = long_config()
    config.data.frames = config.model.time_cycle = 33
    config.prefix.update({"lengths": (25, 1, 17, 9), "chunk": 8})
    return config


@pytest.mark.parametrize(
    ("lengths", "begun", "hidden"),
    [
        ((1, 9, 17, 25), 0, "Behind 8 and 16 and 24 latent frames"),
        ((1, 9, 17, 25), 1, None),
        ((1, 8, 9, 16, 17, 24, 25), 0, None),
    ],
)
def test_frames_that_no_prefix_reaches_are_told_of(lengths, begun, hidden, caplog):
    run_rollout.warn_of_hidden_frames(run_rollout.Plan(8, lengths), begun)
    assert (hidden in caplog.text) if hidden else not caplog.text


def test_the_largest_cache_is_the_default():
    model = make_model(paper_config())
    plan = run_rollout.plan_rollout(model)
    assert plan == (8, (1, 9, 17, 25))
    assert run_rollout.plan_rollout(model, prefix=17) == (8, (1, 9, 17))
    assert run_rollout.plan_rollout(model, chunk=16) == (16, (1, 9, 17))
    assert run_rollout.plan_rollout(model, chunk=32) == (32, (1,))
    assert run_rollout.chunk_shape(model, plan) == (8, 8, 8, 3)


def test_patches_of_several_frames_are_one_latent_frame():
    config = long_config()
    config.data.frames = 12
    config.model.patch_size = (3, 4, 4)
    plan = run_rollout.plan_rollout(make_model(config))
    assert plan == (2, (1, 2)) and run_rollout.chunk_shape(make_model(config), plan) == (6, 8, 8, 3)
    assert run_rollout.count_chunks(make_model(config), plan, 13, 0) == 3


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"chunk": 33}, "chunk of 33 latent frames is none .*: its windows have 33.* 1 to 32"),
        ({"chunk": 0}, "choose one of 1 to 32"),
        ({"prefix": 8}, "prefix of 8 .* chunk of 8 .*: choose one of 1, 9, 17, 25"),
        ({"chunk": 16, "prefix": 25}, "choose one of 1, 9, 17"),
    ],
)
def test_what_the_model_was_not_trained_for_names_what_it_was(options, sentence):
    with pytest.raises(ValueError, match=sentence):
        run_rollout.plan_rollout(make_model(paper_config()), **options)


def test_a_first_chunk_that_nothing_goes_on_from_is_refused():
    config = paper_config()
    config.prefix.lengths = (8, 16)
    with pytest.raises(ValueError, match="with prefixes of 8 at least; choose one of 8 to 25"):
        run_rollout.plan_rollout(make_model(config), chunk=4)
    config.prefix.lengths = (25,)
    with pytest.raises(ValueError, match="train one with a shorter one among prefix.lengths"):
        run_rollout.plan_rollout(make_model(config))


def test_models_that_go_on_from_nothing_are_refused():
    joint = long_config()
    joint.model.attention = "joint"
    for config in (image_config(), joint):
        with pytest.raises(ValueError, match=r"train one like configs/long_512\.py"):
            run_rollout.plan_rollout(make_model(config))


def test_how_a_long_video_begins():
    def begin(config, pictured):
        model = make_model(config)
        return run_rollout.begins_with_image(model, run_rollout.plan_rollout(model), pictured)

    assert begin(long_config(), pictured=False) is False
    assert begin(long_config(), pictured=True) is True  # it goes on from one frame
    assert begin(joint_config(), pictured=True) is False  # it is told beside
    frames = joint_config()
    frames.tasks.update({"image": 0.0, "frames": 0.4})  # the first frame is one of any
    assert begin(frames, pictured=True) is False
    longer = long_config()
    longer.prefix.lengths = (2,)
    with pytest.raises(ValueError, match=r"prefix.lengths are \(2,\)"):
        begin(longer, pictured=True)
    patches = long_config()
    patches.data.frames, patches.model.patch_size = 8, (2, 4, 4)
    with pytest.raises(ValueError, match="patches have 2 frames"):
        begin(patches, pictured=True)
    prefixed = long_config()
    prefixed.tasks.update({"text": 0.0, "prefix": 1.0})
    assert begin(prefixed, pictured=True) is True
    with pytest.raises(ValueError, match=r"tasks\.text=0.*give it the first one with --image"):
        begin(prefixed, pictured=False)


@pytest.mark.parametrize("stride", [1, 4])
def test_chunks_and_first_frames_are_those_of_the_autoencoder(stride, monkeypatch):
    autoencoder = autoencoders.make_autoencoder("identity")
    if stride > 1:
        autoencoder = autoencoders.make_video_autoencoder(NETWORK, load=dict)
    model, plan = make_model(long_config()), run_rollout.Plan(3, (1,))
    monkeypatch.setattr(LatentSpace, "describe", lambda self, fetch=False: autoencoder)
    made = [0] + [autoencoder.video_frames(latents) for latents in range(1, 100)]
    for begun in (0, 1):
        for frames in range(1, 30):
            least = next(n for n in range(30) if made[begun + 3 * n] >= frames)
            assert run_rollout.count_chunks(model, plan, frames, begun) == least
    # A latent's first frame comes behind all frames of the latents before.
    assert [run_rollout.first_frame(model, latent) for latent in range(9)] == made[:9]


def test_a_chunk_lies_on_devices_that_its_window_would_not():
    config = paper_config()  # 33 frames are no even share of two devices, chunks of 8 are
    config.model.depth = 2
    model = make_model(config)
    grid = run_rollout.chunk_grid(model, run_rollout.plan_rollout(model))
    mesh = choose_mesh(1, jax.devices()[:2], grid, "factorized", config.model.num_heads)
    assert dict(mesh.shape)["seq"] == 2
    assert make_model(config, mesh, grid=grid).mesh.size == 2
    with pytest.raises(ValueError, match="33 latent frames do not divide by mesh.seq=2"):
        make_model(config, mesh)


def test_the_caption_of_a_frame_is_the_last_that_began():
    timeline = [(0, "a"), (4, "b"), (9, "c")]
    got = "".join(from_checkpoint.find_caption(timeline, frame) for frame in range(12))
    assert got == "aaaabbbbbccc"


@pytest.mark.parametrize(
    ("kind", "pictured"), [("frames", False), ("causal", False), ("causal", True)]
)
def test_a_long_video_of_latents_is_the_decoding_of_all_of_them(
    kind, pictured, monkeypatch, tmp_path
):
    """Chunks are decoded as they come, and several videos side by side, as if each had been whole."""
    if kind == "frames":
        autoencoder, params = random_taef2()
        autoencoder = autoencoder._replace(load=lambda: params)
        window, shape = 4, (2, 2, 32)
    else:
        autoencoder = autoencoders.make_video_autoencoder(NETWORK, load=lambda: params)
        params = randomise(autoencoder.abstract_params, 0.3)
        window, shape = 13, (2, 2, 3)
    monkeypatch.setattr(LatentSpace, "describe", lambda self, fetch=False: autoencoder)
    config = long_config()
    config.vae.name = "workdir"
    config.data.update({"frames": window, "height": 16, "width": 16})
    config.model.patch_size, config.sample.clip_x0 = (1, 1, 1), False
    channels = shape[-1]
    info = LatentInfo(
        *("workdir", hash_params(params), "float16", list(shape), False),
        mean=[0.1] * channels,
        deviation=[0.7] * channels,
    )
    workdir = write_run(tmp_path / "run", config, info)
    seen, decode_arriving = [], latent_space.decode_arriving

    def note(decoder, params, parts):
        own = []
        seen.append(own)
        return decode_arriving(decoder, params, (own.append(part) or part for part in parts))

    monkeypatch.setattr(latent_space, "decode_arriving", note)
    image = np.random.default_rng(0).integers(0, 256, (16, 16, 3), np.uint8) if pictured else None
    model = from_checkpoint.load(workdir, batch_size=2)
    videos = []
    for seeds in ([0, 1], [2]):
        prompts = [CAPTIONS[0]] * len(seeds)
        chunks = model.stream(prompts, 10, seeds=seeds, first_frame=image)
        videos.append(np.concatenate(list(chunks), axis=1))
    assert [video.shape for video in videos] == [(2, 10, 16, 16, 3), (1, 10, 16, 16, 3)]
    for video, parts in zip(videos, seen, strict=True):
        latents = np.concatenate(parts, axis=1) * 0.7 + 0.1
        whole = np.asarray(jax.jit(autoencoder.decode)(params, latents))[:, :10]
        expected = np.round((np.clip(whole, -1, 1) + 1) * 127.5)
        assert np.abs(expected - video).max() <= 1
        assert expected.std() > 5
    if pictured:
        x = image[None, None] / np.float32(127.5) - 1
        first = jax.jit(autoencoder.encode)(params, x)
        np.testing.assert_allclose(seen[0][0][0], (first[0] - 0.1) / 0.7, atol=1e-4)
