"""The page of benchmarks/gpu.py: markdown for docs/performance.md from the results of its parts."""

import time
from typing import Any

import peers

GIB = 2**30
KEPT = {"memory.offload_activations": False}  # the form of a step that large cards hold
STEP_PARTS = ("dit_512", "dit_xl_512", "offload")
TITLES = {
    "dit_512": "`dit_512`",
    "dit_xl_512": "`dit_xl_512`",
    "offload": "`dit_512`, block inputs in the host's memory",
}
COMPARISONS = {"train": "A train step", "sampler": "50 steps of DDIM with guidance"}
RULE = (
    "The sides are processes that share the card, have the same model, shapes and batch, and take turns; a turn is one "
    "run, waited for. Both have float32 parameters and bfloat16 products, flash attention and no recomputation. "
    "PyTorch's is the Latte of benchmarks/torch_latte.py, with fused AdamW; compiled: its blocks by torch.compile."
)


def passed(results: dict[str, Any]) -> bool:
    """Whether no part failed and every check that was made passed."""
    parts = results["parts"].values()
    checks = results["parts"].get("checks", {}).get("results", {}).get("checks", [])
    return not any("failed" in part for part in parts) and all(row["passed"] for row in checks)


def describe_outcome(outcome: dict[str, Any]) -> str:
    """Seconds that a part took, and why it is not complete."""
    reason = next((f"{kind}: {outcome[kind]}" for kind in ("cut", "failed") if kind in outcome), "")
    return f"{outcome['seconds']:.0f} s" + (f", {reason}" if reason else "")


def make_page(results: dict[str, Any]) -> str:
    """The page; parts that are not there yet are left out.

    Args:
      results: of gpu.py: "parts", name to its outcome, and "dry_run".
    """
    parts = results["parts"]
    measured = {name: part.get("results", {}) for name, part in parts.items()}
    environment = measured.get("environment", {})
    lines = [f"## On one {environment.get('device', 'GPU')}", ""]
    if results["dry_run"]:
        lines += ["**A dry run: tiny sizes on the CPU. No number below is a measurement.**", ""]
    lines += [
        f"`python benchmarks/gpu.py`, {time.strftime('%Y-%m-%d')}. {_machine(environment)}",
        "",
    ]
    if unfinished := [
        f"- {name}: {describe_outcome(part)}"
        for name, part in parts.items()
        if {"cut", "failed"} & part.keys()
    ]:
        lines += ["Not complete:", "", *unfinished, ""]
    if measured.get("checks"):
        lines += _checks(measured["checks"])
    if any(measured.get(name) for name in STEP_PARTS):
        lines += _steps(measured, environment)
    if measured.get("sample_512"):
        lines += _sampling(measured["sample_512"])
    if any("flops" in measured.get(name, {}) for name in COMPARISONS):
        lines += ["### Beside PyTorch", "", RULE, ""]
    for name, title in COMPARISONS.items():
        if "flops" in (found := measured.get(name, {})):
            work = ", ".join(f"{key} {value}" for key, value in found["work"].items())
            lines += [f"{title} ({work}):", "", *peers.table_lines(found), ""]
    if environment.get("rates"):
        lines += _rates(environment)
    if kernels := measured.get("profile", {}).get("kernels"):
        lines += _kernels(kernels)
    spent = ", ".join(f"{name} {part['seconds']:.0f}" for name, part in parts.items())
    return "\n".join([*lines, f"Seconds that the parts took: {spent}."])


def _machine(environment: dict[str, Any]) -> str:
    if not environment:
        return "The machine is unknown: the part environment has no result."
    versions = ", ".join(f"{name} {one}" for name, one in environment["versions"].items())
    card = environment["device"]
    if "driver_version" in environment:
        link = f"{environment['pcie.link.gen.max']} x{environment['pcie.link.width.current']}"
        card += (
            f" of {environment['memory_gib']:.1f} GiB, PCIe {link}, "
            f"{environment['power.limit']} W, driver {environment['driver_version']}"
        )
    host = f"{environment['cores']} cores, {environment['host_gib']:.0f} GiB"
    if "cudnn_error" in environment:
        versions += f", cuDNN's attention does not run ({environment['cudnn_error']})"
    return (
        f"{card}; host of {host}; Python {environment['python']}, {versions}; "
        f"attention by {environment['kernel']}."
    )


def _checks(found: dict[str, Any]) -> list[str]:
    rows = found.get("checks", [])
    good = sum(row["passed"] for row in rows)
    lines = [
        "### Correctness",
        "",
        f"{good} of {len(rows)} checks passed. Errors are |result - reference| / |reference|.",
        "",
        "| check | error (largest that passes) | |",
        "| --- | --- | --- |",
    ]
    for row in rows:
        errors = ", ".join(
            f"{name} {error:.1e} ({row['tolerances'][name]:g})"
            for name, error in row["errors"].items()
        )
        lines.append(f"| {row['what']} | {errors} | {'' if row['passed'] else '**failed**'} |")
    return [*lines, ""]


