"""The web demo without a browser: what it refuses, whose adapter answers whom, and that names cannot become code."""

import asyncio
import configparser
import io
import re
import shutil
import threading
import time
import zlib
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from analysis_media import FakeDetector, face_at
from example_scripts import DEMO, as_sent, face_bytes, load, write_adapters
from peft import PeftModel
from PIL import Image
from safetensors.torch import load_file, save_file

from mf2face.inference.explain.page import banner
from mf2face.inference.model import EMBEDDED
from modeling_mf2 import MF2ForFaceAnalysis
from processing_mf2 import MF2Processor


limits, engine_file, view, space = (load(f"demo/demo_{name}") for name in ("limits", "engine", "view", "space"))
Limits, Refused = limits.Limits, limits.Refused
MODEL = EMBEDDED.name


@pytest.fixture(scope="module")
def adapters(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """`mild` and `wild`."""
    return write_adapters(tmp_path_factory.mktemp("made") / "adapters")


@pytest.fixture(scope="module")
def engine(adapters: Path) -> Any:
    return engine_file.Engine(adapters=[adapters], device="cpu")


def upload(name: str = "mine.png") -> Any:
    return engine_file.Picture(name, limits.read_picture(face_bytes(), Limits()))


def units(look: Any, face: int = 0) -> dict[str, float]:
    return {name: unit["probability"] for name, unit in look.faces[face].action_units.items()}


def test_the_content_decides_what_is_a_picture_and_a_bomb_is_refused_before_it_is_decoded() -> None:
    for kind in ("PNG", "JPEG", "WEBP"):
        assert limits.read_picture(face_bytes(kind=kind), Limits()).shape == (3, 160, 160)
    bomb = bytearray(face_bytes(size=64))
    bomb[16:24] = (50_000).to_bytes(4, "big") * 2  # width and height in the header of a PNG
    bomb[29:33] = zlib.crc32(bomb[12:29]).to_bytes(4, "big")
    wrong = dict.fromkeys((b"", b"<svg onload=alert(1)>", face_bytes(kind="TIFF"), b"%!PS-Adobe-3.0"), "no JPEG, PNG")
    for content, said in (wrong | {face_bytes()[:2000]: "could not be read", bytes(bomb): "pixels"}).items():
        with pytest.raises(Refused, match=said):
            limits.read_picture(content, Limits())
    file, exif = io.BytesIO(), Image.Exif()
    exif[0x0112] = 6
    Image.fromarray(np.zeros((1000, 2000, 3), np.uint8)).save(file, "JPEG", exif=exif)
    assert limits.read_picture(file.getvalue(), Limits(side=500)).shape == (3, 500, 250), "shrunk and turned"


def test_what_arrives_is_measured_before_it_is_decoded() -> None:
    small = Limits(mebibytes=0.01)
    assert limits.decode(as_sent(b"x" * 10_000)["data"], small) == b"x" * 10_000
    with pytest.raises(Refused, match="larger than"):
        limits.decode(as_sent(b"x" * 11_000)["data"], small)
    for sent in (None, 7, "", "file:///etc/passwd", "http://127.0.0.1/", "data:image/png;base64,***"):
        with pytest.raises(Refused):
            limits.decode(sent, small)


def test_pictures_are_decoded_one_at_a_time(monkeypatch: pytest.MonkeyPatch) -> None:
    at_work, most = [], []

    def slow(content: bytes, **settings: object) -> np.ndarray:
        at_work.append(1)
        most.append(len(at_work))
        time.sleep(0.02)
        at_work.pop()
        return np.zeros((3, 32, 32), np.uint8)

    monkeypatch.setattr(limits, "read_image", slow)
    with ThreadPoolExecutor(4) as pool:
        list(pool.map(limits.read_picture, [face_bytes()] * 8, [Limits()] * 8))
    assert most == [1] * 8


def held() -> int:
    return int(Path("/proc/self/statm").read_text().split()[1]) * 4096


def test_the_largest_picture_costs_no_more_than_is_said() -> None:
    """Of what is decoded on the way, too, which the process has no copy of afterwards."""
    content = io.BytesIO()
    Image.new("RGBA", (4800, 4800), (9, 9, 9, 128)).save(content, "PNG")
    before, stop, peak = held(), threading.Event(), [0]

    def watch() -> None:
        while not stop.wait(0.005):
            peak[0] = max(peak[0], held())

    (watcher := threading.Thread(target=watch)).start()
    limits.read_picture(content.getvalue(), Limits())
    stop.set()
    watcher.join()
    assert peak[0] - before < 600 * 2**20


def test_pictures_a_minute_are_counted_for_session_and_address() -> None:
    now = [0.0]
    rate = limits.RateLimit(clock=lambda: now[0], most_known=3)
    for _ in range(2):
        rate.take({"a": 2, "address": 3})
    with pytest.raises(Refused, match="more than 2 pictures a minute"):
        rate.take({"a": 2, "address": 3})
    rate.take({"b": 2, "address": 3})
    with pytest.raises(Refused, match="more than 3"):
        rate.take({"c": 2, "address": 3})  # another session of the same address
    now[0] = 61
    rate.take({"a": 2, "address": 3}, cost=2)
    with pytest.raises(Refused):
        rate.take({"never": 2}, cost=5)
    for number in range(20):
        rate.take({f"session {number}": 1})
    assert len(rate._asked) <= 3


def asked(method: str, path: str, length: int | None = 10) -> tuple[int, dict[str, str]]:
    answers: list[dict[str, Any]] = []

    async def inside(scope: Any, receive: Any, send: Any) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": []})

    async def send(message: dict[str, Any]) -> None:
        answers.append(message)

    headers = [] if length is None else [(b"content-length", str(length).encode())]
    scope = {"type": "http", "path": path, "method": method, "headers": headers}
    asyncio.run(limits.Guard(inside, most_bytes=1000)(scope, None, send))
    return answers[0]["status"], {name.decode(): value.decode() for name, value in answers[0]["headers"]}


def test_the_guard_lets_through_what_the_page_needs_and_nothing_that_writes() -> None:
    assert asked("GET", "/")[0] == asked("POST", "/gradio_api/queue/join")[0] == 200
    assert "default-src 'self'" in asked("GET", "/")[1]["content-security-policy"]
    for path in ("/gradio_api/upload", "/upload/", "/gradio_api/file=/etc/passwd", "/gradio_api/proxy=http://a.b/c"):
        assert asked("GET", path)[0] == asked("POST", path)[0] == 404
    for path in ("/gradio_api/run/predict", "/gradio_api/component_server", "/login"):
        assert asked("POST", path)[0] == 405
    assert asked("POST", "/gradio_api/queue/join", 1001)[0] == 413
    assert asked("POST", "/gradio_api/queue/join", None)[0] == 411


def test_an_adapter_answers_as_in_the_class_that_it_was_trained_in(engine: Any) -> None:
    picture = engine_file.example("sad")
    processor = MF2Processor.from_pretrained(EMBEDDED)
    inputs = processor(images=picture.pixels, landmarks=picture.landmarks[0], return_tensors="pt")
    for adapter in engine.adapters:
        tuned = PeftModel.from_pretrained(MF2ForFaceAnalysis.from_pretrained(EMBEDDED), adapter.folder).eval()
        with torch.no_grad():
            expected = tuned(**inputs).au_logits[0].sigmoid().tolist()
        found = engine.look(picture, MODEL, adapter.label, words=False)
        assert list(units(found).values()) == pytest.approx(expected, abs=1e-5)


def test_two_users_at_once_get_their_own_adapters_answers(engine: Any) -> None:
    picture, choices = engine_file.example("laughing"), [None, "mild", "wild"]
    alone = {choice: units(engine.look(picture, MODEL, choice, words=False)) for choice in choices}
    for one, other in ((None, "mild"), ("mild", "wild")):
        assert max(abs(alone[one][name] - alone[other][name]) for name in alone[one]) > 0.01
    start = threading.Barrier(6)

    def user(choice: str | None) -> list[bool]:
        start.wait()
        looks = [engine.look(picture, MODEL, choice, words=False) for _ in range(4)]
        return [units(look) == pytest.approx(alone[choice], abs=1e-6) for look in looks]

    with ThreadPoolExecutor(6) as pool:
        assert all(all(right) for right in pool.map(user, choices * 2))
    plain, changed = (engine.look(picture, MODEL, choice, words=False) for choice in (None, "wild"))
    assert changed.before[0] == pytest.approx({**alone[None], **plain.faces[0].emotions}, abs=1e-6)


def test_what_is_not_offered_is_refused(engine: Any, tmp_path: Path) -> None:
    picture = engine_file.example("sad")
    for model, adapter in (("other", None), (MODEL, "../mild"), (MODEL, "")):
        with pytest.raises(Refused, match="here"):
            engine.look(picture, model, adapter)
    with pytest.raises(ValueError, match="expected an adapter's folder"):
        engine_file.Engine(adapters=[tmp_path])
    folder = next(one.folder for one in engine.adapters)
    with pytest.raises(ValueError, match="belongs to the model 'mf2-tiny-rendered'"):
        engine_file.Engine(["some/other"], [folder])
    damaged = shutil.copytree(folder, tmp_path / "damaged")
    weights = load_file(damaged / "adapter_model.safetensors")
    save_file({name: tensor * float("nan") for name, tensor in weights.items()}, damaged / "adapter_model.safetensors")
    with pytest.raises(ValueError, match=r"damaged: .* NaN"):
        engine_file.Engine(adapters=[damaged])


def test_without_a_detector_an_upload_is_a_crop_only_if_the_user_says_so(engine: Any) -> None:
    alone = engine_file.Engine(device="cpu")
    alone.finder = None
    picture = upload()
    with pytest.raises(Refused, match="no face detector"):
        alone.look(picture, MODEL)
    assert len(alone.look(picture, MODEL, aligned=True, words=False).faces) == 1


def test_with_a_detector_each_face_has_its_box_and_the_largest_come_first() -> None:
    found = [face_at(10, 10, side=40), face_at(60, 40, side=90)]
    seeing = engine_file.Engine(detector=FakeDetector([found, []]), device="cpu", limits=Limits(faces=1))
    picture = upload()
    look = seeing.look(picture, MODEL, words=False)
    assert look.left_out == 1 and look.faces[0].box == pytest.approx((60, 40, 150, 130))
    page = view.answer(look)
    assert 'x="60.0" y="40.0" width="90.0" height="90.0"' in page and "The 1 largest of 2 faces" in page
    with pytest.raises(Refused, match="No face was found"):
        seeing.look(picture, MODEL)


def test_the_answer_shows_every_figure_and_a_map_for_each_unit(engine: Any) -> None:
    look = engine.look(engine_file.example("surprised"), MODEL, "mild")
    page = view.answer(look)
    for name, unit in look.faces[0].action_units.items():
        row = re.search(f'data-name="{name}".*?</button>', page, re.DOTALL)[0]
        assert f"<span>{unit['probability']:.2f} " in row and 'data-heat="data:image/png;base64,' in row
        assert ("mf-row on" in page[page.index(row) - 60 : page.index(row)]) == unit["active"]
    assert "with mild: trained on synthetic faces" in banner(look.faces[0].about)
    assert look.faces[0].sentences["emotion"] in page


def test_names_are_never_code(engine: Any) -> None:
    name = '<img src=x onerror=alert(1)>"${alert(1)}{{1}}'
    picture = upload(name)
    columns, rows = engine.rows(picture, MODEL, "mild", aligned=True)
    for page in (
        view.answer(engine.look(picture, MODEL, aligned=True, words=False)),
        view.table(columns, rows, [(name, name)]),
        banner({"model": name, "adapter": name, "trained_on": name}),
        view.problem(name),
    ):
        assert "<img" not in page
    for many in (False, True):  # gradio evaluates what stands there
        assert not re.search(r"\$\{|\{\{|\\", view.source(Limits(), many))


def test_rows_are_those_of_the_command(engine: Any) -> None:
    columns, rows = engine.rows(engine_file.example("two"), MODEL)
    assert [row["face_id"] for row in rows] == [0, 1] and list(rows[0]) == columns
    look = engine.look(engine_file.example("two"), MODEL, words=False)
    by_box = {round(face.box[0], 2): face for face in look.faces}
    for row in rows:
        face = by_box[row["FaceRectX"]]
        assert row["AU06"] == pytest.approx(face.action_units["AU6"]["probability"], abs=2e-6)


def test_the_space_asks_for_what_the_package_asks_for() -> None:
    setup = configparser.ConfigParser()
    setup.read(DEMO.parent.parent / "setup.cfg")
    wanted = {*setup["options"]["install_requires"].split(), *setup["options.extras_require"]["demo"].split()}
    asked_for = set((DEMO / "requirements.txt").read_text().split())
    assert asked_for <= wanted and {line for line in asked_for if line.startswith(("torch", "peft", "gradio"))}
    header = (DEMO / "README.md").read_text().split("---")[1]
    version = re.search(r"sdk_version: (\d+\.\d+)", header)[1]
    assert any(line.startswith(f"gradio>={version},") for line in asked_for) and "app_file: app.py" in header


def test_the_space_takes_folders_of_adapters_as_the_page_does(adapters: Path, tmp_path: Path) -> None:
    def names(target: Path) -> list[str]:
        return sorted(path.parent.name for path in target.glob("adapters/*/adapter_config.json"))

    several = shutil.copytree(adapters, tmp_path / "several")
    shutil.copytree(several / "mild", several / "checkpoint-10")  # of a run: no adapter that anybody chose
    target, find = space.main([str(tmp_path / "all"), "--adapters", str(several)]), engine_file.Adapter.find
    assert names(target) == ["mild", "wild"] == sorted(one.label for one in find([several]))
    assert sorted(one.label for one in find([target / "adapters"])) == ["mild", "wild"]
    assert (target / "adapters" / "wild" / "adapter_model.safetensors").is_file() and (target / "app.py").is_file()
    assert not (target / "demo_space.py").exists()
    assert names(space.main([str(tmp_path / "one"), "--adapters", *[str(several / "mild")] * 2])) == ["mild"]
    assert not (space.main([str(tmp_path / "none")]) / "adapters").exists()


def test_what_the_space_cannot_take_leaves_nothing_behind(
    adapters: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    target, empty, other = tmp_path / "space", tmp_path / "empty", tmp_path / "other"
    empty.mkdir()
    shutil.copytree(adapters / "mild", other / "mild")
    shutil.copytree(adapters / "mild", other / "checkpoint-10")
    shutil.copytree(adapters / "wild", foreign := tmp_path / "foreign")
    config = (foreign / "adapter_config.json").read_text()
    (foreign / "adapter_config.json").write_text(config.replace("mf2-tiny-rendered", "somebody-elses"))

    def full(source: Path, place: Path) -> None:
        raise OSError(28, "No space left on device")

    refused = {
        f"{other / 'mild'} and .*{adapters.name}/mild|{adapters.name}/mild and .*{other / 'mild'}": [adapters, other],
        "empty, expected an adapter's folder, or a folder of such folders": [adapters, empty],
        "checkpoint-10 .*expected an adapter's folder": [other / "checkpoint-10"],
        "belongs to the model 'somebody-elses', expected 'mf2-tiny-rendered'": [foreign],
        "No space left": [adapters],
    }
    for said, places in refused.items():
        if said == "No space left":
            monkeypatch.setattr(shutil, "copyfile", full)
        with pytest.raises((ValueError, OSError), match=said):
            space.write_space(target, places)
        assert sorted(path.name for path in tmp_path.iterdir()) == ["empty", "foreign", "other"]
    with pytest.raises(FileExistsError, match="there already"):
        space.write_space(empty)
