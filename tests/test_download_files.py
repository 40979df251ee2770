"""One command puts the data set, weights and test images in place, or changes nothing and says why."""

from __future__ import annotations

import io
import os
import shutil
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from conftest import ROOT, make_folders, make_image
from loopback import Web

import download_files
from config import Config
from download_files import SOURCES, main
from weights.load import load_generator

RESIDUAL = {f"residual_blocks.0.block.{i}.conv.0": (16, 16, 3) for i in (0, 1)}
LAYERS = {"initial.0": (4, 3, 7), "down_blocks.0.conv.0": (8, 4, 3), "down_blocks.1.conv.0": (16, 8, 3), **RESIDUAL,
          "up_blocks.0.conv.0": (16, 8, 3), "up_blocks.1.conv.0": (8, 4, 3), "last": (3, 4, 7)}  # fmt: skip


def zipped(*files: tuple[str, bytes]) -> bytes:
    """A zip archive of files, given as (name, content)."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        for name, content in files:
            archive.writestr(name, content)
    return buffer.getvalue()


def picture(seed: int) -> bytes:
    """A random image as the content of a PNG file."""
    buffer = io.BytesIO()
    make_image(seed).save(buffer, "PNG")
    return buffer.getvalue()


def faces(**counts: int) -> bytes:
    """A zip of images: `faces(train_European=3)` holds data/train/European/0.png, 1.png and 2.png."""
    names = [f"{folder.replace('_', '/')}/{i}.png" for folder, count in counts.items() for i in range(count)]
    return zipped(("read me.txt", b"hello"), *((f"data/{name}", picture(i)) for i, name in enumerate(names)))


def original_weights() -> bytes:
    """A file with the original project's generator, with four channels and one residual block."""
    state = {}
    for name, (rows, columns, side) in LAYERS.items():
        state[f"{name}.weight"] = torch.randn(rows, columns, side, side)
        state[f"{name}.bias"] = torch.randn(columns if name.startswith("up") else rows)
    buffer = io.BytesIO()
    torch.save({"state_dict": state, "optimizer": {}}, buffer)
    return buffer.getvalue()


def files_below(root: Path) -> set[str]:
    """Relative paths of all files below a folder."""
    return {str(path.relative_to(root)) for path in root.rglob("*") if path.is_file()}


def get(web: Web, what: str, root: Path, content: bytes, *more: str) -> int:
    """Run the program for one source, with `content` as the file on the server; returns the exit status."""
    web.serves(content)
    return main([f"--{what}", "--url", web.address.replace("faces.bin", f"{what}.zip"), "--root", str(root), *more])


