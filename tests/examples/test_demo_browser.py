"""The demo in a real browser, as a visitor meets it: Chromium without a screen, and a server of its own."""

import csv
import os
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from example_scripts import DEMO, face_bytes, load, write_adapters


CHROMIUM = "/usr/bin/chromium"
pytestmark = pytest.mark.slow
pytest.importorskip("gradio", reason='gradio is not installed: pip install -e ".[demo]"')
playwright = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
if not os.path.exists(CHROMIUM):
    pytest.skip(f"no browser at {CHROMIUM}", allow_module_level=True)

WAIT = 240_000
"""Milliseconds; a busy machine is no failure."""


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[str, Path]]:
    """Address, and the folder in which the server may write what it cannot do without."""
    folder = tmp_path_factory.mktemp("served")
    adapters, temporary = write_adapters(folder / "adapters"), folder / "temporary"
    temporary.mkdir()
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [sys.executable, DEMO / "app.py", "--adapters", adapters, "--port", str(port), "--device", "cpu"]
    places = {"TMPDIR": str(temporary), "GRADIO_TEMP_DIR": str(temporary / "gradio")}
    environment = {**os.environ, **places, "TORCH_HOME": str(folder / "no_detector")}
    with open(folder / "log.txt", "w") as log:
        server = subprocess.Popen(command, env=environment, stdout=log, stderr=log, cwd=DEMO.parent.parent)
    address, end = f"http://127.0.0.1:{port}/", time.monotonic() + WAIT / 1000
    try:
        while True:
            try:
                urllib.request.urlopen(address, timeout=5).close()
                break
            except OSError:
                assert server.poll() is None and time.monotonic() < end, (folder / "log.txt").read_text()
                time.sleep(0.5)
        yield address, temporary
    finally:
        server.terminate()
        server.wait(30)


class Visitor:
    def __init__(self, api: Any, address: str) -> None:
        switches = ["--no-sandbox", "--use-fake-device-for-media-stream", "--use-fake-ui-for-media-stream"]
        self.browser = api.chromium.launch(executable_path=CHROMIUM, args=switches)
        self.page = self.browser.new_page(viewport={"width": 1280, "height": 900})
        self.page.set_default_timeout(WAIT)
        self.asked: list[str] = []
        self.errors: list[str] = []
        self.page.on("request", lambda request: self.asked.append(request.url))
        self.page.on("pageerror", lambda error: self.errors.append(str(error)))
        self.page.goto(address)
        self.page.wait_for_selector("#result .mf-row")

    def numbers(self) -> list[str]:
        return self.page.locator("#result .mf-units .mf-row > :last-child").all_inner_texts()

    def changes(self, before: str) -> None:
        self.page.wait_for_function(
            "before => !document.querySelector('#result').inert && document.querySelector('#result .mf-result, "
            "#result .mf-problem').textContent !== before",
            arg=before,
        )

    def does(self, act: Any) -> "Visitor":
        """And waits until the answer is another one."""
        before = self.page.locator("#result .mf-result, #result .mf-problem").first.text_content()
        act()
        self.changes(before)
        return self

    def sends(self, name: str, content: bytes) -> "Visitor":
        file = {"name": name, "mimeType": "image/png", "buffer": content}
        return self.does(lambda: self.page.set_input_files("#one input[type=file]", [file]))

    def chooses(self, adapter: str) -> "Visitor":
        return self.does(lambda: self.page.get_by_label(adapter, exact=True).check())


@pytest.fixture
def visitor(served: tuple[str, Path]) -> Iterator[Visitor]:
    with playwright.sync_playwright() as api:
        visitor = Visitor(api, served[0])
        yield visitor
        assert visitor.errors == []
        elsewhere = [url for url in visitor.asked if not url.startswith((served[0], "data:", "blob:"))]
        assert elsewhere == [] and len(visitor.asked) > 5
        visitor.browser.close()
    left = [path for path in served[1].rglob("*") if path.is_file()]
    assert left == [], "something was kept"


