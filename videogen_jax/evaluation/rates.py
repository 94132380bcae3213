"""Rates of success with their intervals."""

import math
from typing import Any, NamedTuple


class Rate(NamedTuple):
    """A number of successes among so many trials."""

    right: int
    total: int

    def describe(self) -> dict[str, Any]:
        """{"rate", "low", "high", "right", "total"}, with the Wilson 95 % interval; the rate of 0 trials is 0."""
        low, high = wilson_interval(self.right, self.total)
        rate = self.right / self.total if self.total else 0.0
        return {"rate": rate, "low": low, "high": high, "right": self.right, "total": self.total}


def wilson_interval(right: int, total: int) -> tuple[float, float]:
    """Computes the Wilson 95 % interval of a rate.

    (p + z^2/2n +- z sqrt(p (1 - p)/n + z^2/4n^2)) / (1 + z^2/n) with z = 1.96.

    Args:
      right: number of successes.
      total: number of trials, n; for 0 trials the interval is (0, 1).
    Returns:
      (low, high), both in [0, 1].
    Source: E. B. Wilson, JASA 22 (1927) 209-212.
    """
    if total == 0:
        return 0.0, 1.0
    z = 1.959963984540054
    rate = right / total
    centre = rate + z * z / (2 * total)
    spread = z * math.sqrt(rate * (1.0 - rate) / total + (z / (2 * total)) ** 2)
    scale = 1.0 + z * z / total
    # At the ends the interval is closed exactly; rounding would leave a gap of 1e-17.
    low = (centre - spread) / scale if right else 0.0
    return low, (centre + spread) / scale if right < total else 1.0
