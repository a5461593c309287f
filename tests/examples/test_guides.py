"""The guides of `examples/` run and learn; the pages around them build."""

import base64
import http.client
import importlib.util
import io
import json
import re
import subprocess
import sys
import threading
from http.server import ThreadingHTTPServer
from pathlib import Path

import pytest
from PIL import Image
from test_scripts import load

from mf2face.data.synthetic.faces import draw_example


ROOT = Path(__file__).parents[2]
DOCS = ROOT / "docs"
GUIDES = (
    *"quickstart finetune_on_csv build_dataset write_captions add_label_set write_adapter export_model".split(),
    *("many_machines", "deploy"),
)
QUIET = ["--disable_tqdm", "True", "--use_cpu", "True"]


def journey(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, *options: str) -> list[dict]:
    import datasets

    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    return load("finetune_on_csv").main(["--out", str(tmp_path), *options, *QUIET])


def test_csv_becomes_an_adapter_that_predicts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    found = journey(tmp_path, monkeypatch, "--pictures", "48", "--num_train_epochs", "1")
    assert len(found) == 3 and all({"emotion", "action_units"} <= set(face) for face in found)
    scores = json.loads((tmp_path / "adapter" / "metrics.json").read_text())
    assert scores["test_images"] > 0 and (tmp_path / "adapter" / "adapter_model.safetensors").is_file()


