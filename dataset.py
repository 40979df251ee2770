"""Two folders of images to tensors, with augmentation: the same tensor for the same (seed, epoch, index)."""

from __future__ import annotations

import hashlib
import math
import multiprocessing
import os
import re
import signal
import tempfile
import warnings
import zipfile
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

os.environ.setdefault("NO_ALBUMENTATIONS_UPDATE", "1")  # else importing albumentations asks the network for news

import albumentations as A
import cv2
import numpy as np
import torch
from PIL import UnidentifiedImageError
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Sampler

from config import Config
from photos.crops import measure_template
from utils import Template, UserError, image_to_pixels, image_to_tensor, printable, read_image

IMAGE_SUFFIXES = (".jpg", ".jpeg", ".png", ".webp", ".bmp", ".tif", ".tiff", ".gif")
MIN_SIDE = 16  # px; smaller images are thumbnails and icons, not faces
MAX_ASPECT = 10  # long side over short side; the short side is resized, and the long one must still fit into memory
TEMPLATE_IMAGES, TEMPLATE_SIDE = 200, 256  # how many images are looked at for faces, and at which size, px
SPLITS = {"train": "train", "test": "test", "val": "test", "validation": "test"}  # Folder names, and what they hold.
DEMO_ZIP = Path(__file__).parent / "assets" / "demo_faces.zip"


@dataclass(frozen=True, eq=False)
class ImageFolder:
    """The usable images below a folder, sorted, and what was left out: pairs of a path and a reason."""

    path: Path
    files: list[Path]
    left_out: list[tuple[Path, str]]

    @property
    def fingerprint(self) -> str:
        """Count and hash of the images' names: training resumes only on the same images in the same order."""
        names = "\0".join(str(file.relative_to(self.path)) for file in self.files)
        digest = hashlib.sha256(names.encode("utf-8", "surrogateescape")).hexdigest()
        return f"{len(self.files)} images, names {digest[:12]}"


Folders = tuple[ImageFolder, ImageFolder]  # of domains a and b


def find_images(config: Config, split: str) -> Folders:
    """The images of domains a and b in one split ("train" or "test") of `config.data_dir`; none where no folder is."""
    folder_a, folder_b = domain_folders(config, split)
    return scan_folder(folder_a), scan_folder(folder_b)


def domain_folders(config: Config, split: str) -> tuple[Path, Path]:
    """The folders of domains a and b in one split; they need not exist.

    A domain's folder is data_dir/split/domain, in any case, or data_dir/splitA and splitB.
    """
    data_dir = Path(config.data_dir)
    found = class_folders(data_dir)
    folder_a, folder_b = (
        found.get((split, domain.lower())) or found.get((split, letter)) or data_dir / split / domain
        for domain, letter in ((config.domain_a, "a"), (config.domain_b, "b"))
    )
    return folder_a, folder_b


def class_folders(data_dir: Path) -> dict[tuple[str, str], Path]:
    """The class folders of a data set by split ("train" or "test") and class, in lower case; none where it is missing.

    The class of train/NAME is its name, that of trainA is "a". Of names that differ in case alone, the one in lower
    case counts.
    """
    top = subfolders(data_dir)
    below = [path for folder in top if folder.name.lower() in SPLITS for path in subfolders(folder)]
    places = [(class_of(path.relative_to(data_dir)), path) for path in (*top, *below)]
    return {place: path for place, path in places if place}


def class_of(folder: Path) -> tuple[str, str] | None:
    """Split and class of a folder, given relative to its data set; None where it is not a class folder."""
    *above, name = (part.lower() for part in folder.parts)
    if match := re.fullmatch("(train|test)([ab])", name):
        return match[1], match[2]
    return (SPLITS[above[-1]], name) if above and above[-1] in SPLITS else None


def subfolders(folder: Path) -> list[Path]:
    """The visible folders in a folder, sorted; none where it does not exist."""
    if not folder.is_dir():
        return []
    return sorted(path for path in folder.iterdir() if path.is_dir() and not path.name.startswith("."))


