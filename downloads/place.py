"""Put finished files in place: stage them beside their final place first, and then rename all of them or none."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

from utils import UserError, printable


def stage(path: Path, staged: Path) -> Path:
    """Rename a file or folder to `staged`, which is on the disk of its final place and has its final name."""
    staged.parent.mkdir(parents=True, exist_ok=True)
    os.rename(path, staged)
    return staged


def move_all(moves: Sequence[tuple[Path, Path]]) -> None:
    """Rename the first path of each pair to the second, which must not exist or be an empty folder.

    Raises:
        UserError: one of the renames failed, and those before it were undone.
    """
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
        raise UserError(f"could not move {printable(target)} into place: {error}") from error
