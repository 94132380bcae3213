"""Order of convergence of the samplers, on data with a known exact solution.

    python benchmarks/sampler_order.py --output=docs/sampler_order.svg

Plots the error over the number of steps; prints a table of errors and slopes, for docs/diffusion.md.
"""

import argparse
import sys
from pathlib import Path

import jax
import numpy as np

sys.path.insert(0, str(Path(__file__).parent.parent))

from tests.generate.gaussian import measure_error  # noqa: E402

COUNTS = (8, 16, 32, 64, 128, 256)
LINES = (  # schedule, sampler, fraction of the steps after which the error is measured, colour
    ("linear, continuous", "ddim", 1.0, "#b2182b"),
    ("flow", "euler", 1.0, "#ef8a62"),
    ("edm", "euler", 1.0, "#e0a800"),
    ("linear, continuous", "heun", 1.0, "#67a9cf"),
    ("flow", "heun", 1.0, "#2166ac"),
    ("edm", "heun", 1.0, "#4d4d4d"),
    ("linear, continuous", "dpmpp_2m", 0.75, "#a6dba0"),
    ("flow", "dpmpp_2m", 0.75, "#1b7837"),
    ("edm", "dpmpp_2m", 0.75, "#762a83"),
)
WIDTH, HEIGHT, LEFT, RIGHT, TOP, BOTTOM = 760, 420, 70, 230, 20, 50


def draw(lines: list[tuple[str, str, np.ndarray]]) -> str:
    """A log-log plot as SVG: (label, colour, errors at COUNTS) for each line."""
    errors = np.concatenate([errors for _, _, errors in lines])
    low, high = np.floor(np.log10(errors.min())), np.ceil(np.log10(errors.max()))

    def x(count: float) -> float:
        share = np.log(count / COUNTS[0]) / np.log(COUNTS[-1] / COUNTS[0])
        return LEFT + share * (WIDTH - LEFT - RIGHT)

    def y(error: float) -> float:
        return TOP + (high - np.log10(error)) / (high - low) * (HEIGHT - TOP - BOTTOM)

    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {HEIGHT}" '
        'font-family="sans-serif" font-size="13">',
        f'<rect width="{WIDTH}" height="{HEIGHT}" fill="white"/>',
    ]
    for exponent in range(int(low), int(high) + 1):
        at = y(10.0**exponent)
        parts.append(f'<path d="M{LEFT} {at:.1f}H{WIDTH - RIGHT}" stroke="#ddd"/>')
        parts.append(f'<text x="{LEFT - 8}" y="{at + 4:.1f}" text-anchor="end">1e{exponent}</text>')
    for count in COUNTS:
        at = x(count)
        parts.append(f'<path d="M{at:.1f} {TOP}V{HEIGHT - BOTTOM}" stroke="#ddd"/>')
        parts.append(f'<text x="{at:.1f}" y="{HEIGHT - 30}" text-anchor="middle">{count}</text>')
    parts.append(f'<text x="{LEFT}" y="{HEIGHT - 8}">steps; root mean square error</text>')
    for row, (label, colour, errors) in enumerate(lines):
        points = " ".join(f"{x(c):.1f},{y(e):.1f}" for c, e in zip(COUNTS, errors, strict=True))
        parts.append(
            f'<polyline points="{points}" fill="none" stroke="{colour}" stroke-width="2"/>'
        )
        at = TOP + 20 + 22 * row
        parts.append(
            f'<rect x="{WIDTH - RIGHT + 15}" y="{at - 6}" width="18" height="3" fill="{colour}"/>'
        )
        parts.append(f'<text x="{WIDTH - RIGHT + 40}" y="{at}">{label}</text>')
    return "\n".join([*parts, "</svg>"]) + "\n"


def main() -> None:
    """Measures the errors, prints the table and writes the plot."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--output", type=Path, required=True, help="SVG file to write.")
    options = parser.parse_args()
    jax.config.update("jax_enable_x64", True)
    print("| schedule | sampler | after |", " | ".join(map(str, COUNTS)), "| order |")
    print("| --- | --- | --- |", " --- |" * (len(COUNTS) + 1), sep="")
    lines = []
    for schedule, sampler, share, colour in LINES:
        errors = np.array([measure_error(schedule, sampler, count, share) for count in COUNTS])
        order = -np.polyfit(np.log(COUNTS[2:]), np.log(errors[2:]), 1)[0]
        row = " | ".join(f"{error:.1e}" for error in errors)
        print(f"| {schedule} | {sampler} | {share:.0%} | {row} | {order:.2f} |")
        lines.append((f"{sampler}, {schedule.split(',')[0]} ({order:.2f})", colour, errors))
    options.output.write_text(draw(lines), encoding="utf-8")


if __name__ == "__main__":
    main()
