"""The mesh, and how the rows of a batch are sharded."""

import jax
import numpy as np
import pytest
from jax.sharding import AxisType

from videogen_jax.parallel import mesh as meshes


def test_mesh_has_its_axes_and_the_first_devices():
    mesh = meshes.make_mesh(data=2, seq=2)
    assert dict(mesh.shape) == {"data": 2, "fsdp": 1, "seq": 2, "tensor": 1}
    assert mesh.axis_types == (AxisType.Auto,) * 4
    assert mesh.devices.flatten().tolist() == jax.devices()[:4]
    assert meshes.make_mesh().size == 1


def test_a_mesh_of_more_devices_than_there_are_is_rejected():
    message = r"data=2 x fsdp=4 x seq=3 x tensor=1 needs 24 devices, but there are 8 \(cpu\).*mesh\.data, mesh"
    with pytest.raises(ValueError, match=message):
        meshes.make_mesh(data=2, fsdp=4, seq=3)


def test_a_mesh_can_use_given_devices():
    devices = jax.devices()[4:6]
    assert meshes.make_mesh(seq=2, devices=devices).devices.flatten().tolist() == devices


def test_rows_of_a_batch_are_sharded_in_order():
    mesh = meshes.make_mesh(data=2, fsdp=2)
    rows = {
        "video": np.arange(8 * 3, dtype=np.uint8).reshape(8, 3),
        "text": np.arange(8, dtype=np.int32),
    }
    batch = meshes.put_batch(mesh, rows)
    for name, array in batch.items():
        assert array.dtype == rows[name].dtype
        np.testing.assert_array_equal(array, rows[name])
        for i, shard in enumerate(array.addressable_shards):
            assert shard.device == jax.devices()[i]
            np.testing.assert_array_equal(shard.data, rows[name][2 * i : 2 * i + 2])
