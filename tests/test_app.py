"""The page gives what translate.py gives, refuses what it should in words, and asks no other computer for anything."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
import requests
from conftest import ROOT, make_image
from PIL import Image

import app
import translate
from photos.label import LABEL
from utils import UserError
from weights.load import BUNDLED_WEIGHTS, DIRECTIONS

PORTRAIT = ROOT / "assets" / "photos" / "portrait.jpg"
BROWSER = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
NAMES: app.Names = {"ab": "European to Asian", "ba": "Asian to European"}
Predict = Callable[..., tuple[list[str], str, str, str]]
pytestmark = pytest.mark.skipif(not find_spec("gradio"), reason="gradio is in requirements-extra.txt")


def open_here(port: int | None = None) -> Any:
    """A page around the bundled weights in this process, which takes pictures of at most a megapixel."""
    translators = {direction: translate.load_translator(BUNDLED_WEIGHTS, direction) for direction in DIRECTIONS}
    return app.open_page(partial(app.build_page, translators, NAMES, max_megapixels=1), port=port)


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    """A page that takes at most 400 kB; its temporary files are in a folder of their own."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(tempfile, "tempdir", str(tmp_path_factory.mktemp("page")))
        patch.setattr(app, "MAX_UPLOAD", "400kb")
        for name in ("GRADIO_TEMP_DIR", *app.SETTINGS):
            patch.setenv(name, "")  # The page sets these, and they end with it.
        with open_here() as page:
            yield page


@pytest.fixture(scope="module")
def predict(page: Any, tmp_path_factory: pytest.TempPathFactory) -> Predict:
    """Translate a file through the API."""
    import gradio_client

    client = gradio_client.Client(
        page.local_url, verbose=False, download_files=tmp_path_factory.mktemp("downloads"),
        httpx_kwargs={"timeout": 300},
    )  # fmt: skip

    def translated(path: Any, direction: str = "ab", strength: float = 1, side_by_side: bool = False) -> Any:
        picture = gradio_client.handle_file(path)
        return client.predict(picture, direction, strength, side_by_side, api_name="/translate")

    return translated


def by_translate(path: Path, out: Path, *flags: str) -> bytes:
    """What translate.py writes."""
    flags = ("--weights", str(BUNDLED_WEIGHTS), "--out", str(out), "--overwrite", *flags)
    assert translate.main([str(path), *flags]) == 0
    return (out / path.name).read_bytes()


def post(url: str, content: Any) -> Any:
    """The answer to a request with JSON."""
    request = urllib.request.Request(url, json.dumps(content).encode(), {"Content-Type": "application/json"})
    with urllib.request.urlopen(request, timeout=60) as answer:
        return json.loads(answer.read())


def translated_by_http(page: Any, picture: dict[str, Any]) -> str:
    """The events that follow a request to translate a picture, as text."""
    call = f"{page.local_url}gradio_api/call/translate"
    event = post(call, {"data": [picture | {"meta": {"_type": "gradio.FileData"}}, "ab", 1, False]})["event_id"]
    with urllib.request.urlopen(f"{call}/{event}", timeout=60) as answer:
        return str(answer.read().decode())


@pytest.mark.parametrize(
    ("direction", "strength", "side_by_side"), [("ab", 1, False), ("ba", 0.5, False), ("ab", 2.5, True)]
)
def test_the_result_has_the_bytes_that_translate_writes(
    direction: str, strength: float, side_by_side: bool, predict: Predict, tmp_path: Path
) -> None:
    flags = ["--direction", direction, "--strength", str(strength), *["--side-by-side"] * side_by_side]
    expected = by_translate(PORTRAIT, tmp_path, *flags)
    (before, after), pair, result, message = predict(PORTRAIT, direction, strength, side_by_side)
    assert Path(result).read_bytes() == expected
    assert Path(result).name == "portrait.jpg"
    assert LABEL.encode() in expected
    assert message == "1 face translated."
    assert Image.open(before).size == Image.open(after).size == (640, 800)
    assert Image.open(pair).size == (1280, 800)


