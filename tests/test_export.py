"""The verb `export`: a run exported and loaded makes the same videos to the bit, wherever the run has gone."""

import base64
import http.server
import json
import os
import re
import shutil
import subprocess
import sys
import threading

import jax
import ml_dtypes
import numpy as np
import pytest
from absl import flags

import videogen_jax
from tests.conftest import ROOT
from tests.data.packed import random_clips, write_records
from tests.generate.test_from_checkpoint import run_verb
from tests.models.autoencoders import random_sd
from tests.models.randomise import randomise
from tests.models.text_encoders import write_clip, write_t5
from tests.run.test_text_conditioning import write_sd
from tests.saved_runs import CAPTIONS, image_config, long_config, write_run
from tests.test_launch import ENVIRONMENT
from tests.tiny import make_run, tiny_config, tiny_vae_config
from videogen_jax import export
from videogen_jax.data import pipeline
from videogen_jax.data.latent_records import LatentInfo
from videogen_jax.generate import sample_folder
from videogen_jax.models import weights
from videogen_jax.models.weights import hash_params
from videogen_jax.run import caption_embedder, ema_snapshots, export_folder
from videogen_jax.run.text_conditioning import restore_texts
from videogen_jax.run.trained_autoencoder import read_autoencoder
from videogen_jax.train import init_params
from videogen_jax.train.run_kinds import DIFFUSION

pytestmark = pytest.mark.slow


def run_export(run, output, **options):
    """Runs the verb in this process; returns the folder."""
    values = flags.FlagValues()
    export.define_flags(values)
    given = {"output": output} | ({"workdir": run} if run else {}) | options
    words = []
    for name, value in given.items():
        words += [f"--{name}={one}" for one in (value if isinstance(value, list) else [value])]
    values(["export", *words])
    export.write_export(values, output)
    return output


def refuse(sentence, run, output, kind=ValueError, **options):
    with pytest.raises(kind, match=sentence) as error:
        run_export(run, output, **options)
    assert "\n" not in str(error.value)
    assert not [path for path in output.parent.iterdir() if "unfinished" in path.name]


def plain_config():
    config = tiny_config()
    config.mesh.fsdp = 1
    config.sample.num_inference_steps = 2
    return config


def latent_config(places, **text):
    """Text to video in the latents of a small Stable Diffusion autoencoder."""
    config = plain_config()
    config.vae.update({"name": "sd", "path": str(places / "sd")})
    config.data.update({"height": 16, "width": 16})
    config.model.patch_size = (1, 1, 1)
    config.sample.clip_x0 = False
    config.text.update(text)
    return config


def latte_config(places):
    config = latent_config(places, encoder="clip", path=str(places / "clip"), length=16)
    config.model.update({"positions": "latte", "modulation": "adaln_single", "qk_norm": False})
    config.model.update({"cross_attention": "pixart", "pooled_text": False, "mlp_ratio": 4})
    return config


def describe_latents(name, params, shape, stride=1):
    channels = range(shape[-1])
    return LatentInfo(
        *(name, hash_params(params), "float16", shape, False),
        mean=[0.1 * channel for channel in channels],
        deviation=[1 + 0.1 * channel for channel in channels],
        time_stride=stride,
    )


def describe_texts(config):
    embedder = caption_embedder.load_embedder(config.text, "float32")
    return caption_embedder.describe_embeddings(embedder, config.text, "float16")


@pytest.fixture(scope="module")
def plain(tmp_path_factory):
    """A run with two averages, and an export of it."""
    folder = tmp_path_factory.mktemp("plain")
    config = plain_config()
    config.ema.decays = (0.9, 0.99)
    run = write_run(folder / "run", config, averages=(0.3, 0.2))
    return run, run_export(run, folder / "export")


@pytest.fixture(scope="module")
def places(tmp_path_factory):
    """Weights of an autoencoder and a text encoder, as published ones."""
    folder = tmp_path_factory.mktemp("weights")
    write_sd(folder / "sd")
    write_clip(folder / "clip")
    return folder


