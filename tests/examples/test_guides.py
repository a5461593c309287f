"""Examples and guides run and learn; the pages around them build."""

import base64
import http.client
import io
import json
import re
import shutil
import subprocess
import sys
import threading
from http.server import ThreadingHTTPServer
from pathlib import Path

import datasets
import numpy as np
import pytest
import torch
from example_scripts import EXAMPLES, load
from PIL import Image

from configuration_mf2.facs import LABEL_SETS
from configuration_mf2.json_files import read_json
from mf2face.data.metrics import action_unit_scores
from mf2face.data.synthetic.faces import draw_example, synthetic_truth
from mf2face.files import RELEASED
from modeling_mf2 import MF2ForFaceAnalysis
from processing_mf2 import MF2Processor


ROOT = EXAMPLES.parent
DOCS = ROOT / "docs"
GUIDES = (
    *"quickstart finetune_on_csv build_dataset write_captions add_label_set write_adapter export_model".split(),
    *("many_machines", "deploy"),
)
QUIET = ["--disable_tqdm", "True", "--use_cpu", "True"]


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")


def test_quickstart_names_its_result_and_saves_what_it_can_load_again(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    quickstart = load("quickstart")
    first = quickstart.main(["--random", "--save", str(tmp_path)])
    assert "RANDOM weights" in capsys.readouterr().out
    assert set(first) == {"emotion", "emotions", "action_units", "active_action_units"}
    assert list(first["action_units"])[:3] == ["AU1", "AU2", "AU4"]
    again = quickstart.main(["--checkpoint", str(tmp_path)])
    # Loaded weights lie elsewhere in memory, which may change the last bit of a sum.
    assert again["emotions"] == pytest.approx(first["emotions"], abs=1e-5)
    for name, unit in again["action_units"].items():
        assert unit["probability"] == pytest.approx(first["action_units"][name]["probability"], abs=1e-5)
    printed = capsys.readouterr().out
    assert "RANDOM" not in printed and "AU12  lip corner puller" in printed and "186,702,654" in printed


def test_the_released_checkpoint_reads_people_that_it_has_not_seen(capsys: pytest.CaptureFixture[str]) -> None:
    """As well as its card says; always answering yes, or one emotion, gives 0.4 and 0.2."""
    card, units = read_json(RELEASED / "metrics.json"), LABEL_SETS["mfa"].action_units
    result = load("quickstart").main([])
    assert "RANDOM" not in capsys.readouterr().out and set(result["active_action_units"]) <= set(units)
    assert card["au_f1_macro"] > 0.5 and card["emotion_top1"] > 0.4
    model, processor = MF2ForFaceAnalysis.from_pretrained(RELEASED).eval(), MF2Processor.from_pretrained(RELEASED)
    faces, truth = [draw_example(index, seed=2) for index in range(160)], synthetic_truth(160, seed=2)
    with torch.no_grad():
        found = model(**processor(images=[face for face, _ in faces], landmarks=[points for _, points in faces]))
    scores = action_unit_scores(torch.sigmoid(found.au_logits).double().numpy(), truth["au_labels"], units)
    assert scores["au_f1_macro"] > card["au_f1_macro"] - 0.1
    assert (found.emotion_logits.argmax(1).numpy() == truth["emotion"]).mean() > card["emotion_top1"] - 0.15


def test_a_finished_run_is_released_with_its_code_and_a_face(tmp_path: Path) -> None:
    release, target = load("release_checkpoint").main, tmp_path / "released"
    run = shutil.copytree(RELEASED, tmp_path / "run", ignore=shutil.ignore_patterns("*.py", "face.png", "README.md"))
    (run / "training_args.bin").write_bytes(b"left out")
    release(run, target)
    files = {path.name for path in target.iterdir()}
    assert files == {path.name for path in RELEASED.iterdir()} and "training_args.bin" not in files
    assert "mf2_hub_code" in (target / "config.json").read_text()
    assert (target / "model.safetensors").read_bytes() == (RELEASED / "model.safetensors").read_bytes()
    drawn, shipped = (np.asarray(Image.open(folder / "face.png"), float) for folder in (target, RELEASED))
    away = np.abs(drawn - shipped)  # a CPU of another kind rounds a pixel here and there otherwise
    assert away.max() <= 1 and away.mean() < 1e-3
    with open(run / "model.safetensors", "r+b") as weights:
        weights.truncate(12_000_001)
    with pytest.raises(ValueError, match=r"bytes, expected at most 12000000; train with --save_half True"):
        release(run, target)
    (run / "metrics.json").unlink()
    with pytest.raises(FileNotFoundError, match=r"metrics\.json not found; expected the output"):
        release(run, target)


def test_build_dataset_makes_a_folder_of_pictures_trainable(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for number in range(8):
        for emotion in ("happy", "Anger"):
            target = tmp_path / "mine" / emotion / f"{number}.png"
            target.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(draw_example(16 * number, size=64)[0]).save(target)
    build = load("build_dataset")
    command = f"own {tmp_path}/mine {tmp_path}/built --require emotion --landmarks template".split()
    report = build.main([*command, "--near", "tell", "--sizes", "train=0.5", "validation=0.5"])
    assert {name: counts["images"] for name, counts in report["counts"].items()} == {"train": 8, "validation": 8}
    assert "train: 8 images" in capsys.readouterr().out
    rows = datasets.load_dataset(str(tmp_path / "built"), streaming=True)["train"]
    assert {row["corpus"] for row in rows} == {"own"}
    captions = load("write_captions")
    captions.main(["--dataset", str(tmp_path / "built"), "--out", str(tmp_path / "captions")])
    captioned = datasets.load_from_disk(tmp_path / "captions" / "dataset")
    assert len(captioned) == 16 and set(captioned["split"]) == {"train", "validation"}
    with pytest.raises(FileNotFoundError, match="dataset: there is no folder"):
        captions.main(["--dataset", str(tmp_path / "nowhere")])
    with pytest.raises(ValueError, match=r"own: got the options \['licens'\]"):
        build.main([*command, "--reader", "licens=mine"])


@pytest.mark.parametrize(
    ("options", "learns"),
    [("--pictures 48 --num_train_epochs 1", False), pytest.param("--pictures 640", True, marks=pytest.mark.slow)],
)
def test_csv_becomes_an_adapter_that_predicts(tmp_path: Path, options: str, learns: bool) -> None:
    found = load("finetune_on_csv").main(["--out", str(tmp_path), *options.split(), *QUIET])
    assert len(found) == 3 and all({"emotion", "action_units"} <= set(face) for face in found)
    scores = json.loads((tmp_path / "adapter" / "metrics.json").read_text())
    assert scores["test_images"] > 0 and (tmp_path / "adapter" / "adapter_model.safetensors").is_file()
    assert not learns or scores["au_f1_tuned_macro"] > scores["base/au_f1_tuned_macro"]


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
    assert set(losses) == {"street", "webcam"} and all(last < first for first, last in losses.values())
    for style in losses:
        assert (tmp_path / style / "adapter_model.safetensors").is_file()


def png(pixels: object) -> str:
    Image.fromarray(pixels).save(file := io.BytesIO(), "PNG")
    return base64.b64encode(file.getvalue()).decode()


def test_the_service_answers_and_refuses(capsys: pytest.CaptureFixture[str]) -> None:
    deploy = load("deploy")
    found = deploy.main(["--check", "--engine", "torch"])
    assert set(found["action_units"]["AU12"]) >= {"probability", "threshold", "active"}
    assert "photographs of people" in found["about"]
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
def test_many_machines_give_the_rows_of_one_run(way: str) -> None:
    if way == "ray":
        pytest.importorskip("ray")
    rows = load("many_machines").main(["--by", way, "--images", "6"])[way]
    assert len(rows) == (6 if way == "shards" else 7) and sum(bool(row.get("error")) for row in rows) == len(rows) - 6


def test_every_guide_is_short_and_has_a_page_and_its_command() -> None:
    assert [path.name for path in EXAMPLES.glob("*.py") if len(path.read_text().splitlines()) > 80] == []
    for name in GUIDES:
        assert f"../examples/{name}.py" in (DOCS / "guides.md").read_text()
        assert f"python examples/{name}.py" in (EXAMPLES / f"{name}.py").read_text()


def test_the_gallery_of_rendered_people_writes_sheets_and_a_film(tmp_path: Path) -> None:
    written = load("synthetic_gallery").main(["--out", str(tmp_path), "--size", "32", "--subjects", "1"])
    assert len(written) == 5 and all(path.stat().st_size > 2000 for path in written)


@pytest.mark.slow
def test_pages_build_and_load_nothing_from_the_network(tmp_path: Path) -> None:
    for package in ("sphinx", "furo", "myst_parser"):
        pytest.importorskip(package)
    command = [sys.executable, "-m", "sphinx", "--fail-on-warning", "--keep-going", str(DOCS), str(tmp_path)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]
    assert "_generated/" in (tmp_path / "_static" / "language_data.js").read_text(), "the search puts guides first"
    for page in tmp_path.rglob("*.html"):
        tags = re.findall(r"<(?:script|img|link|iframe)\b[^>]*>", page.read_text())
        assert not [tag for tag in tags if re.search(r'(?:src|href)="(https?:)?//', tag)], page
    assert not [sheet for sheet in tmp_path.rglob("*.css") if re.search(r"url\([\"']?(https?:)?//", sheet.read_text())]
