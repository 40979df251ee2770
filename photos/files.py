"""Find the files below a folder, and keep account of what is passed over."""

from __future__ import annotations

import os
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path

from console import count, printable

SHOWN_KINDS = 8  # A report names this many kinds of files, the most frequent ones,
SHOWN_LINKS = 2  # and this many links.


@dataclass
class PassedOver:
    """What a program did not take from the folders that it was given. As text, it is a report of a few lines.

    Attributes:
        kinds: how many files there were of each kind: a suffix such as ".txt", or words such as "hidden".
        links: links to folders that were not followed, each with the reason.
    """

    kinds: Counter[str] = field(default_factory=Counter)
    links: list[tuple[Path, str]] = field(default_factory=list)

    def add_file(self, file: Path) -> None:
        """Count a file under its suffix."""
        self.kinds[printable(file.suffix.lower()[:20]) or "without a suffix"] += 1

    def add(self, other: PassedOver) -> None:
        """Add what was passed over elsewhere."""
        self.kinds += other.kinds
        self.links += other.links

    def __bool__(self) -> bool:
        return bool(self.kinds or self.links)

    def __str__(self) -> str:
        lines = []
        if self.kinds:
            named = [f"{number} {kind}" for kind, number in self.kinds.most_common(SHOWN_KINDS)]
            others = self.kinds.most_common()[SHOWN_KINDS:]
            if others:
                named.append(f"{sum(number for _, number in others)} of {count(len(others), 'other kind')}")
            lines = [f"passed over {count(self.kinds.total(), 'other file')}: {', '.join(named)}"]
        lines += [f"did not follow {printable(link)}: {reason}" for link, reason in self.links[:SHOWN_LINKS]]
        if len(self.links) > SHOWN_LINKS:
            lines.append(f"did not follow {count(len(self.links) - SHOWN_LINKS, 'more link')} to folders read already")
        return "\n".join(lines)


def find_files(top: Path) -> tuple[list[Path], PassedOver]:
    """The visible files below a folder, and what was passed over: hidden entries, and links to folders read already.

    Every folder is read once. Links to folders are followed after all folders that lie below `top` themselves, so that
    a link never changes the path of a file that can be reached without it.

    Returns:
        The files, sorted within each subfolder, none if `top` is not a folder; and the rest.

    Raises:
        OSError: a folder cannot be read.
    """
    files: list[Path] = []
    passed_over = PassedOver()
    read: dict[str, Path] = {}  # The real path of each folder that has been read, and the path that led to it.
    waiting = [top] if top.is_dir() else []
    while waiting:
        start = waiting.pop(0)
        if reason := _why_not_followed(start, read):
            passed_over.links.append((start, reason))
            continue
        for folder, subfolders, names in os.walk(start, onerror=_fail):
            real = os.path.realpath(folder)
            if real in read:  # A followed link leads to a folder above one that has been read.
                subfolders.clear()
                continue
            read[real] = Path(folder)
            visible = sorted(name for name in subfolders if not _is_hidden(name))
            files += (Path(folder, name) for name in sorted(names) if not _is_hidden(name))
            if hidden := sum(map(_is_hidden, [*subfolders, *names])):
                passed_over.kinds["hidden"] += hidden
            subfolders[:] = [name for name in visible if not os.path.islink(os.path.join(folder, name))]
            waiting += (Path(folder, name) for name in visible if name not in subfolders)
    return files, passed_over


def _why_not_followed(link: Path, read: dict[str, Path]) -> str | None:
    """Why a link to a folder is not followed; None if it is."""
    real = os.path.realpath(link)
    if read and is_circle(link):
        return f"a circle, it leads back to {printable(read.get(real, real))}"
    if real in read:
        return f"it leads to {printable(read[real])}, which is read already"
    return None


def is_circle(folder: Path) -> bool:
    """Whether a folder is a link to a folder that contains the link."""
    parent = Path(os.path.realpath(folder.parent))
    return Path(os.path.realpath(folder)) in (parent, *parent.parents)


def _fail(error: OSError) -> None:
    raise error


def _is_hidden(name: str) -> bool:
    """Whether a name is hidden, or that of the folder which macOS adds to archives."""
    return name.startswith(".") or name == "__MACOSX"
