"""Unpack untrusted zip and tar archives: every entry is checked before any is written, and all are unpacked or none."""

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

MAX_ENTRIES = 200_000  # An archive may have this many entries.
MAX_BYTES = 8 * 10**9  # It may unpack to this many bytes,
MAX_RATIO = 200  # and to this many times its own size.
# The libraries raise these exceptions for archives that are damaged or of an unknown kind.
DAMAGE = (zipfile.BadZipFile, tarfile.TarError, zlib.error, lzma.LZMAError, struct.error, EOFError, ValueError,
          NotImplementedError)  # fmt: skip
Member = zipfile.ZipInfo | tarfile.TarInfo
Archive = zipfile.ZipFile | tarfile.TarFile


@dataclass(frozen=True)
class Entry:
    """One file or folder in an archive, as its header describes it.

    Attributes:
        name: the path inside the archive.
        size: the unpacked size, in bytes.
        is_folder: whether it is a folder.
        problem: why it must not be unpacked; "" if its header is harmless.
        member: the library's own description of it.
    """

    name: str
    size: int
    is_folder: bool
    problem: str
    member: Member


def is_archive(path: Path) -> bool:
    """Whether a file is a zip or tar archive to unpack. PyTorch's files are zip archives, too, but do not count."""
    if zipfile.is_zipfile(path):
        with zipfile.ZipFile(path) as archive:
            return not any(name.endswith("/data.pkl") for name in archive.namelist())
    return tarfile.is_tarfile(path)


def check_archive(path: Path) -> None:
    """Read all of an archive without writing anything.

    Raises:
        UserError: the file is damaged, is not an archive, or holds something that could do harm: a path that is
            absolute, ambiguous or contains `..`; a link, device or encrypted entry; names that collide, even if only
            on a disk that ignores case; too many entries; or far more bytes than the archive itself has.
    """
    with _opened(path) as archive:
        for entry in _safe_entries(archive, path):
            if not entry.is_folder:
                with _read(archive, entry) as source:
                    while source.read(1 << 20):
                        pass


def unpack(path: Path, folder: Path) -> None:
    """Unpack an archive into a new folder. After an error, the folder does not exist.

    Raises:
        UserError: as for `check_archive`, or the disk is full.
    """
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


def copy_or_unpack(source: Path, folder: Path) -> None:
    """Fill a new folder with the content of a folder or of an archive, or with a copy of any other file.

    Raises:
        UserError: as for `unpack`.
    """
    if source.is_dir():
        shutil.copytree(source, folder)
    elif is_archive(source):
        unpack(source, folder)
    else:
        folder.mkdir()
        shutil.copy(source, folder)


@contextmanager
def _opened(path: Path) -> Iterator[Archive]:
    """Open an archive of either kind, and turn every error of the archive or of the disk into a UserError."""
    try:
        with zipfile.ZipFile(path) if zipfile.is_zipfile(path) else tarfile.open(path) as archive:
            yield archive
    except UserError:
        raise
    except DAMAGE as error:
        reason, *_ = str(error).splitlines() or [type(error).__name__]
        raise UserError(f"the file is damaged or not an archive: {reason}") from error
    except OSError as error:  # the disk is full, or gzip, bzip2 or xz found damaged data
        raise UserError(f"the file cannot be unpacked: {error}") from error


def _safe_entries(archive: Archive, path: Path) -> Iterator[Entry]:
    """Yield the entries; UserError at the first that must not be unpacked."""
    limit = min(MAX_BYTES, MAX_RATIO * path.stat().st_size)
    taken: dict[str, bool] = {}  # earlier paths, as a disk that ignores case sees them, and whether each is a folder
    total = 0
    entries = _zip_entries(archive) if isinstance(archive, zipfile.ZipFile) else _tar_entries(archive)
    for count, entry in enumerate(entries, start=1):
        total += entry.size
        problem = entry.problem or _problem_with_name(entry.name) or _collision(entry, taken)
        if problem:
            raise UserError(f"the archive is refused: {printable(entry.name[:100])!r} {problem}")
        if count > MAX_ENTRIES:
            raise UserError(f"the archive is refused: it has more than {MAX_ENTRIES} entries")
        if total > limit:
            raise UserError(
                f"the archive is refused: it would unpack to more than {limit} bytes "
                f"(the limit is {MAX_RATIO} times its size, but at most {MAX_BYTES})"
            )
        yield entry


def _zip_entries(archive: zipfile.ZipFile) -> Iterable[Entry]:
    """Describe the entries of a zip archive."""
    for info in archive.infolist():
        kind = stat.S_IFMT(info.external_attr >> 16)
        problem = "is encrypted" if info.flag_bits & 1 else ""
        if kind not in (0, stat.S_IFREG, stat.S_IFDIR):
            problem = "is a link or a device"
        yield Entry(info.orig_filename, info.file_size, info.is_dir(), problem, info)


def _tar_entries(archive: tarfile.TarFile) -> Iterable[Entry]:
    """Describe the entries of a tar archive."""
    for info in archive:
        if info.isdir() and not _parts(info.name):
            continue  # the entry "./" is the folder that was packed
        problem = "" if info.isreg() or info.isdir() else "is a link or a device"
        yield Entry(info.name, info.size, info.isdir(), problem, info)


def _parts(name: str) -> tuple[str, ...]:
    """The parts of an entry's path, without "."."""
    return PurePosixPath(name).parts


def _problem_with_name(name: str) -> str:
    """Why a file with this name must not be written; "" for a safe name."""
    if name.startswith(("/", "\\")) or name[1:2] == ":":
        return "has an absolute path"
    if ".." in _parts(name.replace("\\", "/")):
        return "points outside the archive"
    if "\\" in name or not name.isprintable() or not _parts(name):
        return "has an ambiguous or unprintable name"
    return ""


def _collision(entry: Entry, taken: dict[str, bool]) -> str:
    """Why an entry cannot exist beside the earlier ones; "" if it can, and then its path is added to `taken`."""
    parts = [unicodedata.normalize("NFC", part).casefold() for part in _parts(entry.name)]
    for depth in range(1, len(parts)):
        if not taken.setdefault("/".join(parts[:depth]), True):
            return "is inside a file"
    path = "/".join(parts)
    if path in taken and not (entry.is_folder and taken[path]):
        return "appears twice (names that differ only in case collide)"
    taken[path] = entry.is_folder
    return ""


def _read(archive: Archive, entry: Entry) -> IO[bytes]:
    """Open a file in an archive for reading."""
    if isinstance(archive, zipfile.ZipFile):
        assert isinstance(entry.member, zipfile.ZipInfo)
        return archive.open(entry.member)
    assert isinstance(entry.member, tarfile.TarInfo)
    source = archive.extractfile(entry.member)
    assert source is not None, entry.name
    return source
