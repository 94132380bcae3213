"""A config small enough to compile and run within a second or two: the quick start, shrunk."""

import ml_collections

from configs import quickstart, vae_arcade, vae_moving_shapes
from videogen_jax.run import saved_config
from videogen_jax.train.run_kinds import find_kind


def tiny_config() -> ml_collections.ConfigDict:
    """The quick start's config, unlocked: 4 frames of 8x8 pixels, two blocks of width 12."""
    config = quickstart.get_config().unlock()
    config.batch_size = 4
    config.data.update({"frames": 4, "height": 8, "width": 8, "fps": 8.0, "flip": False})
    config.data.update({"path": "no data", "shuffle_window": 16, "threads": 1})
    config.text.update({"vocabulary_size": 32, "length": 8, "dropout": 0.1})
    config.model.update({"width": 12, "depth": 2, "num_heads": 2, "mlp_ratio": 2})
    config.model.update({"cross_attention": "none", "text_depth": 0})
    config.model.patch_size = (1, 4, 4)
    config.schedule.update({"name": "cosine", "num_steps": 1000, "shift": 1.0})
    config.schedule.zero_terminal_snr = True
    config.objective.update({"prediction": "x0", "weighting": "uniform", "gamma": 5.0})
    config.learning_rate.update({"peak": 2e-3, "warmup_steps": 2, "final_fraction": 0.1})
    config.optimizer.update({"name": "adamw", "b1": 0.9, "b2": 0.95, "weight_decay": 0.01})
    config.optimizer.clip_norm = 1.0
    config.train.update({"steps": 10, "precision": "float32", "accumulation": 1, "log_every": 2})
    config.train.validation_batches = 1
    config.ema.update({"decays": (0.9,), "widths": (), "snapshot_every": 0})
    config.mesh.update({"data": 1, "fsdp": 2, "seq": 1, "tensor": 1})
    config.memory.unroll = 1  # compiles faster
    config.checkpoint.update({"every": 5, "keep": 2})
    config.sample.prompts = ("a red circle moving left", "a blue square moving up")
    config.sample.update({"every": 5, "batch_size": 2, "num_inference_steps": 3})
    config.sample.update({"sampler": "ddim", "guidance_scale": 2.0, "spacing": "trailing"})
    config.sample.guidance_interval = ()
    return config


def tiny_vae_config() -> ml_collections.ConfigDict:
    """The autoencoder of the moving shapes, unlocked and shrunk: 5 frames of 16x16 pixels, widths of 8."""
    config = vae_moving_shapes.get_config().unlock()
    config.batch_size = 2
    config.data.update({"path": "no data", "frames": 5, "height": 16, "width": 16})
    config.data.shuffle_window = 16
    config.autoencoder.update({"channels": 4, "widths": (8, 8), "blocks": 1})
    config.learning_rate.update({"peak": 1e-2, "warmup_steps": 2})
    config.optimizer.name = "adamw"
    config.train.update({"steps": 4, "log_every": 2, "validation_batches": 1})
    config.checkpoint.every = 2
    config.sample.update({"every": 4, "clips": 2})
    return config


def write_autoencoders(folder):
    """Describes in `folder` the runs that the configs of the arcade games name in vae.path; without checkpoints."""
    for name in ("vae", "vae_128"):
        workdir = folder / "runs/arcade" / name
        workdir.mkdir(parents=True)
        saved_config.write_config(workdir, vae_arcade.get_config())


def make_run(config, mesh=None, null_text=None):
    """The run of a config, as the train loop makes it."""
    return find_kind(config).make_run(config, mesh, null_text)
