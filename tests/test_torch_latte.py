"""The Latte of the benchmarks in PyTorch: the outputs and gradients of diffusers' class and of this project's model."""

import warnings

import jax
import numpy as np
import pytest

from tests.conftest import ROOT
from tests.models.randomise import randomise

WORK = {"width": 24, "depth": 4, "heads": 2, "frames": 3, "size": 8, "batch": 2}


@pytest.fixture
def peers(monkeypatch):
    pytest.importorskip("torch", reason="the model is written in PyTorch")
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    import peers

    return peers


def make_work(peers, **changes):
    options = {"patch": 2, "precision": "float32", "remat": "none"}
    return peers.Work(**WORK | options | changes)


def make_latte(peers, work, seed=0):
    """The module with random parameters, none of them zero."""
    import torch

    torch.manual_seed(seed)
    module = peers.make_latte(work, compiled=False).cpu()
    with torch.no_grad():
        for param in module.parameters():
            param.add_(torch.randn_like(param) * 0.1)
    return module


@pytest.mark.parametrize("size", [8, 128])
def test_it_computes_what_diffusers_class_does(peers, size):
    """128: beyond 64 latents, diffusers scales positions."""
    import torch

    with warnings.catch_warnings():  # of libraries that diffusers imports
        warnings.simplefilter("ignore")
        diffusers = pytest.importorskip("diffusers", reason="the reference")
    work = make_work(peers, size=size, patch=size // 4)
    module = make_latte(peers, work)
    theirs = diffusers.LatteTransformer3DModel(**peers.latte_config(work))
    theirs.load_state_dict(module.state_dict())
    x, t, text = peers.example(work)
    x, t, tokens = map(torch.from_numpy, (x, t, text["tokens"]))
    expected = theirs(x.movedim(-1, 1), t, tokens, return_dict=False)[0].movedim(1, -1)
    got = module(x, t, tokens)
    assert expected.std() > 0.1
    torch.testing.assert_close(got, expected, atol=1e-5, rtol=1e-5)
    for output in (expected, got):
        (output - x).square().mean().backward()
    others = dict(theirs.named_parameters())
    for name, param in module.named_parameters():
        torch.testing.assert_close(param.grad, others[name].grad, atol=1e-5, rtol=1e-4, msg=name)


def test_it_computes_what_this_projects_model_does(peers):
    from videogen_jax.models import latte_export

    work = make_work(peers)
    model, params = peers.make_ours(work)
    params = randomise(jax.eval_shape(lambda: params), 0.15)
    x, t, text = peers.example(work)
    expected = jax.jit(model.apply)({"params": params}, x, t, text)
    import torch

    module = make_latte(peers, work)
    tensors = latte_export.to_tensors(params, (1, work.patch, work.patch))
    module.load_state_dict({name: torch.tensor(array) for name, array in tensors.items()})
    with torch.no_grad():
        got = module(*map(torch.from_numpy, (x, t, text["tokens"])))
    assert np.std(expected) > 0.1
    np.testing.assert_allclose(got.numpy(), expected, atol=1e-4)


def test_recomputing_changes_no_gradient(peers):
    import torch

    grads = []
    for remat in ("none", "block"):
        work = make_work(peers, remat=remat)
        module = make_latte(peers, work)
        x, t, text = peers.example(work)
        module(*map(torch.from_numpy, (x, t, text["tokens"]))).square().mean().backward()
        grads.append([param.grad for param in module.parameters()])
    assert all(torch.equal(*pair) for pair in zip(*grads, strict=True))


def test_its_ddim_is_diffusers_ddim(peers):
    import torch

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        diffusers = pytest.importorskip("diffusers", reason="the reference")
    import sampler

    scheduler = diffusers.DDIMScheduler(1000, 1e-4, 0.02, "linear", clip_sample=False)
    scheduler.set_timesteps(sampler.STEPS)
    x = expected = torch.randn(2, 3, 4, 4, 1, generator=torch.manual_seed(0))

    def predict(x, t):
        return torch.tanh(x * 2) + t / 1000

    for t in scheduler.timesteps:
        expected = scheduler.step(predict(expected, t.float()), t, expected).prev_sample
    got = sampler.ddim(lambda x, t: predict(x, t[0]), x)
    torch.testing.assert_close(got, expected, atol=1e-4, rtol=1e-4)
