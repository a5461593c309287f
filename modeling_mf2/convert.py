"""Pretrained parts in: other models' weights into a built MF².

Every key of a source and every tensor of ours is accounted for, in the report or in an error; after an error the model
is as it was. A source is anything that `read_weights` takes (a local file, of which no code is run; a folder; a name on
the Hub), or for the tower a timm model name. Vision and BERT come first, then BLIP-2, which replaces its share.
"""

import re
import sys
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path

import timm
import torch
from torch import nn
from transformers import AutoConfig, PreTrainedModel

from configuration_mf2.configuration_mf2 import MF2QFormerConfig

from .modeling_mf2 import Branch, MF2Model
from .weights import (
    HEADS,
    VISION_IN_BLIP2,
    VISION_PREFIX,
    State,
    branch_name,
    no_place_in_branch,
    no_place_in_tower,
    part_of,
    qformer_names,
    read_weights,
    vision_name,
)


@dataclass
class ConversionReport:
    """
    loaded: tensors of ours that now hold the source's values. fresh: those that the source has nothing for, left as
        they were. adapted: of the loaded ones, those that are no plain copy -> what was done.
    unused: keys of the source that have no place here -> why.
    """

    source: str
    loaded: list[str] = field(default_factory=list)
    fresh: list[str] = field(default_factory=list)
    unused: dict[str, str] = field(default_factory=dict)
    adapted: dict[str, str] = field(default_factory=dict)

    def __str__(self) -> str:
        def parts(names: list[str]) -> str:
            counts = Counter(f"{name.split('.')[0]} {part_of(name)}" for name in names)
            return ", ".join(f"{part} ({count})" for part, count in counts.items()) or "nothing"

        lines = [f"{self.source}: loaded {len(self.loaded)} tensors: {parts(self.loaded)}"]
        lines += [f"  adapted {name}: {note}" for name, note in self.adapted.items()]
        lines.append(f"  left as they were {len(self.fresh)}: {parts(self.fresh)}")
        for reason in dict.fromkeys(self.unused.values()):
            lines.append(f"  not used ({reason}): {_first([k for k, why in self.unused.items() if why == reason], 3)}")
        return "\n".join(lines)


@dataclass
class _Plan(ConversionReport):
    """A report in the making: nothing is copied before everything is accounted for."""

    copies: dict[str, tuple[str, torch.Tensor]] = field(default_factory=dict)  # our name -> source key, tensor
    unknown: list[str] = field(default_factory=list)


def _first(names: list[str], number: int = 10) -> str:
    return ", ".join(names[:number]) + (f" ... ({len(names)} in all)" if len(names) > number else "")


def _base(model: PreTrainedModel) -> MF2Model:
    base = getattr(model, "base_model", None)
    if not isinstance(base, MF2Model):
        raise ValueError(f"model: got {type(model).__name__}, expected MF2Model or a model that holds one")
    if any(parameter.is_meta for parameter in base.parameters()):
        raise ValueError("model: got tensors on the meta device, expected a built model: weights would be lost there")
    return base


def _check_config(source: str | Path, config: MF2QFormerConfig) -> None:
    """Compares what shapes do not show. A lone file has no config to compare."""
    if Path(source).is_file():
        return
    try:
        theirs = AutoConfig.from_pretrained(str(source), trust_remote_code=False)
    except (OSError, ValueError):  # weights without a config, or with one that transformers does not know
        return
    theirs = getattr(theirs, "qformer_config", theirs)
    for name in ("num_attention_heads", "hidden_act", "layer_norm_eps"):
        if getattr(theirs, name, getattr(config, name)) != getattr(config, name):
            raise ValueError(
                f"{name}: {source} has {getattr(theirs, name)}, the model {getattr(config, name)}; build the model "
                "with the source's value in emo_config and au_config"
            )


