"""Validation while a run trains."""

import types

import jax
import numpy as np

from videogen_jax.parallel.mesh import make_mesh
from videogen_jax.run import state
from videogen_jax.train import validation


def test_the_random_numbers_of_validation_are_those_of_no_other_purpose(monkeypatch):
    """Neither the key of the parameters, nor that of the training steps, nor that of one of its steps."""
    config = types.SimpleNamespace(
        seed=5, batch_size=1, data=types.SimpleNamespace(frames=1), train=types.SimpleNamespace()
    )
    config.train.validation_batches = 3
    run = types.SimpleNamespace(config=config, mesh=make_mesh())
    kind = types.SimpleNamespace(
        make_measure=lambda run: lambda ema, batch, key: {"key": jax.random.key_data(key)}
    )
    data = types.SimpleNamespace(latents=True)
    texts = types.SimpleNamespace(stored_length=0)
    monkeypatch.setattr(validation.pipeline, "make_validation_clips", lambda *_, **__: range(3))
    monkeypatch.setattr(validation, "put_clips", lambda *_: 0)
    seen = []
    monkeypatch.setattr(
        validation.jax, "jit", lambda function, **_: lambda *args: note(function(*args))
    )

    def note(found):
        if isinstance(found, dict):
            seen.append(tuple(np.asarray(found["key"]).tolist()))
        return found

    validation.make_bucket_measure(kind, run, texts, data)(None)
    base = jax.random.key(config.seed)
    others = [jax.random.fold_in(base, purpose) for purpose in (state.PARAMETERS, state.TRAINING)]
    others += [jax.random.fold_in(others[1], step) for step in range(10)]
    others = {tuple(np.asarray(jax.random.key_data(key)).tolist()) for key in [base, *others]}
    assert len(set(seen)) == 3 and not others & set(seen)
