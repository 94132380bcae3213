"""Weights by name: where they are looked for, and what to do when they are not to be had."""

import builtins
import re
import sys
import types

import pytest

from videogen_jax.models import autoencoder as autoencoders
from videogen_jax.models.hub import find_file

FILE = "model.safetensors"


@pytest.fixture
def hub(monkeypatch, tmp_path):
    """A hub that has one file, and notes what it is asked for."""
    monkeypatch.chdir(tmp_path)
    module = types.ModuleType("huggingface_hub")
    module.asked = []

    def hf_hub_download(repository, file):
        module.asked.append((repository, file))
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
def test_names_are_fetched(hub, tmp_path, path, file):
    assert find_file(path, FILE) == tmp_path / "cache"
    assert hub.asked == [("owner/known", file)]


def test_what_is_here_is_not_fetched(hub, tmp_path):
    folder = tmp_path / "owner" / "known"
    folder.mkdir(parents=True)
    (folder / FILE).touch()
    assert find_file("owner/known", FILE).samefile(folder / FILE)
    assert find_file(str(folder / FILE), "other.safetensors") == folder / FILE
    with pytest.raises(FileNotFoundError, match="owner/known holds no config.json: name the fol"):
        find_file("owner/known", "config.json")
    assert not hub.asked


def test_an_unreachable_hub_says_what_to_place_where(hub, tmp_path):
    place = re.escape(str(tmp_path / "owner" / "unknown" / FILE))
    message = rf"no owner/unknown/{FILE} here .*\(FileNotFoundError: We have no connection\): "
    with pytest.raises(FileNotFoundError, match=message + rf"place .* at {place}, or name"):
        find_file("owner/unknown", FILE)
    with pytest.raises(FileNotFoundError, match="place config.json of the hub's owner/unknown at"):
        autoencoders.make_autoencoder("sd", "owner/unknown")
    # Following it helps.
    (tmp_path / "owner" / "unknown").mkdir(parents=True)
    (tmp_path / "owner" / "unknown" / FILE).touch()
    assert find_file("owner/unknown", FILE).is_file()


def test_a_hub_that_is_not_installed_says_so(hub, monkeypatch):
    monkeypatch.delitem(sys.modules, "huggingface_hub")
    real = builtins.__import__

    def refuse(name, *args, **options):
        if name == "huggingface_hub":
            raise ImportError(name)
        return real(name, *args, **options)

    monkeypatch.setattr(builtins, "__import__", refuse)
    message = r"not installed \(pip install huggingface_hub\): place model.safetensors of"
    with pytest.raises(FileNotFoundError, match=message):
        find_file("owner/known", FILE)


@pytest.mark.parametrize(
    "path", ["/no/such/folder", "weights.safetensors", "owner/model.bin", "../owner/known"]
)
def test_paths_are_no_names(hub, path):
    with pytest.raises(FileNotFoundError, match=f"There is no '{re.escape(path)}': name a"):
        find_file(path, FILE)
    assert not hub.asked


def test_the_real_package_offline(monkeypatch, tmp_path):
    pytest.importorskip("huggingface_hub")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(FileNotFoundError, match="place model.safetensors of the hub's owner/none"):
        find_file("owner/none", FILE)
