"""The options of a run: defaults, types, ranges, choices and combinations, checked in one place."""

import copy
import subprocess
import sys

import pytest
from absl import logging

from tests.conftest import ROOT
from tests.tiny import tiny_config, tiny_vae_config
from videogen_jax import command, config_rules
from videogen_jax import config as configs
from videogen_jax.data import latent_records
from videogen_jax.diffusion import objective, schedule, times
from videogen_jax.generate import sampler
from videogen_jax.models import attention, autoencoder, dit, remat, weight_layouts
from videogen_jax.run import conditioning, state, text_conditioning
from videogen_jax.train import init_params, optimizers, wandb_writer


def changed(name, value, config=None):
    """JSON-like lines of a small config with one value changed."""
    config = tiny_config() if config is None else config
    lines = copy.deepcopy(config) if isinstance(config, dict) else config.to_dict()
    *sections, key = name.split(".")
    target = lines
    for part in sections:
        target = target[part]
    target[key] = value
    return lines


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("batch_size", 0, "batch_size is 0: give a number at least 1"),
        ("batch_size", 1.5, "batch_size is 1.5: give a whole number"),
        ("batch_size", True, "batch_size is True: give a whole number"),
        ("train.steps", "10", "train.steps is '10': give a whole number"),
        ("data.fps", 0.0, "data.fps is 0.0: give a number above 0"),
        ("data.fps", float("nan"), "data.fps is nan: give a finite number"),
        ("learning_rate.peak", float("inf"), "learning_rate.peak is inf: give a finite number"),
        ("data.flip", 1, "data.flip is 1: give True or False"),
        ("data.path", 3, "data.path is 3: give a text"),
        ("text.dropout", 1.1, "text.dropout is 1.1: give a number from 0 to 1"),
        ("text.dropout", -0.1, "text.dropout is -0.1: give a number from 0 to 1"),
        ("optimizer.b2", 1.0, "optimizer.b2 is 1.0: give a number from 0 to below 1"),
        ("ema.decays", (0.9, 1.0), "ema.decays is .*: give a number from 0 to below 1"),
        ("ema.decays", 0.9, "ema.decays is 0.9: give a tuple"),
        ("model.patch_size", (1, 2, 2.5), "model.patch_size is .*: give whole numbers"),
        ("seed", -1, "seed is -1: give a number from 0 to 4294967295"),
        ("seed", 2**32, "seed is 4294967296: give a number from 0 to 4294967295"),
        ("optimizer.clip_norm", 0, "optimizer.clip_norm is 0.0: give a number above 0"),
        ("learning_rate.peak", -1e-3, "learning_rate.peak is -0.001: give a number above 0"),
        ("train.steps", 1e30, "train.steps is 1.*: give a whole number of at most 2147483647"),
        ("data.threads", 10**6, "data.threads is 1000000: give a number from 1 to 1024"),
        ("sample.prompts", (1, 2), r"sample.prompts is \(1, 2\): give texts"),
        ("model.patch_size", (1, 2), r"is \(1, 2\): give a tuple of 3 whole numbers"),
        ("sample.guidance_interval", (1.0,), "give a tuple of no or 2 numbers"),
        ("model.width", "wide", "model.width is 'wide': give a whole number"),
        ("known.noise_mean", 1e30, "known.noise_mean is 1e.30: give a number from -20 to 20"),
        ("data", 3, "'data' is a section of options and has no value of its own"),
        (
            "optimizer.name",
            "adam",
            r"Unknown optimizer.name 'adam' \(adamw\?\): choose one of adamw",
        ),
        ("sample.sampler", "plms", "'plms'.*: choose one of ddim, ddpm"),
        ("sample.spacing", "even", "choose one of leading, trailing, linspace"),
        ("sample.guidance_scale", float("nan"), "sample.guidance_scale is nan"),
        ("sample.guidance_rescale", 2.0, "sample.guidance_rescale is 2.0"),
        ("sample.motion", 9999.0, "sample.motion is 9999.0: give a number from 0 to 255"),
        ("objective.weighting", "snr", "choose one of uniform, min_snr"),
        ("objective.gamma", -1.0, "objective.gamma is -1.0"),
        ("objective.time_std", -1.0, "objective.time_std is -1.0"),
        ("schedule.reference_tokens", -5, "schedule.reference_tokens is -5"),
        ("known.sampling_noise", 0.0, "known.sampling_noise is 0.0: give a number above 0"),
        ("prefix.sampling_noise", 1.0, "prefix.sampling_noise is 1.0"),
        ("model.micro_conditions", ("fps", "speed"), "'speed'.*: choose one of fps, motion, augm"),
        (
            "memory.remat",
            "selective",
            "Unknown memory.remat 'selective'.*: choose one of none, block",
        ),
        ("memory.saved", ("mlp",), "no option 'memory.saved'"),
        ("model.squeeze", 1, "no option 'model.squeeze'"),
        ("model.widht", 1, "no option 'model.widht': did you mean 'model.width'"),
        ("trian", 1, "no option 'trian'"),
    ],
)
def test_a_value_that_is_not_valid_is_named_with_what_is(name, value, message):
    with pytest.raises(ValueError, match=message):
        configs.validate(changed(name, value))


