"""Checkpoints carry their own code: proved in processes that cannot import our packages."""

import json
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from hub_server import LoopbackHub
from PIL import Image
from strangers import ALONE, run

from configuration_mf2 import MF2Config
from configuration_mf2.flatten import Library
from configuration_mf2.hub import (
    AUTO_CLASSES,
    BASELINES,
    ENTRY_MODULE,
    PIPELINES,
    PUBLIC_CLASSES,
    flat_code,
    write_code,
)
from modeling_mf2 import MF2ForImageClassification, MF2ForPreTraining, MF2Model
from processing_mf2 import MF2Processor


ROOT = Path(__file__).parents[2]
Pushed = tuple[LoopbackHub, dict[str, str], dict]

STRANGER = (
    ALONE
    + """
import json, pathlib
import torch
from PIL import Image
from transformers import AutoConfig, AutoImageProcessor, AutoModel, AutoModelForImageClassification
from transformers import AutoModelForPreTraining, AutoProcessor, pipeline

source, image, answers, resaved, every_task = sys.argv[1:]
remote = {"trust_remote_code": True}
config = AutoConfig.from_pretrained(source, **remote)
processor = AutoProcessor.from_pretrained(source, **remote)
image_processor = AutoImageProcessor.from_pretrained(source, **remote)
by_pil = AutoImageProcessor.from_pretrained(source, backend="pil", **remote)
assert (image_processor.backend, by_pil.backend) == ("torchvision", "pil")
model = AutoModel.from_pretrained(source, **remote).eval()
classifier = AutoModelForImageClassification.from_pretrained(source, **remote).eval()
assert isinstance(model.config, type(config)), (type(model.config), type(config))
picture = Image.open(image)
inputs = processor(images=picture, text="The face shows happiness.", return_tensors="pt")
alone = image_processor(picture, return_tensors="pt")
assert all(torch.equal(inputs[name], alone[name]) for name in alone)
assert torch.allclose(by_pil(picture)["pixel_values"], alone["pixel_values"], atol=0.01)
with torch.no_grad():
    found = {
        "emo_states": model(inputs["pixel_values"], inputs["landmarks"]).emo_states,
        "logits": classifier(**alone).logits,
        "input_ids": inputs["input_ids"],
    }
classify = pipeline("image-classification", model=source, **remote)
best = classify(picture, top_k=1)[0]
tasks = {
    "image-classification": {"target": "action_units"},
    "zero-shot-image-classification": {"candidate_labels": ["Happiness", "Anger"]},
    "image-to-text": {"captions": True, "max_new_tokens": 3},
    "face-analysis": {"captions": ["au"], "max_new_tokens": 3},
}
named = {}
for task, settings in tasks.items() if every_task else ():
    run = classify if task == "image-classification" else pipeline(task, model=source, **remote)
    alone, several = run(picture, **settings), run([picture] * 3, batch_size=2, **settings)
    assert len(several) == 3 and len(list(run((p for p in [picture] * 2), **settings))) == 2, task
    assert [type(answer) for answer in several] == [type(alone)] * 3, task
    named[task] = alone
if every_task:  # a model object is as good as its name
    analyse = pipeline("face-analysis", model=run.model, processor=processor)
    assert analyse(picture)[0]["emotion"] == named["face-analysis"][0]["emotion"] == best["label"]
torch.save({**found, "score": torch.tensor(best["score"])}, answers)
pathlib.Path(answers).with_suffix(".json").write_text(json.dumps(named))
print(best["label"])
if resaved:
    AutoModelForPreTraining.from_pretrained(source, **remote).save_pretrained(resaved)
    processor.save_pretrained(resaved)
"""
)

