"""From noise to video: DDIM and DDPM as one `lax.scan`.

Each step reads the model's output as (x0, eps) and goes to the next noise level:

    x_s = alpha_s x0 + sqrt(sigma_s^2 - tau^2) eps + tau z,
    tau = eta sigma_s / sigma_t sqrt(1 - alpha_t^2 / alpha_s^2)

eta = 0 is DDIM; eta = 1 is DDPM's ancestral step (posterior mean and variance) on the steps that are kept.

Source: DDIM, arXiv:2010.02502, eq. 12 and 16.
"""

import jax
import jax.numpy as jnp
import numpy as np

from videogen_jax.diffusion import objective
from videogen_jax.diffusion.schedule import Schedule
from videogen_jax.generate.guidance import Predict

SAMPLERS = ("ddim", "ddpm")
SPACINGS = ("leading", "trailing", "linspace")


def make_timesteps(num_steps: int, num_inference_steps: int, spacing: str) -> np.ndarray:
    """Chooses which steps of the clock to visit, noisiest first.

    `trailing` starts at the very last step, which a schedule of zero terminal SNR needs; `leading` ends at step 0;
    `linspace` does both.

    Args:
      num_steps: steps of the schedule's clock.
      num_inference_steps: how many of them to visit.
      spacing: one of SPACINGS.
    Returns:
      (num_inference_steps,) int32, strictly falling.
    Raises:
      ValueError: the spacing is unknown, or more steps are asked for than there are.
    Source: arXiv:2305.08891, table 2.
    """
    if not 1 <= num_inference_steps <= num_steps:
        raise ValueError(
            f"{num_inference_steps} inference steps are asked for, but the schedule has {num_steps}: "
            f"choose between 1 and {num_steps}."
        )
    if spacing == "leading":
        steps = np.arange(num_inference_steps) * (num_steps // num_inference_steps)
    elif spacing == "trailing":
        steps = np.round(np.arange(num_steps, 0, -num_steps / num_inference_steps))[::-1] - 1
    elif spacing == "linspace":
        steps = np.round(np.linspace(0, num_steps - 1, num_inference_steps))
    else:
        raise ValueError(f"Unknown spacing {spacing!r}: choose one of {', '.join(SPACINGS)}.")
    # Rounding can leave one step too many when the division is not exact.
    return steps[-num_inference_steps:][::-1].astype(np.int32)


def sample(
    predict: Predict,
    schedule: Schedule,
    text: jax.Array,
    keys: jax.Array,
    *,
    shape: tuple[int, int, int, int],
    prediction: str,
    sampler: str = "ddim",
    num_inference_steps: int = 50,
    spacing: str = "trailing",
    eta: float | None = None,
    clip_x0: bool = True,
) -> jax.Array:
    """Generates one video for each caption; meant to be jitted.

    Every video draws from its own key, so that it does not depend on its neighbours in the batch.

    Args:
      predict: (x_t, t, text) to the model's output, guided or not.
      schedule: noise schedule the model was trained with.
      text: (B, L) int32 caption ids.
      keys: (B,) typed random keys.
      shape: (T, H, W, C) of one video.
      prediction: what the model predicts, one of `objective.PREDICTIONS`.
      sampler: one of SAMPLERS.
      num_inference_steps: calls of the model.
      spacing: one of SPACINGS.
      eta: 0 (no fresh noise) to 1; by default 0 for ddim and 1 for ddpm, which takes no other.
      clip_x0: clamp x0 to [-1, 1] at every step, right for pixels.
    Returns:
      (B, T, H, W, C) float32, in [-1, 1] if clip_x0.
    Raises:
      ValueError: a name is unknown or the combination has no meaning.
    Source: this file's head.
    """
    eta = _check(sampler, eta)
    steps = make_timesteps(schedule.num_steps, num_inference_steps, spacing)
    if prediction == "eps" and jax.device_get(schedule.alpha)[steps[0]] == 0:
        raise ValueError(
            f"eps says nothing of the video at step {steps[0]}, which is pure noise: "
            "choose spacing leading, or a model that predicts x0 or v."
        )
    following = np.append(steps[1:], -1)  # -1: clean
    draw = jax.vmap(
        lambda key, step: jax.random.normal(jax.random.fold_in(key, step), shape), (0, None)
    )

    def step(x_t: jax.Array, times: tuple[jax.Array, jax.Array]) -> tuple[jax.Array, None]:
        t, s = times
        alpha_t, sigma_t = schedule.alpha[t], schedule.sigma[t]
        alpha_s = jnp.where(s < 0, 1.0, schedule.alpha[s])
        sigma_s = jnp.where(s < 0, 0.0, schedule.sigma[s])
        output = predict(x_t, jnp.full(x_t.shape[:1], t), text)
        x0, eps = objective.to_x0_and_eps(prediction, output, x_t, alpha_t, sigma_t)
        if clip_x0:
            x0 = jnp.clip(x0, -1, 1)
            eps = (x_t - alpha_t * x0) / sigma_t
        # Written with sigma^2 = 1 - alpha^2, this variance keeps its digits where alpha_s is near alpha_t.
        tau = eta * sigma_s / sigma_t * jnp.sqrt(jnp.maximum(1 - (alpha_t / alpha_s) ** 2, 0))
        x_s = alpha_s * x0 + jnp.sqrt(jnp.maximum(sigma_s**2 - tau**2, 0)) * eps
        if eta > 0:
            x_s = x_s + tau * draw(keys, t)  # (B, T, H, W, C)
        return x_s, None

    x_t = draw(keys, schedule.num_steps)  # a step that no t uses
    return jax.lax.scan(step, x_t, (jnp.asarray(steps), jnp.asarray(following)))[0]


def _check(sampler: str, eta: float | None) -> float:
    if sampler not in SAMPLERS:
        raise ValueError(f"Unknown sampler {sampler!r}: choose one of {', '.join(SAMPLERS)}.")
    if sampler == "ddpm" and eta not in (None, 1):
        raise ValueError(f"eta is {eta}, but ddpm always has 1: leave it out, or choose ddim.")
    eta = float(sampler == "ddpm") if eta is None else eta
    if not 0 <= eta <= 1:
        raise ValueError(f"eta is {eta}: choose a value between 0 and 1.")
    return eta
