"""A plan as text: a table for people, JSON for programs, a row of markdown for docs/choose.md."""

from collections.abc import Callable, Mapping
from typing import Any

import jax
import ml_collections

from videogen_jax.parallel import gpu_pools
from videogen_jax.parallel.gpu_pools import GIB
from videogen_jax.planning import data_costs
from videogen_jax.planning.data_costs import DataCosts
from videogen_jax.planning.fit import describe_host, find_tight, fits
from videogen_jax.planning.levers import to_flags
from videogen_jax.planning.programs import Plan, Program
from videogen_jax.planning.target import Target

ROW_TITLES = (
    "| devices | config | clip | parameters | train | sample | pinned host memory | a step, roofline | expected "
    "| utilisation | steps | days | data |"
)


def gib(count: float | None) -> str:
    """Bytes in GiB."""
    return "-" if count is None else f"{count / GIB:.2f}"


def to_table(target: Target, plan: Plan) -> str:
    """The plan as lines of text, a column for each program."""
    card = target.card
    rows: list[tuple[str, list[str]]] = [("per device", list(plan))]

    def add(label: str, show: Callable[[Program], str]) -> None:
        values = [show(program) for program in plan.values()]
        if any(value.strip("-0.") for value in values):  # what no program has is left out
            rows.append((label, values))

    names = list(dict.fromkeys(name for program in plan.values() for name in program.memory))
    for name in names:
        add(f"{name}, GiB", lambda program, name=name: gib(program.memory.get(name)))
    add("peak, GiB", lambda program: gib(program.peak))
    add("stays beside it in training, GiB", lambda program: gib(program.resident))
    if card.memory is not None:
        pool = gpu_pools.device_pool(card.memory)
        add("headroom, GiB", lambda program: gib(pool - program.total))
    add("largest collective, within the peak, GiB", lambda program: gib(program.collectives))
    add("pinned host memory, GiB", lambda program: gib(program.host))
    add("operations of the model, 10^12", lambda program: _tera(program.flops))
    add("with those done again, 10^12", lambda program: _tera(program.executed or None))
    add("memory read and written, GiB", lambda program: gib(program.traffic or None))
    add("sent to other devices, GiB", lambda program: gib(sum(program.wire.values())))
    add("the least that must be sent, GiB", lambda program: gib(program.least_wire))
    add("roofline of its kernels, seconds", lambda program: _seconds(program.roofline))
    add("expected, seconds", lambda program: _seconds(program.expected))
    add("utilisation, expected", lambda program: _share(program.utilisation(card)))
    width = max(len(label) for label, _ in rows)
    columns = [max(10, len(name) + 2) for name in plan]
    lines = [
        label.ljust(width)
        + "".join(value.rjust(size) for value, size in zip(values, columns, strict=True))
        for label, values in rows
    ]
    return "\n".join([describe_target(target), *lines])


def describe_target(target: Target) -> str:
    """The first line: how many devices of how much memory, and what JAX takes of it."""
    if target.card.memory is None:
        return f"{target.count} x {target.card.name}"
    pool = gpu_pools.device_pool(target.card.memory)
    return (
        f"{target.count} x {target.card.name} of {gib(target.card.memory)} GiB, of which a run has {gib(pool)} "
        f"({gpu_pools.FRACTION}={gpu_pools.read_fraction():g})"
    )


def _tera(count: int | None) -> str:
    return "-" if count is None else f"{count / 1e12:.2f}"


def _seconds(estimate: Any) -> str:
    return "-" if estimate is None else f"{estimate.total:.2f}"


def _share(share: float | None) -> str:
    return "-" if share is None else f"{share:.0%}"


def to_verdict(target: Target, plan: Plan, overrides: Mapping[str, Any], better: Plan) -> str:
    """One sentence, with the overrides that would help."""
    if fits(plan, target):
        return "It fits."
    tight = find_tight(plan, target)
    sentence = "It does not fit"
    sentence += f": {' and '.join(tight)} would not." if tight else "."
    if host := describe_host(plan, target):
        sentence += f" {host}"
    if not overrides:
        return sentence
    if fits(better, target):
        totals = ", ".join(f"{name} {gib(one.total)} GiB" for name, one in better.items())
        return f"{sentence} It does with {to_flags(overrides)} ({totals})."
    left = " and ".join(find_tight(better, target))
    return (
        f"{sentence} Nor does it with {to_flags(overrides)}{f' ({left})' if left else ''}: shorten the clips, narrow "
        "the model, or take more devices on mesh.seq or mesh.fsdp."
    )


def to_json(
    target: Target, plan: Plan, overrides: Mapping[str, Any], better: Plan
) -> dict[str, Any]:
    """The plan as numbers under names."""
    content: dict[str, Any] = {
        name: {
            "peak_gib": one.peak / GIB,
            "resident_gib": one.resident / GIB,
            "memory_gib": {part: count / GIB for part, count in one.memory.items()},
            "host_gib": one.host / GIB,
            "collective_gib": one.collectives / GIB,
            "devices": one.devices,
            "flops": one.flops,
            "executed_flops": one.executed,
            "wire_bytes": one.wire,
            "least_wire_bytes": one.least_wire,
            "traffic_bytes": one.traffic,
            "roofline_seconds": one.roofline and one.roofline.total,
            "expected_seconds": one.expected and one.expected.total,
            "exposed_seconds": one.expected and one.expected.exposed,
            "utilisation": one.utilisation(target.card),
        }
        for name, one in plan.items()
    }
    memory = target.card.memory
    content["memory_gib"] = None if memory is None else memory / GIB
    content["pool_gib"] = None if memory is None else gpu_pools.device_pool(memory) / GIB
    content["fits"] = fits(plan, target)
    content["overrides"] = dict(overrides)
    content["fits_with_overrides"] = fits(better, target)
    return content


def to_row(
    name: str,
    config: ml_collections.ConfigDict,
    parameters: int,
    target: Target,
    plan: Plan,
    costs: DataCosts,
    overrides: Mapping[str, Any],
) -> str:
    """A row under ROW_TITLES.

    Args:
      name: of the config.
      config: of the run.
      parameters: of the model.
      target: the machine.
      plan: with the overrides, if there are any.
      costs: of the data.
      overrides: that were needed.
    """
    data, train, day = config.data, plan["train"], data_costs.DAY
    sampler = plan.get("in training", plan.get("sample"))
    steps = config.train.steps
    times = (train.roofline, train.expected)
    days = [f"{one.total * steps / day:.1f}" for one in times if one is not None]
    verdict = "" if fits(plan, target) else ", does not fit"
    disk = costs.latents or costs.packed
    cells = [
        f"{target.count} x {target.card.name}",
        name + (f" with `{to_flags(overrides)}`" if overrides else "") + verdict,
        f"{config.batch_size} x {data.frames} x {data.height}x{data.width}",
        f"{parameters / 1e6:.0f} M",
        f"{gib(train.total)} GiB",
        "-" if sampler is None else f"{gib(sampler.total)} GiB",
        f"{gib(train.host * train.devices)} GiB",
        *("-" if one is None else f"{one.total:.2f} s" for one in times),
        _share(train.utilisation(target.card)),
        f"{steps:,}",
        " to ".join(days) or "-",
        f"{data_costs.to_size(1000 * disk / costs.clips)} for 1,000 clips",
    ]
    return f"| {' | '.join(cells)} |"


def count_parameters(tree: Any) -> int:
    """Numbers in a tree of arrays or shapes."""
    return sum(leaf.size for leaf in jax.tree.leaves(tree))
