"""Rounding error of a bfloat16 model with its residual stream in bfloat16 or float32, against float32.

    python benchmarks/residual_dtype.py
    python benchmarks/residual_dtype.py --width=512 --seeds=3

Prints the relative root-mean-square error of the output, and of the gradient of the flow loss over all parameters.
The parameters are initial ones plus noise, so that gates and the last layer let everything through.
"""

import argparse

import jax
import jax.numpy as jnp
import numpy as np

from videogen_jax import config as configs
from videogen_jax.run import model as run_model

WAYS = (("bfloat16", "compute"), ("bfloat16", "float32"), ("float32", "compute"))


def measure(options: argparse.Namespace, seed: int) -> dict[tuple[str, str], list[np.ndarray]]:
    """Output and gradient, flat in float64, by (precision, residual type)."""
    results, params = {}, None
    for precision, residual in WAYS:
        config = configs.get_config(
            seed=seed,
            data=dict(frames=4, height=16, width=16),
            model=dict(
                width=options.width,
                depth=options.depth,
                num_heads=options.width // 64,
                residual_dtype=residual,
            ),
            text=dict(vocabulary_size=16, length=4),
            train=dict(precision=precision),
        ).unlock()
        model = run_model.make_model(config)
        if params is None:
            params = jax.jit(
                lambda model=model: perturb(model.init_params(), options.noise, seed)
            )()
        rng_x, rng_eps = jax.random.split(jax.random.key(seed))
        x0, eps = (jax.random.normal(key, (2, *model.video_shape)) for key in (rng_x, rng_eps))
        t = jnp.array([0.3, 0.8])
        x_t = x0 + t[:, None, None, None, None] * (eps - x0)
        condition = {"text": jnp.full((2, config.text.length), 5, jnp.int32)}

        def loss(params, model=model, x_t=x_t, t=t, target=eps - x0, condition=condition):
            output = model.apply(params, x_t, t, condition)
            return jnp.mean(jnp.square(output - target)), output

        grads, output = jax.jit(jax.grad(loss, has_aux=True))(params)
        results[precision, residual] = [
            np.concatenate([np.asarray(leaf, np.float64).ravel() for leaf in jax.tree.leaves(tree)])
            for tree in (output, grads)
        ]
    return results


def perturb(params: dict, noise: float, seed: int) -> dict:
    """Adds normal noise to all parameters."""
    leaves, tree = jax.tree.flatten(params)
    keys = jax.random.split(jax.random.key(seed + 1), len(leaves))
    leaves = [
        leaf + noise * jax.random.normal(key, leaf.shape)
        for leaf, key in zip(leaves, keys, strict=True)
    ]
    return jax.tree.unflatten(tree, leaves)


def main() -> None:
    """Prints the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--width", type=int, default=256)
    parser.add_argument("--depth", type=int, default=24)
    parser.add_argument("--noise", type=float, default=0.03)
    parser.add_argument("--seeds", type=int, default=1)
    options = parser.parse_args()
    errors = {}
    for seed in range(options.seeds):
        results = measure(options, seed)
        exact = results[WAYS[-1]]
        for way in WAYS[:-1]:
            pairs = zip(results[way], exact, strict=True)
            error = [np.linalg.norm(a - b) / np.linalg.norm(b) for a, b in pairs]
            errors.setdefault(way, []).append(error)
    print("| products | residual stream | output, % | gradient, % |\n| --- | --- | --- | --- |")
    for (precision, residual), found in errors.items():
        output, gradient = 100 * np.mean(found, axis=0)
        stream = precision if residual == "compute" else residual
        print(f"| {precision} | {stream} | {output:.2f} | {gradient:.2f} |")


if __name__ == "__main__":
    main()
