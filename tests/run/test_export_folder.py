"""The folder of an export: what is written is read back; anything else in it is refused in a sentence."""

import json
import random
import re
import shutil

import jax
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from tests.models.randomise import randomise
from tests.tiny import tiny_config
from videogen_jax.run import export_folder, saved_config
from videogen_jax.run.model import make_model
from videogen_jax.train import loop

METADATA = {"vocabulary": ["a", "red", "ball"], "text": None, "latents": None, "config": {}}
LATENTS = {"autoencoder": "sd", "weights": "0", "dtype": "float16", "shape": [1, 1, 4]}
LATENTS |= {"mirrored": False, "mean": [0.0], "deviation": [1.0]}


@pytest.fixture(scope="module")
def shapes():
    config = tiny_config()
    config.mesh.fsdp = 1
    return make_model(config).abstract_params


@pytest.fixture(scope="module")
def written(shapes, tmp_path_factory):
    folder = tmp_path_factory.mktemp("export")
    write(folder, shapes)
    return folder


def write(folder, shapes, **options):
    given = {"config": tiny_config(), "params": randomise(shapes), "step": 7}
    given |= {"average": "decay_0.9", "metadata": METADATA}
    export_folder.write_export(folder, **given | options)


@pytest.fixture
def folder(written, tmp_path):
    return shutil.copytree(written, tmp_path / "export")


def change(folder, **fields):
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | fields))


def refuse(folder, sentence, kind=ValueError, shapes=None):
    with pytest.raises(kind, match=sentence) as error:
        export = export_folder.open_export(folder)
        export.read_params(shapes)
    text = str(error.value)
    assert "\n" not in text and text.endswith((".", ")")), text


def test_what_is_written_is_read_back(folder, shapes):
    assert export_folder.is_export(folder)
    export = export_folder.open_export(folder)
    assert (export.step, export.weights, export.layout) == (7, "decay_0.9", "native")
    assert export.config.to_dict() == tiny_config().to_dict()
    assert export.metadata == {name: METADATA[name] for name in ("vocabulary", "text", "latents")}
    jax.tree.map(np.testing.assert_array_equal, export.read_params(shapes), randomise(shapes))


def test_bfloat16_rounds_to_the_nearest(tmp_path, shapes):
    write(tmp_path, shapes, dtype="bfloat16")
    assert {str(tensor.dtype) for tensor in load_file(tmp_path / "model.safetensors").values()} == {
        "bfloat16"
    }

    def compare(got, exact):
        assert got.dtype == np.float32
        bits = got.view(np.uint32)
        assert not (bits & 0xFFFF).any()  # its 16 bits are the first ones of float32's
        # No neighbour is nearer.
        for step in (-0x10000, 0x10000):
            other = (bits.astype(np.int64) + step).astype(np.uint32).view(np.float32)
            assert (np.abs(got - exact) <= np.abs(other - exact)).all()

    read = export_folder.open_export(tmp_path).read_params(shapes)
    jax.tree.map(compare, read, randomise(shapes))


def test_a_run_and_an_export_are_told_apart(folder, tmp_path):
    run = tmp_path / "run"
    run.mkdir()
    assert not export_folder.is_export(run)
    saved_config.write_config(run, tiny_config())
    assert not export_folder.is_export(run)
    assert not export_folder.is_export(tmp_path / "nowhere")
    with pytest.raises(ValueError, match="is an export, and not the folder of a run"):
        saved_config.read_config(folder)
    with pytest.raises(ValueError, match="is an export, and not the folder of a run"):
        loop.train(tiny_config(), folder)  # which would overwrite config.json
    assert export_folder.is_export(folder)


def test_choices_are_those_of_the_weights(folder):
    export = export_folder.open_export(folder)
    export.check_choice(None, None, None)
    export.check_choice(7, "decay_0.9", None)
    for choice in ((8, None, None), (None, "decay_0.5", None), (None, None, 0.1)):
        with pytest.raises(ValueError, match=r"holds the average 'decay_0\.9' of step 7 alone"):
            export.check_choice(*choice)


def test_pickles_are_not_read(folder, shapes):
    (folder / "model.safetensors").rename(folder / "model.bin")
    refuse(folder, "model.bin is a pickle, which can execute code", shapes=shapes)
    change(folder, files=[{"name": "model.bin", "bytes": 1, "sha256": ""}])
    refuse(folder, "names 'model.bin', which is no safetensors file of its folder")


@pytest.mark.parametrize(
    "name", ["../model.safetensors", "/etc/model.safetensors", "", "a\n.safetensors"]
)
def test_files_are_in_the_folder(folder, name):
    change(folder, files=[{"name": name, "bytes": 1, "sha256": ""}])
    refuse(folder, re.escape(f"names {name!r}, which is no safetensors file"))


