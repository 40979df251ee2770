"""Programs meet the user with messages and not with tracebacks: streams, encodings, signals, and a full memory."""

from __future__ import annotations

import errno
import io
import os
import signal
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import pytest
import torch
from conftest import ROOT, make_folders
from tqdm import tqdm

import check_data
from console import command, count, is_out_of_memory, memory_advice, reason_of
from training.run import stop_requests
from utils import UserError, atomic_write


@command
def say(argv: Sequence[str] | None = None) -> int:
    """A program that prints its arguments."""
    print(*argv or ())
    return 0


@pytest.mark.parametrize("script", ["train.py", "translate.py"])
def test_a_reader_that_leaves_ends_a_program_without_a_word(script: str) -> None:
    reader, writer = os.pipe()
    os.close(reader)
    done = subprocess.run([sys.executable, ROOT / script, "--help"], stdout=writer, stderr=subprocess.PIPE, timeout=120)
    os.close(writer)
    assert done.returncode in (0, 128 + signal.SIGPIPE)  # argparse forgives it.
    assert done.stderr == b""


def test_a_full_disk_behind_the_output_is_an_error_and_not_a_traceback(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    with open("/dev/full", "w") as full:
        monkeypatch.setattr("sys.stdout", full)
        with pytest.raises(SystemExit) as stop:
            say(["text"])
    assert stop.value.code == 1
    assert capsys.readouterr().err.startswith("error: the output cannot be written: ")


def test_a_closed_output_does_not_stop_a_program(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.stdout", None)
    monkeypatch.setattr("sys.stderr", None)

    @command
    def main(argv: Sequence[str] | None = None) -> int:
        for _ in tqdm(range(3)):
            tqdm.write("text")
        sys.stdout.flush()
        return 7

    assert main() == 7


def test_a_pipe_that_breaks_elsewhere_is_an_error_with_a_message(capsys: pytest.CaptureFixture[str]) -> None:
    @command
    def main(argv: Sequence[str] | None = None) -> int:
        raise BrokenPipeError(errno.EPIPE, "a worker has gone")

    assert main() == 1
    assert "a worker has gone" in capsys.readouterr().err


def test_names_that_the_terminal_cannot_show_are_escaped(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    data = make_folders(tmp_path / "data", 1, 1)
    (data / "train" / "asian").rename(data / "train" / "アジア")
    (data / "train" / "アジア" / os.fsdecode(b"caf\xe9 \xe2\x80\xa8.png")).write_bytes(b"")
    terminal = io.TextIOWrapper(io.BytesIO(), encoding="ascii")
    monkeypatch.setattr("sys.stdout", terminal)
    assert check_data.main([str(data), "--sheet", str(tmp_path / "sheet.png")]) == 0
    text = terminal.buffer.getvalue().decode("ascii")  # type: ignore[attr-defined]
    assert "train/\\u30a2\\u30b8\\u30a2" in text
    assert "caf\\udce9 \\u2028.png: empty file" in text


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP, signal.SIGINT])
def test_a_signal_ends_a_program_and_removes_its_unfinished_file(number: signal.Signals, tmp_path: Path) -> None:
    @command
    def main(argv: Sequence[str] | None = None) -> int:
        with atomic_write(tmp_path / "result") as temporary:
            temporary.write_text("half")
            signal.raise_signal(number)
        return 0

    usual = signal.default_int_handler if number == signal.SIGINT else signal.SIG_DFL
    before = signal.signal(number, usual)  # A shell that started the tests in the background may have it ignored.
    try:
        status: object = main()
    except SystemExit as stop:
        status = stop.code
    finally:
        after = signal.signal(number, before)
    assert status == 128 + number
    assert not list(tmp_path.iterdir())
    assert after == usual


def test_a_signal_that_is_ignored_from_the_start_stays_ignored() -> None:
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)  # as nohup does
    try:

        @command
        def main(argv: Sequence[str] | None = None) -> int:
            signal.raise_signal(signal.SIGHUP)
            return 7

        assert main() == 7
    finally:
        signal.signal(signal.SIGHUP, before)


