"""Download a file: resume after an interruption, verify, and give it its name only when it is complete."""

from __future__ import annotations

import hashlib
import os
import re
import time
from collections.abc import Callable
from pathlib import Path
from urllib.parse import unquote, urlsplit
from urllib.request import url2pathname

import gdown
import requests
from gdown.exceptions import DownloadError, FileURLRetrievalError
from tqdm import tqdm

from utils import UserError, printable

TIMEOUT = (10, 30)  # Seconds to wait for a connection, and between two packets.
RETRY_WAITS = (1, 2, 4, 8, 16)  # Seconds to wait before each retry.
TRY_LATER = {408, 416, 425, 429}  # These HTTP client errors may go away on a retry.
PAGE_STARTS = (b"<!doctype html", b"<html", b"<head")  # Web pages start with these bytes, in lower case.
Check = Callable[[Path], None]  # It raises UserError if a file is not what it should be.


def fetch(address: str, target: Path, *, sha256: str = "", check: Check = lambda path: None) -> None:
    """Download a file to `target`, or verify the file that is already there.

    The bytes received so far are kept beside the target in a part file, from which the next call resumes. If the part
    file is damaged, or the server does not resume from it, it is deleted and the download starts over.

    Args:
        address: http(s) or a Google Drive link.
        target: the path that the complete and verified file is renamed to.
        sha256: the expected SHA-256 in hex; "" to print the file's own.
        check: a further check of the file; see `Check`.

    Raises:
        UserError: the download failed, the disk is full, or the file is not the expected one; the message says what to
            do.
    """
    if target.exists():
        try:
            return verify(target, sha256, check=check)
        except UserError as error:
            raise UserError(f"{printable(target)}: {error}\ndelete it, and run the same command again") from None
    whole = target.with_name(target.name + ".whole")
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        _download(address, whole, lambda path: verify(path, sha256, check=check))
        os.replace(whole, target)
    except UserError as error:
        raise UserError(
            f"could not download {printable(address)}\n  {error}\n"
            f"run the same command again later, or download the file by hand to {printable(target)} before you run it"
        ) from None
    except OSError as error:
        raise UserError(
            f"could not write {printable(target)}: {error.strerror or error}\n"
            "what was received is kept; make sure that the disk has space and that the permissions allow it,\n"
            "and run the same command again: it resumes"
        ) from error


def verify(path: Path, sha256: str, *, check: Check) -> None:
    """Raise UserError if a file is a web page, fails `check` or has another SHA-256; print that if none is expected."""
    _refuse_web_page(path)
    check(path)
    with open(path, "rb") as file:
        found = hashlib.file_digest(file, "sha256").hexdigest()
    if sha256 and found != sha256.lower():
        raise UserError(f"the file is damaged or a different one: its SHA-256 is {found}, expected {sha256.lower()}")
    if not sha256:
        print(f"{path.name.removesuffix('.whole')}: SHA-256 {found} (the expected one is not known)")


def remote_size(url: str) -> str:
    """The size of a remote file in MB as its server reports it, in words."""
    try:
        answer = requests.head(url, allow_redirects=True, timeout=TIMEOUT, headers={"Accept-Encoding": "identity"})
        answer.raise_for_status()
        return f"{int(answer.headers['Content-Length']) / 1e6:.1f} MB"
    except (requests.RequestException, KeyError, ValueError):
        return "size unknown (the server did not report it)"


def local_path(address: str) -> Path | None:
    """The existing file or folder that an address names; None for a web address, UserError for anything else."""
    problem = UserError(f"{printable(address[:200])!r} is neither an http(s) address nor an existing file or folder")
    path = os.path.expanduser(address)
    if not os.path.exists(path):
        try:
            parts = urlsplit(address)
            has_host = bool(parts.hostname) and parts.port != 0  # a port that is not a number raises ValueError
        except ValueError as error:
            raise problem from error
        if parts.scheme in ("http", "https") and has_host:
            return None
        if parts.scheme != "file" or parts.netloc not in ("", "localhost"):
            raise problem
        path = url2pathname(parts.path)
    if not os.path.isfile(path) and not os.path.isdir(path):  # a pipe would block for ever
        raise problem
    return Path(path)