def _steps(measured: dict[str, dict[str, Any]], environment: dict[str, Any]) -> list[str]:
    product = max(
        (row["flops"] / row["seconds"] for row in environment.get("rates", []) if row["kind"] == "product"),
        default=None,
    )  # fmt: skip
    lines = [
        "### Train steps of the configs",
        "",
        "One clip a step on one card, random latents, the config's own model and options.",
        "",
        "| config | frames | s a step | fastest to slowest | utilisation | of the best product | "
        "peak, GiB | by the compiled program | host, GiB | compiled in |",
        "| --- | --- | --- | --- | --- | --- | --- | --- | --- | --- |",
    ]
    estimates = []
    for name in STEP_PARTS:
        if "seconds" not in (one := measured.get(name, {})):
            continue
        rate = one["flops"] / one["seconds"]
        spread = f"{one['fastest']:.3f} to {one['slowest']:.3f}"
        lines.append(
            f"| {TITLES[name]} | {one['frames']} | {one['seconds']:.3f} | {spread} | "
            f"{_share(rate, one['peak_flops'])} | {_share(rate, product)} | {_peaks(one)} | "
            f"{one['host_bytes'] / GIB:.2f} | {one['compile_seconds']:.0f} s |"
        )
        if one.get("estimates"):
            told = ", ".join(f"{key} {value:.3f} s" for key, value in one["estimates"].items())
            estimates.append(f"- {TITLES[name]}: {told}; measured {one['seconds']:.3f} s")
    for name in ("dit_512", "dit_xl_512"):
        changes = measured.get(name, {}).get("changes", KEPT)
        if changes != KEPT:
            options = " ".join(f"{key}={value}" for key, value in changes.items())
            lines += ["", f"Of {TITLES[name]} this card holds no more than with {options}."]
    if estimates:
        lines += ["", "By the cost model of `plan`:", "", *estimates]
    return [*lines, ""]


def _share(rate: float, peak: float | None) -> str:
    return f"{rate / peak:.1%}" if peak else "unknown"


def _peaks(one: dict[str, Any]) -> str:
    """Two cells: the measured peak, and that of the compiled program with the difference in percent."""
    planned = f"{one['planned'] / GIB:.2f}"
    if not one.get("measured"):
        return f"unmeasured | {planned}"
    difference = one["planned"] / one["measured"] - 1
    return f"{one['measured'] / GIB:.2f} | {planned} ({difference:+.1%})"


def _sampling(one: dict[str, Any]) -> list[str]:
    if "seconds" not in one:
        return []
    share = _share(one["flops"] / one["seconds"], one["peak_flops"])
    return [
        "### Sampling",
        "",
        f"`dit_512`, one video of {one['frames']} frames, {one['steps']} steps, {one['calls']} calls of the model:",
        "",
        "| seconds | utilisation | peak, GiB | by the compiled program | compiled in |",
        "| --- | --- | --- | --- | --- |",
        f"| {one['seconds']:.2f} | {share} | {_peaks(one)} | {one['compile_seconds']:.0f} s |",
        "",
    ]


def _rates(environment: dict[str, Any]) -> list[str]:
    peaks = environment["peaks"]
    lines = [
        "### What the card reaches",
        "",
        "| | kernel | ms | TFLOP/s | of the peak | GB/s | of the bandwidth |",
        "| --- | --- | --- | --- | --- | --- | --- |",
    ]
    for row in environment["rates"]:
        flops, moved = row["flops"] / row["seconds"], row["bytes"] / row["seconds"]
        bandwidth = peaks["host_link" if row["kind"] == "host link" else "bandwidth"]
        cells = [f"{flops / 1e12:.4g}", _share(flops, peaks["flops"])] if flops else ["", ""]
        lines.append(
            f"| {row['what']} | {row['kind']} | {1e3 * row['seconds']:.3f} | {' | '.join(cells)} | "
            f"{moved / 1e9:.4g} | {_share(moved, bandwidth)} |"
        )
    if "small_kernel_seconds" in environment:
        lines += ["", f"A small kernel: {1e6 * environment['small_kernel_seconds']:.2f} µs."]
    return [*lines, ""]


def _kernels(rows: list[dict[str, Any]]) -> list[str]:
    total = sum(row["seconds"] for row in rows)
    lines = [
        "### Kernels of a step of `dit_512`",
        "",
        f"{total:.3f} s of kernels, some of them at the same time.",
        "",
        "| kernel | s | share | number |",
        "| --- | --- | --- | --- |",
    ]
    return lines + [
        f"| `{row['name']}` | {row['seconds']:.4f} | {row['seconds'] / total:.1%} | {row['count']} |"
        for row in rows
    ] + [""]  # fmt: skip
