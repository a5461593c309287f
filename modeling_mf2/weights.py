"""Weights as others store them: a file, a folder, a repository on the Hub -> tensors by the names they have there."""

import hashlib
import pickle
import re
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from transformers.utils import cached_file, has_file
from transformers.utils.hub import get_checkpoint_shard_files


State = dict[str, torch.Tensor]

_IN_FOLDER = ("model.safetensors", "model.safetensors.index.json", "pytorch_model.bin", "pytorch_model.bin.index.json")


def _sha256(path: Path) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _expected_sha256(path: Path) -> str | None:
    """From `FILE.sha256`, as sha256sum writes it; else from the Hub's cache, which names large files so."""
    beside = path.with_name(f"{path.name}.sha256")
    named = beside.read_text().split(maxsplit=1)[0].lower() if beside.is_file() else path.resolve().name
    return named if re.fullmatch("[0-9a-f]{64}", named) else None


def _damage(path: Path) -> str:
    expected = _expected_sha256(path)
    hashes = f"SHA-256 {_sha256(path)}" + (f", expected {expected}" if expected else "")
    return f"{path} cannot be read: damaged or half downloaded ({path.stat().st_size:,} bytes, {hashes})"


def _read_file(path: Path) -> State:
    if path.with_name(f"{path.name}.sha256").is_file() and _sha256(path) != _expected_sha256(path):
        raise ValueError(f"source: {_damage(path)}")
    try:
        if path.suffix == ".safetensors":
            state = load_file(path)
        else:
            state = torch.load(path, map_location="cpu", weights_only=True)
    except (SafetensorError, pickle.UnpicklingError, EOFError, RuntimeError) as error:
        raise ValueError(
            f"source: {_damage(path)}; or it holds more than tensors (code in a file is never run): then re-save its "
            f"tensors with safetensors. {type(error).__name__}: {str(error)[:200]}"
        ) from error
    if not isinstance(state, dict):
        raise ValueError(f"source: {path} holds a {type(state).__name__}, expected a dict of tensors by name")
    while nested := next((k for k in ("model", "state_dict", "module") if isinstance(state.get(k), dict)), None):
        state = state[nested]
    state = {key: value for key, value in state.items() if isinstance(value, torch.Tensor)}
    if state and all(key.startswith("module.") for key in state):
        state = {key.removeprefix("module."): value for key, value in state.items()}
    return state


def read_weights(source: str | Path) -> State:
    """The tensors of a local file, of a folder as `save_pretrained` writes it, or of a repository on the Hub.

    Other files than `.safetensors` are read with `torch.load(weights_only=True)`, which runs no code of the file.
    """
    path = Path(source)
    if path.is_file():
        return _read_file(path)
    if path.suffix in (".safetensors", ".pth", ".pt", ".bin"):
        raise ValueError(f"source: got {path}, which is no file; expected a file, a folder or a name on the Hub")
    for name in _IN_FOLDER:
        if has_file(str(source), name):
            found = cached_file(str(source), name)
            files = get_checkpoint_shard_files(str(source), found)[0] if name.endswith(".json") else [found]
            return {key: value for file in files for key, value in _read_file(Path(file)).items()}
    raise ValueError(f"source: {source} is out of reach or has no weights; expected one of {', '.join(_IN_FOLDER)}")


Rules = tuple[tuple[str, str], ...]

