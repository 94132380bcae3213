"""Train a text-to-video Diffusion Transformer from scratch in JAX, and make videos with it.

    import videogen_jax

    model = videogen_jax.load("runs/quickstart")
    videos = model(["a red circle moving left"], seeds=[0], guidance_scale=2.0)  # (1, T, H, W, 3) uint8
    videogen_jax.save_video("circle.mp4", videos[0], model.fps)

Importing this module imports neither JAX nor TensorFlow; `load` imports JAX.
"""

import sys
from typing import Any

from videogen_jax import interrupts

__version__ = "0.1.0"

if sys.argv[:1] == ["-m"]:  # python -m videogen_jax.VERB, whose imports take seconds
    interrupts.install(sys.orig_argv[sys.orig_argv.index("-m") + 1].rpartition(".")[2])


def load(workdir: Any, **options: Any) -> Any:
    """Opens a trained run or an export; see `videogen_jax.generate.from_checkpoint.load`.

    Args:
      workdir: folder of the run or of an export, or name of an export on the Hugging Face hub, `owner/name`.
      **options: step, ema, ema_width, dtype, batch_size.
    Returns:
      A `VideoModel`, which is called with prompts.
    Raises:
      ValueError: the run makes no videos, or an argument does not fit it.
      OSError: there is no run or no checkpoint, or weights that it needs cannot be read.
    """
    from videogen_jax.generate import from_checkpoint

    return from_checkpoint.load(workdir, **options)


def save_video(path: Any, video: Any, fps: float) -> None:
    """Writes a video file: mp4, webm or gif, by the ending of its name.

    Args:
      path: of the file; its folder exists.
      video: (T, H, W, 3) uint8.
      fps: frames per second.
    Raises:
      ValueError: the ending is unknown.
      OSError: the file cannot be written.
    """
    from videogen_jax.data import video_writer

    video_writer.write_video(path, video, fps)
