"""The command and `analyze` give the same rows by onnxruntime as by torch, and never those of another checkpoint."""

import csv
import io
import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from analysis_media import write_faces, write_video
from conftest import shake, tiny_config
from safetensors.torch import save_file

from mf2face import analyze
from mf2face.data.synthetic.faces import draw_example
from mf2face.files import cache_folder
from mf2face.inference.certify import Route, certify, figures, table
from mf2face.inference.cli import main
from mf2face.inference.engine import ENGINES, EngineProcessor, read_config, saved_mark
from mf2face.inference.model import load_model
from mf2face.inference.rows import unit_column
from modeling_mf2 import MF2ForPreTraining
from modeling_mf2.onnx_files import FILE, INT8_FILE, weights_mark
from processing_mf2 import MF2Processor, build_tokenizer
from processing_mf2.crops import normalize_crops


ROOT = Path(__file__).parents[2]

pytest.importorskip("onnx"), pytest.importorskip("onnxruntime"), pytest.importorskip("onnxscript")


def checkpoint(folder: Path, seed: int = 7, **fields: object) -> None:
    tokenizer = build_tokenizer()
    qformer = {"vocab_size": len(tokenizer), "max_position_embeddings": 192, "num_hidden_layers": 2}
    config = tiny_config(qformer=qformer, emotion_max_length=61, au_max_length=169, **fields)
    MF2Processor.for_model(config, tokenizer).save_pretrained(folder)
    shake(MF2ForPreTraining(config), seed=seed).save_pretrained(folder)


def made_for(place: Path, engine: str) -> Path:
    """The folder of the cache that holds the exported files of the checkpoint."""
    load_model(place / "model", engine=engine)
    (made,) = cache_folder("engines").glob("model-*")
    return made


def run(*arguments: object) -> int:
    return main([*map(str, arguments)])


