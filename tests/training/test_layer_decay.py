import pytest
import torch
from exp_blip_models import TOKENS, small_config, small_opt
from transformers import TrainingArguments

from mf2face.training.trainer import layerwise_groups, layerwise_optimizer
from modeling_mf2 import ExpBlipForPreTraining
from modeling_mf2.baselines.exp_blip import to_blip2


def rates(model, **settings) -> dict[str, tuple[float, float]]:
    """Parameter -> its rate and its weight decay; each stands in one group."""
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    found = {}
    for group in layerwise_groups(model, **settings):
        for parameter in group["params"]:
            assert names[id(parameter)] not in found
            found[names[id(parameter)]] = (group["lr"], group["weight_decay"])
    return found


def stage_one(tower: str, frozen: bool = False, **vision) -> ExpBlipForPreTraining:
    return ExpBlipForPreTraining(small_config(tower, vision={"frozen": frozen, **vision}))


def test_a_vits_layers_learn_as_the_formula_has_it():
    """Three blocks: the image enters at layer 0, block i is layer i + 1, the final norm layer 4, at the full rate."""
    kwargs = {"embed_dim": 32, "depth": 3, "num_heads": 2}
    found = rates(stage_one("vit", backbone_kwargs=kwargs), lr=1.0, decay=0.5, weight_decay=0.05)
    inside = {name.removeprefix("mf2.vision.backbone."): rate for name, rate in found.items() if ".vision." in name}
    layers = {"cls_token": 0, "pos_embed": 0, "patch_embed": 0, "norm": 4}
    for name, (lr, _) in inside.items():
        part, _, rest = name.partition(".")
        layer = int(rest.split(".")[0]) + 1 if part == "blocks" else layers[part]
        assert lr == pytest.approx(0.5 ** (4 - layer)), name
    assert len(inside) == 4 + 3 * 12 + 2
    assert {lr for name, (lr, _) in found.items() if ".vision." not in name} == {1.0}


def test_the_small_towers_convolutions_are_layers_too():
    """Seven convolutions and one block: layers 0 to 6, 7, and the final norm."""
    found = rates(stage_one("conv"), lr=1.0, decay=0.5)
    inside = {name.removeprefix("mf2.vision.backbone."): lr for name, (lr, _) in found.items() if ".vision." in name}
    for number in range(7):
        for place in (3 * number, 3 * number + 1):  # a convolution and its norm
            assert inside[f"convolutions.{place}.weight"] == pytest.approx(0.5 ** (8 - number))
    assert inside["positions"] == pytest.approx(0.5**2) and inside["blocks.0.qkv.weight"] == 0.5
    assert inside["norm.weight"] == 1.0


@pytest.mark.parametrize("tower", ["conv", "vit", "eva"])
def test_both_stages_have_the_same_rates(tower):
    model = stage_one(tower)
    captioner = to_blip2(model, small_opt(), **TOKENS)
    captioner.language_model.requires_grad_(False)
    ours, theirs = rates(model, lr=1e-5), rates(captioner, lr=1e-5)
    assert not [name for name in theirs if name.startswith("language_model.")]
    counted = []
    for found, prefix in ((ours, "mf2.vision."), (theirs, "vision_model.")):
        inside = [rate for name, rate in found.items() if name.startswith(prefix)]
        counted.append({rate: inside.count(rate) for rate in set(inside) if rate[1]})
    # Tensors that BLIP-2 keeps in one piece are decayed likewise: only weights are compared.
    assert counted[0] == counted[1]


def test_biases_and_norms_are_not_decayed_and_what_is_frozen_is_left_out():
    model = stage_one("vit", frozen=True)
    found = rates(model, lr=1.0, weight_decay=0.05)
    assert not [name for name in found if ".vision." in name]
    for name, (_, decay) in found.items():
        kept = name.endswith("bias") or "norm" in name or name.endswith("temperature")
        assert decay == (0.0 if kept else 0.05), name
    model.mf2.vision.requires_grad_(True)
    model.mf2.vision.backbone.patch_embed.requires_grad_(False)  # the others keep their layers
    lower = rates(model, lr=1.0, decay=0.5)
    assert lower["mf2.vision.backbone.cls_token"][0] == 0.25 and lower["mf2.vision.backbone.norm.weight"][0] == 1


def test_the_optimizer_is_the_arguments_own(tmp_path):
    model = stage_one("vit")
    settings = {"learning_rate": 1e-3, "weight_decay": 0.1, "adam_beta2": 0.98, "adam_epsilon": 1e-6}
    optimizer = layerwise_optimizer(model, TrainingArguments(str(tmp_path), use_cpu=True, **settings), decay=1.0)
    assert {group["lr"] for group in optimizer.param_groups} == {1e-3}
    assert {group["weight_decay"] for group in optimizer.param_groups} == {0.0, 0.1}
    assert all(group["betas"] == (0.9, 0.98) and group["eps"] == 1e-6 for group in optimizer.param_groups)
    count = sum(len(group["params"]) for group in optimizer.param_groups)
    assert count == len([p for p in model.parameters() if p.requires_grad])


def test_a_tower_without_a_sequence_of_blocks_is_refused():
    class Bare(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.vision = torch.nn.Module()
            self.vision.backbone = torch.nn.Linear(2, 2)

    with pytest.raises(ValueError, match="the tower has no plain sequence of blocks"):
        layerwise_groups(Bare(), 1.0)
    assert layerwise_groups(Bare(), 1.0, decay=1.0)
