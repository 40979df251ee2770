"""Good archives are unpacked completely; hostile and damaged ones leave nothing behind."""

from __future__ import annotations

import bz2
import gzip
import io
import lzma
import random
import re
import tarfile
import tracemalloc
import zipfile
import zlib
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import pytest
import torch

from downloads import archives, readers
from downloads.archives import check_archive, is_archive, unpack
from utils import UserError

Change = Callable[[zipfile.ZipInfo], None]
HIDDEN = 20_000_000  # bytes
NOISE = random.Random(0).randbytes(100_000)
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


@pytest.mark.parametrize("method", [zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA])
def test_a_zip_unpacks_however_it_is_compressed(method: int, tmp_path: Path) -> None:
    files = {**FILES, "empty.txt": b"", "large.bin": bytes(3 * readers.PIECE)}
    packed_with(tmp_path / "a.zip", method, {**files, "noise.bin": NOISE})
    unpack(tmp_path / "a.zip", tmp_path / "out")
    assert tree(tmp_path / "out") == {**files, "noise.bin": NOISE}


def test_unpacking_bzip2_in_a_zip_takes_little_memory(tmp_path: Path) -> None:
    path = hidden_size(tmp_path / "a.zip", zipfile.ZIP_BZIP2)
    tracemalloc.start()
    with suppress(UserError):
        check_archive(path)
    assert tracemalloc.get_traced_memory()[1] < 10 * readers.PIECE
    tracemalloc.stop()


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


def patched(path: Path, *, signature: bytes, at: int, value: bytes) -> Path:
    """A zip with one file, in which bytes of the last record with this signature are replaced."""
    data = bytearray(make_zip(path, {"a.png": b"x" * 50}).read_bytes())
    start = data.rindex(signature) + at
    data[start : start + len(value)] = value
    path.write_bytes(data)
    return path


def packed_as(path: Path, method: int) -> Path:
    """A zip that says that it is compressed in another way than it is."""
    make_zip(path, {"a.png": b"x" * 50})
    data = bytearray(path.read_bytes())
    for signature, at in ((b"PK\3\4", 8), (b"PK\1\2", 10)):
        start = data.index(signature) + at
        data[start : start + 2] = method.to_bytes(2, "little")
    path.write_bytes(data)
    return path


def packed_with(path: Path, method: int, files: dict[str, bytes]) -> Path:
    """A zip that is compressed with bzip2 or LZMA."""
    with zipfile.ZipFile(path, "w", method) as archive:
        for name, content in files.items():
            archive.writestr(name, content)
    return path


def damaged_content(path: Path, method: int) -> Path:
    data = bytearray(packed_with(path, method, {"a.png": bytes(range(256)) * 20}).read_bytes())
    data[100] ^= 0xFF
    path.write_bytes(data)
    return path


def hidden_size(path: Path, method: int) -> Path:
    """A zip whose file of 20 MB is said to have 77 bytes."""
    data = packed_with(path, method, {"a.png": bytes(HIDDEN)}).read_bytes()
    path.write_bytes(data.replace((HIDDEN).to_bytes(4, "little"), (77).to_bytes(4, "little")))
    return path


def header(name: str = "a.png", size: int = 0, kind: bytes = tarfile.REGTYPE) -> bytes:
    """One block of a tar archive, with the right checksum whatever it says."""
    info = tarfile.TarInfo(name)
    info.size, info.type = size, kind
    return info.tobuf(tarfile.GNU_FORMAT, errors="surrogateescape")


def attributes(*records: bytes) -> bytes:
    """A set of PAX attributes."""
    content = b"".join(records)
    return header("pax", len(content), tarfile.XHDTYPE) + content + bytes(-len(content) % 512)


def raw(*blocks: bytes) -> Callable[[Path], Path]:
    """Write a tar archive of these blocks."""

    def build(path: Path) -> Path:
        path.write_bytes(b"".join(blocks) + bytes(1024))
        return path

    return build


END = b"PK\5\6"  # A zip archive ends with a record that starts with these bytes.


def mistaken_text(path: Path) -> Path:
    """A zip with a name that is said to be UTF-8, but is not."""
    make_zip(path, {"ä.png": b"x"})
    path.write_bytes(path.read_bytes().replace("ä".encode(), b"\xff\xfe"))
    return path


