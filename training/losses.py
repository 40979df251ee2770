"""What each network minimises (Zhu et al. 2017, Eq. 1-3, and the identity loss of section 5.2), and the image pool."""

from __future__ import annotations

import random
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F


def gan_loss(scores: Tensor, real: bool, *, sigmoid: bool = False) -> Tensor:
    """Least-squares adversarial loss (LSGAN): how far scores are from their target (paper Eq. 1, section 4).

    Args:
        scores: a discriminator's scores, any shape, floating point.
        real: whether the target is "real" (1) or "translated" (0). A generator's target for its fakes is 1.
        sigmoid: apply a sigmoid to the scores first.

    Returns:
        Mean squared error, a scalar.
    """
    scores = torch.sigmoid(scores) if sigmoid else scores
    return F.mse_loss(scores, torch.ones_like(scores) if real else torch.zeros_like(scores))


def discriminator_loss(scores_real: Tensor, scores_fake: Tensor, *, sigmoid: bool = False) -> Tensor:
    """Half the sum of both adversarial losses, which slows D against G (paper section 7.1). A scalar."""
    return (gan_loss(scores_real, True, sigmoid=sigmoid) + gan_loss(scores_fake, False, sigmoid=sigmoid)) / 2


def cycle_loss(rec: Tensor, real: Tensor) -> Tensor:
    """A round trip should reproduce the original (paper Eq. 2): mean |rec - real|, a scalar."""
    return F.l1_loss(rec, real)


def identity_loss(idt: Tensor, real: Tensor) -> Tensor:
    """An image already in the target domain should not change (paper section 5.2): mean |idt - real|, a scalar."""
    return F.l1_loss(idt, real)


class ImagePool:
    """A history of translated images, so that a discriminator does not forget old mistakes (paper section 4).

    Until it holds `size` images it stores and returns each one; from then on each new image is, with probability 1/2,
    swapped for a random stored one. A pool of size 0 returns its input. It draws from a random generator of its own.
    """

    def __init__(self, size: int, seed: int) -> None:
        self.size = size
        self.images: list[Tensor] = []
        self.random = random.Random(seed)

    def query(self, images: Tensor) -> Tensor:
        """A batch like `images`, (N, C, H, W), detached, with some replaced by earlier ones."""
        return torch.stack([self._swap(image) for image in images.detach()])

    def _swap(self, image: Tensor) -> Tensor:
        if len(self.images) < self.size:
            self.images.append(image.clone())
            return image
        if self.size == 0 or self.random.random() < 0.5:
            return image
        index = self.random.randrange(self.size)
        old, self.images[index] = self.images[index], image.clone()
        return old.to(image.device)  # a restored pool starts on the CPU

    def state_dict(self) -> dict[str, Any]:
        """Images, on the CPU, and random state, in types that `torch.load(weights_only=True)` accepts."""
        return {"images": [image.cpu() for image in self.images], "random": self.random.getstate()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue where `state_dict` was taken."""
        self.images = list(state["images"])
        self.random.setstate(state["random"])
