"""How every command starts: paths are local, and freed memory stays with the process, so its pages are mapped once."""

import errno
import logging
import os
import platform
import subprocess
import sys
from importlib import metadata
from pathlib import Path

import pytest
from absl import flags

from videogen_jax import command, paths
from videogen_jax import config as configs

FAULTS = """
import resource
from videogen_jax.command import keep_freed_memory
{call}
def fill():
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    bytearray(b"x") * 2**28
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before
fill()
print(fill())
"""


def count_faults(call: str) -> int:
    command = [sys.executable, "-c", FAULTS.format(call=call)]
    return int(subprocess.run(command, capture_output=True, check=True, text=True).stdout)


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="the C library is not glibc")
@pytest.mark.skipif(
    bool(metadata.entry_points(group="jax_plugins")), reason="JAX has a plug-in for other devices"
)
def test_freed_pages_stay_with_the_process():
    assert count_faults("") > 100  # at most 2 MiB a page
    assert count_faults("keep_freed_memory()") < 10


@pytest.mark.parametrize(
    "verb", ["pack", "merge", "encode", "caption", "sample", "evaluate", "launch"]
)
def test_remote_storage_is_refused_by_every_verb_before_anything_is_made(verb, tmp_path):
    flag = {"pack": "output", "merge": "output", "encode": "output", "caption": "model"}.get(
        verb, "workdir"
    )
    config = ["--config=quickstart"] if verb in ("encode", "launch") else []
    arguments = [f"--{flag}=gs://bucket/runs", "--input=x"][
        : 2 if verb in ("pack", "encode", "caption") else 1
    ]
    call = [sys.executable, "-m", f"videogen_jax.{verb}", *config, *arguments]
    environment = os.environ | {"PYTHONPATH": str(Path(__file__).parent.parent)}
    done = subprocess.run(call, capture_output=True, text=True, cwd=tmp_path, env=environment)
    assert done.returncode == 1
    assert done.stderr.splitlines()[-1] == (
        f"{verb}: error: --{flag} is 'gs://bucket/runs', but only local paths are read and written: copy the files to "
        "a local folder, or mount the gs:// storage as one."
    )
    assert list(tmp_path.iterdir()) == []


def read_flags(*arguments):
    values = flags.FlagValues()
    flags.DEFINE_string("workdir", None, "", flag_values=values)
    flags.DEFINE_multi_string("known", [], "", flag_values=values)
    values(["verb", *arguments])
    command.read_paths(values)
    return values


def test_home_is_expanded_in_the_flags_of_paths(monkeypatch):
    monkeypatch.setenv("HOME", "/home/me")
    values = read_flags(
        "--workdir=~/run", "--known=0:~/a.png", "--known=3-4:b.mp4", "--known=~/c.png"
    )
    assert values.workdir == "/home/me/run"
    assert values.known == ["0:/home/me/a.png", "3-4:b.mp4", "/home/me/c.png"]
    assert read_flags().workdir is None
    with pytest.raises(ValueError, match="--known is 's3://b/a.png'"):
        read_flags("--known=0:s3://b/a.png")
    with pytest.raises(ValueError, match="~nobody-of-that-name has no home folder"):
        read_flags("--workdir=~nobody-of-that-name/run")


def test_home_is_expanded_in_the_options_of_paths(monkeypatch):
    monkeypatch.setenv("HOME", "/home/me")
    hub = "stabilityai/sd-vae-ft-mse"
    config = configs.get_config(data={"path": "~/clips"}, vae={"path": hub})
    assert (config.data.path, config.vae.path) == ("/home/me/clips", hub)
    with pytest.raises(ValueError, match="data.path is 's3://bucket/clips', but only local paths"):
        configs.get_config(data={"path": "s3://bucket/clips"})


def test_every_option_of_a_path_is_known():
    named = {
        name
        for autoencoder in (False, True)
        for name in configs.options_of(autoencoder)
        if name.endswith((".path", "_path", ".reference"))
    }
    assert named == set(paths.OPTIONS)


VERB = """
import os, sys
{before}
from videogen_jax import command
from absl import flags
flags.DEFINE_string("workdir", None, "Folder.")
def body(arguments):
    {body}
command.start("verb", body)
"""


def run_verb(body: str, before: str = "import jax", flags=(), **variables: str):
    """The result of a verb in a process of its own."""
    command = [sys.executable, "-c", VERB.format(before=before, body=body), *flags]
    environment = os.environ | {"JAX_PLATFORMS": "cpu"} | variables
    return subprocess.run(command, capture_output=True, text=True, env=environment)


