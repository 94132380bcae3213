"""Whether programs fit the pools of a machine."""

import pytest

from tests.planning.plans import CPU, GIB, make_program
from videogen_jax.parallel import device_specs
from videogen_jax.planning import fit
from videogen_jax.planning.target import Target

CARD = device_specs.CARDS["a40"]._replace(memory=40 * GIB)
LIMIT = "XLA_PJRT_GPU_HOST_MEMORY_LIMIT_GB"


@pytest.fixture(autouse=True)
def environment(monkeypatch):
    monkeypatch.setenv("XLA_CLIENT_MEM_FRACTION", "0.75")  # 30 GiB
    monkeypatch.setenv(LIMIT, "1024")
    return monkeypatch


def test_a_program_shares_the_pool_with_what_stays_beside_it(environment):
    target = Target(CARD, [None] * 2)
    plan = {
        "train": make_program(peak=30 * GIB),
        "sample": make_program(peak=20 * GIB, resident=10 * GIB),
    }
    assert fit.fits(plan, target)
    plan["sample"] = make_program(peak=20 * GIB, resident=10 * GIB + 1)
    assert fit.find_tight(plan, target) == ["sample"] and not fit.fits(plan, target)
    environment.setenv("XLA_CLIENT_MEM_FRACTION", "0.8")
    assert fit.fits(plan, target)
    assert fit.fits({"train": make_program(peak=2**60)}, Target(CPU, [None]))


def test_pinned_memory_of_all_devices_is_the_hosts():
    plan = {"train": make_program(host=20 * GIB), "sample": make_program()}
    assert fit.fits(plan, Target(CARD, [None] * 2))  # of a machine that is not known
    assert fit.fits(plan, Target(CARD, [None] * 2, 40 * GIB))
    small = Target(CARD, [None] * 2, 39 * GIB)
    assert not fit.fits(plan, small)
    assert fit.describe_host(plan, small).startswith(
        "The GPUs pin 40.0 GiB together, and the host has 39.0: offload less (--config.memory.offload_activations"
    )


def test_a_limit_of_pinned_memory_is_of_each_device(environment):
    plan, target = {"train": make_program(host=20 * GIB)}, Target(CARD, [None] * 2, 64 * GIB)
    environment.setenv(LIMIT, "20")
    assert fit.fits(plan, target)
    environment.setenv(LIMIT, "19")
    assert not fit.fits(plan, target)
    assert f"more than {LIMIT}=19 allows: set it to 20, or unset it." in fit.describe_host(
        plan, target
    )


def test_pools_that_would_double_beyond_the_host_are_bounded():
    plan = {"train": make_program(host=20 * GIB)}  # 32 GiB of each pool
    assert fit.describe_pinned(plan, Target(CARD, [None] * 2, 64 * GIB)) == (
        "The host pins 40.0 GiB for 2 devices, of 64.0."
    )
    assert fit.describe_pinned(plan, Target(CARD, [None] * 2, 63 * GIB)).endswith(
        f"set {LIMIT}=20."
    )
    assert "give that as --host_memory" in fit.describe_pinned(plan, Target(CARD, [None] * 2))
    assert fit.describe_pinned({"train": make_program()}, Target(CARD, [None] * 2)) == ""