@pytest.fixture(scope="module")
def latte(places, tmp_path_factory):
    """A run of Latte's architecture: latents, and captions embedded by CLIP."""
    config = latte_config(places)
    text = describe_texts(config)
    _, params = random_sd(places / "sd")
    latents = describe_latents("sd", params, [2, 2, 4])
    return write_run(tmp_path_factory.mktemp("latte") / "run", config, latents, text=text)


def test_the_same_videos_by_python_and_by_the_verb(plain, tmp_path):
    run, folder = plain
    assert {path.name for path in folder.iterdir()} == {
        *("README.md", "config.json", "model.safetensors")
    }
    options = {"prompts": CAPTIONS, "seed": 5}
    listings = [run_verb(one, tmp_path / one.name, **options) for one in (run, folder)]
    hashes = [[video["sha256"] for video in listing["videos"]] for listing in listings]
    assert hashes[0] == hashes[1] and len(set(hashes[0])) == 2
    assert listings[1]["weights"] == "decay_0.9" and listings[1]["step"] == 1
    model = videogen_jax.load(folder, step=1)
    videos = model(CAPTIONS, seeds=[5, 6])
    np.testing.assert_array_equal(videos, videogen_jax.load(run)(CAPTIONS, seeds=[5, 6]))
    assert videos.std() > 5


def test_known_frames_and_long_videos_are_the_same(tmp_path):
    picture = np.random.default_rng(0).integers(0, 256, (8, 8, 3), np.uint8)
    run = write_run(tmp_path / "image", image_config())
    models = [videogen_jax.load(run), videogen_jax.load(run_export(run, tmp_path / "one"))]
    videos = [model(CAPTIONS[:1], first_frame=picture) for model in models]
    np.testing.assert_array_equal(*videos)
    assert videos[0].std() > 5
    run = write_run(tmp_path / "long", long_config())
    models = [videogen_jax.load(run), videogen_jax.load(run_export(run, tmp_path / "two"))]
    videos = [np.concatenate(list(model.stream(CAPTIONS[:1], 6)), axis=1) for model in models]
    np.testing.assert_array_equal(*videos)
    assert videos[0].shape[1] == 6


def test_latents_embedded_captions_and_diffusers_layout(latte, tmp_path):
    expected = videogen_jax.load(latte)(CAPTIONS)
    folders = [tmp_path / "native", tmp_path / "diffusers"]
    for folder in folders:
        run_export(latte, folder, layout=folder.name)
        np.testing.assert_array_equal(videogen_jax.load(folder)(CAPTIONS), expected)
    assert expected.std() > 5
    assert not (folders[1] / "model.safetensors").exists()
    assert 'subfolder="transformer"' in (folders[1] / "README.md").read_text()
    # As published weights, they are those of the run too.
    run = make_run(videogen_jax.load(latte).model.config)
    tensors = folders[1] / "transformer"
    read = weights.load_weights(tensors, "latte", run.model.abstract_params)
    jax.tree.map(np.testing.assert_array_equal, read, randomise(run.abstract.params, 0.3))
    torch = pytest.importorskip("torch", reason="diffusers' classes are of PyTorch")
    import warnings

    with warnings.catch_warnings():  # of libraries that diffusers imports
        warnings.simplefilter("ignore")
        diffusers = pytest.importorskip("diffusers", reason="the reference")
    module = diffusers.LatteTransformer3DModel.from_pretrained(folders[1], subfolder="transformer")
    rng = np.random.default_rng(0)
    x = rng.standard_normal((2, *run.model.video_shape)).astype(np.float32)
    text = jax.tree.map(lambda row: np.stack([row] * 2), run.model.null_text)
    text["tokens"] = rng.standard_normal(text["tokens"].shape).astype(np.float16)
    text["mask"][:] = True
    t = np.array([300, 700])
    got = jax.jit(run.model.apply)(read, x, t, {"text": text})
    with torch.no_grad():
        video = torch.from_numpy(np.moveaxis(x, -1, 1).copy())
        tokens = torch.from_numpy(text["tokens"].astype(np.float32))
        expected = module(video, torch.from_numpy(t), tokens, return_dict=False)[0]
    np.testing.assert_allclose(got, expected.movedim(1, -1).numpy(), atol=1e-4)