def training_images(config: Config) -> Folders:
    """The training images of both domains; UserError, which says what to do, where there are none."""
    folders = find_images(config, "train")
    for folder in folders:
        if not folder.files:
            found = f"; left out {len(folder.left_out)}, the first: {folder.left_out[0][1]}" if folder.left_out else ""
            names = f"train/{config.domain_a} and train/{config.domain_b} (or trainA and trainB)"
            raise UserError(
                f"no usable images in {printable(folder.path)}{found}\n"
                f"  (looked for {' '.join(IMAGE_SUFFIXES)})\n"
                f"to train on your images: python train.py --data-dir FOLDER, where FOLDER holds\n  {names}\n"
                "to fetch faces: python download_files.py; to try the program without: python train.py --preset demo"
            )
    return folders


def scan_folder(path: Path) -> ImageFolder:
    """Find the images below a folder and decode each once, so that training never meets a damaged one.

    Hidden files and folders and macOS's `__MACOSX` are passed over; links to folders are not followed. A file that is
    no image is passed over too, unless its name says that it is one: then it is left out with the reason.
    """
    files: list[Path] = []
    left_out: list[tuple[Path, str]] = []
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # Pillow's remarks on size and odd metadata: read_image scorers for itself
        for file in visible_files(path):
            reason = _why_unusable(file)
            if reason is None:
                files.append(file)
            elif reason:
                left_out.append((file, reason))
    return ImageFolder(path, files, left_out)


def visible_files(top: Path) -> Iterator[Path]:
    """All visible files below a folder, sorted; OSError where a folder in it cannot be read."""

    def fail(error: OSError) -> None:
        raise error

    for folder, subfolders, names in os.walk(top, onerror=fail if top.is_dir() else None):
        subfolders[:] = sorted(name for name in subfolders if not name.startswith(".") and name != "__MACOSX")
        yield from (Path(folder, name) for name in sorted(names) if not name.startswith("."))


def _why_unusable(file: Path) -> str | None:
    """Why an image cannot be used; "" for a file that does not claim to be one, None for a good one."""
    try:
        if not file.is_file():  # a pipe would block for ever
            return "not a regular file" if file.suffix.lower() in IMAGE_SUFFIXES else ""
        short, long = sorted(read_image(file, min_side=MIN_SIDE, preview=True).size)
        return f"too narrow: one side is over {MAX_ASPECT} times the other" if long > MAX_ASPECT * short else None
    except UnidentifiedImageError:
        empty = file.stat().st_size == 0
        return ("empty file" if empty else "not an image") if file.suffix.lower() in IMAGE_SUFFIXES else ""
    except Exception as error:  # decoders of damaged files raise anything; whatever it is, it is the reason
        return f"{type(error).__name__}: {error}".splitlines()[0]


def report_left_out(folders: Iterable[ImageFolder], path: Path, show: int = 10) -> None:
    """Print how many images training goes on without, and the first few with reasons; all are written to `path`."""
    reasons = {folder: [f"  {printable(file)}: {why}" for file, why in folder.left_out]
               for folder in sorted(folders, key=lambda folder: folder.path)}  # fmt: skip
    for folder, lines in reasons.items():
        if lines:
            print(f"left out {len(lines)} of {len(folder.files) + len(lines)} images in {printable(folder.path)}:")
            print("\n".join(lines[:show] + [f"  ... all of them: {printable(path)}"] * (len(lines) > show)))
    if any(reasons.values()):
        path.write_text("\n".join(line for lines in reasons.values() for line in lines) + "\n")


