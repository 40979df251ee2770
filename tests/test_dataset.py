"""Unusable images are left out, and training pairs depend on nothing but (seed, epoch, index)."""

from __future__ import annotations

import io
import multiprocessing
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import albumentations as A
import numpy as np
import pytest
import torch
from conftest import ROOT, Tiny, make_folders, make_image
from PIL import Image

from config import PRESETS, Config
from dataset import (
    EpochBatches,
    ImageFolder,
    UnpairedDataset,
    build_augmentation,
    build_loader,
    find_images,
    load_images,
    running,
    scan_folder,
    training_images,
    unpack_demo_faces,
)
from utils import UserError, image_to_pixels, normalize

ALL_AUGMENTATION = {"rotate_degrees": 10.0, "iso_noise_prob": 1.0, "jitter_brightness": 0.2, "jitter_contrast": 0.2,
                    "jitter_saturation": 0.2, "jitter_hue": 0.1}  # fmt: skip


def build(config: Config) -> UnpairedDataset:
    a, b = training_images(config)
    return UnpairedDataset(a.files, b.files, config)


# --- Folders


@pytest.mark.parametrize(
    ("folder_a", "folder_b"),
    [("train/european", "train/asian"), ("Train/EUROPEAN", "Train/Asian"), ("trainA", "trainB")],
)
def test_both_layouts_and_any_case_are_found(folder_a: str, folder_b: str, tmp_path: Path) -> None:
    for folder in (folder_a, folder_b):
        (tmp_path / folder).mkdir(parents=True)
        make_image(1).save(tmp_path / folder / "1.png")
    a, b = training_images(Config(data_dir=str(tmp_path)))
    assert (a.path, b.path) == (tmp_path / folder_a, tmp_path / folder_b)


def test_the_error_for_missing_images_says_what_to_do_in_five_lines(tmp_path: Path) -> None:
    (tmp_path / "train" / "european").mkdir(parents=True)
    with pytest.raises(UserError) as error:
        training_images(Config(data_dir=str(tmp_path)))
    text = str(error.value)
    assert text.count("\n") < 5
    assert str(tmp_path / "train" / "european") in text
    assert all(words in text for words in ("train/asian", "JPEG", "--data-dir", "--preset demo"))


