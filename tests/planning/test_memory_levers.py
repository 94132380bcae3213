"""Levers are pulled until a config fits."""

import jax
import pytest

from tests.planning.plans import CPU, small_config
from videogen_jax.parallel import gpu_pools
from videogen_jax.planning import fit, levers, programs, tables
from videogen_jax.planning.target import Target

pytestmark = pytest.mark.slow


@pytest.fixture(autouse=True)
def _whole_cards(monkeypatch):
    monkeypatch.setenv("XLA_CLIENT_MEM_FRACTION", "1")


def test_levers_are_pulled_until_it_fits():
    """A card that lacks a little: the first lever is enough."""
    config, devices = small_config(), jax.devices("cpu")[:2]
    plan = programs.make_plan(config, CPU, devices)
    needed = plan["train"].total + gpu_pools.RESERVE
    target = Target(CPU._replace(memory=needed), devices)
    assert fit.fits(plan, target)
    target = Target(CPU._replace(memory=needed - 1), devices)
    assert not fit.fits(plan, target)
    overrides, better = levers.try_levers(config, target, plan)
    assert overrides == {"memory.remat": "block"}
    assert fit.fits(better, target) and list(better) == list(plan)
    verdict = tables.to_verdict(target, plan, overrides, better)
    assert "train would not. It does with --config.memory.remat='block'" in verdict
    assert tables.to_json(target, plan, overrides, better)["fits_with_overrides"] is True


def test_a_config_beyond_all_levers_says_so():
    few = {"batch_size": 2, "model.depth": 2, "model.cross_attention": "none"}  # each is compiled
    config, devices = small_config(**few), jax.devices("cpu")[:2]
    target = Target(CPU._replace(memory=1), devices)
    plan = programs.make_plan(config, CPU, devices)
    overrides, better = levers.try_levers(config, target, plan)
    assert list(overrides)[-1] == "train.accumulation" and overrides["memory.pieces"] == 8
    assert "Nor does it with" in tables.to_verdict(target, plan, overrides, better)
