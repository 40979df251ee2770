"""The page that translates in the browser gives what Python gives, and reaches no other address."""

from __future__ import annotations

import base64
import functools
import io
import json
import os
import re
import shutil
import subprocess
import threading
from collections.abc import Iterator, Sequence
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import ModuleType
from typing import Any, NoReturn

import cv2
import numpy as np
import pytest
from conftest import ROOT
from PIL import Image
from test_translate import TEMPLATE, write_weights

import export
from photos import crops, faces
from photos.crops import paste_mask
from photos.faces import Face, find_faces
from photos.geometry import similarity, warp
from translate import load_translator
from utils import UserError
from weights import web_page
from weights.load import BUNDLED_WEIGHTS, load_weights
from weights.onnx_file import free_sides
from weights.web_page import write_page

BROWSER = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
PHOTOS = ROOT / "assets" / "photos"
MAX_SECONDS = 5.0  # The page takes at most this much of the processor's time for a photograph with one face.
MAX_WAIT = 120  # The page answers within this time, seconds, however busy the machine is.
MAX_DIFFERENCE = 2.0  # The mean difference from Python's result, in grey levels.


def give_up(reason: str) -> NoReturn:
    """Skip a test that this machine cannot run, or fail it where CI must run all."""
    (pytest.fail if "CI" in os.environ else pytest.skip)(reason)


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The page with the bundled weights."""
    pytest.importorskip("onnxscript")
    if not web_page.RUNTIME.exists():
        npm = shutil.which("npm")
        if not npm:
            give_up("npm is not installed")
        subprocess.run([npm, "ci", "--no-audit", "--no-fund"], cwd=web_page.PAGE, check=True)
    folder = tmp_path_factory.mktemp("page") / "site"
    assert export.main([str(BUNDLED_WEIGHTS), "--web", str(folder)]) == 0
    return folder


class QuietHandler(SimpleHTTPRequestHandler):
    """Offers a folder, as any web server does."""

    def log_message(self, format: str, *args: object) -> None:
        """Print nothing."""


@pytest.fixture(scope="module")
def address(site: Path) -> Iterator[str]:
    """Where a local web server offers the page."""
    server = ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(QuietHandler, directory=site))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}/"
    server.shutdown()
    server.server_close()


class Page:
    """The page in a browser.

    Attributes:
        tab: Playwright's page.
        requested: the addresses that it has asked for.
        complaints: what the browser has written to its console.
    """

    def __init__(self, browser: Any, address: str) -> None:
        self.tab = browser.new_page()
        self.requested: list[str] = []
        self.complaints: list[str] = []
        self.tab.on("request", lambda request: self.requested.append(request.url))
        self.tab.on("console", lambda message: self.complaints.append(message.text))
        self.tab.on("pageerror", lambda error: self.complaints.append(str(error)))
        self.tab.goto(address)
        self.wait_until_it_says("Choose a photograph")
        self.session = self.tab.context.new_cdp_session(self.tab)
        self.session.send("Performance.enable", {"timeDomain": "threadTicks"})  # not what other programs take

    @property
    def seconds(self) -> float:
        """How long the page has kept the processor busy."""
        metrics = self.session.send("Performance.getMetrics")["metrics"]
        return next(float(metric["value"]) for metric in metrics if metric["name"] == "TaskDuration")

    def wait_until_it_says(self, words: str) -> None:
        """Wait for a text on the line of status."""
        from playwright.sync_api import expect

        expect(self.tab.locator("#status")).to_contain_text(words, timeout=MAX_WAIT * 1000)

    def wait_until_idle(self) -> None:
        """Wait until the page has no translation left to do."""
        from playwright.sync_api import expect

        expect(self.tab.locator("#status")).not_to_contain_text("Translating", timeout=MAX_WAIT * 1000)

    def forget(self) -> None:
        """Empty the line of status."""
        self.tab.evaluate("document.getElementById('status').textContent = ''")

    def picture(self) -> np.ndarray:
        """What the page shows, (H, W, 3) uint8."""
        content = self.tab.evaluate("document.getElementById('result').toDataURL()").partition(",")[2]
        return np.asarray(Image.open(io.BytesIO(base64.b64decode(content))).convert("RGB"))

    def translate(self, photo: Path, direction: str, strength: float | None = None) -> np.ndarray:
        """A photograph as the page translates it, (H, W, 3) uint8; None leaves the strength as the page sets it."""
        self.tab.set_input_files("#file", [])
        self.tab.select_option("#direction", direction)  # translates the photograph that the page shows
        self.wait_until_idle()
        if strength is not None:
            self.tab.evaluate("value => { document.getElementById('strength').value = value; }", strength)
        self.forget()
        self.tab.set_input_files("#file", photo)
        self.wait_until_it_says(" face")
        return self.picture()


@pytest.fixture(scope="module")
def page(address: str) -> Iterator[Page]:
    sync_api = pytest.importorskip("playwright.sync_api")
    if not BROWSER:
        give_up("Chromium is not installed")
    flags = ["--no-sandbox", "--use-fake-ui-for-media-stream", "--use-fake-device-for-media-stream"]
    with sync_api.sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=BROWSER, args=flags)
        yield Page(browser, address)
        browser.close()


def assert_translated_alike(page: Page, path: Path, direction: Any, strength: float | None = None) -> int:
    """Assert that the page's result is Python's, over the picture and in the faces; returns the number of faces."""
    photo = Image.open(path).convert("RGB")
    before = np.asarray(photo).astype(int)
    expected = np.asarray(load_translator(BUNDLED_WEIGHTS, direction, strength=strength)(photo)).astype(int)
    off = np.abs(page.translate(path, direction, strength) - expected).mean(axis=2)
    change = np.abs(expected - before).mean(axis=2)
    faces = find_faces(np.asarray(photo))
    inside = mask_of(photo, faces) > 0.5
    assert off.mean() <= MAX_DIFFERENCE
    assert off[inside].mean() <= MAX_DIFFERENCE < change[inside].mean()
    return len(faces)


def mask_of(photo: Image.Image, faces: Sequence[Face]) -> np.ndarray:
    """How much of a change each pixel of a photograph takes on, (H, W), as Python pastes it."""
    weights = load_weights(BUNDLED_WEIGHTS)
    size, template = weights.config.image_size, weights.template
    assert template is not None
    crop = np.repeat(paste_mask(size, template)[..., None], 3, axis=2)
    mask = np.zeros(photo.size[::-1])
    for face in faces:
        matrix = np.linalg.inv(similarity(face.landmarks, np.array(template) * size))
        mask = np.maximum(mask, warp(crop, matrix, photo.size, cv2.BORDER_CONSTANT)[..., 0])
    return mask


@pytest.mark.slow
@pytest.mark.parametrize(("direction", "strength"), [("ab", None), ("ba", None), ("ab", 2.0)])
@pytest.mark.parametrize("name", sorted(path.name for path in PHOTOS.iterdir()))
def test_the_page_translates_as_python_does(page: Page, name: str, direction: str, strength: float | None) -> None:
    start = page.seconds
    assert assert_translated_alike(page, PHOTOS / name, direction, strength) == 1
    assert page.seconds - start <= MAX_SECONDS


@pytest.mark.slow
def test_the_page_finds_small_faces_that_lie_on_their_side(page: Page, tmp_path: Path) -> None:
    """The photograph is so large that finer copies of it are searched."""
    large = Image.new("RGB", (2600, 1800), "slategrey")
    large.paste(Image.open(PHOTOS / "portrait.jpg").rotate(90, expand=True), (1700, 200))
    large.paste(Image.open(PHOTOS / "portrait.jpg").rotate(90, expand=True).resize((300, 240)), (300, 900))
    large.save(tmp_path / "large.png")
    assert assert_translated_alike(page, tmp_path / "large.png", "ab") == 2


@pytest.mark.slow
def test_nothing_reaches_another_address(page: Page, address: str) -> None:
    page.translate(PHOTOS / "portrait.jpg", "ab")
    assert page.complaints == []
    assert {url for url in page.requested if not url.startswith((address, f"blob:{address}", "data:"))} == set()
    with ThreadingHTTPServer(("127.0.0.1", 0), QuietHandler) as other:
        url = f"http://127.0.0.1:{other.server_port}/"
        answer = page.tab.evaluate("url => fetch(url).then(() => 'reached', error => 'refused')", url)
    assert answer == "refused"
    assert "Content Security Policy" in page.complaints.pop(0)
    page.complaints.clear()


@pytest.mark.slow
def test_a_photograph_can_be_dropped_taken_and_saved(page: Page, tmp_path: Path) -> None:
    # Drop one.
    expected = page.translate(PHOTOS / "tilted_head.jpg", "ba")
    page.translate(PHOTOS / "portrait.jpg", "ba")
    page.forget()
    content = base64.b64encode((PHOTOS / "tilted_head.jpg").read_bytes()).decode()
    page.tab.evaluate(
        """content => {
          const bytes = Uint8Array.from(atob(content), (letter) => letter.charCodeAt(0));
          const dataTransfer = new DataTransfer();
          dataTransfer.items.add(new File([bytes], "photo.jpg", { type: "image/jpeg" }));
          document.dispatchEvent(new DragEvent("drop", { dataTransfer, cancelable: true }));
        }""",
        content,
    )
    page.wait_until_it_says(" face")
    assert np.array_equal(page.picture(), expected)

    # Save it.
    with page.tab.expect_download() as download:
        page.tab.click("#save")
    download.value.save_as(tmp_path / "saved.png")
    assert np.array_equal(np.asarray(Image.open(tmp_path / "saved.png").convert("RGB")), expected)

    # Take another; the browser's stand-in for a camera shows no face.
    page.forget()
    page.tab.click("#camera")
    page.tab.wait_for_selector("#video:not([hidden])")
    page.tab.locator("#video").evaluate(
        "video => video.videoWidth || new Promise(done => { video.onloadeddata = done; })"
    )
    page.tab.click("#camera")
    page.wait_until_it_says("No face was found.")
    assert page.picture().shape != expected.shape


@pytest.mark.slow
def test_a_file_that_is_no_image_is_explained(page: Page, tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("no image")
    page.tab.set_input_files("#file", tmp_path / "notes.txt")
    page.wait_until_it_says("notes.txt is not an image that this browser can read")


# --- What can be checked without a browser


def numbers_in(name: str) -> dict[str, float]:
    """The constants of a file of the page whose values are numbers."""
    text = (web_page.PAGE / name).read_text(encoding="utf-8")
    return {key: float(value) for key, value in re.findall(r"^const ([A-Z_]+) = ([\d.e]+);", text, re.MULTILINE)}


@pytest.mark.parametrize(
    ("name", "module", "least"), [("detect.js", faces, 16), ("yunet.js", faces, 2), ("paste.js", crops, 10)]
)
def test_the_numbers_of_the_page_are_those_of_python(name: str, module: ModuleType, least: int) -> None:
    numbers = numbers_in(name)
    numbers.pop("MULTIPLE", None)  # OpenCV's own
    assert len(numbers) >= least
    assert numbers == {key: getattr(module, key) for key in numbers}


def test_the_page_jitters_as_python_does() -> None:
    text = (web_page.PAGE / "detect.js").read_text(encoding="utf-8")
    found = json.loads("[" + re.findall(r"JITTERS = \[\n(.*?),\n\]", text, re.DOTALL)[0] + "]")
    random = np.random.default_rng(0)
    for angle, scale, *centre in found:
        assert angle == pytest.approx(random.uniform(-faces.JITTER_ANGLE, faces.JITTER_ANGLE), abs=1e-5)
        assert scale == pytest.approx(1 + random.uniform(-faces.JITTER_SCALE, faces.JITTER_SCALE), abs=1e-5)
        offset = random.uniform(-faces.JITTER_SHIFT, faces.JITTER_SHIFT, 2)
        assert centre == pytest.approx([*(faces.WINDOW_SIDE / 2 + offset)], abs=1e-5)
    assert len(found) == faces.NUM_PASSES


def test_the_policy_allows_no_other_address_and_the_page_names_none() -> None:
    text = (web_page.PAGE / "index.html").read_text(encoding="utf-8")
    (policy,) = re.findall(r'http-equiv="Content-Security-Policy" content="([^"]*)"', text)
    rules = dict(rule.split(" ", 1) for rule in policy.split("; "))
    assert rules["default-src"] == "'none'"
    assert {source for rule in rules.values() for source in rule.split()} == {
        "'none'", "'self'", "'wasm-unsafe-eval'", "blob:", "data:"
    }  # fmt: skip
    for path in web_page.PAGE.glob("*.*"):
        assert path.name == "package-lock.json" or "//" not in re.sub(
            r"^\s*//.*| // .*", "", path.read_text(), flags=re.M
        )


@pytest.fixture
def without_models(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder for the page, for which neither npm nor torch.onnx has to run."""
    (tmp_path / "dist").mkdir()
    for name in web_page.RUNTIME_FILES:
        (tmp_path / "dist" / name).touch()
    monkeypatch.setattr(web_page, "RUNTIME", tmp_path / "dist")
    monkeypatch.setattr(web_page, "write_onnx", lambda weights, direction, target: target.touch())
    return tmp_path / "site"