def test_weights_that_are_missing_or_changed_are_named(folder, shapes):
    path = folder / "model.safetensors"
    whole = path.read_bytes()
    path.write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]))
    refuse(
        folder,
        r"model\.safetensors is not the file that config\.json names \(sha256",
        shapes=shapes,
    )
    path.write_bytes(whole[:-1])
    refuse(folder, r"model\.safetensors is not a valid safetensors file", shapes=shapes)
    path.unlink()
    refuse(folder, r"has no \*\.safetensors: give the folder", FileNotFoundError, shapes)


def rewrite(folder, edit):
    """Other tensors, of which config.json knows."""
    path = folder / "model.safetensors"
    save_file(edit(load_file(path)), path)
    change(folder, files=[export_folder._describe_file(folder, path.name)])


def test_tensors_of_another_model_are_listed(folder, shapes):
    def edit(tensors):
        tensors["head"] = tensors.pop("unembed.bias")
        tensors["unembed.kernel"] = tensors["unembed.kernel"][1:]
        return tensors

    rewrite(folder, edit)
    refuse(
        folder,
        r"1 missing \(unembed\.bias\); 1 unexpected \(head\); 1 misshapen \(unembed\.kernel",
        shapes=shapes,
    )
    change(folder, layout="latte")
    refuse(folder, "do not fit the model in the layout 'latte': .* missing", shapes=shapes)


@pytest.mark.parametrize(
    ("fields", "sentence"),
    [
        ({"library_name": "diffusers"}, "is not of an export of videogen_jax: name a folder"),
        (
            {"format_version": 2, "files": 0},
            r"has the format 2 of .*reads formats up to 1: install",
        ),
        ({"step": "seven"}, 'the field step|step should be a whole number, but is "seven"'),
        ({"layout": "dit"}, "layout is none of native, latte"),
        ({"dtype": "float8"}, "dtype is none of float32, bfloat16"),
        ({"metadata": {"vocabulary": 3}}, "vocabulary should be a list, but is 3"),
        ({"metadata": {"vocabulary": [], "latents": {}}}, r"latents\.autoencoder is missing"),
        ({"metadata": METADATA | {"latents": LATENTS | {"rate": 1}}}, "latents.rate is not known"),
        ({"config": {"model": {"windows": 3}}}, r"has the option 'model\.windows', which this ver"),
        ({"config": {"model": {"width": -1}}}, r"not valid: model\.width is -1: give a number at"),
        ({"config": {"vae": {"name": "wan3"}}}, r"not valid: Unknown vae\.name 'wan3'"),
        ({"config": {"model": 3}}, "model"),
    ],
)
def test_a_config_that_is_not_understood_is_refused(folder, fields, sentence):
    change(folder, **fields)
    refuse(folder, sentence)


@pytest.mark.parametrize("content", ["", "{", "[1]", "3", '{"a": 1}', "[" * 50_000, "\xff"])
def test_a_config_of_other_content_is_refused(folder, content):
    (folder / "config.json").write_text(content, encoding="latin-1")
    assert export_folder.is_export(folder)
    refuse(folder, r"config\.json is (damaged|not of an export)")


def test_a_missing_autoencoder_inside_is_named(folder):
    options = json.loads((folder / "config.json").read_text())["config"]
    options["vae"] |= {"name": "workdir", "path": "vae"}
    change(folder, config=options)
    refuse(folder, r"vae", FileNotFoundError)


def test_damage_anywhere_is_a_sentence_or_does_no_harm(written, shapes, tmp_path):
    """Bytes changed, removed and added at random: no other error than those, and never other parameters."""
    rng = random.Random(0)
    expected = randomise(shapes)
    refused = 0
    for _ in range(150):
        folder = shutil.copytree(written, tmp_path / "one", dirs_exist_ok=True)
        path = folder / rng.choice(["config.json", "model.safetensors"])
        data = bytearray(path.read_bytes())
        at = rng.randrange(len(data))
        edit = rng.choice(["flip", "cut", "insert", "delete"])
        if edit == "flip":
            data[at] ^= 1 << rng.randrange(8)
        elif edit == "cut":
            del data[at:]
        elif edit == "insert":
            data[at:at] = rng.choice([b'"', b"}", b"0", b"\0", b"-", b"9" * 30])
        else:
            del data[at : at + rng.randrange(1, 20)]
        path.write_bytes(data)
        try:
            params = export_folder.open_export(folder).read_params(shapes)
        except (ValueError, OSError) as error:
            refused += 1
            assert "\n" not in str(error).replace("\\n", ""), str(error)
            continue
        assert path.name == "config.json"
        jax.tree.map(np.testing.assert_array_equal, params, expected)
    assert refused > 75
