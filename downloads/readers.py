"""Read untrusted zip and tar archives entry by entry, and bound every header before it is read."""

from __future__ import annotations

import bz2
import gzip
import io
import lzma
import os
import stat
import tarfile
import zipfile
import zlib
from collections.abc import Iterator
from copy import copy
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import IO

from utils import UserError

PIECE = 1 << 20  # Files are read in pieces of this many bytes.
BLOCK = 512  # A tar archive consists of blocks of this many bytes.
MAX_ENTRIES = 300_000  # An archive may have this many entries.
MAX_DIRECTORY = 1 << 26  # The directory of a zip archive may have this many bytes,
MAX_HEADER = 1 << 16  # a long name or a set of attributes in a tar archive this many,
MAX_HEADERS = 1 << 29  # and all headers of a tar archive together this many.
MAX_MEMORY = 1 << 29  # Unpacking xz or LZMA may take this many bytes of memory.
COMPRESSIONS = (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED, zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA)  # of zip entries
LZMA_PROPERTIES = 5  # Packed with LZMA, a zip entry has this many bytes of properties,
HAS_END = 0x02  # and this flag if a mark ends it, for which a .lzma file states
UNKNOWN_SIZE = b"\xff" * 8  # this size.
COMPRESSED = (b"\x1f\x8b", b"BZh", b"\xfd7zXZ\0")  # gzip, bzip2 and xz files start with these bytes,
ZIPPED = (b"PK\3\4", b"PK\5\6", b"PK\7\x08")  # and zip archives with these.
ENCRYPTED = 0x2041  # Each of these flags of a zip entry stands for a kind of encryption.
REGULAR = (tarfile.REGTYPE, tarfile.AREGTYPE, tarfile.CONTTYPE)
PAX = (tarfile.XHDTYPE, tarfile.SOLARIS_XHDTYPE, tarfile.XGLTYPE)
SPARSE = b"GNU.sparse."  # The attributes of sparse files start with these bytes.
EXTENSIONS = (tarfile.GNUTYPE_LONGNAME, tarfile.GNUTYPE_LONGLINK, *PAX)


@dataclass(frozen=True)
class Entry:
    """One file or folder in an archive, as its header describes it.

    Attributes:
        name: the path inside the archive.
        size: the unpacked size, in bytes.
        is_folder: whether it is a folder.
        problem: why it must not be unpacked; "" if its header is harmless.
        pieces: the content. It must be read before the next entry; what is left of it then is skipped.
    """

    name: str
    size: int
    is_folder: bool
    problem: str
    pieces: Iterator[bytes]


def kind_of(path: Path) -> str:
    """What a file is by its first bytes: "zip", "tar" (compressed or not), or "" if it is neither."""
    with open(path, "rb") as file:
        start = file.read(BLOCK)
    if start.startswith(ZIPPED):
        return "zip"
    if start.startswith(COMPRESSED):
        return "tar"
    try:
        _header(start)
        return "tar"
    except (tarfile.HeaderError, ValueError):
        return ""


def zip_entries(path: Path) -> Iterator[Entry]:
    """Yield the entries of a zip archive. A damaged one raises any exception, now or while an entry is read."""
    with _ZipFile(path) as file, zipfile.ZipFile(file) as archive:
        _check_count(file, archive)
        for info in archive.infolist():
            kind = stat.S_IFMT(info.external_attr >> 16)
            problem = "is encrypted" if info.flag_bits & ENCRYPTED else ""
            if not problem and info.compress_type not in COMPRESSIONS:
                problem = "is compressed in an unusual way"
            if kind not in (0, stat.S_IFREG, stat.S_IFDIR):
                problem = "is a link or a device"
            is_folder = info.orig_filename.endswith("/")
            yield Entry(info.orig_filename, info.file_size, is_folder, problem, _zip_content(archive, info))


class _ZipFile(io.FileIO):
    """The bytes of a zip archive, for zipfile, which reads the whole directory at once, whatever its size."""

    def read(self, size: int | None = -1, /) -> bytes:
        """Read as usual; UserError if that would be a directory too large to be true."""
        wanted = size if size is not None and size >= 0 else os.fstat(self.fileno()).st_size - self.tell()
        if wanted > MAX_DIRECTORY:
            raise UserError(f"its list of files has more than {MAX_DIRECTORY} bytes")
        data = super().read(wanted) or b""
        if data.count(b"PK\1\2") > MAX_ENTRIES:  # Every entry of the directory starts with these bytes.
            raise UserError(f"it has more than {MAX_ENTRIES} entries")
        return data