def assert_alike(path: Path, expected: Path, engine: str, rows: int) -> None:
    """The same rows; numbers of eight bits differ a little, and with them decisions."""
    with open(path) as file, open(expected) as other:
        pairs = list(zip(csv.DictReader(file), csv.DictReader(other), strict=True))
    assert len(pairs) == rows
    for row, one in pairs:
        for name in row:
            if re.fullmatch(r"AU\d+|[A-Z][a-z]+", name) and name not in ("Pitch", "Roll", "Yaw"):
                assert float(row[name]) == pytest.approx(float(one[name]), abs=1e-5 if engine == "onnx" else 0.05)
            elif engine == "onnx" or not (name.endswith("_c") or name == "top_emotion"):
                assert row[name] == one[name], name


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Module-wide, so that the export is done once."""
    folder = tmp_path_factory.mktemp("cache")
    before = os.environ.get("XDG_CACHE_HOME")
    os.environ["XDG_CACHE_HOME"] = str(folder)
    yield folder
    os.environ.pop("XDG_CACHE_HOME")
    if before is not None:
        os.environ["XDG_CACHE_HOME"] = before


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory, cache: Path) -> Path:
    folder = tmp_path_factory.mktemp("here")
    write_faces(folder / "in", 5)
    checkpoint(folder / "model")
    return folder


def test_the_command_gives_the_same_rows_and_exports_once(place: Path, tmp_path: Path, capsys) -> None:
    arguments = [place / "in", "--aligned", "--model", place / "model"]
    by_torch, by_engine = tmp_path / "torch.csv", tmp_path / "int8.csv"
    assert run(*arguments, "-o", by_torch) == 0
    for engine, times in (("onnx", 1), ("int8", 0), ("onnx", 0)):
        capsys.readouterr()
        out = tmp_path / f"{engine}.csv"
        assert run(*arguments, "--engine", engine, "-o", out, "--overwrite") == 0
        assert capsys.readouterr().err.count(f"exported once, into {cache_folder('engines')}") == times
        assert_alike(out, by_torch, engine, 5)
    assert by_engine.read_bytes() != by_torch.read_bytes()
    assert run(*arguments, "-o", by_engine) == 4, "rows of another engine are not mixed in"
    (made_for(place, "onnx") / INT8_FILE).write_bytes(b"cut")
    assert run(*arguments, "--engine", "int8", "-o", tmp_path / "mended.csv") == 0
    assert_alike(tmp_path / "mended.csv", by_torch, "int8", 5)


def test_analyze_takes_a_file_beside_the_checkpoint_and_refuses_anothers(place: Path, tmp_path: Path) -> None:
    made = made_for(place, "int8")
    there = shutil.copytree(place / "model", tmp_path / "model")
    for name in (FILE, INT8_FILE):
        shutil.copy(made / name, there)
    path, kept = place / "in" / "face-000.png", sorted(cache_folder("engines").rglob("*.onnx"))
    found = {engine: analyze(path, engine=engine, model=there, aligned=True).rows[0] for engine in ENGINES}
    assert found["onnx"]["AU06"] == pytest.approx(found["torch"]["AU06"], abs=1e-5)
    assert found["int8"]["AU06"] == pytest.approx(found["torch"]["AU06"], abs=0.05)
    assert sorted(cache_folder("engines").rglob("*.onnx")) == kept, "nothing had to be exported"
    with pytest.raises(ValueError, match="caption: got engine 'onnx', expected 'torch'"):
        analyze(path, engine="onnx", caption=True, model=there, aligned=True)
    checkpoint(there, seed=4)
    with pytest.raises(ValueError, match=r"model.onnx is not of the checkpoint .* weights: got"):
        analyze(path, engine="onnx", model=there, aligned=True)
    checkpoint(there, action_units=["AU1", "AU12", "AU25"])
    with pytest.raises(ValueError, match=r"action_units: got \['AU1', 'AU6', 'AU25'\]"):
        analyze(path, engine="int8", model=there, aligned=True)


@pytest.fixture
def calibrated(place: Path) -> Iterator[tuple[Path, list[str]]]:
    """The checkpoint with grades and cuts, and its action units."""
    file = place / "model" / "processor_config.json"
    before = file.read_text()
    config = json.loads(before)
    units, emotions = config["action_units"], config["emotions"]
    cuts = {unit: [0.4, 0.6] for unit in units} | dict.fromkeys(emotions, 0.2)
    grades = dict.fromkeys([*units, *emotions], "usable") | {units[0]: "experimental"}
    file.write_text(json.dumps(config | {"conformal": {"0.9": cuts}, "grades": grades}))
    yield place / "model", units
    file.write_text(before)


def test_states_and_grades_are_those_of_torch(
    place: Path, calibrated: tuple[Path, list[str]], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (model, units), found = calibrated, {}
    for engine in ("torch", "onnx"):
        out, where = tmp_path / f"{engine}.csv", [place / "in", "--aligned", "--model", model, "--engine", engine]
        assert run(*where, "--confidence", 0.9, "-o", out) == 0
        with open(out) as file:
            found[engine] = [
                (row[f"{unit_column(units[1])}_state"], row["emotion_set"]) for row in csv.DictReader(file)
            ]
        about = json.loads(Path(f"{out}.about.json").read_text())
        assert about["settings"]["confidence"] == 0.9 and about[f"{unit_column(units[0])}_grade"] == "experimental"
    assert found["torch"] == found["onnx"] and all(emotions for _, emotions in found["torch"])
    capsys.readouterr()
    assert run(place / "in" / "face-000.png", "--aligned", "--model", model, "--engine", "onnx") == 0
    shown = capsys.readouterr()
    assert "experimental" in shown.out and "grades were measured with MediaPipe's" in shown.err


def test_confidence_needs_a_calibrated_checkpoint(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(ValueError, match="confidence: this checkpoint is not calibrated"):
        analyze(place / "in", engine="onnx", model=place / "model", aligned=True, confidence=0.9)
    assert run(place / "in", "--aligned", "--model", place / "model", "--confidence", 0.9) == 2
    assert "not calibrated" in capsys.readouterr().err


def test_every_route_gives_the_same_answer(place: Path, capsys) -> None:
    def other(rows: list[dict]) -> list[dict]:
        return [{**rows[0], "AU06_c": 1 - rows[0]["AU06_c"]}, *rows[1:]]

    routes = certify(place / "in", place / "model", aligned=True, most=3, more={"other": other})
    assert [route.name for route in routes] == ["torch, one by one", "onnx", "int8", "pipeline", "command", "other"]
    assert all(route.is_certified and route.faces == 3 for route in routes if route.name not in ("int8", "other"))
    assert routes[-1].differ == 1 and not routes[-1].is_certified and "NO" in table(routes)
    assert figures(routes[:-1])["routes_max_difference"] <= 1e-3 and figures(routes)["routes_decisions_differ"] == 1
    assert not Route("int8", 1, 0.1, 1, 20).is_certified and Route("int8", 1, 0.1, 1, 100).is_certified
    assert run("certify", place / "gone.png", "--aligned") == 2 and "gone.png" in capsys.readouterr().err


def test_an_engine_uses_as_many_threads_as_torch_and_only_a_cpu(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = load_model(place / "model", device="cpu", engine="onnx")
    assert model.pipeline.run.get_session_options().intra_op_num_threads == torch.get_num_threads()
    with pytest.raises(ValueError, match="engine, device: got 'onnx' and 'cuda'; expected cpu"):
        load_model(place / "model", device="cuda", engine="onnx")
    with pytest.raises(ValueError, match=r"engine: got 'onx', expected one of \['torch', 'onnx', 'int8'\]"):
        load_model(place / "model", engine="onx")


def test_a_missing_package_ends_the_command_with_a_sentence(place: Path, monkeypatch, capsys) -> None:
    for name in ("onnx", "onnxruntime", "onnxscript"):
        monkeypatch.setitem(sys.modules, name, None)
    assert run(place / "in", "--aligned", "--engine", "onnx") == 2
    assert "onnxruntime is not installed" in (told := capsys.readouterr().err) and 'pip install -e ".[export]"' in told


def test_a_file_with_a_flipped_bit_is_refused_wherever_the_bit_is(place: Path, tmp_path: Path) -> None:
    made = made_for(place, "int8")
    there = shutil.copytree(place / "model", tmp_path / "model")
    (face,) = write_faces(tmp_path / "one", 1)
    for engine, name in (("onnx", FILE), ("int8", INT8_FILE)):
        content = (made / name).read_bytes()
        for share in (0.01, 0.2, 0.4, 0.6, 0.8, 0.99):
            damaged = bytearray(content)
            damaged[int(share * len(content))] ^= 16
            (there / name).write_bytes(damaged)
            with pytest.raises(ValueError, match=name):
                load_model(there, engine=engine)
        (there / name).write_bytes(content)
        assert analyze(face, engine=engine, model=there, aligned=True).faces == 1


@pytest.mark.parametrize(
    "facts", ["[]", "{}", "7", "{", '{"mf2_version": 1}', '{"mf2_version": "0.1.0", "content": []}']
)
def test_facts_of_a_wrong_type_end_the_command_with_a_sentence(place: Path, tmp_path: Path, facts: str, capsys) -> None:
    import onnx

    made = made_for(place, "onnx")
    there = shutil.copytree(place / "model", tmp_path / "model")
    content = onnx.load(made / FILE)
    onnx.helper.set_model_props(content, {"mf2": facts})
    onnx.save(content, there / FILE)
    assert run(place / "in", "--aligned", "--model", there, "--engine", "onnx") == 2
    assert FILE in (told := capsys.readouterr().err) and "export" in told


@pytest.mark.parametrize("answer", [float("nan"), None])
def test_an_engine_that_fails_or_gives_no_number_leaves_a_line_of_each_image(place, answer, capsys):
    model = load_model(place / "model", device="cpu", engine="onnx")

    class Damaged:
        def run(self, names: list, given: dict) -> list:
            if answer is None:
                raise IndexError("[ONNXRuntimeError] : 1 : FAIL")
            return [np.full((len(given["landmarks"]), 3), answer, np.float32) for _ in names]

    model.pipeline.run = Damaged()
    assert main([str(place / "in"), "--aligned", "--format", "csv"], model=model) == 1
    shown = capsys.readouterr()
    rows = list(csv.DictReader(io.StringIO(shown.out)))
    assert len(rows) == 5 and "left out, 5 times" in shown.err
    assert all(row["top_emotion"] == "" and row["AU06_c"] == "NaN" for row in rows)


FULL = [
    *("torch", "torchvision", "transformers", "peft", "timm", "datasets", "accelerate", "face_alignment", "sklearn"),
    *("pyarrow", "huggingface_hub", "safetensors", "matplotlib", "onnx", "onnxscript"),
]
LIGHT = f"""
import sys
sys.modules |= dict.fromkeys(sys.argv.pop(1).split(","))  # none of them can be imported
from mf2face.inference.certify import Route, certify, figures, table
from mf2face.inference.cli import main
code = main(sys.argv[1:])
print(*sorted(name for name in {FULL!r} if sys.modules.get(name)), file=sys.stderr)
sys.exit(code)
"""


def light(*arguments: object, without: list[str] = FULL) -> subprocess.CompletedProcess:
    """The command in a process of its own, in which some packages are not installed; it says which of all it loaded."""
    command = [sys.executable, "-c", LIGHT, ",".join(without), *map(str, arguments)]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=120)


@pytest.fixture(scope="module")
def exported(place: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What an inference-only machine has of a checkpoint: no weights but those of the exported files."""
    folder = tmp_path_factory.mktemp("exported")
    load_model(place / "model", engine="int8")
    for path in cache_folder("engines").glob("model-*/*.onnx"):
        shutil.copy(path, folder)
    for name in ("config.json", "processor_config.json"):
        shutil.copy(place / "model" / name, folder)
    (folder / "README.md").write_text("---\ntags:\n- mf2\n- synthetic\n---\n")
    return folder


