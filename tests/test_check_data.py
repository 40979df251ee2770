"""The data check reports the images of a data set and its problems, and does not change it."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import ROOT, make_folders, make_image
from PIL import Image

import check_data
from dataset import MAX_ASPECT, unpack_demo_faces


@pytest.fixture
def folder(data_dir: Path) -> Path:
    """Two broken files in train/european; a copy, a near copy and a european test image in train/asian."""
    european, asian = data_dir / "train" / "european", data_dir / "train" / "asian"
    whole = (european / "0000.png").read_bytes()
    (european / "broken.png").write_bytes(whole[: len(whole) // 2])
    (european / "empty.jpg").write_bytes(b"")
    shutil.copy(asian / "0001.png", asian / "copy.png")
    Image.open(asian / "0002.png").resize((80, 80)).save(asian / "near.jpg", quality=60)
    shutil.copy(data_dir / "test" / "european" / "0003.png", asian / "stray.png")
    return data_dir


def report(folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> dict[str, Any]:
    assert check_data.main([str(folder), "--json", "--sheet", str(tmp_path / "sheet.png")]) == 0
    result: dict[str, Any] = json.loads(capsys.readouterr().out)
    return result


def test_images_sizes_formats_and_unusable_files_are_listed(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    classes = report(folder, tmp_path, capsys)["classes"]
    assert list(classes) == ["test/asian", "test/european", "train/asian", "train/european"]
    asian, european = classes["train/asian"], classes["train/european"]
    assert (asian["images"], european["images"]) == (7, 6)
    assert asian["sizes"] == {"40x40": 6, "80x80": 1}
    assert asian["formats"] == {"PNG": 6, "JPEG": 1}
    assert set(european["left_out"]) == {"broken.png", "empty.jpg"}
    assert european["left_out"]["empty.jpg"] == "empty file"
    assert (asian["num_checked_for_faces"], asian["one_face"]) == (7, 0)


def test_copies_and_near_copies_are_found(folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    found = {(pair["kind"], pair["where"], *sorted(pair["files"]))
             for pair in report(folder, tmp_path, capsys)["same_pictures"]}  # fmt: skip
    assert found == {
        ("exact", "in one class", "train/asian/0001.png", "train/asian/copy.png"),
        ("near", "in one class", "train/asian/0002.png", "train/asian/near.jpg"),
        ("exact", "in both classes and in train and test", "test/european/0003.png", "train/asian/stray.png"),
    }


def test_the_table_lists_the_classes_and_their_problems(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert check_data.main([str(folder), "--sheet", str(tmp_path / "sheet.png")]) == 0
    printed = capsys.readouterr().out
    assert "train/asian     7       0         40x40 and 1 more  PNG JPEG  0% of 7" in printed
    assert "left out: 2\n  train/european/broken.png: " in printed
    assert "nearly the same picture in one class: 1\n" in printed


def test_the_check_writes_a_contact_sheet_and_changes_no_image(folder: Path, tmp_path: Path) -> None:
    before = {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    assert check_data.main([str(folder), "--sheet", str(tmp_path / "sheet.png")]) == 0
    assert {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()} == before
    sheet = np.asarray(Image.open(tmp_path / "sheet.png"))
    assert sheet.shape[1] == check_data.SHEET_COLUMNS * check_data.CELL
    assert len(np.unique(sheet.reshape(-1, 3), axis=0)) > 1000


def test_images_with_one_face_are_counted(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    unpack_demo_faces(tmp_path / "demo")
    for path in (tmp_path / "demo" / "train").rglob("*.jpg"):
        if int(path.stem.split("_")[-1]) % 40:
            path.unlink()
    shutil.rmtree(tmp_path / "demo" / "test")
    for item in report(tmp_path / "demo", tmp_path, capsys)["classes"].values():
        assert item["one_face"] >= 0.9 * item["num_checked_for_faces"] > 5


def test_folders_such_as_trainA_and_plain_folders_are_classes_too(tmp_path: Path) -> None:
    made = make_folders(tmp_path / "made", 1, 1)
    for source, target in (("train/european", "trainA"), ("train/asian", "trainB"), ("test/asian", "testB")):
        (made / source).rename(made / target)
    shutil.rmtree(made / "train")
    names = {(split, domain) for split, domain, _ in check_data.find_classes(made)}
    assert names == {("test", "european"), ("test", "b"), ("train", "a"), ("train", "b")}
    (tmp_path / "plain" / "cats").mkdir(parents=True)
    make_image(1).save(tmp_path / "plain" / "cats" / "1.png")
    assert [item.name for item in check_data.check_classes(tmp_path / "plain")] == ["cats"]
    assert [item.name for item in check_data.check_classes(tmp_path / "plain" / "cats")] == ["cats"]


@pytest.mark.parametrize("name", ["empty", "absent"])
def test_a_missing_or_empty_folder_is_an_error(name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "empty").mkdir()
    assert check_data.main([str(tmp_path / name)]) == 1
    assert capsys.readouterr().err.startswith("error: ")


def test_the_contact_sheet_must_lie_outside_the_data_set(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for sheet in (next(folder.rglob("*.png")), Path("")):
        assert check_data.main([str(folder), "--sheet", str(sheet) if sheet.name else ""]) == 1
        assert "outside the data set" in capsys.readouterr().err


def test_what_is_not_an_image_is_counted_by_kind(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    asian = folder / "train" / "asian"
    for name in ("1.psd", "2.PSD", "notes", ".DS_Store"):
        (asian / name).write_bytes(b"no image")
    (asian / "again").symlink_to("..")
    (folder / "readme.txt").touch()
    make_image(1).save(folder / "train" / "astray.png")
    (folder / "loop").symlink_to(".")
    found = report(folder, tmp_path, capsys)
    expected = {"files": {".psd": 2, "hidden": 1, "without a suffix": 1},
                "links": {str(asian / "again"): f"a circle, it leads back to {folder / 'train'}"}}  # fmt: skip
    assert found["classes"]["train/asian"]["passed_over"] == expected
    assert found["classes"]["test/asian"]["passed_over"] == {"files": {}, "links": {}}
    assert found["outside_the_classes"]["files"] == {".txt": 1, ".png": 1}
    assert check_data.main([str(folder), "--sheet", str(tmp_path / "sheet.png")]) == 0
    printed = capsys.readouterr().out
    assert "\nin train/asian: passed over 4 other files: 2 .psd, 1 hidden, 1 without a suffix\n" in printed
    assert "\noutside the classes: passed over 2 other files: 1 .txt, 1 .png\n" in printed
    assert f"did not follow {folder / 'loop'}: a circle" in printed


def test_a_circle_is_not_a_class(tmp_path: Path) -> None:
    (tmp_path / "cats").mkdir()
    (tmp_path / "loop").symlink_to(".")
    assert check_data.find_classes(tmp_path) == [("", "cats", tmp_path / "cats")]


def test_the_contact_sheet_replaces_only_a_contact_sheet(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    sheet = tmp_path / "sheet.png"
    make_image(1).save(sheet)
    before = sheet.read_bytes()
    assert check_data.main([str(folder), "--sheet", str(sheet)]) == 1
    assert "sheet.png exists and is not a sheet of this program" in capsys.readouterr().err
    assert sheet.read_bytes() == before
    sheet.unlink()
    assert [check_data.main([str(folder), "--sheet", str(sheet)]) for _ in range(2)] == [0, 0]
    assert check_data.main([str(folder), "--sheet", "/dev/null"]) == 1
    assert "is a device, pipe or socket" in capsys.readouterr().err


def test_the_check_runs_from_the_command_line(folder: Path, tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, str(ROOT / "check_data.py"), str(folder)], cwd=tmp_path, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("class ")
    assert (tmp_path / "data_check.png").exists()


def test_a_folder_without_usable_images_is_an_error_that_says_why(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "faces").mkdir()
    Image.new("RGB", (40 * MAX_ASPECT + 1, 40)).save(tmp_path / "faces" / "long.png")
    assert check_data.main([str(tmp_path / "faces")]) == 1
    assert "left out 1; first reason: too narrow" in capsys.readouterr().err
