"""Trains a run: python launch.py --config=configs/dit_512.py --workdir=runs/dit_512; see videogen_jax/launch.py."""

from videogen_jax import launch

if __name__ == "__main__":
    launch.start()
