"""Random archives are unpacked to what was packed; damaged ones are refused in words and leave nothing behind."""

from __future__ import annotations

import bz2
import gzip
import io
import lzma
import os
import tarfile
import tempfile
import warnings
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest
from fuzzing import damaged, fuzz
from hypothesis import given
from hypothesis import strategies as st

from downloads.archives import MAX_RATIO, check_archive, is_archive, unpack
from utils import UserError

pytestmark = pytest.mark.slow
Files = dict[str, bytes]
COMPRESS: dict[str, Callable[[bytes], bytes]] = {
    "": bytes, "gz": lambda data: gzip.compress(data, 1), "bz2": lambda data: bz2.compress(data, 1),
    "xz": lambda data: lzma.compress(data, preset=0),
}  # fmt: skip
FORMS = (tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT)
KINDS = (tarfile.REGTYPE, tarfile.DIRTYPE, tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.FIFOTYPE, tarfile.CHRTYPE,
         tarfile.GNUTYPE_LONGNAME, tarfile.GNUTYPE_SPARSE, tarfile.XHDTYPE, tarfile.XGLTYPE, b"V", b"\0")  # fmt: skip
SIGNIFICANT = (b"\0", b"\xff" * 8, b"\0" * 8, b"\x80\xff\xff\xff\xff\xff", b"777777777777", b"../", b"PK\1\2",
               b"PK\3\4", b"PK\5\6", b"PK\6\6", b"PK\6\7", b"99 path=", b"GNU.sparse.size=9", b"L", b"x")  # fmt: skip

safe_parts = st.text("abcxyz äß日-_1", min_size=1, max_size=8).filter(lambda part: part == part.strip())
parts = st.one_of(
    safe_parts,
    st.text(max_size=6),
    st.sampled_from(["", ".", "..", "a", "A", "a.", "CON", "c:d", "\\", "é", "e\u0301", "x" * 300]),
)
contents = st.one_of(st.binary(max_size=2000), st.integers(0, 10**5).map(bytes))


def paths(part: st.SearchStrategy[str]) -> st.SearchStrategy[str]:
    return st.lists(part, min_size=1, max_size=4).map("/".join)


def zipped(files: Files) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as archive, warnings.catch_warnings():
        warnings.simplefilter("ignore")  # zipfile warns of names that appear twice
        for name, content in files.items():
            info = zipfile.ZipInfo("x")
            info.filename, info.compress_type = name, zipfile.ZIP_DEFLATED
            archive.writestr(info, content)
    return buffer.getvalue()


def tarred(files: Files, form: int, kinds: list[bytes]) -> bytes:
    """Tar files as entries of the given kinds; the kinds beyond the last one given are regular files."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w", format=form, errors="replace") as archive:
        for number, (name, content) in enumerate(files.items()):
            info = tarfile.TarInfo(name)
            info.size, info.linkname = len(content), "../target"
            info.type = kinds[number] if number < len(kinds) else tarfile.REGTYPE
            archive.addfile(info, io.BytesIO(content))
    return buffer.getvalue()


def with_checksums(data: bytes) -> bytes:
    """Give every block that looks like the header of a tar the right checksum."""
    blocks = bytearray(data)
    for start in range(0, len(data) - 511, 512):
        block = blocks[start : start + 512]
        if block[257:262] == b"ustar":
            total = sum(block) - sum(block[148:156]) + 8 * ord(" ")
            blocks[start + 148 : start + 156] = b"%06o\0 " % total
    return bytes(blocks)


@st.composite
def archives(draw: st.DrawFn) -> bytes:
    """An archive of either kind with doubtful names and kinds of entries, and perhaps damaged."""
    files = draw(st.dictionaries(paths(parts), contents, max_size=5))
    files = {name: content for name, content in files.items() if len(name.encode(errors="replace")) < 60_000}
    if draw(st.booleans()):
        files = {name.encode(errors="replace").decode(): content for name, content in files.items()}
        return draw(damaged(zipped(files), SIGNIFICANT))
    form = draw(st.sampled_from(FORMS))
    if form == tarfile.USTAR_FORMAT:
        files = {name[:40]: content for name, content in files.items()}
    kinds = draw(st.lists(st.sampled_from(KINDS), max_size=5))
    data = with_checksums(draw(damaged(tarred(files, form, kinds), SIGNIFICANT)))
    data = COMPRESS[draw(st.sampled_from(list(COMPRESS)))](data)
    return draw(damaged(data, SIGNIFICANT)) if draw(st.booleans()) else data


def tree(folder: Path) -> Files:
    return {file.relative_to(folder).as_posix(): file.read_bytes() for file in folder.rglob("*") if file.is_file()}


def refusal(action: Callable[[], object]) -> str:
    """What an action says if it refuses the archive; "" if it does not."""
    try:
        action()
    except UserError as error:
        return str(error)
    return ""


@fuzz(200)
@given(st.dictionaries(paths(safe_parts), st.binary(max_size=2000), max_size=5), st.sampled_from(["zip", *COMPRESS]),
       st.sampled_from(FORMS))  # fmt: skip
def test_a_harmless_archive_is_unpacked_to_what_was_packed(files: Files, kind: str, form: int) -> None:
    folded = [name.casefold() for name in files]
    inside = any(one.startswith(f"{other}/") for one in folded for other in folded)
    if inside or len(set(folded)) < len(files):
        return
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "archive")
        path.write_bytes(zipped(files) if kind == "zip" else COMPRESS[kind](tarred(files, form, [])))
        if files or kind:  # a tar without entries is a file of zeros
            unpack(path, Path(folder, "out"))
            assert tree(Path(folder, "out")) == files


@fuzz(350)
@given(archives())
def test_any_other_archive_is_unpacked_within_its_bounds_or_refused_in_words(data: bytes) -> None:
    with tempfile.TemporaryDirectory() as folder:
        path, out = Path(folder, "archive"), Path(folder, "out")
        path.write_bytes(data)
        said = refusal(lambda: unpack(path, out))
        assert bool(refusal(lambda: check_archive(path))) == bool(said)
        refusal(lambda: is_archive(path))
        assert sorted(os.listdir(folder)) == (["archive"] if said else ["archive", "out"])
        if said:
            assert len(said.splitlines()) == 2
            assert "get it again" in said or "unpack it yourself" in said
            assert not {"Error", "BadZipFile", "Traceback"} & set(said.replace("(", " ").split())
        else:
            assert sum(map(len, tree(out).values())) <= MAX_RATIO * len(data)
            assert not any(file.is_symlink() for file in out.rglob("*"))


@fuzz(350)
@given(st.one_of(st.binary(max_size=600), st.tuples(
    st.sampled_from([b"PK\3\4", b"PK\5\6", b"\x1f\x8b\x08", b"BZh9", b"\xfd7zXZ\0", b"x" * 257 + b"ustar\0"]),
    st.binary(max_size=600)).map(b"".join)))  # fmt: skip
def test_a_file_that_only_starts_like_an_archive_is_refused_in_words(data: bytes) -> None:
    with tempfile.TemporaryDirectory() as folder:
        Path(folder, "archive").write_bytes(with_checksums(data))
        said = refusal(lambda: unpack(Path(folder, "archive"), Path(folder, "out")))
        assert not said or len(said.splitlines()) == 2
