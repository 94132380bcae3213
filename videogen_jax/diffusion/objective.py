"""Training objectives: prediction types, their regression targets, and loss weights.

With x_t = alpha x0 + sigma eps, every target is a x0 + b eps. With n^2 = alpha^2 s^2 + sigma^2 and s = sigma_data:

| prediction | a             | b           | x0 from the prediction F and x_t                     | source           |
| ---------- | ------------- | ----------- | ---------------------------------------------------- | ---------------- |
| eps        | 0             | 1           | (x_t - sigma F) / alpha                              | arXiv:2006.11239 |
| x0         | 1             | 0           | F                                                    |                  |
| v          | -sigma        | alpha       | (alpha x_t - sigma F) / (alpha^2 + sigma^2)          | arXiv:2202.00512 |
| flow       | -1            | 1           | (x_t - sigma F) / (alpha + sigma)                    | arXiv:2209.03003 |
| edm        | -sigma/(s n)  | alpha s / n | alpha s^2/n^2 x_t - sigma s/n F (c_skip and c_out)   | arXiv:2206.00364 |

Hence on any schedule x0 = (b x_t - sigma F) / d and eps = (alpha F - a x_t) / d, where d = alpha b - sigma a.
On a variance-preserving schedule with s = 1, edm equals v. Its sign follows Stable Video Diffusion (c_out < 0).

At fixed x_t an error of F is an error of x0 times -d / sigma, which converts weights between prediction types.
`expand` appends the axes that times need to broadcast against video.
"""

import jax
import jax.numpy as jnp

from videogen_jax.diffusion.schedule import Schedule

PREDICTIONS = ("eps", "x0", "v", "flow", "edm")
WEIGHTINGS = ("uniform", "min_snr", "velocity", "edm")


def expand(values: jax.Array, ndim: int) -> jax.Array:
    """Appends axes of size 1 to (B,) or (B, T), so that it broadcasts against an array of `ndim` axes."""
    return values.reshape(values.shape + (1,) * (ndim - values.ndim))


