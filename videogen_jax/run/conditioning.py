"""What conditions a run's model beside x_t, the time and the caption: micro-conditions, and known frames.

| input           | shape           | of a model with                                      |
| --------------- | --------------- | ---------------------------------------------------- |
| fps, motion     | (B,)            | that micro-condition; a batch has it of its clips    |
| augmentation    | (B,)            | that micro-condition: the noise level of known frames |
| known           | (B, F, H, W, C) | model.conditioning=frames                            |
| mask            | (B, F)          | model.conditioning=frames or prefix                  |
| start           | (B,) int32      | model.time_cycle: number of the first latent frame   |
"""

import dataclasses
from typing import Any

import numpy as np

from videogen_jax.diffusion.tasks import AUGMENTATION, Tasks, augmentation_level

BATCH_CONDITIONS = ("fps", "motion")  # micro-conditions that a batch brings with its clips
FRAME_INPUTS = {"none": (), "prefix": ("mask",), "frames": ("known", "mask")}


@dataclasses.dataclass(frozen=True)
class Conditioning:
    """The conditioning of a model; see the table above."""

    tasks: Tasks | None  # what training draws; None where no frames are known
    kind: str  # model.conditioning
    micro_conditions: tuple[str, ...]
    sampling_noise: float  # sigma of the noise on known frames, in sampling
    cyclic: bool  # temporal positions have a period

    @property
    def batch_conditions(self) -> tuple[str, ...]:
        """The micro-conditions that a batch brings with it."""
        return tuple(name for name in self.micro_conditions if name in BATCH_CONDITIONS)

    @property
    def frame_inputs(self) -> tuple[str, ...]:
        """The arguments of `VideoDiT` about frames."""
        return FRAME_INPUTS[self.kind] + (("start",) if self.cyclic else ())

    def input_channels(self, channels: int) -> int:
        """Channels that the model patches, for videos of so many: these, known frames and their mask."""
        return {"none": channels, "prefix": channels + 1, "frames": 2 * channels + 1}[self.kind]

    def model_inputs(self, condition: dict[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
        """The micro-conditions of a condition, and its inputs about frames."""
        micro = {name: condition[name] for name in self.micro_conditions}
        return micro, {name: condition[name] for name in self.frame_inputs}

    def empty(self, shape: tuple[int, ...]) -> dict[str, Any]:
        """The inputs where no frame is known.

        Args:
          shape: (B, F, H, W, C) of the videos.
        Returns:
          Name to array of zeros, and the micro-condition of the noise on known frames.
        """
        shapes = {"known": shape, "mask": shape[:2]}
        inputs = {name: np.zeros(shapes[name], np.float32) for name in FRAME_INPUTS[self.kind]}
        if self.cyclic:
            inputs["start"] = np.zeros(shape[0], np.int32)
        if AUGMENTATION in self.micro_conditions:
            level = augmentation_level(np.log(self.sampling_noise))
            inputs[AUGMENTATION] = np.full(shape[0], level, np.float32)
        return inputs