@pytest.mark.parametrize("engine", ["onnx", "int8"])
def test_exported_models_need_no_torch_and_answer_alike(place, exported, engine, tmp_path):
    """Crops, given landmarks and a video; the same rows where everything is installed."""
    video, file = write_video(tmp_path / "v.avi", 6, size=(112, 112)), tmp_path / "l.csv"
    lines = ["input," + ",".join(f"{axis}_{point}" for axis in "xy" for point in range(68))]
    for index in range(5):
        points = draw_example(index, seed=2)[1] + (index, -index)
        lines.append(",".join(map(str, [f"face-{index:03d}.png", *points[:, 0], *points[:, 1]])))
    file.write_text("\n".join(lines) + "\n")
    for inputs, options, rows in (
        ([place / "in", video], ["--aligned"], 11),
        ([place / "in"], ["--landmarks", file], 5),
    ):
        out, by_torch = tmp_path / f"{rows}.csv", tmp_path / f"{rows}-torch.csv"
        done = light(*inputs, *options, "--engine", engine, "--model", exported, "-o", out)
        assert done.returncode == 0 and done.stderr.splitlines()[-1] == "", done.stderr
        assert "trained on synthetic" in done.stderr
        assert run(*inputs, *options, "--model", place / "model", "-o", by_torch) == 0
        assert_alike(out, by_torch, engine, rows)
    again = light(place / "in", "--landmarks", file, "--engine", engine, "--model", exported, "-o", out)
    assert again.returncode == 0 and "5 inputs stood in" in again.stderr