def test_two_text_encoders_are_kept_and_their_places_told(places, tmp_path, caplog):
    """T5's tokens and CLIP's pooled vector: both embed prompts where the export is opened."""
    t5 = write_t5(tmp_path / "t5")
    config = latent_config(places, encoder="t5", path=t5, length=16)
    config.text.update({"pooled_encoder": "clip", "pooled_path": str(places / "clip")})
    config.model.update({"cross_attention": "gated", "pooled_text": True})
    _, params = random_sd(places / "sd")
    latents = describe_latents("sd", params, [2, 2, 4])
    run = write_run(tmp_path / "run", config, latents, text=describe_texts(config))
    with caplog.at_level("WARNING", logger="absl"):
        folder = run_export(run, tmp_path / "export")
    for flag in ("vae_path", "text_path", "pooled_path"):
        assert f"--{flag}=owner/name" in caplog.text
    expected = videogen_jax.load(run)(CAPTIONS)
    np.testing.assert_array_equal(videogen_jax.load(folder)(CAPTIONS), expected)
    assert expected.std() > 5
    text = (folder / "README.md").read_text()
    assert "embeddings of t5, t5; pooled vector of clip, clip" in text and str(tmp_path) not in text
    saved = json.loads((folder / "config.json").read_text())["metadata"]["text"]
    assert (saved["encoder"], saved["pooled_encoder"]) == ("t5", "clip")
    # A run starts from it where the encoders are the same, and from no other.
    model = make_run(config).model
    texts = restore_texts(config.text, {"text": describe_texts(config)._asdict()})
    started = init_params.start_from_run(model, str(folder), texts, "export")
    jax.tree.map(np.testing.assert_array_equal, started, randomise(model.abstract_params, 0.3))
    config.text.path = write_t5(tmp_path / "other", seed=1)
    texts = restore_texts(config.text, {"text": describe_texts(config)._asdict()})
    with pytest.raises(ValueError, match="embedded by another text encoder"):
        init_params.start_from_run(model, str(folder), texts, "export")

    there = {"vae_path": "owner/vae", "text_path": "owner/t5", "pooled_path": "owner/clip"}
    caplog.clear()
    folder = run_export(run, tmp_path / "named", **there)
    assert "path of this machine" not in caplog.text
    for path in ("README.md", "config.json"):
        text = (folder / path).read_text()
        assert str(tmp_path) not in text and str(places) not in text
    opened = export_folder.open_export(folder)
    assert (opened.config.text.path, opened.config.text.pooled_path) == ("owner/t5", "owner/clip")
    with pytest.raises(ValueError, match=r"model\.pooled_text is True and not False"):
        run_export(run, tmp_path / "latte", layout="diffusers")
    # Neither of these verbs needs the encoders' files where the run had them.
    config.text.path = t5
    texts = restore_texts(config.text, {"text": describe_texts(config)._asdict()})
    jax.tree.map(
        np.testing.assert_array_equal,
        init_params.start_from_run(make_run(config).model, str(folder), texts, "export"),
        started,
    )
    shutil.rmtree(t5)
    run_export(run, tmp_path / "again")