def test_upload_heat_adapter_and_what_is_no_picture(visitor: Visitor) -> None:
    page = visitor.page
    assert "synthetic" in page.locator("#about .mf-banner").inner_text()
    visitor.sends("mine.png", face_bytes(12))
    assert len(visitor.numbers()) == 12 and page.locator(".mf-verdict").is_visible()

    page.click('#result [data-name="AU12"]')
    heat = page.locator(".mf-heat image").get_attribute("href")
    assert heat.startswith("data:image/png;base64,") and page.locator(".mf-photo.heated").count() == 1
    assert "AU12 lip corner puller" in page.locator(".mf-told").inner_text()
    page.click('#result [data-name="AU1"]')
    assert page.locator(".mf-heat image").get_attribute("href") != heat

    plain = visitor.numbers()
    mild = visitor.chooses("mild").numbers()
    wild = visitor.chooses("wild").numbers()
    assert len({tuple(plain), tuple(mild), tuple(wild)}) == 3
    assert "AU1 inner brow raiser" in page.locator(".mf-told").inner_text(), "the map stays that of the chosen unit"
    assert page.locator(".mf-key .mf-was").count() == 1
    assert visitor.chooses("none").numbers() == plain

    visitor.sends("really.png", b"not a picture")
    assert "no JPEG, PNG or WebP" in page.locator("#result [role=alert]").inner_text()
    visitor.sends("huge.png", bytes(9 * 2**20))
    assert "larger than 8 MB" in page.locator("#result [role=alert]").inner_text()
    visitor.sends("again.png", face_bytes(12))
    assert visitor.numbers() == plain
    visitor.does(lambda: page.get_by_label("The picture is one face that fills it").uncheck())
    assert "no face detector" in page.locator("#result [role=alert]").inner_text()


def test_two_faces_and_the_webcam(visitor: Visitor) -> None:
    page = visitor.page
    visitor.does(lambda: page.click('[data-example="two"]'))
    assert page.locator(".mf-box").count() == 2
    first = page.locator(".mf-verdict:visible").inner_text()
    page.click('.mf-box[data-face="1"]')
    assert page.locator(".mf-verdict:visible").inner_text() != first
    page.click('[data-do="camera"]')
    page.wait_for_function("document.querySelector('.mf-video').videoWidth > 0")
    visitor.does(lambda: page.click('[data-do="camera"]'))
    assert page.locator(".mf-preview").is_visible() and page.locator("#result .mf-row").count() > 0


def test_many_pictures_become_a_csv(visitor: Visitor, tmp_path: Path) -> None:
    page = visitor.page
    page.get_by_role("tab", name="Many pictures").click()
    good = [{"name": f"face {n}.png", "mimeType": "image/png", "buffer": face_bytes(n)} for n in (3, 12, 40)]
    bad = {"name": "<i>notes.png", "mimeType": "image/png", "buffer": b"no picture"}
    page.set_input_files("#many input[type=file]", [*good, bad])
    page.wait_for_selector("#rows a[download]")
    assert "<i>notes.png" in page.locator("#rows [role=alert]").inner_text()
    with page.expect_download() as download:
        page.click("#rows a[download]")
    download.value.save_as(tmp_path / "faces.csv")
    with open(tmp_path / "faces.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    assert [row["input"] for row in rows] == ["face 3.png", "face 12.png", "face 40.png"]
    assert all(0 <= float(row["AU12"]) <= 1 for row in rows) and len(rows[0]) > 160


def test_two_users_at_once_get_the_answers_of_their_own_adapters(served: tuple[str, Path]) -> None:
    def user(adapter: str) -> tuple[list[str], list[list[str]]]:
        with playwright.sync_playwright() as api:
            visitor = Visitor(api, served[0])
            visitor.chooses(adapter)
            seen = []
            for name in ("sad", "surprised") * 3:
                visitor.does(lambda name=name: visitor.page.click(f'[data-example="{name}"]'))
                assert f"with {adapter}:" in visitor.page.locator("#about").inner_text()
                seen.append(visitor.numbers())
            visitor.browser.close()
            return seen[:2], seen

    with ThreadPoolExecutor(2) as pool:
        (mild, all_mild), (wild, all_wild) = pool.map(user, ["mild", "wild"])
    assert all_mild == mild * 3 and all_wild == wild * 3
    assert mild[0] != wild[0] and mild[1] != wild[1]


def test_the_space_runs_on_its_own(tmp_path: Path) -> None:
    adapters = write_adapters(tmp_path / "adapters")
    space = load("demo/demo_space").main([str(tmp_path / "space"), "--adapters", str(adapters / "mild")])
    script = """
import sys
import app
from demo_engine import Engine
engine = Engine(adapters=["adapters"], device="cpu")
app.build_app(engine)
from demo_engine import example
look = engine.look(example("sad"), "mf2-tiny-rendered", "mild", words=False)
print(len(look.faces[0].action_units), sys.modules["mf2face"].__file__)
print(app.launch_settings(engine.limits)["share"])
"""
    environment = {**os.environ, "PYTHONPATH": str(space)}
    ran = subprocess.run([sys.executable, "-c", script], cwd=space, env=environment, capture_output=True, text=True)
    assert ran.returncode == 0, ran.stderr
    assert ran.stdout.split() == ["12", str(space / "mf2face" / "__init__.py"), "False"]
    with pytest.raises(FileExistsError, match="there already"):
        load("demo/demo_space").write_space(space)
