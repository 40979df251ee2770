"""What another program has put into metrics.csv is never deleted."""

from __future__ import annotations

from pathlib import Path

import pytest

from training.metrics_file import append_row, drop_rows_after

ROWS = [{"step": step, "loss": step / 8} for step in (50, 100, 150)]
OURS = "step,loss\n50,6.25\n100,12.5\n150,18.75\n"


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir() if path.is_file()}


def test_rows_are_appended_below_one_header_and_those_after_a_step_are_dropped(tmp_path: Path) -> None:
    path = tmp_path / "metrics.csv"
    assert drop_rows_after(path, 5) is None
    assert [append_row(path, row) for row in ROWS] == [None] * 3
    assert path.read_text() == OURS
    assert drop_rows_after(path, 100) is None
    assert path.read_text() == OURS.replace("150,18.75\n", "")
    assert drop_rows_after(path, 10) is None
    assert contents(tmp_path) == {}


@pytest.mark.parametrize("ends", ["\n", "\r\n", "\r"])
@pytest.mark.parametrize("mark", ["", "\ufeff"])
def test_other_line_ends_and_a_byte_order_mark_are_understood(tmp_path: Path, ends: str, mark: str) -> None:
    path = tmp_path / "metrics.csv"
    path.write_text(mark + OURS.rstrip("\n").replace("\n", ends), newline="", encoding="utf-8")
    assert drop_rows_after(path, 100) is None
    assert append_row(path, ROWS[2]) is None
    assert path.read_text() == OURS


def test_a_row_that_a_kill_cut_short_is_dropped(tmp_path: Path) -> None:
    path = tmp_path / "metrics.csv"
    for rest in ("1", "150", "150,"):
        path.write_text(OURS.replace("150,18.75\n", rest))
        drop_rows_after(path, 100)
        assert contents(tmp_path) == {"metrics.csv": OURS.replace("150,18.75\n", "").encode()}


SAVED_ELSEWHERE = {
    "semicolons": OURS.replace(",", ";").encode(),
    "decimal commas": OURS.replace(",", ";").replace(".", ",").encode(),
    "tabs": OURS.replace(",", "\t").encode(),
    "quotes": b'"step","loss"\n"50","6.25"\n"100","12.5"\n',
    "steps as 50.0": b"step,loss\n50.0,6.25\n100.0,12.5\n",
    "an index": b",step,loss\n0,50,6.25\n1,100,12.5\n",
    "UTF-16": OURS.encode("utf-16"),
    "zeros after a power cut": b"step,loss\n50,6.25\n" + bytes(20),
    "no text": b"\xff\xfe\x00\xd8",
}


@pytest.mark.parametrize("kind", SAVED_ELSEWHERE)
def test_a_file_that_another_program_has_saved_is_kept_whole(tmp_path: Path, kind: str) -> None:
    path = tmp_path / "metrics.csv"
    for number in (1, 2):
        path.write_bytes(SAVED_ELSEWHERE[kind])
        assert drop_rows_after(path, 100) == tmp_path / f"metrics_kept_{number}.csv"
    assert append_row(path, ROWS[2]) is None
    assert contents(tmp_path)["metrics_kept_1.csv"] == SAVED_ELSEWHERE[kind]
    assert path.read_text().endswith("150,18.75\n")


def test_a_file_that_was_saved_elsewhere_while_the_run_goes_on_is_kept_too(tmp_path: Path) -> None:
    path = tmp_path / "metrics.csv"
    path.write_bytes(SAVED_ELSEWHERE["semicolons"])
    assert append_row(path, ROWS[2]) == tmp_path / "metrics_kept_1.csv"
    assert append_row(path, {"step": 200, "loss": 1.0, "new": 2.0}) == tmp_path / "metrics_kept_2.csv"
    assert path.read_text() == "step,loss,new\n200,1.0,2.0\n"


def test_a_note_is_kept_and_the_rows_go_on(tmp_path: Path) -> None:
    path = tmp_path / "metrics.csv"
    path.write_text(OURS + "from here on with more light\n")
    assert drop_rows_after(path, 100) == tmp_path / "metrics_kept_1.csv"
    assert (tmp_path / "metrics_kept_1.csv").read_text().endswith("more light\n")
    assert path.read_text() == OURS.replace("150,18.75\n", "")


def test_a_folder_of_that_name_is_moved_out_of_the_way(tmp_path: Path) -> None:
    (tmp_path / "metrics.csv").mkdir()
    assert drop_rows_after(tmp_path / "metrics.csv", 5) == tmp_path / "metrics_kept_1.csv"