def _plan_vision(plan: _Plan, backbone: nn.Module, state: State) -> None:
    """timm's own reader of an architecture resizes positions and renames old names; the rest is ours."""
    ours, keys = backbone.state_dict(), {vision_name(key): key for key in state}
    plan.unknown += sorted(set(state) - set(keys.values()))  # two keys of one name
    given = {name: state[key] for name, key in keys.items()}
    reader = getattr(sys.modules[type(backbone).__module__], "checkpoint_filter_fn", None)
    read = dict(reader(dict(given), backbone)) if reader is not None else dict(given)
    same_memory = {tensor.data_ptr() for tensor in read.values()}
    for name, tensor in given.items():
        if name in read and read[name].shape != tensor.shape:
            plan.adapted[f"vision.backbone.{name}"] = f"{tuple(tensor.shape)} resized to {tuple(read[name].shape)}"
        elif name not in read and tensor.data_ptr() not in same_memory:
            plan.unused[keys[name]] = no_place_in_tower(name) or "timm's reader of the backbone leaves it out"
    for kind in ("weight", "bias"):  # timm names the final norm so in models that pool before it
        if f"norm.{kind}" in ours and f"norm.{kind}" not in read and f"fc_norm.{kind}" in read:
            read[f"norm.{kind}"] = read.pop(f"fc_norm.{kind}")
            plan.adapted[f"vision.backbone.norm.{kind}"] = "the source's fc_norm, which normalised pooled tokens"
    for name in [name for name in read if name.endswith("attn.qkv.bias") and name not in ours]:
        attention = name.removesuffix("qkv.bias")
        if f"{attention}q_bias" in ours:  # a key's bias shifts all scores of a query alike: softmax does not see it
            read[f"{attention}q_bias"], _, read[f"{attention}v_bias"] = read.pop(name).chunk(3)
    depth = len(getattr(backbone, "blocks", ()))
    for name, tensor in read.items():
        key, block = keys.get(name, name), re.match(r"blocks\.(\d+)\.", name)
        if name in ours:
            plan.copies[f"vision.backbone.{name}"] = key, tensor
        elif block and int(block[1]) >= depth > 0:
            plan.unused[key] = f"the tower has {depth} blocks"
        elif reason := no_place_in_tower(name):
            plan.unused[key] = reason
        else:
            plan.unknown.append(key)


def _fitted(name: str, tensor: torch.Tensor, ours: torch.Tensor) -> tuple[torch.Tensor, str | None]:
    """Cuts or extends a tensor to our number of rows, where that may differ; the note says how."""
    if name == "temperature" and tensor.numel() == 1:
        return tensor.reshape(1), None
    dim = int(name == "queries")
    if tensor.ndim != ours.ndim or tensor.ndim <= dim:
        return tensor, None
    have, want = tensor.shape[dim], ours.shape[dim]
    if name in ("qformer.word_embeddings.weight", "heads.language.bias") and want == have + 1:
        # As transformers does for added tokens: a neutral start, and no outlier among the logits.
        return torch.cat([tensor, tensor.float().mean(0, keepdim=True)]), f"row {have} ([DEC]) is the others' mean"
    if name in ("qformer.position_embeddings.weight", "queries") and want < have:
        return tensor.narrow(dim, 0, want), f"the first {want} of {have}"
    return tensor, None


def _plan_branch(plan: _Plan, mf2: MF2Model, branch: Branch, state: State, copy_feed_forward: bool = False) -> None:
    module, prefix = mf2.branch(branch), f"{branch}_vl."
    ours, config, named = module.state_dict(), module.qformer.config, {}
    for key in sorted(state, key=lambda key: "predictions.decoder." in key):  # tied, thus second
        name = branch_name(key)
        if reason := no_place_in_branch(key):
            plan.unused[key] = reason
        elif name in named and "predictions.decoder." not in key:
            plan.unknown.append(key)
        elif name in named:
            same = torch.equal(named[name][1], state[key])
            plan.unused[key] = f"{'same as' if same else 'differs from'} {named[name][0]}, which is taken"
        else:
            named[name] = key, state[key]
    if copy_feed_forward:
        queries = {name.replace("text_feed", "query_feed"): found for name, found in named.items()}
        named = queries | named
    layers = {found[1] for name in named if (found := re.match(r"qformer\.layers\.(\d+)\.", name))}
    width = named["qformer.norm.weight"][1].shape[0] if "qformer.norm.weight" in named else config.hidden_size
    for size, theirs in (("num_hidden_layers", len(layers)), ("hidden_size", width)):
        if layers and theirs != getattr(config, size):
            raise ValueError(
                f"{size}: {plan.source} has {theirs}, the model's {branch} branch {getattr(config, size)}; build the "
                f"model with {size}={theirs} in {branch}_config"
            )
    words = named.get("qformer.word_embeddings.weight")
    if words and config.bos_token_id not in (len(words[1]) - 1, len(words[1])):
        raise ValueError(
            f"bos_token_id: {plan.source} has {len(words[1])} words, but the model's {branch} branch starts a sentence "
            f"with {config.bos_token_id}: its tokenizer is another, and every id would mean another word. Before the "
            "model is built, MF2Processor.for_model(config, load_bert_tokenizer(source)), with vocab_size its length"
        )
    positions = named.get("qformer.position_embeddings.weight")
    if positions and (types := named.pop("qformer.token_type_embeddings.weight", None)):
        # BERT adds row 0 to every token. Among the positions it does so without touching the tied language head.
        named["qformer.position_embeddings.weight"] = positions[0], positions[1].float() + types[1][0].float()
        plan.unused[types[0]] = "row 0 is added to the positions, the others stand for further sentences"
    for name, (key, tensor) in named.items():
        if name not in ours:
            plan.unknown.append(key)
            continue
        tensor, note = _fitted(name, tensor, ours[name])
        plan.copies[prefix + name] = key, tensor
        if note:
            plan.adapted[prefix + name] = note


