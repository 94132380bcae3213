"""50 DDIM steps compared with PyTorch: one jitted program against a loop around Latte.

    python benchmarks/sampler.py --preset=s
    python benchmarks/sampler.py --preset=xl --guidance=4

All sides take turns with the same model and schedule, on the CPU or one GPU; with guidance, both branches are computed
in one batch. Without torch, only this project is measured.
"""

import argparse
from typing import TYPE_CHECKING

import numpy as np
import peers

if TYPE_CHECKING:
    from collections.abc import Callable

    import torch

STEPS = 50


def run_ours(work: peers.Work, scale: float) -> None:
    """Serves this project's sampler."""
    import jax
    import jax.numpy as jnp

    from videogen_jax.diffusion.schedule import make_schedule
    from videogen_jax.generate import guidance, sampler

    model, params = peers.make_ours(work)
    _, _, text = peers.example(work)
    schedule = make_schedule("linear")
    steps = sampler.make_steps(schedule, "eps", num_inference_steps=STEPS, spacing="leading")
    keys = jax.vmap(jax.random.key)(np.arange(work.batch, dtype=np.uint32))

    @jax.jit
    def generate(params, keys, text):
        def predict(x_t, t, condition):
            return model.apply({"params": params}, x_t, t, condition["text"])

        # As many caption tokens as PyTorch's empty branch has.
        empty = {"tokens": jnp.zeros_like(text["tokens"][0]), "mask": text["mask"][0]}
        x_t = sampler.init_noise(schedule, steps, keys, work.shape)
        return sampler.sample(
            guidance.guide(predict, schedule, empty, scale),
            steps,
            x_t,
            keys,
            {"text": text},
            prediction="eps",
            sigma_data=1.0,
            clip_x0=False,
        )

    text = jax.device_put(text)

    def run() -> None:
        assert np.isfinite(np.asarray(generate(params, keys, text))).all()

    peers.serve(run, work)


def run_latte(work: peers.Work, scale: float, compiled: bool) -> None:
    """Serves PyTorch's loop."""
    import torch

    device = "cuda" if torch.cuda.is_available() else "cpu"
    model = peers.make_latte(work, compiled).eval()
    _, _, text = peers.example(work)
    tokens = torch.from_numpy(text["tokens"]).to(device)
    autocast = torch.autocast(device, torch.bfloat16, enabled=work.precision == "bfloat16")
    if scale != 1:
        tokens = torch.cat([tokens, torch.zeros_like(tokens)])

    def predict(x: "torch.Tensor", t: "torch.Tensor") -> "torch.Tensor":
        rows = x if scale == 1 else torch.cat([x, x])
        output = model(rows, t.expand(len(rows)), tokens).float()
        if scale == 1:
            return output
        conditional, empty = output.chunk(2)
        return empty + scale * (conditional - empty)

    @torch.no_grad()
    def run() -> None:
        x = torch.randn((work.batch, *work.shape), device=device)
        with autocast:
            x = ddim(predict, x)
        assert torch.isfinite(x).all().item()

    peers.serve(run, work)


def ddim(predict: "Callable", x: "torch.Tensor") -> "torch.Tensor":
    """DDIM over `STEPS` of 1,000 noise levels, spaced from the first on ("leading").

    Args:
      predict: (x, t (1,)) to the noise.
      x: noise.
    Returns:
      The sample.
    Source: arXiv:2010.02502, eq. 12.
    """
    import torch

    stride = 1000 // STEPS
    betas = torch.linspace(1e-4, 0.02, 1000, dtype=torch.float64)
    products = torch.cumprod(1 - betas, 0)
    alphas = [1.0, *products[::stride].sqrt().tolist()]
    sigmas = [0.0, *(1 - products[::stride]).sqrt().tolist()]
    times = torch.arange(0, 1000, stride, device=x.device)
    for i in range(STEPS, 0, -1):
        eps = predict(x, times[i - 1 : i])
        x0 = (x - sigmas[i] * eps) / alphas[i]
        x = alphas[i - 1] * x0 + sigmas[i - 1] * eps
    return x


def read_options() -> argparse.Namespace:
    """The flags."""
    parser = peers.make_parser(__doc__, rounds=3)
    text = "scale of classifier-free guidance; 1: one branch"
    parser.add_argument("--guidance", type=float, default=1.0, help=text)
    return parser.parse_args()


def main() -> None:
    """A worker serves its side; the parent process compares."""
    options = read_options()
    if options.side == "ours":
        run_ours(peers.read_work(options), options.guidance)
    elif options.side:
        run_latte(peers.read_work(options), options.guidance, options.side == "compiled")
    else:
        branches = 1 if options.guidance == 1 else 2
        calls = STEPS * branches
        peers.compare(
            __file__, options, lambda work: calls * work.batch * peers.forward_flops(work)
        )


if __name__ == "__main__":
    main()