# A user's process with our packages: it pushes, then meets each fault with a cache that then has to be as good as new.
PUSH_AND_FAULTS = """
import json, sys, tempfile, urllib.request, os
import torch
from huggingface_hub import HfApi
from modeling_mf2 import MF2ForPreTraining
from processing_mf2 import MF2Processor
checkpoint, hub = sys.argv[1], os.environ["HF_ENDPOINT"]
model, processor = MF2ForPreTraining.from_pretrained(checkpoint), MF2Processor.from_pretrained(checkpoint)
model.push_to_hub("org/mf2")
processor.push_to_hub("org/mf2")
HfApi().create_tag("org/mf2", tag="v1")
model.push_to_hub("org/secret", private=True)
expected = {name: value.clone() for name, value in model.state_dict().items()}
model.mf2.emo_vl.queries.data += 1
model.push_to_hub("org/mf2")
newest = HfApi().model_info("org/mf2").sha

def fail(**faults):
    urllib.request.urlopen(urllib.request.Request(hub + "/loopback/fail", json.dumps(faults).encode()))

def load(name="org/mf2", kind=MF2ForPreTraining, **where):
    return kind.from_pretrained(name, **where)

def same(model):
    return all(torch.equal(value, expected[name]) for name, value in model.state_dict().items())

def attempt(call, **where):
    try:
        call(**where)
    except Exception as error:
        return [type(error).__name__, str(error)]

said = {"pinned": [same(load(revision="v1")), same(load())]}
weights = "^GET .*model.safetensors"
for how in (401, 403, 404, 500, "truncate"):
    cache = tempfile.mkdtemp()
    fail(**{"/org/mf2/" if how in (401, 403) else weights: how})
    said[str(how)] = attempt(load, revision="v1", cache_dir=cache)
    fail()
    assert same(load(revision="v1", cache_dir=cache)), how
cache = tempfile.mkdtemp()
fail(**{"model.safetensors$": 403})  # of all files the weights alone
said["weights_403"] = attempt(load, revision="v1", cache_dir=cache)
fail(**{"org/mf2": "hang up"})
said["down"] = attempt(load, revision="v1", cache_dir=cache)
said["down_processor"] = attempt(load, kind=MF2Processor, cache_dir=cache)
fail()
said["private"] = attempt(load, name="org/secret", token=False, cache_dir=cache)
said["no_revision"] = attempt(load, revision="v9", cache_dir=cache)
assert same(load("org/secret", cache_dir=cache)), "with the token"
model = load(revision="v1")
fail(**{"POST .*/commit/": "hang up"})
said["upload"] = attempt(lambda: model.push_to_hub("org/mf2"))
fail(**{"POST .*/commit/": 403})
said["upload_403"] = attempt(lambda: model.push_to_hub("org/mf2"))
fail()
assert HfApi().model_info("org/mf2").sha == newest, "an upload that broke off is no revision"
print(json.dumps(said))
"""


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
    answers = answers_of(folder / "checkpoint")
    label = config.id2label[answers["logits"].argmax().item()]
    return {"folder": folder, "config": config, "label": label, "answers": answers}


@torch.no_grad()
def answers_of(checkpoint: Path) -> dict[str, torch.Tensor]:
    processor, asked = MF2Processor.from_pretrained(checkpoint), {"text": "The face shows happiness."}
    inputs = processor(images=Image.open(checkpoint.parent / "face.png"), return_tensors="pt", **asked)
    faces = inputs["pixel_values"], inputs["landmarks"]
    logits = MF2ForImageClassification.from_pretrained(checkpoint).eval()(*faces).logits
    states = MF2Model.from_pretrained(checkpoint).eval()(*faces).emo_states
    answers = {"emo_states": states, "logits": logits, "input_ids": inputs["input_ids"]}
    return answers | {"score": logits.softmax(-1).max()}


def check_stranger(saved: dict, source: object, resaved: object = "", every_task: str = "", **environment: str) -> None:
    folder, answers = saved["folder"], saved["folder"] / "answers.pt"
    answers.unlink(missing_ok=True)
    environment.setdefault("HF_HOME", str(folder / "home"))
    printed = run(STRANGER, source, folder / "face.png", answers, resaved, every_task, cwd=folder, **environment)
    assert printed.split()[-1] == saved["label"]
    found = torch.load(answers)
    if every_task:
        named = json.loads(answers.with_suffix(".json").read_text())
        assert set(named) == set(PIPELINES) - {"image-text-to-text"}
        assert {answer["label"] for answer in named["image-classification"]} == set(saved["config"].action_units)
        assert all({"threshold", "active", "name"} < set(answer) for answer in named["image-classification"])
    for name, expected in saved["answers"].items():
        torch.testing.assert_close(found[name], expected, rtol=0, atol=1e-6 if name == "score" else 0, msg=name)


def test_a_folder_loads_without_our_packages_and_its_copy_saved_from_there_is_the_same(saved: dict) -> None:
    folder = saved["folder"]
    check_stranger(saved, folder / "checkpoint", folder / "resaved")
    assert flat_code() == {path.name: path.read_text() for path in (folder / "resaved").glob("*.py")}
    for name in ("config.json", "processor_config.json"):
        first, second = (json.loads((folder / where / name).read_text()) for where in ("checkpoint", "resaved"))
        assert first["auto_map"] == second["auto_map"]
    assert "auto_map" not in json.loads((folder / "resaved" / "tokenizer_config.json").read_text())
    again = answers_of(folder / "resaved")
    assert all(torch.equal(again[name], expected) for name, expected in saved["answers"].items())