def test_an_autoencoder_trained_here_goes_along(tmp_path):
    vae = write_run(tmp_path / "vae", tiny_vae_config())
    params = read_autoencoder(str(vae), "float32").load()
    config = plain_config()
    config.vae.update({"name": "workdir", "path": str(vae)})
    config.data.update({"frames": 5, "height": 16, "width": 16})
    config.model.patch_size = (1, 1, 1)
    config.sample.clip_x0 = False
    shape = make_run(config).model.video_shape
    latents = describe_latents("workdir", params, list(shape[1:]), stride=2)
    run = write_run(tmp_path / "run", config, latents)
    expected = videogen_jax.load(run)(CAPTIONS)
    folder = run_export(run, tmp_path / "export", dtype="float32")
    alone = run_export(vae, tmp_path / "alone")
    assert str(tmp_path) not in "".join(path.read_text() for path in folder.rglob("*.json"))
    # The export of an export's run is the same: vae.path may name one.
    with config.unlocked():
        config.vae.path = str(alone)
    again = run_export(write_run(tmp_path / "run2", config, latents), tmp_path / "again")
    for gone in (vae, run, alone):
        shutil.rmtree(gone)
    np.testing.assert_array_equal(videogen_jax.load(folder)(CAPTIONS), expected)
    assert expected.std() > 5
    for inside in (folder / "vae", again / "vae"):
        assert hash_params(read_autoencoder(str(inside), "float32").load()) == latents.weights
    assert "`" not in (folder / "README.md").read_text().split("latents |")[1].split("\n")[0]
    with pytest.raises(ValueError, match="is the export of an autoencoder, which makes no videos"):
        videogen_jax.load(again / "vae")
    with pytest.raises(ValueError, match="is an export of a diffusion model, not of an autoenco"):
        read_autoencoder(str(folder), "float32")


def test_averages_by_name_and_by_width(plain, tmp_path):
    run, _ = plain
    named = run_export(run, tmp_path / "named", ema="decay_0.99")
    shapes = make_run(plain_config()).abstract.params
    for folder, scale in ((named, 0.2), (plain[1], 0.3)):
        read = export_folder.open_export(folder).read_params(shapes)
        jax.tree.map(np.testing.assert_array_equal, read, randomise(shapes, scale))
    assert "`decay_0.99`" in (named / "README.md").read_text()
    config = plain_config()
    config.ema.widths = (0.05, 0.1)
    workdir = write_run(tmp_path / "run", config, averages=(0.1, 0.2, 0.3))
    with ema_snapshots.open_writer(workdir) as writer:
        averages = {"width_0.05": randomise(shapes, 0.2), "width_0.1": randomise(shapes, 0.3)}
        ema_snapshots.save_snapshot(writer, 1, averages)
    folder = run_export(workdir, tmp_path / "width", ema_width=0.07)
    expected = videogen_jax.load(workdir, ema_width=0.07).params
    read = export_folder.open_export(folder).read_params(shapes)
    jax.tree.map(np.testing.assert_array_equal, read, jax.device_get(expected))
    assert export_folder.open_export(folder).weights == "width_0.07"


def test_what_lora_added_is_in_the_weights(tmp_path):
    config = plain_config()
    config.init.update({"path": "base", "layout": "run"})
    config.train.lora.update({"rank": 2, "alpha": 3.0, "layers": ("mlp/up",)})
    run = write_run(tmp_path / "run", config)
    folder = run_export(run, tmp_path / "export")
    assert "train.lora.rank = 2" in (folder / "README.md").read_text()
    loaded = export_folder.open_export(folder)
    assert loaded.config.train.lora.rank == 0
    shapes = make_run(plain_config()).abstract.params
    got = loaded.read_params(shapes)["blocks"]["temporal"]["mlp"]["up"]
    given = randomise(make_run(config).model.abstract_params, 0.3)["blocks"]["temporal"]["mlp"][
        "up"
    ]
    a, b, kernel = (np.float64(given[name]) for name in ("lora_a", "lora_b", "kernel"))
    np.testing.assert_allclose(got["kernel"], kernel + 3 / 2 * a @ b, atol=1e-5)
    assert np.abs(a @ b).max() > 0.1
    # The verb samples the run, whose updates are beside the kernels, as it does the export.
    listings = [
        run_verb(one, tmp_path / f"of_{one.name}", prompts=CAPTIONS) for one in (run, folder)
    ]
    hashes = [[video["sha256"] for video in listing["videos"]] for listing in listings]
    assert hashes[0] == hashes[1]