def add_noise(x0: jax.Array, eps: jax.Array, alpha: jax.Array, sigma: jax.Array) -> jax.Array:
    """Forward process: x_t = alpha x0 + sigma eps.

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


def coefficients(
    prediction: str, alpha: jax.Array, sigma: jax.Array, sigma_data: float = 1.0
) -> tuple[jax.Array, jax.Array]:
    """Coefficients a and b of the target (table at the top of this file).

    Args:
      prediction: one of PREDICTIONS.
      alpha: any shape.
      sigma: same shape.
      sigma_data: standard deviation of the data; used by edm only.
    Returns:
      (a, b), each of alpha's shape.
    Raises:
      ValueError: the prediction's name is unknown.
    """
    check_prediction(prediction)
    zero, one = jnp.zeros_like(alpha), jnp.ones_like(alpha)
    if prediction == "edm":
        norm = jnp.sqrt(alpha**2 * sigma_data**2 + sigma**2)
        return -sigma / (sigma_data * norm), alpha * sigma_data / norm
    return {"eps": (zero, one), "x0": (one, zero), "v": (-sigma, alpha), "flow": (-one, one)}[
        prediction
    ]


def make_target(
    prediction: str,
    x0: jax.Array,
    eps: jax.Array,
    alpha: jax.Array,
    sigma: jax.Array,
    sigma_data: float = 1.0,
) -> jax.Array:
    """Regression target of the model: a x0 + b eps (table at the top of this file).

    Args:
      prediction: one of PREDICTIONS.
      x0: (B, T, H, W, C).
      eps: same shape.
      alpha: (B,) or (B, T).
      sigma: same shape as alpha.
      sigma_data: standard deviation of the data; used by edm only.
    Returns:
      Same shape as x0.
    Raises:
      ValueError: the prediction's name is unknown.
    """
    a, b = coefficients(prediction, alpha, sigma, sigma_data)
    return expand(a, x0.ndim) * x0 + expand(b, x0.ndim) * eps


def to_x0_and_eps(
    prediction: str,
    output: jax.Array,
    x_t: jax.Array,
    alpha: jax.Array,
    sigma: jax.Array,
    sigma_data: float = 1.0,
) -> tuple[jax.Array, jax.Array]:
    """Converts a model's output to clean video and noise (table at the top of this file).

    Args:
      prediction: one of PREDICTIONS: the type of `output`.
      output: (B, T, H, W, C).
      x_t: same shape.
      alpha: (B,) or (B, T), or a scalar.
      sigma: same shape as alpha.
      sigma_data: standard deviation of the data; used by edm only.
    Returns:
      (x0, eps), each of x_t's shape. `eps` requires alpha != 0, `x0` requires sigma != 0.
    Raises:
      ValueError: the prediction's name is unknown.
    """
    a, b = coefficients(prediction, alpha, sigma, sigma_data)
    a, b, alpha, sigma = (expand(number, x_t.ndim) for number in (a, b, alpha, sigma))
    if prediction == "x0":  # d = -sigma cancels in x0
        return output, (x_t - alpha * output) / sigma
    determinant = alpha * b - sigma * a
    return (b * x_t - sigma * output) / determinant, (alpha * output - a * x_t) / determinant


def loss_weight(
    weighting: str,
    prediction: str,
    alpha: jax.Array,
    sigma: jax.Array,
    gamma: float = 5.0,
    sigma_data: float = 1.0,
) -> jax.Array:
    """Weight of the squared error of `prediction` at each time.

    | weighting | weight                                                                              |
    | --------- | ----------------------------------------------------------------------------------- |
    | uniform   | 1 for every prediction type                                                         |
    | min_snr   | min(SNR, gamma) on x0, thus divided by SNR on eps and by SNR + 1 on v               |
    | velocity  | 1 on v, thus 1 / sigma^2 on x0 and 1 / alpha^2 on eps, but at most gamma            |
    | edm       | n^2 / (sigma s)^2 on x0, thus 1 on edm                                              |

    `velocity` is clipped at gamma so that the cleanest steps do not dominate the loss.

    Args:
      weighting: one of WEIGHTINGS.
      prediction: one of PREDICTIONS.
      alpha: any shape.
      sigma: same shape.
      gamma: upper bound of min_snr and velocity.
      sigma_data: standard deviation of the data, s; used by edm only.
    Returns:
      Same shape as alpha, float32.
    Raises:
      ValueError: a name is unknown.
    Source: min-SNR, arXiv:2303.09556, section 3.4; velocity, arXiv:2202.00512, section 4; edm, arXiv:2206.00364,
      section 5.
    """
    a, b = coefficients(prediction, alpha, sigma, sigma_data)
    # (sigma / d)^2 converts a weight on x0 to one on F. The bounds 1e-12 turn 0 / 0 (eps at alpha = 0) into the limit 1
    determinant = jnp.maximum(jnp.square(alpha * b - sigma * a), 1e-12)
    if weighting == "uniform":
        return jnp.ones_like(alpha)
    if weighting == "min_snr":
        on_x0 = jnp.minimum(jnp.maximum(jnp.square(alpha), 1e-12), gamma * jnp.square(sigma))
        return on_x0 / determinant
    if weighting == "velocity":
        on_v = jnp.square(jnp.square(alpha) + jnp.square(sigma))
        return jnp.minimum(on_v / determinant, gamma)
    if weighting == "edm":
        norm = jnp.square(alpha * sigma_data) + jnp.square(sigma)
        return norm / (sigma_data**2 * determinant)
    raise ValueError(f"Unknown weighting {weighting!r}: choose one of {', '.join(WEIGHTINGS)}.")


def check_weighting(weighting: str, gamma: float) -> None:
    """Raises ValueError if the name is unknown or the bound gamma is not positive."""
    if weighting not in WEIGHTINGS:
        raise ValueError(f"Unknown weighting {weighting!r}: choose one of {', '.join(WEIGHTINGS)}.")
    if not gamma > 0:
        raise ValueError(f"objective.gamma is {gamma}: choose a number above 0.")


def check_prediction(prediction: str) -> None:
    """Raises ValueError if the name is unknown."""
    if prediction not in PREDICTIONS:
        raise ValueError(
            f"Unknown prediction {prediction!r}: choose one of {', '.join(PREDICTIONS)}."
        )


def check_objective(schedule: Schedule, prediction: str) -> None:
    """Rejects a prediction type that cannot be trained on the schedule.

    Raises:
      ValueError: the name is unknown, or eps is to be predicted on a schedule with zero terminal SNR.
    Source: arXiv:2305.08891, section 3.2.
    """
    check_prediction(prediction)
    if prediction == "eps" and schedule.ends_in_pure_noise:
        raise ValueError(
            f"The schedule {schedule.name} ends in pure noise, where eps does not determine the video: choose "
            "objective.prediction v, x0 or flow, or a schedule without zero terminal SNR, such as linear."
        )
