"""diffusers' video autoencoders with random weights, small but with every branch."""

import numpy as np
import pytest

NEWER = {
    "down_block_types": ("LTXVideo095DownBlock3D",) * 4,
    "downsample_type": ("spatial", "temporal", "spatiotemporal", "spatiotemporal"),
    "block_out_channels": (4, 8, 8, 16, 16),
    "decoder_block_out_channels": (16, 16, 32),
    "decoder_layers_per_block": (1, 1, 1, 1),
    "spatio_temporal_scaling": (True,) * 4,
    "decoder_spatio_temporal_scaling": (True,) * 3,
    "decoder_inject_noise": (False,) * 4,
    "upsample_residual": (True, False, True),
    "upsample_factor": (2, 1, 2),
    "timestep_conditioning": False,
}
TIMED = {
    "timestep_conditioning": True,
    "decoder_block_out_channels": (8, 16, 32),
    "upsample_factor": (2, 2, 2),
}
LTX = {
    "latent_channels": 4,
    "block_out_channels": (4, 8, 8, 12),
    "decoder_block_out_channels": (4, 8, 8, 12),
    "layers_per_block": (1, 1, 1, 1, 1),
    "decoder_layers_per_block": (1, 1, 1, 1, 1),
    "patch_size": 1,
}
# Two levels: half the layers to compile, with the same branches.
LTX_SHALLOW = LTX | {
    "block_out_channels": (4, 8),
    "down_block_types": ("LTXVideoDownBlock3D",) * 2,
    "decoder_block_out_channels": (4, 8),
    "layers_per_block": (1, 1, 1),
    "decoder_layers_per_block": (1, 1, 1),
    "spatio_temporal_scaling": (True, False),
    "decoder_spatio_temporal_scaling": (True, False),
    "decoder_inject_noise": (False,) * 3,
    "downsample_type": ("conv",) * 2,
    "upsample_residual": (False,) * 2,
    "upsample_factor": (1,) * 2,
}
WAN = {
    "base_dim": 4,
    "z_dim": 3,
    "dim_mult": [1, 2, 2, 3],
    "num_res_blocks": 1,
    "latents_mean": [0.1, -0.2, 0.3],
    "latents_std": [1.5, 0.5, 2.0],
}
WAN_22 = {
    "dim_mult": [1, 2, 4, 4],
    "decoder_base_dim": 6,
    "is_residual": True,
    "patch_size": 2,
    "in_channels": 12,
    "out_channels": 12,
}
# name: (vae.name, fields of config.json)
NETWORKS = {
    "wan": ("wan", WAN),
    "wan 2.2": ("wan", WAN | WAN_22),
    "ltx": ("ltx", LTX),
    "ltx shallow": ("ltx", LTX_SHALLOW),
    "ltx 0.9.5": ("ltx", LTX | NEWER),
    "ltx timed": ("ltx", LTX | NEWER | TIMED),
    "ltx causal": ("ltx", LTX | {"decoder_causal": True}),
}  # fmt: skip


def make_network(name):
    """(vae.name, diffusers' network with random weights)."""
    torch = pytest.importorskip("torch", reason="diffusers' networks need PyTorch")
    diffusers = pytest.importorskip("diffusers", reason="the reference implementation")
    kind, fields = NETWORKS[name]
    torch.manual_seed(0)
    made = {"wan": diffusers.AutoencoderKLWan, "ltx": diffusers.AutoencoderKLLTXVideo}[kind](
        **fields
    )
    with torch.no_grad():
        for label, parameter in made.named_parameters():
            if "norm" in label:
                parameter += 0.3 * torch.randn_like(parameter)
            elif "scale_shift_table" not in label and "multiplier" not in label:
                parameter *= 1.5
        if kind == "ltx":
            made.latents_mean += torch.linspace(-0.5, 0.5, len(made.latents_mean))
            made.latents_std *= torch.linspace(0.5, 2, len(made.latents_std))
    return kind, made.eval()


def statistics(network):
    """Mean and deviation, by which diffusers' pipelines normalize latents."""
    if "latents_mean" in dict(network.named_buffers()):
        return network.latents_mean.numpy(), network.latents_std.numpy()
    return np.float32(network.config.latents_mean), np.float32(network.config.latents_std)


def encode(network, video):
    """Mean and deviation of the latents (B, T, h, w, C) of videos (B, T, H, W, 3), not normalized."""
    import torch

    x = torch.from_numpy(np.ascontiguousarray(video.transpose(0, 4, 1, 2, 3)))
    with torch.no_grad():
        latents = network.encode(x).latent_dist
    return (np.moveaxis(moment.numpy(), 1, -1) for moment in (latents.mean, latents.std))


def decode(network, latents):
    """Videos of latents that are not normalized, clipped to [-1, 1]."""
    import torch

    z = torch.from_numpy(np.ascontiguousarray(latents.transpose(0, 4, 1, 2, 3)))
    # At time 0, as diffusers' pipeline does by default.
    timed = getattr(network.config, "timestep_conditioning", False)
    options = {"temb": torch.zeros(len(z))} if timed else {}
    with torch.no_grad():
        video = network.decode(z, **options).sample
    return np.clip(np.moveaxis(video.numpy(), 1, -1), -1, 1)