_QFORMER_RENAMES: Rules = (
    (r"LayerNorm\.gamma$", "LayerNorm.weight"),
    (r"LayerNorm\.beta$", "LayerNorm.bias"),
    (r"^(?:bert\.)?encoder\.layer\.(\d+)\.", r"layers.\1."),
    (r"^(?:bert\.)?embeddings\.LayerNorm\.", "norm."),
    (r"^(?:bert\.)?embeddings\.", ""),
    (r"^layernorm\.", "norm."),
    (r"crossattention\.", "cross_attention."),
    (r"attention\.(?:attention|self)\.query\.", "attention.q_proj."),
    (r"attention\.(?:attention|self)\.key\.", "attention.k_proj."),
    (r"attention\.(?:attention|self)\.value\.", "attention.v_proj."),
    (r"attention\.output\.dense\.", "attention.out_proj."),
    (r"attention\.output\.LayerNorm\.", "attention.norm."),
    (r"\.intermediate_query\.dense\.", ".query_feed_forward.up_proj."),
    (r"\.output_query\.dense\.", ".query_feed_forward.down_proj."),
    (r"\.output_query\.LayerNorm\.", ".query_feed_forward.norm."),
    (r"\.intermediate\.dense\.", ".text_feed_forward.up_proj."),
    (r"\.output\.dense\.", ".text_feed_forward.down_proj."),
    (r"\.output\.LayerNorm\.", ".text_feed_forward.norm."),
)
_HEAD_RENAMES: Rules = (
    (r"^query_tokens$", "queries"),
    (r"^vision_proj(?:ection)?\.", "heads.image_projection."),
    (r"^text_proj(?:ection)?\.", "heads.text_projection."),
    (r"^itm_head\.", "heads.itm."),
    (r"^temp$", "temperature"),
    (r"^cls\.predictions\.transform\.dense\.", "heads.language.transform."),
    (r"^cls\.predictions\.transform\.LayerNorm\.(?:weight|gamma)$", "heads.language.norm.weight"),
    (r"^cls\.predictions\.transform\.LayerNorm\.(?:bias|beta)$", "heads.language.norm.bias"),
    (r"^cls\.predictions\.(?:decoder\.)?bias$", "heads.language.bias"),
    (r"^cls\.predictions\.decoder\.weight$", "qformer.word_embeddings.weight"),
)
_VISION_RENAMES: Rules = (
    (r"^embeddings\.class_embedding$", "cls_token"),
    (r"^embeddings\.position_embedding$", "pos_embed"),
    (r"^embeddings\.patch_embedding\.", "patch_embed.proj."),
    (r"^encoder\.layers\.(\d+)\.", r"blocks.\1."),
    (r"\.self_attn\.projection\.", ".attn.proj."),
    (r"\.self_attn\.qkv\.", ".attn.qkv."),
    (r"\.layer_norm([12])\.", r".norm\1."),
    (r"^post_layernorm\.", "norm."),
)
VISION_PREFIX = re.compile(r"^(?:(?:mf2\.)?(?:vision\.)?backbone\.|vision_model\.|visual_encoder\.|ln_vision\.)")
VISION_IN_BLIP2 = re.compile(r"^(?:vision_model|visual_encoder|ln_vision)\.")

_NO_PLACE_IN_BRANCH: Rules = (
    (r"(?:^|\.)position_ids$", "counts positions, no weight"),
    (r"(?:^|\.)pooler\.", "pooled output, of which the Q-Former has none"),
    (r"^cls\.seq_relationship\.", "next-sentence head"),
    (r"^classifier\.", "classifier of another task"),
    (r"^(?:language_model|language_projection|(?:opt|t5|llm)_(?:model|proj))\.", "language model"),
)
_NO_PLACE_IN_TOWER: Rules = (
    (r"^(?:head|head_dist|fc|classifier|pre_logits|attn_pool|fc_norm|lm_head)\.", "classifier head"),
    (r"^(?:mask_token$|decoder_)", "used in the source's pretraining only"),  # decoder: MAE's
    (r"(?:^|\.)(?:relative_position_index|attn_mask|k_bias|rope\..*|periods)$", "a constant the tower makes itself"),
)

# Parts of a branch that a source may lack altogether.
HEADS = {"image projection", "text projection", "itm", "language", "queries", "temperature"}


def _renamed(name: str, rules: Rules) -> str:
    for pattern, replacement in rules:
        name = re.sub(pattern, replacement, name)
    return name


def _bare(key: str) -> str:
    return re.sub(r"^[Qq]former\.", "", key)


def no_place_in_branch(key: str) -> str | None:
    """Why a key that is known has no place in an `MF2Branch`."""
    key = _bare(key)
    return next((reason for pattern, reason in _NO_PLACE_IN_BRANCH if re.search(pattern, key)), None)


def no_place_in_tower(name: str) -> str | None:
    return next((reason for pattern, reason in _NO_PLACE_IN_TOWER if re.search(pattern, name)), None)


def qformer_names(state: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Names of `Blip2QFormerModel` (and of LAVIS's Q-Former without its `bert.`) -> names of `MF2QFormer`."""
    return {_renamed(name, _QFORMER_RENAMES): tensor for name, tensor in state.items()}


def branch_name(key: str) -> str:
    """A key of BERT, of BLIP-2 in transformers or of LAVIS's stage 1 -> the name in an `MF2Branch`, if it has one."""
    key = _bare(key)
    name = _renamed(key, _HEAD_RENAMES)
    return name if name != key else "qformer." + _renamed(key, _QFORMER_RENAMES)


def vision_name(key: str) -> str:
    """A key of timm, of LAVIS's EVA, of `Blip2VisionModel` or of our own tower -> the name in the tower's backbone."""
    if key.startswith("ln_vision."):
        return "norm." + key.removeprefix("ln_vision.")
    return _renamed(VISION_PREFIX.sub("", key), _VISION_RENAMES)


def part_of(name: str) -> str:
    """What a tensor of ours belongs to. A source has all of a part, or none of it."""
    if name.startswith("vision."):
        return "final norm" if name.startswith("vision.backbone.norm.") else "tower"
    if found := re.search(r"cross_attention|text_feed_forward|(?<=heads\.)\w+|(?<=_vl\.)(?:queries|temperature)", name):
        return found[0].replace("_", " ")
    return "text embeddings" if re.search("(?:word|position)_embeddings", name) else "Q-Former"