def build_augmentation(config: Config) -> A.Compose:
    """The training augmentation: an RGB image of any size to one of image_size x image_size, uint8."""
    jitter = [config.jitter_brightness, config.jitter_contrast, config.jitter_saturation]
    steps = [resize_short_side(round(config.resize_scale * config.image_size))]
    if config.rotate_degrees:
        steps.append(A.Rotate(config.rotate_degrees, cv2.INTER_LINEAR, cv2.BORDER_REFLECT_101, p=1.0))
    steps += [A.RandomCrop(config.image_size, config.image_size, p=1.0), A.HorizontalFlip(p=config.flip_prob)]
    if any(jitter) or config.jitter_hue:
        hue = (-config.jitter_hue, config.jitter_hue)
        steps.append(A.ColorJitter(*((1 - spread, 1 + spread) for spread in jitter), hue=hue, p=1.0))
    if config.iso_noise_prob:
        steps.append(A.ISONoise(p=config.iso_noise_prob))
    return A.Compose(steps)


def resize_short_side(size: int) -> A.BasicTransform:
    """Resize so that the short side is `size` px, without aliasing: area when smaller, bicubic when larger."""
    return A.SmallestMaxSize(size, interpolation=cv2.INTER_CUBIC, area_for_downscale="image", p=1.0)


class UnpairedDataset(Dataset[tuple[Tensor, Tensor]]):
    """Image i of the larger domain with a random image of the other, each augmented on its own.

    An item is asked for as (epoch, index) and depends on nothing but these, the configuration and the files: not on
    the number of workers, on their start method, nor on what was asked for before.
    """

    def __init__(self, files_a: Sequence[Path], files_b: Sequence[Path], config: Config) -> None:
        self.files_a, self.files_b, self.seed = files_a, files_b, config.seed
        self.augmentation = build_augmentation(config)

    def __len__(self) -> int:
        """Pairs in an epoch: the size of the larger domain."""
        return max(len(self.files_a), len(self.files_b))

    def __getitem__(self, position: tuple[int, int]) -> tuple[Tensor, Tensor]:
        """Two tensors (3, image_size, image_size), uint8, of domains a and b: training normalises them itself."""
        epoch, index = position
        random_numbers = np.random.SeedSequence((self.seed, epoch, index)).generate_state(3, np.uint64)
        partner, seed_a, seed_b = (int(number) for number in random_numbers)
        a_is_larger = len(self.files_a) >= len(self.files_b)
        index_a = index if a_is_larger else partner % len(self.files_a)
        index_b = partner % len(self.files_b) if a_is_larger else index
        return self._load(self.files_a[index_a], seed_a), self._load(self.files_b[index_b], seed_b)

    def _load(self, file: Path, seed: int) -> Tensor:
        # albumentations keeps random state of its own, which workers would share and epochs repeat
        self.augmentation.set_random_seed(seed)
        try:
            pixels = np.array(read_image(file))
        except (OSError, ValueError, SyntaxError) as error:  # it was whole when the run began
            raise OSError(f"{printable(file)} cannot be read any more: {error}") from error
        return image_to_pixels(self.augmentation(image=pixels)["image"])


