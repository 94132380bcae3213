"""A plan as a table, JSON and a row of markdown."""

import pytest

from tests.planning.plans import CPU, GIB, make_program, small_config
from videogen_jax.parallel import device_specs
from videogen_jax.parallel.kernel_times import Estimate
from videogen_jax.parallel.kernels import Kernel
from videogen_jax.planning import tables
from videogen_jax.planning.data_costs import DataCosts
from videogen_jax.planning.target import Target

TARGET = Target(device_specs.CARDS["rtx3090"], [None] * 2)


@pytest.fixture
def plan(monkeypatch):
    """A train step of 71e12 operations of the model, which takes 4 seconds on a card of 71e12 a second."""
    monkeypatch.setenv("XLA_CLIENT_MEM_FRACTION", "0.95")
    monkeypatch.setenv("XLA_PJRT_GPU_HOST_MEMORY_LIMIT_GB", "1024")
    fields = dict.fromkeys(Kernel._fields, 0) | {"kind": "product", "loops": ()}
    kernel = Kernel(**fields | {"runs": 2, "flops": 50e12, "traffic": 3 * GIB})
    times = {
        "roofline": Estimate([], {}, 2, {}, {}, 2.0),
        "expected": Estimate([], {}, 4, {}, {}, 4.0),
    }
    train = make_program(
        peak=9 * GIB, resident=GIB, flops=int(71e12), kernels=[kernel], host=GIB, **times
    )
    return {"train": train, "in training": make_program(peak=2 * GIB, resident=3 * GIB)}


def rows_of(text):
    """Label of each line to its values."""
    parted = [line.rsplit(maxsplit=2) for line in text.splitlines()[2:]]
    return {line[0]: line[1:] for line in parted}


def test_the_table_has_a_column_for_each_program(plan):
    text = tables.to_table(TARGET, plan)
    assert text.startswith(
        "2 x rtx3090 of 23.69 GiB, of which a run has 22.51 (XLA_CLIENT_MEM_FRACTION=0.95)"
    )
    rows = rows_of(text)
    assert rows["peak, GiB"] == ["9.00", "2.00"]
    assert rows["stays beside it in training, GiB"] == ["1.00", "3.00"]
    assert rows["headroom, GiB"] == ["12.51", "17.51"]
    assert rows["operations of the model, 10^12"] == ["71.00", "-"]
    assert rows["with those done again, 10^12"] == ["100.00", "-"]
    assert rows["memory read and written, GiB"] == ["6.00", "-"]
    assert rows["roofline of its kernels, seconds"] == ["2.00", "-"]
    assert rows["expected, seconds"] == ["4.00", "-"]
    assert rows["utilisation, expected"] == ["25%", "-"]
    assert "sent to other devices, GiB" not in rows  # nothing is
    assert len({len(line) for line in text.splitlines()[1:]}) == 1


def test_json_has_the_same_numbers(plan):
    content = tables.to_json(TARGET, plan, {}, plan)
    train = content["train"]
    assert (train["executed_flops"], train["utilisation"]) == (100e12, 0.25)
    assert (train["roofline_seconds"], train["expected_seconds"]) == (2.0, 4.0)
    assert content["fits"] is True and content["in training"]["resident_gib"] == 3
    assert content["pool_gib"] == pytest.approx(0.95 * content["memory_gib"])
    cpu = tables.to_json(Target(CPU, [None]), {"train": make_program()}, {}, plan)
    assert cpu["pool_gib"] is None and cpu["train"]["utilisation"] is None


def test_a_row_has_a_cell_for_each_title(plan):
    config = small_config(**{"train.steps": 86_400})
    costs = DataCosts(2_000, "--clips", 4e9, 0, 3_000_000_000, None, None)
    row = tables.to_row("name", config, 141_000_000, TARGET, plan, costs, {"memory.pieces": 8})
    cells = dict(
        zip(
            *(
                [cell.strip() for cell in line.strip("|").split("|")]
                for line in (tables.ROW_TITLES, row)
            ),
            strict=True,
        )
    )
    assert cells["config"] == "name with `--config.memory.pieces=8`"
    assert (cells["train"], cells["sample"]) == ("10.00 GiB", "5.00 GiB")
    assert cells["pinned host memory"] == "2.00 GiB"
    assert (cells["a step, roofline"], cells["expected"], cells["days"]) == (
        "2.00 s",
        "4.00 s",
        "2.0 to 4.0",
    )
    assert (cells["parameters"], cells["data"]) == ("141 M", "1.5 GB for 1,000 clips")


def test_the_verdict_names_what_does_not_fit(plan):
    plan["train"] = plan["train"]._replace(peak=22 * GIB)
    assert tables.to_verdict(TARGET, plan, {}, plan) == "It does not fit: train would not."
    assert tables.to_verdict(TARGET, plan, {"memory.pieces": 8}, plan).startswith(
        "It does not fit: train would not. Nor does it with --config.memory.pieces=8 (train): shorten"
    )
    host = Target(TARGET.card, TARGET.devices, GIB)
    plan["train"] = plan["train"]._replace(peak=GIB)
    assert tables.to_verdict(host, plan, {}, plan).startswith(
        "It does not fit. The GPUs pin 2.0 GiB"
    )
    assert tables.to_verdict(TARGET, plan, {}, plan) == "It fits."