def greedy_xz(path: Path) -> Path:
    """A tar.xz of a few bytes whose header asks for 4 GB of memory."""
    data = bytearray(lzma.compress(header() + bytes(1024)))
    start, end = 12, 12 + 4 * (data[12] + 1)  # of the block's header, which ends with its CRC
    data[data.index(b"\x21\1", start) + 2] = 40
    data[end - 4 : end] = zlib.crc32(data[start : end - 4]).to_bytes(4, "little")
    path.write_bytes(data)
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
    "zip with an empty name": (lambda path: make_zip(path, {"a/b.png": b"x", "": b"x"}), "empty name"),
    "zip with a dot for a name": (lambda path: make_zip(path, {"./.": b"x"}), "empty name"),
    "tar with an empty name": (raw(header("")), "empty name"),
    "a thousand folders": (lambda path: make_zip(path, {"a/" * 1000 + "b.png": b"x"}), "32 folders"),
    "a thousand folders in a tar": (lambda path: make_tar(path, ("a/" * 1000, tarfile.DIRTYPE, b"")), "32 folders"),
    "long name": (lambda path: make_zip(path, {"ä" * 150: b"x"}), "more than 255 bytes"),
    "long path": (lambda path: make_tar(path, ("a" * 2000, None, b"x"), mode="w"), "more than 1000 bytes"),
    "device name": (lambda path: make_zip(path, {"faces/Aux .tar.gz": b"x"}), "ambiguous name"),
    "numbered device": (lambda path: make_tar(path, ("lpt1/a.png", None, b"x")), "ambiguous name"),
    "final dot": (lambda path: make_zip(path, {"a./b.png": b"x"}), "ambiguous name"),
    "final space": (lambda path: make_zip(path, {"a/b.png ": b"x"}), "ambiguous name"),
    "stream of a file": (lambda path: make_zip(path, {"ab.png:c": b"x"}), "ambiguous name"),
    "tar name that is not text": (raw(header("\udcff.png")), "unprintable name"),
    "zip name that is not text": (lambda path: mistaken_text(path), "not valid text"),
    "sparse file": (raw(header(size=0, kind=tarfile.GNUTYPE_SPARSE)), "sparse file"),
    "sparse file by attribute": (raw(attributes(b"22 GNU.sparse.major=1\n"), header()), "sparse file"),
    "huge name": (raw(header("././@LongLink", 6_500_000_000, tarfile.GNUTYPE_LONGNAME)), "a name or an attribute"),
    "huge attributes": (raw(header("pax", 6_500_000_000, tarfile.XHDTYPE)), "a name or an attribute"),
    "huge file": (raw(header(size=6_500_000_000)), "200 times"),
    "huge file by attribute": (raw(attributes(b"19 size=6500000000\n"), header()), "200 times"),
    "negative size": (raw(header(size=-1024)), "damaged or not an archive"),
    "negative size by attribute": (raw(attributes(b"14 size=-1024\n"), header()), "damaged or not an archive"),
    "negative attribute": (raw(attributes(b"-9 size=1024\n"), header()), "damaged or not an archive"),
    "overlong attribute": (raw(attributes(b"99 size=1024\n"), header()), "damaged or not an archive"),
    "second header damaged": (raw(header("a.png"), b"x" * 512, header("b.png")), "damaged or not an archive"),
    "tar without an end": (lambda path: (path.write_bytes(header()) and path) or path, "cut short"),
    "deflate64": (lambda path: packed_as(path, 9), "unusual way"),
    "damaged bzip2 in a zip": (lambda path: damaged_content(path, zipfile.ZIP_BZIP2), "damaged or not an archive"),
    "damaged lzma in a zip": (lambda path: damaged_content(path, zipfile.ZIP_LZMA), "damaged or not an archive"),
    "bzip2 that hides its size": (lambda path: hidden_size(path, zipfile.ZIP_BZIP2), "cut short"),
    "lzma that hides its size": (lambda path: hidden_size(path, zipfile.ZIP_LZMA), "cut short"),
    "zstandard in a zip": (lambda path: packed_as(path, 93), "unusual way"),
    "unknown compression": (lambda path: packed_as(path, 999), "unusual way"),
    "strong encryption": (lambda path: patched(path, signature=b"PK\1\2", at=8, value=b"\x40"), "encrypted"),
    "future version": (lambda path: patched(path, signature=b"PK\1\2", at=6, value=b"\xff"), "unusual way"),
    "too many entries claimed": (lambda path: patched(path, signature=END, at=8, value=b"\x60\xea" * 2), "damaged"),
    "too long a directory": (lambda path: patched(path, signature=END, at=12, value=b"\0\xff\xff\xff"), "damaged"),
    "false offset": (lambda path: patched(path, signature=END, at=16, value=b"\xff\xff"), "a.png' in it is not"),
    "huge size claimed": (lambda path: patched(path, signature=b"PK\1\2", at=24, value=b"\0\0\0\x90"), "200 times"),
    "too large a size": (lambda path: patched(path, signature=b"PK\1\2", at=24, value=b"\x90"), "damaged|cut short"),
    "memory for xz": (lambda path: greedy_xz(path), "too much memory"),
    "empty file": (lambda path: (path.write_bytes(b"") and path) or path, "damaged or not an archive"),
}