def test_the_installed_packages_are_not_loaded_for_an_exported_model(place: Path) -> None:
    """From the cache, with the checkpoint's weights beside it."""
    load_model(place / "model", engine="onnx")
    face = place / "in" / "face-000.png"
    done = light(face, "--aligned", "--engine", "onnx", "--model", place / "model", "--quiet", without=["none"])
    assert (done.returncode, done.stderr.strip()) == (0, "") and "emotion" in done.stdout


def test_packages_load_no_library_and_register_with_those_that_are_loaded_later(place: Path) -> None:
    script = f"""
import sys, configuration_mf2.facs, processing_mf2, modeling_mf2, mf2face
print(sorted(set({FULL!r}) & set(sys.modules)))
import peft
print("DFN" in peft.PeftType.__members__)
from transformers import AutoConfig, AutoModelForPreTraining, AutoProcessor
for kind in (AutoConfig, AutoProcessor, AutoModelForPreTraining):
    print(type(kind.from_pretrained(sys.argv[1])).__name__)
"""
    command = [sys.executable, "-c", script, place / "model"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.splitlines() == ["[]", "True", "MF2Config", "MF2Processor", "MF2ForPreTraining"]


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ([], "engine: 'torch' needs the full package"),
        (["--engine", "onnx", "--caption"], "caption: got engine 'onnx'"),
        (["--engine", "onnx", "--why", "why"], "why: needs torch"),
        (["--engine", "onnx", "-o", "rows.parquet"], "pip install pyarrow"),
        (["--engine", "onnx", "--device", "cuda"], "engine, device: got 'onnx' and 'cuda'"),
        (["--engine", "onnx", "--adapter", "gone"], "pip install huggingface_hub"),
    ],
)
def test_what_needs_a_package_that_is_missing_names_it(place, exported, options, said, tmp_path):
    options = [str(tmp_path / word) if word.startswith(("why", "rows")) else word for word in options]
    done = light(place / "in", "--aligned", "--model", exported, *options)
    assert done.returncode == 2 and said in done.stderr and "Traceback" not in done.stderr, done.stderr
    assert not list(tmp_path.iterdir())


