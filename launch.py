"""Trains a run: python launch.py --config=configs/dit_512.py --workdir=runs/dit_512; see videogen_jax/launch.py."""

import runpy

from videogen_jax import interrupts

if __name__ == "__main__":
    interrupts.install("launch")
    runpy.run_module("videogen_jax.launch", run_name="__main__", alter_sys=True)
