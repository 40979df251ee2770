"""A file from an address: resumed after an interruption, verified, and under its name only when it is whole."""

from __future__ import annotations

import hashlib
import os
import time
from collections.abc import Callable
from pathlib import Path
from urllib.parse import urlsplit

import gdown
import requests
from gdown.exceptions import DownloadError, FileURLRetrievalError
from tqdm import tqdm

from utils import UserError, printable

TIMEOUT = (10, 30)  # s to connect, and to wait between two bytes
RETRY_WAITS = (1, 2, 4, 8, 16)  # s before each new try
TRY_LATER = {408, 416, 425, 429}  # HTTP errors of the client's side that another try may not meet
PAGE_STARTS = (b"<!doctype html", b"<html", b"<head")


def fetch(address: str, target: Path, sha256: str = "", check: Callable[[Path], None] = lambda path: None) -> None:
    """Download to `target`, unless it is there; either way it is verified.

    The bytes received so far lie beside the target in a part file, from which the next call goes on. A part that turns
    out to be damaged, or that the server does not continue, is thrown away and the download begins again.

    Args:
        address: http(s) or a Google Drive link.
        target: where the file appears, in one step, when it is whole.
        sha256: what its SHA-256 must be, in hex; printed where it is not given.
        check: raises UserError for a file that is not what it should be.

    Raises:
        UserError: five retries did not help or no retry can; with the address and the way out.
    """
    if target.exists():
        try:
            return verify(target, sha256, check)
        except UserError as error:
            raise UserError(f"{printable(target)}: {error}\ndelete it, and run the same command again") from None
    target.parent.mkdir(parents=True, exist_ok=True)
    whole = target.with_name(target.name + ".whole")
    try:
        _download(address, whole, lambda path: verify(path, sha256, check))
    except UserError as error:
        raise UserError(
            f"could not download {address}\n  {error}\n"
            f"run the same command again later, or download it by hand to {printable(target)} and run it then"
        ) from None
    os.replace(whole, target)


def verify(path: Path, sha256: str, check: Callable[[Path], None]) -> None:
    """UserError if a file is a web page, fails `check` or has another SHA-256; without one to compare, print it."""
    _refuse_web_page(path)
    check(path)
    with open(path, "rb") as file:
        found = hashlib.file_digest(file, "sha256").hexdigest()
    if sha256 and found != sha256.lower():
        raise UserError(f"it is damaged or another file: its SHA-256 is {found}, expected {sha256.lower()}")
    if not sha256:
        print(f"{path.name.removesuffix('.whole')}: SHA-256 {found} (none is known to compare with)")


def remote_size(url: str) -> str:
    """A file's size in words, as its server tells it."""
    try:
        answer = requests.head(url, allow_redirects=True, timeout=TIMEOUT, headers={"Accept-Encoding": "identity"})
        answer.raise_for_status()
        return f"{int(answer.headers['Content-Length']) / 1e6:.1f} MB"
    except (requests.RequestException, KeyError, ValueError):
        return "size not known: the server does not tell it now"


def _download(address: str, path: Path, verify: Callable[[Path], None]) -> None:
    """Try up to six times to bring a file that passes `verify`; UserError with the last reason."""
    reason = ""
    for wait in (0, *RETRY_WAITS):
        if wait:
            print(f"{reason}; trying again in {wait} s", flush=True)
            time.sleep(wait)
        before = _bytes_so_far(path)
        try:
            _transfer(address, path)
            return verify(path)
        except requests.HTTPError as error:
            reason, final = _refusal(error.response)
            if final:
                raise UserError(reason) from None
        except FileURLRetrievalError as error:
            raise UserError(f"Google Drive gives no file: {' '.join(str(error).split())}") from None
        except (requests.RequestException, DownloadError) as error:
            reason = _in_short(error, address)
        except UserError as error:  # all bytes came, but they are not the file
            _discard(path)
            if not before:
                raise
            reason = f"the continued download is of no use ({error})"
        except OSError as error:
            raise UserError(f"could not write: {error}") from None
        if before and _bytes_so_far(path) <= before:
            _discard(path)  # the server does not go on from these bytes
    raise UserError(f"{reason}; gave up after {len(RETRY_WAITS)} retries")


def _transfer(address: str, path: Path) -> None:
    """One try, going on from the part file of an earlier one, with a progress bar."""
    with tqdm(desc=path.stem, unit="B", unit_scale=True, unit_divisor=1000, leave=False, disable=None) as bar:

        def show(received: int, total: int | None) -> None:
            bar.total = total
            bar.update(received - bar.n)

        gdown.download(address, str(path), quiet=True, use_cookies=False, resume=True, timeout=TIMEOUT, progress=show)


def _refuse_web_page(path: Path) -> None:
    """UserError where a server sent a page (a log-in, a quota, a notice) in the file's place."""
    with open(path, "rb") as file:
        start = file.read(1024).lstrip(b"\xef\xbb\xbf \t\r\n").lower()
    if start.startswith(PAGE_STARTS) or (start.startswith((b"<?xml", b"<!--")) and b"<html" in start):
        raise UserError("the server sent a web page, not the file: perhaps a log-in, a quota or a moved address")


def _refusal(response: requests.Response | None) -> tuple[str, bool]:
    """A server's answer in words, and whether asking again is of no use."""
    assert response is not None
    final = response.status_code < 500 and response.status_code not in TRY_LATER
    return f"the server answers {response.status_code} {response.reason}", final


def _in_short(error: Exception, address: str) -> str:
    """What went wrong, for people: libraries tell it in a screenful."""
    if isinstance(error, requests.exceptions.SSLError):
        return "the server's certificate is not valid, or something between here and there speaks for it"
    if isinstance(error, requests.Timeout):
        return f"no answer within {TIMEOUT[1]} s"
    if isinstance(error, requests.exceptions.InvalidURL):
        return "that is no valid address"
    if isinstance(error, requests.ConnectionError):
        return f"no connection to {urlsplit(address).netloc}, or it broke"
    return str(error).strip().split("\n")[0].rstrip(".")


def _parts(path: Path) -> list[Path]:
    """The part files of earlier tries, as gdown names them: eight random characters and .part after the name."""
    pattern = path.name + "????????.part"
    return [file for file in path.parent.iterdir() if file.match(pattern) or file == path]


def _bytes_so_far(path: Path) -> int:
    return sum(file.stat().st_size for file in _parts(path))


def _discard(path: Path) -> None:
    for file in _parts(path):
        file.unlink()
