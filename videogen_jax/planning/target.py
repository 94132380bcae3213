"""How a run is laid out on the devices of a target: the mesh follows their number, and idle ones are named."""

import math
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

import ml_collections

from videogen_jax import config as configs
from videogen_jax.parallel import device_specs
from videogen_jax.parallel import mesh as meshes
from videogen_jax.planning.programs import make_run


class Target(NamedTuple):
    """The machine that is planned for."""

    card: device_specs.Card
    devices: Any  # of `device_specs.find_devices`
    host_memory: int | None = None  # bytes; None: not known

    @property
    def count(self) -> int:
        """Number of devices."""
        return len(self.devices)


def place(config: ml_collections.ConfigDict, devices: Any) -> tuple[ml_collections.ConfigDict, str]:
    """Finds the mesh of a config on the devices of a target.

    A mesh of as many devices as there are stays as it is. Else they go to one axis: to the largest of the config's,
    then to fsdp, seq and data; then to fsdp and seq together; the first on which batch and tokens divide. If none does,
    a device is left idle, and so on.

    Args:
      config: complete and valid.
      devices: of `device_specs.find_devices`.
    Returns:
      (the config with that mesh, a sentence on idle devices or nothing).
    Raises:
      ValueError: the config's own mesh does not suit it, or no mesh does; the sentence is that of the first one tried.
    """
    count = len(devices)
    if math.prod(config.mesh.values()) == count:
        check(config, devices)
        return config, ""
    first: ValueError | None = None
    for used in range(count, 0, -1):
        for sizes in candidate_meshes(config.mesh.to_dict(), used):
            mesh = {f"mesh.{name}": size for name, size in sizes.items()}
            try:
                lines = dict(configs.flatten(config.to_dict())) | mesh
                moved = configs.validate(configs.nest(lines))
                check(moved, devices)
            except ValueError as error:
                first = first or error
                continue
            return moved, describe_idle(count, used, first)
    raise first


def candidate_meshes(sizes: Mapping[str, int], count: int) -> Iterator[dict[str, int]]:
    """Meshes of so many devices, in the order in which to try them.

    Args:
      sizes: of the config's mesh, by axis.
      count: number of devices.
    """
    ones = dict.fromkeys(sizes, 1)
    largest = max(sizes, key=sizes.get)
    axes = [largest] * (sizes[largest] > 1) + ["fsdp", "seq", "data"]
    for axis in dict.fromkeys(axes) if count > 1 else axes[:1]:
        yield ones | {axis: count}
    for parts in range(count // 2, 1, -1):
        if count % parts == 0:
            yield ones | {"fsdp": parts, "seq": count // parts}


def check(config: ml_collections.ConfigDict, devices: Any) -> None:
    """Raises ValueError where the config, its mesh and the devices do not fit together."""
    make_run(config, meshes.make_mesh(**config.mesh, devices=devices))


def describe_idle(count: int, used: int, error: ValueError | None) -> str:
    """A sentence where a mesh leaves devices idle, with what keeps it from taking all; else empty."""
    if used == count:
        return ""
    idle = count - used
    return (
        f"{idle} of the {count} devices {'stays' if idle == 1 else 'stay'} idle, for no mesh of {count} suits the "
        f"config: {error}"
    )


def describe_mesh(given: Mapping[str, int], used: Mapping[str, int], count: int) -> str:
    """A sentence where the mesh of a plan is not the config's; empty where it is."""
    changed = {name: size for name, size in used.items() if size != given[name]}
    if not changed:
        return ""
    before = ", ".join(f"{name}={given[name]}" for name in changed)
    after = ", ".join(f"{name}={size}" for name, size in changed.items())
    options = " ".join(f"--config.mesh.{name}={size}" for name, size in changed.items())
    devices = "one device" if count == 1 else f"{count} devices"
    return f"The mesh follows the target: {after} for {devices}, instead of {before}; train with {options}."
