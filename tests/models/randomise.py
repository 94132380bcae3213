"""Random parameters: fresh ones are special (gates are zero), and shapes cost no compilation."""

import zlib

import jax
import jax.numpy as jnp
import numpy as np


def randomise(tree, scale=0.4):
    """Normal numbers fixed by each leaf's path; around 1 where they are the scale of a norm."""

    def draw(path, leaf):
        rng = np.random.default_rng(zlib.crc32(jax.tree_util.keystr(path).encode()))
        mean = 1.0 if path[-1].key == "scale" else 0.0
        return np.asarray(mean + scale * rng.standard_normal(leaf.shape), np.float32)

    return jax.tree_util.tree_map_with_path(draw, tree)


def random_params(module, *args, scale=0.4):
    """Random parameters of a Flax module for these arguments."""
    args = jax.tree.map(jnp.asarray, args)
    return randomise(jax.eval_shape(module.init, jax.random.key(0), *args)["params"], scale)


def apply(module, params, *args, **options):
    """The module's output, compiled."""
    return jax.jit(lambda params, *args: module.apply({"params": params}, *args, **options))(
        params, *args
    )
