"""The data set, trained weights and test images in one command: downloaded, verified, unpacked and put in place.

python download_files.py            what is missing of all three
python download_files.py --list     where they come from, how large they are, and what is here already
"""

from __future__ import annotations

import argparse
import os
import re
import shutil
import sys
import zipfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from urllib.parse import unquote, urlsplit

from filelock import FileLock, Timeout

from config import PRESETS, Config
from dataset import DEMO_ZIP, IMAGE_SUFFIXES, SPLITS, class_of, domain_folders, unpack_demo_faces
from downloads.archives import check_archive, is_archive, unpack
from downloads.fetch import fetch, remote_size, verify
from import_weights import import_weights
from utils import UserError, command, printable
from weights.load import load_weights

ORIGIN_URL = "https://gitlab.com/glebtutik/european_to_asian_files/-/raw/main"
HERE = Path(__file__).parent


@dataclass(frozen=True)
class Source:
    """Something to fetch: what, where from, into which folder; SHA-256 and images per class where they are known."""

    what: str
    url: str
    folder: str
    sha256: str = ""
    images_per_class: int = 0


SOURCES = {
    "dataset": Source("data set", f"{ORIGIN_URL}/dataset/dataset.zip", "dataset", images_per_class=1024),
    "weights": Source("weights", f"{ORIGIN_URL}/checkpoints/checkpoints.zip", "checkpoints"),
    "test_images": Source("test images", f"{ORIGIN_URL}/test_images/test_images.zip", "test_images"),
}


def count_images(folder: Path) -> int:
    """Files below a folder whose names say that they are images."""
    return sum(file.suffix.lower() in IMAGE_SUFFIXES and not file.name.startswith(".") for file in folder.rglob("*"))


def what_is_here(source: Source, root: Path, config: Config) -> str:
    """What is in place already of a source, in words; "" where it is missing, or one class of it."""
    target = root / source.folder
    if source is SOURCES["weights"]:
        return ", ".join(sorted(printable(file) for file in target.glob("*.safetensors")))
    if source is SOURCES["test_images"]:
        count = count_images(target)
        return f"{count} images in {printable(target)}" if count else ""
    folders = domain_folders(config, "train")
    counts = [count_images(folder) for folder in folders]
    said = " and ".join(f"{count} in {printable(folder)}" for count, folder in zip(counts, folders, strict=True))
    return f"{said} to train on" if all(counts) else ""


# --- Fetching


@contextmanager
def staging_folder(root: Path) -> Iterator[Path]:
    """The folder root/staging, held by this process alone; at the end it stays only if something is left in it."""
    folder = root / "staging"
    folder.mkdir(parents=True, exist_ok=True)
    lock = FileLock(folder / ".lock")
    try:
        lock.acquire(timeout=0)
    except Timeout:
        raise UserError(f"another download into {printable(folder)} is under way; wait for it") from None
    try:
        _clear_staging_folder(folder)
        yield folder
    finally:
        _clear_staging_folder(folder)
        if not any(file.name != ".lock" for file in folder.iterdir()):
            shutil.rmtree(folder, ignore_errors=True)  # Windows keeps a lock file that is held
        lock.release()


def _clear_staging_folder(folder: Path) -> None:
    """Remove what an unpacking left behind, also one that was killed; downloads are kept."""
    for name in ("unpacked", "staged"):
        shutil.rmtree(folder / name, ignore_errors=True)


def fetch_source(source: Source, url: str, sha256: str, root: Path, config: Config) -> None:
    """Bring a source's content into place from `url`; UserError leaves the place as it was."""
    local = local_path(url)
    check = partial(check_download, source=source)
    with staging_folder(root) as folder:
        file = local or folder / file_name(url, source)
        if not local:
            fetch(url, file, sha256, check)
        elif local.is_file():
            verify(local, sha256, check)
        try:
            content = open_up(file, folder / "unpacked")
            PLACERS[source.folder](content, folder / "staged", root / source.folder, config)
        except UserError as error:
            kept = "" if local else f"\nthe download is kept; to begin again, delete {printable(file)}"
            raise UserError(f"{error}{kept}") from error
        if not local:
            file.unlink()  # its content is in place


def open_up(source: Path, folder: Path) -> Path:
    """Make `folder` from an archive's content, or as a copy of another folder or of one file."""
    if source.is_dir():
        shutil.copytree(source, folder)
    elif is_archive(source):
        unpack(source, folder)
    else:
        folder.mkdir()
        shutil.copy(source, folder)
    return folder


