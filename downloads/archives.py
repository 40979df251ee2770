"""Zip and tar archives from strangers: looked through before anything is written, unpacked whole or refused whole."""

from __future__ import annotations

import lzma
import shutil
import stat
import struct
import tarfile
import unicodedata
import zipfile
import zlib
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import IO

from utils import UserError, printable

MAX_ENTRIES = 200_000
MAX_BYTES = 8 * 10**9  # unpacked
MAX_RATIO = 200  # bytes unpacked over bytes packed
DAMAGE = (zipfile.BadZipFile, tarfile.TarError, zlib.error, lzma.LZMAError, struct.error, EOFError, ValueError,
          NotImplementedError)  # fmt: skip
Member = zipfile.ZipInfo | tarfile.TarInfo
Archive = zipfile.ZipFile | tarfile.TarFile


@dataclass(frozen=True)
class Entry:
    """One file or folder in an archive, as its header describes it; `problem` says why it must not be unpacked."""

    name: str
    size: int
    is_folder: bool
    problem: str
    member: Member


def is_archive(path: Path) -> bool:
    """Whether a file is a zip or tar archive; PyTorch's files are zip archives too, but not to unpack."""
    if zipfile.is_zipfile(path):
        with zipfile.ZipFile(path) as archive:
            return not any(name.endswith("/data.pkl") for name in archive.namelist())
    return tarfile.is_tarfile(path)


def check_archive(path: Path) -> None:
    """Read an archive to its end without writing anything.

    Raises:
        UserError: it is damaged, no archive at all, or holds what could do harm: `..`, absolute or unclear paths,
            links, devices, encrypted entries, names that collide (also where a disk ignores case), too many entries,
            or far more bytes than it takes itself.
    """
    with _opened(path) as archive:
        for entry in _safe_entries(archive, path):
            if not entry.is_folder:
                with _read(archive, entry) as source:
                    while source.read(1 << 20):
                        pass


def unpack(path: Path, folder: Path) -> None:
    """Unpack an archive into a new folder; UserError as for `check_archive`, and then the folder is not there."""
    try:
        with _opened(path) as archive:
            entries = list(_safe_entries(archive, path))
            folder.mkdir(parents=True)
            for entry in entries:
                target = folder.joinpath(*_parts(entry.name))
                (target if entry.is_folder else target.parent).mkdir(parents=True, exist_ok=True)
                if not entry.is_folder:
                    with _read(archive, entry) as source, open(target, "xb") as copy:
                        shutil.copyfileobj(source, copy, 1 << 20)
    except BaseException:
        shutil.rmtree(folder, ignore_errors=True)
        raise


@contextmanager
def _opened(path: Path) -> Iterator[Archive]:
    """The archive, whatever its kind; all that goes wrong with it or with the disk becomes a UserError."""
    try:
        with zipfile.ZipFile(path) if zipfile.is_zipfile(path) else tarfile.open(path) as archive:
            yield archive
    except UserError:
        raise
    except DAMAGE as error:
        reason, *_ = str(error).splitlines() or [type(error).__name__]
        raise UserError(f"it is no whole archive: {reason}") from error
    except OSError as error:  # of a full disk, and of gzip, bzip2 and xz for damaged data
        raise UserError(f"it cannot be unpacked: {error}") from error


def _safe_entries(archive: Archive, path: Path) -> Iterator[Entry]:
    """The entries, one by one; UserError at the first that must not be unpacked."""
    limit = min(MAX_BYTES, MAX_RATIO * path.stat().st_size)
    taken: dict[str, bool] = {}  # every path so far, as a disk that ignores case sees it, and whether it is a folder
    count = total = 0
    for entry in _zip_entries(archive) if isinstance(archive, zipfile.ZipFile) else _tar_entries(archive):
        count, total = count + 1, total + entry.size
        problem = entry.problem or _problem_with_name(entry.name) or _collision(entry, taken)
        if problem:
            raise UserError(f"the archive is refused: {printable(entry.name[:100])!r} {problem}")
        if count > MAX_ENTRIES:
            raise UserError(f"the archive is refused: it has over {MAX_ENTRIES} entries")
        if total > limit:
            raise UserError(
                f"the archive is refused: it would unpack to over {limit} bytes "
                f"(the limit is {MAX_RATIO} times its size, and {MAX_BYTES} at most)"
            )
        yield entry


def _zip_entries(archive: zipfile.ZipFile) -> Iterable[Entry]:
    for info in archive.infolist():
        kind = stat.S_IFMT(info.external_attr >> 16)
        problem = "is encrypted" if info.flag_bits & 1 else ""
        if kind not in (0, stat.S_IFREG, stat.S_IFDIR):
            problem = "is a link or a device"
        yield Entry(info.orig_filename, info.file_size, info.is_dir(), problem, info)


def _tar_entries(archive: tarfile.TarFile) -> Iterable[Entry]:
    for info in archive:
        if info.isdir() and not _parts(info.name):
            continue  # "./", the folder that was packed
        problem = "" if info.isreg() or info.isdir() else "is a link or a device"
        yield Entry(info.name, info.size, info.isdir(), problem, info)


def _parts(name: str) -> tuple[str, ...]:
    return PurePosixPath(name).parts


def _problem_with_name(name: str) -> str:
    """Why no file of this name must be made; "" for a good name."""
    if name.startswith(("/", "\\")) or name[1:2] == ":":
        return "has an absolute path"
    if ".." in _parts(name.replace("\\", "/")):
        return "leads out of the archive"
    if "\\" in name or not name.isprintable() or not _parts(name):
        return "has no clear name"
    return ""


def _collision(entry: Entry, taken: dict[str, bool]) -> str:
    """Say if another entry has this path, or is a file where this one needs a folder; otherwise note the path."""
    parts = [unicodedata.normalize("NFC", part).casefold() for part in _parts(entry.name)]
    for depth in range(1, len(parts)):
        if not taken.setdefault("/".join(parts[:depth]), True):
            return "lies in what is a file"
    path = "/".join(parts)
    if path in taken and not (entry.is_folder and taken[path]):
        return "is there twice (names that differ in case alone collide)"
    taken[path] = entry.is_folder
    return ""


def _read(archive: Archive, entry: Entry) -> IO[bytes]:
    if isinstance(archive, zipfile.ZipFile):
        assert isinstance(entry.member, zipfile.ZipInfo)
        return archive.open(entry.member)
    assert isinstance(entry.member, tarfile.TarInfo)
    source = archive.extractfile(entry.member)
    assert source is not None, entry.name
    return source