def test_bfloat16_is_rounded_and_says_so(plain, tmp_path):
    folder = run_export(plain[0], tmp_path / "half", dtype="bfloat16")
    shapes = make_run(plain_config()).abstract.params
    read = export_folder.open_export(folder).read_params(shapes)
    rounded = jax.tree.map(
        lambda leaf: leaf.astype(ml_dtypes.bfloat16).astype(np.float32), randomise(shapes, 0.3)
    )
    jax.tree.map(np.testing.assert_array_equal, read, rounded)
    assert "bfloat16 (rounded" in (folder / "README.md").read_text()


@pytest.mark.parametrize("build", [plain_config, image_config])
@pytest.mark.parametrize("captions", [CAPTIONS * 2, ["a cat moving moving left"] * 4])
def test_a_run_starts_from_an_export_as_from_the_run(plain, build, captions, tmp_path):
    """With new inputs and other words too: the same parameters to the bit, and so the same first loss."""
    data = write_records(tmp_path / "data", random_clips((4, 8, 8), 4), 4, 2, captions)
    texts = DIFFUSION.open_texts(build(), pipeline.open_data(str(data)))
    started = []
    for path, layout in zip(plain, ("run", "export"), strict=True):
        config = build()
        config.init.update({"path": str(path), "layout": layout})
        started.append(init_params.init_params(make_run(config).model, texts))
    jax.tree.map(np.testing.assert_array_equal, *started)
    config.model.width = 24
    with pytest.raises(ValueError, match=r"model\.width is 24, but 12 in init\.path=.*export"):
        init_params.init_params(make_run(config).model, texts)


def test_samples_and_scores_are_on_the_card(plain, tmp_path):
    run, _ = plain
    videos = tmp_path / "videos"
    run_verb(run, videos, prompts=CAPTIONS, format="gif")
    (tmp_path / "extra_clip.mp4").write_bytes(b"0")
    report = {"scores": [{"name": "FVD", "value": 123.4}], "protocol": {"frames": 4}}
    (videos / "evaluation.json").write_text(json.dumps(report))
    folder = run_export(
        run,
        tmp_path / "export",
        samples=[videos, tmp_path / "extra_clip.mp4"],
        report=videos,
        license="mit",
    )
    names = sorted(path.name for path in (folder / "samples").iterdir())
    assert names == ["00.gif", "01.gif", "02.mp4"]
    text = (folder / "README.md").read_text()
    assert f"- [{CAPTIONS[1]}](samples/01.gif)" in text and "- [extra clip](samples/02.mp4)" in text
    assert 'license: "mit"' in text and "| FVD | 123.4 |" in text


def test_a_folder_shows_one_video_of_each_prompt(tmp_path):
    prompts = ["a", "a", "b", "b", *"cdefghij"]
    videos = [
        {"file": f"{i:02d}.mp4", "prompt": prompt, "seed": i} for i, prompt in enumerate(prompts)
    ]
    for video in videos:
        (tmp_path / video["file"]).touch()
    assert [prompt for _, prompt in export.find_samples([str(tmp_path)])] == [
        path.stem for path in sorted(tmp_path.glob("*.mp4"))[: export.MOST_SAMPLES]
    ]
    (tmp_path / sample_folder.LISTING).write_text(json.dumps({"videos": videos}))
    found = export.find_samples([str(tmp_path)])
    assert [(path.name, prompt) for path, prompt in found[:3]] == [
        ("00.mp4", "a"),
        ("02.mp4", "b"),
        ("04.mp4", "c"),
    ]
    assert len(found) == export.MOST_SAMPLES


