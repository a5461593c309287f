"""A file's weights are put in place once, as transformers itself would, and whatever is not plain is left to it."""

from pathlib import Path

import pytest
import torch
from conftest import shake, tiny_config
from torch.utils._python_dispatch import TorchDispatchMode
from transformers import PreTrainedModel

from modeling_mf2 import MF2ForFaceAnalysis, MF2ForPreTraining, MF2Model, loading_mf2, modeling_mf2


FILLS = ("normal_", "uniform_", "zero_", "fill_", "copy_", "erfinv_", "random_")


class CountFills(TorchDispatchMode):
    """Names of operations that write into real, not empty floating-point tensors."""

    def __init__(self) -> None:
        super().__init__()
        self.found: list[str] = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        name = func.__name__.split(".")[0]
        if name in FILLS and not args[0].is_meta and args[0].is_floating_point() and args[0].numel():
            self.found.append(name)
        return func(*args, **(kwargs or {}))


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("loading")
    torch.manual_seed(0)
    shake(MF2ForPreTraining(tiny_config("vit"))).save_pretrained(folder)
    return folder


@pytest.fixture
def plainly(monkeypatch: pytest.MonkeyPatch) -> list[bool]:
    """Of each load whether it was done here."""
    said: list[bool] = []

    def load(*inputs):
        info = loading_mf2.load_in_place(*inputs)
        said.append(info is not None)
        return info

    monkeypatch.setattr(modeling_mf2, "load_in_place", load)
    return said


def by_transformers(kind: type, *args, **kwargs):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(kind, "_load_pretrained_model", staticmethod(PreTrainedModel._load_pretrained_model))
        return kind.from_pretrained(*args, output_loading_info=True, **kwargs)


def check_equal(first: torch.nn.Module, second: torch.nn.Module) -> None:
    parts = [
        {**dict(model.named_parameters()), **dict(model.named_buffers()), **model.state_dict(keep_vars=True)}
        for model in (first, second)
    ]
    assert list(parts[0]) == list(parts[1])
    for name, tensor in parts[0].items():
        other = parts[1][name]
        assert torch.equal(tensor, other) and tensor.dtype == other.dtype and type(tensor) is type(other), name
        assert tensor.requires_grad == other.requires_grad and tensor.device == other.device, name
    assert first.training is second.training is False


@pytest.mark.parametrize(
    ("kind", "settings"),
    [(MF2ForPreTraining, {"dtype": torch.bfloat16}), (MF2ForFaceAnalysis, {})],
    ids=["bf16", "fp32"],
)
def test_it_is_what_transformers_does(saved: Path, plainly: list[bool], kind: type, settings: dict) -> None:
    expected, said = by_transformers(kind, saved, **settings)
    model, info = kind.from_pretrained(saved, output_loading_info=True, **settings)
    assert plainly == [True] and info == said
    check_equal(model, expected)


def test_no_weight_is_initialised_before_it_is_loaded(saved: Path, plainly: list[bool]) -> None:
    with CountFills() as fills:
        MF2ForPreTraining(tiny_config("vit"))
    assert len(fills.found) > 100, "the count sees them"
    with CountFills() as fills:
        MF2ForPreTraining.from_pretrained(saved)
    assert plainly == [True] and fills.found == []
    with CountFills() as fills:  # other labels: those weights and no others are made, and once
        MF2ForPreTraining.from_pretrained(saved, emotions=["Neutral", "Anger"], ignore_mismatched_sizes=True)
    assert plainly == [True, False] and 0 < len(fills.found) < 40


def test_what_is_not_plain_is_left_to_transformers(saved: Path, plainly: list[bool], tmp_path: Path) -> None:
    whole = MF2ForPreTraining.from_pretrained(saved)
    inner = MF2Model.from_pretrained(saved)  # by names without the prefix
    check_equal(inner, whole.mf2)
    check_equal(MF2ForPreTraining.from_pretrained(saved, device_map="cpu"), whole)
    check_equal(MF2ForPreTraining.from_pretrained(None, config=whole.config, state_dict=whole.state_dict()), whole)
    same = {r"\.k_proj\.": ".k_proj."}
    check_equal(MF2ForPreTraining.from_pretrained(saved, key_mapping=same), whole)
    assert plainly == [True, False, False, False, False]
    whole.save_pretrained(tmp_path, max_shard_size="100KB")  # in many files
    assert len(list(tmp_path.glob("*.safetensors"))) > 1
    check_equal(MF2ForPreTraining.from_pretrained(tmp_path), whole)
    assert plainly[-1] is True


def test_the_file_stays_as_it_is_when_the_weights_change(saved: Path) -> None:
    before = (saved / "model.safetensors").read_bytes()
    model = MF2ForPreTraining.from_pretrained(saved)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(1)
    assert (saved / "model.safetensors").read_bytes() == before