def _check_count(file: io.FileIO, archive: zipfile.ZipFile) -> None:
    """Raise ValueError unless the directory has the number of entries that the archive's end states."""
    file.seek(-22 - len(archive.comment), io.SEEK_END)
    end = file.read(12)
    stated = int.from_bytes(end[10:], "little")
    found = len(archive.infolist())
    # Archives with more entries than 16 bits can count state the highest number, or the last 16 bits of their own.
    if end.startswith(b"PK\5\6") and stated not in (0xFFFF, found & 0xFFFF):
        raise ValueError(f"{found} entries, expected {stated}")


def _zip_content(archive: zipfile.ZipFile, info: zipfile.ZipInfo) -> Iterator[bytes]:
    """Yield the content of a file in a zip archive, and check its size and its CRC at the end."""
    size = crc = 0
    for piece in _unzipped(archive, info):
        size += len(piece)
        crc = zlib.crc32(piece, crc)
        if size > info.file_size:
            break
        yield piece
    if size != info.file_size or crc != info.CRC:
        raise EOFError


def _unzipped(archive: zipfile.ZipFile, info: zipfile.ZipInfo) -> Iterator[bytes]:
    """Yield the unpacked bytes of a file in a zip archive. zipfile unpacks bzip2 and LZMA without any limit."""
    if info.compress_type not in (zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA):
        with archive.open(info) as source:
            yield from iter(lambda: source.read(PIECE), b"")
        return
    packed = copy(info)
    packed.compress_type, packed.file_size = zipfile.ZIP_STORED, info.compress_size
    packed.CRC = None  # type: ignore[assignment]  # The CRC is that of the unpacked bytes.
    with archive.open(packed) as source:
        start = b""
        decoder: bz2.BZ2Decompressor | lzma.LZMADecompressor = bz2.BZ2Decompressor()
        if info.compress_type == zipfile.ZIP_LZMA:
            # Two bytes of version and two of a size come before what a .lzma file starts with, too; its size follows.
            properties = source.read(4 + LZMA_PROPERTIES)[4:]
            size = UNKNOWN_SIZE if info.flag_bits & HAS_END else info.file_size.to_bytes(8, "little")
            start, decoder = properties + size, lzma.LZMADecompressor(lzma.FORMAT_ALONE, memlimit=MAX_MEMORY)
        yield from _decompressed(decoder, start, source)


def _decompressed(
    decoder: bz2.BZ2Decompressor | lzma.LZMADecompressor, data: bytes, source: IO[bytes]
) -> Iterator[bytes]:
    """Yield what a decoder makes of some bytes and those that follow in a file; EOFError if these end too early."""
    while not decoder.eof:
        try:
            piece = decoder.decompress(data, PIECE)
        except lzma.LZMAError as error:
            raise MemoryError if "limit" in str(error) else error from None
        if piece:
            yield piece
        data = source.read(PIECE) if decoder.needs_input and not decoder.eof else b""
        if decoder.needs_input and not decoder.eof and not data:
            raise EOFError


# --- Tar archives. tarfile reads headers of any size, and takes a damaged header for the end of the archive.


def tar_entries(path: Path) -> Iterator[Entry]:
    """Yield the entries of a tar archive. A damaged one raises any exception, now or while an entry is read."""
    with open(path, "rb") as file:
        stream = _TarStream(_unpacked(file))
        common: dict[str, str] = {}  # attributes of all entries,
        own: dict[str, str] = {}  # and of the next one
        while any(block := stream.header(BLOCK)):
            header = _header(block)
            if header.type in EXTENSIONS:
                (common if header.type == tarfile.XGLTYPE else own).update(_attributes(stream, header))
                continue
            entry = _tar_entry(stream, header, {**common, **own})
            own = {}
            if not entry.is_folder or PurePosixPath(entry.name).parts:  # The entry "./" is the folder that was packed.
                yield entry
            for _ in entry.pieces:
                pass
            stream.header(-entry.size % BLOCK)
        stream.drain()


