"""metrics.csv: one row of scalars a line. What another program has put into it is never deleted, but kept aside."""

from __future__ import annotations

import csv
import io
import os
import re
from collections.abc import Mapping
from itertools import count
from pathlib import Path

from utils import atomic_write


def append_row(path: Path, row: Mapping[str, float]) -> Path | None:
    """Append a row, below a header if the file is new.

    Args:
        path: the file.
        row: scalars by column; the first column is "step".

    Returns:
        Where the file is now, if another program or version has changed its columns; the row starts a new one then.
    """
    header = _as_line(row.keys())
    first, has_end = "", True
    if path.is_file():
        with path.open("rb") as file:
            first = file.readline().decode("utf-8-sig", "replace")
            file.seek(max(0, os.path.getsize(path) - 1))
            has_end = file.read() in (b"", b"\n", b"\r")
    is_other = first.rstrip("\r\n") != header.rstrip("\n") and os.path.lexists(path)
    kept = set_aside(path) if is_other else None
    start = header if kept or not path.exists() else "" if has_end else "\n"
    with path.open("a", encoding="utf-8", newline="") as file:
        file.write(start + _as_line(row.values()))
    return kept


def drop_rows_after(path: Path, step: int) -> Path | None:
    """Delete the rows after `step`, and one that was cut short.

    Returns:
        Where the whole file is kept, if it holds anything that is not a row of ours.
    """
    if not os.path.lexists(path):
        return None
    header, rows, is_ours = _read(path)
    aside = None if is_ours else set_aside(path)
    kept = [row for row in rows if int(row.split(",")[0]) <= step]
    if kept:
        with atomic_write(path) as file:
            file.write_text("\n".join([header, *kept, ""]), encoding="utf-8", newline="")
    elif is_ours:
        path.unlink()
    return aside


def set_aside(path: Path) -> Path:
    """Rename a file to the first free name like metrics_kept_1.csv, and return that."""
    names = (path.with_name(f"{path.stem}_kept_{number}{path.suffix}") for number in count(1))
    free = next(name for name in names if not os.path.lexists(name))
    path.rename(free)
    return free


def _read(path: Path) -> tuple[str, list[str], bool]:
    """The header and the rows of a file, as lines without their ends, and whether it holds nothing else."""
    if not path.is_file():
        return "", [], False
    try:
        text = path.read_bytes().decode("utf-8-sig")
    except UnicodeDecodeError:
        return "", [], False
    header, *lines = re.split("\r\n|\r|\n", text)
    columns = header.count(",")
    if not re.fullmatch('step(,[^",;]+)*', header):
        return "", [], not text
    rows = [line for line in lines if re.match("[0-9]{1,15},", line) and line.count(",") == columns]
    others = [line for line in lines if line and line not in set(rows)]
    is_cut_short = len(others) == 1 and others[0] == lines[-1] and re.match("[0-9]+(,|$)", others[0])
    return header, rows, not others or bool(is_cut_short)


def _as_line(cells: object) -> str:
    line = io.StringIO()
    csv.writer(line, lineterminator="\n").writerow(cells)  # type: ignore[arg-type]
    return line.getvalue()