@pytest.fixture(scope="module")
def pushed(saved: dict) -> Iterator[Pushed]:
    """A Hub that has the model and its processor (tag v1), then other weights (main), and a private repo; what a user
    saw of its faults."""
    folder = saved["folder"]
    with LoopbackHub() as hub:
        environment = {**hub.environment(folder / "hub_home"), "HF_HUB_OFFLINE": "0"}
        printed = run(PUSH_AND_FAULTS, folder / "checkpoint", cwd=ROOT, **{**environment, "HF_HOME": folder / "h"})
        yield hub, environment, json.loads(printed.splitlines()[-1])


def test_what_is_pushed_to_a_hub_loads_by_name_without_our_packages(saved: dict, pushed: Pushed) -> None:
    hub, environment, _ = pushed
    hub.repos["org/first"] = [next(c for c in hub.repos["org/mf2"] if c[0] == hub.tags["org/mf2", "v1"])]
    assert set(flat_code()) < set(hub.repos["org/first"][0][1])
    check_stranger(saved, "org/first", every_task="yes", **environment)


def test_whatever_goes_wrong_on_the_way_is_named_and_leaves_the_cache_as_it_was(pushed: Pushed) -> None:
    *_, said = pushed
    assert said.pop("pinned") == [True, False], "v1 is v1, whatever main is"
    expected = {
        **{"401": "OSError: private repository", "403": "OSError: gated repo", "404": "OSError: model.safetensors"},
        **{"500": "OSError: 500", "truncate": "OSError: broke off", "down": "OSError: broke off"},
        **{"down_processor": "OSError: broke off", "private": "OSError: pass a token", "no_revision": "OSError: v9"},
        "weights_403": "OSError: access to model.safetensors was refused",
        **{"upload": "RemoteProtocolError: disconnected", "upload_403": "GatedRepoError: 403"},
    }
    assert set(said) == set(expected)
    for name, (kind, _, words) in ((name, text.partition(": ")) for name, text in expected.items()):
        assert said[name] and said[name][0] == kind and words in said[name][1], (name, said[name])


@pytest.mark.parametrize("system", ["mf2", *BASELINES])
def test_flat_code_has_no_import_of_a_room_and_no_import_that_the_hub_cannot_follow(system: str) -> None:
    code = flat_code(system)
    assert len(code) <= (5 if system == "mf2" else 1)
    assert (f"{ENTRY_MODULE}.py" in code) == (system == "mf2")
    for name, text in code.items():
        for line in text.splitlines():
            words = line.split()
            if words[:1] in (["from"], ["import"]) and len(words) > 1:
                assert "_mf2." not in words[1].lstrip("."), f"{name}: {line}"
                assert not words[1].startswith("..") and words[1] != ".", f"{name}: {line}"
                if words[1].startswith("."):
                    assert f"{words[1][1:]}.py" in code, f"{name}: {line}"


@pytest.mark.parametrize(
    ("second", "message"),
    [
        ("LIMIT = 2\n", "'LIMIT' is another thing in"),
        ("import mf2face.files\nfrom mf2face.files import locked\n", "nothing of mf2face"),
        ("def f():\n    from .first import LIMIT\n", "import it on top"),
    ],
)
def test_code_that_cannot_be_joined_names_the_file(tmp_path: Path, second: str, message: str) -> None:
    room = tmp_path / "configuration_mf2"
    room.mkdir()
    (room / "first.py").write_text("LIMIT = 1\n")
    (room / "second.py").write_text(f"{second}from .first import LIMIT as least\n\n\nclass Public:\n    least, LIMIT\n")
    library = Library(tmp_path)
    with pytest.raises(ValueError, match=f"second.py.*{message}"):
        needed = library.needed([("configuration_mf2.second", "Public")])
        library.join(needed, dict.fromkeys(needed, "all"), "all")


def test_code_is_written_once_and_every_auto_class_is_public(tmp_path: Path) -> None:
    write_code(tmp_path)
    before = {path: path.stat().st_mtime_ns for path in tmp_path.iterdir()}
    write_code(tmp_path)
    assert {path: path.stat().st_mtime_ns for path in tmp_path.iterdir()} == before
    public = {name for classes in PUBLIC_CLASSES.values() for name in classes}
    named = [list(value.values()) if isinstance(value, dict) else [value] for value in AUTO_CLASSES.values()]
    assert {name for names in named for name in names} <= public
