"""50 DDIM steps compared with PyTorch: one jitted program against a loop around diffusers' Latte.

    python benchmarks/sampler.py --preset=s
    python benchmarks/sampler.py --preset=xl

Both sides take turns with the same model and schedule, without guidance, on the CPU or one GPU. Without torch and
diffusers, only this project is measured.
"""

import numpy as np
import peers

STEPS = 50


def run_ours(work: peers.Work) -> None:
    """Serves this project's sampler."""
    import jax

    from videogen_jax.diffusion.schedule import make_schedule
    from videogen_jax.generate import sampler

    model, params = peers.make_ours(work)
    _, _, text = peers.example(work)
    schedule = make_schedule("linear")
    steps = sampler.make_steps(schedule, "eps", num_inference_steps=STEPS, spacing="leading")
    keys = jax.vmap(jax.random.key)(np.arange(work.batch, dtype=np.uint32))

    @jax.jit
    def generate(params, keys, text):
        def predict(x_t, t, condition):
            return model.apply({"params": params}, x_t, t, condition)

        x_t = sampler.init_noise(schedule, steps, keys, work.shape)
        return sampler.sample(
            predict, steps, x_t, keys, text, prediction="eps", sigma_data=1.0, clip_x0=False
        )

    text = jax.device_put(text)

    def run() -> None:
        assert np.isfinite(np.asarray(generate(params, keys, text))).all()

    peers.serve(run)


def run_latte(work: peers.Work, compiled: bool) -> None:
    """Serves PyTorch's loop."""
    import torch
    from diffusers import DDIMScheduler

    device = "cuda" if torch.cuda.is_available() else "cpu"
    model = peers.make_latte(work, compiled).eval()
    scheduler = DDIMScheduler(1000, 1e-4, 0.02, "linear", clip_sample=False)
    scheduler.set_timesteps(STEPS)
    _, _, text = peers.example(work)
    tokens = torch.from_numpy(text["tokens"]).to(device)
    autocast = torch.autocast(device, torch.bfloat16, enabled=work.precision == "bfloat16")

    @torch.no_grad()
    def run() -> None:
        x = torch.randn((work.batch, *work.shape), device=device)
        for t in scheduler.timesteps:
            with autocast:
                output = peers.call_latte(model, x, t.expand(work.batch).to(device), tokens)
            x = scheduler.step(output.float(), t, x).prev_sample
        assert torch.isfinite(x).all().item()

    peers.serve(run)


def main() -> None:
    """A worker serves its side; the parent process compares."""
    options = peers.make_parser(__doc__, rounds=3).parse_args()
    work = peers.read_work(options)
    if options.side == "ours":
        return run_ours(work)
    if options.side:
        return run_latte(work, options.side == "compiled")
    results = peers.compare(__file__, options)
    flops = STEPS * work.batch * peers.forward_flops(work)
    return peers.print_table(work, results, flops, STEPS * work.tokens)


if __name__ == "__main__":
    main()