def test_flags_that_do_not_fit_are_refused_and_leave_nothing(plain, latte, tmp_path):
    run, folder = plain
    there = tmp_path / "there"
    there.mkdir()
    (there / "file").touch()
    out = tmp_path / "out"
    refuse("is there already and not an empty folder: name another", run, there)
    refuse("is there already and not an empty folder", run, there / "file")
    refuse("give one of the two", run, out, ema="decay_0.9", ema_width=0.1)
    refuse("is no identifier: write it as the hub does", run, out, license="MIT: free")
    refuse("no moving average 'decay_0.5'", run, out, ema="decay_0.5")
    refuse("There is no checkpoint of step 3", run, out, step=3)
    refuse("is an export, or a name on the hub, and not the folder of a run", folder, out)
    refuse(r"There is no .*config\.json", tmp_path / "nowhere", out, FileNotFoundError)
    refuse("There is no .*: name videos or a folder", run, out, FileNotFoundError, samples=[out])
    refuse("is no video: name files of .mp4", run, out, samples=[there / "file"])
    refuse("has no .mp4, .gif, .webm file", run, out, samples=[there])
    refuse("evaluation.json: run videogen_jax.evaluate", run, out, FileNotFoundError, report=there)
    refuse(
        r"model\.qk_norm is True and not False; .*text\.encoder is 'words'",
        run,
        out,
        layout="diffusers",
    )
    assert not out.exists()


def test_paths_of_this_machine_stay_here(latte, places, tmp_path, caplog):
    with caplog.at_level("WARNING", logger="absl"):
        run_export(latte, tmp_path / "one")
    assert "vae.path" in caplog.text and "--text_path=owner/name" in caplog.text
    folder = run_export(latte, tmp_path / "two", vae_path="owner/vae", text_path="owner/clip")
    opened = export_folder.open_export(folder)
    assert (opened.config.vae.path, opened.config.text.path) == ("owner/vae", "owner/clip")
    assert opened.metadata["text"]["path"] == "owner/clip"
    sentence = "--pooled_path is given, but this run reads no weights by text.pooled_path"
    refuse(sentence, latte, tmp_path / "three", pooled_path="owner/clip")


class Hub(http.server.BaseHTTPRequestHandler):
    """As much of the hub's protocol as an upload and a download of small files take, by its documentation."""

    files: dict[str, bytes] = {}
    requests: list[str] = []
    commit = "0" * 40

    def do_POST(self):
        body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        self.requests.append(f"POST {self.path} {self.headers.get('authorization')}")
        if self.path == "/api/repos/create":
            self.requests.append(body.decode())
            self.answer({"url": f"http://{self.headers['host']}/owner/balls", "id": "owner/balls"})
        elif "/preupload/" in self.path:
            files = json.loads(body)["files"]
            answer = [
                {"path": file["path"], "uploadMode": "regular", "shouldIgnore": False}
                for file in files
            ]
            self.answer({"files": answer})
        elif "/commit/" in self.path:
            for line in map(json.loads, body.splitlines()):
                if line["key"] == "file":
                    value = line["value"]
                    self.files[value["path"]] = base64.b64decode(value["content"])
            url = f"http://{self.headers['host']}/owner/balls/commit/{self.commit}"
            self.answer({"commitUrl": url, "commitOid": self.commit, "success": True})
        else:  # validation of the card's header
            self.answer({"errors": [], "warnings": []})

    def do_HEAD(self):
        self.do_GET()

    def do_GET(self):
        self.requests.append(f"{self.command} {self.path}")
        if "/resolve/" in self.path and self.path.startswith("/owner/balls/"):
            name = self.path.split("/", 5)[5]
            if name in self.files:
                headers = {"ETag": f'"{hash(self.files[name])}"', "X-Repo-Commit": self.commit}
                return self.answer(self.files[name], headers=headers)
        elif self.path.startswith("/api/"):
            return self.answer({"id": "owner/balls", "sha": self.commit, "siblings": []})
        self.answer({}, 404, {"X-Error-Code": "EntryNotFound"})

    def answer(self, content, status=200, headers=()):
        content = content if isinstance(content, bytes) else json.dumps(content).encode()
        self.send_response(status)
        for name, value in dict(headers, **{"Content-Length": len(content)}).items():
            self.send_header(name, str(value))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(content)

    def log_message(self, *_):
        pass


