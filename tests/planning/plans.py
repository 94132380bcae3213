"""Configs, devices and programs that the tests of planning share."""

from tests.tiny import tiny_config
from videogen_jax.parallel import device_specs
from videogen_jax.planning.programs import Program

CPU = device_specs.CARDS["cpu"]
GIB = 2**30


def small_config(**changes):
    """Two devices on each clip, and activations that outweigh the parameters."""
    config = tiny_config()
    config.data.update({"frames": 16, "height": 32, "width": 32})
    config.mesh.update({"data": 1, "fsdp": 1, "seq": 2, "tensor": 1})
    config.model.update({"depth": 8, "cross_attention": "gated"})
    config.sample.batch_size = 1
    config.update_from_flattened_dict(changes)
    return config


def make_program(**fields):
    """A program of 1 GiB on two devices, without kernels."""
    blank = dict(resident=0, devices=2, host=0, collectives=0, flops=None, wire={}, least_wire=None)
    blank |= {"kernels": [], "roofline": None, "expected": None}
    peak = fields.get("peak", GIB)
    return Program(**{"memory": {"activations": peak}, "peak": peak} | blank | fields)
