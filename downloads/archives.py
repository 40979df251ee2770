"""Unpack untrusted zip and tar archives: every entry is checked before it is written, and all are unpacked or none."""

from __future__ import annotations

import errno
import re
import shutil
import unicodedata
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path, PurePosixPath
from typing import TypeVar

from downloads.place import MAX_DEPTH, copy_folder, new_folder
from downloads.readers import MAX_ENTRIES, Entry, kind_of, tar_entries, zip_entries
from utils import UserError, printable

MAX_BYTES = 8 * 10**9  # An archive may unpack to this many bytes,
MAX_RATIO = 200  # and to this many times its own size.
MAX_PATH = 1000  # The path of an entry may have this many bytes in UTF-8,
MAX_NAME = 255  # and each name in it this many.
# Windows opens a device instead of a file with one of these names, whatever its suffix.
DEVICE = re.compile(r"(con|prn|aux|nul|conin\$|conout\$|(com|lpt)[0-9¹²³]) *(\..*)?", re.IGNORECASE)
T = TypeVar("T")


def is_archive(path: Path) -> bool:
    """Whether a file is a zip or tar archive to unpack. PyTorch's files are zip archives, too, but do not count.

    Raises:
        UserError: as for `check_archive`.
    """
    kind = kind_of(path)
    return kind == "tar" or (kind == "zip" and not any(entry.name.endswith("/data.pkl") for entry in _entries(path)))


def check_archive(path: Path) -> None:
    """Read all of an archive without writing anything.

    Raises:
        UserError: the file is damaged, is not an archive, or holds something that could do harm: a path that is
            absolute, ambiguous, too long, too deep or contains `..`, or a name that Windows cannot write; a link,
            device, sparse file or encrypted entry; names that collide, even if only on a disk that ignores case; too
            many entries; or far more bytes than the archive itself has. The message says what to do.
    """
    for entry in _safe_entries(path):
        for _ in entry.pieces:
            pass


def unpack(path: Path, folder: Path) -> None:
    """Unpack an archive into a new folder. After an error, the folder does not exist.

    Raises:
        UserError: as for `check_archive`, or the disk is full.
    """
    with new_folder(folder):
        for entry in _safe_entries(path):
            target = folder.joinpath(*_parts(entry.name))
            (target if entry.is_folder else target.parent).mkdir(parents=True, exist_ok=True)
            if not entry.is_folder:
                with open(target, "xb") as copy:
                    for piece in entry.pieces:
                        copy.write(piece)


def copy_or_unpack(source: Path, folder: Path) -> None:
    """Fill a new folder with the content of a folder or of an archive, or with a copy of any other file.

    Raises:
        UserError: as for `unpack` and `copy_folder`.
    """
    if source.is_dir():
        copy_folder(source, folder)
    elif is_archive(source):
        unpack(source, folder)
    else:
        with new_folder(folder):
            shutil.copyfile(source, folder / source.name)


def _entries(path: Path) -> Iterator[Entry]:
    """Yield the entries of an archive of either kind. Whatever is wrong with it becomes a UserError."""
    kind = kind_of(path)
    if not kind:
        raise _damaged("it does not start like a zip or tar file")
    for entry in _explained(zip_entries(path) if kind == "zip" else tar_entries(path), "its list of files"):
        what = repr(printable(entry.name[:100]))
        yield replace(entry, pieces=_explained(entry.pieces, f"{what} in it"))


def _explained(steps: Iterator[T], what: str) -> Iterator[T]:
    """Yield what a reader yields. A decoder may raise any exception on bad data, and a user can read none of them."""
    try:
        yield from steps
    except UserError as error:
        raise _refused(str(error)) from error
    except Exception as error:
        raise _damaged(_in_words(error, what)) from error


def _in_words(error: Exception, what: str) -> str:
    """The meaning of a decoder's exception."""
    if isinstance(error, EOFError):
        return "it is cut short"
    if isinstance(error, UnicodeError):
        return "a name in it is not valid text"
    if isinstance(error, MemoryError):
        return "it needs too much memory to unpack"
    if isinstance(error, NotImplementedError | RuntimeError):
        return f"{what} is written in an unusual way"
    if isinstance(error, OSError) and error.errno not in (None, errno.EINVAL):  # a false offset is an invalid argument
        return f"it cannot be read: {error.strerror}"
    return f"{what} is not as it should be, or cut short"


def _damaged(reason: str) -> UserError:
    return UserError(
        f"the file is damaged or not an archive: {reason}\n"
        "get it again, whole, and as a zip, tar, tar.gz, tar.bz2 or tar.xz file"
    )


def _refused(reason: str) -> UserError:
    return UserError(
        f"the archive is refused: {reason}\nif you trust it, unpack it yourself, and give the folder instead"
    )


def _safe_entries(path: Path) -> Iterator[Entry]:
    """Yield the entries; UserError at the first that must not be unpacked."""
    limit = min(MAX_BYTES, MAX_RATIO * path.stat().st_size)
    taken: dict[str, bool] = {}  # earlier paths, as a disk that ignores case sees them, and whether each is a folder
    total = 0
    for count, entry in enumerate(_entries(path), start=1):
        total += entry.size
        problem = entry.problem or _problem_with_path(entry.name) or _collision(entry, taken)
        if problem:
            raise _refused(f"{printable(entry.name[:100])!r} {problem}")
        if max(count, len(taken)) > MAX_ENTRIES:
            raise _refused(f"it has more than {MAX_ENTRIES} entries and folders")
        if total > limit:
            raise _refused(
                f"it would unpack to more than {limit} bytes "
                f"(the limit is {MAX_RATIO} times its size, but at most {MAX_BYTES})"
            )
        yield entry


def _parts(name: str) -> tuple[str, ...]:
    """The parts of an entry's path, without "."."""
    return PurePosixPath(name).parts


def _problem_with_path(path: str) -> str:
    """Why a file with this path must not be written; "" for a safe path."""
    parts = _parts(path)
    if path.startswith(("/", "\\")) or path[1:2] == ":":
        return "has an absolute path"
    if ".." in _parts(path.replace("\\", "/")):
        return "points outside the archive"
    if not parts:
        return "has an empty name"
    if len(path.encode(errors="replace")) > MAX_PATH or len(parts) > MAX_DEPTH:
        return f"has a path of more than {MAX_PATH} bytes or {MAX_DEPTH} folders"
    return next(filter(None, map(_problem_with_name, parts)), "")


def _problem_with_name(name: str) -> str:
    """Why a file or folder must not have this name; "" for a safe name."""
    # Python does not count unusual spaces as printable, but macOS puts them into the names of screenshots.
    if "\\" in name or not all(char.isprintable() or unicodedata.category(char) == "Zs" for char in name):
        return "has an ambiguous or unprintable name"
    if ":" in name or name.endswith((".", " ")) or DEVICE.fullmatch(name):
        return "has an ambiguous name, which Windows would change or open as a device"
    if len(name.encode()) > MAX_NAME:
        return f"has a name of more than {MAX_NAME} bytes"
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