def local_path(address: str) -> Path | None:
    """The file or folder that an address names; None for a web address. UserError for neither."""
    scheme = urlsplit(address).scheme.lower()
    if scheme in ("http", "https"):
        return None
    path = Path(unquote(urlsplit(address).path) if scheme == "file" else address).expanduser()
    if not path.exists():
        raise UserError(f"{printable(address)} is neither an http(s) address nor a file or folder that is there")
    return path


def file_name(url: str, source: Source) -> str:
    """What the download is called on disk: as in the address, if that ends with a plain name."""
    name = unquote(urlsplit(url).path).rsplit("/", 1)[-1]
    return name if re.fullmatch(r"\w[\w.-]{0,99}\.\w{1,20}", name) else source.folder


def check_download(path: Path, source: Source) -> None:
    """UserError unless a file is a whole and harmless archive; weights may come in other files too."""
    if source.folder != "checkpoints" or zipfile.is_zipfile(path) or is_archive(path):
        check_archive(path)


# --- Putting in place


def place_dataset(content: Path, staged: Path, target: Path, config: Config) -> None:
    """Move the classes to target/train and target/test; a class folder that holds images already stays as it is."""
    moves = []
    for (split, domain), folder in find_classes(content, config).items():
        place = domain_folders(config, split)[domain == config.domain_b]
        if count_images(place):
            print(f"left as it is: {printable(place)}")
        else:
            moves.append((stage(folder, staged / split / domain), place))
    move_all(moves)


def find_classes(content: Path, config: Config) -> dict[tuple[str, str], Path]:
    """The folders of both classes by (split, domain), found by name at any depth.

    A class folder is called as the domain, in any case, or trainA, testB and so on; it belongs to "test" where a folder
    above it is called test or val. UserError where a class is missing or there are several folders for it.
    """
    names = {config.domain_a.lower(): config.domain_a, config.domain_b.lower(): config.domain_b}
    domains = {**names, "a": config.domain_a, "b": config.domain_b}
    found: dict[tuple[str, str], Path] = {}
    for folder in sorted(path for path in content.rglob("*") if path.is_dir() and "__MACOSX" not in path.parts):
        name, above = folder.name.lower(), [part.lower() for part in folder.relative_to(content).parts[:-1]]
        if name in names:
            slot = ("test" if any(SPLITS.get(part) == "test" for part in above) else "train", names[name])
        elif (place := class_of(Path(name))) is not None:
            slot = (place[0], domains[place[1]])
        else:
            continue
        if not count_images(folder):
            continue
        if slot in found and found[slot] not in folder.parents:
            raise UserError(
                f"two folders for {slot[0]} {slot[1]}: {printable(found[slot].relative_to(content))} and "
                f"{printable(folder.relative_to(content))}"
            )
        found[slot] = folder
    missing = [domain for domain in names.values() if ("train", domain) not in found]
    if missing:
        seen = sorted({printable(path.name) for path in content.rglob("*") if path.is_dir()})[:8]
        raise UserError(
            f"no folder {' and none '.join(missing)} with images in the data set (nor trainA and trainB)\n"
            f"its folders: {', '.join(seen) or 'none'}; other names are told with --domain-a and --domain-b"
        )
    return found


def place_test_images(content: Path, staged: Path, target: Path, config: Config) -> None:
    """Move the images to `target`, without the outer folders that hold nothing but one folder."""
    if not count_images(content):
        raise UserError("there are no images in it")
    while len(inside := [path for path in content.iterdir() if path.name != "__MACOSX"]) == 1 and inside[0].is_dir():
        content = inside[0]
    move_all([(stage(content, staged), target)])


def place_weights(content: Path, staged: Path, target: Path, config: Config) -> None:
    """Convert weights, whatever project they are from; our own .safetensors files are taken as they are."""
    staged.mkdir()
    ours = sorted(content.rglob("*.safetensors"))
    for file in ours:
        check_weights(file)
        stage(file, staged / file.name)
    if not ours:
        files = list(content.iterdir())
        foreign = files[0] if len(files) == 1 and files[0].is_file() else content
        print(import_weights(foreign, staged / f"{config.domain_a}_{config.domain_b}.safetensors"))
    move_all([(file, target / file.name) for file in sorted(staged.iterdir())])


PLACERS = {"dataset": place_dataset, "checkpoints": place_weights, "test_images": place_test_images}


