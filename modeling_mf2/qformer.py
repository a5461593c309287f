"""The Q-Former: learned queries that read an image, and a text stream that shares their self-attention.

Queries and text are two streams through the same blocks. Each block attends (its weights shared by the streams), lets
the queries read the image in every second block, and sends each stream through a feed-forward net of its own. What a
stream may see is BLIP-2's choice of three masks: `two_way` (all see all), `causal` (text sees the queries and earlier
text, queries see no text) and `unimodal` (each stream sees itself alone).
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import torch
from torch import nn
from transformers import Cache, PreTrainedModel
from transformers.activations import ACT2FN
from transformers.modeling_layers import GradientCheckpointingLayer
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS
from transformers.utils import ModelOutput

from configuration_mf2.configuration_mf2 import MF2QFormerConfig

from .vision import products_are_faster


TextMode = Literal["two_way", "causal", "unimodal"]
KeyValue = tuple[torch.Tensor, torch.Tensor]

_COLLECTED = (
    *("attentions", "text_attentions", "cross_attentions", "hidden_states", "text_hidden_states"),
    *("query_key_values", "image_key_values"),
)

# Without gradients a CPU goes through the wide layer in parts that stay in its cache.
_ROWS_AT_ONCE = 1024


@dataclass
class MF2QFormerOutput(ModelOutput):
    r"""
    query_states (`(batch, queries, hidden)`), text_states (`(batch, length, hidden)`): after the last block.
    query_key_values: of each block, what text attends to; with them a later text pass needs no queries.
    image_key_values: of each block with cross-attention, keys and values of the image tokens; a later pass over the
        same images needs no image tokens.
    hidden_states, text_hidden_states: of each stream, the state before the first block and after every block. With
        `kinds`, hidden_states, attentions and cross_attentions have an axis for them, behind that of the images.
    attentions, text_attentions, cross_attentions: one a block.
    """

    query_states: torch.Tensor | None = None
    text_states: torch.Tensor | None = None
    query_key_values: tuple[KeyValue, ...] | None = None
    image_key_values: tuple[KeyValue, ...] | None = None
    hidden_states: tuple[torch.Tensor, ...] | None = None
    text_hidden_states: tuple[torch.Tensor, ...] | None = None
    attentions: tuple[torch.Tensor, ...] | None = None
    text_attentions: tuple[torch.Tensor, ...] | None = None
    cross_attentions: tuple[torch.Tensor, ...] | None = None


def eager_attention_forward(
    module: nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    scaling: float,
    dropout: float = 0.0,
    kinds: int | None = None,
    **kwargs: object,
) -> tuple[torch.Tensor, torch.Tensor]:
    scores = query @ key.transpose(-1, -2) * scaling
    if attention_mask is not None:
        scores = scores + attention_mask
    weights = nn.functional.softmax(scores, dim=-1, dtype=torch.float32).to(query.dtype)
    returned, weights = split_kinds(weights, kinds)
    attended = nn.functional.dropout(weights, dropout, module.training) @ value
    return attended.transpose(1, 2).contiguous(), returned


def split_kinds(rows: torch.Tensor, kinds: int | None) -> tuple[torch.Tensor, torch.Tensor]:
    """Returns (images, kinds, ...) and its rows again, to go on with: else the first would get no gradient."""
    if kinds is None:
        return rows, rows
    split = rows.unflatten(0, (-1, kinds))
    return split, split.flatten(0, 1)


def additive_mask(visible: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """Returns what is added to the scores; a row that sees no key stays finite."""
    return torch.zeros(visible.shape, dtype=dtype, device=visible.device).masked_fill(~visible, torch.finfo(dtype).min)


def _joined(first: KeyValue | None, second: KeyValue) -> KeyValue:
    if first is None:
        return second
    return torch.cat([first[0], second[0]], dim=2), torch.cat([first[1], second[1]], dim=2)


def _repeated(states: torch.Tensor, batch: int) -> torch.Tensor:
    return states if states.shape[0] == batch else states.repeat(batch // states.shape[0], *[1] * (states.ndim - 1))


def _plain(layer: nn.Module) -> nn.Linear | None:
    """Returns a bare nn.Linear: no active adapter, quantisation, offload or hook."""
    if getattr(layer, "disable_adapters", False) and not getattr(layer, "merged", True):
        layer = layer.base_layer
    # accelerate's hooks take the place of `forward` on the layer itself.
    hooked = layer._forward_hooks or layer._forward_pre_hooks or "forward" in vars(layer)
    return layer if type(layer) is nn.Linear and type(layer.weight) is nn.Parameter and not hooked else None


class MF2QFormerAttention(nn.Module):
    """Projections, attention, output projection; then dropout, residual and norm, as BERT orders them."""

    def __init__(self, config: MF2QFormerConfig, key_value_size: int) -> None:
        super().__init__()
        self.config = config
        self.num_heads = config.num_attention_heads
        self.head_dim = config.hidden_size // self.num_heads
        self.scaling = self.head_dim**-0.5
        self.is_causal = False  # every mask is given; sdpa must not add one
        self.q_proj = nn.Linear(config.hidden_size, config.hidden_size)
        self.k_proj = nn.Linear(key_value_size, config.hidden_size)
        self.v_proj = nn.Linear(key_value_size, config.hidden_size)
        self.out_proj = nn.Linear(config.hidden_size, config.hidden_size)
        self.norm = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.dropout = nn.Dropout(config.hidden_dropout_prob)

    def _heads(self, states: torch.Tensor) -> torch.Tensor:
        states = states.view(*states.shape[:2], self.num_heads, self.head_dim)
        return states.transpose(1, 2)  # (batch, heads, length, head_dim)

    def key_values(self, states: torch.Tensor) -> KeyValue:
        return self._heads(self.k_proj(states)), self._heads(self.v_proj(states))

    def folds(self, states: torch.Tensor, tokens: torch.Tensor) -> bool:
        """Whether few queries read many tokens, so that projecting queries into the tokens' space is cheaper."""
        layers = _plain(self.k_proj), _plain(self.v_proj)
        plain = all(layers) and states.device.type == "cpu"
        learned = (states, tokens, *(layer.weight for layer in layers if layer))
        learns = torch.is_grad_enabled() and any(tensor.requires_grad for tensor in learned)
        inference = not learns and not (self.training and self.config.attention_probs_dropout_prob)
        # Less than half the multiplications: queries / tokens + queries / head_dim.
        cheaper = 2 * states.shape[1] * (tokens.shape[1] + self.head_dim) < tokens.shape[1] * self.head_dim
        return cheaper and plain and inference and self.config._attn_implementation == "sdpa"

    def _fold(self, states: torch.Tensor, tokens: torch.Tensor) -> torch.Tensor:
        """Attends in another order of products; the keys' bias shifts all scores of a query equally."""
        heads, (rows, queries) = (self.num_heads, self.head_dim), states.shape[:2]
        asked = self._heads(self.q_proj(states) * self.scaling).transpose(0, 1).flatten(1, 2)
        asked = (asked @ _plain(self.k_proj).weight.unflatten(0, heads)).unflatten(1, (rows, queries))
        scores = asked.transpose(0, 1).flatten(1, 2) @ tokens.transpose(1, 2)  # (rows, heads * queries, tokens)
        read = nn.functional.softmax(scores, dim=-1, dtype=torch.float32).to(tokens.dtype) @ tokens
        read = read.unflatten(1, (self.num_heads, queries)).transpose(0, 1).flatten(1, 2)
        value = _plain(self.v_proj)
        attended = (read @ value.weight.unflatten(0, heads).transpose(1, 2)).unflatten(1, (rows, queries))
        return attended.permute(1, 2, 0, 3).flatten(2) + value.bias

    def forward(
        self,
        states: torch.Tensor,
        seen: KeyValue | torch.Tensor,
        mask: torch.Tensor | None,
        output_attentions: bool = False,
        kinds: int | None = None,
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        """seen: keys and values, or tokens to `_fold`. kinds: an axis of the returned weights."""
        if isinstance(seen, torch.Tensor):
            attended, weights = self._fold(states, seen), None
        else:
            attended, weights = self._attend(states, seen, mask, output_attentions, kinds)
        attended = self.dropout(self.out_proj(attended.reshape(*states.shape)))
        return self.norm(attended + states), weights

    def _attend(
        self,
        states: torch.Tensor,
        key_values: KeyValue,
        mask: torch.Tensor | None,
        output_attentions: bool,
        kinds: int | None,
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        attention: Callable = ALL_ATTENTION_FUNCTIONS.get_interface(
            self.config._attn_implementation, eager_attention_forward
        )
        asked = self._heads(self.q_proj(states))
        # The other interfaces keep no weights, and cannot reshape an empty batch (no face in any image).
        if output_attentions or states.shape[0] == 0 or products_are_faster(asked):
            attention = eager_attention_forward
        return attention(
            self,
            asked,
            *key_values,
            mask,
            scaling=self.scaling,
            dropout=self.config.attention_probs_dropout_prob if self.training else 0.0,
            **({"kinds": kinds} if output_attentions else {}),
        )


class MF2QFormerFeedForward(nn.Module):
    def __init__(self, config: MF2QFormerConfig) -> None:
        super().__init__()
        self.up_proj = nn.Linear(config.hidden_size, config.intermediate_size)
        self.activation = ACT2FN[config.hidden_act]
        self.down_proj = nn.Linear(config.intermediate_size, config.hidden_size)
        self.norm = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.dropout = nn.Dropout(config.hidden_dropout_prob)

    def forward(self, states: torch.Tensor) -> torch.Tensor:
        if torch.compiler.is_compiling() or torch.is_grad_enabled() or states.device.type != "cpu":
            return self._transform(states)
        rows = states.flatten(0, -2)
        if len(rows) <= _ROWS_AT_ONCE:
            return self._transform(states)
        result = torch.empty_like(rows)
        for start in range(0, len(rows), _ROWS_AT_ONCE):
            result[start : start + _ROWS_AT_ONCE] = self._transform(rows[start : start + _ROWS_AT_ONCE])
        return result.view_as(states)

    def _transform(self, states: torch.Tensor) -> torch.Tensor:
        return self.norm(self.dropout(self.down_proj(self.activation(self.up_proj(states)))) + states)


class MF2QFormerLayer(GradientCheckpointingLayer):
    def __init__(self, config: MF2QFormerConfig, layer_idx: int) -> None:
        super().__init__()
        self.layer_idx = layer_idx
        self.attention = MF2QFormerAttention(config, config.hidden_size)
        self.cross_attention = None
        if layer_idx % config.cross_attention_frequency == 0:
            self.cross_attention = MF2QFormerAttention(config, config.encoder_hidden_size)
        self.query_feed_forward = MF2QFormerFeedForward(config)
        self.text_feed_forward = MF2QFormerFeedForward(config)

    def forward(
        self,
        queries: torch.Tensor | None,
        text: torch.Tensor | None,
        image: torch.Tensor | None,
        image_key_values: KeyValue | None,
        query_key_values: KeyValue | None,
        text_mask: torch.Tensor | None,
        query_mask: torch.Tensor | None,
        mode: TextMode,
        past_key_values: Cache | None = None,
        keep_key_values: bool = False,
        output_attentions: bool = False,
        kinds: int | None = None,
    ) -> tuple:
        query_weights = text_weights = cross_weights = text_key_values = None
        returned = {"output_attentions": output_attentions, "kinds": kinds}
        if queries is not None:
            query_key_values = self.attention.key_values(queries)
        if text is not None:
            text_key_values = self.attention.key_values(text)
            if past_key_values is not None:
                text_key_values = past_key_values.update(*text_key_values, self.layer_idx)
            seen = text_key_values if mode == "unimodal" else _joined(query_key_values, text_key_values)
            attended_text, text_weights = self.attention(text, seen, text_mask, output_attentions)
        if queries is not None:
            sees_text = mode == "two_way" and text is not None
            seen = _joined(query_key_values, text_key_values) if sees_text else query_key_values
            queries, query_weights = self.attention(queries, seen, query_mask, **returned)
            if self.cross_attention is not None:
                queries = _repeated(queries, (image if image_key_values is None else image_key_values[0]).shape[0])
                keep = keep_key_values or output_attentions or image_key_values is not None
                folds = not keep and self.cross_attention.folds(queries, image)
                if image_key_values is None and not folds:
                    image_key_values = self.cross_attention.key_values(image)
                seen = image if folds else image_key_values
                queries, cross_weights = self.cross_attention(queries, seen, None, **returned)
            queries = self.query_feed_forward(queries)
        if text is not None:
            text = self.text_feed_forward(attended_text)
        return queries, text, query_key_values, image_key_values, query_weights, text_weights, cross_weights


class MF2QFormer(PreTrainedModel):
    config_class = MF2QFormerConfig
    base_model_prefix = "qformer"
    main_input_name = "queries"
    supports_gradient_checkpointing = True
    _supports_sdpa = True
    _supports_attention_backend = True
    _no_split_modules = ["MF2QFormerLayer"]

    def __init__(self, config: MF2QFormerConfig) -> None:
        super().__init__(config)
        self.word_embeddings = nn.Embedding(config.vocab_size, config.hidden_size, padding_idx=config.pad_token_id)
        self.position_embeddings = nn.Embedding(config.max_position_embeddings, config.hidden_size)
        self.norm = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.dropout = nn.Dropout(config.hidden_dropout_prob)
        self.layers = nn.ModuleList(MF2QFormerLayer(config, index) for index in range(config.num_hidden_layers))
        self.post_init()

    def get_input_embeddings(self) -> nn.Embedding:
        return self.word_embeddings

    def set_input_embeddings(self, value: nn.Embedding) -> None:
        self.word_embeddings = value

    def embed_text(self, input_ids: torch.Tensor, start: int = 0) -> torch.Tensor:
        stop = start + input_ids.shape[1]
        if stop > self.config.max_position_embeddings:
            raise ValueError(
                f"input_ids: got {stop} tokens, expected at most {self.config.max_position_embeddings} "
                "(max_position_embeddings); let the checkpoint's own processor prepare the text"
            )
        positions = self.position_embeddings(torch.arange(start, stop, device=input_ids.device))
        return self.dropout(self.norm(self.word_embeddings(input_ids) + positions))

    def embed_queries(self, queries: torch.Tensor) -> torch.Tensor:
        return self.dropout(self.norm(queries))

    def image_key_values(self, image: torch.Tensor) -> tuple[KeyValue, ...]:
        crossing = (layer.cross_attention for layer in self.layers if layer.cross_attention is not None)
        return tuple(attention.key_values(image) for attention in crossing)

    def _masks(
        self,
        queries: torch.Tensor | None,
        text: torch.Tensor,
        text_mask: torch.Tensor | None,
        mode: TextMode,
        num_prefix: int,
        past: int,
    ) -> tuple[torch.Tensor | None, torch.Tensor | None]:
        """Masks of the text stream and of the query stream, (batch or 1, 1, rows or 1, keys)."""
        length, device = text.shape[1], text.device
        keys = past + length
        shown = None if text_mask is None else text_mask.bool()[:, None, None, :]
        query_mask = None
        if mode == "two_way" and queries is not None and shown is not None:
            ones = shown.new_ones(*shown.shape[:3], queries.shape[1])
            query_mask = additive_mask(torch.cat([ones, shown], dim=-1), text.dtype)
        if mode == "causal":
            earlier = torch.arange(keys, device=device) <= torch.arange(past, keys, device=device)[:, None]
            shown = earlier[None, None] if shown is None else earlier & shown
        if shown is None:
            return None, None
        if mode != "unimodal" and num_prefix:
            shown = torch.cat([shown.new_ones(*shown.shape[:3], num_prefix), shown], dim=-1)
        return additive_mask(shown, text.dtype), query_mask

    def forward(
        self,
        queries: torch.Tensor | None = None,
        input_ids: torch.Tensor | None = None,
        text_mask: torch.Tensor | None = None,
        image: torch.Tensor | None = None,
        image_key_values: tuple[KeyValue, ...] | None = None,
        query_key_values: tuple[KeyValue, ...] | None = None,
        mode: TextMode = "two_way",
        past_key_values: Cache | None = None,
        output_key_values: bool = False,
        output_hidden_states: bool = False,
        output_attentions: bool = False,
        keep_hidden_states: bool = False,
        kinds: int | None = None,
    ) -> MF2QFormerOutput:
        """
        queries: (batch, queries, hidden), or fewer rows that repeat along the batch: the first self-attention, which no
            image has entered yet, is then computed once for all of them.
        input_ids, text_mask: (batch, length); text_mask has the cached tokens too where past_key_values holds some.
        image or image_key_values: what the queries read. query_key_values: what text reads in place of queries.
        output_key_values: keep both for a later pass; they are of every block, and cost memory.
        keep_hidden_states: collect them without a row for each image where rows are still equal: nothing else changes.
        kinds: rows are of so many kinds in turn (AUs): row r is of kind r modulo their number.
        """
        if queries is not None and image is None and image_key_values is None:
            raise ValueError("image: got None, expected the image tokens (or image_key_values) that the queries read")
        text = text_additive = query_additive = None
        if queries is not None:
            batch = (image if image is not None else image_key_values[0][0]).shape[0]
            dropout = max(self.config.hidden_dropout_prob, self.config.attention_probs_dropout_prob)
            # Dropout and texts differ between images, and outputs have a row for each.
            each = input_ids is not None or output_hidden_states or output_attentions
            queries = self.embed_queries(_repeated(queries, batch) if each or (self.training and dropout) else queries)
        if input_ids is not None:
            past = past_key_values.get_seq_length() if past_key_values is not None else 0
            text = self.embed_text(input_ids, past)
            num_prefix = queries.shape[1] if queries is not None else 0
            if query_key_values is not None:
                num_prefix = query_key_values[0][0].shape[2]
            text_additive, query_additive = self._masks(queries, text, text_mask, mode, num_prefix, past)

        keep_hidden_states |= output_hidden_states
        collected: dict[str, list] = {name: [] for name in _COLLECTED}

        def keep(queries: torch.Tensor | None) -> torch.Tensor | None:
            if queries is not None:
                returned, queries = split_kinds(queries, kinds if output_hidden_states else None)
            if keep_hidden_states and queries is not None:
                collected["hidden_states"].append(returned)
            if keep_hidden_states and text is not None:
                collected["text_hidden_states"].append(text)
            return queries

        queries = keep(queries)
        for index, layer in enumerate(self.layers):
            crossing = index // self.config.cross_attention_frequency
            queries, text, query_kv, image_kv, *weights = layer(
                queries,
                text,
                image,
                image_key_values[crossing] if image_key_values is not None and layer.cross_attention else None,
                query_key_values[index] if query_key_values is not None else None,
                text_additive,
                query_additive,
                mode,
                past_key_values=past_key_values,
                keep_key_values=output_key_values,
                output_attentions=output_attentions,
                kinds=kinds,
            )
            queries = keep(queries)
            if output_key_values and queries is not None:
                collected["query_key_values"].append(tuple(_repeated(states, batch) for states in query_kv))
                if layer.cross_attention is not None:
                    collected["image_key_values"].append(image_kv)
            for name, value in zip(_COLLECTED, weights, strict=False):
                if output_attentions and value is not None:
                    collected[name].append(value)
        lists = {name: tuple(values) for name, values in collected.items() if values}
        return MF2QFormerOutput(query_states=queries, text_states=text, **lists)
