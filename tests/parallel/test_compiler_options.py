"""XLA's options: where they apply, and that a run and a plan compile with them."""

from types import SimpleNamespace

import numpy as np
import pytest

from tests.tiny import make_run, tiny_config
from videogen_jax.parallel import memory
from videogen_jax.parallel.compiler_options import choose_step_options
from videogen_jax.train import training_run


def mesh_of(platform, count):
    return SimpleNamespace(
        devices=np.array([SimpleNamespace(platform=platform)] * count), size=count
    )


def test_they_are_of_gpus_that_wait_for_copies():
    for platform in ("gpu", "cuda"):
        assert choose_step_options(mesh_of(platform, 1), offload=False) == {}
        for count, offload in ((1, True), (2, True), (2, False)):
            options = choose_step_options(mesh_of(platform, count), offload)
            assert options["xla_gpu_enable_latency_hiding_scheduler"] is True
            assert ("xla_disable_hlo_passes" in options) == offload
    assert choose_step_options(mesh_of("cpu", 2), offload=True) == {}


def test_a_run_and_a_plan_compile_with_the_options(monkeypatch):
    monkeypatch.setattr(training_run, "choose_step_options", lambda *_: {"xla_no_such_option": 1})
    run = make_run(tiny_config())
    for compile_step in (
        training_run.compile_step,
        lambda run: memory.measure(training_run.trace_step(run), run.mesh.size, cuda=False),
    ):
        with pytest.raises(Exception, match="xla_no_such_option"):
            compile_step(run)
