"""Read PyTorch files without running code in them, and say what a file is that holds no usable tensors."""

from __future__ import annotations

import codecs
import io
import os
import re
import stat
import warnings
import zipfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn

from console import printable, reason_of

Kind = Literal["zip", "pickle", "safetensors"]
HEAD_BYTES = 1024  # A file's kind is recognised by its first bytes.
MAX_HEADER_BYTES = 100_000_000  # A .safetensors header is at most this long.
UNPACK = "unpack it, and give the file inside"
SIGNATURES: tuple[tuple[int, bytes, str], ...] = (  # offset, bytes at it, and what a file with them is
    (0, b"version https://git-lfs", "is a Git LFS pointer, not the file itself; fetch that with: git lfs pull"),
    (0, b"\x1f\x8b", f"is compressed with gzip: {UNPACK}"),
    (0, b"BZh", f"is compressed with bzip2: {UNPACK}"),
    (0, b"\xfd7zXZ", f"is compressed with xz: {UNPACK}"),
    (0, b"7z\xbc\xaf", f"is a 7z archive: {UNPACK}"),
    (0, b"Rar!", f"is a RAR archive: {UNPACK}"),
    (257, b"ustar", f"is a tar archive: {UNPACK}"),
    (0, b"\x89HDF", "is an HDF5 file, as Keras writes them, not a PyTorch file"),
    (0, b"\x93NUMPY", "is a NumPy array, not a PyTorch file"),
    (0, b"GGUF", "is a GGUF file, not a PyTorch file"),
    (0, b"\x89PNG", "is an image"),
    (0, b"\xff\xd8\xff", "is an image"),
    (0, b"%PDF", "is a PDF document"),
)
# torch.compile and others put these parts into the names of weights, at any depth.
WRAPPERS = re.compile(r"(?:^|(?<=\.))(?:_orig_mod|_fsdp_wrapped_module|_checkpoint_wrapped_module)\.")


class UnusableFileError(ValueError):
    """A file that cannot be used. The message is the rest of a sentence that starts with the file's name."""


def kind_of(path: Path) -> Kind:
    """The kind of a file that may hold tensors; UnusableFileError, which says what it is instead, for any other."""
    try:
        info = path.stat()
        if stat.S_ISDIR(info.st_mode):
            raise UnusableFileError("is a folder, not a file")
        if not stat.S_ISREG(info.st_mode):  # reading from a pipe would block for ever
            raise UnusableFileError("is not a regular file")
        with path.open("rb") as file:
            head = file.read(HEAD_BYTES)
    except OSError as error:
        raise UnusableFileError(f"cannot be read: {error.strerror}") from error
    if head[8:9] == b"{" and int.from_bytes(head[:8], "little") <= MAX_HEADER_BYTES:  # its first byte may be any
        return "safetensors"
    if head.startswith(b"PK\3\4"):
        return "zip"
    if head.startswith(b"\x80"):
        return "pickle"
    raise UnusableFileError(_what_else(head))


def _what_else(head: bytes) -> str:
    """What a file is that starts with these bytes, and neither as a PyTorch nor as a .safetensors file."""
    if not head:
        return "is empty"
    for offset, signature, what in SIGNATURES:
        if head[offset:].startswith(signature):
            return what
    if head.removeprefix(codecs.BOM_UTF8).lstrip().startswith(b"<"):
        return "is a web page (HTML), as a download without permission gives; download the file again"
    try:
        text = codecs.getincrementaldecoder("utf-8-sig")().decode(head).strip()  # it may end inside a character
    except UnicodeDecodeError:
        text = "\0"
    if all(character.isprintable() or character.isspace() for character in text):
        return f"is a text file that starts with {text[:40]!r}"
    return "is damaged, or neither a PyTorch nor a .safetensors file"


class BoundedReader(io.BufferedReader):
    """A binary file that is read in pieces no longer than itself, however long the next one claims to be.

    Python reserves the memory for a piece before it reads it, and a pickle says how long its strings are.
    """

    def __init__(self, path: Path) -> None:
        super().__init__(io.FileIO(path))
        self.num_bytes = os.path.getsize(path)

    def read(self, size: int | None = -1, /) -> bytes:
        return super().read(size if size is None else min(size, self.num_bytes))


def read_torch_file(path: Path, stand_ins: Sequence[Any] = ()) -> Any:
    """Read what torch.save wrote. Nothing in the file is executed.

    Args:
        path: the file.
        stand_ins: classes that the file may refer to beside tensors and plain values, as for
            `torch.serialization.safe_globals`.

    Returns:
        What was saved, with tensors on the CPU.

    Raises:
        UnusableFileError: the file is missing, damaged, of another kind, or refers to other classes.
    """
    kind = kind_of(path)
    if kind == "safetensors":
        raise UnusableFileError("is a .safetensors file, not a PyTorch file")
    try:
        if kind == "zip":
            _check_archive(path)
        # torch.load would read a path that ends in .safetensors as such, whatever is in the file.
        with torch.serialization.safe_globals(list(stand_ins)), warnings.catch_warnings(), BoundedReader(path) as file:
            warnings.simplefilter("ignore")  # of odd pickles
            return torch.load(file, map_location="cpu", weights_only=True)
    except UnusableFileError:
        raise
    except Exception as error:  # a hostile or damaged file can make the unpickler raise anything
        raise UnusableFileError(_why_not_read(error)) from error