@pytest.fixture
def hub():
    Hub.files, Hub.requests = {}, []
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Hub)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield f"http://127.0.0.1:{server.server_address[1]}"
    server.shutdown()
    thread.join()
    server.server_close()


def run_python(folder, *words, **environment):
    environment = (
        ENVIRONMENT | {"HF_HOME": str(folder / "home"), "PYTHONPATH": str(ROOT)} | environment
    )
    return subprocess.run(
        [sys.executable, *words],
        cwd=folder,
        env=environment,
        capture_output=True,
        text=True,
        timeout=300,
    )


LOAD = """
import os, sys
import videogen_jax
model = videogen_jax.load("owner/balls")
assert "transformers" not in sys.modules and not os.path.exists("ran")
import numpy as np
np.save("params.npy", model.params["unembed"]["kernel"])
"""


def test_an_upload_is_opened_by_its_name(plain, hub, tmp_path):
    """By huggingface_hub itself, against a server that speaks the hub's protocol."""
    pytest.importorskip("huggingface_hub", reason="which uploads")
    run, _ = plain
    words = ["-m", "videogen_jax.export", "--output=export"]
    push = "--push_to_hub=owner/balls"
    # Exported where the hub cannot be reached: the folder is there, and is uploaded afterwards.
    nobody = {"HF_ENDPOINT": "http://127.0.0.1:9", "HF_TOKEN": "hf_x"}
    done = run_python(tmp_path, *words, f"--workdir={run}", push, "--private", **nobody)
    error = done.stderr.strip().splitlines()[-1]
    assert done.returncode == 1 and error.startswith("export: error: The upload of export to"), (
        error
    )
    assert "Traceback" not in done.stderr
    done = run_python(tmp_path, *words, push, "--private", HF_ENDPOINT=hub, HF_TOKEN="hf_x")
    assert done.returncode == 0, done.stderr[-2000:]
    assert "owner/balls" in done.stdout and "HTTP" not in done.stderr
    local = {path.name: path.read_bytes() for path in (tmp_path / "export").iterdir()}
    assert Hub.files == local
    assert re.search(r'"visibility": ?"private"|"private": ?true', "".join(Hub.requests))
    Hub.files["pytorch_model.bin"] = Hub.files["run.py"] = b"open('ran', 'w')"
    Hub.requests.clear()
    done = run_python(tmp_path, "-c", LOAD, HF_ENDPOINT=hub)
    assert done.returncode == 0, done.stderr[-2000:]
    shapes = make_run(plain_config()).abstract.params
    expected = randomise(shapes, 0.3)["unembed"]["kernel"]
    np.testing.assert_array_equal(np.load(tmp_path / "params.npy"), expected)
    asked = {one.rpartition("/")[2] for one in Hub.requests if "/resolve/" in one}
    assert asked == {"config.json", "model.safetensors"}


def test_a_name_that_the_hub_lacks_is_a_sentence(monkeypatch, tmp_path):
    pytest.importorskip("huggingface_hub", reason="which downloads")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(FileNotFoundError, match="put config.json of the hub's owner/none at"):
        videogen_jax.load("owner/none")
    os.mkdir("runs")  # a folder here: the name of a run that is misspelt
    with pytest.raises(FileNotFoundError, match=r"There is no runs/quickstrat/config\.json: name"):
        videogen_jax.load("runs/quickstrat")