def test_unusable_images_are_left_out_with_a_reason_and_other_files_are_ignored(tmp_path: Path) -> None:
    def save(name: str, content: bytes) -> None:
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes(content)

    buffer = io.BytesIO()
    make_image(1, (64, 64)).save(buffer, "JPEG")
    good = buffer.getvalue()
    for name in ("good.jpg", "name without suffix", "sub/folder/ünï\n.JPG", "wrong suffix.png", "not.txt"):
        save(name, good)
    save("truncated.jpg", good[: len(good) // 2])
    save("empty.png", b"")
    save("text.jpg", b"This is text with the name of an image.")
    for name in ("notes.txt", "Thumbs.db", ".hidden.jpg", ".hidden/x.jpg", "__MACOSX/x.jpg"):
        save(name, good if name[0] in "._" else b"not an image")
    make_image(1, (15, 40)).save(tmp_path / "icon.png")
    Image.new("1", (12_000, 12_000)).save(tmp_path / "bomb.png")
    make_image(1, (20, 2000)).save(tmp_path / "thread.png")
    Image.new("F", (20, 20)).save(tmp_path / "float.tif")
    (tmp_path / "circle").symlink_to(tmp_path)
    (tmp_path / "loop.jpg").symlink_to(tmp_path / "loop.jpg")
    (tmp_path / "dangling.jpg").symlink_to(tmp_path / "nowhere")
    (tmp_path / "link.jpg").symlink_to(tmp_path / "good.jpg")
    os.mkfifo(tmp_path / "pipe.jpg")

    folder = scan_folder(tmp_path)

    usable = {str(path.relative_to(tmp_path)) for path in folder.files}
    odd_names = {"name without suffix", "sub/folder/ünï\n.JPG", "wrong suffix.png", "not.txt"}
    assert usable == {"good.jpg", "link.jpg"} | odd_names
    reasons = {path.name: reason for path, reason in folder.left_out}
    left_out = "bomb.png dangling.jpg empty.png float.tif icon.png loop.jpg pipe.jpg text.jpg thread.png truncated.jpg"
    assert sorted(reasons) == left_out.split()
    assert "truncated" in reasons["truncated.jpg"].lower()
    assert reasons["empty.png"] == "empty file"
    assert reasons["text.jpg"] == "not an image"
    assert "too small: 15x40 px" in reasons["icon.png"]
    assert "too large: 12000x12000 px" in reasons["bomb.png"]


def test_a_folder_without_a_usable_image_is_an_error(data_dir: Path) -> None:
    for path in (data_dir / "train" / "asian").iterdir():
        path.write_bytes(b"")
    with pytest.raises(UserError, match=r"no usable images in .*asian \(left out 4; first reason: empty file\)"):
        training_images(Config(data_dir=str(data_dir)))


@pytest.mark.slow
def test_checking_a_folder_takes_little_longer_than_decoding_its_files(tmp_path: Path) -> None:
    """About half a millisecond for each image of 256 px: ten seconds for 20,000."""
    buffer = io.BytesIO()
    noisy = np.random.default_rng(0).integers(0, 60, (256, 256, 3), dtype=np.uint8)
    Image.fromarray(noisy + np.asarray(make_image(1, (256, 256))) // 2).save(buffer, "JPEG", quality=75)
    for i in range(2_000):
        (tmp_path / f"{i}.jpg").write_bytes(buffer.getvalue())

    def decode() -> None:
        for path in tmp_path.iterdir():
            with Image.open(path) as image:
                image.load()

    def check() -> None:
        assert len(scan_folder(tmp_path).files) == 2_000

    seconds = {work: min(cpu_seconds(work) for _ in range(3)) for work in (decode, check)}
    assert seconds[check] < 1.5 * seconds[decode]


def cpu_seconds(work: Callable[[], None]) -> float:
    start = time.process_time()  # Other programs do not affect CPU time.
    work()
    return time.process_time() - start


# --- Randomness


def test_an_item_depends_on_nothing_but_seed_epoch_and_index(tiny: Tiny) -> None:
    first, second = build(tiny(**ALL_AUGMENTATION)), build(tiny(**ALL_AUGMENTATION))
    first[0, 0]  # Items read before must not matter.
    for position in [(0, 3), (4, 3)]:
        assert all(torch.equal(x, y) for x, y in zip(first[position], second[position], strict=True))
    other_seed = build(tiny(**ALL_AUGMENTATION, seed=1))
    for other in (first[0, 2], first[1, 3], other_seed[0, 3]):
        assert not torch.equal(other[0], first[0, 3][0])


@pytest.mark.parametrize("start_method", multiprocessing.get_all_start_methods())
def test_workers_and_start_methods_give_the_same_batches(tiny: Tiny, start_method: str) -> None:
    config = tiny(**ALL_AUGMENTATION, batch_size=2)
    images = build(config)
    batches = EpochBatches(len(images), 2, config.seed, first_step=1, num_steps=7)
    expected = list(build_loader(images, batches, num_workers=0))
    loader = build_loader(images, batches, num_workers=2)
    loader.multiprocessing_context = start_method
    actual = list(loader)
    assert len(actual) == len(expected) == 6
    assert all(torch.equal(x, y) for pair in zip(actual, expected, strict=True) for x, y in zip(*pair, strict=True))


def test_a_folder_for_temporary_files_that_is_too_long_for_workers_is_refused_with_what_to_do(
    tiny: Tiny, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The workers could not open the socket through which they send, and training would wait for ever."""
    config = tiny()
    images = build(config)
    batches = EpochBatches(len(images), 1, config.seed, first_step=1, num_steps=1)
    monkeypatch.setattr(torch.multiprocessing, "get_sharing_strategy", lambda: "file_descriptor")
    monkeypatch.setattr("tempfile.tempdir", "/scratch/" + 70 * "x")
    with pytest.raises(UserError, match=r"(?s)too long for worker processes: /scratch/x.*TMPDIR.*--num-workers 0"):
        build_loader(images, batches, num_workers=1)
    build_loader(images, batches, num_workers=0)
    monkeypatch.setattr("tempfile.tempdir", "/scratch/" + 60 * "x")
    build_loader(images, batches, num_workers=1)


def test_workers_and_epochs_never_repeat_an_augmentation(tiny: Tiny, data_dir: Path) -> None:
    """All images are identical, so that equal tensors would mean equal augmentation."""
    for path in data_dir.glob("train/*/*"):
        make_image(7).save(path)
    config = tiny(**ALL_AUGMENTATION)
    images = build(config)
    batches = EpochBatches(len(images), 1, config.seed, first_step=0, num_steps=2 * len(images))
    samples = [x.numpy().tobytes() for pair in build_loader(images, batches, num_workers=2) for x in pair]
    assert len(set(samples)) == len(samples) == 2 * 2 * len(images)


def test_every_epoch_has_each_image_of_the_larger_folder_once_with_new_partners(tiny: Tiny, data_dir: Path) -> None:
    config = tiny(flip_prob=0.0, resize_scale=1.0)
    images = build(config)
    plain_images = [load_images(files, 32) for files in (images.files_a, images.files_b)]

    def which(x: torch.Tensor, domain: int) -> int:
        return int((plain_images[domain] - normalize(x)).abs().sum((1, 2, 3)).argmin())

    epochs = []
    for epoch in range(8):
        steps = range(epoch * len(images), (epoch + 1) * len(images))
        order = [batch[0] for batch in EpochBatches(len(images), 1, 0, steps.start, steps.stop)]
        epochs.append([(which(a, 0), which(b, 1)) for a, b in (images[position] for position in order)])
    assert all(sorted(a for a, _ in pairs) == list(range(6)) for pairs in epochs)
    assert len({tuple(a for a, _ in pairs) for pairs in epochs}) == 8, "two epochs had the same order"
    assert len({tuple(sorted(pairs)) for pairs in epochs}) == 8, "two epochs had the same partners"
    assert {b for pairs in epochs for _, b in pairs} == set(range(4))


def test_pairs_stay_pairs_and_are_augmented_alike(tiny: Tiny, data_dir: Path) -> None:
    shutil.rmtree(data_dir / "train" / "asian")
    shutil.copytree(data_dir / "train" / "european", data_dir / "train" / "asian")
    images = build(tiny(**ALL_AUGMENTATION, lambda_pair=1.0))
    pairs = [images[epoch, index] for epoch in range(2) for index in range(6)]
    assert all(torch.equal(a, b) for a, b in pairs)
    assert len({a.numpy().tobytes() for a, _ in pairs}) == 12


def test_the_batches_from_any_step_on_are_those_of_the_whole_run() -> None:
    whole = list(EpochBatches(5, 2, seed=1, first_step=0, num_steps=9))
    assert [len(batch) for batch in whole] == [2, 2, 1] * 3
    for first in range(9):
        batches = EpochBatches(5, 2, seed=1, first_step=first, num_steps=9)
        assert list(batches) == whole[first:]
        assert len(batches) == 9 - first


# --- Pixels


def test_without_augmentation_an_image_is_unchanged(tiny: Tiny, data_dir: Path) -> None:
    images = build(tiny(flip_prob=0.0, resize_scale=1.0, image_size=40))
    real_a, _ = images[0, 2]
    assert torch.equal(real_a, image_to_pixels(Image.open(data_dir / "train/european/0002.png")))
    assert real_a.dtype == torch.uint8


def test_each_augmentation_option_adds_its_own_step(tiny: Tiny) -> None:
    def steps(**options: float) -> list[str]:
        return [type(step).__name__ for step in build_augmentation(tiny(**options)).transforms]

    plain = ["SmallestMaxSize", "RandomCrop", "HorizontalFlip"]
    assert steps() == plain
    assert steps(rotate_degrees=5.0) == ["SmallestMaxSize", "Rotate", "RandomCrop", "HorizontalFlip"]
    assert steps(jitter_hue=0.1) == [*plain, "ColorJitter"]
    assert steps(iso_noise_prob=0.5) == [*plain, "ISONoise"]


def test_no_augmentation_warns_about_its_arguments(recwarn: pytest.WarningsRecorder) -> None:
    build_augmentation(PRESETS["origin"])
    assert [str(warning.message) for warning in recwarn] == []


def test_flips_occur_with_the_configured_probability(tiny: Tiny) -> None:
    ramp = np.repeat(np.arange(32, dtype=np.uint8)[None, :, None] * 8, 32, axis=0).repeat(3, axis=2)
    pipeline: A.Compose = build_augmentation(tiny(resize_scale=1.0, flip_prob=0.25))
    flipped = 0
    for seed in range(1000):
        pipeline.set_random_seed(seed)
        flipped += int(pipeline(image=ramp)["image"][0, 0, 0] > 100)
    assert 0.2 < flipped / 1000 < 0.3  # The tolerance is 3.6 standard deviations.


def test_shrinking_averages_instead_of_aliasing() -> None:
    stripes = Image.fromarray((np.indices((256, 256)).sum(0) % 2 * 255).astype(np.uint8)).convert("RGB")
    buffer = io.BytesIO()
    stripes.save(buffer, "PNG")
    shrunk = load_images([buffer], 32)  # type: ignore[list-item]
    assert shrunk.abs().max() < 0.02


def test_load_images_keeps_the_aspect_and_crops_the_centre(tmp_path: Path) -> None:
    wide = Image.new("RGB", (90, 30), "red")
    wide.paste("white", (30, 0, 60, 30))
    wide.save(tmp_path / "wide.png")
    assert (load_images([tmp_path / "wide.png"], 60)[0, :, :, 1:-1] > 0.99).all()


# --- The fingerprint, and workers that hang


def test_a_fingerprint_goes_by_names_and_content_and_not_by_the_place(tmp_path: Path) -> None:
    make_folders(tmp_path / "first")
    shutil.copytree(tmp_path / "first", tmp_path / "second" / "deeper")
    paths = [tmp_path / "first" / "train" / "asian", tmp_path / "second" / "deeper" / "train" / "asian"]
    before, moved = (scan_folder(path).fingerprint for path in paths)
    assert before == moved
    os.utime(paths[1] / "0000.png", (1, 1))
    assert scan_folder(paths[1]).fingerprint == before
    large = paths[1] / "0001.bmp"
    contents = set()
    for pixel in (None, (0, 0), (150, 150), (299, 299)):  # a file of 270 kB
        image = Image.new("RGB", (300, 300))
        if pixel:
            image.putpixel(pixel, (9, 9, 9))
        image.save(large)
        contents.add(scan_folder(paths[1]).fingerprint)
    assert len(contents) == 4
    assert len({content.split(", content")[0] for content in contents}) == 1


def test_the_fingerprint_of_many_images_takes_no_time(tmp_path: Path) -> None:
    for number in range(2000):
        (tmp_path / f"{number}.jpg").write_bytes(number.to_bytes(4, "big") * 4000)
    folder = ImageFolder(tmp_path, sorted(tmp_path.iterdir()), [])
    start = time.perf_counter()
    assert folder.fingerprint.startswith("2000 images, ")
    assert time.perf_counter() - start < 1  # a tenth of that on a quiet machine


def test_a_stopped_worker_does_not_keep_a_request_to_stop_waiting(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("dataset.MAX_WAIT", 0.3)
    images = training_images(Config(data_dir=str(make_folders(tmp_path / "data"))))
    data = UnpairedDataset(images[0].files, images[1].files, Config(image_size=32))
    stop: list[int] = []
    loader = build_loader(data, EpochBatches(len(data), 1, 0, 0, 1000), num_workers=2)
    with running(loader, stop) as pairs:
        assert next(pairs)[0].shape == (1, 3, 32, 32)
        workers = multiprocessing.active_children()
        for worker in workers:
            assert worker.pid
            os.kill(worker.pid, signal.SIGSTOP)
        stop.append(signal.SIGTERM)
        while next(pairs)[0].numel():  # what was read before
            pass
        start = time.perf_counter()
    assert time.perf_counter() - start < 3
    assert not any(worker.is_alive() for worker in workers)


# --- Demo faces


def test_the_demo_faces_are_unpacked_completely(tmp_path: Path) -> None:
    unpack_demo_faces(tmp_path / "dataset" / "demo")
    config = Config(data_dir=str(tmp_path / "dataset" / "demo"))
    assert [len(folder.files) for folder in training_images(config)] == [400, 400]
    test_a, test_b = find_images(config, "test")
    assert [file.name for file in test_a.files] == [file.name for file in test_b.files]
    assert os.listdir(tmp_path / "dataset") == ["demo"]


def test_an_interrupted_unpacking_leaves_no_demo_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(os, "rename", fail)
    with pytest.raises(KeyboardInterrupt):
        unpack_demo_faces(tmp_path / "demo")
    assert os.listdir(tmp_path) == []


def test_importing_dataset_does_not_use_the_network() -> None:
    code = (
        "import socket, sys\n"
        "socket.getaddrinfo = socket.create_connection = lambda *a, **k: sys.exit('used the network')\n"
        "import dataset"
    )
    environment = {name: value for name, value in os.environ.items() if name != "NO_ALBUMENTATIONS_UPDATE"}
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
