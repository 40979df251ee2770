"""Check a data set before training: list its images, those that are broken or duplicated, and how many show one face.

python check_data.py FOLDER           print a table, and write a contact sheet to data_check.png
python check_data.py FOLDER --json    print the same as JSON
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import sys
from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import startup  # noqa: F401

import numpy as np
from PIL import Image, ImageDraw, PngImagePlugin
from tqdm import tqdm

from console import UserError, command, count, printable, some_path
from dataset import ImageFolder, class_folders, scan_folder, subfolders
from images.colours import to_rgb
from images.files import decode, opened_image
from photos.faces import find_faces
from photos.files import PassedOver, find_files, is_circle
from utils import atomic_write, file_to_write, read_image

THUMBNAIL = 16  # Images are compared as thumbnails with this side, px.
# Two thumbnails that correlate by more than this show the same picture: in 1689 aligned faces, no two different ones
# exceed 0.956, and all re-encoded ones exceed 0.98.
NEAR = 0.97
FACES_PER_CLASS = 300  # Faces are detected in at most this many images of a class, because detection is slow.
CELL = 96  # Each picture on the contact sheet has a square cell with this side, px.
SHEET_COLUMNS = 12  # The contact sheet has this many pictures in a row.
ROWS_PER_CLASS = 2  # Each class has this many rows of pictures.
SHEET_MARK = ("Software", "check_data.py")  # A text in the PNG file, by which the next check knows its own sheet.
TITLE_HEIGHT = 20  # The name of the class stands above them in a row of this height, px.


@dataclass
class ClassCheck:
    """What one class folder contains."""

    split: str  # "train" or "test"; "" if the data set has no splits.
    domain: str  # The folder's name; "a" or "b" for trainA and trainB.
    folder: ImageFolder
    sizes: Counter[str] = field(default_factory=Counter)  # The number of images of each size, such as "256x256".
    formats: Counter[str] = field(default_factory=Counter)  # The number of images of each format, such as "PNG".
    digests: list[str] = field(default_factory=list)  # Each file's SHA-256.
    thumbnails: list[np.ndarray] = field(default_factory=list)  # Each file's `thumbnail`.
    faces: Counter[int] = field(default_factory=Counter)  # The number of images with no face, one face, and so on.

    @property
    def name(self) -> str:
        """The split, if any, and the domain: "train/asian"."""
        return "/".join(filter(None, (self.split, self.domain)))


def check_classes(folder: Path) -> list[ClassCheck]:
    """Inspect every image of a data set; UserError if the folder does not exist or holds no images."""
    classes = [inspect(ClassCheck(split, domain, scan_folder(path))) for split, domain, path in find_classes(folder)]
    if not any(item.folder.files for item in classes):
        reasons = dict.fromkeys(filter(None, (item.folder.what_is_missing for item in classes)))
        raise UserError("\n".join([f"no usable images in {printable(folder)}", *reasons]))
    return classes


def find_classes(folder: Path) -> list[tuple[str, str, Path]]:
    """The class folders of a data set as (split, domain, path): those in train/ and test/, trainA, testB and so on.

    If there are none, each subfolder is a class; if there are no subfolders, the folder itself is one.
    """
    if not folder.is_dir():
        raise UserError(f"{printable(folder)} is not a folder")
    found = [(split, domain, path) for (split, domain), path in class_folders(folder).items()]
    found = found or [("", path.name, path) for path in subfolders(folder)]
    return [item for item in found if not is_circle(item[2])] or [("", folder.name, folder)]


def inspect(item: ClassCheck) -> ClassCheck:
    """Read the images of a class and fill in their properties; returns the same object."""
    files = item.folder.files
    with_detection = set(np.linspace(0, len(files) - 1, min(len(files), FACES_PER_CLASS)).astype(int))
    for index, file in enumerate(tqdm(files, desc=item.name, unit=" images", leave=False, disable=None)):
        with opened_image(file) as opened:
            image = to_rgb(decode(opened))
            item.formats[opened.format or "unknown"] += 1
        item.sizes[f"{image.width}x{image.height}"] += 1
        item.digests.append(hashlib.sha256(file.read_bytes()).hexdigest())
        item.thumbnails.append(thumbnail(image))
        if index in with_detection:
            item.faces[len(find_faces(np.asarray(image), num_passes=2))] += 1
    return item


def thumbnail(image: Image.Image) -> np.ndarray:
    """A tiny version of an RGB image as a vector, (3 * THUMBNAIL**2,) float32 of unit length.

    The dot product of two is near 1 if the images differ only in size, compression, brightness and contrast.
    """
    small = np.asarray(image.resize((THUMBNAIL, THUMBNAIL), Image.Resampling.BOX), np.float32)
    centred = (small - small.mean(axis=(0, 1))).ravel()
    unit: np.ndarray = centred / max(float(np.linalg.norm(centred)), 1e-6)
    return unit


def same_pictures(classes: Sequence[ClassCheck]) -> Iterator[tuple[str, int, int]]:
    """Find pairs of images that show the same picture: yields ("exact" or "near", i, j), with i < j.

    The images are numbered through all classes. "exact" are identical files; "near" are files that look alike.
    """
    digests = [digest for item in classes for digest in item.digests]
    thumbnails = np.stack([vector for item in classes for vector in item.thumbnails])
    groups = defaultdict(list)
    for index, digest in enumerate(digests):
        groups[digest].append(index)
    for group in groups.values():
        yield from (("exact", group[0], other) for other in group[1:])
    firsts = sorted(group[0] for group in groups.values())  # These are all images without exact copies.
    for start in range(0, len(firsts), 1024):  # In blocks, because the correlations of 10,000 images take 400 MB.
        block = firsts[start : start + 1024]
        near = thumbnails[block] @ thumbnails[firsts].T > NEAR
        for row, column in np.argwhere(near):
            if start + row < column:
                yield "near", block[row], firsts[column]


def relation(one: ClassCheck, other: ClassCheck) -> str:
    """Where the two copies of a picture are: in one class, in both classes, in train and test."""
    places = []
    if one.domain != other.domain:
        places.append("in both classes")
    if one.split != other.split:
        places.append("in train and test")
    return " and ".join(places) or "in one class"


def as_report(folder: Path, classes: Sequence[ClassCheck]) -> dict[str, Any]:
    """Everything that the check has found, as JSON values."""
    owners = [item for item in classes for _ in item.folder.files]
    files = [file for item in classes for file in item.folder.files]
    pairs: list[dict[str, Any]] = []
    for kind, i, j in same_pictures(classes):
        names = [str(files[i].relative_to(folder)), str(files[j].relative_to(folder))]
        pairs.append({"kind": kind, "where": relation(owners[i], owners[j]), "files": names})
    return {
        "folder": str(folder),
        "classes": {item.name: describe(item) for item in classes},
        "outside_the_classes": as_json(outside(folder, classes)),
        "same_pictures": pairs,
    }


def outside(folder: Path, classes: Sequence[ClassCheck]) -> PassedOver:
    """What lies in a data set, but in none of its classes."""
    tops = {item.folder.path for item in classes}
    if folder in tops:
        return PassedOver()
    files, others = find_files(folder)
    found = PassedOver(links=[(link, reason) for link, reason in others.links if not tops & set(link.parents)])
    for file in files:
        if not tops & set(file.parents):
            found.add_file(file)
    return found


def as_json(passed_over: PassedOver) -> dict[str, Any]:
    """The numbers of files by kind, and the links that were not followed."""
    links = {str(link): reason for link, reason in passed_over.links}
    return {"files": dict(passed_over.kinds.most_common()), "links": links}


def from_json(values: dict[str, Any]) -> PassedOver:
    """The opposite of `as_json`."""
    return PassedOver(Counter(values["files"]), [(Path(link), reason) for link, reason in values["links"].items()])


def describe(item: ClassCheck) -> dict[str, Any]:
    """What one class contains, as JSON values."""
    return {
        "images": len(item.folder.files),
        "sizes": dict(item.sizes.most_common()),
        "formats": dict(item.formats.most_common()),
        "left_out": {str(file.relative_to(item.folder.path)): why for file, why in item.folder.left_out},
        "passed_over": as_json(item.folder.passed_over),
        "num_checked_for_faces": item.faces.total(),
        "one_face": item.faces[1],
        "no_face": item.faces[0],
    }


def as_text(report: dict[str, Any], *, show: int = 10) -> str:
    """A report as text: a table with one row for each class, then the first `show` problems of each kind."""
    lines = as_table(report["classes"])
    places = {f"in {name}": item["passed_over"] for name, item in report["classes"].items()}
    places["outside the classes"] = report["outside_the_classes"]
    for place, values in places.items():
        if passed_over := from_json(values):
            lines.append(f"{printable(place)}: {passed_over}")
    for title, entries in problems(report).items():
        lines += ["", f"{title}: {len(entries)}", *(f"  {printable(entry)}" for entry in entries[:show])]
        if len(entries) > show:
            lines.append(f"  ... and {len(entries) - show} more (--json lists all)")
    return "\n".join(lines)


def as_table(classes: dict[str, dict[str, Any]]) -> list[str]:
    """The lines of a table with one row for each class."""
    rows = [("class", "images", "left out", "size", "formats", "one face")]
    for name, found in classes.items():
        size = next(iter(found["sizes"]), "-")
        if len(found["sizes"]) > 1:
            size += f" and {len(found['sizes']) - 1} more"
        num_checked = found["num_checked_for_faces"]
        one_face = f"{100 * found['one_face'] / num_checked:.0f}% of {num_checked}" if num_checked else "-"
        formats = " ".join(found["formats"])
        rows.append((printable(name), str(found["images"]), str(len(found["left_out"])), size, formats, one_face))
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows]


def problems(report: dict[str, Any]) -> dict[str, list[str]]:
    """What is wrong with a data set: lines of text, by the kind of problem."""
    found = defaultdict(list)
    for name, item in report["classes"].items():
        for file, reason in item["left_out"].items():
            found["left out"].append(f"{name}/{file}: {reason}")
    for pair in report["same_pictures"]:
        kind = "the same file" if pair["kind"] == "exact" else "nearly the same picture"
        found[f"{kind} {pair['where']}"].append(" = ".join(pair["files"]))
    return found


def contact_sheet(classes: Sequence[ClassCheck]) -> Image.Image:
    """One RGB image with evenly spread pictures of each class below its name."""
    class_height = TITLE_HEIGHT + ROWS_PER_CLASS * CELL
    sheet = Image.new("RGB", (SHEET_COLUMNS * CELL, len(classes) * class_height), "white")
    for number, item in enumerate(classes):
        files = item.folder.files
        top = number * class_height
        title = f"{printable(item.name)}: {count(len(files), 'image')}"
        ImageDraw.Draw(sheet).text((4, top + 4), title, fill="black")
        indices = np.linspace(0, len(files) - 1, min(ROWS_PER_CLASS * SHEET_COLUMNS, len(files))).astype(int)
        for place, index in enumerate(indices):
            row, column = divmod(place, SHEET_COLUMNS)
            picture = read_image(files[index])
            picture.thumbnail((CELL - 2, CELL - 2))
            sheet.paste(picture, (column * CELL, top + TITLE_HEIGHT + row * CELL))
    return sheet


def check_sheet(sheet: Path, folder: Path) -> None:
    """UserError if the sheet cannot be written, or would change the data set or replace a file of the user's."""
    if not sheet.name or Path(os.path.realpath(folder)) in Path(os.path.realpath(sheet)).parents:
        raise UserError("--sheet must name a file outside the data set, so that the data set stays unchanged")
    file = file_to_write(sheet)
    if file.exists() and "\0".join(SHEET_MARK).encode() not in file.read_bytes():
        raise UserError(f"{printable(sheet)} exists and is not a sheet of this program: name another file with --sheet")


@command
def main(argv: Sequence[str] | None = None) -> int:
    """Check the data set that the command line names; return 0 if it holds images."""
    parser = argparse.ArgumentParser(description="Check a data set without changing it.")
    parser.add_argument("folder", type=some_path, help="contains a folder for each class, as train/CLASS or trainA")
    parser.add_argument("--json", action="store_true", help="print JSON instead of a table")
    parser.add_argument("--sheet", type=Path, default=Path("data_check.png"), help="the contact sheet (%(default)s)")
    args = parser.parse_args(argv)
    check_sheet(args.sheet, args.folder)
    classes = check_classes(args.folder)
    report = as_report(args.folder, classes)
    print(json.dumps(report, indent=2) if args.json else as_text(report))
    with atomic_write(args.sheet) as temporary:
        mark = PngImagePlugin.PngInfo()
        mark.add_text(*SHEET_MARK)
        contact_sheet(classes).save(temporary, "PNG", pnginfo=mark)
    print(f"\ncontact sheet: {printable(args.sheet)}", file=sys.stderr if args.json else sys.stdout)
    return 0


if __name__ == "__main__":
    sys.exit(main())
