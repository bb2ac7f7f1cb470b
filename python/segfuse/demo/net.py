"""A small 2-D U-Net: 10 encoder convolutions, 8 decoder layers, BatchNorm, 110,017 parameters."""

from __future__ import annotations

import itertools
from typing import cast

import torch
from torch import Tensor, nn

WIDTHS = (8, 16, 24, 32, 48)
STRIDE = 2 ** (len(WIDTHS) - 1)  # height and width of an input are multiples of this


def _conv(inputs: int, outputs: int) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(inputs, outputs, 3, padding=1, bias=False), nn.BatchNorm2d(outputs), nn.ReLU(inplace=True)
    )


class UNet(nn.Module):
    """``(N, 1, H, W)`` image in, ``(N, 1, H, W)`` logits out; ``H`` and ``W`` are multiples of 16."""

    def __init__(self, widths: tuple[int, ...] = WIDTHS) -> None:
        super().__init__()
        pairs = list(itertools.pairwise(widths))
        self.encoder = nn.ModuleList(nn.Sequential(_conv(i, o), _conv(o, o)) for i, o in [(1, widths[0]), *pairs])
        self.up = nn.ModuleList(nn.ConvTranspose2d(o, i, 2, stride=2) for i, o in reversed(pairs))
        self.decoder = nn.ModuleList(_conv(2 * i, i) for i, _ in reversed(pairs))
        self.head = nn.Conv2d(widths[0], 1, 1)
        self.to(memory_format=torch.channels_last)  # type: ignore[call-overload]  # 1.4 to 1.6 times faster on a CPU

    def forward(self, image: Tensor) -> Tensor:
        x = image.contiguous(memory_format=torch.channels_last)
        skips: list[Tensor] = []
        for level, encode in enumerate(self.encoder):
            x = encode(nn.functional.max_pool2d(x, 2) if level else x)
            skips.append(x)
        for up, decode, skip in zip(self.up, self.decoder, reversed(skips[:-1]), strict=True):
            x = decode(torch.cat([up(x), skip], dim=1))
        return cast(Tensor, self.head(x))
