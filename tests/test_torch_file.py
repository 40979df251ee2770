"""Each file that holds no usable tensors is refused with its right reason, and none makes the program wait."""

from __future__ import annotations

import os
import pickle
import tarfile
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from fuzzing import bounded
from torch import nn

from import_weights import import_weights
from training.checkpoint import CheckpointError
from training.torch_file import BoundedReader, UnusableFileError, fitting_tensors, plain_tensors
from utils import UserError
from weights.load import load_weights


def write_script(path: Path) -> None:
    torch.jit.trace(nn.Conv2d(3, 1, 1), torch.zeros(1, 3, 4, 4)).save(path)  # type: ignore[no-untyped-call]


def write_tar(path: Path) -> None:
    with tarfile.open(path, "w") as archive:
        archive.add(__file__, "gen_asian.pth")


def write_zip(path: Path) -> None:
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("checkpoints/gen_asian.pth.tar", b"x")


def write_cut(path: Path) -> None:
    torch.save({"a": torch.ones(5000)}, path)
    path.write_bytes(path.read_bytes()[:-3000])


def write_cut_safetensors(path: Path) -> None:
    path.write_bytes((500).to_bytes(8, "little") + b'{"a":{"dtype":"F32","shape":[9')


def write_foreign_safetensors(path: Path) -> None:
    header = b'{"a":{"dtype":"F32","shape":[1],"data_offsets":[0,4]}}'
    path.write_bytes(len(header).to_bytes(8, "little") + header + bytes(4))


KINDS: dict[str, tuple[Callable[[Path], object], str]] = {
    "pipe": (os.mkfifo, "is not a regular file"),
    "folder": (os.mkdir, "is a folder, not a file|no checkpoint in"),
    "device": (lambda path: path.symlink_to("/dev/zero"), "is not a regular file"),
    "empty": (Path.touch, "is empty"),
    "page": (lambda path: path.write_text("\n<!DOCTYPE html><html>Sign in</html>"), r"is a web page \(HTML\)"),
    "pointer": (lambda path: path.write_text("version https://git-lfs.github.com/spec/v1\noid 0"), "git lfs pull"),
    "answer": (lambda path: path.write_text('{"message": "Not Found"}'), "is a text file that starts with '{"),
    "gzip": (lambda path: path.write_bytes(b"\x1f\x8b\x08\0rest"), "is compressed with gzip"),
    "tar": (write_tar, "is a tar archive"),
    "zip": (write_zip, "is a zip archive that torch.save did not write"),
    "script": (write_script, "is a TorchScript file"),
    "cut": (write_cut, "is damaged: the end of its zip archive is missing"),
    "pickle": (lambda path: path.write_bytes(pickle.dumps([1, 2], 2)), "is damaged or not a PyTorch file"),
    "noise": (lambda path: path.write_bytes(bytes(range(200, 256)) * 9), "neither a PyTorch nor a .safetensors file"),
    "cut safetensors": (write_cut_safetensors, "is damaged, or does not|is a .safetensors file"),
    "foreign safetensors": (write_foreign_safetensors, "metadata has no configuration|is a .safetensors file"),
}  # fmt: skip


@pytest.mark.filterwarnings("ignore:.*torch.jit")
@pytest.mark.parametrize("name", ["w.safetensors", "gen_asian.pth.tar"])
@pytest.mark.parametrize("kind", KINDS)
def test_a_file_of_another_kind_is_refused_with_its_reason(tmp_path: Path, name: str, kind: str) -> None:
    write, reason = KINDS[kind]
    write(tmp_path / name)
    with pytest.raises(CheckpointError, match=reason) as error:
        load_weights(tmp_path / name)
    assert len(str(error.value).splitlines()) <= 5
    if kind != "folder":
        with pytest.raises(UserError, match=reason):
            import_weights(tmp_path / name, tmp_path / "out.safetensors")


def test_whatever_the_decoder_raises_is_a_reason(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    torch.save({}, tmp_path / "x.pt")
    for error in (RecursionError("deep"), MemoryError(), AssertionError(), BufferError("odd"), SystemError("bad")):

        def fail(*_: object, error: Exception = error, **__: object) -> None:
            raise error

        monkeypatch.setattr(torch, "load", fail)
        with pytest.raises(CheckpointError, match=r"x\.pt is damaged or not a PyTorch file"):
            load_weights(tmp_path / "x.pt")


def test_a_string_that_claims_to_be_long_takes_no_memory(tmp_path: Path) -> None:
    (tmp_path / "old.pth").write_bytes(b"\x80\x02X\xff\xff\xff\xff" + b"short")  # a string of 4 GiB
    with bounded(), pytest.raises(UserError, match=r"old\.pth is damaged or not a PyTorch file: "):
        load_weights(tmp_path / "old.pth")
    with BoundedReader(tmp_path / "old.pth") as file:
        assert file.read(1 << 40) == (tmp_path / "old.pth").read_bytes()


def test_a_wrapper_is_no_part_of_a_name_but_a_layer_called_module_is() -> None:
    one = torch.ones(1)
    assert plain_tensors({"module.a": one, "b": one.clone()}).keys() == {"module.a", "b"}
    assert plain_tensors({"module._orig_mod.a._orig_mod.b": one}).keys() == {"a.b"}


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"weight": torch.ones(2, 2)}, r"weight has shape \(2, 2\), expected \(1, 2\)"),
        ({"bias": torch.ones(1, dtype=torch.int8)}, "bias is stored as torch.int8"),
        ({"other": torch.ones(1)}, "other is unknown"),
        ({"weight": torch.ones(1).expand(1, 2)}, "more numbers than it has room for"),
        ({"weight": torch.ones(1, 2, device="meta")}, "does not hold a plain tensor"),
        ({"weight": "x"}, "is not a tensor"),
    ],
)
def test_tensors_that_do_not_fit_a_network_are_refused(change: dict[str, object], reason: str) -> None:
    network = nn.Linear(2, 1, device="meta")
    good = {"weight": torch.ones(1, 2, dtype=torch.float16), "bias": torch.ones(1)}
    assert {tensor.dtype for tensor in fitting_tensors(network, good, name="gen_ab").values()} == {torch.float32}
    with pytest.raises(UnusableFileError, match=reason):
        fitting_tensors(network, good | change, name="gen_ab")
    with pytest.raises(UnusableFileError, match="bias is missing"):
        fitting_tensors(network, {"weight": torch.ones(1, 2)}, name="gen_ab")
