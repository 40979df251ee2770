"""Load two folders of images as augmented tensors: the same (seed, epoch, index) gives the same tensors."""

from __future__ import annotations

import hashlib
import math
import os
import re
import signal
import tempfile
import threading
import warnings
import zipfile
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from multiprocessing.process import BaseProcess
from pathlib import Path

os.environ.setdefault("NO_ALBUMENTATIONS_UPDATE", "1")  # Importing albumentations must not use the network.

import albumentations as A
import cv2
import numpy as np
import torch
from PIL import UnidentifiedImageError
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Sampler

from config import Config
from console import UserError, count, printable
from images.files import may_be_image
from photos.crops import measure_template
from photos.files import PassedOver, find_files
from utils import Template, image_to_pixels, image_to_tensor, read_image

MIN_SIDE = 16  # Images with a shorter side than this, px, are thumbnails and icons, not faces.
MAX_ASPECT = 30  # An image more than this many times as long as wide might not fit into memory once it is resized.
MAX_SOCKET_PATH = 103  # The path of a Unix socket has at most so many bytes, 107 on Linux, and workers send through one
SOCKET_NAME = "/pymp-12345678/listener-12345678"  # of such a name in the folder for temporary files.
MAX_WAIT = 5.0  # A request to stop waits this many seconds for workers that hang, and then again for their end.
TEMPLATE_IMAGES = 200  # The face template is measured on this many images,
TEMPLATE_SIDE = 256  # which are resized to this, px.
SAMPLE_BYTES = 2048  # So much of a file, three times, tells it from another of the same size.
SPLITS = {"train": "train", "test": "test", "val": "test", "validation": "test"}  # The split that each folder holds.
DEMO_ZIP = Path(__file__).parent / "assets" / "demo_faces.zip"


@dataclass(frozen=True, eq=False)
class ImageFolder:
    """The images below a folder."""

    path: Path
    files: list[Path]  # The usable images, sorted.
    left_out: list[tuple[Path, str]]  # The other images, each with the reason why it cannot be used.
    passed_over: PassedOver = field(default_factory=PassedOver)  # What is not an image.

    @property
    def what_is_missing(self) -> str:
        """What could not be used, in words; "" if there is nothing."""
        parts = str(self.passed_over).splitlines()
        if self.left_out:
            parts.insert(0, f"left out {len(self.left_out)}; first reason: {printable(self.left_out[0][1])}")
        return "; ".join(parts)

    @property
    def fingerprint(self) -> str:
        """Count of the images, hash of their names, and hash of their content (see `_sample_of`).

        Training resumes only if they are the same, in the same order, wherever the folder is.
        """
        names = "\0".join(file.relative_to(self.path).as_posix() for file in self.files)
        digest = hashlib.sha256(names.encode("utf-8", "surrogateescape")).hexdigest()
        content = hashlib.sha256()
        for file in self.files:
            content.update(_sample_of(file))
        return f"{len(self.files)} images, names {digest[:12]}, content {content.hexdigest()[:12]}"