def count_steps_per_epoch(num_items: int, batch_size: int, num_processes: int = 1) -> int:
    """Steps in an epoch, in each of which every process takes a batch; the last ones may be smaller.

    UserError where there is not an image for every process.
    """
    if num_items < num_processes:
        raise UserError(f"{num_items} images are too few for {num_processes} processes")
    return math.ceil(num_items // num_processes / batch_size)


class EpochBatches(Sampler[list[tuple[int, int]]]):
    """The (epoch, index) pairs of each training step, in a new order every epoch, starting at any step.

    Each epoch's order depends on nothing but the seed and the epoch, so that a run resumes in the middle of one. Of
    `num_processes` processes each takes every N-th of the pairs that one process with N times the batch would take; in
    an epoch all take equally many, and the few left over are others in the next one.
    """

    def __init__(
        self,
        num_items: int,
        batch_size: int,
        seed: int,
        first_step: int,
        num_steps: int,
        rank: int = 0,
        num_processes: int = 1,
    ) -> None:
        self.num_items, self.batch_size, self.seed = num_items, batch_size, seed
        self.first_step, self.num_steps = first_step, num_steps
        self.rank, self.num_processes = rank, num_processes
        self.steps_per_epoch = count_steps_per_epoch(num_items, batch_size, num_processes)

    def __len__(self) -> int:
        return self.num_steps - self.first_step

    def __iter__(self) -> Iterator[list[tuple[int, int]]]:
        for step in range(self.first_step, self.num_steps):
            epoch, batch = divmod(step, self.steps_per_epoch)
            if batch == 0 or step == self.first_step:
                order = np.random.default_rng((self.seed, epoch)).permutation(self.num_items)
                own = order[: self.num_items - self.num_items % self.num_processes][self.rank :: self.num_processes]
            yield [(epoch, int(i)) for i in own[batch * self.batch_size : (batch + 1) * self.batch_size]]


def build_loader(
    dataset: UnpairedDataset,
    batches: EpochBatches,
    num_workers: int,
    pin_memory: bool = False,
    start_method: str | None = None,
) -> DataLoader[tuple[Tensor, Tensor]]:
    """Batches (real_a, real_b), each (N, 3, H, W) uint8, read by `num_workers` processes.

    `start_method` is one of multiprocessing's; None is the platform's own.
    """
    return DataLoader(
        dataset,
        batch_sampler=batches,
        num_workers=num_workers,
        pin_memory=pin_memory,
        worker_init_fn=_start_worker,
        generator=torch.Generator(),  # the loader draws a seed: not from the generator that training restores
        multiprocessing_context=multiprocessing.get_context(start_method) if num_workers else None,
    )


@contextmanager
def running(loader: DataLoader[tuple[Tensor, Tensor]]) -> Iterator[Iterator[tuple[Tensor, Tensor]]]:
    """A loader's batches; at the end, come what may, its workers are told to go, and killed if they do not.

    They ignore SIGTERM, with which Python would end them at its own end, and would wait for them for ever.
    """
    batches = iter(loader)
    try:
        yield batches
    finally:
        getattr(batches, "_shutdown_workers", lambda: None)()
        for worker in getattr(batches, "_workers", []):
            worker.kill()


def _start_worker(worker: int) -> None:
    """Leave signals to the training process, which stops its workers itself; OpenCV's threads do not survive a fork."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    cv2.setNumThreads(0)


def load_image(file: Path, image_size: int) -> np.ndarray:
    """An image without augmentation: resized and centre cropped, (image_size, image_size, 3) uint8."""
    view = A.Compose([resize_short_side(image_size), A.CenterCrop(image_size, image_size, p=1.0)])
    pixels: np.ndarray = view(image=np.array(read_image(file)))["image"]
    return pixels


def load_images(files: Sequence[Path], image_size: int) -> Tensor:
    """Images as `load_image` gives them, as one batch (N, 3, image_size, image_size) float32 in [-1, 1]."""
    return torch.stack([image_to_tensor(load_image(file, image_size)) for file in files])


def measure_faces(*groups: Sequence[Path]) -> Template | None:
    """Where the landmarks of faces are in images that are cropped alike, for translating photographs.

    Of each group of files the same number is looked at, TEMPLATE_IMAGES in all, evenly spread. None where fewer than
    half of them show one face.
    """
    share = max(1, TEMPLATE_IMAGES // len(groups))
    files = [file for group in groups for file in group[:: max(1, len(group) // share)][:share]]
    return measure_template(load_image(file, TEMPLATE_SIDE) for file in files)


def unpack_demo_faces(target: Path) -> None:
    """Unpack the rendered faces that come with the program to the folder `target`, which appears only when whole."""
    target.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=".demo-", dir=target.parent) as folder:
        with zipfile.ZipFile(DEMO_ZIP) as archive:
            archive.extractall(Path(folder, "faces"))
        try:
            os.rename(Path(folder, "faces"), target)
        except OSError:
            if not target.is_dir():  # else another process was faster
                raise