def test_without_torch_a_model_that_was_not_exported_says_where_to_put_the_file(place: Path, tmp_path: Path) -> None:
    there = shutil.copytree(place / "model", tmp_path / "model")
    done = light(place / "in", "--aligned", "--model", there, "--engine", "onnx")
    assert done.returncode == 2 and "model.onnx" in done.stderr and "Traceback" not in done.stderr
    done = light(place / "in", "--model", there, "--engine", "onnx", "--landmarks", "face_alignment")
    assert done.returncode == 2 and "pip install face-alignment" in done.stderr


MF2 = '{"model_type": "mf2", '
DAMAGED = {
    "config.json": ["{", "[]", MF2 + '"vision_config": 7}', MF2 + '"action_units": ["AU99"]}'],
    "processor_config.json": [
        *("[]", '{"au_thresholds": "high"}', '{"image_processor": 7}', '{"image_processor": {"size": 0}}'),
        '{"emotions": ["A", "B"]}',
    ],
}


@pytest.mark.parametrize(
    ("name", "content"), [(name, content) for name, contents in DAMAGED.items() for content in (*contents, None)]
)
def test_a_damaged_folder_of_an_exported_model_is_named(place, exported, name, content, tmp_path, capsys):
    there = shutil.copytree(exported, tmp_path / "model")
    (there / name).unlink()
    if content is not None:
        (there / name).write_text(content)
    assert run(place / "in", "--aligned", "--engine", "onnx", "--model", there) == 2
    told = capsys.readouterr().err
    assert "Traceback" not in told and str(there) in told


def _safetensors(header: object, size: int | None = None) -> bytes:
    text = json.dumps(header).encode()
    return (len(text) if size is None else size).to_bytes(8, "little") + text


@pytest.mark.parametrize(
    "content",
    [
        *(b"", b"abc", _safetensors({}, size=10**15), _safetensors([]), _safetensors({"classifiers.a": [1]})),
        _safetensors({"classifiers.a": {"dtype": "I64", "shape": [1], "data_offsets": [0, 8]}}) + bytes(8),
        _safetensors({"classifiers.a": {"dtype": "F32", "shape": [1], "data_offsets": [0, 3]}}) + bytes(3),
    ],
)
def test_damaged_weights_beside_an_exported_model_are_named(content: bytes, tmp_path: Path) -> None:
    (tmp_path / "model.safetensors").write_bytes(content)
    with pytest.raises(ValueError, match=r"model\.safetensors: .*copy the file again"):
        saved_mark(str(tmp_path))


