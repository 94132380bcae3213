"""Seconds of kernels on a card whose speeds are round numbers, against schedules worked out by hand."""

import pytest

from videogen_jax.parallel import device_specs, kernel_report, kernel_times
from videogen_jax.parallel.kernel_times import ROOFLINE, estimate
from videogen_jax.parallel.kernels import Kernel

# 1000 FLOP/s, 100 B/s of memory, 10 B/s between devices and to the host.
CARD = device_specs.Card("round", 1, 100.0, 1000.0, 10.0, 10.0, "")


def kernel(kind="elementwise", **fields):
    empty = {"name": "k", "layer": "", "phase": "forward", "runs": 1, "flops": 0.0, "dtype": "bf16"}
    empty |= {"traffic": 0.0, "from_host": 0.0, "to_host": 0.0, "sent": 0.0}
    return Kernel(**empty | {"loops": (), "overlaps": None, "kind": kind} | fields)


def seconds(*kernels):
    return estimate(kernels, CARD, ROOFLINE)


def test_a_kernel_takes_the_longer_of_arithmetic_and_memory():
    by_arithmetic = kernel("product", flops=3000.0, traffic=200.0)
    by_memory = kernel("product", flops=1000.0, traffic=200.0, runs=4)
    got = seconds(by_arithmetic, by_memory)
    assert got.kernels == [3.0, 8.0] and got.compute == got.total == 11.0
    assert got.kinds == {"product": 11.0}


def test_products_in_float32_run_at_half_the_rate():
    assert seconds(kernel("product", flops=1000.0, dtype="f32")).total == 2.0


def test_a_synchronous_transfer_is_exposed_as_a_whole():
    got = seconds(kernel("collective", sent=20.0), kernel(traffic=100.0))
    assert got.total == 3.0 and got.compute == 1.0
    assert got.exposed["between devices"] == got.transfers["between devices"] == 2.0


@pytest.mark.parametrize(("between", "exposed"), [(0, 5.0), (1, 3.0), (2, 1.0), (3, 0.0)])
def test_an_asynchronous_copy_is_hidden_by_what_runs_before_its_end(between, exposed):
    """A copy of 5 s in front of three kernels of 2 s, awaited after the first `between`."""
    copy = kernel("host copy", from_host=50.0, overlaps=between)
    got = seconds(copy, *[kernel(traffic=200.0)] * 3)
    assert got.transfers["from host"] == 5.0 and got.exposed["from host"] == exposed
    assert got.compute == 6.0 and got.total == 6.0 + exposed


def test_copies_of_one_link_run_one_after_the_other_and_those_of_two_beside_each_other():
    """Two copies of 4 s, both awaited after one kernel of 5 s."""
    work = kernel(traffic=500.0)

    def two(first, second):
        return seconds(
            kernel("host copy", overlaps=2, **{first: 40.0}),
            kernel("host copy", overlaps=1, **{second: 40.0}),
            work,
        )

    assert two("from_host", "from_host").total == 8.0
    assert two("from_host", "to_host").total == 5.0


def test_a_wait_for_one_copy_hides_another():
    """4 s on two links, both awaited after a kernel of 1 s: 3 s for the first, none for the second."""
    got = seconds(
        kernel("host copy", from_host=40.0, overlaps=2),
        kernel("collective", sent=40.0, overlaps=1),
        kernel(traffic=100.0),
        kernel(traffic=100.0),
    )
    assert got.exposed == {"from host": 3.0, "to host": 0.0, "between devices": 0.0}
    assert got.total == 5.0


def test_a_loop_inside_of_a_copy_hides_it_with_all_its_runs():
    """A copy of 10 s around a loop of three turns of 2 s: 4 s are left, in each of two outer turns."""
    got = seconds(
        kernel("host copy", to_host=100.0, overlaps=1, runs=2, loops=(1,)),
        kernel(traffic=200.0, runs=6, loops=(1, 2)),
        kernel(traffic=100.0, runs=2, loops=(1,)),
    )
    assert got.exposed["to host"] == 8.0 and got.total == 12.0 + 2.0 + 8.0