@pytest.mark.parametrize("autoencoder", [False, True], ids=["diffusion", "autoencoder"])
def test_every_misspelt_option_is_refused_with_one_that_there_is(autoencoder):
    """The second and third letter swapped; of b1 and the like there are none to swap."""
    complete = tiny_vae_config() if autoencoder else tiny_config()
    options = configs.options_of(autoencoder)
    for name in options:
        section, dot, key = name.rpartition(".")
        wrong = f"{section}{dot}{key[0]}{key[1:3][::-1]}{key[3:]}"
        if wrong in options:
            continue
        lines = changed(wrong, 1, complete)
        with pytest.raises(ValueError, match=f"no option '{wrong}': did you mean '{name}'"):
            configs.validate(lines)


HOSTILE = (
    -1,
    0,
    -0.5,
    float("nan"),
    float("inf"),
    1e30,
    1e300,
    10**400,
    "x",
    (),
    (1, 2),
    ("a",),
    None,
    True,
    {},
)


def options_and_kinds():
    for of_autoencoder in (False, True):
        for name in configs.options_of(of_autoencoder):
            yield pytest.param(name, of_autoencoder, id=f"{name}-{of_autoencoder}")


@pytest.mark.parametrize(("name", "autoencoder"), list(options_and_kinds()))
def test_any_value_gives_a_valid_config_or_a_sentence_that_names_the_option(name, autoencoder):
    """Where it is valid, it is of the option's type, finite and inside the bounds."""
    complete = (tiny_vae_config() if autoencoder else tiny_config()).to_dict()
    option = configs.options_of(autoencoder)[name]
    for value in HOSTILE:
        try:
            found = dict(
                configs.flatten(configs.validate(changed(name, value, complete)).to_dict())
            )
        except ValueError as error:
            assert name.rpartition(".")[2] in str(error) and len(str(error)) < 400, (value, error)
            continue
        if value == {}:  # a section without options
            continue
        if found[name] is None:
            assert option.default is None
            continue
        assert type(found[name]) is config_rules.type_of(option)
        for entry in found[name] if isinstance(found[name], tuple) else (found[name],):
            if isinstance(entry, float):
                assert abs(entry) < 3.4e38
            elif isinstance(entry, int):
                assert -(2**31) < entry < 2**32


NUMBERS = {
    name: option
    for name, option in configs.options_of(False).items()
    if isinstance(option.default, int | float) and not isinstance(option.default, bool)
}


