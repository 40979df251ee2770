"""Good archives are unpacked completely; hostile and damaged ones leave nothing behind."""

from __future__ import annotations

import io
import tarfile
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from downloads import archives
from downloads.archives import check_archive, is_archive, unpack
from utils import UserError

Change = Callable[[zipfile.ZipInfo], None]
FILES = {"train/European/1.png": b"one", "train/Asian/2.png": b"two" * 1000, "read me.txt": "ä".encode()}


def make_zip(path: Path, files: dict[str, bytes], change: Change = lambda info: None) -> Path:
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in files.items():
            info = zipfile.ZipInfo(name)
            info.compress_type = zipfile.ZIP_DEFLATED
            change(info)
            archive.writestr(info, content)
    return path


def make_tar(path: Path, *members: tuple[str, bytes | None, bytes], mode: str = "w:gz") -> Path:
    """Write a tar of members (name, type or None for a file, content or the target of a link)."""
    with tarfile.open(path, mode) as archive:  # type: ignore[call-overload]
        for name, kind, content in members:
            info = tarfile.TarInfo(name)
            if kind is None:
                info.size = len(content)
            else:
                info.type, info.linkname = kind, content.decode()
            archive.addfile(info, io.BytesIO(content) if kind is None else None)
    return path


def tree(folder: Path) -> dict[str, bytes]:
    """The content of all files below a folder, by relative path."""
    return {str(file.relative_to(folder)): file.read_bytes() for file in folder.rglob("*") if file.is_file()}


@pytest.mark.parametrize("kind", ["zip", "tar", "tar.gz", "tar.xz", "tar.bz2"])
def test_an_archive_unpacks_to_the_files_that_were_packed(kind: str, tmp_path: Path) -> None:
    path = tmp_path / f"faces.{kind}"
    if kind == "zip":
        make_zip(path, FILES)
    else:
        members = [("./", tarfile.DIRTYPE, b""), *((f"./{name}", None, data) for name, data in FILES.items())]
        make_tar(path, *members, mode=f"w:{kind[4:]}")
    assert is_archive(path)
    check_archive(path)
    unpack(path, tmp_path / "out")
    assert tree(tmp_path / "out") == FILES


def as_link(info: zipfile.ZipInfo) -> None:
    info.external_attr = 0o120777 << 16


def as_device(info: zipfile.ZipInfo) -> None:
    info.external_attr = 0o020666 << 16


def encrypted(path: Path) -> Path:
    """A zip whose entry is marked as encrypted."""
    make_zip(path, {"a.png": b"x"})
    data = bytearray(path.read_bytes())
    for signature, flags in ((b"PK\3\4", 6), (b"PK\1\2", 8)):
        data[data.index(signature) + flags] |= 1
    path.write_bytes(data)
    return path


def twice(path: Path) -> Path:
    """A zip with two entries of the same name."""
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("a.png", b"1")
        with pytest.warns(UserWarning, match="Duplicate name"):
            archive.writestr("a.png", b"2")
    return path


def overlong(path: Path) -> Path:
    """A zip whose header gives 10 bytes as the size of a file of 100 kB."""
    make_zip(path, {"a.png": b"\0" * 100_000})
    data = bytearray(path.read_bytes())
    for signature, size in ((b"PK\3\4", 22), (b"PK\1\2", 24)):
        at = data.index(signature) + size
        data[at : at + 4] = (10).to_bytes(4, "little")
    path.write_bytes(data)
    return path


def flipped_bit(path: Path) -> Path:
    """A zip with a flipped bit in its content."""
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("a.png", b"x" * 1000)
    data = bytearray(path.read_bytes())
    data[500] ^= 4
    path.write_bytes(data)
    return path


def cut_off(path: Path) -> Path:
    """A tar that ends early."""
    make_tar(path, ("a.png", None, bytes(range(256)) * 400))
    path.write_bytes(path.read_bytes()[:-200])
    return path