def check_weights(file: Path) -> None:
    """UserError unless a .safetensors file holds a generator of this program, of one direction at least."""
    weights = load_weights(file)
    for direction in weights.generators:
        weights.generator(direction)


def stage(path: Path, staged: Path) -> Path:
    """Rename a file or folder to its final name, beside its final place."""
    staged.parent.mkdir(parents=True, exist_ok=True)
    os.rename(path, staged)
    return staged


def move_all(moves: Sequence[tuple[Path, Path]]) -> None:
    """Rename each first path to the second, which is absent or an empty folder; all of them, or UserError and none."""
    done: list[tuple[Path, Path]] = []
    try:
        for staged, target in moves:
            target.parent.mkdir(parents=True, exist_ok=True)
            if target.is_dir():
                target.rmdir()
            os.rename(staged, target)
            done.append((staged, target))
    except OSError as error:
        for old, new in done:
            os.rename(new, old)
        raise UserError(f"could not put {printable(target)} in place: {error}") from error


# --- The command line


def list_sources(root: Path, config: Config) -> None:
    """Print every source with its address, its size as the server tells it, and what is here of it."""
    for source in SOURCES.values():
        print(f"{source.what}: {what_is_here(source, root, config) or 'not here yet'}")
        print(f"  {source.url}\n  {remote_size(source.url)}, SHA-256 {source.sha256 or 'not known'}")
    print(f"demo faces: in this repository ({DEMO_ZIP.stat().st_size / 1e6:.1f} MB), unpacked by --demo")


def bring(source: Source, url: str, sha256: str, root: Path, config: Config) -> bool:
    """Fetch a source unless it is here, and say how it went; whether it is here now."""
    here = what_is_here(source, root, config)
    if here:
        print(f"{source.what}: here already: {here}")
        return True
    try:
        fetch_source(source, url, sha256, root, config)
    except (UserError, OSError) as error:
        print(f"error: {source.what}: {error}", file=sys.stderr)
        return False
    print(f"{source.what}: {what_is_here(source, root, config)}")
    if source.images_per_class and url == source.url:
        print(f"  (the source promises {source.images_per_class} of each class; python check_data.py checks them)")
    return True


def parse_args(argv: Sequence[str] | None = None) -> argparse.Namespace:
    """The command line; a mistake ends the program with status 2 and says why."""
    parser = argparse.ArgumentParser(description="Bring the data set, trained weights and test images into place.")
    for name, source in SOURCES.items():
        parser.add_argument(f"--{name.replace('_', '-')}", action="store_true", help=f"only the {source.what}")
    parser.add_argument("--demo", action="store_true", help="only the rendered faces of this repository")
    parser.add_argument("--url", help="another source: http(s), Google Drive, or a file or folder on this machine")
    parser.add_argument("--sha256", default="", help="what the SHA-256 of the file from --url must be, in hex")
    parser.add_argument("--list", action="store_true", help="show sources, sizes and what is here; change nothing")
    parser.add_argument("--root", type=Path, default=HERE, help="where the folders go (default: this repository)")
    parser.add_argument("--domain-a", default=Config.domain_a, help="folder name of domain a (default: %(default)s)")
    parser.add_argument("--domain-b", default=Config.domain_b, help="folder name of domain b (default: %(default)s)")
    args = parser.parse_args(argv)
    args.chosen = [source for name, source in SOURCES.items() if getattr(args, name)]
    if args.url == "":
        parser.error("--url takes a name that is not empty")
    if args.url and len(args.chosen) != 1:
        parser.error("--url needs one of --dataset, --weights and --test-images")
    if args.sha256 and not re.fullmatch("[0-9a-fA-F]{64}", args.sha256):
        parser.error("--sha256 takes 64 hexadecimal digits")
    if args.sha256 and len(args.chosen) != 1:
        parser.error("--sha256 needs one of --dataset, --weights and --test-images")
    return args


@command
def main(argv: Sequence[str] | None = None) -> int:
    """Do what the command line asks for; 0 if all of it is in place at the end."""
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
        brought = [bring(source, args.url or source.url, args.sha256 or source.sha256, args.root, config)
                   for source in chosen]  # fmt: skip
    except KeyboardInterrupt:
        print("stopped; the same command resumes the download", file=sys.stderr)
        raise
    return 0 if all(brought) else 1


if __name__ == "__main__":
    sys.exit(main())