class _TarStream:
    """The bytes of an unpacked tar archive, which can be read once and in order."""

    def __init__(self, pieces: Iterator[bytes]) -> None:
        self._pieces = pieces
        self._piece = b""
        self._position = 0  # in the piece
        self._num_header_bytes = 0

    def some(self, most: int) -> bytes:
        """Between one and `most` bytes; none at the end of the stream."""
        if self._position == len(self._piece):
            self._piece = next(self._pieces, b"")
            self._position = 0
        start = self._position
        self._position = min(start + most, len(self._piece))
        return self._piece[start : self._position]

    def content(self, size: int) -> Iterator[bytes]:
        """Yield the next `size` bytes; EOFError if the stream ends before."""
        while size:
            piece = self.some(size)
            if not piece:
                raise EOFError
            size -= len(piece)
            yield piece

    def header(self, size: int) -> bytes:
        """The next `size` bytes, which do not belong to a file."""
        self._count(size)
        return b"".join(self.content(size))

    def drain(self) -> None:
        """Read what follows the last entry, because the decoders check their checksums only at the end."""
        while piece := self.some(PIECE):
            self._count(len(piece))

    def _count(self, size: int) -> None:
        self._num_header_bytes += size
        if self._num_header_bytes > MAX_HEADERS:
            raise UserError(f"it has more than {MAX_HEADERS} bytes beside its files")


def _header(block: bytes) -> tarfile.TarInfo:
    """Parse the header of a tar entry; HeaderError or ValueError if it is not one."""
    header = tarfile.TarInfo.frombuf(block, "utf-8", "surrogateescape")
    if header.size < 0:
        raise ValueError(f"a size of {header.size} bytes")
    return header


def _attributes(stream: _TarStream, header: tarfile.TarInfo) -> dict[str, str]:
    """Read the long name or the set of attributes that follows a header."""
    if header.size > MAX_HEADER:
        raise UserError(f"a name or an attribute in it has {header.size} bytes (at most {MAX_HEADER})")
    data = stream.header(header.size)
    stream.header(-header.size % BLOCK)
    if header.type in PAX:
        return dict(_pax_records(data))
    name = data.partition(b"\0")[0].decode("utf-8", "surrogateescape")
    return {"path": name} if header.type == tarfile.GNUTYPE_LONGNAME else {}


def _pax_records(data: bytes) -> Iterator[tuple[str, str]]:
    """Parse records like "17 path=some.png\\n", whose number is the record's length (POSIX.1-2001). Only those that
    matter are yielded; all that describe a sparse file have the same key.
    """
    start = 0
    while data[start : start + 1].strip(b"\0"):
        length = data[start : start + 20].partition(b" ")[0]
        end = start + int(length) if length.isdigit() else 0
        key, equals, value = data[start + len(length) + 1 : end].partition(b"=")
        if not start < end <= len(data) or not equals or not value.endswith(b"\n"):
            raise ValueError("a damaged attribute")
        if key in (b"path", b"size") or key.startswith(SPARSE):  # others could fill the memory
            yield key.decode("utf-8", "surrogateescape")[: len(SPARSE)], value[:-1].decode("utf-8", "surrogateescape")
        start = end


def _tar_entry(stream: _TarStream, header: tarfile.TarInfo, attributes: dict[str, str]) -> Entry:
    """Describe a tar entry by its header, and by the attributes that override it."""
    problem = "" if header.type in REGULAR or header.isdir() else "is a link or a device"
    if header.type == tarfile.GNUTYPE_SPARSE or SPARSE.decode() in attributes:
        problem = "is a sparse file"
    size = int(attributes.get("size", header.size)) if header.type in REGULAR else 0
    if size < 0:
        raise ValueError(f"a size of {size} bytes")
    return Entry(attributes.get("path", header.name), size, header.isdir(), problem, stream.content(size))


def _unpacked(file: IO[bytes]) -> Iterator[bytes]:
    """Yield the bytes of a file, unpacked if it is compressed."""
    start = file.read(6)
    file.seek(0)
    source: IO[bytes] | gzip.GzipFile | bz2.BZ2File = file
    if start.startswith(COMPRESSED[2]):
        yield from _unpacked_xz(file)
        return
    if start.startswith(COMPRESSED[0]):
        source = gzip.GzipFile(fileobj=file)
    elif start.startswith(COMPRESSED[1]):
        source = bz2.BZ2File(file)
    while piece := source.read(PIECE):
        yield piece


def _unpacked_xz(file: IO[bytes]) -> Iterator[bytes]:
    """Yield the unpacked bytes of an xz file; lzma.open would allocate as much memory as the file asks for."""
    data = file.read(PIECE)
    while data:
        decoder = lzma.LZMADecompressor(lzma.FORMAT_XZ, memlimit=MAX_MEMORY)
        yield from _decompressed(decoder, data, file)
        data = decoder.unused_data.lstrip(b"\0") or file.read(PIECE).lstrip(b"\0")  # zeros may follow each stream
