"""The mesh on the devices of a target."""

import jax
import pytest

from tests.planning.plans import small_config
from tests.tiny import tiny_config
from videogen_jax.planning import target


@pytest.mark.parametrize(
    ("mesh", "batch_size", "count", "wanted"),
    [
        ({"seq": 2}, 4, 1, {}),  # one card
        ({"seq": 2}, 1, 4, {"seq": 4}),  # the axis of the config
        ({"data": 2}, 4, 4, {"data": 4}),
        ({"data": 2}, 3, 3, {"data": 3}),
        ({}, 4, 2, {"fsdp": 2}),
        ({}, 1, 2, {"seq": 2}),  # one clip does not divide
        ({"fsdp": 2}, 4, 2, {"fsdp": 2}),  # already as many
        ({"data": 2, "seq": 2}, 1, 2, {"seq": 2}),
    ],
)
def test_the_mesh_follows_the_target(mesh, batch_size, count, wanted, monkeypatch):
    ones = dict.fromkeys(("data", "fsdp", "seq", "tensor"), 1)
    config = tiny_config()
    config.batch_size = batch_size
    config.mesh.update(ones | mesh)
    monkeypatch.setattr(target, "check", lambda config, devices: None)
    found, idle = target.place(config, [None] * count)
    assert found.mesh.to_dict() == ones | wanted and idle == ""


def test_two_axes_are_taken_where_one_does_not_divide():
    """Neither the 4 clips nor their 4 frames divide by 8, but both by a part of it."""
    config = small_config(batch_size=4, **{"data.frames": 4, "model.width": 48})
    found, idle = target.place(config, jax.devices()[:8])
    assert found.mesh.to_dict() == {"data": 1, "fsdp": 4, "seq": 2, "tensor": 1} and idle == ""


def test_devices_that_no_mesh_takes_are_named():
    """Three devices divide neither the 4 clips nor their 16 frames."""
    found, idle = target.place(small_config(), jax.devices()[:3])
    assert found.mesh.to_dict() == {"data": 1, "fsdp": 1, "seq": 2, "tensor": 1}
    assert idle.startswith(
        "1 of the 3 devices stays idle, for no mesh of 3 suits the config: The 16"
    )
    assert "do not divide by mesh.seq=3" in idle


def test_a_config_without_any_mesh_is_refused_by_the_first_error(monkeypatch):
    def refuse(config, devices):
        raise ValueError("the tokens do not divide")

    config = tiny_config()
    config.mesh.fsdp = 2
    monkeypatch.setattr(target, "check", refuse)
    with pytest.raises(ValueError, match="batch_size of 4 does not divide into 3 parts"):
        target.place(config, [None] * 3)


def test_another_mesh_is_said_with_its_options():
    given = {"data": 1, "fsdp": 1, "seq": 2, "tensor": 1}
    assert target.describe_mesh(given, given, 2) == ""
    assert target.describe_mesh(given, given | {"seq": 1}, 1) == (
        "The mesh follows the target: seq=1 for one device, instead of seq=2; train with --config.mesh.seq=1."
    )