def test_the_data_set_is_put_in_place_and_counted(web: Web, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert get(web, "dataset", tmp_path, faces(train_European=3, train_ASIAN=2, test_European=1)) == 0
    assert files_below(tmp_path) == {
        *(f"dataset/train/european/{i}.png" for i in range(3)), *(f"dataset/train/asian/{i}.png" for i in range(2)),
        "dataset/test/european/0.png",
    }  # fmt: skip
    assert os.listdir(tmp_path) == ["dataset"]
    assert "3 training images in " in capsys.readouterr().out


def test_a_second_run_downloads_nothing(web: Web, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert get(web, "dataset", tmp_path, faces(train_European=1, train_Asian=1)) == 0
    requests = len(web.ranges)
    assert get(web, "dataset", tmp_path, b"") == 0
    assert len(web.ranges) == requests
    assert "data set: already here" in capsys.readouterr().out


def test_train_a_and_train_b_are_also_found_as_the_classes(web: Web, tmp_path: Path) -> None:
    content = faces(trainA=2, trainB=1, testA=1, testB=1)
    assert get(web, "dataset", tmp_path, content, "--domain-a", "horse", "--domain-b", "zebra") == 0
    assert {path.rsplit("/", 1)[0] for path in files_below(tmp_path)} == {
        "dataset/train/horse", "dataset/train/zebra", "dataset/test/horse", "dataset/test/zebra",
    }  # fmt: skip


def test_the_number_of_images_that_the_authors_state_is_printed_beside_the_number_found(
    web: Web, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    web.serves(faces(train_European=3, train_Asian=2))
    source = replace(SOURCES["dataset"], url=web.address)
    monkeypatch.setitem(SOURCES, "dataset", source)
    assert main(["--dataset", "--root", str(tmp_path)]) == 0
    shown = capsys.readouterr().out
    assert "its authors state 1024 images per class" in shown
    assert "3 training images in " in shown


def test_images_that_are_already_in_the_data_set_stay(web: Web, tmp_path: Path) -> None:
    made = make_folders(tmp_path / "dataset" / "demo")
    before = files_below(made)
    (tmp_path / "dataset" / "train" / "european").mkdir(parents=True)
    shutil.copy(made / "train" / "european" / "0000.png", tmp_path / "dataset" / "train" / "european" / "mine.png")
    assert get(web, "dataset", tmp_path, faces(train_European=3, train_Asian=2)) == 0
    assert files_below(made) == before
    assert files_below(tmp_path / "dataset" / "train") == {"european/mine.png", "asian/0.png", "asian/1.png"}


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (faces(train_European=2), "the data set has no folder asian with images"),
        (faces(train_European=2, more_train_European=2, train_Asian=1), "two folders for train european"),
        (b"<html>log in</html>", "sent a web page"),
        (b"neither", "damaged or not an archive"),
        (zipped(("../../evil.png", b"x")), "points outside"),
        (faces(train_European=50, train_Asian=50)[:-100], "damaged or not an archive"),
    ],
)
def test_a_refused_data_set_changes_nothing(
    content: bytes, reason: str, web: Web, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "dataset").mkdir()
    assert get(web, "dataset", tmp_path, content) == 1
    error = capsys.readouterr().err
    assert reason in error
    assert len(error.splitlines()) <= 5
    assert not files_below(tmp_path / "dataset")
    assert not [name for name in files_below(tmp_path) if "unpacked" in name or "staged" in name]


def test_moves_are_undone_if_one_of_them_fails(web: Web, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real_rename = os.rename

    def rename(source: Path, target: Path) -> None:
        if str(target).endswith("dataset/train/european"):
            raise OSError("the disk is full")
        real_rename(source, target)

    monkeypatch.setattr(os, "rename", rename)
    assert get(web, "dataset", tmp_path, faces(train_European=2, train_Asian=2)) == 1
    assert not files_below(tmp_path / "dataset")


def test_a_local_folder_is_copied_and_not_changed(tmp_path: Path) -> None:
    made = make_folders(tmp_path / "mine", 2, 2)
    before = files_below(made)
    assert main(["--dataset", "--url", str(made), "--root", str(tmp_path / "root")]) == 0
    assert files_below(made) == before
    assert files_below(tmp_path / "root" / "dataset") == before


def test_a_local_archive_is_verified_and_not_deleted(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "faces.zip"
    file.write_bytes(faces(train_European=1, train_Asian=1))
    assert main(["--dataset", "--url", str(file), "--sha256", "0" * 64, "--root", str(tmp_path / "root")]) == 1
    assert "SHA-256" in capsys.readouterr().err
    assert main(["--dataset", "--url", file.as_uri(), "--root", str(tmp_path / "root")]) == 0
    assert file.exists()


def test_an_archive_put_into_downloads_by_hand_is_used(web: Web, tmp_path: Path) -> None:
    (tmp_path / "staging").mkdir()
    (tmp_path / "staging" / "dataset.zip").write_bytes(faces(train_European=1, train_Asian=1))
    assert get(web, "dataset", tmp_path, b"") == 0
    assert web.ranges == []


def test_the_folders_around_the_test_images_are_removed(web: Web, tmp_path: Path) -> None:
    content = zipped(("test_images/a/1.png", picture(1)), ("test_images/2.png", picture(2)), ("__MACOSX/._2.png", b""))
    assert get(web, "test-images", tmp_path, content) == 0
    assert files_below(tmp_path / "test_images") == {"a/1.png", "2.png"}


def test_weights_of_the_original_project_are_converted(web: Web, tmp_path: Path) -> None:
    content = zipped(
        ("checkpoints/gen_asian.pth.tar", original_weights()), ("checkpoints/gen_european.pth.tar", original_weights())
    )
    assert get(web, "weights", tmp_path, content) == 0
    assert files_below(tmp_path) == {"checkpoints/european_asian.safetensors"}
    for direction in ("ab", "ba"):
        generator = load_generator(tmp_path / "checkpoints" / "european_asian.safetensors", direction)
        assert generator(torch.zeros(1, 3, 8, 8)).shape == (1, 3, 8, 8)


def test_our_own_weights_are_copied_without_conversion(web: Web, tmp_path: Path) -> None:
    content = zipped(("a/gen_asian.pth.tar", original_weights()), ("a/gen_european.pth.tar", original_weights()))
    assert get(web, "weights", tmp_path / "one", content) == 0
    ours = tmp_path / "one" / "checkpoints" / "european_asian.safetensors"
    shutil.copy(ours, tmp_path / "best.safetensors")
    assert main(["--weights", "--url", str(tmp_path / "best.safetensors"), "--root", str(tmp_path / "two")]) == 0
    assert (tmp_path / "two" / "checkpoints" / "best.safetensors").read_bytes() == ours.read_bytes()


def test_a_refused_weights_file_leaves_no_checkpoint(
    web: Web, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert get(web, "weights", tmp_path, zipped(("gen_asian.pth.tar", b"hello"))) == 1
    assert capsys.readouterr().err.startswith("error: weights: ")
    assert not (tmp_path / "checkpoints").exists()


def test_list_prints_every_source_and_changes_nothing(
    web: Web, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    web.serves(bytes(2_500_000))
    for name, source in SOURCES.items():
        monkeypatch.setitem(SOURCES, name, replace(source, url=web.address))
    make_folders(tmp_path / "dataset", 3, 2)
    before = files_below(tmp_path)
    assert main(["--list", "--root", str(tmp_path)]) == 0
    shown = capsys.readouterr().out
    assert shown.count("not here yet") == 2
    assert shown.count("2.5 MB") == 3
    assert f"3 training images in {tmp_path}" in shown
    assert files_below(tmp_path) == before


def test_one_failed_download_does_not_stop_the_others(
    web: Web, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    web.serves(zipped(("images/1.png", picture(1))))
    for name, source in SOURCES.items():
        monkeypatch.setitem(SOURCES, name, replace(source, url=web.address))
    assert main(["--root", str(tmp_path)]) == 1
    assert (tmp_path / "test_images" / "1.png").exists()
    error = capsys.readouterr().err
    assert "error: data set: " in error
    assert "error: weights: " in error


def test_the_demo_faces_are_unpacked_from_the_repository(tmp_path: Path) -> None:
    assert main(["--demo", "--root", str(tmp_path)]) == 0
    assert len(list((tmp_path / "dataset" / "demo" / "train" / "asian").iterdir())) == 400
    assert main(["--demo", "--root", str(tmp_path)]) == 0


@pytest.mark.parametrize(
    "arguments",
    [
        ["--dataset", "--url", ""],
        ["--url", "x"],
        ["--url", "x", "--dataset", "--weights"],
        ["--dataset", "--sha256", "12"],
        ["--sha256", "0" * 64],
    ],
)
def test_mistakes_on_the_command_line_are_reported(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit, match="2"):
        main(arguments)
    assert "error: " in capsys.readouterr().err


@pytest.mark.parametrize(
    "url",
    [
        *("ftp://example.com/a.zip", "/no/such/file.zip", "faces", " ", "~nobody-of-this-name/a.zip", "a" * 5000),
        *("http://", "http://[", "http://[::1", "http:///a.zip", "http://example.com:port/a.zip", "http://\u2100/"),
        *("file://faces.zip", "file://elsewhere/etc", "file:///no/such/file.zip", "file:", os.devnull),
    ],
)
def test_an_address_that_leads_nowhere_is_reported(
    url: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["--dataset", "--url", url, "--root", str(tmp_path)]) == 1
    error = capsys.readouterr().err
    assert "neither an http(s) address nor an existing file or folder" in error
    assert len(error) < 500
    assert not files_below(tmp_path)


def test_a_second_download_into_the_same_folder_is_refused(tmp_path: Path) -> None:
    with download_files.staging_folder(tmp_path):
        arguments = ["--dataset", "--url", str(tmp_path), "--root", str(tmp_path)]
        done = subprocess.run(
            [sys.executable, str(ROOT / "download_files.py"), *arguments], capture_output=True, text=True
        )
    assert done.returncode == 1
    assert "another download into" in done.stderr


def test_leftovers_of_a_killed_run_are_removed(tmp_path: Path) -> None:
    (tmp_path / "staging" / "unpacked" / "train").mkdir(parents=True)
    with download_files.staging_folder(tmp_path) as folder:
        assert not (folder / "unpacked").exists()
    assert not folder.exists()


def test_class_folders_are_found_at_any_depth(tmp_path: Path) -> None:
    for name in ("a/EUROPEAN/European/x", "b/c/asian", "val/asian", "val/European"):
        (tmp_path / name).mkdir(parents=True)
        make_image(1).save(tmp_path / name / "1.png")
    found = download_files.find_classes(tmp_path, Config())
    assert {slot: str(path.relative_to(tmp_path)) for slot, path in found.items()} == {
        ("train", "european"): "a/EUROPEAN/European", ("train", "asian"): "b/c/asian",
        ("test", "asian"): "val/asian", ("test", "european"): "val/European",
    }  # fmt: skip


def looped(folder: Path) -> None:
    (folder / "train" / "loop").symlink_to(folder)


def linked_to_itself(folder: Path) -> None:
    (folder / "train" / "loop.png").symlink_to("loop.png")


def linked_to_nothing(folder: Path) -> None:
    (folder / "old.png").symlink_to("gone.png")


def with_a_pipe(folder: Path) -> None:
    os.mkfifo(folder / "pipe.png")


def too_deep(folder: Path) -> None:
    (folder / "deep").mkdir()
    (folder / "deep" / Path(*["a"] * 500)).mkdir(parents=True)


def unreadable_by_name(folder: Path) -> None:
    (folder / "\udcff\n").symlink_to("gone.png")


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (looped, "loop leads back to a folder above it"),
        (linked_to_itself, "loop.png is a link that leads nowhere"),
        (linked_to_nothing, "old.png is a link that leads nowhere"),
        (with_a_pipe, "pipe.png is neither a file nor a folder"),
        (too_deep, "inside more than 32 folders"),
        (unreadable_by_name, r"\udcff\n is a link that leads nowhere"),
    ],
)
@pytest.mark.parametrize("what", ["dataset", "test-images", "weights"])
def test_a_folder_that_cannot_be_copied_changes_nothing(
    what: str, change: Callable[[Path], None], reason: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    change(make_folders(tmp_path / "mine", 1, 1))
    assert main([f"--{what}", "--url", str(tmp_path / "mine"), "--root", str(tmp_path / "root")]) == 1
    error = capsys.readouterr().err
    assert reason in error
    assert len(error.splitlines()) <= 5
    assert not files_below(tmp_path / "root")


def test_a_folder_is_not_copied_into_itself(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = files_below(make_folders(tmp_path, 1, 1))
    assert main(["--dataset", "--url", str(tmp_path), "--root", str(tmp_path / "root")]) == 1
    assert "or to the copy itself" in capsys.readouterr().err
    assert files_below(tmp_path) == before


def test_links_in_a_folder_are_followed(tmp_path: Path) -> None:
    made = make_folders(tmp_path / "mine", 2, 2)
    for name, target in (("trainA", "train/european"), ("trainB", "train/asian")):
        (tmp_path / "links").mkdir(exist_ok=True)
        (tmp_path / "links" / name).symlink_to(made / target)
    assert main(["--dataset", "--url", str(tmp_path / "links"), "--root", str(tmp_path / "root")]) == 0
    assert len(files_below(tmp_path / "root")) == 4
    assert not [path for path in (tmp_path / "root").rglob("*") if path.is_symlink()]


@pytest.fixture
def other_disk(tmp_path: Path) -> Iterator[Path]:
    """A folder on another disk than `tmp_path`."""
    memory = Path("/dev/shm")
    if not os.access(memory, os.W_OK) or memory.stat().st_dev == tmp_path.stat().st_dev:
        pytest.skip("there is no second disk")
    with tempfile.TemporaryDirectory(dir=memory) as folder:
        yield Path(folder)


def test_a_folder_and_an_archive_on_another_disk_are_read(other_disk: Path, tmp_path: Path) -> None:
    made = make_folders(other_disk / "mine", 1, 1)
    assert main(["--dataset", "--url", str(made), "--root", str(tmp_path / "one")]) == 0
    (other_disk / "a.zip").write_bytes(faces(train_European=1, train_Asian=1))
    assert main(["--dataset", "--url", (other_disk / "a.zip").as_uri(), "--root", str(tmp_path / "two")]) == 0


def test_places_that_are_links_to_another_disk_are_filled_there(web: Web, other_disk: Path, tmp_path: Path) -> None:
    for name in ("dataset", "checkpoints"):
        (other_disk / name).mkdir()
        (tmp_path / name).symlink_to(other_disk / name)
    assert get(web, "dataset", tmp_path, faces(train_European=2, train_Asian=2)) == 0
    content = zipped(("gen_asian.pth.tar", original_weights()), ("gen_european.pth.tar", original_weights()))
    assert get(web, "weights", tmp_path, content) == 0
    assert files_below(other_disk) == {
        *(f"dataset/train/{domain}/{i}.png" for domain in ("european", "asian") for i in (0, 1)),
        "checkpoints/european_asian.safetensors",
    }  # fmt: skip
    assert (tmp_path / "dataset").is_symlink()


def test_moves_to_another_disk_are_undone_if_one_of_them_fails(
    web: Web, other_disk: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "dataset").symlink_to(other_disk)
    (other_disk / "train" / "european").mkdir(parents=True)
    (other_disk / "train" / "european" / "notes.txt").write_text("mine")
    assert get(web, "dataset", tmp_path, faces(train_European=2, train_Asian=2)) == 1
    assert "european is not empty" in capsys.readouterr().err
    assert files_below(other_disk) == {"train/european/notes.txt"}
    assert os.listdir(other_disk / "train") == ["european"]


def test_a_checksum_for_a_folder_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    made = make_folders(tmp_path / "mine", 1, 1)
    assert main(["--dataset", "--url", str(made), "--sha256", "0" * 64, "--root", str(tmp_path / "root")]) == 1
    assert "--sha256 is the checksum of a file" in capsys.readouterr().err


@pytest.mark.parametrize("what", ["dataset", "weights", "test-images"])
@pytest.mark.parametrize("name", ["a.tar.gz", "a.tar.bz2", "a.tar.xz", "a.zip"])
def test_a_damaged_local_archive_is_named(
    what: str, name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    whole = shutil.make_archive(
        str(tmp_path / "whole"), {"zip": "zip", "gz": "gztar", "bz2": "bztar", "xz": "xztar"}[name.rsplit(".", 1)[1]],
        make_folders(tmp_path / "mine", 2, 2),
    )  # fmt: skip
    (tmp_path / name).write_bytes(Path(whole).read_bytes()[:60])
    assert main([f"--{what}", "--url", str(tmp_path / name), "--root", str(tmp_path / "root")]) == 1
    error = capsys.readouterr().err
    assert f"{tmp_path / name}: the file is damaged or not an archive" in error
    assert "get it again" in error
    assert not files_below(tmp_path / "root")


def test_a_disk_that_fills_up_while_unpacking_keeps_the_download_and_what_was_there(
    web: Web, tmp_path: Path, limit_files: Callable[[int], None], capsys: pytest.CaptureFixture[str]
) -> None:
    stripes = zipfile.ZipInfo("data/train/European/stripes.bmp")
    stripes.compress_type = zipfile.ZIP_DEFLATED
    buffer = io.BytesIO(faces(train_European=1, train_Asian=1))
    with zipfile.ZipFile(buffer, "a") as archive:
        archive.writestr(stripes, bytes(range(256)) * 400)
    (tmp_path / "dataset").mkdir()
    (tmp_path / "dataset" / "notes.txt").write_text("mine")
    limit_files(50_000)
    assert get(web, "dataset", tmp_path, buffer.getvalue()) == 1
    error = capsys.readouterr().err
    assert "File too large" in error
    assert "the download is kept" in error
    assert len(error.splitlines()) <= 5
    assert files_below(tmp_path) == {"dataset/notes.txt", "staging/.lock", "staging/dataset.zip"}
    limit_files(-1)
    requests = len(web.ranges)
    assert get(web, "dataset", tmp_path, b"") == 0
    assert len(web.ranges) == requests
    assert not (tmp_path / "staging").exists()


def test_a_root_that_cannot_be_written_is_reported(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "file").write_text("")
    (tmp_path / "loop").symlink_to("loop")
    made = make_folders(tmp_path / "mine", 1, 1)
    for name in ("file", "loop"):
        assert main(["--dataset", "--url", str(made), "--root", str(tmp_path / name)]) == 1
        assert f"could not write {tmp_path / name / 'staging'}" in capsys.readouterr().err
