"""Runs that end on the Hub: the real client, a real server of 127.0.0.1, and nothing there that should not be."""

import json
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from hub_server import LoopbackHub
from huggingface_hub import ModelCard
from peft import PeftModel
from PIL import Image
from safetensors.torch import load, save
from short_runs import command, short_run
from strangers import ALONE, run
from transformers import AutoModel, AutoProcessor

import train
from mf2face.training.cards import check_base
from modeling_mf2 import MF2ForFaceAnalysis, MF2ForPreTraining
from processing_mf2 import MF2Processor


# Who has neither our packages nor the folders, but names: of the base, and of an adapter of it.
VISITOR = (
    ALONE
    + """
import json, os
import torch
from peft import PeftModel
from PIL import Image
from transformers import AutoModelForPreTraining, AutoProcessor, pipeline

torch.set_num_threads(1)
image, answers = Image.open(sys.argv[1]), sys.argv[2]
base, adapter, remote = "org/mine", "org/adapter", {"trust_remote_code": True}
processor = AutoProcessor.from_pretrained(adapter, **remote)
inputs = processor(images=image, return_tensors="pt")

def answer(**which):
    model = AutoModelForPreTraining.from_pretrained(base, **remote)
    if which:
        model = PeftModel.from_pretrained(model, adapter, **which)
    with torch.no_grad():
        return model.eval()(**inputs).au_logits

found = {"base": answer(), "pinned": answer(revision="v1"), "newest": answer(revision="main")}
analyse = pipeline("face-analysis", model=adapter, processor=adapter, **remote)
said = {"found": analyse(image)[0], "thresholds": processor.au_thresholds}
if os.environ["HF_HUB_OFFLINE"] == "0":
    for name in ("org/hidden", "org/half"):
        try:
            AutoModelForPreTraining.from_pretrained(name, token=False, **remote)
        except Exception as error:
            said[name] = [type(error).__name__, str(error)]
assert not any(name.split(".")[0] in rooms for name in sys.modules)
torch.save(found, answers)
print(json.dumps(said))
"""
)


@pytest.fixture(scope="module")
def hub() -> Iterator[LoopbackHub]:
    with LoopbackHub() as hub:
        yield hub


