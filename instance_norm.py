"""Instance norm, the layer after almost every convolution of all four networks."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F


class InstanceNorm(nn.Module):
    """Each channel of each image to mean 0 and variance 1 (Ulyanov et al. 2016), without parameters or statistics.

    (N, C, H, W) to the same, in the input's dtype; sums are in float32 at least. Computed as group norm with one
    channel a group, the same function: torch's own instance norm is slower on a CPU, and its gradient is wrong there
    for a batch of one image whose incoming gradient is `channels_last`.
    """

    def forward(self, x: Tensor) -> Tensor:
        with torch.autocast(x.device.type, enabled=False):  # which would copy x to float32 on a GPU
            return F.group_norm(x, x.shape[1])  # (N, C, H, W)