def test_an_interrupt_unwinds_a_program_that_it_would_have_ended_at_once() -> None:
    usual = signal.signal(signal.SIGINT, signal.SIG_DFL)  # as startup.py leaves it

    @command
    def main(argv: Sequence[str] | None = None) -> int:
        signal.raise_signal(signal.SIGINT)
        return 0

    try:
        assert main([]) == 128 + signal.SIGINT
        assert signal.getsignal(signal.SIGINT) == signal.SIG_DFL  # also while Python ends
    finally:
        signal.signal(signal.SIGINT, usual)


def test_a_second_signal_ends_training_and_removes_its_unfinished_file(tmp_path: Path) -> None:
    def sample() -> None:
        with stop_requests() as requests, atomic_write(tmp_path / "samples" / "step.png") as temporary:
            temporary.write_text("half")
            signal.raise_signal(signal.SIGTERM)
            assert requests == [signal.SIGTERM]
            signal.raise_signal(signal.SIGTERM)

    with pytest.raises(SystemExit) as stop:
        sample()
    assert stop.value.code == 128 + signal.SIGTERM
    assert not list((tmp_path / "samples").iterdir())


def test_a_device_or_pipe_is_never_replaced_by_a_file(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "link").symlink_to("/dev/null")
    for name in ("pipe", "link"):
        with (
            pytest.raises(UserError, match="is a device, pipe or socket: name a file to write"),
            atomic_write(tmp_path / name),
        ):
            pytest.fail("there is nothing to write")
    with pytest.raises(UserError, match="is a folder"), atomic_write(tmp_path):
        pytest.fail("there is nothing to write")
    assert (tmp_path / "pipe").is_fifo()
    assert Path("/dev/null").is_char_device()


def test_a_link_stays_a_link_when_its_file_is_written(tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to("real")
    for text in ("first", "second"):
        with atomic_write(tmp_path / "link") as temporary:
            temporary.write_text(text)
    assert (tmp_path / "link").is_symlink()
    assert (tmp_path / "real").read_text() == "second"


def test_a_file_with_the_longest_name_can_be_written(tmp_path: Path) -> None:
    with atomic_write(tmp_path / ("写" * 85)) as temporary:  # 255 bytes
        temporary.write_text("x")


@pytest.mark.parametrize(
    "error",
    [
        MemoryError(),
        torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 GiB."),
        RuntimeError("[enforce fail at alloc_cpu.cpp:124] DefaultCPUAllocator: can't allocate memory: error code 12"),
        RuntimeError("[enforce fail at alloc_cpu.cpp:83] DefaultCPUAllocator: not enough memory"),
        OSError(errno.ENOMEM, "Cannot allocate memory"),
    ],
)
def test_a_full_memory_is_explained(error: Exception, capsys: pytest.CaptureFixture[str]) -> None:
    @command
    def main(argv: Sequence[str] | None = None) -> int:
        raise error

    assert main() == 1
    assert capsys.readouterr().err.startswith("error: the memory is full: ")
    with pytest.raises(UserError, match="is full: buy some"), memory_advice("buy some"):
        raise error


def test_other_errors_are_not_mistaken_for_a_full_memory() -> None:
    assert not is_out_of_memory(FileNotFoundError(errno.ENOENT, "No such file", "out of memory.jpg"))
    assert not is_out_of_memory(UserError("could not write out of memory.jpg"))
    with pytest.raises(RuntimeError, match="a mistake in the program"), memory_advice("buy some"):
        raise RuntimeError("a mistake in the program")


def test_reasons_and_numbers_read_as_english() -> None:
    assert reason_of(ValueError("first\nsecond")) == "first"
    assert reason_of(KeyError("config")) == "it has no entry 'config'"
    assert reason_of(EOFError()) == "EOFError"
    assert reason_of(RuntimeError("x" * 5000)) == "x" * 300 + " ..."
    assert [count(number, "file") for number in (0, 1, 2)] == ["0 files", "1 file", "2 files"]
