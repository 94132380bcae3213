"""taef2 in PyTorch, from its description, independent of the JAX implementation."""

import torch
from torch import nn


def conv(inputs, outputs, **options):
    return nn.Conv2d(inputs, outputs, 3, padding=1, **options)


class Block(nn.Module):
    def __init__(self, pool=False):
        super().__init__()
        self.conv = nn.Sequential(conv(64, 64), nn.ReLU(), conv(64, 64), nn.ReLU(), conv(64, 64))
        if pool:
            self.pool = nn.Sequential(
                nn.Conv2d(64, 256, 1, bias=False),
                nn.GroupNorm(4, 256),
                nn.ReLU(),
                nn.Conv2d(256, 64, 1, bias=False),
            )

    def forward(self, x):
        if hasattr(self, "pool"):
            x = x + self.pool(x)
        return torch.relu(self.conv(x) + x)


class Limit(nn.Module):
    def forward(self, x):
        return 3 * torch.tanh(x / 3)


def down():
    return conv(64, 64, stride=2, bias=False)


def up():
    return nn.Upsample(scale_factor=2, mode="nearest"), conv(64, 64, bias=False)


class Taef2(nn.Module):
    """`encoder` and `decoder`, with the tensor names of the published file."""

    def __init__(self):
        super().__init__()
        blocks, pools = lambda: [Block() for _ in range(3)], lambda: [Block(True) for _ in range(3)]
        self.encoder = nn.Sequential(
            conv(3, 64),
            Block(),
            down(),
            *blocks(),
            down(),
            *blocks(),
            down(),
            *pools(),
            conv(64, 32),
        )
        self.decoder = nn.Sequential(
            *(Limit(), conv(32, 64), nn.ReLU(), *pools(), *up(), *blocks(), *up(), *blocks()),
            *(*up(), Block(), conv(64, 3)),
        )
