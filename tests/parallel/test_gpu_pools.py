"""The pools of device and pinned memory, and the variables that set them, against JAX's own reading of these."""

import os
import subprocess
import sys

import pytest
from jaxlib import xla_client

from videogen_jax.parallel import gpu_pools
from videogen_jax.parallel.gpu_pools import GIB

BOTH = ("XLA_CLIENT_MEM_FRACTION", "XLA_PYTHON_CLIENT_MEM_FRACTION")
LIMIT = "XLA_PJRT_GPU_HOST_MEMORY_LIMIT_GB"


@pytest.fixture
def environment(monkeypatch):
    """The environment of this process without the variables of the pools."""
    for name in (*BOTH, LIMIT, "XLA_PYTHON_CLIENT_ALLOCATOR", "XLA_PYTHON_CLIENT_PREALLOCATE"):
        monkeypatch.setenv(name, "")  # what is set below is undone too
        monkeypatch.delenv(name)
    return monkeypatch


@pytest.mark.parametrize(
    ("given", "fraction"),
    [
        ({}, 0.95),
        ({BOTH[0]: "0.5"}, 0.5),
        ({BOTH[1]: "0.6"}, 0.6),  # the old name
        ({BOTH[0]: "0.7", BOTH[1]: "0.7"}, 0.7),
        ({BOTH[0]: "", BOTH[1]: "0.4"}, 0.4),
    ],
)
def test_jax_gets_the_users_fraction_or_ours(given, fraction, environment):
    for name, value in given.items():
        environment.setenv(name, value)
    gpu_pools.set_defaults()
    assert xla_client.generate_pjrt_gpu_plugin_options()["memory_fraction"] == fraction
    assert gpu_pools.read_fraction() == fraction


@pytest.mark.parametrize(
    ("given", "sentence"),
    [
        (
            {BOTH[0]: "0.9", BOTH[1]: "0.8"},
            "XLA_CLIENT_MEM_FRACTION=0.9 and XLA_PYTHON_.*=0.8 differ",
        ),
        ({BOTH[0]: "most"}, "XLA_CLIENT_MEM_FRACTION=most is no share"),
        ({BOTH[0]: "1.5"}, "XLA_CLIENT_MEM_FRACTION=1.5 is no share"),
        ({BOTH[0]: "nan"}, "XLA_CLIENT_MEM_FRACTION=nan is no share"),
        ({LIMIT: "64GB"}, f"{LIMIT}=64GB is no whole number of GiB"),
    ],
)
def test_what_is_no_setting_is_a_sentence(given, sentence):
    with pytest.raises(ValueError, match=sentence):
        gpu_pools.set_defaults(dict(given))


def test_pinned_memory_is_bounded_by_the_user_alone():
    ours, theirs, ahead = {}, {LIMIT: "30"}, {"XLA_PJRT_GPU_HOST_MEMORY_PREALLOCATE": "true"}
    for environment in (ours, theirs, ahead):
        gpu_pools.set_defaults(environment)
    assert gpu_pools.read_host_limit(ours) >= 1024 * GIB
    assert gpu_pools.read_host_limit(theirs) == 30 * GIB
    # All of a limit that is allocated ahead would be taken; XLA's own is left.
    assert gpu_pools.read_host_limit(ahead) == 64 * GIB


def test_a_pool_is_jaxs_share_or_what_cuda_leaves():
    memory = 24 * GIB
    assert gpu_pools.device_pool(memory, {}) == int(0.95 * memory)
    assert gpu_pools.device_pool(memory, {BOTH[0]: "0.75"}) == 18 * GIB
    assert gpu_pools.device_pool(memory, {BOTH[0]: "1"}) == memory - gpu_pools.RESERVE
    without = {"XLA_PYTHON_CLIENT_ALLOCATOR": "platform", BOTH[0]: "0.1"}
    assert gpu_pools.device_pool(memory, without) == memory - gpu_pools.RESERVE


def test_a_pinned_pool_doubles_until_its_buffer_fits():
    for used, pool in (
        (0, 0),
        (1, 1),
        (3, 4),
        (GIB, GIB),
        (GIB + 1, 2 * GIB),
        (11 * GIB, 16 * GIB),
    ):
        assert gpu_pools.pinned_pool(used) == pool


VERB = """
import os
from absl import flags
from videogen_jax import command
command.start("verb", lambda arguments: print(os.environ["XLA_CLIENT_MEM_FRACTION"]), error_code=3)
"""


@pytest.mark.parametrize(
    ("given", "code", "said"),
    [
        ({}, 0, "0.95\n"),
        ({BOTH[1]: "0.5"}, 0, "0.5\n"),
        ({BOTH[0]: "0.9", BOTH[1]: "0.8"}, 3, "verb: error: XLA_CLIENT_MEM_FRACTION=0.9 and"),
    ],
)
def test_every_verb_has_the_setting(given, code, said):
    """In a process of its own, as verbs set it before JAX makes its devices."""
    variables = {name: value for name, value in os.environ.items() if name not in BOTH}
    done = subprocess.run(
        [sys.executable, "-c", VERB], capture_output=True, text=True, env=variables | given
    )
    assert done.returncode == code
    assert said in done.stdout + done.stderr and len(done.stderr.splitlines()) <= 1
