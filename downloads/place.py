"""Put finished files in place: stage them first, and then rename all of them or none."""

from __future__ import annotations

import errno
import os
import shutil
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path

from utils import UserError, printable

MAX_DEPTH = 32  # Folders may be this deep inside each other.


@contextmanager
def writing_to(path: Path) -> Iterator[None]:
    """Turn an OSError, such as that of a full disk, into a UserError that says what to do."""
    try:
        yield
    except OSError as error:
        raise UserError(
            f"could not write {printable(path)}: {_in_words(error)}\n"
            "make sure that the disk has space and that the permissions allow it, and run the same command again"
        ) from error


@contextmanager
def new_folder(folder: Path) -> Iterator[None]:
    """Create a folder for the block to fill. After an error, it does not exist.

    Raises:
        UserError: the folder exists already or cannot be written, or the disk is full.
    """
    with writing_to(folder):
        folder.mkdir(parents=True)
        try:
            yield
        except BaseException:
            shutil.rmtree(folder, ignore_errors=True)
            raise


def copy_folder(source: Path, folder: Path) -> None:
    """Copy a folder to a new one. What links lead to is copied, too. After an error, the new folder does not exist.

    Raises:
        UserError: something in it is neither a file nor a folder, a link leads back to a folder above itself, it is too
            deep, or the disk is full.
    """
    with new_folder(folder):
        _copy_into(folder, source, [_identity(folder)])


def _copy_into(folder: Path, source: Path, above: list[tuple[int, int]]) -> None:
    """Copy what is in a folder into another; `above` identifies the folders that must not come again below it."""
    if len(above) > MAX_DEPTH:
        raise UserError(f"{printable(source)} is inside more than {MAX_DEPTH} folders; move it up, or delete it")
    if _identity(source) in above:
        raise UserError(
            f"{printable(source)} leads back to a folder above it, or to the copy itself\n"
            "delete that link, or name the folder with the images itself"
        )
    for item in sorted(source.iterdir()):
        if os.path.isdir(item):
            (folder / item.name).mkdir()
            _copy_into(folder / item.name, item, [*above, _identity(source)])
        elif os.path.isfile(item):
            shutil.copyfile(item, folder / item.name)
        else:
            what = "a link that leads nowhere" if os.path.islink(item) else "neither a file nor a folder"
            raise UserError(f"{printable(item)} is {what}; delete it or move it away, and run the same command again")


def _identity(folder: Path) -> tuple[int, int]:
    """What two paths of the same folder have in common."""
    status = os.stat(folder)
    return status.st_dev, status.st_ino


def stage(path: Path, staged: Path) -> Path:
    """Rename a file or folder to `staged`, which is on the same disk and has the name of its final place."""
    with writing_to(staged):
        staged.parent.mkdir(parents=True, exist_ok=True)
        os.rename(path, staged)
    return staged


def move_all(moves: Sequence[tuple[Path, Path]]) -> None:
    """Move the first path of each pair to the second, which must not exist or be an empty folder.

    Links in the second path are followed, also to another disk.

    Raises:
        UserError: one of the moves failed, and those before it were undone.
    """
    with ExitStack() as undo:
        for source, target in moves:
            with writing_to(target):
                _move(source, Path(os.path.realpath(target)), undo)
        undo.pop_all()


def _move(source: Path, target: Path, undo: ExitStack) -> None:
    """Move a file or folder, and note how to undo each step."""
    for missing in reversed([folder for folder in target.parents if not folder.exists()]):
        missing.mkdir()
        undo.callback(missing.rmdir)
    if target.is_dir():
        if any(target.iterdir()):
            raise UserError(f"{printable(target)} is not empty; move away or delete what is in it")
        target.rmdir()  # Windows does not rename a folder to an existing one
        undo.callback(target.mkdir)
    try:
        os.rename(source, target)
        undo.callback(os.rename, target, source)
    except OSError as error:
        if error.errno != errno.EXDEV:
            raise
        _copy_and_rename(source, target, undo)


def _copy_and_rename(source: Path, target: Path, undo: ExitStack) -> None:
    """Copy a file or folder to the disk of `target` first, and then give it its name."""
    copy = target.with_name(f".{target.name[-100:]}.new")
    _remove(copy)  # a killed run may have left it
    undo.callback(_remove, copy)
    if source.is_dir():
        copy_folder(source, copy)
    else:
        shutil.copyfile(source, copy)
    os.rename(copy, target)
    undo.callback(_remove, target)


def _remove(path: Path) -> None:
    """Delete a file or folder if it exists."""
    if path.is_dir():
        shutil.rmtree(path, ignore_errors=True)
    else:
        path.unlink(missing_ok=True)


def _in_words(error: OSError) -> str:
    """The reason, with the file if the system names one."""
    file = error.filename2 or error.filename
    return f"{error.strerror or error} ({printable(file)})" if isinstance(file, str) else f"{error.strerror or error}"