HOSTILE: dict[str, tuple[Callable[[Path], Path], str]] = {
    "parent": (lambda path: make_zip(path, {"ok.png": b"x", "../evil.png": b"x"}), "points outside"),
    "hidden parent": (lambda path: make_zip(path, {"a/b/../../../evil.png": b"x"}), "points outside"),
    "windows parent": (lambda path: make_zip(path, {"..\\evil.png": b"x"}), "points outside"),
    "absolute": (lambda path: make_zip(path, {"/evil.png": b"x"}), "absolute"),
    "drive": (lambda path: make_zip(path, {"C:evil.png": b"x"}), "absolute"),
    "control character": (lambda path: make_zip(path, {"a\nb.png": b"x"}), "ambiguous or unprintable name"),
    "zip link": (lambda path: make_zip(path, {"a": b"/etc/passwd"}, as_link), "link or a device"),
    "zip device": (lambda path: make_zip(path, {"a": b""}, as_device), "link or a device"),
    "encrypted": (encrypted, "encrypted"),
    "duplicate": (twice, "twice"),
    "case collision": (lambda path: make_zip(path, {"A/face.png": b"x", "a/FACE.png": b"x"}), "twice"),
    "file as folder": (lambda path: make_zip(path, {"a": b"x", "A/face.png": b"x"}), "is inside a file"),
    "folder as file": (lambda path: make_zip(path, {"a/face.png": b"x", "A": b"x"}), "twice"),
    "bomb": (lambda path: make_zip(path, {"a.bmp": b"\0" * 5_000_000}), "200 times"),
    "lying header": (overlong, "damaged or not an archive"),
    "flipped bit": (flipped_bit, "damaged or not an archive"),
    "tar parent": (lambda path: make_tar(path, ("../evil.png", None, b"x")), "points outside"),
    "tar absolute": (lambda path: make_tar(path, ("/evil.png", None, b"x")), "absolute"),
    "symbolic link": (lambda path: make_tar(path, ("a", tarfile.SYMTYPE, b"/etc")), "link or a device"),
    "hard link": (lambda path: make_tar(path, ("a", tarfile.LNKTYPE, b"../b")), "link or a device"),
    "pipe": (lambda path: make_tar(path, ("a", tarfile.FIFOTYPE, b"")), "link or a device"),
    "device": (lambda path: make_tar(path, ("a", tarfile.CHRTYPE, b"")), "link or a device"),
    "tar bomb": (lambda path: make_tar(path, ("a", None, b"\0" * 5_000_000)), "200 times"),
    "cut off": (cut_off, "damaged or not an archive|cannot be unpacked"),
    "no archive": (lambda path: (path.write_bytes(b"hello") and path) or path, "damaged or not an archive"),
    "empty file": (lambda path: (path.write_bytes(b"") and path) or path, "damaged or not an archive"),
}


@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_and_damaged_archives_leave_no_file_behind(name: str, tmp_path: Path) -> None:
    build, reason = HOSTILE[name]
    (tmp_path / "here").mkdir()
    path = build(tmp_path / "here" / "faces.bin")
    with pytest.raises(UserError, match=reason):
        check_archive(path)
    with pytest.raises(UserError, match=reason):
        unpack(path, tmp_path / "here" / "out")
    assert [file.name for file in tmp_path.rglob("*")] == ["here", "faces.bin"]


def test_too_many_entries_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(archives, "MAX_ENTRIES", 3)
    check_archive(make_zip(tmp_path / "3.zip", {f"{i}.png": b"x" for i in range(3)}))
    with pytest.raises(UserError, match="more than 3 entries"):
        check_archive(make_zip(tmp_path / "4.zip", {f"{i}.png": b"x" for i in range(4)}))


def test_too_many_bytes_are_refused_before_they_are_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(archives, "MAX_BYTES", 1000)
    with pytest.raises(UserError, match="more than 1000 bytes"):
        unpack(make_zip(tmp_path / "a.zip", {"a.png": bytes(600), "b.png": bytes(600)}), tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_pytorch_file_is_not_treated_as_an_archive(tmp_path: Path) -> None:
    torch.save({"weight": torch.zeros(2)}, tmp_path / "gen_asian.pth.tar")
    assert not is_archive(tmp_path / "gen_asian.pth.tar")