@pytest.mark.parametrize("name", NUMBERS)
def test_no_number_is_a_text_a_truth_or_out_of_bounds(name):
    """The ends of its interval pass where the bracket says so, numbers beyond never do."""
    option = NUMBERS[name]
    for value in (str(option.default), True, None, [option.default]):
        with pytest.raises(ValueError, match=f"^{name} is "):
            configs.check_option(name, value)
    wrong = [1.5] if isinstance(option.default, int) else [float("nan"), float("inf")]
    for bracket, end, beyond in (
        (option.bounds[:1], option.bounds[1:-1].split(",")[0], -1),
        (option.bounds[-1:], option.bounds[1:-1].split(",")[-1], 1),
    ):
        if end.strip() in ("", "inf"):
            continue
        number = type(option.default)(end)
        wrong.append(number + beyond)
        if bracket in "[]":
            assert configs.check_option(name, number) == number
        else:
            wrong.append(number)
    for value in wrong:
        with pytest.raises(ValueError, match=f"^{name} is "):
            configs.check_option(name, value)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"learning_rate.warmup_steps": 10}, r"of 10 is not below train\.steps of 10"),
        ({"batch_size": 3}, "batch_size of 3 does not divide into 2 parts .*: make it a multiple"),
        ({"train.accumulation": 3}, "make it a multiple of 6"),
        ({"ema.snapshot_every": 5}, "ema.widths names no power-function average"),
        ({"optimizer.name": "schedule_free"}, "final_fraction is 0.1: set it to 1.0"),
        ({"augment.fps_min": 4.0, "augment.fps_max": 2.0}, "the lower one first"),
        ({"augment.fps_min": 2.0, "augment.fps_max": 8.0}, "add 'fps' to model.micro_conditions"),
        ({"text.encoder": "clip"}, "embeddings are stored beside latents"),
        ({"text.encoder": "t5"}, "text.encoder is 't5', whose embeddings are stored beside"),
        (
            {"text.layer": -2},
            "text.layer is -2, which is of text.encoder=qwen3, but that is 'words'",
        ),
        ({"text.pooled_path": "x"}, "but text.pooled_encoder is empty: set it to 'clip'"),
        ({"text.pooled_encoder": "clip"}, "beside text.encoder='words', which has its own pooled"),
        (
            {
                "text.encoder": "t5",
                "text.pooled_encoder": "clip",
                "vae.name": "sd",
                "sample.clip_x0": False,
                "model.pooled_text": False,
            },
            "model.pooled_text is off and nothing reads its vector",
        ),
        ({"text.dropout": 0.5, "known.joint_dropout": 0.6}, "their sum is at most 1"),
        ({"model.micro_conditions": ("augmentation",)}, "'none': set it to 'frames'"),
        ({"sample.known_guidance_scale": 2.0}, "takes no known frames"),
        ({"sample.clip_x0": True, "vae.name": "sd"}, "have no bounds: set it to False"),
        ({"vae.name": "workdir", "sample.clip_x0": False}, "vae.path is empty"),
        (
            {"evaluation.fvd_every": 1, "tasks.text": 0.0, "tasks.image": 1.0},
            "never learns .tasks.text=0.",
        ),
        ({"train.lora.rank": 8}, "train.lora.rank is 8, but a run that starts from nothing"),
        (
            {"train.lora.rank": 8, "init.path": "x", "train.frozen": ("bias",)},
            "train.frozen is .'bias',., but with train.lora.rank=8 all parameters are frozen",
        ),
        ({"train.lora.alpha": 4.0}, "train.lora.alpha is 4.0, but train.lora.rank is 0"),
        ({"train.lora.full": ("bias",)}, "full is .'bias',., but train.lora.rank is 0: set the"),
        ({"train.frozen": ("bias", "a(b")}, r"train.frozen has 'a\(b', which is not a regular"),
        (
            {"train.lora.layers": ("*",)},
            "layers has '\\*', which is not a regular expression .noth",
        ),
    ],
)
def test_options_that_contradict_each_other_are_refused(changes, message):
    config = tiny_config()
    config.update_from_flattened_dict(changes)
    with pytest.raises(ValueError, match=message):
        configs.validate(config)


