"""Latte in PyTorch, written for speed, with the tensor names of diffusers' `LatteTransformer3DModel`.

It computes what diffusers' class does (tests/test_torch_latte.py holds it against that class) with less work: the
caption's keys and values are projected once per clip instead of once per frame, modulation is broadcast instead of
repeated for every frame and place, the residual stream keeps the type of the products under autocast, and blocks can be
compiled one by one. Attention is `scaled_dot_product_attention`, on a GPU flash attention.

Source: Latte, arXiv:2401.03048, variant 1; adaLN-single and cross-attention, PixArt-alpha, arXiv:2310.00426.
"""

import numpy as np
import torch
from torch import nn
from torch.nn import functional
from torch.utils.checkpoint import checkpoint

TIME_FEATURES = 256


class Attention(nn.Module):
    """Multi-head attention to the sequence itself or to a context."""

    def __init__(self, width: int, heads: int):
        super().__init__()
        self.heads = heads
        self.to_q, self.to_k, self.to_v = (nn.Linear(width, width) for _ in range(3))
        self.to_out = nn.ModuleList([nn.Linear(width, width)])

    def forward(self, x: torch.Tensor, context: torch.Tensor | None = None) -> torch.Tensor:
        """(S, N, D), context (S, M, D), to (S, N, D)."""
        context = x if context is None else context
        projected = (self.to_q(x), self.to_k(context), self.to_v(context))
        parts = (part.unflatten(-1, (self.heads, -1)).transpose(1, 2) for part in projected)
        y = functional.scaled_dot_product_attention(*parts)  # (S, K, N, Dh)
        return self.to_out[0](y.transpose(1, 2).flatten(2))


class MLP(nn.Module):
    """Two linear layers with the tanh form of GELU between them."""

    def __init__(self, width: int):
        super().__init__()
        up = nn.ModuleDict({"proj": nn.Linear(width, 4 * width)})
        self.net = nn.ModuleList([up, nn.Identity(), nn.Linear(4 * width, width)])

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """(..., D) to (..., D)."""
        return self.net[2](functional.gelu(self.net[0]["proj"](x), approximate="tanh"))


def modulate(x: torch.Tensor, shift: torch.Tensor, scale: torch.Tensor) -> torch.Tensor:
    """Layer norm, scaled by 1 + `scale` and shifted, of the type of x: (B, G, N, D) with (B, 1, 1, D)."""
    y = functional.layer_norm(x, x.shape[-1:], eps=1e-6) * (1 + scale) + shift
    return y.to(x.dtype)  # autocast would cast it again for each of three projections


class Block(nn.Module):
    """A spatial block, with cross-attention to the caption, or a temporal one."""

    def __init__(self, width: int, heads: int, cross: bool):
        super().__init__()
        self.scale_shift_table = nn.Parameter(torch.randn(6, width) / width**0.5)
        self.attn1 = Attention(width, heads)
        self.attn2 = Attention(width, heads) if cross else None
        self.ff = MLP(width)

    def forward(
        self, x: torch.Tensor, time: torch.Tensor, text: torch.Tensor | None = None
    ) -> torch.Tensor:
        """Attends over N: x (B, G, N, D), time (B, 6 D), text (B, L, D), to (B, G, N, D)."""
        parts = self.scale_shift_table + time.unflatten(-1, (6, -1))  # (B, 6, D)
        parts = (part[:, None, None] for part in parts.unbind(1))
        shift_a, scale_a, gate_a, shift_m, scale_m, gate_m = parts
        groups = x.shape[:2]
        y = self.attn1(modulate(x, shift_a, scale_a).flatten(0, 1))
        x = x + (gate_a * y.unflatten(0, groups)).to(x.dtype)
        if self.attn2 is not None:
            x = x + self.attn2(x.flatten(1, 2), text).unflatten(1, groups[1:] + x.shape[2:3])
        return x + (gate_m * self.ff(modulate(x, shift_m, scale_m))).to(x.dtype)