@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_and_damaged_archives_leave_no_file_behind(name: str, tmp_path: Path) -> None:
    build, reason = HOSTILE[name]
    (tmp_path / "here").mkdir()
    path = build(tmp_path / "here" / "faces.bin")
    with pytest.raises(UserError, match=reason):
        check_archive(path)
    with pytest.raises(UserError, match=reason) as raised:
        unpack(path, tmp_path / "here" / "out")
    assert len(str(raised.value).splitlines()) == 2
    assert re.search("get it again|unpack it yourself", str(raised.value))
    assert "Error" not in str(raised.value)
    assert [file.name for file in tmp_path.rglob("*")] == ["here", "faces.bin"]


def test_too_many_entries_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(archives, "MAX_ENTRIES", 3)
    check_archive(make_zip(tmp_path / "3.zip", {f"{i}.png": b"x" for i in range(3)}))
    for names in (["0", "1", "2", "3"], ["a/b/c/0"]):
        with pytest.raises(UserError, match="more than 3 entries and folders"):
            check_archive(make_zip(tmp_path / "4.zip", dict.fromkeys(names, b"x")))


def test_too_many_bytes_are_refused_before_they_are_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(archives, "MAX_BYTES", 1000)
    with pytest.raises(UserError, match="more than 1000 bytes"):
        unpack(make_zip(tmp_path / "a.zip", {"a.png": bytes(600), "b.png": bytes(600)}), tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_pytorch_file_is_not_treated_as_an_archive(tmp_path: Path) -> None:
    torch.save({"weight": torch.zeros(2)}, tmp_path / "gen_asian.pth.tar")
    assert not is_archive(tmp_path / "gen_asian.pth.tar")


@pytest.mark.parametrize("kind", ["zip", "tar", "tar.gz", "tar.xz", "tar.bz2"])
def test_an_archive_that_is_cut_short_anywhere_is_refused(kind: str, tmp_path: Path) -> None:
    path = tmp_path / "faces"
    noise = b"".join(zlib.crc32(bytes([i])).to_bytes(4, "big") for i in range(200))
    members = [(f"{i}.png", None, noise) for i in range(3)]
    whole = (
        make_tar(path, *members, mode=f"w:{kind[4:]}") if kind != "zip" else make_zip(path, dict.fromkeys("abc", noise))
    )
    data = whole.read_bytes()
    for length in range(0, len(data.rstrip(b"\0")), 97):
        path.write_bytes(data[:length])
        with pytest.raises(UserError, match="damaged or not an archive"):
            check_archive(path)
        with suppress(UserError):  # any other exception would be a traceback
            is_archive(path)


def test_a_huge_name_is_refused_before_it_is_unpacked(tmp_path: Path) -> None:
    packer = bz2.BZ2Compressor()
    blocks = [header("././@LongLink", 10**9, tarfile.GNUTYPE_LONGNAME), *[bytes(10**6)] * 20]
    (tmp_path / "a.tar.bz2").write_bytes(b"".join(map(packer.compress, blocks)) + packer.flush())
    tracemalloc.start()
    with pytest.raises(UserError, match="a name or an attribute"):
        check_archive(tmp_path / "a.tar.bz2")
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 10**7


def test_the_directory_of_a_zip_is_bounded_before_it_is_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = make_zip(tmp_path / "a.zip", {f"{i}.png": b"x" for i in range(40)})
    monkeypatch.setattr(readers, "MAX_DIRECTORY", 1000)
    with pytest.raises(UserError, match="list of files has more than 1000 bytes"):
        check_archive(path)
    monkeypatch.setattr(readers, "MAX_DIRECTORY", 10**6)
    monkeypatch.setattr(readers, "MAX_ENTRIES", 39)
    with pytest.raises(UserError, match="more than 39 entries"):
        check_archive(path)


def test_headers_of_a_tar_are_bounded_together(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(readers, "MAX_HEADERS", 5000)
    raw(*[attributes(b"9 a=1234\n")] * 3, header())(tmp_path / "few")
    check_archive(tmp_path / "few")
    raw(*[attributes(b"9 a=1234\n")] * 5, header())(tmp_path / "many")
    raw(header(), bytes(10**5))(tmp_path / "much behind it")
    for name in ("many", "much behind it"):
        with pytest.raises(UserError, match="more than 5000 bytes beside its files"):
            check_archive(tmp_path / name)


@pytest.mark.parametrize("form", [tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
def test_long_and_foreign_names_are_read_from_tars_of_every_form(form: int, tmp_path: Path) -> None:
    names = ["ä" * 40 + "/" + "b" * 90 + ".png", "Screenshot 1.00.00\u202fPM.png", "日本/顔.png"]
    with tarfile.open(tmp_path / "a.tar", "w", format=form, pax_headers={"comment": "for all"}) as archive:
        for name in names:
            info = tarfile.TarInfo(name)
            info.size, info.mtime = 3, 1.5  # type: ignore[assignment]
            archive.addfile(info, io.BytesIO(b"abc"))
    unpack(tmp_path / "a.tar", tmp_path / "out")
    assert tree(tmp_path / "out") == dict.fromkeys(names, b"abc")


def test_streams_that_follow_each_other_are_one_archive(tmp_path: Path) -> None:
    data = make_tar(tmp_path / "a.tar", ("a.png", None, b"x" * 5000), mode="w").read_bytes()
    for name, compress in (("gz", gzip.compress), ("bz2", bz2.compress), ("xz", lzma.compress)):
        end = bytes(8) if name == "xz" else b""  # xz streams may be padded
        (tmp_path / name).write_bytes(compress(data[:3000]) + end + compress(data[3000:]) + end)
        unpack(tmp_path / name, tmp_path / f"{name}.out")
        assert tree(tmp_path / f"{name}.out") == {"a.png": b"x" * 5000}


def test_a_tar_that_ends_with_a_zip_is_a_tar(tmp_path: Path) -> None:
    torch.save({"weight": torch.zeros(2)}, tmp_path / "gen_asian.pth.tar")
    content = (tmp_path / "gen_asian.pth.tar").read_bytes()
    path = make_tar(tmp_path / "weights.tar", ("gen_asian.pth.tar", None, content), mode="w")
    assert is_archive(path)
    unpack(path, tmp_path / "out")
    assert tree(tmp_path / "out") == {"gen_asian.pth.tar": content}


def test_unpacking_to_a_folder_that_exists_leaves_it_alone(tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "mine.png").write_bytes(b"x")
    with pytest.raises(UserError, match="File exists"):
        unpack(make_zip(tmp_path / "a.zip", FILES), tmp_path / "out")
    assert tree(tmp_path / "out") == {"mine.png": b"x"}


def test_a_disk_that_fills_up_while_an_archive_is_unpacked_is_reported(
    tmp_path: Path, limit_files: Callable[[int], None]
) -> None:
    path = make_zip(tmp_path / "a.zip", {"a.bin": bytes(range(256)) * 40, "b.bin": bytes(range(256)) * 400})
    limit_files(50_000)
    with pytest.raises(UserError, match=r"(?s)could not write .*out: File too large.*disk has space"):
        unpack(path, tmp_path / "out")
    assert [file.name for file in tmp_path.iterdir()] == ["a.zip"]