def test_a_batch_must_divide_over_devices_and_accumulation():
    config = tiny_config()

    def check(batch_size, accumulation=1, **mesh):
        config.batch_size, config.train.accumulation = batch_size, accumulation
        config.mesh.update({"data": 1, "fsdp": 1, "seq": 1, "tensor": 1} | mesh)
        configs.validate(config)

    check(24, accumulation=3, data=2, fsdp=2)
    with pytest.raises(ValueError, match=r"batch_size of 6 .* 4 parts.*a multiple of 4"):
        check(6, data=2, fsdp=2)
    check(1, seq=4, tensor=2)  # one clip can use all of them
    with pytest.raises(ValueError, match=r"8 .* 4 parts.* 3 accumulation.*a multiple of 12"):
        check(8, accumulation=3, data=2, fsdp=2)


def test_what_an_autoencoder_cannot_do_is_refused():
    with pytest.raises(ValueError, match="mesh.seq is 2"):
        configs.validate(changed("mesh.seq", 2, tiny_vae_config()))
    with pytest.raises(ValueError, match="no option 'model.width'"):
        configs.validate(tiny_vae_config().to_dict() | {"model": {"width": 3}})


def test_a_rate_that_training_never_shows_is_warned_of(monkeypatch):
    warnings = []
    monkeypatch.setattr(logging, "warning", lambda text, *values: warnings.append(text % values))
    config = tiny_config()
    config.model.micro_conditions = ("fps",)
    config.augment.update({"fps_min": 2.0, "fps_max": 8.0})
    configs.validate(config)
    assert not warnings
    config.augment.fps_max = 6.0
    configs.validate(config)
    assert "at most 6 frames per second" in warnings[0]


def test_whole_numbers_serve_as_floats_and_lists_as_tuples():
    lines = changed("data.fps", 8)
    lines["model"]["patch_size"] = [1, 4, 4]
    lines["ema"]["decays"] = [0]
    config = configs.validate(lines)
    assert (config.data.fps, type(config.data.fps)) == (8.0, float)
    assert config.model.patch_size == (1, 4, 4) and config.ema.decays == (0.0,)
    assert config.is_locked
    strides = {"autoencoder": {"strides": [[1, 2, 2]]}}
    assert configs.complete(strides).autoencoder.strides == ((1, 2, 2),)


def test_options_that_are_not_given_take_their_defaults():
    config = configs.get_config(model={"width": 64})
    for name, value in configs.flatten(config.to_dict()):
        expected = 64 if name == "model.width" else configs.options_of(False)[name].default
        assert value == expected, name
    assert configs.changes_of(config) == {"model.width": 64}
    assert configs.nest(dict(configs.flatten(config.to_dict()))) == config.to_dict()


def test_a_config_starts_from_another_one():
    base = dict(configs.flatten(configs.load_config("dit_512").to_dict()))
    found = configs.get_config(base="dit_512", batch_size=4, model={"depth": 2})
    changes = {"batch_size": 4, "model.depth": 2}
    assert dict(configs.flatten(found.to_dict())) == base | changes
    assert configs.is_autoencoder(configs.get_config(base="vae_512", batch_size=8))


def test_configs_are_found_by_name_and_by_path():
    path = ROOT / "configs" / "dit_512.py"
    assert configs.find_config("dit_512").samefile(path)
    assert configs.find_config(str(path)).samefile(path)
    with pytest.raises(
        FileNotFoundError, match="no config 'dit_5'.*dit_512, dit_512_wan, dit_xl_512"
    ):
        configs.find_config("dit_5")


def test_a_file_of_the_users_own_starts_from_the_defaults(tmp_path):
    lines = ["from videogen_jax import config", "def get_config():"]
    lines += ["    return config.get_config(batch_size=3, model=dict(width=96))"]
    (tmp_path / "mine.py").write_text("\n".join(lines))

    def run(*arguments):
        command = [sys.executable, "-m", "videogen_jax.config", *arguments]
        return subprocess.run(command, cwd=ROOT, capture_output=True, text=True)

    own = f"--config={tmp_path / 'mine.py'}"
    assert run(own).stdout.splitlines() == ["batch_size = 3", "model.width = 96"]
    assert "train.steps = 5" in run(own, "--config.train.steps=5000").stdout
    assert "batch_size = 32" in run("--config=quickstart").stdout.splitlines()
    assert "batch_size = 6" in run("--config.batch_size", "6", "--config", "quickstart").stdout
    other = run("--config=quickstart", "--config.autoencoder.channels=4").stderr
    assert "config: error: There is no option 'autoencoder.channels'" in other
    wrong = run(own, "--config.model.widht=5")
    assert wrong.returncode == 1 and "width" in wrong.stderr
    assert "config: error: There is no config 'nothing'" in run("--config=nothing").stderr