def test_what_is_shown_carries_the_label_too(predict: Predict) -> None:
    (before, after), pair, *_ = predict(PORTRAIT)
    assert [LABEL.encode() in Path(file).read_bytes() for file in (before, after, pair)] == [False, True, True]


@pytest.mark.parametrize("name", ["a.gif", "after.jpg", "a b.webp"])
def test_files_of_other_formats_keep_them(name: str, predict: Predict, tmp_path: Path) -> None:
    make_image(1, (90, 70)).save(tmp_path / name)
    expected = by_translate(tmp_path / name, tmp_path / "out")
    *_, result, message = predict(tmp_path / name)
    assert Path(result).read_bytes() == expected
    assert message.startswith("No face was found, so the picture is unchanged.")


def test_what_the_result_leaves_out_is_said(predict: Predict, tmp_path: Path) -> None:
    make_image(1).save(tmp_path / "a.jpg", "MPO", save_all=True, append_images=[make_image(2)])
    *_, message = predict(tmp_path / "a.jpg")
    assert message.endswith("\n\na.jpg: left out: 1 further images in the file (such as previews)")


@pytest.mark.parametrize(
    ("name", "content", "reason"),
    [
        ("note.png", b"Dear diary", "note.png: not an image of a format that this program reads"),
        ("empty.jpg", b"", "empty.jpg: the file is empty"),
        ("film.mp4", b"film", "this page translates pictures; for videos run translate.py"),
    ],
)
def test_a_file_that_is_no_picture_is_refused_with_a_reason_and_no_traceback(
    name: str, content: bytes, reason: str, predict: Predict, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(Exception, match=reason.split(":")[0]) as refusal:
        predict(tmp_path / name)
    assert reason in str(refusal.value)
    assert str(tmp_path.parent) not in str(refusal.value)
    assert "Traceback" not in capfd.readouterr().err


def test_pictures_with_too_many_pixels_and_too_many_bytes_are_refused(
    page: Any, predict: Predict, tmp_path: Path
) -> None:
    Image.new("1", (1001, 1000)).save(tmp_path / "wide.png")
    with pytest.raises(Exception, match="too large: 1001x1000 px, over 1000000 pixels"):
        predict(tmp_path / "wide.png")
    answer = requests.post(f"{page.local_url}gradio_api/upload", files={"files": ("heavy.jpg", bytes(410_000))})
    assert answer.status_code == 413


def test_without_a_picture_the_page_asks_for_one(page: Any) -> None:
    call = f"{page.local_url}gradio_api/call/translate"
    event = post(call, {"data": [None, "ab", 1, False]})["event_id"]
    with urllib.request.urlopen(f"{call}/{event}", timeout=60) as answer:
        assert "choose a photograph first" in answer.read().decode()


@pytest.mark.parametrize("address", ["http://127.0.0.1:9/a.png", "https://example.com/a.png"])
def test_an_address_in_place_of_a_picture_is_not_fetched(address: str, page: Any) -> None:
    assert "fetches nothing from other addresses" in translated_by_http(page, {"path": address})
    assert "choose a photograph" in translated_by_http(page, {"url": "data:image/png;base64,AAAA"})


def test_files_of_the_computer_that_nobody_uploaded_are_neither_translated_nor_served(page: Any) -> None:
    assert "event: error" in translated_by_http(page, {"path": str(PORTRAIT)})
    with pytest.raises(urllib.error.HTTPError, match="403"):
        urllib.request.urlopen(f"{page.local_url}gradio_api/file={PORTRAIT}", timeout=60)


@pytest.mark.parametrize(
    ("direction", "strength", "message"),
    [("ac", 1, "not in the list of choices"), ("ab", 3.1, "greater than maximum"), ("ab", -1, "less than minimum")],
)
def test_values_that_the_page_does_not_offer_are_refused(
    direction: str, strength: float, message: str, predict: Predict
) -> None:
    with pytest.raises(Exception, match=message):
        predict(PORTRAIT, direction, strength)


def test_the_page_is_for_this_computer_alone_and_offers_one_function(page: Any) -> None:
    assert page.server.config.host == "127.0.0.1"
    assert not page.share
    assert not page.analytics_enabled
    with urllib.request.urlopen(f"{page.local_url}gradio_api/info", timeout=60) as answer:
        assert list(json.loads(answer.read())["named_endpoints"]) == ["/translate"]
    with urllib.request.urlopen(f"{page.local_url}theme.css", timeout=60) as answer:
        assert not re.findall(r"https?://(?!www\.w3\.org)", answer.read().decode())


def test_without_gradio_the_program_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "gradio", None)
    monkeypatch.setenv("GRADIO_TEMP_DIR", "")
    with pytest.raises(UserError, match=r"pip install -r requirements-extra\.txt"), app.open_page(lambda: None):
        pass


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--port", "0"], "argument --port: must be a whole number of at least 1, got 0"),
        (["--port", "65536"], "argument --port: must be at most 65535, got 65536"),
        (["--max-megapixels", "x"], "argument --max-megapixels: must be a number above 0, got x"),
        (["--weights", "nowhere"], "error: there is no file or folder nowhere"),
    ],
)
def test_mistakes_on_the_command_line_are_explained(
    flags: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with suppress(SystemExit):
        assert app.main(flags) == 1
    assert message in capsys.readouterr().err


# --- Slow


@pytest.mark.slow
def test_twenty_requests_at_once_each_get_their_own_result(predict: Predict, tmp_path: Path) -> None:
    wishes = [("ab", 1), ("ba", 2), ("ab", 0.5), ("ba", 0)]
    expected = {wish: by_translate(PORTRAIT, tmp_path, "--direction", wish[0], "--strength", str(wish[1]))
                for wish in wishes}  # fmt: skip
    with ThreadPoolExecutor(20) as pool:
        results = list(pool.map(lambda wish: predict(PORTRAIT, *wish), wishes * 5))
    assert [Path(result).read_bytes() for _, _, result, _ in results] == [expected[wish] for wish in wishes * 5]


@pytest.mark.slow
def test_requests_beyond_the_queue_are_refused_in_words(page: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(page._queue, "max_size", 3)
    join = f"{page.local_url}gradio_api/call/translate"
    with ThreadPoolExecutor(20) as pool:
        answers = list(pool.map(lambda _: requests.post(join, json={"data": [None, "ab", 1, False]}), range(20)))
    refused = [answer for answer in answers if answer.status_code == 503]
    assert all("Queue is full" in answer.text for answer in refused)
    assert {answer.status_code for answer in answers} <= {200, 503}


@pytest.mark.slow
def test_files_are_deleted_after_a_while(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    monkeypatch.setattr(app, "CACHE_SECONDS", (1, 1))
    for name in ("GRADIO_TEMP_DIR", *app.SETTINGS):
        monkeypatch.setenv(name, "")
    make_image(1).save(tmp_path / "a.png")
    with open_here() as page:
        before = files_in(tmp_path)
        answer = requests.post(f"{page.local_url}gradio_api/upload", files={"files": (tmp_path / "a.png").open("rb")})
        assert len(files_in(tmp_path) - before) == 1
        translated_by_http(page, {"path": answer.json()[0]})
        deadline = time.monotonic() + 60
        while files_in(tmp_path) != before:
            assert time.monotonic() < deadline, files_in(tmp_path) - before
            time.sleep(0.2)
    assert files_in(tmp_path) == {tmp_path / "a.png"}


def files_in(folder: Path) -> set[Path]:
    """All files in a folder and in those in it."""
    return {path for path in folder.rglob("*") if path.is_file()}


@pytest.mark.slow
@pytest.mark.skipif(os.name == "nt", reason="Windows has no SIGTERM that a program could handle")
def test_the_program_serves_until_sigterm_and_leaves_nothing_behind(tmp_path: Path) -> None:
    program = subprocess.Popen(
        [sys.executable, str(ROOT / "app.py"), "--weights", str(BUNDLED_WEIGHTS)],
        stdout=subprocess.PIPE, text=True, cwd=tmp_path,
        env={k: v for k, v in os.environ.items() if k != "GRADIO_TEMP_DIR"} | {"TMPDIR": str(tmp_path)},
    )  # fmt: skip
    try:
        assert program.stdout is not None
        line = program.stdout.readline()
        address = re.fullmatch(r"the page is at (http://127\.0\.0\.1:\d+/); Ctrl-C ends it\n", line)
        assert address, line
        assert "Face translation" in requests.get(address[1], timeout=60).text
        program.send_signal(signal.SIGTERM)
        assert program.wait(120) == 128 + signal.SIGTERM
        assert [path for path in tmp_path.iterdir() if not path.name.startswith("torchinductor_")] == []  # torch's own
    finally:
        program.kill()
        program.wait()


@pytest.mark.slow
@pytest.mark.skipif(not BROWSER and "CI" not in os.environ, reason="there is no browser")
def test_a_browser_shows_the_result_and_talks_to_nobody_else(page: Any, tmp_path: Path) -> None:
    from playwright.sync_api import expect, sync_playwright

    expected = by_translate(PORTRAIT, tmp_path, "--direction", "ba", "--strength", "2")
    strangers: list[str] = []
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=BROWSER, args=["--no-sandbox"])
        tab = browser.new_page(viewport={"width": 1280, "height": 900})
        tab.set_default_timeout(120_000)
        tab.on("request", lambda request: strangers.append(request.url))
        tab.goto(page.local_url)
        tab.get_by_label("Asian to European").check()
        tab.get_by_label("number input for Strength").fill("2")
        tab.set_input_files("input[type=file]", PORTRAIT)
        expect(tab.locator(f"img[src$='{PORTRAIT.name}']").first).to_be_visible()
        tab.get_by_role("button", name="Translate").click()
        tab.get_by_text("1 face translated.").wait_for()

        shown = tab.get_by_test_id("imageslider-image")
        assert [shown.nth(n).evaluate("image => image.decode().then(() => image.naturalWidth)") for n in (0, 1)] == [
            640, 640
        ]  # fmt: skip
        before = shown.nth(1).get_attribute("style")
        tab.get_by_test_id("slider").drag_to(shown.nth(0), target_position={"x": 150, "y": 100})
        expect(shown.nth(1)).not_to_have_attribute("style", before or "")

        with tab.expect_download() as download:
            tab.get_by_role("button", name="Download").click()
        assert download.value.path().read_bytes() == expected
        tab.wait_for_load_state("networkidle")
        browser.close()
    allowed = (page.local_url, "data:", f"blob:{page.local_url}")
    assert [url for url in strangers if not url.startswith(allowed)] == []


@pytest.mark.slow
@pytest.mark.parametrize(("kind", "result"), [("python", None), ("bash", "translated.jpg")])
def test_the_examples_in_the_documentation_translate(
    kind: str, result: str | None, page: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    text = (ROOT / "docs" / "app.md").read_text().replace("http://127.0.0.1:7860/", page.local_url)
    example = next(block for block in re.findall(rf"```{kind}\n(.*?)```", text, re.DOTALL) if page.local_url in block)
    shutil.copy(PORTRAIT, tmp_path / "photo.jpg")
    monkeypatch.chdir(tmp_path)
    command = [sys.executable, "-c", example] if kind == "python" else ["bash", "-ec", example]
    done = subprocess.run(
        command, capture_output=True, text=True, check=True, env=os.environ | {"GRADIO_TEMP_DIR": "d"}
    )
    written = Path(result or done.stdout.splitlines()[-1].removesuffix(" 1 face translated."))
    assert written.read_bytes() == by_translate(tmp_path / "photo.jpg", tmp_path / "out")
