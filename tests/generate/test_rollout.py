"""Long videos, chunk by chunk from a memory, against a model without memory that sees the whole video each time."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.models.randomise import randomise
from tests.tiny import make_run, tiny_config
from videogen_jax.generate import rollout as rollouts
from videogen_jax.generate import run_sampler, sampler
from videogen_jax.generate.sampler_settings import SamplerSettings
from videogen_jax.models.blocks import Block
from videogen_jax.parallel.mesh import make_mesh

pytestmark = pytest.mark.slow

CHUNK, LENGTHS, SLOTS = 2, (1, 2, 4), 4  # latent frames
CHUNKS = 8  # 16 frames: the queue is filled, and turned over three times
SEEDS = np.array([3, 11], np.uint32)
NOISE = 0.05  # on what is remembered, share of the clock
STEPS = 3

COSINE = {"name": "cosine", "zero_terminal_snr": True}
FLOW = {"name": "flow", "zero_terminal_snr": False}

# name: model, schedule, what else `make_rollout` takes, latent frames to begin with
CASES = {
    "sincos": (
        {"positions": "sincos"},
        COSINE,
        {"guidance_scale": 2.5, "prediction": "x0", "sampler": "ddim", "clip_x0": True},
        1,
    ),
    "rope": (
        {"positions": "rope", "conditioning": "frames", "patch_size": (2, 4, 4)},
        FLOW,
        {"guidance_scale": 2.0, "known_guidance_scale": 1.5, "prediction": "flow"}
        | {"sampler": "euler", "clip_x0": False},
        0,
    ),
    "sincos bfloat16": (
        {"positions": "sincos"},
        FLOW,
        {"guidance_scale": 1.0, "prediction": "flow", "sampler": "euler", "clip_x0": False},
        0,
    ),
    "rope bfloat16": (
        {"positions": "rope"},
        COSINE,
        {"guidance_scale": 2.0, "prediction": "x0", "sampler": "ddim", "clip_x0": False}
        # Of the three steps, the first is pure noise and the last at sigma / alpha below 1.
        | {"guidance_interval": (1.0, 100.0)},
        2,
    ),
}


def make_config(name):
    model, schedule, _, _ = CASES[name]
    config = tiny_config()
    config.model.update({"depth": 4, "causal": True, "conditioning": "prefix", "time_cycle": 6})
    config.model.update(model)
    config.data.frames = 6 * config.model.patch_size[0]
    config.tasks.update({"text": 0.5, "prefix": 0.5})
    config.prefix.lengths = LENGTHS
    config.schedule.update(schedule)
    config.objective.prediction = CASES[name][2]["prediction"]
    config.train.precision = "bfloat16" if "bfloat16" in name else "float32"
    config.mesh.update({"data": 1, "fsdp": 1})
    return config


@functools.cache
def model_of(name):
    return make_run(make_config(name)).model


def make_case(name, **mesh):
    return build_case(name, tuple(mesh.items()))


@functools.cache
def build_case(name, mesh):
    """The run, its parameters on the mesh, and its rollout."""
    config = make_config(name)
    run = make_run(config, make_mesh(**dict(mesh)))
    params = jax.device_put(randomise(run.abstract.params, 0.2), run.shardings.params)
    model = config.model
    rollout = rollouts.make_rollout(
        run.model.apply,
        run.model.schedule,
        run.model.null_text,
        run.mesh,
        run.shardings.params,
        rollouts.Window(
            shape=(CHUNK * model.patch_size[0], *run.model.video_shape[1:]),
            cache=(model.depth // 2, 4, model.num_heads, model.width // model.num_heads),
            dtype=jnp.dtype(config.train.precision),
            patch_frames=model.patch_size[0],
            lengths=LENGTHS,
            prefix_noise=NOISE,
        ),
        SamplerSettings(
            batch_size=len(SEEDS),
            num_inference_steps=STEPS,
            spacing="trailing",
            **{name: value for name, value in CASES[name][2].items() if name != "prediction"},
        ),
        prediction=CASES[name][2]["prediction"],
        pixels=False,
    )
    return run, params, rollout


def condition_of(name, chunk, word=5):
    """What the model is told of a chunk; the first frame of the first one may be known."""
    config = make_config(name)
    text = np.full((len(SEEDS), config.text.length), 0, np.int32)
    text[:, :2] = [[3, word], [4, word]]
    frames = CHUNK * config.model.patch_size[0]
    condition = run_sampler.make_condition(model_of(name), text, 0.0, shape=(frames, 8, 8, 3))
    if "known" in condition and chunk == 0:
        condition["known"] += normal(len(SEEDS), 1, 8, 8, 3)
        condition["mask"][:, 0] = 1
    return condition


def normal(*shape):
    return np.random.default_rng(5).standard_normal(shape).astype(np.float32)


def beginning(name):
    """(B, n pt, H, W, C), or None."""
    frames = CASES[name][3] * make_config(name).model.patch_size[0]
    return normal(len(SEEDS), frames, 8, 8, 3) / 2 if frames else None


@functools.cache
def roll(name, **mesh):
    """The chunks of a rollout, each (B, F, H, W, C)."""
    _, params, rollout = make_case(name, **mesh)
    condition = functools.partial(condition_of, name)
    return list(rollouts.roll(rollout, params, condition, SEEDS, CHUNKS, beginning(name)))


def band(begun):
    """(T, T): which frames each frame sees. Those of a chunk see as many ahead of it as a prefix of training has."""
    total = begun + CHUNK * CHUNKS
    seen = np.zeros((total, total), bool)
    starts = ([0] if begun else []) + list(range(begun, total, CHUNK))
    for start, end in zip(starts, [*starts[1:], total], strict=True):
        prefix = max([length for length in (0, *LENGTHS) if length <= start])
        for frame in range(start, end):
            seen[frame, start - prefix : frame + 1] = True
    return seen


def draw(seeds, frames, number, shape):
    """Normal numbers of the chunk that `frames` latent frames are ahead of."""
    keys = [jax.random.fold_in(jax.random.key(seed), frames) for seed in seeds]
    return np.stack([jax.random.normal(jax.random.fold_in(key, number), shape) for key in keys])


class Whole:
    """The model without memory: a whole video at once, of which frames see what `band` says."""

    def __init__(self, name, monkeypatch):
        self.run, params, _ = make_case(name)
        _, _, self.options, self.begun = CASES[name]
        self.name, self.pt = name, self.run.config.model.patch_size[0]
        self.total = self.begun + CHUNK * CHUNKS
        seen = band(self.begun)[None]

        def mask(block, frames, places):
            return seen if block.kind == "temporal" else None

        monkeypatch.setattr(Block, "_frame_mask", mask)
        self.model = jax.jit(lambda *args: self.run.model.apply(params, *args))
        self.schedule = self.run.model.schedule
        self.x = np.zeros((len(SEEDS), self.total * self.pt, 8, 8, 3), np.float32)
        self.mask = np.zeros(self.x.shape[:2], np.float32)

    def place(self, start, count):
        return slice(start * self.pt, (start + count) * self.pt)

    def write(self, start, video, count):
        """As the frames are remembered: with a little noise, told to be clean."""
        noise = draw(SEEDS, start, self.schedule.num_steps + 1, (CHUNK * self.pt, 8, 8, 3))
        share = NOISE if self.schedule.clock == "unit" else int(NOISE * 1000)
        alpha, sigma = self.schedule.alpha_sigma(np.array(share))
        place = self.place(start, count)
        self.x[:, place] = alpha * video + sigma * noise[:, : count * self.pt]
        self.mask[:, place] = 1

    def ask(self, start, x_t, time, condition, text, told):
        """The output of the chunk."""
        place = self.place(start, CHUNK)
        x, mask = self.x.copy(), self.mask.copy()
        x[:, place], mask[:, place] = x_t, condition["mask"] * told
        t = np.full((len(SEEDS), self.total), self.schedule.time_of_step(np.float64(0)))
        t[:, start : start + CHUNK] = time
        inputs = {"text": text, "mask": mask, "start": np.zeros(len(SEEDS), np.int32)}
        if "known" in condition:
            inputs["known"] = np.zeros_like(x)
            inputs["known"][:, place] = condition["known"] * told
        t = jnp.asarray(t, jnp.float32 if self.schedule.clock == "unit" else jnp.int32)
        return np.float64(self.model(jnp.asarray(x), t, inputs))[:, place]

    def denoise(self, chunk):
        """The chunk, with all that is written ahead of it."""
        start, condition = self.begun + chunk * CHUNK, condition_of(self.name, chunk)
        steps = sampler.make_steps(
            self.schedule,
            self.options["prediction"],
            sampler=self.options["sampler"],
            num_inference_steps=STEPS,
            spacing="trailing",
        )
        x = np.float64(draw(SEEDS, start, self.schedule.num_steps, (CHUNK * self.pt, 8, 8, 3)))
        levels = [(float(alpha), float(sigma)) for alpha, sigma in zip(*steps[1:3], strict=True)]
        for time, here, there in zip(steps.t, levels, [*levels[1:], (1.0, 0.0)], strict=True):
            output = self.guide(start, x, time, here, condition)
            if self.options["prediction"] == "flow":
                x0, eps = x - here[1] * output, x + here[0] * output
            else:
                x0 = np.clip(output, -1, 1) if self.options["clip_x0"] else output
                eps = (x - here[0] * x0) / here[1]
            x = there[0] * x0 + there[1] * eps
        return x

    def guide(self, start, x, time, level, condition):
        null = np.broadcast_to(self.run.model.null_text, condition["text"].shape)
        scale, known = self.options["guidance_scale"], self.options.get("known_guidance_scale")
        low, high = self.options.get("guidance_interval", (0, np.inf))
        within = low * level[0] < level[1] and level[1] <= high * max(level[0], 1e-12)
        everything = self.ask(start, x, time, condition, condition["text"], 1)
        if scale == 1 or not within and high < np.inf:
            return everything
        frames = self.ask(start, x, time, condition, null, 1)
        output = frames + scale * (everything - frames)
        if known is not None:
            nothing = self.ask(start, x, time, condition, null, 0)
            output += (known - 1) * (frames - nothing)
        return output


@pytest.mark.parametrize("name", CASES)
def test_a_rollout_is_what_a_model_without_memory_makes(name, monkeypatch):
    chunks = roll(name)
    whole = Whole(name, monkeypatch)
    if whole.begun:
        whole.write(0, beginning(name), whole.begun)
    assert len(chunks) == CHUNKS
    for number, chunk in enumerate(chunks):
        expected = whole.denoise(number)
        error = np.abs(chunk - expected) / np.abs(expected).max()
        if "bfloat16" in name:
            assert np.sqrt(np.mean(error**2)) < 1e-2, number
        else:
            assert error.max() < 1e-5, number
        # From here the video goes on as it was rolled out, so that errors do not add up.
        whole.write(whole.begun + number * CHUNK, chunk, CHUNK)


@pytest.mark.parametrize("mesh", [{"data": 2}, {"seq": 2}, {"tensor": 2}], ids=str)
def test_a_rollout_is_the_same_on_many_devices(mesh):
    for chunk, expected in zip(roll("sincos", **mesh), roll("sincos"), strict=True):
        np.testing.assert_allclose(chunk, expected, atol=1e-5)
    # Each device has its own part of the memory.
    _, _, rollout = make_case("sincos", **mesh)
    keys = rollout.start().kv_cache.keys
    # Of groups, rows, places, slots, heads.
    parts = {"data": (2, 2, 4, 4, 2), "seq": (2, 4, 2, 4, 2), "tensor": (2, 4, 4, 4, 1)}
    assert keys.sharding.shard_shape(keys.shape)[:5] == parts[next(iter(mesh))]


def test_within_a_rollout_nothing_is_compiled_and_the_state_keeps_its_size():
    name = "sincos"
    chunks = roll(name)
    _, params, rollout = make_case(name)
    put = functools.partial(jax.device_put, device=rollout.rows)
    state = rollout.start()
    layout = jax.tree.map(lambda leaf: (leaf.shape, leaf.dtype, leaf.sharding), state)
    state = rollout.write(
        state, params, put(SEEDS), put(condition_of(name, 0)), put(beginning(name))
    )
    lengths = []
    for expected in chunks:
        lengths.append(int(state.kv_cache.length))
        assert jax.tree.map(lambda leaf: (leaf.shape, leaf.dtype, leaf.sharding), state) == layout
        state, chunk = rollout.extend(state, params, put(SEEDS), put(condition_of(name, 0)))
        # `roll` hands out every chunk, in order.
        np.testing.assert_array_equal(chunk, expected)
    # With 1, 3, 5 and more frames made, the largest prefix of training that there are frames for.
    assert lengths == [1, 2] + 6 * [4]
    assert int(state.frames) == 1 + CHUNKS * CHUNK
    assert [step._cache_size() for step in rollout[:3]] == [1, 1, 1]


def test_the_prompt_may_change_on_the_way():
    """What is made before stays to the bit; what comes after is another, though it remembers the same."""
    name = "rope"
    _, params, rollout = make_case(name)

    def changing(chunk):
        return condition_of(name, chunk, word=5 if chunk < 3 else 9)

    changed = list(rollouts.roll(rollout, params, changing, SEEDS, 5))
    for number, (chunk, before) in enumerate(zip(changed, roll(name), strict=False)):
        assert np.array_equal(chunk, before) == (number < 3)


def test_a_video_does_not_depend_on_its_neighbours_and_each_seed_has_its_own():
    name = "sincos bfloat16"
    _, params, rollout = make_case(name)
    condition = jax.tree.map(lambda rows: rows[[0, 0]], condition_of(name, 0))
    first, second = SEEDS[0], SEEDS[0] + 1
    one, other = (
        list(rollouts.roll(rollout, params, lambda _: condition, np.array(seeds), 2))
        for seeds in ([first, second], [second, first])
    )
    for chunk, swapped in zip(one, other, strict=True):
        np.testing.assert_array_equal(chunk, swapped[::-1])
        assert np.abs(chunk[0] - chunk[1]).max() > 0.1


def test_a_rollout_says_how_often_it_asks_the_model():
    _, _, rollout = make_case("sincos")
    assert rollout.calls == (STEPS + 1) * 2 and rollout.frames == CHUNK
    assert rollout.batch_size == len(SEEDS)
    assert make_case("rope")[2].calls == (STEPS + 1) * 3