def test_encode_asks_nothing_of_training_and_sampling():
    """Latents of the quick start's clips: that pixels were to be clipped is for its run to mend."""
    config = changed("sample.clip_x0", True)
    config["vae"]["name"] = "sd"
    with pytest.raises(ValueError, match="have no bounds"):
        configs.validate(config)
    assert configs.validate_values(config).vae.name == "sd"
    config["vae"]["chunk_frames"] = 0
    with pytest.raises(ValueError, match="vae.chunk_frames is 0"):
        configs.validate_values(config)


CHOICES = {
    "optimizer.name": optimizers.OPTIMIZERS,
    "optimizer.mu_dtype": optimizers.MOMENT_TYPES,
    "train.precision": tuple(state.PRECISIONS),
    "memory.remat": remat.POLICIES,
    "memory.attention_kernel": attention.KERNELS,
    "vae.name": autoencoder.NAMES,
    "vae.encode_precision": ("float32", "bfloat16"),
    "vae.stored": latent_records.DTYPES,
    "text.encoder": text_conditioning.ENCODERS,
    "text.pooled_encoder": ("", "clip"),
    "model.attention": dit.CHOICES["attention"],
    "model.positions": dit.CHOICES["positions"],
    "model.modulation": dit.CHOICES["modulation"],
    "model.cross_attention": dit.CHOICES["cross_attention"],
    "model.conditioning": dit.CONDITIONINGS,
    "model.residual_dtype": dit.RESIDUAL_TYPES,
    "model.text_pooling": dit.POOLINGS,
    "model.micro_conditions": (*conditioning.BATCH_CONDITIONS, "augmentation"),
    "schedule.name": schedule.SCHEDULES,
    "objective.prediction": tuple(objective.PREDICTIONS),
    "objective.weighting": tuple(objective.WEIGHTINGS),
    "objective.time_distribution": times.DISTRIBUTIONS,
    "sample.sampler": sampler.SAMPLERS,
    "sample.spacing": times.SPACINGS,
    "init.layout": (*weight_layouts.LAYOUTS, init_params.RUN, init_params.EXPORT),
    "wandb.mode": wandb_writer.MODES,
}


@pytest.mark.parametrize("name", CHOICES)
def test_the_choices_are_those_of_the_code(name):
    assert configs.options_of(False)[name].choices == tuple(CHOICES[name])


def test_every_option_with_choices_is_compared_with_the_code():
    options = configs.options_of(False)
    assert {name for name, option in options.items() if option.choices} == set(CHOICES)


def test_every_default_is_valid_by_itself():
    for name, option in (configs.options_of(False) | configs.options_of(True)).items():
        assert configs.check_option(name, option.default) == option.default


def test_every_option_says_what_it_does():
    for name, option in (configs.options_of(False) | configs.options_of(True)).items():
        assert option.meaning and option.meaning[0] not in ".,", name


@pytest.mark.parametrize(
    ("wrong", "near"),
    [
        ("modle.width", "model.width"),
        ("model.widht", "model.width"),
        ("optimizer.learning_rate", "learning_rate.peak"),
        ("train.width", "model.width"),
        ("learning_rate", "learning_rate.peak"),
        ("width", "model.width"),
        ("train.batch_size", "batch_size"),
        ("steps", "train.steps"),
    ],
)
def test_a_misspelt_override_names_the_nearest_option(wrong, near):
    with pytest.raises(ValueError, match=f"'{wrong}'.*did you mean .*'{near}'"):
        configs.parse_option(wrong, "1")


