"""Download the data set, trained weights and test images, verify and unpack them, and put them in place.

python download_files.py            downloads what is missing of all three
python download_files.py --list     lists their sources and sizes, and what is here already
"""

from __future__ import annotations

import argparse
import re
import shutil
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import startup  # noqa: F401

from filelock import FileLock, Timeout

from config import PRESETS, Config
from console import UserError, command, count, printable, some_path
from dataset import DEMO_ZIP, SPLITS, class_of, domain_folders, unpack_demo_faces
from downloads.archives import check_archive, copy_or_unpack
from downloads.fetch import fetch, file_name, local_path, remote_size, verify
from downloads.place import move_all, stage, writing_to
from downloads.readers import kind_of
from images.files import IMAGE_SUFFIXES
from import_weights import import_weights
from photos.files import find_files
from weights.load import load_weights

ORIGIN_URL = "https://gitlab.com/glebtutik/european_to_asian_files/-/raw/main"
HERE = Path(__file__).parent


@dataclass(frozen=True)
class Source:
    """A file to download: what it is in words, its address or local path, and the folder for its content."""

    what: str
    url: str
    folder: str
    sha256: str = ""  # in hex; "" if it is not known
    images_per_class: int = 0  # as its authors state; 0 if they do not


SOURCES = {
    "dataset": Source("data set", f"{ORIGIN_URL}/dataset/dataset.zip", "dataset", images_per_class=1024),
    "weights": Source("weights", f"{ORIGIN_URL}/checkpoints/checkpoints.zip", "checkpoints"),
    "test_images": Source("test images", f"{ORIGIN_URL}/test_images/test_images.zip", "test_images"),
}


def count_images(folder: Path) -> int:
    """How many files below a folder have the name of an image."""
    return sum(file.suffix.lower() in IMAGE_SUFFIXES for file in find_files(folder)[0])


def what_is_here(source: Source, root: Path, *, config: Config) -> str:
    """What is already in place of a source, in words; "" if the source, or one class of it, is missing."""
    target = root / source.folder
    if source.folder == "checkpoints":
        return ", ".join(sorted(printable(file) for file in target.glob("*.safetensors")))
    if source.folder == "test_images":
        number = count_images(target)
        return f"{count(number, 'image')} in {printable(target)}" if number else ""
    folder_a, folder_b = domain_folders(config, "train")
    num_a = count_images(folder_a)
    num_b = count_images(folder_b)
    if not num_a or not num_b:
        return ""
    return f"{count(num_a, 'training image')} in {printable(folder_a)} and {num_b} in {printable(folder_b)}"


# --- Downloading


@contextmanager
def staging_folder(root: Path) -> Iterator[Path]:
    """Lock the folder root/staging, and remove it at the end if it is empty; UserError if another process uses it."""
    folder = root / "staging"
    lock = FileLock(folder / ".lock")
    with writing_to(folder):
        folder.mkdir(parents=True, exist_ok=True)
        try:
            lock.acquire(timeout=0)
        except Timeout:
            raise UserError(f"another download into {printable(folder)} is running; wait until it ends") from None
    try:
        _clear_staging_folder(folder)
        yield folder
    finally:
        _clear_staging_folder(folder)
        if not any(file.name != ".lock" for file in folder.iterdir()):
            shutil.rmtree(folder, ignore_errors=True)  # Windows does not delete a locked file
        lock.release()


def _clear_staging_folder(folder: Path) -> None:
    """Remove unpacked files, also those of a run that was killed, but keep the downloads."""
    for name in ("unpacked", "staged"):
        shutil.rmtree(folder / name, ignore_errors=True)


def download_and_place(source: Source, root: Path, *, config: Config) -> None:
    """Download a source, or copy it from a local path, and put its content in place. A UserError changes nothing."""
    local = local_path(source.url)
    check = partial(check_download, source=source)
    with staging_folder(root) as folder:
        file = local or folder / file_name(source.url, source.folder)
        if not local:
            fetch(source.url, file, sha256=source.sha256, check=check)
        try:
            if file.is_dir() and source.sha256:
                raise UserError("--sha256 is the checksum of a file, and this is a folder")
            if local and local.is_file():
                verify(local, source.sha256, check=check)
            content = folder / "unpacked"
            copy_or_unpack(file, content)
            PLACERS[source.folder](content, folder / "staged", target=root / source.folder, config=config)
        except UserError as error:
            if local:
                raise UserError(f"{printable(local)}: {error}") from error
            raise UserError(f"{error}\nthe download is kept; delete {printable(file)} to start over") from error
        if not local:
            file.unlink()  # its content is in place


