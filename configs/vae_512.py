"""The target's autoencoder: 17 frames of 256x256 to train on, to be used on 477 frames of 512x512 (120 latents).

    python -m videogen_jax.pack --input=CLIPS --output=runs/vae_512/clips --size=288 --fps=24 --frames=17
    python launch.py --config=configs/vae_512.py --workdir=runs/vae_512
    python -m videogen_jax.pack --input=CLIPS --output=runs/vae_512/long --size=512 --fps=24 --frames=477
    python -m videogen_jax.encode --config=configs/dit_512.py --input=runs/vae_512/long --output=runs/vae_512/latents \
        --config.vae.name=workdir --config.vae.path=runs/vae_512 --config.data.frames=477

The network looks at neighbours only, so that it takes pictures and clips of any size; a clip for it has 1 + 4k frames.
The perceptual term wants VGG16's weights in perceptual.path (timm/vgg16.tv_in1k on the hub).
Hardware: two GPUs of 24 GB. 26.8 million parameters. Memory, wall time and result: unmeasured.
"""

import ml_collections


def get_config() -> ml_collections.ConfigDict:
    """The locked config."""
    config = ml_collections.ConfigDict()
    config.seed = 0
    config.batch_size = 4  # clips per optimizer step, over all devices

    config.data = data = ml_collections.ConfigDict()
    data.path = "runs/vae_512/clips"  # of videogen_jax.pack
    data.frames = 17  # per clip, cut at random from the packed ones: 1 and whole groups
    data.height = 256  # pixels, as packed or less: a window, cut at random in training
    data.width = 256  # pixels, the same
    data.fps = 24.0  # frames per second of the reconstructions shown
    data.flip = True  # mirror half of the clips
    data.shuffle_window = 512  # records
    data.threads = 8  # of the input pipeline

    config.augment = augment = ml_collections.ConfigDict()
    augment.fps_min = 0.0  # frames per second, slowest rate that clips are taken at; 0: as packed
    augment.fps_max = 0.0  # the fastest, at most the packed one; log-uniform between
    augment.jitter = 0.0  # strength: brightness, contrast, saturation times 1 - this to 1 + this
    augment.variants = 1  # 1: pixels are augmented anew in every epoch

    config.autoencoder = autoencoder = ml_collections.ConfigDict()
    autoencoder.channels = 16  # of the latents
    autoencoder.patch = (1, 2, 2)  # frames, pixels, pixels that enter as one place
    autoencoder.strides = ((2, 2, 2), (2, 2, 2))  # from level to level, to 4x in time, 8x in space
    autoencoder.widths = (96, 256, 512)  # channels of each level
    autoencoder.blocks = 3  # of each level, in the encoder and in the decoder

    config.loss = loss = ml_collections.ConfigDict()
    loss.kl_weight = 1e-6  # of the KL per number of the video, beside the L1 distance

    config.perceptual = perceptual = ml_collections.ConfigDict()
    perceptual.path = (
        ""  # of VGG16's weights: file, folder, or name on the hub; empty: no such term
    )
    perceptual.weight = 0.1  # beside the L1 distance
    perceptual.frames = 1  # of each clip in each step

    config.learning_rate = learning_rate = ml_collections.ConfigDict()
    learning_rate.peak = 1e-3
    learning_rate.warmup_steps = 1000
    learning_rate.final_fraction = 0.01  # of the peak, after the cosine

    config.optimizer = optimizer = ml_collections.ConfigDict()
    optimizer.name = "muon"  # adamw, adafactor, lion, muon, schedule_free
    optimizer.b1 = 0.95
    optimizer.b2 = 0.95
    optimizer.weight_decay = 0.05
    optimizer.clip_norm = 1.0  # largest gradient norm
    optimizer.mu_dtype = "float32"  # float32, bfloat16: of the first moment

    config.train = train = ml_collections.ConfigDict()
    train.steps = 200_000  # optimizer steps
    train.precision = "bfloat16"  # float32, bfloat16, float16; parameters are always float32
    train.accumulation = 1  # parts in which a step takes its batch
    train.log_every = 100  # steps
    train.validation_batches = 4

    config.memory = memory = ml_collections.ConfigDict()
    memory.remat = "block"  # none, block: what the backward pass computes again
    memory.offload_optimizer = False  # the moments wait in the host's memory
    memory.offload_ema = False

    config.ema = ema = ml_collections.ConfigDict()
    ema.decays = (0.999,)  # moving averages of the parameters; the first one encodes and decodes
    ema.widths = ()  # relative widths of power averages, like 0.05 and 0.1
    ema.snapshot_every = 0  # steps between snapshots of the power averages

    config.mesh = mesh = ml_collections.ConfigDict()
    mesh.data = 1  # copies of the parameters
    mesh.fsdp = 2  # devices that share one copy, each with clips of its own
    mesh.seq = 1  # 1: devices cannot share a clip here
    mesh.tensor = 1  # 1: nor a layer

    config.checkpoint = checkpoint = ml_collections.ConfigDict()
    checkpoint.every = 2000  # steps
    checkpoint.keep = 1  # newest ones, beside the best

    config.sample = sample = ml_collections.ConfigDict()
    sample.every = 5000  # steps
    sample.clips = 4  # of the validation split, shown beside their reconstructions

    config.profile = profile = ml_collections.ConfigDict()
    profile.first_step = 0  # step, counted from 1, from which on the program is traced; 0: never
    profile.steps = 3  # so many

    config.wandb = wandb = ml_collections.ConfigDict()
    wandb.project = (
        ""  # on Weights & Biases, where the dashboard is too; empty: on TensorBoard alone
    )
    wandb.mode = "online"  # online, offline (for `wandb sync`)
    return config.lock()