def _why_not_read(error: Exception) -> str:
    """Why torch.load could not read a file, without torch's advice to run the code in it."""
    unknown = re.search(r"GLOBAL (\S+)", str(error))
    if unknown:
        return (
            f"refers to {unknown[1][:80]!a}, which is not part of a CycleGAN; nothing was run\n"
            "if you trust the file, open it in its own project and save the generators' state_dict()"
        )
    reason = reason_of(error)
    if "weights_only" in reason:
        return "is damaged, or holds more than tensors and plain values"
    return f"is damaged or not a PyTorch file: {reason}"


def _check_archive(path: Path) -> None:
    """UnusableFileError unless a zip archive is a whole one of torch.save and unpacks to no more than the file has."""
    try:
        archive = zipfile.ZipFile(path)
    except zipfile.BadZipFile:
        raise UnusableFileError("is damaged: the end of its zip archive is missing or unreadable") from None
    with archive:
        names = {entry.filename.partition("/")[2] for entry in archive.infolist()}
        if "constants.pkl" in names or any(name.startswith("code/") for name in names):
            raise UnusableFileError(
                "is a TorchScript file, which holds a program beside the weights\n"
                "save the state_dict() of the network that it was made from, and give that file"
            )
        if "data.pkl" not in names:
            raise UnusableFileError(f"is a zip archive that torch.save did not write: {UNPACK}")
        if sum(entry.file_size for entry in archive.infolist()) > os.path.getsize(path):
            raise UnusableFileError("is damaged: its archive claims to unpack to more bytes than the file has")
        damaged = archive.testzip()  # torch.load does not verify the checksums
    if damaged:
        raise UnusableFileError(f"is damaged: wrong checksum in {printable(damaged)}")


# --- State dicts


def plain_tensors(entries: object) -> dict[str, Tensor]:
    """The tensors of a state dict from a file, by the names that they have in a bare network.

    Returns:
        Tensors of any shape and dtype on the CPU, without what torch.compile, DataParallel and others add to names.

    Raises:
        UnusableFileError: this is no state dict, or its tensors are not plain, or larger than what was stored.
    """
    if not isinstance(entries, dict) or not entries:
        raise UnusableFileError(f"does not hold a network: found {type(entries).__name__}, expected tensors by name")
    for key, tensor in entries.items():
        if not isinstance(key, str) or type(tensor) not in (Tensor, nn.Parameter):
            raise UnusableFileError(f"does not hold a network: its entry {ascii(key)[:80]} is not a tensor")
        if tensor.layout != torch.strided or tensor.device.type != "cpu":
            raise UnusableFileError(
                f"does not hold a plain tensor as {ascii(key)[:80]}: found {tensor.layout} on {tensor.device}"
            )
    storages = {tensor.untyped_storage().data_ptr(): tensor.untyped_storage().nbytes() for tensor in entries.values()}
    if sum(tensor.numel() * tensor.element_size() for tensor in entries.values()) > sum(storages.values()):
        raise UnusableFileError("claims to hold more numbers than it has room for: it is damaged or malicious")
    plain = {WRAPPERS.sub("", key): tensor for key, tensor in entries.items()}
    while all(key.startswith("module.") for key in plain):  # DataParallel puts this before every name
        plain = {WRAPPERS.sub("", key.removeprefix("module.")): tensor for key, tensor in plain.items()}
    if len(plain) < len(entries):
        raise UnusableFileError("names a layer twice, once with the prefix of a wrapped network")
    return plain


def fitting_tensors(network: nn.Module, entries: object, *, name: str) -> dict[str, Tensor]:
    """The tensors of a state dict from a file, once it is known that they fit a network.

    Args:
        network: the network, whose weights may be on the meta device, where they take no memory.
        entries: the state dict.
        name: what the file calls it.

    Returns:
        Contiguous tensors on the CPU with the names, shapes and dtypes of the network's.

    Raises:
        UnusableFileError: names, shapes or types differ.
    """
    tensors, expected = plain_tensors(entries), network.state_dict()
    misfit = f"holds a {name} that does not fit its configuration"
    for key in [*expected, *tensors]:
        if key not in tensors or key not in expected:
            problem = "is missing" if key in expected else "is unknown"
            raise UnusableFileError(f"{misfit}: {printable(key[:80])} {problem}")
        found, wanted = tensors[key], expected[key]
        if found.shape != wanted.shape:
            shapes = f"{tuple(found.shape)}, expected {tuple(wanted.shape)}"
            raise UnusableFileError(f"{misfit}: {key} has shape {shapes}")
        if not found.is_floating_point():
            raise UnusableFileError(f"{misfit}: {key} is stored as {found.dtype}, expected floating-point numbers")
    return {key: tensors[key].detach().to(wanted.dtype).contiguous() for key, wanted in expected.items()}


def check_finite(tensors: dict[str, Tensor], *, name: str) -> None:
    """UnusableFileError, which calls them `name`, unless all numbers in these tensors are finite."""
    if not all(torch.isfinite(tensor).all() for tensor in tensors.values()):
        raise UnusableFileError(f"holds numbers in {name} that are not finite")
