"""Pretrained parts in: other models' weights under our names. Every key is accounted for."""

import re

import torch


_QFORMER_RENAMES = (
    (r"^(?:bert\.)?encoder\.layer\.(\d+)\.", r"layers.\1."),
    (r"^embeddings\.", ""),
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


def qformer_names(state: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Names of `Blip2QFormerModel` (and of LAVIS's Q-Former without its `bert.`) -> names of `MF2QFormer`."""
    renamed = {}
    for name, tensor in state.items():
        for pattern, replacement in _QFORMER_RENAMES:
            name = re.sub(pattern, replacement, name)
        renamed[name] = tensor
    return renamed
