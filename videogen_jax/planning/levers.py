"""The memory levers: options of a config that make it fit, and what they cost in time."""

from collections.abc import Mapping
from typing import Any

import ml_collections

from videogen_jax import config as configs
from videogen_jax.planning.fit import describe_host, find_tight, fits
from videogen_jax.planning.programs import Plan, make_plan
from videogen_jax.planning.target import Target
from videogen_jax.run.model import token_grid

PIECES = (8, 4, 2)


def try_levers(
    config: ml_collections.ConfigDict, target: Target, plan: Plan
) -> tuple[dict[str, Any], Plan]:
    """Pulls the memory levers one after the other, cheapest first, until the config fits.

    Until then only the programs that do not fit are compiled again.

    Args:
      config: that does not fit.
      target: to compile for.
      plan: of the config.
    Returns:
      (the overrides by dotted name, the plan with them, which may still not fit).
    """
    overrides: dict[str, Any] = {}
    for lever in levers(config):
        lines = dict(configs.flatten(config.to_dict()))
        changed = {name: value for name, value in lever.items() if lines[name] != value}
        if not changed:
            continue
        overrides |= changed
        config = configs.get_config(**configs.nest(lines | changed))
        wanted = find_tight(plan, target) or ["train"]
        tried = make_plan(config, target.card, target.devices, wanted)
        if find_tight(tried, target) or describe_host(tried, target):
            plan = plan | tried
            continue
        plan = make_plan(config, target.card, target.devices, done=tried)
        if fits(plan, target):
            break
    return overrides, plan


def levers(config: ml_collections.ConfigDict) -> list[dict[str, Any]]:
    """The levers that a config has, in the order in which to try them; each keeps those before it."""
    chosen: list[dict[str, Any]] = (
        [{"sample.batch_size": 1}] if config.sample.batch_size > 1 else []
    )
    if config.memory.remat != "block":
        chosen.append({"memory.remat": "block"})
    chosen.append({"memory.offload_activations": True})
    grid = token_grid(config)
    for pieces in PIECES:
        if pieces > config.memory.pieces and grid[0] % pieces == 0 == grid[1] * grid[2] % pieces:
            chosen.append({"memory.pieces": pieces})
            break
    if config.optimizer.name != "schedule_free":
        chosen.append({"optimizer.mu_dtype": "bfloat16"})
    chosen += [{"memory.offload_ema": True}, {"memory.offload_optimizer": True}]
    parts = config.mesh.data * config.mesh.fsdp
    per_device = config.batch_size // parts
    chosen += [
        {"train.accumulation": count}
        for count in range(config.train.accumulation + 1, per_device + 1)
        if per_device % count == 0
    ]
    return chosen


def to_flags(overrides: Mapping[str, Any]) -> str:
    """Overrides as flags of a command."""
    return " ".join(f"--config.{name}={value!r}" for name, value in overrides.items())
