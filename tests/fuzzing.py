"""Random damage to files, and bounds for what reads them.

The examples are the same in every run. Set FUZZ_EXAMPLES to try that many random ones instead, in each test.
"""

from __future__ import annotations

import os
import re
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st

WANTED = int(os.environ.get("FUZZ_EXAMPLES", "0"))
MAX_SECONDS = 20.0  # of the processor, on a slow machine: a small file that takes longer keeps a user waiting
MAX_BYTES = 1 << 30  # beyond what the process has already, address space and not only what is used of it
EDGES = (b"\0", b"\xff", b"\0" * 4, b"\xff" * 4, b"\x7f\xff\xff\xff", b"\0\0\0\1", b"\1\0\0\0", b"\x80\0\0\0",
         b"\0" * 8, b"\xff" * 8)  # fmt: skip


def fuzz(examples: int) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """Settings for a test: fixed examples, or WANTED random ones."""
    slow = [HealthCheck.too_slow, HealthCheck.data_too_large, HealthCheck.large_base_example]
    return settings(
        max_examples=WANTED or examples, derandomize=not WANTED, deadline=None, database=None,
        suppress_health_check=slow,
    )  # fmt: skip


@st.composite
def damaged(draw: st.DrawFn, data: bytes, significant: Sequence[bytes] = EDGES) -> bytes:
    """Bytes that are overwritten, cut out, doubled or cut off at up to four places."""
    for _ in range(draw(st.integers(0, 4))):
        start = draw(st.integers(0, max(0, len(data) - 1)))
        length = draw(st.sampled_from([1, 4, 12, 100, 512]))
        piece = data[start : start + length]
        new = draw(st.one_of(st.sampled_from([b"", piece * 2, *significant]), st.binary(max_size=12)))
        data = data[:start] if draw(st.integers(0, 9)) == 0 else data[:start] + new + data[start + len(new or piece) :]
    return data


@contextmanager
def bounded() -> Iterator[None]:
    """Let the block fail where it takes more than MAX_SECONDS, or MemoryError where it asks for more than MAX_BYTES."""
    resource = pytest.importorskip("resource", reason="Windows does not limit the memory of a process")
    soft, hard = resource.getrlimit(resource.RLIMIT_AS)
    pages = int(Path("/proc/self/statm").read_text().split()[0])
    start = time.process_time()
    resource.setrlimit(resource.RLIMIT_AS, (pages * resource.getpagesize() + MAX_BYTES, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_AS, (soft, hard))
    assert time.process_time() - start < MAX_SECONDS


def assert_sentence(text: str) -> None:
    """A reason that a person can read: several words, not those of a programmer, and not that the memory is full."""
    assert len(text.split()) > 1
    assert not re.search(r"Traceback|[a-z]Error\b|the memory is full", text)
