"""What the model predicts, how far it is off, and how much that counts.

With x_t = alpha x0 + sigma eps and alpha^2 + sigma^2 = 1:

| prediction | target                | x0                                | eps                          |
| ---------- | --------------------- | --------------------------------- | ---------------------------- |
| eps        | eps                   | (x_t - sigma eps) / alpha         | eps                          |
| x0         | x0                    | x0                                | (x_t - alpha x0) / sigma     |
| v          | alpha eps - sigma x0  | alpha x_t - sigma v               | sigma x_t + alpha v          |

Arrays of times broadcast against video: `expand` gives them the missing axes.
"""

import jax
import jax.numpy as jnp

PREDICTIONS = ("eps", "x0", "v")
WEIGHTINGS = ("uniform", "min_snr", "velocity")


def expand(values: jax.Array, ndim: int) -> jax.Array:
    """Appends axes of size 1 to (B,) or (B, T) until it broadcasts against an array of `ndim` axes."""
    return values.reshape(values.shape + (1,) * (ndim - values.ndim))


def add_noise(x0: jax.Array, eps: jax.Array, alpha: jax.Array, sigma: jax.Array) -> jax.Array:
    """x_t = alpha x0 + sigma eps.

    Args:
      x0: (B, T, H, W, C) clean video in [-1, 1].
      eps: (B, T, H, W, C) standard normal noise.
      alpha: (B,) or (B, T).
      sigma: same shape as alpha.
    Returns:
      (B, T, H, W, C).
    Source: DDPM, arXiv:2006.11239, eq. 4.
    """
    return expand(alpha, x0.ndim) * x0 + expand(sigma, x0.ndim) * eps


def make_target(
    prediction: str, x0: jax.Array, eps: jax.Array, alpha: jax.Array, sigma: jax.Array
) -> jax.Array:
    """What the model should have said: eps, x0 or v = alpha eps - sigma x0.

    Args:
      prediction: one of PREDICTIONS.
      x0: (B, T, H, W, C).
      eps: same shape.
      alpha: (B,) or (B, T).
      sigma: same shape as alpha.
    Returns:
      Same shape as x0.
    Raises:
      ValueError: the prediction's name is unknown.
    Source: v from arXiv:2202.00512, appendix D.
    """
    _check_prediction(prediction)
    if prediction == "eps":
        return eps
    if prediction == "x0":
        return x0
    return expand(alpha, x0.ndim) * eps - expand(sigma, x0.ndim) * x0


def to_x0_and_eps(
    prediction: str, output: jax.Array, x_t: jax.Array, alpha: jax.Array, sigma: jax.Array
) -> tuple[jax.Array, jax.Array]:
    """Reads a model's output as clean video and noise (the table above).

    Args:
      prediction: one of PREDICTIONS, what `output` is.
      output: (B, T, H, W, C).
      x_t: same shape.
      alpha: (B,) or (B, T), or a scalar.
      sigma: same shape as alpha.
    Returns:
      (x0, eps), each of x_t's shape. With `eps`, alpha must not be 0; with `x0`, sigma must not be.
    Raises:
      ValueError: the prediction's name is unknown.
    """
    _check_prediction(prediction)
    alpha, sigma = expand(alpha, x_t.ndim), expand(sigma, x_t.ndim)
    if prediction == "eps":
        return (x_t - sigma * output) / alpha, output
    if prediction == "x0":
        return output, (x_t - alpha * output) / sigma
    return alpha * x_t - sigma * output, sigma * x_t + alpha * output


def loss_weight(
    weighting: str, prediction: str, alpha: jax.Array, sigma: jax.Array, gamma: float = 5.0
) -> jax.Array:
    """Weight of the squared error of `prediction` at each time.

    `uniform` is 1. `min_snr` is min(SNR, gamma) on x0, thus divided by SNR on eps and by SNR + 1 on v. `velocity` makes
    the loss that of v whatever is predicted: errors of v are those of x0 over sigma and those of eps over alpha;
    it stops at gamma so that the cleanest steps do not drown the rest.

    Args:
      weighting: one of WEIGHTINGS.
      prediction: one of PREDICTIONS.
      alpha: any shape.
      sigma: same shape.
      gamma: where the weights stop growing.
    Returns:
      Same shape as alpha, float32.
    Raises:
      ValueError: a name is unknown.
    Source: min-SNR, arXiv:2303.09556, section 3.4; velocity, arXiv:2202.00512, section 4.
    """
    _check_prediction(prediction)
    if weighting == "uniform":
        return jnp.ones_like(alpha)
    if weighting == "min_snr":
        snr = jnp.square(alpha) / jnp.square(sigma)
        on_x0 = jnp.minimum(snr, gamma)
        on_eps = jnp.minimum(1, gamma / snr)  # on_x0 / SNR, defined at SNR 0 too
        return {"x0": on_x0, "eps": on_eps, "v": on_x0 / (snr + 1)}[prediction]
    if weighting == "velocity":
        error_scale = {"x0": sigma, "eps": alpha, "v": jnp.ones_like(alpha)}[prediction]
        return jnp.minimum(1 / jnp.square(error_scale), gamma)
    raise ValueError(f"Unknown weighting {weighting!r}: choose one of {', '.join(WEIGHTINGS)}.")


def _check_prediction(prediction: str) -> None:
    if prediction not in PREDICTIONS:
        raise ValueError(
            f"Unknown prediction {prediction!r}: choose one of {', '.join(PREDICTIONS)}."
        )
