"""Whether the programs of a plan fit a machine: its GPUs' pools, and pinned memory of the host."""

from videogen_jax.parallel import gpu_pools
from videogen_jax.parallel.gpu_pools import GIB
from videogen_jax.planning.programs import Plan
from videogen_jax.planning.target import Target


def fits(plan: Plan, target: Target) -> bool:
    """Whether every program fits; the CPU's memory has no bound here."""
    return not find_tight(plan, target) and not describe_host(plan, target)


def find_tight(plan: Plan, target: Target) -> list[str]:
    """The programs that the pool of a device has no room for, with what stays beside them in training."""
    if target.card.memory is None:
        return []
    pool = gpu_pools.device_pool(target.card.memory)
    return [name for name, program in plan.items() if program.total > pool]


def describe_host(plan: Plan, target: Target) -> str:
    """A sentence where the host lacks pinned memory, with the way out; else empty."""
    most = max(plan.values(), key=lambda program: program.host)
    if not most.host:
        return ""
    limit = gpu_pools.read_host_limit()
    if most.host > limit:
        return (
            f"Each GPU pins {most.host / GIB:.1f} GiB of the host's memory, more than {gpu_pools.HOST_LIMIT}="
            f"{limit // GIB} allows: set it to {-(-most.host // GIB)}, or unset it."
        )
    total = most.host * most.devices
    if target.host_memory is not None and total > target.host_memory:
        return (
            f"The GPUs pin {total / GIB:.1f} GiB together, and the host has {target.host_memory / GIB:.1f}: "
            "offload less (--config.memory.offload_activations=False, --config.memory.offload_optimizer=False, "
            "--config.memory.offload_ema=False), or take a machine with more."
        )
    return ""


def describe_pinned(plan: Plan, target: Target) -> str:
    """A sentence on pinned memory that fits: what it takes of the host, and what its pools may grow to; or empty."""
    most = max(plan.values(), key=lambda program: program.host)
    if not most.host:
        return ""
    total = most.host * most.devices
    devices = "one device" if most.devices == 1 else f"{most.devices} devices"
    sentence = f"The host pins {total / GIB:.1f} GiB for {devices}"
    if target.host_memory is None:
        return f"{sentence}: compare it with its memory, or give that as --host_memory."
    sentence += f", of {target.host_memory / GIB:.1f}"
    if gpu_pools.pinned_pool(most.host) * most.devices > target.host_memory:
        return (
            f"{sentence}; XLA's pools grow by doubling and would take more: set "
            f"{gpu_pools.HOST_LIMIT}={-(-most.host // GIB)}."
        )
    return f"{sentence}."
