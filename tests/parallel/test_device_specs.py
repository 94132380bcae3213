"""Devices by name, and by a description file."""

import jax
import pytest

from videogen_jax.parallel import device_specs


@pytest.mark.parametrize(
    ("text", "name", "count"),
    [
        ("rtx3090x2", "rtx3090", 2),
        ("h200", "h200", 1),
        ("a100x8", "a100", 8),
        ("cpux4", "cpu", 4),
        ("rtx4090", "rtx4090", 1),  # and not 4090 of "rt"
        ("rtx4090x2", "rtx4090", 2),
        ("RTX 4090", "rtx4090", 1),
        ("NVIDIA GeForce RTX 3090 x 2", "rtx3090", 2),
    ],
)
def test_a_target_is_a_card_and_a_count(text, name, count):
    card, number = device_specs.parse_target(text)
    assert (card.name, number) == (name, count)


@pytest.mark.parametrize("name", device_specs.CARDS)
def test_every_card_is_known_by_its_plain_name(name):
    for text, count in ((name, 1), (f"{name}x3", 3)):
        card, number = device_specs.parse_target(text)
        assert (card.name, number) == (name, count)


@pytest.mark.parametrize("text", ["rtx5090x2", "rtx5090", "", "x2", "2xrtx3090"])
def test_the_error_for_an_unknown_target_lists_the_choices(text):
    with pytest.raises(ValueError, match="choose rtx3090, a40, rtx4090, a100, h100, h200, cpu, or"):
        device_specs.parse_target(text)


def test_zero_devices_are_rejected():
    for text in ("a100x0", "a100x99999"):
        with pytest.raises(ValueError, match="write a100x1 to a100x1024"):
            device_specs.parse_target(text)


def test_a_description_file_is_a_card(tmp_path):
    path = tmp_path / "rtx3090ti.textproto"
    path.write_text(device_specs.CARDS["rtx3090"].description)
    card, count = device_specs.parse_target(f"{path}x2")
    assert count == 2 and card.name == "rtx3090ti"
    assert card.memory == device_specs.CARDS["rtx3090"].memory and card.bandwidth == 936e9
    assert card.flops is None


@pytest.mark.parametrize("field", device_specs.FIELDS)
def test_a_missing_field_of_a_description_is_named(field, tmp_path):
    path = tmp_path / "card.txt"
    text = device_specs.CARDS["a40"].description
    path.write_text(text.replace(f"{field}:", f"x{field}:"))
    with pytest.raises(ValueError, match=f"card.txt lacks {field}: write a GpuTargetConfigProto"):
        device_specs.parse_target(str(path))


def test_a_description_without_a_number_of_bytes_is_rejected(tmp_path):
    path = tmp_path / "card.txt"
    text = device_specs.CARDS["a40"].description
    path.write_text(text.replace("device_memory_size: 4", "device_memory_size: -4"))
    with pytest.raises(ValueError, match="device_memory_size in .*card.txt is -4"):
        device_specs.parse_target(f"{path}x2")


def test_fewer_lanes_slow_what_crosses_pcie():
    """PCIe 4.0 carries 2 GB/s a lane and direction, 5.0 twice that; NVLink is not PCIe."""
    for name, lane in (("rtx3090", 2e9), ("h100", 4e9)):
        card = device_specs.CARDS[name]
        for lanes in (16, 8, 4):
            slower = device_specs.with_lanes(card, lanes)
            assert slower.host_link == lanes * lane
            assert slower.link == (card.link if name == "h100" else lanes * lane)
            assert slower._replace(link=card.link, host_link=card.host_link) == card
    cpu = device_specs.CARDS["cpu"]
    assert device_specs.with_lanes(cpu, 8) == cpu


def test_cpu_devices_are_those_of_this_process():
    card, _ = device_specs.parse_target("cpu")
    assert device_specs.find_devices(card, 2) == jax.devices("cpu")[:2]
    with pytest.raises(ValueError, match="CPU devices, not 99"):
        device_specs.find_devices(card, 99)


@pytest.mark.parametrize("name", [name for name in device_specs.CARDS if name != "cpu"])
def test_cards_have_24_gb_or_more_and_plausible_speeds(name):
    card = device_specs.CARDS[name]
    assert 23 * 2**30 < card.memory < 142 * 2**30
    # The arithmetic intensity at which compute and memory balance is plausible.
    assert 50 < card.flops / card.bandwidth < 500 and card.link >= 32e9
