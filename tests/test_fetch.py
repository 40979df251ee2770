"""Downloads from a local server that misbehaves in the ways that real servers do."""

from __future__ import annotations

import hashlib
import re
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import gdown
import pytest
from conftest import ROOT
from gdown.exceptions import FileURLRetrievalError
from loopback import Handler, Web

from downloads import fetch as fetch_module
from downloads.fetch import fetch
from utils import UserError

CONTENT = bytes(range(256)) * 8000  # 2 MB
DIGEST = hashlib.sha256(CONTENT).hexdigest()


@pytest.fixture(autouse=True)
def content(web: Web) -> None:
    web.serves(CONTENT)


def break_off(request: Handler) -> None:
    """Announce the whole file, send a third of it, and close the connection."""
    request.start(200, len(CONTENT))
    request.wfile.write(CONTENT[: len(CONTENT) // 3])


def send_web_page(request: Handler, status: int = 200) -> None:
    """Send a web page instead of the file."""
    page = b"<!DOCTYPE html><html><body>Please log in</body></html>"
    request.start(status, len(page), Content_Type="text/html")
    request.wfile.write(page)


def test_a_download_leaves_the_whole_file_and_nothing_else(web: Web, tmp_path: Path) -> None:
    fetch(web.address, tmp_path / "new" / "faces.bin", sha256=DIGEST)
    assert [path.name for path in (tmp_path / "new").iterdir()] == ["faces.bin"]
    assert (tmp_path / "new" / "faces.bin").read_bytes() == CONTENT


def test_an_existing_file_is_not_downloaded_again(web: Web, tmp_path: Path) -> None:
    (tmp_path / "faces.bin").write_bytes(CONTENT)
    fetch(web.address, tmp_path / "faces.bin", sha256=DIGEST)
    assert web.ranges == []


def test_a_file_that_the_user_put_there_is_verified_and_never_deleted(web: Web, tmp_path: Path) -> None:
    (tmp_path / "faces.bin").write_bytes(b"something else")
    with pytest.raises(UserError, match=r"(?s)SHA-256.*delete it"):
        fetch(web.address, tmp_path / "faces.bin", sha256=DIGEST)
    assert (tmp_path / "faces.bin").read_bytes() == b"something else"


def test_an_unknown_sha256_is_printed(web: Web, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    fetch(web.address, tmp_path / "faces.bin")
    assert DIGEST in capsys.readouterr().out


def test_a_download_resumes_where_the_connection_broke(web: Web, tmp_path: Path) -> None:
    web.answers(lambda request, count: break_off(request) if count == 1 else request.send_whole())
    fetch(web.address, tmp_path / "faces.bin", sha256=DIGEST)
    assert any(re.fullmatch(r"bytes=[1-9]\d*-", asked) for asked in web.ranges)


def test_a_download_starts_over_if_the_server_ignores_ranges(web: Web, tmp_path: Path) -> None:
    def answer(request: Handler, count: int) -> None:
        if count == 1:
            return break_off(request)
        request.start(200, len(CONTENT))
        request.wfile.write(CONTENT)

    web.answers(answer)
    fetch(web.address, tmp_path / "faces.bin", sha256=DIGEST)
    assert (tmp_path / "faces.bin").read_bytes() == CONTENT


def test_a_damaged_part_file_is_discarded(web: Web, tmp_path: Path) -> None:
    (tmp_path / "faces.bin.wholeabcd1234.part").write_bytes(b"not the first bytes of the file")
    fetch(web.address, tmp_path / "faces.bin", sha256=DIGEST)
    assert [path.name for path in tmp_path.iterdir()] == ["faces.bin"]


@pytest.mark.parametrize("size", [len(CONTENT), len(CONTENT) + 5])
def test_a_part_file_that_is_not_shorter_than_the_file_is_discarded(web: Web, tmp_path: Path, size: int) -> None:
    (tmp_path / "faces.bin.wholeabcd1234.part").write_bytes(b"x" * size)
    fetch(web.address, tmp_path / "faces.bin", sha256=DIGEST)
    assert (tmp_path / "faces.bin").read_bytes() == CONTENT


def test_connection_resets_are_retried_five_times(web: Web, tmp_path: Path) -> None:
    def reset(request: Handler, count: int) -> None:
        request.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
        request.connection.close()

    web.answers(lambda request, count: reset(request, count) if count < 5 else request.send_whole())
    fetch(web.address, tmp_path / "faces.bin", sha256=DIGEST)
    web.ranges.clear()
    web.answers(reset)
    with pytest.raises(UserError, match=r"gave up after 5 retries"):
        fetch(web.address, tmp_path / "other.bin")
    assert len(web.ranges) == 6


def test_busy_servers_are_retried(web: Web, tmp_path: Path) -> None:
    web.answers(lambda request, count: request.start([503, 429][count - 1], 0) if count < 3 else request.send_whole())
    fetch(web.address, tmp_path / "faces.bin", sha256=DIGEST)
    assert len(web.ranges) == 3


def test_no_file_is_left_if_the_server_announces_more_than_it_sends(web: Web, tmp_path: Path) -> None:
    def answer(request: Handler, count: int) -> None:
        request.start(200, len(CONTENT) + 1000)
        request.wfile.write(CONTENT)

    web.answers(answer)
    with pytest.raises(UserError, match=r"gave up after 5 retries"):
        fetch(web.address, tmp_path / "faces.bin", sha256=DIGEST)
    assert not (tmp_path / "faces.bin").exists()


def test_no_file_is_left_if_the_server_announces_less_than_the_file_has(web: Web, tmp_path: Path) -> None:
    def answer(request: Handler, count: int) -> None:
        request.start(200, 1000)
        request.wfile.write(CONTENT)

    web.answers(answer)
    with pytest.raises(UserError, match="damaged or a different one"):
        fetch(web.address, tmp_path / "faces.bin", sha256=DIGEST)
    assert list(tmp_path.iterdir()) == []


def test_a_server_that_stops_sending_times_out(web: Web, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def answer(request: Handler, count: int) -> None:
        request.start(200, len(CONTENT))
        request.wfile.write(CONTENT[:1000])
        web.released.wait()

    monkeypatch.setattr(fetch_module, "TIMEOUT", (1, 0.1))
    web.answers(answer)
    with pytest.raises(UserError, match=r"gave up after 5 retries"):
        fetch(web.address, tmp_path / "faces.bin", sha256=DIGEST)
    assert not (tmp_path / "faces.bin").exists()


@pytest.mark.parametrize("status", [401, 403, 404, 410])
def test_a_refusal_is_reported_at_once_with_the_address_and_what_to_do(web: Web, tmp_path: Path, status: int) -> None:
    web.answers(lambda request, count: send_web_page(request, status))
    with pytest.raises(UserError) as raised:
        fetch(web.address, tmp_path / "faces.bin")
    assert str(status) in str(raised.value)
    assert web.address in str(raised.value)
    assert f"download the file by hand to {tmp_path / 'faces.bin'}" in str(raised.value)
    assert len(web.ranges) == 1
    assert list(tmp_path.iterdir()) == []


def test_a_web_page_is_not_accepted_as_the_file(web: Web, tmp_path: Path) -> None:
    web.answers(lambda request, count: send_web_page(request))
    with pytest.raises(UserError, match="sent a web page"):
        fetch(web.address, tmp_path / "faces.bin")
    assert list(tmp_path.iterdir()) == []


def test_a_missing_server_is_reported_in_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fetch_module, "RETRY_WAITS", (0.0,))
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        address = f"http://127.0.0.1:{unused.getsockname()[1]}/faces.bin"
    with pytest.raises(UserError, match=r"could not connect to 127\.0\.0\.1"):
        fetch(address, tmp_path / "faces.bin")


def test_the_reason_of_google_drive_is_passed_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def download(*args: object, **kwargs: object) -> None:
        raise FileURLRetrievalError("Too many users have\n viewed this file")

    monkeypatch.setattr(gdown, "download", download)
    with pytest.raises(UserError, match="Too many users have viewed this file"):
        fetch("https://drive.google.com/file/d/1/view", tmp_path / "faces.zip")


def test_a_failed_check_leaves_no_file(web: Web, tmp_path: Path) -> None:
    def check(path: Path) -> None:
        raise UserError("no faces in it")

    with pytest.raises(UserError, match="no faces in it"):
        fetch(web.address, tmp_path / "faces.bin", check=check)
    assert list(tmp_path.iterdir()) == []


def test_the_next_download_resumes_a_killed_one(web: Web, tmp_path: Path) -> None:
    def answer(request: Handler, count: int) -> None:
        if count > 1:
            return request.send_whole()
        request.start(200, len(CONTENT))
        request.wfile.write(CONTENT[:1_500_000])
        web.released.wait()

    web.answers(answer)
    target = tmp_path / "faces.bin"
    script = (
        f"from pathlib import Path; from downloads.fetch import fetch; fetch({web.address!r}, Path({str(target)!r}))"
    )
    process = subprocess.Popen([sys.executable, "-c", script], cwd=ROOT, stderr=subprocess.DEVNULL)
    for _ in range(1200):
        if sum(path.stat().st_size for path in tmp_path.glob("*.part")) > 1_000_000:
            break
        time.sleep(0.05)
    process.kill()
    process.wait()
    assert not target.exists()
    fetch(web.address, target, sha256=DIGEST)
    assert any(int(asked[6:-1]) > 1_000_000 for asked in web.ranges if asked)
    assert [path.name for path in tmp_path.iterdir()] == ["faces.bin"]


def test_a_download_resumes_after_the_disk_was_full(
    web: Web, tmp_path: Path, limit_files: Callable[[int], None]
) -> None:
    limit_files(1_200_000)
    with pytest.raises(UserError, match=r"(?s)could not write .*faces\.bin: File too large.*it resumes"):
        fetch(web.address, tmp_path / "faces.bin", sha256=DIGEST)
    (part,) = tmp_path.iterdir()
    assert part.suffix == ".part"
    kept = part.stat().st_size
    with pytest.raises(UserError, match="File too large"):  # still full
        fetch(web.address, tmp_path / "faces.bin", sha256=DIGEST)
    assert part.stat().st_size >= kept > 0
    limit_files(-1)
    fetch(web.address, tmp_path / "faces.bin", sha256=DIGEST)
    assert web.ranges[-1] == f"bytes={kept}-" or int(web.ranges[-1][6:-1]) > kept
    assert [path.name for path in tmp_path.iterdir()] == ["faces.bin"]


@pytest.mark.parametrize("address", ["http://.example.com/a", f"http://{'a' * 64}.com/a", "http://exa mple/a"])
def test_an_address_that_cannot_be_one_is_not_retried(address: str, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="the address is not valid"):
        fetch(address, tmp_path / "faces.bin")
    assert list(tmp_path.iterdir()) == []