@pytest.mark.parametrize(
    ("name", "text", "value"),
    [
        ("train.steps", "1e3", 1000),
        ("train.steps", "1_000", 1000),
        ("train.steps", "1000.0", 1000),
        ("data.fps", "8", 8.0),
        ("learning_rate.peak", "3e-4", 3e-4),
        ("data.flip", "true", True),
        ("data.flip", "False", False),
        ("data.flip", None, True),
        ("data.path", "a=b c", "a=b c"),
        ("model.patch_size", "(1, 4, 4)", (1, 4, 4)),
        ("model.patch_size", "1,4,4", (1, 4, 4)),
        ("ema.decays", "[0.9, 0.99]", (0.9, 0.99)),
        ("ema.widths", "0.05", (0.05,)),
        ("ema.widths", "()", ()),
        ("model.micro_conditions", "fps,motion", ("fps", "motion")),
        ("sample.prompts", "a red circle, moving left", ("a red circle, moving left",)),
        ("sample.prompts", "('a', 'b')", ("a", "b")),
        ("sample.known_guidance_scale", "2", 2.0),
        ("sample.known_guidance_scale", "None", None),
        ("autoencoder.strides", "((1, 2, 2),)", ((1, 2, 2),)),
    ],
)
def test_values_on_a_command_line(name, text, value):
    found = configs.parse_option(name, text)
    assert found == value and type(found) is type(value)
    assert configs.check_option(name, found) == value


@pytest.mark.parametrize(
    ("name", "text", "sentence"),
    [
        ("train.steps", "many", "train.steps is 'many': give a whole number."),
        ("train.steps", "1.5", "train.steps is 1.5: give a whole number."),
        ("train.steps", "inf", "train.steps is inf: give a whole number."),
        ("data.fps", "fast", "data.fps is 'fast': give a number."),
        ("data.flip", "maybe", "data.flip is 'maybe': give True or False."),
        (
            "sample.known_guidance_scale",
            "x",
            "sample.known_guidance_scale is 'x': give a number or None.",
        ),
        (
            "model.patch_size",
            "1x4x4",
            "model.patch_size is '1x4x4': give a tuple of 3 whole numbers.",
        ),
        (
            "ema.decays",
            "(0.9",
            "ema.decays is '(0.9': give a tuple of numbers, such as (0.5, 0.9).",
        ),
    ],
)
def test_a_text_of_another_type_names_the_option_and_what_it_takes(name, text, sentence):
    with pytest.raises(ValueError) as caught:
        configs.parse_option(name, text)
    assert str(caught.value) == sentence


def test_overrides_are_taken_out_of_a_command_line():
    given = ["launch", "--config=quickstart", "--config.train.steps=1e3", "-config.data.path", "x"]
    given += ["--config.data.flip", "--noconfig.model.qk_norm", "--workdir=y", "--", "--config.z=1"]
    rest, overrides = command.split_overrides(given)
    assert rest == ["launch", "--config=quickstart", "--workdir=y", "--", "--config.z=1"]
    assert overrides == {
        "train.steps": "1e3",
        "data.path": "x",
        "data.flip": None,
        "model.qk_norm": "false",
    }
    config = configs.override(tiny_config(), overrides)
    assert (config.train.steps, config.data.path, config.data.flip) == (1000, "x", True)
    assert config.model.qk_norm is False and config.is_locked
    with pytest.raises(ValueError, match="no option 'model.width'"):
        configs.override(tiny_vae_config(), {"model.width": "3"})


def test_a_wrong_line_of_a_config_file_is_one_sentence_with_its_place(tmp_path):
    path = tmp_path / "mine.py"

    def run(line):
        text = f"from videogen_jax import config\ndef get_config():\n    return config.get_config({line})\n"
        path.write_text(text)
        words = [sys.executable, "-m", "videogen_jax.config", f"--config={path}"]
        done = subprocess.run(words, cwd=ROOT, capture_output=True, text=True)
        assert done.returncode == 1 and len(done.stderr.splitlines()) == 1
        return done.stderr

    found = run("model=dict(widht=3)")
    assert f"{path}, line 3: There is no option 'model.widht': did you mean 'model.width'?" in found
    assert "train.steps is 'x': give a whole number." in run("train=dict(steps='x')")
    assert "mine.py" in run("batch_size=3, ((")