def check_download(path: Path, source: Source) -> None:
    """Raise UserError unless a file is an intact and harmless archive. Weights may be other files, too."""
    if source.folder != "checkpoints" or kind_of(path):
        check_archive(path)


# --- Putting the content in place


def place_dataset(content: Path, staged: Path, *, target: Path, config: Config) -> None:
    """Move the classes to target/train and target/test, but leave class folders alone that already hold images."""
    moves = []
    for (split, domain), folder in find_classes(content, config).items():
        folder_a, folder_b = domain_folders(config, split)
        place = folder_a if domain == config.domain_a else folder_b
        if count_images(place):
            print(f"{printable(place)} already holds images and is left as it is")
        else:
            moves.append((stage(folder, staged / split / domain), place))
    move_all(moves)


def find_classes(content: Path, config: Config) -> dict[tuple[str, str], Path]:
    """Find the folders of both classes by their names, at any depth.

    A class folder has the name of the domain, in any case, or is called trainA, testB and so on. It belongs to the
    split "test" if a folder above it is called test, val or validation, and to "train" otherwise.

    Returns:
        Folders by (split, domain), where the split is "train" or "test".

    Raises:
        UserError: a class of the training split is missing, or several folders could be the same class.
    """
    names = {config.domain_a.lower(): config.domain_a, config.domain_b.lower(): config.domain_b}
    letters = {"a": config.domain_a, "b": config.domain_b}
    found: dict[tuple[str, str], Path] = {}
    for folder in sorted(path for path in content.rglob("*") if path.is_dir() and "__MACOSX" not in path.parts):
        name = folder.name.lower()
        if name in names:
            above = folder.relative_to(content).parts[:-1]
            in_test = any(SPLITS.get(part.lower()) == "test" for part in above)
            slot = ("test" if in_test else "train", names[name])
        elif split_and_letter := class_of(Path(name)):
            slot = (split_and_letter[0], letters[split_and_letter[1]])
        else:
            continue
        if not count_images(folder):
            continue
        if slot in found and found[slot] not in folder.parents:
            both = " and ".join(printable(path.relative_to(content)) for path in (found[slot], folder))
            raise UserError(f"found two folders for {slot[0]} {slot[1]}: {both}")
        found[slot] = folder
    missing = [domain for domain in names.values() if ("train", domain) not in found]
    if missing:
        folders = sorted({printable(path.name) for path in content.rglob("*") if path.is_dir()})[:8]
        raise UserError(
            f"the data set has no folder {' or '.join(missing)} with images, and no trainA and trainB\n"
            f"its folders: {', '.join(folders) or 'none'}; set other names with --domain-a and --domain-b"
        )
    return found


def place_test_images(content: Path, staged: Path, *, target: Path, config: Config) -> None:
    """Move the images to `target`, without outer folders that hold nothing but one folder."""
    if not count_images(content):
        raise UserError("the download does not contain any images")
    inside = [content]
    while len(inside) == 1 and inside[0].is_dir():
        content = inside[0]
        inside = [path for path in content.iterdir() if path.name != "__MACOSX"]
    move_all([(stage(content, staged), target)])


def place_weights(content: Path, staged: Path, *, target: Path, config: Config) -> None:
    """Move our own .safetensors files to `target`, or convert the weights of another project."""
    staged.mkdir()
    ours = sorted(content.rglob("*.safetensors"))
    for file in ours:
        weights = load_weights(file)
        for direction in weights.generators:
            weights.generator(direction)  # raises UserError if the weights are not finite
        stage(file, staged / file.name)
    if not ours:
        files = list(content.iterdir())
        foreign = files[0] if len(files) == 1 and files[0].is_file() else content
        print(import_weights(foreign, staged / f"{config.domain_a}_{config.domain_b}.safetensors"))
    move_all([(file, target / file.name) for file in sorted(staged.iterdir())])


