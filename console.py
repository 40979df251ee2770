"""What programs share where they meet the user: errors, text, signals and a full memory. Nothing here imports torch."""

from __future__ import annotations

import argparse
import errno
import functools
import io
import math
import os
import re
import select
import signal
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from types import FrameType
from typing import TextIO

SIGPIPE = 13  # Windows does not define it.
MAX_REASON = 300  # A library's reason for an error is cut off after this many characters.
Main = Callable[[Sequence[str] | None], int]


class UserError(ValueError):
    """An error that the user can correct. Programs print its message without a traceback."""


def command(main: Main) -> Callable[..., int]:
    """Wrap a program's `main`, which takes the command line and returns the exit status.

    An error that the user can correct ends the program with a short message and status 1. Ctrl-C, SIGTERM and SIGHUP
    end it with status 128 plus the signal's number, once unfinished files are removed; so does, with the number of
    SIGPIPE and without a word, a reader of its output that has left.
    """

    @functools.wraps(main)
    def wrapped(argv: Sequence[str] | None = None) -> int:
        try:
            with _signals_that_unwind(), printing():
                return main(argv)
        except UserError as error:
            message = str(error)
        except (OSError, MemoryError, RuntimeError) as error:
            if is_out_of_memory(error):
                message = "the memory is full: end other programs, or try smaller images"
            elif isinstance(error, OSError):  # The text of a loader's worker is a traceback, which ends with the error.
                message = (str(error).strip() or repr(error)).splitlines()[-1]
            else:
                raise
        except KeyboardInterrupt:
            return 128 + signal.SIGINT
        with suppress(OSError):
            print(f"error: {message}", file=sys.stderr)
        return 1

    return wrapped


@contextmanager
def _signals_that_unwind() -> Iterator[None]:
    """SIGTERM and SIGHUP end the block with SystemExit, so that half-written files are removed, as after Ctrl-C.

    While the program ends, more of the same signal are ignored: `timeout` and torchrun send theirs twice. A signal that
    is ignored from the start, as SIGHUP is under nohup, stays ignored.
    """

    def end(number: int, frame: FrameType | None) -> None:
        signal.signal(number, signal.SIG_IGN)
        raise SystemExit(128 + number)

    names = [name for name in ("SIGINT", "SIGTERM", "SIGHUP") if hasattr(signal, name)]
    if threading.current_thread() is not threading.main_thread():  # Python handles signals in the main thread only.
        names = []
    numbers = [number for name in names if signal.getsignal(number := getattr(signal, name)) == signal.SIG_DFL]
    for number in numbers:
        signal.signal(number, signal.default_int_handler if number == signal.SIGINT else end)
    try:
        yield
    finally:
        for number in numbers:
            signal.signal(number, signal.SIG_DFL)


# --- Text


@contextmanager
def printing() -> Iterator[None]:
    """Let the block print any text: what the terminal's encoding lacks is escaped.

    Raises:
        SystemExit: the text could not be printed: 128 plus SIGPIPE, and silent, if its reader has left (`| head`).
    """
    _occupy_closed_streams()
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")
    try:
        yield
    except BrokenPipeError:
        if not any(map(_has_lost_its_reader, (sys.stdout, sys.stderr))):
            raise  # Some pipe between processes has broken, and not the output.
        _flush_streams()
        raise SystemExit(128 + SIGPIPE) from None
    finally:
        failure = _flush_streams()
        if isinstance(failure, BrokenPipeError):
            raise SystemExit(128 + SIGPIPE)
        if failure:
            print(f"error: the output cannot be written: {failure}", file=sys.stderr)
            raise SystemExit(1)


def _has_lost_its_reader(stream: TextIO | None) -> bool:
    """Whether a stream is a pipe that nobody reads any more."""
    if stream is None or not hasattr(select, "poll"):
        return stream is not None
    poll = select.poll()
    try:
        poll.register(stream.fileno(), 0)  # Errors are reported even if nothing is asked for.
    except OSError:  # It is not a file.
        return False
    return any(event & select.POLLERR for _, event in poll.poll(0))


def _occupy_closed_streams() -> None:
    """Lead closed standard streams to nowhere: else the next file would get their number, and the text of libraries.

    Python sets those to None, to which neither `tqdm` nor `flush` can write; `sys.__stdout__` still tells.
    """
    for number in range(3):
        try:
            os.fstat(number)
        except OSError:
            os.open(os.devnull, os.O_RDWR)  # It gets the lowest free number, which is this one.
    for name in ("stdout", "stderr"):
        if getattr(sys, name) is None:
            setattr(sys, name, open(os.devnull, "w", encoding="utf-8"))  # noqa: SIM115


def _flush_streams() -> OSError | None:
    """Print what is waiting; a stream that fails is led to nowhere, since Python would complain of it at exit."""
    failure: OSError | None = None
    for stream in (sys.stdout, sys.stderr):
        try:
            if stream is not None:
                stream.flush()
        except OSError as error:
            failure = error
            nowhere = os.open(os.devnull, os.O_WRONLY)
            os.dup2(nowhere, stream.fileno())
            os.close(nowhere)
    return failure


def printable(path: str | os.PathLike[str]) -> str:
    """A path as text for one line: characters that cannot be printed are escaped."""
    text = os.fspath(path)
    return "".join(c if c.isprintable() else c.encode("unicode_escape", "surrogatepass").decode() for c in text)


def reason_of(error: Exception) -> str:
    """What an error says, in one line of hardly more than MAX_REASON characters, without the name of its class."""
    said = f"it has no entry {error}" if isinstance(error, KeyError) else str(error).strip() or type(error).__name__
    line = printable(said.splitlines()[0])
    return line if len(line) <= MAX_REASON else f"{line[:MAX_REASON]} ..."


def count(number: int, noun: str) -> str:
    """A number and a noun: "1 file", "2 files"."""
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"


def some_text(text: str) -> str:
    """A text from the command line that is not empty, for argparse."""
    if not text:
        raise argparse.ArgumentTypeError("must not be empty")
    return text


def some_path(text: str) -> Path:
    """A path from the command line, for argparse; "" would be the current folder, which nobody means by it."""
    return Path(some_text(text))


def some_count(text: str) -> int:
    """A whole number of at least 1 from the command line, for argparse."""
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"must be a whole number of at least 1, got {text}")
    return int(text)


def some_number(text: str) -> float:
    """A finite number above 0 from the command line, for argparse."""
    try:
        number = float(text)
    except ValueError:
        number = math.nan
    if not 0 < number < math.inf:
        raise argparse.ArgumentTypeError(f"must be a number above 0, got {text}")
    return number


# --- Memory


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an error of Python, NumPy, torch or OpenCV means that the memory, or that of the GPU, is full."""
    if isinstance(error, OSError):
        return error.errno == errno.ENOMEM
    if isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError":
        return True
    full = r"out of memory|not enough memory|insufficient memory|can(no|')t allocate memory"
    return not isinstance(error, ValueError) and bool(re.search(full, str(error), re.IGNORECASE))


@contextmanager
def memory_advice(advice: str) -> Iterator[None]:
    """Turn a full memory inside the block into a UserError that says what to do about it."""
    try:
        yield
    except (OSError, MemoryError, RuntimeError) as error:
        if not is_out_of_memory(error):
            raise
        where = "GPU" if type(error).__name__ == "OutOfMemoryError" else "memory"
        raise UserError(f"the {where} is full: {advice}") from error
