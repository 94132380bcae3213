"""The floor plan: imports point downward, and the model needs no TensorFlow."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent

# Top floor first. A module may import from its own floor and from those below it.
FLOORS = (
    "verbs",  # launch.py and the modules right under videogen_jax/
    "planning",
    "train",
    "evaluation",
    "generate",
    "run",
    "diffusion",
    "models",
    "packing",
    "data",
    "parallel",
)

# (importer, imported): why it may point upward.
EXCEPTIONS = {
    ("videogen_jax.config", "videogen_jax.command"): "when it is run to print the table of options",
}

# Folders that may import a package at all, and those that may do so when they are imported.
# TensorBoard's writers and readers import TensorFlow, hence late.
RESTRICTED = {
    "flax.linen": (
        {"models", "evaluation"},
        {"models", "evaluation"},
    ),  # I3D judges, it is no model
    "tensorflow": ({"packing", "data"}, {"packing", "data"}),
    "tensorflow_datasets": ({"packing", "data"}, {"packing", "data"}),
    "clu": ({"verbs", "train"}, set()),
    "tensorboard": ({"verbs", "train"}, set()),
    # PyTorch and transformers write captions, and nothing else.
    "torch": ({"packing"}, set()),
    "transformers": ({"packing"}, set()),
    "wandb": ({"verbs", "train"}, set()),
}

NEED_NO_TENSORFLOW = (
    "videogen_jax.data.atomic_files",
    "videogen_jax.data.clip_tokenizer",
    "videogen_jax.data.image_io",
    "videogen_jax.data.latent_records",
    "videogen_jax.data.records",
    "videogen_jax.data.video_io",
    "videogen_jax.data.vocabulary",
    "videogen_jax.generate.contact_sheet",
    "videogen_jax.generate.from_checkpoint",
    "videogen_jax.models.weights",
    "videogen_jax.run.autoencoder_model",
    "videogen_jax.run.ema_snapshots",
    "videogen_jax.train.autoencoder_run",
    "videogen_jax.train.diffusion_run",
)


def modules():
    """Every module of ours by name, with its path."""
    files = {"launch": ROOT / "launch.py"}
    for path in sorted((ROOT / "videogen_jax").rglob("*.py")):
        name = ".".join(path.relative_to(ROOT).with_suffix("").parts)
        files[name.removesuffix(".__init__")] = path
    return files


def floor(name):
    """The floor of a module; the options, and as a target `videogen_jax` with its version, lie below all."""
    parts = name.split(".")
    if name in (
        "videogen_jax",
        "videogen_jax.config",
        "videogen_jax.config_rules",
        "videogen_jax.paths",
        "videogen_jax.interrupts",
    ):
        return "ground"
    return parts[1] if len(parts) > 2 or parts[-1] in FLOORS else "verbs"


def imported(tree):
    """(module, at the top level?) of every import, those inside functions too.

    `from a import b` gives a and a.b, for b may be a module.
    """
    late = {
        id(node)
        for function in ast.walk(tree)
        if isinstance(function, ast.FunctionDef | ast.AsyncFunctionDef)
        for node in ast.walk(function)
    }
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            for alias in node.names:
                yield alias.name, id(node) not in late
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "imports are absolute here"
            yield node.module, id(node) not in late
            for alias in node.names:
                yield f"{node.module}.{alias.name}", id(node) not in late


@pytest.mark.parametrize("name", modules())
def test_imports_point_downward(name):
    if name == "videogen_jax":
        return  # the API: it imports what it hands out when that is called
    files = modules()
    order = [*FLOORS, "ground"]
    assert floor(name) in order, f"{name}: give its folder a floor in tests/test_imports.py"
    for target, _ in imported(ast.parse(files[name].read_text())):
        if target not in files or (name, target) in EXCEPTIONS:
            continue
        assert order.index(floor(name)) <= order.index(floor(target)), f"{name} imports {target}"


@pytest.mark.parametrize("name", modules())
def test_frameworks_stay_in_their_folders(name):
    for target, early in imported(ast.parse(modules()[name].read_text())):
        for package, (anywhere, at_the_top) in RESTRICTED.items():
            if target == package or target.startswith(f"{package}."):
                assert floor(name) in (at_the_top if early else anywhere), f"{name}: {target}"


def test_exceptions_name_modules_that_exist():
    files = modules()
    for (name, target), reason in EXCEPTIONS.items():
        found = [other for other, _ in imported(ast.parse(files[name].read_text()))]
        assert target in found and reason, f"{name} no longer imports {target}"


@pytest.mark.parametrize(
    "path", sorted((ROOT / "configs").glob("*.py")), ids=lambda path: path.stem
)
def test_configs_import_the_options_alone(path):
    found = {target for target, _ in imported(ast.parse(path.read_text()))}
    assert found == {"ml_collections", "videogen_jax", "videogen_jax.config"}


def test_model_step_and_sampler_import_without_tensorflow():
    """They run on a machine that has jax, flax, optax, orbax, einops and NumPy alone."""
    lines = [
        "import sys",
        "for name in ('tensorflow', 'tensorflow_datasets', 'clu', 'tensorboard'):",
        "    sys.modules[name] = None",
        *(f"import {name}" for name in NEED_NO_TENSORFLOW),
    ]
    result = subprocess.run(
        [sys.executable, "-c", "\n".join(lines)], cwd=ROOT, capture_output=True, text=True
    )
    assert result.returncode == 0, result.stderr[-2000:]


def test_model_step_and_sampler_need_few_packages():
    """benchmarks/gpu.py runs them on a machine that has jax, flax, optax, orbax, einops and NumPy alone."""
    needless = ("safetensors", "psutil", "PIL", "imageio", "av", "tokenizers", "huggingface_hub")
    lines = [
        "import sys",
        *(f"sys.modules[{name!r}] = None" for name in needless),
        "import videogen_jax.train.diffusion_run, videogen_jax.generate.run_sampler",
    ]
    result = subprocess.run(
        [sys.executable, "-c", "\n".join(lines)], cwd=ROOT, capture_output=True, text=True
    )
    assert result.returncode == 0, result.stderr[-2000:]


def loaded_after(*lines):
    """The names of all modules that are loaded after some lines of Python, in a process of their own."""
    code = "\n".join(["import sys", *lines, "print(*sys.modules)"])
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]
    return set(done.stdout.split())


def test_importing_the_package_imports_no_framework():
    assert not {"jax", "tensorflow", "numpy"} & loaded_after("import videogen_jax")


def test_sampling_imports_no_optimizer_and_nothing_of_training():
    loaded = loaded_after("import videogen_jax.generate.from_checkpoint")
    assert not {"optax", "tensorflow", "videogen_jax.train"} & loaded


def test_the_options_need_no_jax():
    assert "jax" not in loaded_after("import videogen_jax.config")
