"""Says whether a config fits a machine that need not be here, and what a run of it costs.

    python -m videogen_jax.plan --config=configs/dit_512.py --target=rtx3090x2
    python -m videogen_jax.plan --config=configs/dit_512.py --target=rtx4090 --pcie=x8 --host_memory=64

The very programs that training and sampling run are compiled for the target, and their memory is compared with what JAX
has of a card. Bytes and operations are counted. Of the two times, the roofline is what no program of these kernels
beats, and the second what kernels are expected to reach: uncalibrated, for no card has been measured.

Exit code 0: it fits; 1: it does not, and the overrides that would help are printed; 3: it cannot be planned, for a
config, an option or the target is wrong, XLA's CUDA compiler is missing (the wheels of jax[cuda12], but no GPU), or it
cannot compile the config.
"""

import json
import sys
from pathlib import Path
from typing import Any

import jax
from absl import flags, logging
from ml_collections import config_flags

from videogen_jax import command
from videogen_jax import config as configs
from videogen_jax.parallel import device_specs, gpu_pools, kernel_report
from videogen_jax.parallel import mesh as meshes
from videogen_jax.planning import data_costs, fit, levers, tables
from videogen_jax.planning import target as targets
from videogen_jax.planning.programs import Plan, make_plan, make_run
from videogen_jax.planning.target import Target
from videogen_jax.run.model import describe_large_patch

CANNOT_PLAN = 3  # exit code


def define_flags(flag_values: flags.FlagValues = flags.FLAGS) -> None:
    """Defines the command's flags; not done on import, so that verbs can import one another."""
    config_flags.DEFINE_config_file(
        "config",
        None,
        "File of a run, or a name in configs/.",
        lock_config=True,
        flag_values=flag_values,
    )
    text = "Card and number: rtx4090, rtx3090x2, a40x2, a100x8, h100x8, h200, cpux2, or FILEx2."
    flags.DEFINE_string("target", None, text, flag_values=flag_values)
    text = "Lanes of each card; half of them halve what crosses PCIe in a second."
    flags.DEFINE_enum("pcie", "x16", ("x16", "x8", "x4"), text, flag_values=flag_values)
    text = "Memory of the target's host, GiB. Default: this machine's, if it has as many GPUs."
    flags.DEFINE_float("host_memory", None, text, lower_bound=0, flag_values=flag_values)
    text = "Clips of the data. Default: those at data.path, or 10,000."
    flags.DEFINE_integer("clips", None, text, lower_bound=1, flag_values=flag_values)
    text = "Print the kernels that take the time too, by layer, as markdown."
    flags.DEFINE_bool("report", False, text, flag_values=flag_values)
    flags.DEFINE_bool("json", False, "Print one JSON object.", flag_values=flag_values)
    text = "Print a row of the table in docs/choose.md."
    flags.DEFINE_bool("markdown", False, text, flag_values=flag_values)
    text = "Where it does not fit, look for overrides that do."
    flags.DEFINE_bool("levers", True, text, flag_values=flag_values)


def main(arguments: list[str]) -> int:
    """Runs the verb; returns the exit code."""
    command.refuse(arguments)
    values = flags.FLAGS
    logging.set_verbosity(logging.ERROR)
    card, count = device_specs.parse_target(values.target)
    card = device_specs.with_lanes(card, int(values.pcie[1:]))
    config = configs.validate(values.config)
    jax.config.update("jax_platforms", "cpu")
    jax.config.update("jax_num_cpu_devices", count)
    devices = device_specs.find_devices(card, count)
    if sentence := describe_large_patch(config):
        print(f"plan: warning: {sentence}", file=sys.stderr)
    target = Target(card, devices, find_host_memory(values.host_memory, count))
    config, idle = targets.place(config, devices)
    plan = make_plan(config, card, devices)
    overrides: dict[str, Any] = {}
    better = plan
    if not fit.fits(plan, target) and values.levers and not configs.is_autoencoder(config):
        overrides, better = levers.try_levers(config, target, plan)
    moved = targets.describe_mesh(values.config.mesh, config.mesh, count)
    notes = [sentence for sentence in (moved, idle) if sentence]
    model = make_run(config, meshes.make_mesh(**config.mesh, devices=devices)).model
    costs = data_costs.estimate_data(config, model.null_text, plan, values.clips)
    if values.json:
        content = tables.to_json(target, plan, overrides, better) | {"mesh": config.mesh.to_dict()}
        content |= {"data": costs._asdict(), "steps": config.train.steps, "notes": notes}
        print(json.dumps(content, indent=2))
    elif values.markdown:
        name = Path(config_flags.get_config_filename(values["config"])).stem
        parameters = tables.count_parameters(model.abstract_params)
        helped = not fit.fits(plan, target) and fit.fits(better, target)
        shown, needed = (better, overrides) if helped else (plan, {})
        print(tables.to_row(name, config, parameters, target, shown, costs, needed))
    else:
        lines = [*notes, tables.to_table(target, plan), fit.describe_pinned(plan, target)]
        lines += [data_costs.describe_days(config, plan["train"]), data_costs.describe_data(costs)]
        lines += [tables.to_verdict(target, plan, overrides, better)]
        print("\n".join(line for line in lines if line))
        if values.report:
            print(report(plan, card))
    return 0 if fit.fits(plan, target) else 1


def find_host_memory(given: float | None, count: int) -> int | None:
    """Bytes of the memory of a target's host.

    Args:
      given: GiB; None: this machine's, if it is one of `count` GPUs.
      count: devices of the target.
    Returns:
      Bytes; None where it is not known.
    """
    if given is not None:
        return round(given * gpu_pools.GIB)
    here = len(list(Path("/dev").glob("nvidia[0-9]*")))
    return gpu_pools.machine_memory() if here == count else None


def report(plan: Plan, card: device_specs.Card) -> str:
    """The kernels of every program as markdown."""
    return "\n".join(
        f"\n## {name}\n\n{kernel_report.to_report(program.kernels, card)}"
        for name, program in plan.items()
        if program.kernels
    )


if __name__ == "__main__":
    define_flags()
    flags.mark_flags_as_required(["config", "target"])
    command.start("plan", main, (ValueError, OSError, ImportError), CANNOT_PLAN)
