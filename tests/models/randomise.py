"""Random parameters from shapes, without compiling `init`; initial ones are special, since gates are zero."""

import zlib

import jax
import jax.numpy as jnp
import numpy as np


def randomise(tree, scale=0.4):
    """Normal random values seeded by each leaf's path; around 1 for norm scales."""

    def draw(path, leaf):
        rng = np.random.default_rng(zlib.crc32(jax.tree_util.keystr(path).encode()))
        mean = 1.0 if path[-1].key == "scale" else 0.0
        return np.asarray(mean + scale * rng.standard_normal(leaf.shape), np.float32)

    return jax.tree_util.tree_map_with_path(draw, tree)


def random_params(module, *args, scale=0.4):
    """Random parameters of a Flax module with these arguments."""
    args = jax.tree.map(jnp.asarray, args)
    return randomise(jax.eval_shape(module.init, jax.random.key(0), *args)["params"], scale)


def apply(module, params, *args, **options):
    """The module's output, computed under jit."""
    return jax.jit(lambda params, *args: module.apply({"params": params}, *args, **options))(
        params, *args
    )
