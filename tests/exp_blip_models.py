"""Small models of Exp-BLIP: milliseconds a pass."""

import torch
from conftest import QFORMER, TOWERS, captions
from transformers import OPTConfig, OPTForCausalLM

from configuration_mf2.baselines import ExpBlipConfig


SMALL_TOWERS = {
    **TOWERS,
    "eva": {
        **{"backbone": "eva_giant_patch14_224", "num_prefix_tokens": 1, "patch_size": 14, "image_size": 56},
        "backbone_kwargs": {"depth": 2, "embed_dim": 32, "num_heads": 2, "mlp_ratio": 2.0},
    },
}
TOKENS = {"start_token_id": 5, "end_token_id": 3, "pad_token_id": 0, "image_token_id": 40}


def small_config(tower: str = "conv", vision: dict | None = None, **fields) -> ExpBlipConfig:
    defaults = {
        "vision_config": {"image_size": 64, "hidden_size": 32, **SMALL_TOWERS[tower], **(vision or {})},
        **{"emo_config": QFORMER, "au_config": {**QFORMER, "num_query_tokens": 2}},
        **{"action_units": ["AU1", "AU6", "AU25"], "emotions": ["Neutral", "Happiness", "Other"]},
        **{"emotion_max_length": 20, "au_max_length": 24, "initializer_range": 0.2},
    }
    return ExpBlipConfig(**{**defaults, **fields})


def small_opt(words: int = 40) -> OPTForCausalLM:
    sizes = {"hidden_size": 32, "word_embed_proj_dim": 32, "ffn_dim": 48, "num_hidden_layers": 2}
    more = {"num_attention_heads": 2, "max_position_embeddings": 64, "dropout": 0.0, "init_std": 0.2}
    return OPTForCausalLM(OPTConfig(**sizes, **more, vocab_size=words))


def faces_and_captions(config: ExpBlipConfig, rows: int = 4) -> dict[str, torch.Tensor]:
    """Images and captions, of which one is missing."""
    generator, size = torch.Generator().manual_seed(0), config.vision_config.image_size
    ids, mask = captions((rows, 7), generator)
    ids[1] = mask[1] = 0
    images = torch.randn(rows, 3, size, size, generator=generator)
    return {"pixel_values": images, "input_ids": ids, "attention_mask": mask}
