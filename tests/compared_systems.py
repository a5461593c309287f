"""Small models of the compared systems, and what each of them has to keep."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from conftest import captions, shake
from torch import nn
from transformers import PreTrainedModel


SMALL = {
    **{"backbone": "conv", "backbone_kwargs": {"width": 16, "num_blocks": 1}, "image_size": 64},
    **{"action_units": ["AU1", "AU6", "AU25"], "emotions": ["Neutral", "Happiness", "Other"]},
}
SMALL_SWIN = {
    **SMALL,
    "backbone": "swin_tiny_patch4_window7_224",
    "backbone_kwargs": {
        **{"embed_dim": 8, "depths": (1, 1, 1, 1), "num_heads": (1, 2, 2, 2), "window_size": 2, "drop_path_rate": 0.0},
    },
}

# A user's process in which no room of ours can be imported.
STRANGER = """
import importlib.util, sys
sys.meta_path[:] = [f for f in sys.meta_path if "editable" not in (getattr(f, "__module__", "") + str(f)).lower()]
for room in ("configuration_mf2", "processing_mf2", "modeling_mf2", "mf2face"):
    while (spec := importlib.util.find_spec(room)) is not None:
        sys.path.remove(str(__import__("pathlib").Path(list(spec.submodule_search_locations)[0]).parent))
        importlib.invalidate_caches()
        sys.path_importer_cache.clear()

import torch
from transformers import AutoConfig, AutoModel, AutoModelForPreTraining

for source in sys.argv[1:]:
    config = AutoConfig.from_pretrained(source, trust_remote_code=True)
    model = AutoModel.from_pretrained(source, trust_remote_code=True).eval()
    assert type(model.config) is type(config)
    with torch.no_grad():
        answer = model(torch.load(source + "/images.pt"))
    torch.save({"au": answer.au_logits, "emotion": answer.emotion_logits}, source + "/answers.pt")
    AutoModelForPreTraining.from_pretrained(source, trust_remote_code=True).save_pretrained(source + "_again")
