"""A train step compared with PyTorch: loss, gradients, AdamW and EMA of Latte's model on both sides.

    python benchmarks/train_step.py --preset=s
    python benchmarks/train_step.py --preset=xl --rounds=20

This project and the Latte of torch_latte.py, eager and with its blocks under torch.compile, take turns on the CPU or
one GPU. Without torch, only this project is measured.
"""

import numpy as np
import peers

LEARNING_RATE, B1, B2, WEIGHT_DECAY, EMA_DECAY = 1e-4, 0.9, 0.999, 0.01, 0.999
CLIP_NORM = 1.0


def run_ours(work: peers.Work) -> None:
    """Serves this project's step."""
    import jax
    import jax.numpy as jnp
    import optax

    from videogen_jax.diffusion.schedule import make_schedule
    from videogen_jax.run import ema
    from videogen_jax.run.state import init_state
    from videogen_jax.train import optimizers
    from videogen_jax.train.loss import make_clip_losses, make_loss
    from videogen_jax.train.step import make_train_step

    model, params = peers.make_ours(work)
    x, _, text = peers.example(work)
    schedule = make_schedule("linear")
    clip_losses = make_clip_losses(
        lambda params, x_t, t, condition: model.apply(
            {"params": params}, x_t, t, condition["text"]
        ),
        schedule,
        prediction="eps",
        weighting="uniform",
        gamma=5.0,
    )
    loss = make_loss(
        clip_losses,
        schedule,
        jax.tree.map(lambda rows: rows[0], text),
        time_distribution="uniform",
        time_mean=0.0,
        time_std=1.0,
        stratified=False,
        text_dropout=0.0,
    )
    rate = optax.constant_schedule(LEARNING_RATE)
    optimizer = optimizers.make_optimizer(
        "adamw", rate, b1=B1, b2=B2, weight_decay=WEIGHT_DECAY, clip_norm=CLIP_NORM
    )
    decays = ema.make_decays((EMA_DECAY,), ())
    step = make_train_step(loss, optimizer, rate, accumulation=1, ema_decays=decays)
    step = jax.jit(step, donate_argnums=0)
    precision = "bfloat16" if work.precision == "bfloat16" else "float32"
    state = init_state(params, optimizer.init, decays, jax.random.key(0), precision)
    del params
    batch = jax.device_put({"video": x, "text": text})

    def run() -> None:
        nonlocal state
        state, metrics = step(state, batch)
        assert jnp.isfinite(metrics["loss"])

    peers.serve(run, work)


def run_latte(work: peers.Work, compiled: bool) -> None:
    """Serves PyTorch's step."""
    import torch

    device = "cuda" if torch.cuda.is_available() else "cpu"
    model = peers.make_latte(work, compiled)
    params = list(model.parameters())
    averages = [param.detach().clone() for param in params]
    optimizer = torch.optim.AdamW(
        params, LEARNING_RATE, (B1, B2), weight_decay=WEIGHT_DECAY, fused=True
    )
    x, _, text = peers.example(work)
    x0, tokens = (torch.from_numpy(array).to(device) for array in (x, text["tokens"]))
    betas = torch.linspace(1e-4, 0.02, 1000, dtype=torch.float64)
    alpha = torch.cumprod(1 - betas, 0).sqrt().float().to(device)
    autocast = torch.autocast(device, torch.bfloat16, enabled=work.precision == "bfloat16")

    def run() -> None:
        t = torch.randint(0, 1000, (work.batch,), device=device)
        level = alpha[t].view(-1, 1, 1, 1, 1)
        eps = torch.randn_like(x0)
        x_t = level * x0 + (1 - level**2).sqrt() * eps
        with autocast:
            output = model(x_t, t, tokens)
        loss = (output.float() - eps).square().mean()
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(params, CLIP_NORM)
        optimizer.step()
        with torch.no_grad():
            torch._foreach_lerp_(averages, params, 1 - EMA_DECAY)
        assert np.isfinite(loss.item())

    peers.serve(run, work)


def main() -> None:
    """A worker serves its side; the parent process compares."""
    options = peers.make_parser(__doc__, rounds=5).parse_args()
    if options.side == "ours":
        run_ours(peers.read_work(options))
    elif options.side:
        run_latte(peers.read_work(options), options.side == "compiled")
    else:
        peers.compare(__file__, options, lambda work: 3 * work.batch * peers.forward_flops(work))


if __name__ == "__main__":
    main()
