"""What each network minimises (Zhu et al. 2017, Eq. 1-3, and the identity loss of section 5.2), and the image pool."""

from __future__ import annotations

import random
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from training.draws import drawn

GanLoss = Literal["lsgan", "logistic"]
SOURCE_WEIGHT = 0.5  # A real image of the other domain weighs this much among a discriminator's negatives; a fake 1.


def gan_loss(scores: Tensor, real: bool, *, kind: GanLoss = "lsgan", sigmoid: bool = False) -> Tensor:
    """Adversarial loss: how far scores are from their target (paper Eq. 1, section 4).

    Args:
        scores: a discriminator's scores, any shape, floating point.
        real: whether the target is "real" (1) or "translated" (0). A generator's target for its fakes is "real".
        kind: "lsgan", the mean squared error (Mao et al. 2017), as in the paper's experiments; or "logistic", the mean
            cross-entropy of scores that are log-odds, which is the non-saturating loss of Goodfellow et al. (2014) for
            a generator.
        sigmoid: apply a sigmoid to the scores first; "lsgan" only.

    Returns:
        A scalar.
    """
    if kind == "logistic":
        return F.softplus(-scores if real else scores).mean()
    scores = torch.sigmoid(scores) if sigmoid else scores
    return F.mse_loss(scores, torch.ones_like(scores) if real else torch.zeros_like(scores))


def discriminator_loss(
    scores_real: Tensor, scores_fake: Tensor, *scores_source: Tensor, kind: GanLoss = "lsgan", sigmoid: bool = False
) -> Tensor:
    """Half the sum of the adversarial losses, which slows D relative to G (paper section 7.1). A scalar.

    `scores_source`, where given, are the scores of real images of the other domain, as further negatives. They are
    where the generator starts: a discriminator that forgets them cannot say which way leads away from them.
    """
    loss = gan_loss(scores_real, True, kind=kind, sigmoid=sigmoid)
    loss = loss + gan_loss(scores_fake, False, kind=kind, sigmoid=sigmoid)
    for scores in scores_source:
        loss = loss + SOURCE_WEIGHT * gan_loss(scores, False, kind=kind, sigmoid=sigmoid)
    return loss / 2


def r1_penalty(disc: nn.Module, real: Tensor) -> Tensor:
    """Half the mean squared norm of the gradient of a discriminator's mean score (R1, Mescheder et al. 2018, Eq. 9).

    It keeps the discriminator flat around real images, so that training converges. It is computed in full precision,
    and without torch.compile, which has no second derivatives.

    Args:
        disc: maps images to scores (N, ...).
        real: real images (N, C, H, W).

    Returns:
        A scalar, differentiable in the discriminator's weights.
    """
    real = real.detach().requires_grad_()
    with torch.autocast(real.device.type, enabled=False):
        scores = disc.forward(real)  # (N, heads, h, w); calling `disc` would use its compiled form
        (gradient,) = torch.autograd.grad(scores.flatten(1).mean(dim=1).sum(), real, create_graph=True)  # (N, C, H, W)
    return gradient.square().sum(dim=(1, 2, 3)).mean() / 2


def cycle_loss(rec: Tensor, real: Tensor) -> Tensor:
    """A round trip should reproduce the original (paper Eq. 2): mean |rec - real|, a scalar."""
    return F.l1_loss(rec, real)


def identity_loss(idt: Tensor, real: Tensor) -> Tensor:
    """An image already in the target domain should not change (paper section 5.2): mean |idt - real|, a scalar."""
    return F.l1_loss(idt, real)


def pair_loss(fake: Tensor, truth: Tensor) -> Tensor:
    """Where the true translation is known, it is the aim (Isola et al. 2017, Eq. 3): mean |fake - truth|, a scalar."""
    return F.l1_loss(fake, truth)


class ImagePool:
    """A history of translated images, so that a discriminator does not forget old mistakes (paper section 4).

    Until it holds `size` images it stores and returns each one; from then on each new image is, with probability 1/2,
    swapped for a random stored one. A pool of size 0 returns its input. It draws from a random generator of its own.
    """

    def __init__(self, size: int, seed: int) -> None:
        self.size = size
        self.count = 0  # how many images it holds
        self.images = torch.empty(0)  # these, then free places, (size, C, H, W); the first query makes room
        self.random = random.Random(seed)

    def query(self, images: Tensor) -> Tensor:
        """A batch like `images`, (N, C, H, W), detached and contiguous, with some replaced by earlier ones."""
        images = images.detach()
        if self.size == 0:
            return images.contiguous()
        self._make_room(images)
        num_images = len(images)
        choices = drawn(lambda: self._draw(num_images)).to(images.device)  # (3, N)
        chosen = []
        for image, (place, keep, store) in zip(images.chunk(num_images), choices.chunk(num_images, dim=1), strict=True):
            old = self.images[place]  # (1, C, H, W)
            chosen.append(torch.where(keep.bool(), image, old))
            self.images[place] = torch.where(store.bool(), image, old)
        return torch.cat(chosen).contiguous()

    def _draw(self, num_images: int) -> Tensor:
        """What to do with the next images, (3, num_images) int64.

        The first row holds the places of stored images; the second is 1 for images that are returned, where 0 stands
        for the stored one; the third is 1 for images that are stored.
        """
        choices = []
        for _ in range(num_images):
            if self.count < self.size:
                choices.append((self.count, 1, 1))
                self.count += 1
            elif self.random.random() < 0.5:
                choices.append((0, 1, 0))
            else:
                choices.append((self.random.randrange(self.size), 0, 1))
        return torch.tensor(choices).T

    def _make_room(self, images: Tensor) -> None:
        """Hold the stored images, and free places for the rest, on the device of new ones."""
        if (len(self.images), self.images.device, self.images.dtype) != (self.size, images.device, images.dtype):
            held, self.images = self.images[: self.count], images.new_zeros(self.size, *images.shape[1:])
            if self.count:
                self.images[: self.count] = held

    def state_dict(self) -> dict[str, Any]:
        """Images, on the CPU, and random state, in types that `torch.load(weights_only=True)` accepts."""
        images = [image.to("cpu", copy=True) for image in self.images[: self.count]]
        return {"images": images, "random": self.random.getstate()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue where `state_dict` was taken."""
        self.count = len(state["images"])
        self.images = torch.stack(list(state["images"])) if self.count else torch.empty(0)
        self.random.setstate(state["random"])
