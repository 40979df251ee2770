"""Decide which file becomes which, which files may be replaced, and report what has happened to them."""

from __future__ import annotations

import filecmp
import os
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from PIL import Image

from console import UserError, count, is_out_of_memory, printable, reason_of
from images.files import IMAGE_SUFFIXES, may_be_image
from photos.files import PassedOver, find_files
from photos.label import is_labelled
from photos.photo import Photo
from photos.video import VIDEO_SUFFIXES, result_name

Job = tuple[Path, Path]  # A file to translate, and the file to write.


# --- What becomes what


def find_jobs(sources: Sequence[Path], out: Path) -> tuple[list[Job], PassedOver]:
    """What to translate and what to write; the results of a folder keep its subfolders.

    Args:
        sources: files, and folders with files.
        out: the folder to write to; for a single file as the source also a file, if the name ends as that of an image
            or a video.

    Returns:
        The jobs, and what was passed over in the folders.

    Raises:
        UserError: a source does not exist, two results would have the same name, a result would replace a source, or
            `out` cannot be what it is asked to be.
    """
    passed_over = PassedOver()
    jobs: list[Job] = []
    for source in sources:
        if not os.path.lexists(source):
            raise UserError(f"{printable(source)} does not exist")
        if source.is_dir():
            jobs += [
                (file, out / result_name(file.relative_to(source))) for file in _files_in(source, out, passed_over)
            ]
        else:
            jobs.append((source, out / result_name(Path(source.name))))
    if len(sources) == 1 and not sources[0].is_dir() and _is_unknown_format(out):
        raise UserError(
            f"--out {printable(out)}: photographs and videos are not written as {out.suffix}\n"
            "choose another name, such as result.jpg or result.mp4, or make a folder of this name first"
        )
    if _names_a_file(out):
        jobs = [(_only_source(sources, out), out)]
    elif os.path.lexists(out) and not out.is_dir():
        raise UserError(f"--out {printable(out)} is not a folder, and its name does not end like that of a picture")
    return _checked(jobs), passed_over


def _files_in(source: Path, out: Path, passed_over: PassedOver) -> list[Path]:
    """The images and videos in a folder, without the results of earlier runs in the folder `out`."""
    found, others = find_files(source)
    passed_over.add(others)
    results = Path(os.path.realpath(out))
    out_is_inside = Path(os.path.realpath(source)) in results.parents
    files: list[Path] = []
    for file in found:
        if out_is_inside and results in Path(os.path.realpath(file)).parents:
            passed_over.kinds[f"in {printable(out)}, where the results go"] += 1
        elif is_video(file) or may_be_image(file):
            files.append(file)
        else:
            passed_over.add_file(file)
    return files


def _names_a_file(out: Path) -> bool:
    """Whether a name for the results is that of a file rather than a folder."""
    return out.suffix.lower() in IMAGE_SUFFIXES + VIDEO_SUFFIXES and not out.is_dir()


def _is_unknown_format(out: Path) -> bool:
    """Whether a name for the results, which no folder has, is that of a picture in a format that we do not write."""
    Image.init()
    return out.suffix.lower() in Image.registered_extensions() and not out.is_dir() and not _names_a_file(out)


def _only_source(sources: Sequence[Path], out: Path) -> Path:
    """The source of a result that has a name of its own."""
    if len(sources) > 1 or sources[0].is_dir():
        raise UserError(f"--out {printable(out)} names one file, which takes one photograph or video: name a folder")
    if is_video(sources[0]) != is_video(out):
        raise UserError(f"{printable(sources[0])} cannot become {printable(out)}: one is a video, and the other is not")
    return sources[0]


def _checked(jobs: Sequence[Job]) -> list[Job]:
    """Jobs that harm neither a source nor each other, each of them once."""
    sources = {_identity(source): source for source, _ in jobs}
    job_of: dict[str, Job] = {}  # The first job that writes each file: links, and case, give one file several names.
    for source, target in jobs:
        if overwritten := sources.get(_identity(target)):
            raise UserError(f"{printable(overwritten)} would be overwritten: choose another folder with --out")
        real = os.path.realpath(target)
        other, first_target = job_of.setdefault(real.casefold() if _ignores_case(real) else real, (source, target))
        if other != source and _identity(other) != _identity(source):
            raise UserError(
                f"{printable(other)} and {printable(source)} would both become {printable(first_target)}\n"
                "translate them in separate runs, each with its own --out folder"
            )
    return list(job_of.values())


def _identity(path: Path) -> object:
    """Equal for two paths of one file, also if they differ in case where that makes no difference."""
    real = os.path.realpath(path)
    try:
        status = os.stat(real)
    except OSError:  # There is no such file, and so no other name for it.
        return real
    return status.st_dev, status.st_ino


def _ignores_case(path: str) -> bool:
    """Whether the disk that a path will be on takes names that differ only in case for one, as macOS and Windows do.

    The names of the folders above tell, down to the nearest that exists and has a letter in its name.
    """
    for folder in Path(path).parents:
        other = folder.parent / folder.name.swapcase()
        if other.name != folder.name and folder.exists():
            return other.exists() and os.path.samefile(folder, other)
    return False


def is_video(path: Path) -> bool:
    """Whether a file has the name of a video."""
    return path.suffix.lower() in VIDEO_SUFFIXES


# --- What may be replaced


def check_replaceable(target: Path, result: Path | None = None) -> None:
    """UserError unless `target` is new, is an earlier result that carries the label, or equals the file `result`."""
    if not os.path.lexists(target) or (is_labelled(target) and not target.is_symlink()):
        return
    if result is None or not target.is_file() or not filecmp.cmp(target, result, shallow=False):
        raise UserError(f"{printable(target)} exists and does not carry this program's label; --overwrite replaces it")


# --- What has happened


@dataclass
class Summary:
    """What happened to the files that the command line names."""

    num_translated: int = 0
    num_faces: int = 0
    num_unchanged: int = 0
    skipped: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    passed_over: PassedOver = field(default_factory=PassedOver)

    @property
    def num_written(self) -> int:
        """How many results there are."""
        return self.num_translated + self.num_unchanged

    def add(self, photo: Photo) -> None:
        """Count a file that has been written."""
        if photo.regions:
            self.num_translated += 1
            self.num_faces += photo.num_faces
        else:
            self.num_unchanged += 1

    def skip(self, source: Path, error: Exception) -> None:
        """Record why a file was skipped."""
        reason = reason_of(error)
        if is_out_of_memory(error):
            reason = "the memory is full: lower --batch-size, or translate a smaller copy"
        self.skipped.append(f"  {printable(source)}: {reason}")

    def note(self, source: Path, notes: Sequence[str]) -> None:
        """Record what the result of a file lacks, or how it differs."""
        self.notes += [f"  {printable(source)}: {note}" for note in notes]

    def __str__(self) -> str:
        text = f"translated {count(self.num_translated, 'file')}"
        if self.num_faces:
            text += f", {count(self.num_faces, 'face')}"
        if self.num_unchanged:
            text += f"; left {count(self.num_unchanged, 'file')} without a face unchanged"
        if self.skipped:
            text += "\n".join([f"\nskipped {count(len(self.skipped), 'file')}:", *self.skipped])
        if self.notes:
            text += "\n".join(["\nnotes:", *self.notes])
        if self.passed_over:
            text += f"\n{self.passed_over}"
        return text