def file_name(address: str, default: str) -> str:
    """The last part of an address if that is a plain file name, otherwise the default."""
    name = unquote(urlsplit(address).path).rsplit("/", 1)[-1]
    return name if re.fullmatch(r"\w[\w.-]{0,99}\.\w{1,20}", name) else default


def _download(address: str, path: Path, check: Check) -> None:
    """Try to download a file that passes `check`; after the last retry, UserError with the last reason."""
    reason = ""
    for wait in (0, *RETRY_WAITS):
        if wait:
            print(f"{reason}; trying again in {wait} s", flush=True)
            time.sleep(wait)
        before = _bytes_so_far(path)
        try:
            _transfer(address, path)
            return check(path)
        except requests.HTTPError as error:
            reason, final = _refusal(error.response)
            if final:
                raise UserError(reason) from None
        except FileURLRetrievalError as error:
            raise UserError(f"Google Drive did not return the file: {' '.join(str(error).split())}") from None
        except requests.exceptions.InvalidURL:
            raise UserError("the address is not valid") from None
        except (requests.RequestException, DownloadError) as error:
            reason = _in_short(error, address)
        except UserError as error:  # the transfer is complete, but the content is wrong
            _discard(path)
            if not before:
                raise
            reason = f"the resumed download is damaged ({error})"
        except OSError:
            raise  # the disk is the problem, not the server
        except Exception as error:  # the libraries raise any exception for some addresses and answers
            raise UserError("the address is not valid, or the answer is not one of a web server") from error
        if before and _bytes_so_far(path) <= before:
            _discard(path)  # the server does not resume from these bytes
    raise UserError(f"{reason}; gave up after {len(RETRY_WAITS)} retries")


def _transfer(address: str, path: Path) -> None:
    """Make one attempt with a progress bar, resuming from the part file of an earlier one."""
    with tqdm(desc=path.stem, unit="B", unit_scale=True, unit_divisor=1000, leave=False, disable=None) as bar:

        def show(received: int, total: int | None) -> None:
            bar.total = total
            bar.update(received - bar.n)

        gdown.download(address, str(path), quiet=True, use_cookies=False, resume=True, timeout=TIMEOUT, progress=show)


def _refuse_web_page(path: Path) -> None:
    """Raise UserError if the server sent a web page, such as a log-in form or a quota notice, instead of the file."""
    with open(path, "rb") as file:
        start = file.read(1024).lstrip(b"\xef\xbb\xbf \t\r\n").lower()
    if start.startswith(PAGE_STARTS) or (start.startswith((b"<?xml", b"<!--")) and b"<html" in start):
        raise UserError("the server sent a web page, not the file: you may need to log in, or the file has moved")


def _refusal(response: requests.Response | None) -> tuple[str, bool]:
    """The server's error in words, and whether a retry cannot help."""
    assert response is not None
    final = response.status_code < 500 and response.status_code not in TRY_LATER
    return f"the server answered {response.status_code} {response.reason}", final


def _in_short(error: Exception, address: str) -> str:
    """What went wrong, in one line: the messages of the libraries fill a screen."""
    if isinstance(error, requests.exceptions.SSLError):
        return "the server's certificate is not valid, or a proxy has replaced it"
    if isinstance(error, requests.Timeout):
        return f"no answer within {TIMEOUT[1]} s"
    if isinstance(error, requests.ConnectionError):
        return f"could not connect to {urlsplit(address).netloc}, or the connection broke"
    return str(error).strip().split("\n")[0].rstrip(".")


def _parts(path: Path) -> list[Path]:
    """The part files of earlier attempts: gdown adds eight random characters and .part to the name."""
    pattern = path.name + "????????.part"
    return [file for file in path.parent.iterdir() if file.match(pattern) or file == path]


def _bytes_so_far(path: Path) -> int:
    """How many bytes of a download the part files hold."""
    return sum(file.stat().st_size for file in _parts(path))


def _discard(path: Path) -> None:
    """Delete the part files of a download."""
    for file in _parts(path):
        file.unlink()