@torch.no_grad()
def _carry_out(plan: _Plan, mf2: MF2Model, scope: tuple[str, ...], optional: set[str]) -> ConversionReport:
    """Copies every tensor or, after an error, none. optional: parts that the source may lack."""
    ours = {name: tensor for name, tensor in mf2.state_dict().items() if name.startswith(scope)}
    begun = {(name.split(".")[0], part_of(name)) for name in plan.copies}
    missing = [name for name in ours if name not in plan.copies]
    plan.fresh = [n for n in missing if part_of(n) in optional and (n.split(".")[0], part_of(n)) not in begun]
    problems = {
        "unknown keys": list(dict.fromkeys(plan.unknown)),
        "missing tensors": [name for name in missing if name not in set(plan.fresh)],
        "wrong shapes": [
            f"{key}: got {tuple(tensor.shape)}, expected {tuple(ours[name].shape)} ({name})"
            for name, (key, tensor) in plan.copies.items()
            if tensor.shape != ours[name].shape
        ],
    }
    if any(problems.values()):
        raise ValueError(
            f"{plan.source} does not fit this model, which was left as it was."
            + "".join(f"\n  {len(names)} {what}: {_first(names)}" for what, names in problems.items() if names)
            + "\nBuild the model with the source's sizes (vision_config, emo_config, au_config), or give a source in "
            "a format that modeling_mf2.convert reads."
        )
    for name, (_, tensor) in plan.copies.items():
        ours[name].copy_(tensor)
    return ConversionReport(plan.source, list(plan.copies), plan.fresh, plan.unused, plan.adapted)


def load_vision_weights(model: PreTrainedModel, source: str | Path) -> ConversionReport:
    """A vision model into the tower: timm's (by name or file), EVA's as LAVIS keeps it, `Blip2VisionModel`'s, our own.

    Positions are resized to the tower's grid, and blocks beyond its depth are left out. A source without a final norm
    (BLIP-2 keeps it apart, as `ln_vision`) leaves the tower's as it was.
    """
    mf2, plan = _base(model), _Plan(str(source))
    if not Path(source).exists() and timm.is_model(str(source)):
        state = timm.create_model(str(source), pretrained=True).state_dict()
    else:
        state = read_weights(source)
    if any(VISION_PREFIX.match(key) for key in state):
        plan.unused = {key: "not of a vision tower" for key in state if not VISION_PREFIX.match(key)}
    _plan_vision(plan, mf2.vision.backbone, {key: state[key] for key in state if key not in plan.unused})
    return _carry_out(plan, mf2, ("vision.",), {"final norm"})


def load_bert_weights(
    model: PreTrainedModel, source: str | Path, branches: tuple[Branch, ...] | None = None
) -> ConversionReport:
    """BERT into the Q-Formers of all branches, or of those named; its feed-forward nets serve text and queries alike.

    Afterwards the text stream alone (`mode="two_way"`) is that BERT. Cross-attention, queries and projections stay
    fresh, and so does the language head unless the source has one. Of a vocabulary one token short, `[DEC]` starts as
    the mean of all words.
    """
    return _load_branches(_base(model), source, branches, {"cross attention", *HEADS}, vision=False, bert=True)


def load_blip2_weights(
    model: PreTrainedModel, source: str | Path, branches: tuple[Branch, ...] | None = None, vision: bool = True
) -> ConversionReport:
    """BLIP-2 into the tower (unless `vision=False`) and into all branches, or those named.

    From transformers: `Blip2ForImageTextRetrieval`, `Blip2ForConditionalGeneration` and kin, `Blip2QFormerModel`; from
    LAVIS: the stage-1 file. What a source lacks stays as it was: a captioning model's text parts (load BERT first), a
    LAVIS file's frozen tower, the language head of transformers. A branch with fewer queries takes the first.
    """
    optional = {"tower", "final norm", "text embeddings", "text feed forward", *HEADS}
    return _load_branches(_base(model), source, branches, optional, vision=vision, bert=False)


def _load_branches(
    mf2: MF2Model, source: str | Path, branches: tuple[Branch, ...] | None, optional: set[str], vision: bool, bert: bool
) -> ConversionReport:
    if branches is None:
        branches = tuple(name for name in ("emo", "au") if getattr(mf2, f"{name}_vl") is not None)
    for branch in branches:
        _check_config(source, mf2.branch(branch).qformer.config)
    plan, state = _Plan(str(source)), read_weights(source)
    tower = {} if bert else {key: state.pop(key) for key in list(state) if VISION_IN_BLIP2.match(key)}
    if vision and tower:
        _plan_vision(plan, mf2.vision.backbone, tower)
    else:
        plan.unused |= dict.fromkeys(tower, "vision=False")
    for branch in branches:
        _plan_branch(plan, mf2, branch, state, copy_feed_forward=bert)
    scope = tuple(f"{branch}_vl." for branch in branches) + (("vision.",) if vision else ())
    return _carry_out(plan, mf2, scope, optional)


__all__ = ["ConversionReport", "load_bert_weights", "load_blip2_weights", "load_vision_weights", "qformer_names"]
