"""Files of published models: local paths, downloads from the hub, and errors."""

import builtins
import json
import re
import sys
import types

import numpy as np
import pytest
from safetensors.numpy import load_file

from tests.models.text_encoders import WIDTH, save_parts, write_t5
from videogen_jax.models import autoencoder as autoencoders
from videogen_jax.models import autoencoder_interface, t5_text
from videogen_jax.models.hub import check_model, check_upload, find_file, find_weights, is_name
from videogen_jax.models.weights import WeightsError, read_tensors

FILE = "model.safetensors"


@pytest.fixture
def hub(monkeypatch, tmp_path):
    """A fake hub with one file, which records requests."""
    monkeypatch.chdir(tmp_path)
    module = types.ModuleType("huggingface_hub")
    module.requests = []

    def hf_hub_download(repository, file):
        module.requests.append((repository, file))
        if repository != "owner/known":
            raise FileNotFoundError("We have no connection.\nTry later.")
        (tmp_path / "cache").write_text("weights")
        return str(tmp_path / "cache")

    module.hf_hub_download = hf_hub_download
    monkeypatch.setitem(sys.modules, "huggingface_hub", module)
    return module


@pytest.mark.parametrize(
    ("path", "file"),
    [
        ("owner/known", FILE),
        ("owner/known/vae", f"vae/{FILE}"),
        ("owner/known/deep/other.safetensors", "deep/other.safetensors"),
    ],
)
def test_hub_names_are_downloaded(hub, tmp_path, path, file):
    assert find_file(path, FILE) == tmp_path / "cache"
    assert hub.requests == [("owner/known", file)]


def test_local_files_are_not_downloaded(hub, tmp_path):
    folder = tmp_path / "owner" / "known"
    folder.mkdir(parents=True)
    (folder / FILE).touch()
    assert find_file("owner/known", FILE).samefile(folder / FILE)
    assert find_file(str(folder / FILE), "other.safetensors") == folder / FILE
    with pytest.raises(FileNotFoundError, match="owner/known has no config.json: give the fol"):
        find_file("owner/known", "config.json")
    assert not hub.requests


@pytest.fixture
def snapshot(hub, monkeypatch, tmp_path):
    """The folder vae/ of a repository on the fake hub, whose files are downloaded from there; its weights in parts."""
    source, cache = tmp_path / "source", tmp_path / "cache"
    write_t5(source)
    tensors = load_file(source / FILE)
    (source / FILE).unlink()
    save_parts(tensors, source, 2, autoencoder_interface.FILE)

    def download(repository, file):
        hub.requests.append(file)
        found = source / file.removeprefix("vae/")
        if repository != "owner/known" or not found.is_file():
            raise FileNotFoundError("404 Client Error")
        target = cache / file
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_bytes(found.read_bytes())
        return str(target)

    monkeypatch.setattr(hub, "hf_hub_download", download)
    return source, tensors


def test_weights_in_several_files_are_downloaded(hub, snapshot, tmp_path):
    """And nothing else; the autoencoders read theirs from there too."""
    _, tensors = snapshot
    file = autoencoder_interface.FILE
    found = find_weights("owner/known/vae", file)
    assert found == tmp_path / "cache" / "vae"
    stem = file.removesuffix(".safetensors")
    parts = [f"vae/{stem}-0000{i}-of-00002.safetensors" for i in (1, 2)]
    assert hub.requests == [f"vae/{file}", f"vae/{file}.index.json", *parts]
    read = read_tensors(found)
    assert set(read) == set(tensors)
    for name, tensor in tensors.items():
        np.testing.assert_array_equal(read[name], tensor)
    # These tensors are those of a text encoder: the error names them, so that they were read.
    with pytest.raises(WeightsError, match=r"cache/vae: .*unexpected \(encoder.block.0"):
        autoencoder_interface.load_params("sd", "owner/known/vae", file, {})


def test_shapes_of_text_encoders_are_read_from_the_cache_of_the_hub(hub, monkeypatch, tmp_path):
    write_t5(tmp_path / "cached" / "text_encoder")

    def look_up(repository, file, local_files_only=False):
        hub.requests.append((repository, file, local_files_only))
        if repository == "owner/cached":
            return str(tmp_path / "cached" / file)
        raise FileNotFoundError("not in the cache")

    monkeypatch.setattr(hub, "hf_hub_download", look_up)
    encoder = t5_text.make_text_encoder("owner/cached/text_encoder", fetch=False)
    assert encoder.width == WIDTH
    assert hub.requests == [("owner/cached", "text_encoder/config.json", True)]
    assert t5_text.make_text_encoder("owner/unknown", fetch=False).width == 4096
    assert t5_text.make_text_encoder("google/t5-v1_1-base", fetch=False).width == 768
    assert len(hub.requests) == 2  # published ones are not looked up