@pytest.mark.slow
def test_the_whole_csv_journey_learns(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    journey(tmp_path, monkeypatch, "--pictures", "640")
    scores = json.loads((tmp_path / "adapter" / "metrics.json").read_text())
    assert scores["au_f1_tuned_macro"] > scores["base/au_f1_tuned_macro"]


def test_custom_label_set_is_learned_and_named(capsys: pytest.CaptureFixture[str]) -> None:
    found = load("add_label_set").main(["--steps", "4", "--faces", "8"])
    assert found["losses"][-1] < found["losses"][0]
    assert list(found["action_units"]) == ["AU4", "AU9", "AU12", "AU17", "AU25"]
    printed = capsys.readouterr().out
    assert "disfa: ['AU1', 'AU2', 'AU4', 'AU6', 'AU9', 'AU12', 'AU25', 'AU26'], emotions none" in printed
    assert "AU21" in printed and "AU99" in printed and "taken" not in printed


@pytest.mark.parametrize("method", ["dfn", "lora"])
def test_adapter_learns_and_loads_again(method: str, tmp_path: Path) -> None:
    losses = load("write_adapter").main(["--method", method, "--steps", "2", "--faces", "4", "--out", str(tmp_path)])
    assert set(losses) == {"sketch", "grain"} and all(last < first for first, last in losses.values())
    for style in losses:
        assert (tmp_path / style / "adapter_model.safetensors").is_file()


def png(pixels: object) -> str:
    Image.fromarray(pixels).save(file := io.BytesIO(), "PNG")
    return base64.b64encode(file.getvalue()).decode()


def test_the_service_answers_and_refuses(capsys: pytest.CaptureFixture[str]) -> None:
    deploy = load("deploy")
    found = deploy.main(["--check", "--engine", "torch"])
    assert set(found["action_units"]["AU12"]) >= {"probability", "threshold", "active"}
    assert "photographs of people mean nothing" in found["about"]
    with ThreadingHTTPServer(("127.0.0.1", 0), deploy.Service) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()

        def post(body: bytes, path: str = "/analyse", kind: str = "application/json", **headers: str) -> tuple:
            line = http.client.HTTPConnection("127.0.0.1", server.server_port, timeout=30)
            line.request("POST", path, body, {"Content-Type": kind, **headers})
            reply = line.getresponse()
            return reply.status, json.loads(reply.read())

        def face(**question: object) -> tuple:
            return post(json.dumps(question).encode())

        pixels, _ = draw_example(7, size=112)
        status, answer = face(image=png(pixels))
        assert status == 200 and answer["landmark_source"] == "template"
        assert post(b"", **{"Content-Length": str(deploy.MOST_BYTES + 1)})[0] == 413
        assert post(b"{}", kind="text/plain")[0] == post(b"{}", path="/elsewhere")[0] == 404
        for wrong in (b"{}", b"[]", b"no json", b'{"image": "no base64!"}', b'{"image": "AAAA"}', b"[" * 100_000):
            assert post(wrong)[0] == 400, wrong[:20]
        status, answer = face(image=png(pixels), landmarks=[[1, 2]])
        assert status == 400 and "landmarks" in answer["error"]
        deploy.MOST_PIXELS = 100
        status, answer = face(image=png(pixels))
        assert status == 400 and "expected at most 100 pixels" in answer["error"]
        assert face(image=png(pixels[:8, :8]))[0] in (200, 400)  # and the service still answers
        server.shutdown()
    assert "127.0.0.1" not in capsys.readouterr().err, "a log would say who asked"


@pytest.mark.parametrize("way", ["shards", "datasets", "ray"])
def test_many_machines_give_the_rows_of_one_run(way: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    if way == "ray":
        pytest.importorskip("ray")
    import datasets

    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    rows = load("many_machines").main(["--by", way, "--images", "6"])[way]
    assert len(rows) == (6 if way == "shards" else 7) and sum(bool(row.get("error")) for row in rows) == len(rows) - 6


@pytest.mark.parametrize("name", GUIDES)
def test_every_guide_has_a_page_and_its_command(name: str) -> None:
    assert f"../examples/{name}.py" in (DOCS / "guides.md").read_text()
    assert f"python examples/{name}.py" in (ROOT / "examples" / f"{name}.py").read_text()


def test_pages_include_sections_that_the_readme_has() -> None:
    for page in DOCS.glob("*.md"):
        for file, options in re.findall(r"```\{include\} \.\./(\S+)\n(.*?)```", page.read_text(), flags=re.DOTALL):
            text, marks = (ROOT / file).read_text(), re.findall(r':(?:start-after|end-before): "(.*)"', options)
            places = [text.find(f"\n{mark}\n" if mark.startswith("##") else mark) for mark in marks]
            assert -1 not in places and places == sorted(places), f"{page.name}: {marks}"


def docstrings() -> object:
    spec = importlib.util.spec_from_file_location("docstrings", DOCS / "docstrings.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_docstrings_become_restructuredtext() -> None:
    def example(one: int, two: int, *rest: int) -> None: ...

    to_rst = docstrings().to_rst
    text = to_rst("Reads `x` of [`MF2Config`], a * b.\n\n    one (`int`): first\n        line. two: it's `b`", example)
    assert text.splitlines() == [
        *("Reads ``x`` of :py:obj:`~.MF2Config`, a \\* b.", ""),
        *(":param one: (``int``) first line.", ":param two: it's ``b``"),
    ]
    assert to_rst("Note: prose, for `Note` is no parameter", example) == "Note: prose, for ``Note`` is no parameter"
    assert to_rst("Run:\n\n    python train.py", example).splitlines() == ["Run:", "", "::", "", "    python train.py"]
    assert to_rst("[`a`]s and `b`s, *rest, end_") == ":py:obj:`~.a`\\ s and ``b``\\ s, \\*rest, end\\_"


@pytest.mark.slow
def test_pages_build_and_load_nothing_from_the_network(tmp_path: Path) -> None:
    for package in ("sphinx", "furo", "myst_parser"):
        pytest.importorskip(package)
    command = [sys.executable, "-m", "sphinx", "--fail-on-warning", "--keep-going", str(DOCS), str(tmp_path)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]
    for page in tmp_path.rglob("*.html"):
        tags = re.findall(r"<(?:script|img|link|iframe)\b[^>]*>", page.read_text())
        assert not [tag for tag in tags if re.search(r'(?:src|href)="(https?:)?//', tag)], page
    assert not [sheet for sheet in tmp_path.rglob("*.css") if re.search(r"url\([\"']?(https?:)?//", sheet.read_text())]
