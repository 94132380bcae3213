"""XLA's options for a train step: the same in a run and in `plan`, since they belong to the jitted step.

| option                      | on GPUs, for                      | reason                                       |
| --------------------------- | --------------------------------- | -------------------------------------------- |
| latency-hiding scheduler    | several, or offloaded activations | copies and all-to-alls overlap with compute  |
| no pass "rematerialization" | offloaded activations             | it counts pinned host memory as the device's |

That pass would recompute what fits; models/remat.py says what is recomputed. Elsewhere, XLA's defaults apply: one GPU
without offloading has nothing to hide.
"""

from typing import Any

from jax.sharding import Mesh

GPU_PLATFORMS = ("gpu", "cuda")
OVERLAPPED = {"xla_gpu_enable_latency_hiding_scheduler": True}
OFFLOADED = OVERLAPPED | {"xla_disable_hlo_passes": "rematerialization"}


def choose_step_options(mesh: Mesh, offload: bool) -> dict[str, Any]:
    """The options for `jax.jit` of a train step.

    Args:
      mesh: of the step, whose devices need not be present.
      offload: whether the blocks' inputs are kept in pinned host memory.
    Returns:
      Name to value; empty for XLA's defaults.
    """
    if mesh.devices.flat[0].platform not in GPU_PLATFORMS:
        return {}
    if offload:
        return OFFLOADED
    return OVERLAPPED if mesh.size > 1 else {}