def test_what_lacks_of_weights_in_several_files_is_named(hub, snapshot):
    source, _ = snapshot
    file = autoencoder_interface.FILE
    with pytest.raises(FileNotFoundError, match=f"no local owner/unknown/vae/{file} and the down"):
        find_weights("owner/unknown/vae", file)
    part = sorted(source.glob("*-00002.safetensors"))[1]
    part.unlink()
    with pytest.raises(FileNotFoundError, match=f"put vae/{part.name} of the hub's owner/known at"):
        find_weights("owner/known/vae", file)
    (source / f"{file}.index.json").write_text(json.dumps({"weight_map": {"a": "../../a"}}))
    with pytest.raises(WeightsError, match="names '../../a', which is no file of its folder"):
        find_weights("owner/known/vae", file)


def test_the_error_for_an_unreachable_hub_says_where_to_put_the_file(hub, tmp_path):
    target = re.escape(str(tmp_path / "owner" / "unknown" / FILE))
    message = rf"no local owner/unknown/{FILE} .*\(FileNotFoundError: We have no connection\): "
    with pytest.raises(FileNotFoundError, match=message + rf"put .* at {target}, or give"):
        find_file("owner/unknown", FILE)
    with pytest.raises(FileNotFoundError, match="put config.json of the hub's owner/unknown at"):
        autoencoders.make_autoencoder("sd", "owner/unknown")
    # Following the advice works.
    (tmp_path / "owner" / "unknown").mkdir(parents=True)
    (tmp_path / "owner" / "unknown" / FILE).touch()
    assert find_file("owner/unknown", FILE).is_file()


def test_the_error_without_huggingface_hub_says_so(hub, monkeypatch):
    monkeypatch.delitem(sys.modules, "huggingface_hub")
    real = builtins.__import__

    def fail(name, *args, **options):
        if name == "huggingface_hub":
            raise ImportError(name)
        return real(name, *args, **options)

    monkeypatch.setattr(builtins, "__import__", fail)
    message = r"not installed \(pip install huggingface_hub\): put model.safetensors of"
    with pytest.raises(FileNotFoundError, match=message):
        find_file("owner/known", FILE)


@pytest.mark.parametrize(
    "path", ["/no/such/folder", "weights.safetensors", "owner/model.bin", "../owner/known"]
)
def test_paths_are_not_hub_names(hub, path):
    with pytest.raises(FileNotFoundError, match=f"There is no '{re.escape(path)}': give a"):
        find_file(path, FILE)
    assert not hub.requests


def test_the_real_package_offline(monkeypatch, tmp_path):
    pytest.importorskip("huggingface_hub")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(FileNotFoundError, match="put model.safetensors of the hub's owner/none"):
        find_file("owner/none", FILE)


def test_a_model_of_several_files_is_looked_for_before_it_is_loaded(hub, tmp_path):
    check_model("owner/known")
    assert hub.requests == [("owner/known", "config.json")]
    (tmp_path / "owner" / "local").mkdir(parents=True)
    with pytest.raises(FileNotFoundError, match="owner/local has no config.json: give the folder"):
        check_model("owner/local")
    (tmp_path / "owner" / "local" / "config.json").touch()
    check_model("owner/local")
    assert len(hub.requests) == 1
    target = re.escape(str(tmp_path / "owner" / "unknown"))
    message = (
        f"no local folder owner/unknown and the download failed .*connection.*into {target}, or"
    )
    with pytest.raises(FileNotFoundError, match=message):
        check_model("owner/unknown")


@pytest.mark.parametrize("path", ["model", "/missing", "a/b/c", "../up", "owner/local/config.json"])
def test_what_is_neither_a_folder_nor_a_name_is_no_model(hub, path):
    with pytest.raises(FileNotFoundError, match="There is no folder .*owner/repository"):
        check_model(path)
    assert not hub.requests


def test_a_name_on_the_hub_is_no_path_here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name in ("owner/model", "owner/model/vae", "o.w-ner/m_0.1"):
        assert is_name(name)
    for path in ("model", "/owner/model", "../owner/model", "owner/model.bin", "a b/c", "~/model"):
        assert not is_name(path)
    (tmp_path / "owner").mkdir()
    assert not is_name("owner/model")  # a misspelt folder
    (tmp_path / "link").symlink_to("gone")
    assert not is_name("link/model") and not is_name("link")


def test_an_upload_needs_a_name_and_a_token(monkeypatch):
    pytest.importorskip("huggingface_hub", reason="which knows the token")
    monkeypatch.setattr("huggingface_hub.get_token", lambda: "hf_x")
    check_upload("owner/model")
    for name in ("model", "owner/model/vae", "https://huggingface.co/owner/model", ""):
        with pytest.raises(ValueError, match="is no name on the Hugging Face hub: write it owner/"):
            check_upload(name)
    monkeypatch.setattr("huggingface_hub.get_token", lambda: None)
    with pytest.raises(ValueError, match="no token .*log in with `hf auth login`, or set HF_TOKEN"):
        check_upload("owner/model")