"""


def small_batch(config, rows: int = 4, texts: bool = True) -> dict[str, torch.Tensor]:
    """One AU label and one emotion label are unknown; one description of either kind is missing."""
    generator = torch.Generator().manual_seed(0)
    units = len(config.action_units)
    batch = {
        "pixel_values": torch.randn(rows, 3, config.image_size, config.image_size, generator=generator),
        "au_labels": torch.randint(0, 2, (rows, units), generator=generator),
        "emotion_labels": torch.randint(0, 3, (rows,), generator=generator),
    }
    batch["au_labels"][0, 0] = batch["emotion_labels"][-1] = -1
    if texts:
        batch["input_ids"], batch["attention_mask"] = captions((rows, 7), generator)
        batch["au_input_ids"], batch["au_attention_mask"] = captions((rows, units, 5), generator)
        for name in ("input_ids", "attention_mask"):
            batch[name][1] = batch[f"au_{name}"][0, 0] = 0
    return batch


def check_unknown_labels_do_not_matter(model: PreTrainedModel, batch: dict[str, torch.Tensor]) -> None:
    """What is unknown leaves no trace in the loss, and where nothing is known the loss is 0 and finite."""
    model.eval()
    known = model(**batch)
    for name in ("au", "emotion"):
        assert known[name] is not None and known[name].isfinite(), name
    nothing = {**batch, "au_labels": torch.full_like(batch["au_labels"], -1)}
    nothing["emotion_labels"] = torch.full_like(batch["emotion_labels"], -1)
    unknown = model(**nothing)
    assert unknown.au == 0 and unknown.emotion == 0 and unknown.loss.isfinite()
    one = {name: tensor[-1:] for name, tensor in batch.items()}
    without = model(**one)
    assert without.emotion == 0 and without.loss.isfinite()
    with pytest.raises(ValueError, match="au_labels: got shape"):
        model(batch["pixel_values"], au_labels=batch["au_labels"][:, :2])
    with pytest.raises(TypeError, match=r"au_label.*did you mean 'au_labels'"):
        model(batch["pixel_values"], au_label=batch["au_labels"])


def check_every_parameter_learns(model: PreTrainedModel, batch: dict[str, torch.Tensor]) -> None:
    shake(model).train()
    model(**batch).loss.backward()
    still = [name for name, p in model.named_parameters() if p.grad is None or not p.grad.abs().sum() > 0]
    assert still == []


def check_half_precision(model: PreTrainedModel, batch: dict[str, torch.Tensor]) -> None:
    whole = model.eval()(**batch)
    half = model.to(torch.bfloat16)(**batch)
    assert half.au_logits.isfinite().all() and half.loss.isfinite()
    assert torch.allclose(half.loss.float(), whole.loss, rtol=0.1), (half.loss, whole.loss)
    half.loss.backward()
    assert all(p.grad.isfinite().all() for p in model.parameters() if p.grad is not None)


def check_saved_and_loaded(model: PreTrainedModel, folder: Path, other: type[PreTrainedModel]) -> None:
    """Bit-equal, and neither another system's class nor other labels get hold of it."""
    kind = type(shake(model))
    model.config.au_thresholds = [0.4, 0.5, 0.6]
    model.save_pretrained(folder)
    again = kind.from_pretrained(folder)
    assert again.config.au_thresholds == [0.4, 0.5, 0.6]
    for name, tensor in model.state_dict().items():
        assert torch.equal(tensor, again.state_dict()[name]), name
    images = torch.randn(2, 3, model.config.image_size, model.config.image_size)
    with torch.no_grad():
        assert torch.equal(model.eval()(images).au_logits, again.eval()(images).au_logits)
    with pytest.raises(ValueError, match=f"checkpoint of '{kind.config_class.model_type}', expected one of"):
        other.from_pretrained(folder)
    with pytest.raises(ValueError, match=r"action_units: got .* but the checkpoint"):
        kind.from_pretrained(folder, action_units=["AU1", "AU2", "AU25"])
    with pytest.raises(ValueError, match="unknown field 'hiden_size'"):
        kind.from_pretrained(folder, config=kind.config_class(**SMALL, hiden_size=3))
    shards = folder / "model.safetensors"
    shards.write_bytes(shards.read_bytes()[:-100])
    with pytest.raises(OSError, match="damaged or cut short"):
        kind.from_pretrained(folder)


def check_strangers(models: dict[str, PreTrainedModel], folder: Path) -> None:
    """A process without our packages loads the checkpoints, and what it saves in turn carries the same code."""
    images = {name: torch.randn(2, 3, *[model.config.image_size] * 2) for name, model in models.items()}
    for name, model in models.items():
        shake(model).eval().save_pretrained(folder / name)
        torch.save(images[name], folder / name / "images.pt")
    environment = {**os.environ, "HF_HUB_OFFLINE": "1", "HF_HOME": str(folder / "home"), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-P", "-c", STRANGER, *(str(folder / name) for name in models)]
    done = subprocess.run(command, env=environment, cwd=folder, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]
    for name, model in models.items():
        found = torch.load(folder / name / "answers.pt")
        with torch.no_grad():
            expected = model(images[name])
        assert torch.equal(found["au"], expected.au_logits) and torch.equal(found["emotion"], expected.emotion_logits)
        saved = [folder / name, folder / f"{name}_again"]
        code = [{path.name: path.read_text() for path in place.glob("*.py")} for place in saved]
        assert code[0] == code[1] and f"baselines_{name}.py" in code[0]
        assert {"modeling_mf2.py", "qformer_mf2.py"}.isdisjoint(code[0]), "no checkpoint carries another system"
        configs = [json.loads((place / "config.json").read_text()) for place in saved]
        assert configs[0]["auto_map"] == configs[1]["auto_map"]


def as_linear(weight: torch.Tensor, bias: torch.Tensor) -> nn.Linear:
    """One of a stack of layers, as a module of its own."""
    layer = nn.Linear(weight.shape[1], weight.shape[0]).to(weight.dtype)
    layer.load_state_dict({"weight": weight, "bias": bias})
    return layer