def embed_time(t: torch.Tensor) -> torch.Tensor:
    """Cosines, then sines: (B,) to (B, 256) float32."""
    steps = torch.arange(TIME_FEATURES // 2, device=t.device, dtype=torch.float32)
    angles = t.float()[:, None] * torch.exp(-np.log(10_000) * steps / (TIME_FEATURES // 2))
    return torch.cat([angles.cos(), angles.sin()], dim=1)


def sincos(positions: np.ndarray, width: int) -> np.ndarray:
    """Sines, then cosines: (N,) to (N, width) float64."""
    angles = positions[:, None] / 10_000 ** (np.arange(width // 2) / (width // 2))
    return np.concatenate([np.sin(angles), np.cos(angles)], axis=1)


def sincos_2d(positions: np.ndarray, width: int) -> np.ndarray:
    """Half of the numbers for the column, half for the row: (N,) along an axis to (N N, width)."""
    across, down = np.meshgrid(positions, positions)
    parts = [sincos(axis.reshape(-1), width // 2) for axis in (across, down)]
    return np.concatenate(parts, axis=1)


class Latte(nn.Module):
    """Text to video Latte."""

    def __init__(
        self,
        *,
        width: int,
        depth: int,
        heads: int,
        frames: int,
        size: int,
        patch: int,
        channels: int,
        text_width: int,
        remat: bool = False,
    ):
        """Builds the model.

        Args:
          width: D.
          depth: number of blocks, spatial and temporal ones together.
          heads: of attention.
          frames: T.
          size: height and width of the latents.
          patch: height and width of a patch.
          channels: of the latents.
          text_width: E of the caption embeddings.
          remat: recompute every block in the backward pass (activation checkpointing).
        """
        super().__init__()
        self.patch, self.channels, self.remat = patch, channels, remat
        convolution = nn.Conv2d(channels, width, patch, stride=patch)
        self.pos_embed = nn.ModuleDict({"proj": convolution})
        self.transformer_blocks = nn.ModuleList(
            Block(width, heads, True) for _ in range(depth // 2)
        )
        self.temporal_transformer_blocks = nn.ModuleList(
            Block(width, heads, False) for _ in range(depth // 2)
        )
        self.scale_shift_table = nn.Parameter(torch.randn(2, width) / width**0.5)
        self.proj_out = nn.Linear(width, patch * patch * channels)
        embedder = {
            "linear_1": nn.Linear(TIME_FEATURES, width),
            "linear_2": nn.Linear(width, width),
        }
        embedder = nn.ModuleDict({"timestep_embedder": nn.ModuleDict(embedder)})
        self.adaln_single = nn.ModuleDict({"emb": embedder, "linear": nn.Linear(width, 6 * width)})
        layers = {"linear_1": nn.Linear(text_width, width), "linear_2": nn.Linear(width, width)}
        self.caption_projection = nn.ModuleDict(layers)
        # diffusers shrinks the positions of large frames into the range of 64 latents.
        spatial = sincos_2d(np.arange(size // patch) / max(size // 64, 1), width)
        for name, table in (("spatial", spatial), ("temporal", sincos(np.arange(frames), width))):
            self.register_buffer(name, torch.from_numpy(table).float(), persistent=False)

    def compile_blocks(self) -> None:
        """Compiles the blocks by torch.compile, each kind once: what all 28 of them share."""
        for block in (*self.transformer_blocks, *self.temporal_transformer_blocks):
            block.compile(dynamic=False)

    def forward(self, x: torch.Tensor, t: torch.Tensor, tokens: torch.Tensor) -> torch.Tensor:
        """Predicts the noise.

        Args:
          x: (B, T, H, W, C).
          t: (B,), 0 to 999.
          tokens: (B, L, E), caption embeddings.
        Returns:
          (B, T, H, W, C).
        """
        batch, frames, height, width = x.shape[:4]
        grid = (height // self.patch, width // self.patch)
        x = self.pos_embed["proj"](x.flatten(0, 1).movedim(-1, 1))  # (B T, D, h, w)
        x = (
            (x.flatten(2).mT + self.spatial).to(x.dtype).unflatten(0, (batch, frames))
        )  # (B, T, N, D)
        embedder = self.adaln_single["emb"]["timestep_embedder"]
        embedded = embedder["linear_2"](functional.silu(embedder["linear_1"](embed_time(t))))
        time = self.adaln_single["linear"](functional.silu(embedded))  # (B, 6 D)
        text = self.caption_projection["linear_1"](tokens)
        text = self.caption_projection["linear_2"](functional.gelu(text, approximate="tanh"))
        pairs = zip(self.transformer_blocks, self.temporal_transformer_blocks, strict=True)
        for i, (spatial, temporal) in enumerate(pairs):
            x = self._run(spatial, x, time, text).transpose(1, 2)  # (B, N, T, D)
            if i == 0:
                x = (x + self.temporal[:frames]).to(x.dtype)
            x = self._run(temporal, x, time).transpose(1, 2)
        shift, scale = (self.scale_shift_table + embedded[:, None]).unbind(1)  # (B, D) each
        x = self.proj_out(modulate(x, shift[:, None, None], scale[:, None, None]))
        x = x.view(batch, frames, *grid, self.patch, self.patch, self.channels)
        return x.transpose(3, 4).reshape(batch, frames, height, width, self.channels)

    def _run(self, block: Block, *inputs: torch.Tensor) -> torch.Tensor:
        if self.remat and torch.is_grad_enabled():
            return checkpoint(block, *inputs, use_reentrant=False)
        return block(*inputs)
