"""A video autoencoder of the moving shapes at 64x64, from scratch, on two CPU cores.

    python -m videogen_jax.pack --synthetic=moving_shapes --clips=1152 --size=64 --frames=17 \
        --output=runs/vae_moving_shapes/data
    python launch.py --config=configs/vae_moving_shapes.py --workdir=runs/vae_moving_shapes

A diffusion model on its latents: docs/latents.md. 0.59 million parameters.
Hardware: two cores of an AMD EPYC virtual machine that others used too, no GPU. Processor time 552 s from start to end,
21 min of wall time; result: 30.3 dB on 16 validation clips (30 dB after 1,100 steps); 2026-11-25.
"""

import ml_collections


def get_config() -> ml_collections.ConfigDict:
    """The locked config."""
    config = ml_collections.ConfigDict()
    config.seed = 0
    config.batch_size = 4  # clips per optimizer step, over all devices

    config.data = data = ml_collections.ConfigDict()
    data.path = "runs/vae_moving_shapes/data"  # of videogen_jax.pack
    data.frames = 9  # per clip, cut at random from the packed ones: 1 and whole groups
    data.height = 64  # pixels, as packed or less: a window, cut at random in training
    data.width = 64  # pixels, the same
    data.fps = 8.0  # frames per second of the reconstructions shown
    data.flip = True  # mirror half of the clips
    data.shuffle_window = 2048  # records
    data.threads = 1  # of the input pipeline

    config.augment = augment = ml_collections.ConfigDict()
    augment.fps_min = 0.0  # frames per second, slowest rate that clips are taken at; 0: as packed
    augment.fps_max = 0.0  # the fastest, at most the packed one; log-uniform between
    augment.jitter = 0.0  # strength: brightness, contrast, saturation times 1 - this to 1 + this
    augment.variants = 1  # 1: pixels are augmented anew in every epoch

    config.autoencoder = autoencoder = ml_collections.ConfigDict()
    autoencoder.channels = 16  # of the latents
    autoencoder.patch = (4, 4, 4)  # frames, pixels, pixels that enter as one place
    autoencoder.strides = ((1, 2, 2),)  # from level to level, to 4x in time, 8x in space
    autoencoder.widths = (64, 128)  # channels of each level
    autoencoder.blocks = 1  # of each level, in the encoder and in the decoder

    config.loss = loss = ml_collections.ConfigDict()
    loss.kl_weight = 1e-4  # of the KL per number of the video, beside the L1 distance

    config.perceptual = perceptual = ml_collections.ConfigDict()
    perceptual.path = (
        ""  # of VGG16's weights: file, folder, or name on the hub; empty: no such term
    )
    perceptual.weight = 0.1  # beside the L1 distance
    perceptual.frames = 1  # of each clip in each step

    config.learning_rate = learning_rate = ml_collections.ConfigDict()
    learning_rate.peak = 6e-3
    learning_rate.warmup_steps = 20
    learning_rate.final_fraction = 0.01  # of the peak, after the cosine

    config.optimizer = optimizer = ml_collections.ConfigDict()
    optimizer.name = "muon"  # adamw, adafactor, lion, muon, schedule_free
    optimizer.b1 = 0.95
    optimizer.b2 = 0.95
    optimizer.weight_decay = 0.05
    optimizer.clip_norm = 1.0  # largest gradient norm
    optimizer.mu_dtype = "float32"  # float32, bfloat16: of the first moment

    config.train = train = ml_collections.ConfigDict()
    train.steps = 1300  # optimizer steps
    train.precision = "float32"  # float32, bfloat16, float16; parameters are always float32
    train.accumulation = 1  # parts in which a step takes its batch
    train.log_every = 50  # steps
    train.validation_batches = 4

    config.memory = memory = ml_collections.ConfigDict()
    memory.remat = "none"  # none, block: what the backward pass computes again
    memory.offload_optimizer = False  # the moments wait in the host's memory
    memory.offload_ema = False

    config.ema = ema = ml_collections.ConfigDict()
    ema.decays = (0.99,)  # moving averages of the parameters; the first one encodes and decodes
    ema.widths = ()  # relative widths of power averages, like 0.05 and 0.1
    ema.snapshot_every = 0  # steps between snapshots of the power averages

    config.mesh = mesh = ml_collections.ConfigDict()
    mesh.data = 1  # copies of the parameters
    mesh.fsdp = 1  # devices that share one copy, each with clips of its own
    mesh.seq = 1  # 1: devices cannot share a clip here
    mesh.tensor = 1  # 1: nor a layer

    config.checkpoint = checkpoint = ml_collections.ConfigDict()
    checkpoint.every = 100  # steps
    checkpoint.keep = 1  # newest ones, beside the best

    config.sample = sample = ml_collections.ConfigDict()
    sample.every = 400  # steps
    sample.clips = 8  # of the validation split, shown beside their reconstructions

    config.profile = profile = ml_collections.ConfigDict()
    profile.first_step = 0  # step, counted from 1, from which on the program is traced; 0: never
    profile.steps = 3  # so many

    config.wandb = wandb = ml_collections.ConfigDict()
    wandb.project = (
        ""  # on Weights & Biases, where the dashboard is too; empty: on TensorBoard alone
    )
    wandb.mode = "online"  # online, offline (for `wandb sync`)
    return config.lock()
