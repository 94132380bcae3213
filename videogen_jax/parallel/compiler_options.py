"""XLA's options for a train step: the same in a run and in `plan`, since they belong to the jitted step.

| option, for GPUs with offloaded activations | reason                                                      |
| ------------------------------------------- | ----------------------------------------------------------- |
| latency-hiding scheduler                    | copies from the host and all-to-alls overlap with compute   |
| no pass "rematerialization"                 | it counts pinned host memory as the device's, and so        |
|                                             | recomputes what fits; models/remat.py recomputes the blocks |

Elsewhere, XLA's defaults apply: one GPU without offloading has nothing to hide, and the scheduler takes memory.
"""

from typing import Any

from jax.sharding import Mesh

GPU_PLATFORMS = ("gpu", "cuda")
OFFLOADED = {
    "xla_gpu_enable_latency_hiding_scheduler": True,
    "xla_disable_hlo_passes": "rematerialization",
}


def choose_step_options(mesh: Mesh, offload: bool) -> dict[str, Any]:
    """The options for `jax.jit` of a train step.

    Args:
      mesh: of the step, whose devices need not be present.
      offload: whether the blocks' inputs are kept in pinned host memory.
    Returns:
      Name to value; empty for XLA's defaults.
    """
    gpu = mesh.devices.flat[0].platform in GPU_PLATFORMS
    return OFFLOADED if gpu and offload else {}
