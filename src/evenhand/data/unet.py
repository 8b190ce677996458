"""The U-Net of Pascal et al. (arXiv 2109.11678) for dense prediction, as in their released code.

Ronneberger, Fischer & Brox (MICCAI 2015) with padded 3×3 convolutions, BatchNorm, four halvings by
max pooling and bilinear upsampling. Their BatchNorm uses the batch's statistics in testing too,
ours the running ones.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn
from torch.nn import functional

from evenhand.network import MultiTaskNetwork

WIDTH = 64


def network(outputs: Mapping[str, int], width: int = WIDTH) -> MultiTaskNetwork:
    """A U-Net, and a 1×1 convolution for each task.

    Args:
        outputs: the number of maps of each task; a single map is given as [n, h, w].
        width: channels at full size.
    """
    heads = {task: _head(width, maps) for task, maps in outputs.items()}
    return MultiTaskNetwork(UNet(width), heads)


def _head(width: int, maps: int) -> nn.Module:
    layer = nn.Conv2d(width, maps, 1)
    return nn.Sequential(layer, nn.Flatten(1, 2)) if maps == 1 else layer


class UNet(nn.Module):
    """[n, 3, h, w] -> [n, width, h, w]; down through 2, 4, 8 and 8 times `width` channels."""

    def __init__(self, width: int = WIDTH) -> None:
        super().__init__()
        w = width
        self.first = _double(3, w, w)
        sizes = ((w, 2 * w), (2 * w, 4 * w), (4 * w, 8 * w), (8 * w, 8 * w))
        self.down = nn.ModuleList(_double(a, b, b) for a, b in sizes)
        sizes = ((16 * w, 4 * w), (8 * w, 2 * w), (4 * w, w), (2 * w, w))
        self.up = nn.ModuleList(_double(a, a // 2, b) for a, b in sizes)

    def forward(self, x: Tensor) -> Tensor:
        levels = [self.first(x)]
        for layer in self.down:
            levels.append(layer(functional.max_pool2d(levels[-1], 2)))
        z: Tensor = levels.pop()
        for layer in self.up:
            beside = levels.pop()
            larger = functional.interpolate(
                z, size=beside.shape[-2:], mode="bilinear", align_corners=True
            )
            z = layer(torch.cat([beside, larger], dim=1))
        return z


def _double(inputs: int, between: int, outputs: int) -> nn.Module:
    layers: list[nn.Module] = []
    for a, b in ((inputs, between), (between, outputs)):
        layers += [nn.Conv2d(a, b, 3, padding=1), nn.BatchNorm2d(b), nn.ReLU(inplace=True)]
    return nn.Sequential(*layers)
