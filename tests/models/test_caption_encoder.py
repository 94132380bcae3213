"""Pooling of a caption's words, against NumPy in float64."""

import jax
import jax.numpy as jnp
import numpy as np

from tests.models.randomise import randomise
from videogen_jax.models.caption_encoder import IMPORTANCE_SCALE, CaptionEncoder

IDS = np.array([[3, 4, 5, 4, 0, 0], [6, 0, 0, 0, 0, 0], [5, 4, 3, 6, 7, 8]])


def encode(pooling, params=None, ids=IDS):
    encoder = CaptionEncoder(9, 8, 0, 2, pooling=pooling)
    ids = jnp.asarray(ids)
    params = encoder.init(jax.random.key(0), ids) if params is None else params
    return params, encoder.apply(params, ids)


def test_words_are_weighted_by_the_softmax_of_their_importance():
    params = randomise(jax.eval_shape(lambda: encode("weighted")[0]), 0.2)
    _, (_, mask, pooled) = encode("weighted", params)
    importance, table = (
        np.asarray(leaf, np.float64)
        for leaf in (params["params"]["importance"], params["params"]["words"]["embedding"])
    )
    assert importance.std() > 0.1
    for row, ids in enumerate(IDS):
        words = ids[ids > 0]
        weights = np.exp(IMPORTANCE_SCALE * importance[words])
        expected = len(words) * (weights[:, None] * table[words]).sum(0) / weights.sum()
        np.testing.assert_allclose(pooled[row], expected, atol=1e-5)
    np.testing.assert_array_equal(mask, IDS > 0)


def test_at_first_the_weighted_words_are_their_sum_and_the_tokens_those_of_the_mean():
    params, (tokens, _, pooled) = encode("weighted")
    assert params["params"]["importance"].shape == (9,)
    table = np.asarray(params["params"]["words"]["embedding"])
    assert 0.05 < table.std() < 0.2
    for row, ids in enumerate(IDS):
        np.testing.assert_allclose(pooled[row], table[ids[ids > 0]].sum(0), atol=1e-6)
    rest = {name: leaf for name, leaf in params["params"].items() if name != "importance"}
    _, (others, _, _) = encode("mean", {"params": rest})
    np.testing.assert_array_equal(tokens, others)


def test_a_word_has_as_large_a_gradient_in_a_long_caption():
    """The mean would leave it a sixth of that in a caption of six words."""

    def gradient(ids):
        params, _ = encode("weighted", ids=ids)
        tree = jax.grad(lambda params: encode("weighted", params, ids)[1][2].sum())(params)
        return np.asarray(tree["params"]["words"]["embedding"])[3]

    short, long = gradient(IDS[2:, 2:3]), gradient(IDS[2:])
    assert (np.abs(short) > 0).all()
    np.testing.assert_allclose(short, long, rtol=1e-5)


def test_an_importance_has_a_gradient_where_its_word_is_read():
    params, _ = encode("weighted")

    def loss(params):
        return jnp.sum(encode("weighted", params, IDS[:1])[1][2] ** 3)

    gradient = np.asarray(jax.grad(loss)(params)["params"]["importance"])
    assert (np.abs(gradient[[3, 4, 5]]) > 0).all()
    np.testing.assert_array_equal(gradient[[0, 1, 2, 6, 7, 8]], 0)