def test_a_copy_inside_of_a_loop_waits_in_every_turn():
    """Each of three turns starts 5 s of copying before 2 s of work, and needs it at its end."""
    got = seconds(
        kernel("host copy", from_host=50.0, overlaps=1, runs=3, loops=(1,)),
        kernel(traffic=200.0, runs=3, loops=(1,)),
        kernel(traffic=100.0),
    )
    assert got.exposed["from host"] == 9.0 and got.total == 3 * 5.0 + 1.0


def test_efficiencies_divide_the_rates_and_launches_add():
    slow = ROOFLINE._replace(product=0.5, attention_forward=0.25, memory=0.5, launch=1.0)
    slow = slow._replace(link=0.1, host_link=0.2)
    kernels = [
        kernel("product", flops=1000.0, runs=2),
        kernel("attention forward", flops=1000.0),
        kernel("copy", traffic=100.0),
        kernel("collective", sent=10.0),
        kernel("host copy", to_host=10.0),
    ]
    assert estimate(kernels, CARD, slow).kernels == pytest.approx([6.0, 5.0, 3.0, 11.0, 6.0])


def test_no_estimate_is_made_for_a_card_of_unknown_speed():
    cpu = device_specs.CARDS["cpu"]
    assert estimate([kernel()], cpu, ROOFLINE) is None
    assert kernel_times.expected_efficiencies(cpu) is None


def test_every_card_has_efficiencies_below_its_peaks():
    for card in device_specs.CARDS.values():
        if card.flops is not None:
            *fractions, launch = kernel_times.expected_efficiencies(card)
            assert all(0 < fraction < 1 for fraction in fractions) and 0 < launch < 1e-4


KERNELS = [
    kernel("product", flops=4000.0, traffic=10.0, layer="mlp/up", runs=2),
    kernel("host copy", from_host=50.0, overlaps=1),
    kernel("elementwise", traffic=200.0, layer="mlp", phase="backward"),
    kernel("copy", traffic=100.0),
]


def rows(report):
    """Cells of each line that is a row of a table."""
    lines = [line for line in report.splitlines() if line.startswith("|")]
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]


def test_the_report_has_time_by_kind_by_link_and_by_layer():
    """8 s of products, 3 s of waiting for a copy of 5 s, 2 and 1 s of memory traffic: 14 s."""
    report = kernel_report.to_report(KERNELS, CARD)
    table = rows(report)
    assert ["product", "2", "0.0", "0.00", "8000.0", "57.1%", "arithmetic"] in table
    assert ["from host", "0.00", "5000.0", "3000.0", "60%"] in table
    assert ["mlp", "backward", "elementwise", "1", "0.0", "", "2000.0", "14.3%", "memory"] in table
    assert ["-", "forward", "host copy", "1", "0.0", "", "3000.0", "21.4%", "link"] in table
    assert "Roofline of these kernels: 14.000 s." in report
    header = table.index(["layer", "phase", "kind", *table[0][1:]])
    assert [row[0] for row in table[header + 2 :]] == ["mlp/up", "-", "mlp", "-"]


def test_what_the_report_leaves_out_is_in_its_last_row():
    *_, first, last = rows(kernel_report.to_report(KERNELS, CARD, rows=1))
    assert first[0] == "mlp/up"
    assert last == ["3 more", "", "", "3", "0.0", "", "6000.0", "42.9%", ""]


def test_the_report_of_an_unknown_card_has_no_seconds():
    table = rows(kernel_report.to_report(KERNELS, device_specs.CARDS["cpu"]))
    assert table[0] == ["kind", "runs", "GB", "TFLOP"]
    assert [row[0] for row in table[2:6]] == ["elementwise", "copy", "product", "host copy"]


def test_the_report_of_a_known_card_names_its_expectation_uncalibrated():
    report = kernel_report.to_report(KERNELS, device_specs.CARDS["h200"])
    assert "expected, uncalibrated (no card has been measured)" in report
    assert rows(report)[0][-1] == "expected ms"