def _sample_of(file: Path) -> bytes:
    """A file's size, and SAMPLE_BYTES from its start, middle and end: of a small file, all of it."""
    with file.open("rb", buffering=0) as stream:
        size = os.fstat(stream.fileno()).st_size
        parts = [size.to_bytes(8, "big")]
        for start in (0, (size - SAMPLE_BYTES) // 2, size - SAMPLE_BYTES):
            stream.seek(max(0, start))
            parts.append(stream.read(SAMPLE_BYTES))
    return b"".join(parts)


Folders = tuple[ImageFolder, ImageFolder]  # The images of domain a and of domain b.
Pair = tuple[Tensor, Tensor]  # An image or a batch of domain a, and one of domain b.


def find_images(config: Config, split: str) -> Folders:
    """The images of domains a and b in one split, "train" or "test"; a folder that does not exist holds none."""
    folder_a, folder_b = domain_folders(config, split)
    return scan_folder(folder_a), scan_folder(folder_b)


def domain_folders(config: Config, split: str) -> tuple[Path, Path]:
    """The folders of domains a and b in one split, "train" or "test"; they need not exist.

    They are data_dir/split/domain, in upper or lower case, or data_dir/splitA and data_dir/splitB.
    """
    data_dir = Path(config.data_dir)
    found = class_folders(data_dir)
    folder_a, folder_b = (
        found.get((split, domain.lower())) or found.get((split, letter)) or data_dir / split / domain
        for domain, letter in ((config.domain_a, "a"), (config.domain_b, "b"))
    )
    return folder_a, folder_b


def class_folders(data_dir: Path) -> dict[tuple[str, str], Path]:
    """The class folders of a data set by split, "train" or "test", and class (see `class_of`).

    If the names of several folders differ only in case, the folder in lower case counts.
    """
    top = subfolders(data_dir)
    below = [path for folder in top if folder.name.lower() in SPLITS for path in subfolders(folder)]
    places = [(class_of(path.relative_to(data_dir)), path) for path in (*top, *below)]
    return {place: path for place, path in places if place}


def class_of(folder: Path) -> tuple[str, str] | None:
    """The split and class, in lower case, of a relative path train/CLASS or trainA (class "a"); None for others."""
    *above, name = (part.lower() for part in folder.parts)
    if match := re.fullmatch("(train|test)([ab])", name):
        return match[1], match[2]
    return (SPLITS[above[-1]], name) if above and above[-1] in SPLITS else None


def subfolders(folder: Path) -> list[Path]:
    """The visible folders in a folder, sorted; an empty list if it does not exist."""
    if not folder.is_dir():
        return []
    return sorted(path for path in folder.iterdir() if path.is_dir() and not path.name.startswith("."))


def training_images(config: Config) -> Folders:
    """The training images of both domains; UserError, which says what to do, if a domain has none."""
    if not Path(config.data_dir).is_dir() and Path(config.data_dir) != Path(Config.data_dir):
        raise UserError(f"--data-dir {printable(config.data_dir)} does not exist")
    folders = find_images(config, "train")
    for folder in folders:
        if not folder.files:
            left_out = f" ({folder.what_is_missing})" if folder.what_is_missing else ""
            others = [path.name for split, path in class_folders(Path(config.data_dir)).items() if split[0] == "train"]
            found = f"; found {', '.join(map(printable, others))} (see --domain-a and --domain-b)" if others else ""
            raise UserError(
                f"no usable images in {printable(folder.path)}{left_out}{found}\n"
                f"expected FOLDER/train/{config.domain_a} and FOLDER/train/{config.domain_b} (or trainA and trainB)"
                " with images, such as JPEG, PNG or WebP\n"
                "to train on your own images: python train.py --data-dir FOLDER\n"
                "to download faces: python download_files.py\n"
                "to try the program on rendered faces: python train.py --preset demo"
            )
    return folders


def domain_names(config: Config) -> tuple[str, str]:
    """What messages call domains a and b: the configured names, but A and B for trainA and trainB without such names.

    A name that is the default has not been chosen, and would be wrong for other folders.
    """
    folder_a, folder_b = (folder.name.lower() for folder in domain_folders(config, "train"))
    name_a = "A" if folder_a == "traina" and config.domain_a == Config.domain_a else config.domain_a
    name_b = "B" if folder_b == "trainb" and config.domain_b == Config.domain_b else config.domain_b
    return name_a, name_b


def scan_folder(path: Path) -> ImageFolder:
    """Find the images below a folder and decode each of them once, so that training never reads a damaged one.

    A file with the suffix of an image that cannot be used is left out with a reason. Other files, hidden ones and links
    to folders that have been read already are passed over and counted (see `find_files`).
    """
    files: list[Path] = []
    left_out: list[tuple[Path, str]] = []
    found, passed_over = find_files(path)
    with warnings.catch_warnings():
        # Pillow warns of odd metadata, and of large images, which read_image refuses anyway.
        warnings.simplefilter("ignore")
        for file in found:
            reason = _why_unusable(file)
            if reason is None:
                files.append(file)
            elif reason:
                left_out.append((file, reason))
            else:
                passed_over.add_file(file)
    return ImageFolder(path, files, left_out, passed_over)


def _why_unusable(file: Path) -> str | None:
    """Why an image cannot be used; None if it can be, and "" if neither its content nor its suffix is an image's."""
    if not may_be_image(file):
        return ""
    try:
        if not file.is_file():  # Reading from a pipe would block for ever.
            return "not a regular file"
        short, long = sorted(read_image(file, min_side=MIN_SIDE, preview=True).size)
        return f"too narrow: one side is over {MAX_ASPECT} times the other" if long > MAX_ASPECT * short else None
    except UnidentifiedImageError:
        return "empty file" if file.stat().st_size == 0 else "not an image"
    except Exception as error:  # Decoders may raise any exception on a damaged file.
        return f"{type(error).__name__}: {error}".splitlines()[0]


def report_left_out(folders: Iterable[ImageFolder], path: Path, show: int = 10) -> None:
    """Print what each folder left out, the first few images with reasons, and write all of it to `path`."""
    all_lines: list[str] = []
    for folder in sorted(folders, key=lambda folder: folder.path):
        lines = [printable(f"  {file}: {reason}") for file, reason in folder.left_out]
        if lines:
            of_all = f"{len(lines)} of {count(len(folder.files) + len(lines), 'image')}"
            print(f"left out {of_all} in {printable(folder.path)}:", *lines[:show], sep="\n")
            if len(lines) > show:
                print(f"  ... and {len(lines) - show} more, all listed in {printable(path)}")
            all_lines += lines
        if folder.passed_over:
            text = f"in {printable(folder.path)}: {folder.passed_over}"
            print(text)
            all_lines.append(text)
    if all_lines:
        path.write_text("\n".join(all_lines) + "\n", encoding="utf-8")


def build_augmentation(config: Config) -> A.Compose:
    """The training augmentation, which maps an RGB image of any size to (image_size, image_size, 3) uint8."""
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
    """Resize the short side to `size` px without aliasing: average areas to shrink, bicubic to enlarge."""
    return A.SmallestMaxSize(size, interpolation=cv2.INTER_CUBIC, area_for_downscale="image", p=1.0)


class UnpairedDataset(Dataset[Pair]):
    """Pairs of image `index` of the larger domain and a random image of the other, each augmented on its own.

    With `lambda_pair` both have the same index instead, and are augmented alike, so that true pairs of equal shape stay
    true; UserError if an image has no pair of its name.

    An item depends only on its key (epoch, index), the configuration and the files, not on the workers that load it.
    """

    def __init__(self, files_a: Sequence[Path], files_b: Sequence[Path], config: Config) -> None:
        self.files_a = files_a
        self.files_b = files_b
        self.seed = config.seed
        self.paired = config.lambda_pair > 0
        if self.paired:
            _check_pairs(files_a, files_b)
        self.augmentation = build_augmentation(config)

    def __len__(self) -> int:
        """The number of pairs in an epoch, which is the size of the larger domain."""
        return max(len(self.files_a), len(self.files_b))

    def __getitem__(self, key: tuple[int, int]) -> Pair:
        """Two uint8 tensors (3, image_size, image_size), 0 to 255, of domains a and b."""
        epoch, index = key
        random_numbers = np.random.SeedSequence((self.seed, epoch, index)).generate_state(3, np.uint64)
        partner, seed_a, seed_b = (int(number) for number in random_numbers)
        a_is_larger = len(self.files_a) >= len(self.files_b)
        index_a = index if a_is_larger else partner % len(self.files_a)
        index_b = partner % len(self.files_b) if a_is_larger else index
        if self.paired:
            index_b, seed_b = index_a, seed_a
        return self._load(self.files_a[index_a], seed_a), self._load(self.files_b[index_b], seed_b)

    def _load(self, file: Path, seed: int) -> Tensor:
        # Albumentations keeps a random state of its own, which workers would share and epochs would repeat.
        self.augmentation.set_random_seed(seed)
        try:
            pixels = np.array(read_image(file))
        except (OSError, ValueError, SyntaxError) as error:  # The file was readable at the start of the run.
            raise OSError(f"{printable(file)} can no longer be read: {error}") from error
        return image_to_pixels(self.augmentation(image=pixels)["image"])


def _check_pairs(files_a: Sequence[Path], files_b: Sequence[Path]) -> None:
    names_a, names_b = ([file.name for file in files] for files in (files_a, files_b))
    if names_a != names_b:
        alone = sorted(set(names_a) ^ set(names_b))
        found = f"; {printable(alone[0])} is in one of them only" if alone else ""
        raise UserError(
            f"lambda_pair needs training images of equal names in both domains{found}\n"
            "if the images are not pairs, leave out --lambda-pair"
        )


def count_steps_per_epoch(num_items: int, batch_size: int, num_processes: int = 1) -> int:
    """Steps in an epoch, each with one batch for every process; UserError if there are fewer items than processes."""
    if num_items < num_processes:
        raise UserError(f"{num_items} images are too few for {num_processes} processes: start at most {num_items}")
    return math.ceil(num_items // num_processes / batch_size)


@dataclass(eq=False)
class EpochBatches(Sampler[list[tuple[int, int]]]):
    """The keys (epoch, index) of each step's batch, in a new order every epoch, from any step on.

    The order depends only on the seed and the epoch, so that a run can resume in the middle of an epoch. N processes
    share each batch that one process with N times the batch size would take: each takes every N-th key. If the keys of
    an epoch do not divide by N, the last few are left out; each epoch leaves out others.
    """

    num_items: int
    batch_size: int
    seed: int
    first_step: int
    num_steps: int  # The step to stop before, counted from the start of the run.
    rank: int = 0
    num_processes: int = 1

    def __len__(self) -> int:
        return self.num_steps - self.first_step

    def __iter__(self) -> Iterator[list[tuple[int, int]]]:
        steps_per_epoch = count_steps_per_epoch(self.num_items, self.batch_size, self.num_processes)
        for step in range(self.first_step, self.num_steps):
            epoch, batch = divmod(step, steps_per_epoch)
            if batch == 0 or step == self.first_step:
                order = np.random.default_rng((self.seed, epoch)).permutation(self.num_items)
                own = order[: self.num_items - self.num_items % self.num_processes][self.rank :: self.num_processes]
            yield [(epoch, int(i)) for i in own[batch * self.batch_size : (batch + 1) * self.batch_size]]


def build_loader(
    dataset: UnpairedDataset, batches: EpochBatches, num_workers: int, *, pin_memory: bool = False
) -> DataLoader[Pair]:
    """Batches (real_a, real_b), each (N, 3, H, W) uint8, 0 to 255, which `num_workers` processes read.

    Raises:
        UserError: the folder for temporary files has too long a path for workers.
    """
    if num_workers:
        _check_temporary_folder()
    return DataLoader(
        dataset,
        batch_sampler=batches,
        num_workers=num_workers,
        pin_memory=pin_memory,
        worker_init_fn=_start_worker,
        generator=torch.Generator(),  # The loader draws a seed, and must leave the run's own generator alone.
    )


def _check_temporary_folder() -> None:
    """Raise a UserError if workers could not send what they read: the main process would wait for it for ever."""
    folder = tempfile.gettempdir()
    has_sockets = torch.multiprocessing.get_sharing_strategy() == "file_descriptor"  # type: ignore[no-untyped-call]
    if has_sockets and len(os.fsencode(folder)) + len(SOCKET_NAME) > MAX_SOCKET_PATH:
        raise UserError(
            f"the path of the folder for temporary files is too long for worker processes: {printable(folder)}\n"
            f"set TMPDIR to a folder of at most {MAX_SOCKET_PATH - len(SOCKET_NAME)} characters, or use --num-workers 0"
        )


@contextmanager
def running(loader: DataLoader[Pair], stop: Sequence[int] = ()) -> Iterator[Iterator[Pair]]:
    """Yield a loader's batches, and stop its workers at the end, even after an error.

    The workers ignore SIGTERM, so Python, which sends it to them at exit, would otherwise wait for them for ever. One
    that hangs is killed after MAX_WAIT seconds.

    Args:
        loader: the loader.
        stop: where requests to stop appear. If one comes while the workers bring nothing, an empty pair follows, so
            that the loop can look at the requests.
    """
    batches = iter(loader)
    try:
        yield _until_asked_to_stop(batches, stop) if loader.num_workers else batches
    finally:
        shutdown = threading.Thread(target=getattr(batches, "_shutdown_workers", lambda: None), daemon=True)
        shutdown.start()
        shutdown.join(MAX_WAIT)
        _kill([worker for worker in getattr(batches, "_workers", []) if worker.is_alive()])
        shutdown.join(MAX_WAIT)


def _kill(workers: Sequence[BaseProcess]) -> None:
    """Kill processes, without the error that torch's handler of SIGCHLD raises for each."""
    if workers:
        previous = signal.signal(signal.SIGCHLD, signal.SIG_DFL) if hasattr(signal, "SIGCHLD") else None
        for worker in workers:
            worker.kill()
        for worker in workers:
            worker.join(timeout=1)
        if previous is not None:
            signal.signal(signal.SIGCHLD, previous)


class _Fetch(threading.Thread):
    """Waits for one batch: in a thread, because reading from a process that hangs cannot be given up."""

    def __init__(self, batches: Iterator[Pair]) -> None:
        super().__init__(daemon=True)
        self.batches = batches
        self.pair: Pair | None = None
        self.error: Exception | None = None

    def run(self) -> None:
        try:
            self.pair = next(self.batches, None)
        except Exception as error:
            self.error = error


def _until_asked_to_stop(batches: Iterator[Pair], stop: Sequence[int]) -> Iterator[Pair]:
    """The batches; an empty pair ends them where none has come for MAX_WAIT seconds and a request to stop has."""
    while True:
        fetch = _Fetch(batches)
        fetch.start()
        fetch.join(MAX_WAIT)
        while fetch.is_alive() and not stop:
            fetch.join(MAX_WAIT)
        if fetch.is_alive():
            yield torch.empty(0), torch.empty(0)
            return
        if fetch.error:
            raise fetch.error
        if fetch.pair is None:
            return
        yield fetch.pair


def _start_worker(worker: int) -> None:
    """Ignore signals, since the training process stops its workers itself."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    cv2.setNumThreads(0)  # OpenCV's threads do not survive a fork.


def load_image(file: Path, image_size: int) -> np.ndarray:
    """An image without augmentation, resized and cropped to its centre, (image_size, image_size, 3) uint8 RGB."""
    resize_and_crop = A.Compose([resize_short_side(image_size), A.CenterCrop(image_size, image_size, p=1.0)])
    pixels: np.ndarray = resize_and_crop(image=np.array(read_image(file)))["image"]
    return pixels


def load_images(files: Sequence[Path], image_size: int) -> Tensor:
    """A batch of images from `load_image`, (N, 3, image_size, image_size) float32 in [-1, 1]."""
    return torch.stack([image_to_tensor(load_image(file, image_size)) for file in files])


def measure_faces(*groups: Sequence[Path]) -> Template | None:
    """Measure where the landmarks of faces lie in images that are cropped alike (see `measure_template`).

    Each group of files contributes equally many images, evenly spread, TEMPLATE_IMAGES in all.
    """
    share = max(1, TEMPLATE_IMAGES // len(groups))
    files = [file for group in groups for file in group[:: max(1, len(group) // share)][:share]]
    return measure_template(load_image(file, TEMPLATE_SIDE) for file in files)


def unpack_demo_faces(target: Path) -> None:
    """Unpack the rendered faces that come with the program into the folder `target`, which appears once complete."""
    target.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=".demo-", dir=target.parent) as folder:
        with zipfile.ZipFile(DEMO_ZIP) as archive:
            archive.extractall(Path(folder, "faces"))
        try:
            os.rename(Path(folder, "faces"), target)
        except OSError:
            if not target.is_dir():  # If it exists now, another process has unpacked the faces.
                raise