@pytest.mark.parametrize("before", ["", "import jax"])
def test_variables_that_change_numbers_are_told_and_ignored(before):
    body = "import jax; print(jax.numpy.arange(2.0).dtype, jax.random.key(0).dtype)"
    variables = {"JAX_ENABLE_X64": "1", "JAX_DEFAULT_PRNG_IMPL": "rbg"}
    result = run_verb(body, before, **variables)
    assert result.stdout == "float32 key<fry>\n"
    for name, value in variables.items():
        assert f"{name}={value} is ignored: it would change the numbers" in result.stderr
    assert "is ignored" not in run_verb(body, before, JAX_ENABLE_X64="0").stderr


@pytest.mark.parametrize("platforms", ["cuda", "gpu", "tpu"])
def test_a_platform_that_is_not_installed_is_a_sentence(platforms):
    if metadata.entry_points(group="jax_plugins"):
        pytest.skip("JAX has a plug-in for other devices")
    result = run_verb("import jax; jax.devices()", JAX_PLATFORMS=platforms)
    assert result.returncode == 1 and "Traceback" not in result.stderr
    assert f"verb: error: JAX_PLATFORMS={platforms} names devices" in result.stderr


def test_ctrl_c_is_a_sentence():
    body = "signal.raise_signal(signal.SIGINT); print('goes on')"
    # In a background job the signal is ignored, as a shell has it.
    before = "import signal; signal.signal(signal.SIGINT, signal.default_int_handler)"
    result = run_verb(body, before)
    assert (result.returncode, result.stdout) == (130, "")
    assert result.stderr == "verb: stopped by Ctrl-C.\n"


def test_ctrl_c_during_the_imports_is_a_sentence():
    body = "signal.signal(signal.SIGINT, signal.default_int_handler); signal.raise_signal(signal.SIGINT)"
    code = (
        f"import signal; from videogen_jax import interrupts; interrupts.install('sample'); {body}"
    )
    command = [sys.executable, "-c", code]
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    assert (result.returncode, result.stderr) == (130, "sample: stopped by Ctrl-C.\n")


def test_an_empty_folder_is_refused():
    result = run_verb("print('runs')", flags=["--workdir="])
    assert (result.returncode, result.stdout) == (1, "")
    assert "verb: error: --workdir is empty: name a folder." in result.stderr


@pytest.mark.parametrize(
    ("package", "level", "text", "shown"),
    [
        ("jax", logging.INFO, "Unable to initialize backend 'tpu': INTERNAL: no libtpu.so", False),
        ("jax", logging.WARNING, "Unable to initialize backend 'cuda': out of memory", True),
        ("orbax", logging.INFO, "Saving checkpoint to /x", False),
        ("orbax", logging.WARNING, "Missing metrics for step 5", False),
        ("orbax", logging.WARNING, "Metadata file does not exist: /x/_CHECKPOINT_METADATA", False),
        ("orbax", logging.WARNING, "the disk is slow", True),
        ("videogen_jax", logging.INFO, "Resuming from step 5 of /x.", True),
    ],
)
def test_messages_that_mean_nothing_at_normal_work_are_not_shown(package, level, text, shown):
    record = logging.LogRecord("x", level, f"/lib/{package}/a.py", 1, text, None, None)
    assert command.is_worth_showing(record) == shown


@pytest.mark.parametrize("gpu", [False, True])
def test_cuda_wheels_without_a_gpu_are_silent_but_not_beside_one(gpu, monkeypatch):
    """With a GPU the same traceback says why it cannot be used."""
    monkeypatch.setattr(Path, "glob", lambda self, pattern: iter(["nvidia0"] if gpu else []))
    text = (
        "Jax plugin configuration error: Exception when calling jax_plugins.xla_cuda12.initialize()"
    )
    record = logging.LogRecord("x", logging.ERROR, "/lib/jax/_src/x.py", 1, text, None, None)
    assert command.is_worth_showing(record) == gpu


def test_a_full_disk_is_a_sentence_and_other_errors_stay():
    with pytest.raises(ValueError, match="no space left for DATA .*call the same command again"):
        with command.explain_full_disk("DATA"):
            raise OSError(errno.ENOSPC, "No space left on device")
    with pytest.raises(PermissionError, match="DATA"):
        with command.explain_full_disk("DATA"):
            raise PermissionError(errno.EACCES, "Permission denied", "DATA")


def test_attention_that_cudnn_does_not_compute_is_one_sentence():
    """JAX's attention by cuDNN raises where its wheel is missing; errors of other files are left as they are."""

    def error_of(file):
        try:
            exec(compile("raise RuntimeError('cuDNN is not detected.')", file, "exec"), {})
        except RuntimeError as error:
            return error

    explained = command._explain_cudnn(error_of("jax/_src/cudnn/fused_attention_stablehlo.py"))
    assert str(explained).startswith(
        "Attention of cuDNN does not work here (cuDNN is not detected): "
    )
    assert "--config.memory.attention_kernel=xla" in str(explained)
    assert command._explain_cudnn(error_of("jax/_src/api.py")) is None