@pytest.fixture(scope="module")
def folder(hub: LoopbackHub, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where a model was trained and published as org/mine."""
    folder = tmp_path_factory.mktemp("publish")
    publish(hub, folder, "mine", use_captions=False, vision_name_or_path="none", save_half=True)
    return folder


def publish(hub: LoopbackHub, folder: Path, name: str, **options: object) -> None:
    options |= {"push_to_hub": True, "hub_model_id": f"org/{name}", "max_steps": 2, "save_steps": 1}
    options |= {"eval_strategy": "no", "load_best_model_at_end": False}
    variables = hub.environment(folder / "home")
    published = run(Path(train.__file__), *command(folder / name, **options), cwd=folder, **variables, HF_HUB_OFFLINE=0)
    assert "published: " in published


def check_published(hub: LoopbackHub, folder: Path, name: str, *needed: str) -> dict[str, bytes]:
    revisions = hub.repos[f"org/{name}"]
    assert len(revisions) <= 2, "one commit beside the empty one that a repository may begin with"
    files = revisions[-1][1]
    assert {*needed, "processor_config.json", "metrics.json", "README.md", "mf2_hub_code.py"} <= set(files)
    assert not [name for name in files if name.endswith((".bin", ".lock", ".pt", ".pth")) or "checkpoint" in name]
    assert files["README.md"] == (folder / name / "README.md").read_bytes(), "our card, not the Trainer's or peft's"
    return files


def test_a_run_publishes_its_result_once_and_nothing_else(hub: LoopbackHub, folder: Path) -> None:
    files = check_published(hub, folder, "mine", "model.safetensors", "config.json")
    halves = {str(tensor.dtype) for tensor in load(files["model.safetensors"]).values() if tensor.is_floating_point()}
    assert halves == {"torch.float16"}


def test_an_adapter_is_published_and_answers_by_name_without_our_packages(hub: LoopbackHub, folder: Path) -> None:
    publish(hub, folder, "adapter", task="dfn", model_name_or_path="org/mine", learning_rate=0.1)
    files = check_published(hub, folder, "adapter", "adapter_model.safetensors", "adapter_config.json", "run.json")
    assert "model.safetensors" not in files and len(files["adapter_model.safetensors"]) < 2_000_000
    data = ModelCard(files["README.md"].decode()).data
    assert (data.base_model, data.library_name, data.base_model_relation) == (["org/mine"], "peft", "adapter")
    assert json.loads(files["adapter_config.json"])["base_model_name_or_path"] == "org/mine"
    metrics = json.loads(files["metrics.json"])
    assert {"base/au_f1_macro", "base/emotion_top1", "au_f1_macro", "trainable_parameters"} <= set(metrics)

    commit, files = hub.repos["org/adapter"][-1]
    hub.tags["org/adapter", "v1"] = commit
    other = {name: tensor + 0.1 for name, tensor in load(files["adapter_model.safetensors"]).items()}
    hub.repos["org/adapter"].append(("f" * 40, {**files, "adapter_model.safetensors": save(other)}))
    hub.repos["org/hidden"] = hub.repos["org/half"] = [hub.repos["org/adapter"][-1]]
    hub.private.add("org/hidden")
    hub.fail("/org/half/resolve/.*/adapter_model.safetensors", 403)

    Image.fromarray(np.random.default_rng(0).integers(0, 256, (150, 150, 3), dtype=np.uint8)).save(folder / "face.png")
    variables = hub.environment(folder / "visitor")
    visit = (VISITOR, folder / "face.png", folder / "answers.pt")
    said = json.loads(run(*visit, cwd=folder, **variables, HF_HUB_OFFLINE="0").splitlines()[-1])
    found = torch.load(folder / "answers.pt")
    assert said["org/hidden"][0] == "OSError" and "pass a token" in said["org/hidden"][1]
    assert said["org/half"][0] == "OSError"
    assert "access to adapter_model.safetensors was refused" in said["org/half"][1]

    processor = MF2Processor.from_pretrained(folder / "adapter")
    inputs = processor(images=Image.open(folder / "face.png"), return_tensors="pt")
    base = MF2ForPreTraining.from_pretrained(folder / "mine")
    with torch.no_grad():
        assert torch.equal(base(**inputs).au_logits, found["base"])
        adapted = PeftModel.from_pretrained(base, folder / "adapter").eval()
        assert torch.equal(adapted(**inputs).au_logits, found["pinned"])
    assert not torch.equal(found["pinned"], found["base"]) and not torch.equal(found["pinned"], found["newest"])
    assert said["thresholds"] == processor.au_thresholds
    units = said["found"]["action_units"]
    assert [unit["threshold"] for unit in units.values()] == processor.au_thresholds
    newest = found["newest"].sigmoid()[0].tolist()
    assert [unit["probability"] for unit in units.values()] == pytest.approx(newest, abs=1e-5)

    asked = len(hub.log)
    again = json.loads(run(*visit, cwd=folder, **variables).splitlines()[-1])
    assert len(hub.log) == asked, "offline, everything comes from the cache"
    offline = torch.load(folder / "answers.pt")
    assert again["found"] == said["found"] and all(torch.equal(offline[name], found[name]) for name in found)


def test_an_adapter_of_a_folder_of_this_machine_is_not_published(tmp_path: Path) -> None:
    check_base("org/base")
    with pytest.raises(ValueError, match=r"push_to_hub: .*a local folder"):
        short_run(tmp_path, task="lora", push_to_hub=True)


# transformers' own Trainer with a model and processor of MF².
STOCK = """
import sys, torch
from transformers import Trainer, TrainingArguments
from configuration_mf2 import MF2Config
from modeling_mf2 import MF2ForFaceAnalysis
from processing_mf2 import MF2Processor
config = MF2Config.from_size("tiny")
size, units = config.vision_config.image_size, len(config.action_units)
rows = [{"pixel_values": torch.randn(3, size, size), "landmarks": torch.rand(68, 2) * size,
         "au_labels": torch.randint(0, 2, (units,)), "emotion_labels": torch.tensor(row)} for row in range(4)]
training = TrainingArguments(
    sys.argv[1], max_steps=2, per_device_train_batch_size=2, use_cpu=True, disable_tqdm=True, save_strategy="no",
    label_names=["au_labels", "emotion_labels"], hub_model_id="org/stock", push_to_hub=True)
model, processor = MF2ForFaceAnalysis(config), MF2Processor.for_model(config)
trainer = Trainer(model=model, args=training, train_dataset=rows, processing_class=processor)
trainer.train()
trainer.push_to_hub()
again = MF2ForFaceAnalysis.from_pretrained("org/stock").eval()
batch = {name: rows[0][name][None] for name in ("pixel_values", "landmarks")}
torch.testing.assert_close(again(**batch).au_logits, model.eval()(**batch).au_logits)
"""


def test_pushed_by_the_stock_trainer_it_loads_from_the_hub(hub: LoopbackHub, tmp_path: Path) -> None:
    run(STOCK, tmp_path / "run", cwd=tmp_path, **hub.environment(tmp_path / "home"), HF_HUB_OFFLINE=0)
    assert {"config.json", "model.safetensors", "processor_config.json"} <= set(hub.repos["org/stock"][-1][1])
    units = MF2ForFaceAnalysis.from_pretrained(tmp_path / "run").config.action_units
    assert AutoModel.from_pretrained(tmp_path / "run").config.action_units == units
    assert AutoProcessor.from_pretrained(tmp_path / "run").action_units == units
