"""DiT in PyTorch, from the paper, with the published tensor names: the reference for models/weights.py."""

import math

import torch
from torch import nn
from torch.nn import functional as F


def table(side, width):
    """(side * side, width): half for columns, half for rows; sines, then cosines of each."""
    rows = []
    for row in range(side):
        for column in range(side):
            numbers = []
            for position in (column, row):
                angles = [position / 10_000 ** (4 * i / width) for i in range(width // 4)]
                numbers += [math.sin(a) for a in angles] + [math.cos(a) for a in angles]
            rows.append(numbers)
    return torch.tensor(rows)


def norm(x, shift, scale):
    return F.layer_norm(x, x.shape[-1:], eps=1e-6) * (1 + scale[:, None]) + shift[:, None]


def modulation(width, parts):
    return nn.Sequential(nn.SiLU(), nn.Linear(width, parts * width))


class Attention(nn.Module):
    def __init__(self, width, heads):
        super().__init__()
        self.heads = heads
        self.qkv = nn.Linear(width, 3 * width)
        self.proj = nn.Linear(width, width)

    def forward(self, x):
        batch, count, width = x.shape
        qkv = self.qkv(x).reshape(batch, count, 3, self.heads, width // self.heads)
        query, key, value = qkv.permute(2, 0, 3, 1, 4)  # (B, K, N, Dh) each
        weight = (query @ key.mT / math.sqrt(width // self.heads)).softmax(-1)
        return self.proj((weight @ value).transpose(1, 2).reshape(x.shape))


class Block(nn.Module):
    def __init__(self, width, heads):
        super().__init__()
        self.attn = Attention(width, heads)
        self.mlp = nn.ModuleDict(
            {"fc1": nn.Linear(width, 4 * width), "fc2": nn.Linear(4 * width, width)}
        )
        self.adaLN_modulation = modulation(width, 6)

    def forward(self, x, condition):
        shift_a, scale_a, gate_a, shift_m, scale_m, gate_m = self.adaLN_modulation(condition).chunk(
            6, dim=1
        )
        x = x + gate_a[:, None] * self.attn(norm(x, shift_a, scale_a))
        y = F.gelu(self.mlp["fc1"](norm(x, shift_m, scale_m)), approximate="tanh")
        return x + gate_m[:, None] * self.mlp["fc2"](y)


class DiT(nn.Module):
    """Images (B, C, side * patch, side * patch) to (B, out, ...)."""

    def __init__(self, width, depth, heads, patch, side, classes, channels, out):
        super().__init__()
        self.patch, self.side = patch, side
        self.x_embedder = nn.ModuleDict({"proj": nn.Conv2d(channels, width, patch, stride=patch)})
        self.t_embedder = nn.ModuleDict(
            {"mlp": nn.Sequential(nn.Linear(256, width), nn.SiLU(), nn.Linear(width, width))}
        )
        self.y_embedder = nn.ModuleDict({"embedding_table": nn.Embedding(classes + 1, width)})
        self.pos_embed = nn.Parameter(table(side, width)[None], requires_grad=False)
        self.blocks = nn.ModuleList([Block(width, heads) for _ in range(depth)])
        self.final_layer = nn.ModuleDict(
            {
                "linear": nn.Linear(width, patch * patch * out),
                "adaLN_modulation": modulation(width, 2),
            }
        )

    def forward(self, image, t, label):
        x = self.x_embedder["proj"](image).flatten(2).transpose(1, 2) + self.pos_embed
        angles = t[:, None] * 10_000 ** (-torch.arange(128) / 128)
        time = self.t_embedder["mlp"](torch.cat([angles.cos(), angles.sin()], dim=1))
        condition = time + self.y_embedder["embedding_table"](label)
        for block in self.blocks:
            x = block(x, condition)
        shift, scale = self.final_layer["adaLN_modulation"](condition).chunk(2, dim=1)
        x = self.final_layer["linear"](norm(x, shift, scale))
        x = x.unflatten(2, (self.patch, self.patch, -1)).unflatten(1, (self.side, self.side))
        return (
            x.permute(0, 5, 1, 3, 2, 4).flatten(4).flatten(2, 3)
        )  # b h w p q c to b c (h p) (w q)