def test_an_adapter_s_thresholds_and_old_half_precision_weights_are_read_without_torch(place: Path, tmp_path) -> None:
    weights = {"classifiers.a": torch.randn(3, 4), "classifiers.b": torch.randn(5), "mf2.c": torch.zeros(1)}
    for dtype in (torch.float32, torch.float16, torch.bfloat16):
        there = {name: values.to(dtype) for name, values in weights.items()}
        save_file(there, tmp_path / "model.safetensors")
        mark = weights_mark({name[12:]: values for name, values in there.items() if name.startswith("classifiers.")})
        assert saved_mark(str(tmp_path)) == mark
    config = json.loads((place / "model" / "processor_config.json").read_text())
    config["au_thresholds"] = [0.1, 0.2, 0.3]
    (tmp_path / "processor_config.json").write_text(json.dumps(config))
    processor = EngineProcessor(str(tmp_path), read_config(str(place / "model")))
    assert processor.thresholds() == [0.1, 0.2, 0.3] and processor.thresholds({"AU6": 0.9})[1] == 0.9


def test_crops_are_those_of_the_image_processor(place: Path) -> None:
    name, (pixels, points) = str(place / "model"), draw_example(0, seed=2, size=300)
    ours = EngineProcessor(name, read_config(name))
    theirs = MF2Processor.from_pretrained(name).image_processor
    for given in (points, None, points + 20):
        made, expected = ours.crop(pixels, given), theirs(pixels, given, return_tensors="np", return_faces=True)
        assert np.array_equal(normalize_crops([made["pixel_values"]], ours.settings), expected["pixel_values"])
        assert np.allclose(made["landmarks"], expected["landmarks"][0], atol=1e-4)
        assert made["face"] == expected["faces"][0]


def test_an_exported_model_is_called_as_the_pipeline_is(place: Path) -> None:
    by_torch, exported = (
        load_model(place / "model", device="cpu", engine=engine).pipeline for engine in ("torch", "onnx")
    )
    pixels, points = draw_example(1, seed=2, size=300)
    for face in (pixels, {"image": pixels, "landmarks": points}):
        (ours,), (theirs,) = exported(face, landmark_source="template"), by_torch(face, landmark_source="template")
        assert ours.keys() == theirs.keys() and ours["box"] == theirs["box"]
        assert ours["emotions"] == pytest.approx(theirs["emotions"], abs=1e-4)
    with pytest.raises(ValueError, match="landmarks: got"):
        exported({"image": pixels, "landmarks": points[:5]})


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_a_fresh_environment_without_torch_analyses_a_face(place: Path, exported: Path, tmp_path: Path) -> None:
    """As examples/inference/requirements.txt says; needs a package index."""
    python = tmp_path / "env" / "bin" / "python"
    subprocess.run([sys.executable, "-m", "venv", tmp_path / "env"], check=True)
    install = [python, "-m", "pip", "install", "--quiet"]
    requirements = ROOT / "examples" / "inference" / "requirements.txt"
    found = subprocess.run([*install, "-r", requirements], capture_output=True, text=True)
    if found.returncode:
        pytest.skip(f"no package index: {found.stderr[-300:]}")
    ignore = shutil.ignore_patterns(".git", "outputs", "*.egg-info")
    subprocess.run([*install, "--no-deps", shutil.copytree(ROOT, tmp_path / "source", ignore=ignore)], check=True)
    assert subprocess.run([python, "-c", "import torch"], capture_output=True).returncode
    out = tmp_path / "rows.csv"
    command = [python.with_name("mf2"), place / "in", "--aligned", "--engine", "onnx", "--model", exported, "-o", out]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, env={**os.environ, "PYTHONPATH": ""})
    assert done.returncode == 0, done.stderr
    assert len(list(csv.DictReader(io.StringIO(out.read_text())))) == 5
