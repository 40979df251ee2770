"""Downloads from a server on this machine that behaves as badly as servers do."""

from __future__ import annotations

import hashlib
import re
import socket
import subprocess
import sys
import time
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
    """Promise everything, send a third, hang up."""
    request.start(200, len(CONTENT))
    request.wfile.write(CONTENT[: len(CONTENT) // 3])


def html(request: Handler, status: int = 200) -> None:
    page = b"<!DOCTYPE html><html><body>Please log in</body></html>"
    request.start(status, len(page), Content_Type="text/html")
    request.wfile.write(page)


def test_a_file_comes_whole_and_leaves_nothing_else(web: Web, tmp_path: Path) -> None:
    fetch(web.address, tmp_path / "new" / "faces.bin", DIGEST)
    assert [path.name for path in (tmp_path / "new").iterdir()] == ["faces.bin"]
    assert (tmp_path / "new" / "faces.bin").read_bytes() == CONTENT


def test_a_file_that_is_there_is_not_fetched_again(web: Web, tmp_path: Path) -> None:
    (tmp_path / "faces.bin").write_bytes(CONTENT)
    fetch(web.address, tmp_path / "faces.bin", DIGEST)
    assert web.ranges == []


def test_a_file_put_there_by_hand_is_verified_and_never_deleted(web: Web, tmp_path: Path) -> None:
    (tmp_path / "faces.bin").write_bytes(b"something else")
    with pytest.raises(UserError, match=r"(?s)SHA-256.*delete it"):
        fetch(web.address, tmp_path / "faces.bin", DIGEST)
    assert (tmp_path / "faces.bin").read_bytes() == b"something else"


def test_an_unknown_sha256_is_printed(web: Web, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    fetch(web.address, tmp_path / "faces.bin")
    assert DIGEST in capsys.readouterr().out


def test_a_broken_connection_is_taken_up_where_it_broke(web: Web, tmp_path: Path) -> None:
    web.answers(lambda request, count: break_off(request) if count == 1 else request.send_whole())
    fetch(web.address, tmp_path / "faces.bin", DIGEST)
    assert any(re.fullmatch(r"bytes=[1-9]\d*-", asked) for asked in web.ranges)


def test_a_server_that_ignores_ranges_is_read_from_the_beginning(web: Web, tmp_path: Path) -> None:
    def answer(request: Handler, count: int) -> None:
        if count == 1:
            return break_off(request)
        request.start(200, len(CONTENT))
        request.wfile.write(CONTENT)

    web.answers(answer)
    fetch(web.address, tmp_path / "faces.bin", DIGEST)
    assert (tmp_path / "faces.bin").read_bytes() == CONTENT


def test_a_damaged_part_file_is_thrown_away(web: Web, tmp_path: Path) -> None:
    (tmp_path / "faces.bin.wholeabcd1234.part").write_bytes(b"not the beginning of it")
    fetch(web.address, tmp_path / "faces.bin", DIGEST)
    assert [path.name for path in tmp_path.iterdir()] == ["faces.bin"]


@pytest.mark.parametrize("size", [len(CONTENT), len(CONTENT) + 5])
def test_a_part_file_as_long_as_the_file_or_longer_is_thrown_away(web: Web, tmp_path: Path, size: int) -> None:
    (tmp_path / "faces.bin.wholeabcd1234.part").write_bytes(b"x" * size)
    fetch(web.address, tmp_path / "faces.bin", DIGEST)
    assert (tmp_path / "faces.bin").read_bytes() == CONTENT


def test_resets_are_survived_and_five_retries_are_all(web: Web, tmp_path: Path) -> None:
    def reset(request: Handler, count: int) -> None:
        request.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
        request.connection.close()

    web.answers(lambda request, count: reset(request, count) if count < 5 else request.send_whole())
    fetch(web.address, tmp_path / "faces.bin", DIGEST)
    web.ranges.clear()
    web.answers(reset)
    with pytest.raises(UserError, match=r"gave up after 5 retries"):
        fetch(web.address, tmp_path / "other.bin")
    assert len(web.ranges) == 6


def test_busy_servers_are_asked_again(web: Web, tmp_path: Path) -> None:
    web.answers(lambda request, count: request.start([503, 429][count - 1], 0) if count < 3 else request.send_whole())
    fetch(web.address, tmp_path / "faces.bin", DIGEST)
    assert len(web.ranges) == 3


def test_a_server_that_promises_more_than_it_sends_leaves_no_file(web: Web, tmp_path: Path) -> None:
    def answer(request: Handler, count: int) -> None:
        request.start(200, len(CONTENT) + 1000)
        request.wfile.write(CONTENT)

    web.answers(answer)
    with pytest.raises(UserError, match=r"gave up after 5 retries"):
        fetch(web.address, tmp_path / "faces.bin", DIGEST)
    assert not (tmp_path / "faces.bin").exists()


def test_a_server_that_promises_less_than_it_has_leaves_no_file(web: Web, tmp_path: Path) -> None:
    def answer(request: Handler, count: int) -> None:
        request.start(200, 1000)
        request.wfile.write(CONTENT)

    web.answers(answer)
    with pytest.raises(UserError, match="damaged or another file"):
        fetch(web.address, tmp_path / "faces.bin", DIGEST)
    assert list(tmp_path.iterdir()) == []


def test_a_server_that_falls_silent_is_given_up_on(web: Web, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def answer(request: Handler, count: int) -> None:
        request.start(200, len(CONTENT))
        request.wfile.write(CONTENT[:1000])
        web.released.wait()

    monkeypatch.setattr(fetch_module, "TIMEOUT", (1, 0.1))
    web.answers(answer)
    with pytest.raises(UserError, match=r"gave up after 5 retries"):
        fetch(web.address, tmp_path / "faces.bin", DIGEST)
    assert not (tmp_path / "faces.bin").exists()


@pytest.mark.parametrize("status", [401, 403, 404, 410])
def test_refusals_are_told_at_once_with_the_address_and_the_way_out(web: Web, tmp_path: Path, status: int) -> None:
    web.answers(lambda request, count: html(request, status))
    with pytest.raises(UserError) as raised:
        fetch(web.address, tmp_path / "faces.bin")
    assert str(status) in str(raised.value)
    assert web.address in str(raised.value)
    assert f"download it by hand to {tmp_path / 'faces.bin'}" in str(raised.value)
    assert len(web.ranges) == 1
    assert list(tmp_path.iterdir()) == []


def test_a_web_page_instead_of_the_file_is_no_file(web: Web, tmp_path: Path) -> None:
    web.answers(lambda request, count: html(request))
    with pytest.raises(UserError, match="sent a web page"):
        fetch(web.address, tmp_path / "faces.bin")
    assert list(tmp_path.iterdir()) == []


def test_no_server_is_told_in_a_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fetch_module, "RETRY_WAITS", (0.0,))
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        address = f"http://127.0.0.1:{unused.getsockname()[1]}/faces.bin"
    with pytest.raises(UserError, match=r"no connection to 127\.0\.0\.1"):
        fetch(address, tmp_path / "faces.bin")


def test_googles_refusal_is_passed_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def download(*args: object, **kwargs: object) -> None:
        raise FileURLRetrievalError("Too many users have\n viewed this file")

    monkeypatch.setattr(gdown, "download", download)
    with pytest.raises(UserError, match="Too many users have viewed this file"):
        fetch("https://drive.google.com/file/d/1/view", tmp_path / "faces.zip")


def test_a_check_that_fails_leaves_no_file(web: Web, tmp_path: Path) -> None:
    def check(path: Path) -> None:
        raise UserError("no faces in it")

    with pytest.raises(UserError, match="no faces in it"):
        fetch(web.address, tmp_path / "faces.bin", check=check)
    assert list(tmp_path.iterdir()) == []


def test_a_killed_download_goes_on_in_the_next_one(web: Web, tmp_path: Path) -> None:
    def answer(request: Handler, count: int) -> None:
        if count > 1:
            return request.send_whole()
        request.start(200, len(CONTENT))
        request.wfile.write(CONTENT[:1_500_000])
        web.released.wait()

    web.answers(answer)
    target = tmp_path / "faces.bin"
    script = f"from pathlib import Path; from fetch import fetch; fetch({web.address!r}, Path({str(target)!r}))"
    process = subprocess.Popen([sys.executable, "-c", script], cwd=ROOT, stderr=subprocess.DEVNULL)
    for _ in range(1200):
        if sum(path.stat().st_size for path in tmp_path.glob("*.part")) > 1_000_000:
            break
        time.sleep(0.05)
    process.kill()
    process.wait()
    assert not target.exists()
    fetch(web.address, target, DIGEST)
    assert any(int(asked[6:-1]) > 1_000_000 for asked in web.ranges if asked)
    assert [path.name for path in tmp_path.iterdir()] == ["faces.bin"]