def test_the_folder_holds_all_that_the_page_asks_for(without_models: Path) -> None:
    pytest.importorskip("onnx")
    weights = load_weights(write_weights(without_models.parent / "faces.safetensors", TEMPLATE, {"ab": 1.5}))
    for _ in range(2):
        write_page(weights, without_models)
    for path in without_models.glob("*.*"):
        for named in re.findall(r'(?:from|href=|src=) ?"([^":,]+)"', path.read_text(encoding="utf-8")):
            assert (without_models / named).exists(), f"{path.name} needs {named}"
    settings = json.loads((without_models / "models" / "models.json").read_text())
    assert settings == {
        "image_size": 64,
        "template": [list(point) for point in TEMPLATE],
        "names": {"ab": "european to asian"},
        "strength": {"ab": 1.5},
    }


def test_an_interrupted_page_is_completed_by_the_next_call(
    without_models: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("onnx")
    weights = load_weights(write_weights(without_models.parent / "faces.safetensors", TEMPLATE))

    def interrupted(*_: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(web_page, "write_onnx", interrupted)
        with pytest.raises(KeyboardInterrupt):
            write_page(weights, without_models)
    write_page(weights, without_models)
    assert (without_models / "models" / "gen_ab.onnx").exists()


def test_the_detector_takes_images_of_any_size(tmp_path: Path) -> None:
    onnxruntime = pytest.importorskip("onnxruntime")
    free_sides(web_page.DETECTOR, tmp_path / "yunet.onnx")
    session = onnxruntime.InferenceSession(tmp_path / "yunet.onnx", providers=["CPUExecutionProvider"])
    (scores,) = session.run(["cls_8"], {"input": np.zeros((1, 3, 64, 96), np.float32)})
    assert scores.shape == (1, 64 // 8 * 96 // 8, 1)


def test_a_page_that_cannot_be_written_is_explained(
    without_models: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    weights = load_weights(write_weights(tmp_path / "horses.safetensors", None))
    with pytest.raises(UserError, match="records no faces, and the page translates nothing else"):
        write_page(weights, without_models)
    weights = load_weights(write_weights(tmp_path / "faces.safetensors", TEMPLATE))
    with pytest.raises(UserError, match="holds other files: name a new folder with --web"):
        write_page(weights, tmp_path)
    monkeypatch.setattr(web_page, "RUNTIME", tmp_path / "nowhere")
    with pytest.raises(UserError, match="the page's runtime is missing; run: npm ci --prefix"):
        write_page(weights, without_models)
    assert not without_models.exists()
