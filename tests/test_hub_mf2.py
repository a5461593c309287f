"""Checkpoints carry their own code: proved in processes that cannot import our packages."""

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from loopback_hub import LoopbackHub
from PIL import Image

from configuration_mf2 import MF2Config
from configuration_mf2.hub_mf2 import AUTO_CLASSES, ENTRY_MODULE, PUBLIC_CLASSES, flat_code, write_code
from modeling_mf2 import MF2ForImageClassification, MF2ForPreTraining, MF2Model
from processing_mf2 import MF2Processor


# A user's process: no room of ours can be imported, however the tests' own process came by it.
STRANGER = """
import importlib.util, sys
rooms = ("configuration_mf2", "processing_mf2", "modeling_mf2", "dataset_mf2")
sys.meta_path[:] = [f for f in sys.meta_path if "editable" not in (getattr(f, "__module__", "") + str(f)).lower()]
for room in rooms:
    while (spec := importlib.util.find_spec(room)) is not None:
        sys.path.remove(str(__import__("pathlib").Path(list(spec.submodule_search_locations)[0]).parent))
        importlib.invalidate_caches()
        sys.path_importer_cache.clear()

import torch
from PIL import Image
from transformers import AutoConfig, AutoImageProcessor, AutoModel, AutoModelForImageClassification
from transformers import AutoModelForPreTraining, AutoProcessor, pipeline

source, image, answers, resaved = sys.argv[1:]
remote = {"trust_remote_code": True}
config = AutoConfig.from_pretrained(source, **remote)
processor = AutoProcessor.from_pretrained(source, **remote)
image_processor = AutoImageProcessor.from_pretrained(source, **remote)
model = AutoModel.from_pretrained(source, **remote).eval()
classifier = AutoModelForImageClassification.from_pretrained(source, **remote).eval()
assert isinstance(model.config, type(config)), (type(model.config), type(config))
picture = Image.open(image)
inputs = processor(images=picture, text="The face shows happiness.", return_tensors="pt")
alone = image_processor(picture, return_tensors="pt")
assert all(torch.equal(inputs[name], alone[name]) for name in alone)
with torch.no_grad():
    found = {
        "emo_states": model(inputs["pixel_values"], inputs["landmarks"]).emo_states,
        "logits": classifier(**alone).logits,
        "input_ids": inputs["input_ids"],
    }
best = pipeline("image-classification", model=source, **remote)(picture, top_k=1)[0]
torch.save({**found, "score": torch.tensor(best["score"])}, answers)
print(best["label"])
if resaved:
    AutoModelForPreTraining.from_pretrained(source, **remote).save_pretrained(resaved)
    processor.save_pretrained(resaved)
"""

PUSH = """
import sys
from modeling_mf2 import MF2ForPreTraining
from processing_mf2 import MF2Processor
MF2ForPreTraining.from_pretrained(sys.argv[1]).push_to_hub("org/mf2")
MF2Processor.from_pretrained(sys.argv[1]).push_to_hub("org/mf2")
"""


def run(code: str, *arguments: object, cwd: Path, **environment: str) -> str:
    done = subprocess.run(
        [sys.executable, "-c", code, *map(str, arguments)],
        env={**os.environ, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", **environment},
        cwd=cwd,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> dict[str, object]:
    """A checkpoint, an image, and what this process answers to it."""
    folder = tmp_path_factory.mktemp("hub")
    torch.manual_seed(0)
    config = MF2Config.from_size("tiny")
    processor = MF2Processor.for_model(config)
    MF2ForPreTraining(config).save_pretrained(folder / "checkpoint")
    processor.save_pretrained(folder / "checkpoint")
    pixels = np.random.default_rng(0).integers(0, 256, (150, 150, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(folder / "face.png")
    inputs = processor(images=Image.open(folder / "face.png"), text="The face shows happiness.", return_tensors="pt")
    model = MF2Model.from_pretrained(folder / "checkpoint").eval()
    classifier = MF2ForImageClassification.from_pretrained(folder / "checkpoint").eval()
    with torch.no_grad():
        logits = classifier(inputs["pixel_values"], inputs["landmarks"]).logits
        states = model(inputs["pixel_values"], inputs["landmarks"]).emo_states
    return {
        "folder": folder,
        "label": config.id2label[logits.argmax().item()],
        "answers": {
            **{"emo_states": states, "logits": logits, "input_ids": inputs["input_ids"]},
            "score": logits.softmax(-1).max(),
        },
    }


def check_stranger(saved: dict[str, object], source: object, resaved: object = "", **environment: str) -> None:
    folder = saved["folder"]
    answers = folder / "answers.pt"
    answers.unlink(missing_ok=True)
    environment.setdefault("HF_HOME", str(folder / "home"))
    label = run(STRANGER, source, folder / "face.png", answers, resaved, cwd=folder, **environment).split()[-1]
    assert label == saved["label"]
    found = torch.load(answers)
    for name, expected in saved["answers"].items():
        if name == "score":
            torch.testing.assert_close(found[name], expected, rtol=0, atol=1e-6)
        else:
            assert torch.equal(found[name], expected), name


def test_a_folder_loads_without_our_packages_and_so_does_its_copy_saved_from_there(saved: dict[str, object]) -> None:
    folder = saved["folder"]
    check_stranger(saved, folder / "checkpoint", folder / "resaved")
    assert flat_code() == {path.name: path.read_text() for path in (folder / "resaved").glob("*.py")}
    for name in ("config.json", "processor_config.json"):
        first, second = (json.loads((folder / where / name).read_text()) for where in ("checkpoint", "resaved"))
        assert first["auto_map"] == second["auto_map"]
    assert "auto_map" not in json.loads((folder / "resaved" / "tokenizer_config.json").read_text())
    check_stranger(saved, folder / "resaved")


def test_what_is_pushed_to_a_hub_loads_by_name_without_our_packages(saved: dict[str, object]) -> None:
    folder = saved["folder"]
    with LoopbackHub() as hub:
        environment = {**hub.environment(folder / "hub_home"), "HF_HUB_OFFLINE": "0"}
        run(PUSH, folder / "checkpoint", cwd=Path.cwd(), **environment)
        _, files = hub.repos["org/mf2"][-1]
        assert set(flat_code()) < set(files)
        check_stranger(saved, "org/mf2", **environment)


def test_flat_code_has_no_import_of_a_room_and_no_import_that_the_hub_cannot_follow() -> None:
    code = flat_code()
    assert f"{ENTRY_MODULE}.py" in code
    for name, text in code.items():
        for line in text.splitlines():
            words = line.split()
            if words[:1] in (["from"], ["import"]) and len(words) > 1:
                assert "_mf2." not in words[1].lstrip("."), f"{name}: {line}"
                assert not words[1].startswith("..") and words[1] != ".", f"{name}: {line}"
                if words[1].startswith("."):
                    assert f"{words[1][1:]}.py" in code, f"{name}: {line}"


def test_every_auto_class_names_a_public_class() -> None:
    public = {name for classes in PUBLIC_CLASSES.values() for name in classes}
    assert set(AUTO_CLASSES.values()) <= public


def test_code_is_written_once_and_left_alone_when_it_is_there(tmp_path: Path) -> None:
    write_code(tmp_path)
    before = {path: path.stat().st_mtime_ns for path in tmp_path.iterdir()}
    write_code(tmp_path)
    assert {path: path.stat().st_mtime_ns for path in tmp_path.iterdir()} == before
