"""How videos are sampled: the options of `config.sample` that are the sampler's, typed and checked."""

import dataclasses
import difflib
from typing import Any

from videogen_jax import config as configs
from videogen_jax.diffusion.schedule import Schedule
from videogen_jax.generate import guidance
from videogen_jax.generate.sampler import Predict, Steps, make_steps


def _default(name: str) -> Any:
    return configs.options_of(autoencoder=False)[f"sample.{name}"].default


@dataclasses.dataclass(frozen=True)
class SamplerSettings:
    """Sampler, its steps and guidance, as docs/config.md has them under `sample`; a run's are `model.sampling`.

    Raises:
      ValueError: a value is out of range or no choice; the sentence names it.
    """

    sampler: str = _default("sampler")
    num_inference_steps: int = _default("num_inference_steps")
    spacing: str = _default("spacing")
    eta: float | None = None  # of ddim, see `sampler.make_steps`
    guidance_scale: float = _default("guidance_scale")
    first_frame_guidance_scale: float | None = _default("first_frame_guidance_scale")
    known_guidance_scale: float | None = _default("known_guidance_scale")
    guidance_rescale: float = _default("guidance_rescale")
    guidance_interval: tuple[float, ...] = _default("guidance_interval")
    clip_x0: bool = _default("clip_x0")
    batch_size: int = _default("batch_size")

    def __post_init__(self):
        for field in dataclasses.fields(self):
            if field.name != "eta":
                value = configs.check_option(f"sample.{field.name}", getattr(self, field.name))
                object.__setattr__(self, field.name, value)
        guidance.check_guidance(*self.scales, self.guidance_rescale, self.guidance_interval)

    @property
    def scales(self) -> tuple[float, float | None, float | None]:
        """Guidance scales as `guidance.guide` takes them: of the caption, its first frame, known frames."""
        return self.guidance_scale, self.first_frame_guidance_scale, self.known_guidance_scale

    def make_steps(self, schedule: Schedule, prediction: str) -> Steps:
        """The sampler's table of steps, see `sampler.make_steps`."""
        return make_steps(
            schedule,
            prediction,
            sampler=self.sampler,
            num_inference_steps=self.num_inference_steps,
            spacing=self.spacing,
            eta=self.eta,
        )

    def guide(self, predict: Predict, schedule: Schedule, null_text: Any) -> Predict:
        """The guided model, see `guidance.guide`."""
        return guidance.guide(
            predict,
            schedule,
            null_text,
            self.guidance_scale,
            first_frame_scale=self.first_frame_guidance_scale,
            known_scale=self.known_guidance_scale,
            rescale=self.guidance_rescale,
            interval=self.guidance_interval,
        )

    def replace(self, **changes: Any) -> "SamplerSettings":
        """These settings with some changed.

        Where caption and known frames have one guidance scale, a new scale is that of both.

        Raises:
          ValueError: a name is no setting, or a value does not do.
        """
        names = [field.name for field in dataclasses.fields(self)]
        for name in changes:
            if name not in names:
                near = difflib.get_close_matches(name, names, n=1, cutoff=0.5)
                hint = f"did you mean {near[0]!r}?" if near else f"choose among {', '.join(names)}."
                raise ValueError(f"There is no sampler setting {name!r}: {hint}")
        if self.known_guidance_scale == self.guidance_scale and "guidance_scale" in changes:
            changes = {"known_guidance_scale": changes["guidance_scale"]} | changes
        return dataclasses.replace(self, **changes)