PLACERS = {"dataset": place_dataset, "checkpoints": place_weights, "test_images": place_test_images}


# --- The command line


def list_sources(root: Path, config: Config) -> None:
    """Print every source with its address, the size that its server reports, and what is already here."""
    for source in SOURCES.values():
        print(f"{source.what}: {what_is_here(source, root, config=config) or 'not here yet'}")
        print(f"  {source.url}\n  {remote_size(source.url)}, SHA-256 {source.sha256 or 'unknown'}")
    print(f"demo faces: part of this repository ({DEMO_ZIP.stat().st_size / 1e6:.1f} MB); --demo unpacks them")


def download_if_missing(source: Source, root: Path, *, config: Config) -> bool:
    """Download a source unless it is here, and print the result. Returns whether it is here now."""
    here = what_is_here(source, root, config=config)
    if here:
        print(f"{source.what}: already here: {here}")
        return True
    try:
        download_and_place(source, root, config=config)
    except (UserError, OSError) as error:
        print(f"error: {source.what}: {error}", file=sys.stderr)
        return False
    print(f"{source.what}: {what_is_here(source, root, config=config)}")
    if source.images_per_class:
        print(f"  (its authors state {source.images_per_class} images per class; check_data.py counts them)")
    return True


def parse_args(argv: Sequence[str] | None = None) -> argparse.Namespace:
    """Parse the command line. A mistake in it ends the program with status 2 and a message."""
    parser = argparse.ArgumentParser(description="Download the data set, trained weights and test images.")
    for name, source in SOURCES.items():
        parser.add_argument(f"--{name.replace('_', '-')}", action="store_true", help=f"only the {source.what}")
    parser.add_argument("--demo", action="store_true", help="only unpack the rendered faces of this repository")
    parser.add_argument("--url", help="another source: http(s), Google Drive, or a file or folder on this machine")
    parser.add_argument("--sha256", default="", help="the expected SHA-256 of the file, in hex")
    parser.add_argument("--list", action="store_true", help="list sources, sizes and what is here; change nothing")
    parser.add_argument("--root", type=some_path, default=HERE, help="parent of the folders (default: this repository)")
    parser.add_argument("--domain-a", default=Config.domain_a, help="folder name of domain a (default: %(default)s)")
    parser.add_argument("--domain-b", default=Config.domain_b, help="folder name of domain b (default: %(default)s)")
    args = parser.parse_args(argv)
    args.chosen = [source for name, source in SOURCES.items() if getattr(args, name)]
    if args.url == "":
        parser.error("--url must not be empty")
    if (args.url or args.sha256) and len(args.chosen) != 1:
        parser.error("--url and --sha256 need exactly one of --dataset, --weights and --test-images")
    if args.sha256 and not re.fullmatch("[0-9a-fA-F]{64}", args.sha256):
        parser.error("--sha256 must have 64 hexadecimal digits")
    if args.url:
        args.chosen = [replace(args.chosen[0], url=args.url, images_per_class=0)]
    if args.sha256:
        args.chosen = [replace(args.chosen[0], sha256=args.sha256)]
    return args


@command
def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line. The exit status is 0 if all that it asks for is in place at the end."""
    args = parse_args(argv)
    try:
        config = Config(data_dir=str(args.root / "dataset"), domain_a=args.domain_a, domain_b=args.domain_b)
    except ValueError as error:
        raise UserError(str(error)) from error
    if args.list:
        list_sources(args.root, config)
        return 0
    if args.demo:
        demo = args.root / PRESETS["demo"].data_dir
        if not demo.exists():
            unpack_demo_faces(demo)
        print(f"demo faces: {printable(demo)}")
    chosen = args.chosen or ([] if args.demo else list(SOURCES.values()))
    try:
        here = [download_if_missing(source, args.root, config=config) for source in chosen]
    except KeyboardInterrupt:
        print("stopped; run the same command again to resume the download", file=sys.stderr)
        raise
    return 0 if all(here) else 1


if __name__ == "__main__":
    sys.exit(main())
