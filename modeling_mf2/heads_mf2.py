"""What stands on the Q-Formers: projections and heads of the alignment losses, and the two classifiers."""

from collections.abc import Collection

import torch
from torch import nn
from transformers import initialization as init
from transformers.activations import ACT2FN

from configuration_mf2.configuration_mf2 import MF2Config, MF2QFormerConfig


class MF2LanguageHead(nn.Module):
    """BERT's: a transform, then the word embeddings once more (handed in: one tensor, never two) and a bias."""

    def __init__(self, config: MF2QFormerConfig) -> None:
        super().__init__()
        self.transform = nn.Linear(config.hidden_size, config.hidden_size)
        self.activation = ACT2FN[config.hidden_act]
        self.norm = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.bias = nn.Parameter(torch.zeros(config.vocab_size))

    def forward(self, states: torch.Tensor, word_embeddings: torch.Tensor) -> torch.Tensor:
        return nn.functional.linear(self.norm(self.activation(self.transform(states))), word_embeddings, self.bias)


class MF2AlignmentHeads(nn.Module):
    def __init__(self, config: MF2QFormerConfig) -> None:
        super().__init__()
        self.image_projection = nn.Linear(config.hidden_size, config.projection_dim)
        self.text_projection = nn.Linear(config.hidden_size, config.projection_dim)
        self.itm = nn.Linear(config.hidden_size, 2)
        self.language = MF2LanguageHead(config)

    def image_features(self, query_states: torch.Tensor) -> torch.Tensor:
        return nn.functional.normalize(self.image_projection(query_states), dim=-1)

    def text_features(self, text_states: torch.Tensor) -> torch.Tensor:
        return nn.functional.normalize(self.text_projection(text_states[:, 0]), dim=-1)


class MF2Classifiers(nn.Module):
    """AU logits from each AU's own queries (and the face as a whole), emotion logits from the face and all AUs.

    Queries are read one by one, not averaged: an average hides an effect that one query has found.
    """

    def __init__(self, config: MF2Config) -> None:
        super().__init__()
        emo, au, count = config.emo_config, config.au_config, len(config.action_units)
        self.emo_width = emo_width = emo.num_query_tokens * emo.hidden_size if config.use_emo_branch else 0
        self.norm_emo = nn.LayerNorm(emo.hidden_size, eps=1e-6) if config.use_emo_branch else None
        self.norm_au = nn.LayerNorm(au.hidden_size, eps=1e-6) if config.use_au_branch else None
        # One weight vector an AU, over that AU's queries.
        self.au_weight = self.au_bias = None
        if count and config.use_au_branch:
            self.au_weight = nn.Parameter(torch.empty(count, au.num_query_tokens, au.hidden_size))
            self.au_bias = nn.Parameter(torch.zeros(count))
        self.au_from_face = nn.Linear(emo_width, count) if count and emo_width else None
        emotion_width = emo_width + (count * au.hidden_size if config.use_au_branch else 0)
        self.emotion = nn.Linear(emotion_width, len(config.emotions)) if config.emotions else None

    def init_weights(self, fields: Collection[str] = ("action_units", "emotions")) -> None:
        """Untrained logits near 0, whatever the number of inputs: nothing is known, and nothing has to be unlearned.

        fields: of the labels to start anew. The emotion's layer reads the AUs by their place, and goes with them.
        """
        units = "action_units" in fields
        if self.au_weight is not None and units:
            init.normal_(self.au_weight, std=0.1 * self.au_weight[0].numel() ** -0.5)
            init.zeros_(self.au_bias)
        reads_units = self.norm_au is not None
        for layer, anew in (
            (self.au_from_face, units),
            (self.emotion, "emotions" in fields or (units and reads_units)),
        ):
            if layer is not None and anew:
                init.normal_(layer.weight, std=0.1 * layer.in_features**-0.5)
                init.zeros_(layer.bias)

    def forward(
        self, emo_states: torch.Tensor | None, au_states: torch.Tensor | None
    ) -> tuple[torch.Tensor | None, torch.Tensor | None]:
        """emo_states (batch, queries, hidden), au_states (batch, AU, queries, hidden) -> emotion logits, AU logits.

        Without emo_states, where there is that branch: what the AUs alone say.
        """
        face = None
        if self.norm_emo is not None and emo_states is not None:
            face = self.norm_emo(emo_states).flatten(1)
        elif self.norm_emo is not None:
            face = au_states.new_zeros(len(au_states), self.emo_width)
        units = self.norm_au(au_states) if self.norm_au is not None else None
        au_logits = None
        if self.au_weight is not None:
            au_logits = torch.einsum("baqh,aqh->ba", units, self.au_weight) + self.au_bias
        if self.au_from_face is not None:
            from_face = self.au_from_face(face)
            au_logits = from_face if au_logits is None else au_logits + from_face
        emotion_logits = None
        if self.emotion is not None:
            parts = [
                part for part in (face, units.mean(dim=2).flatten(1) if units is not None else None) if part is not None
            ]
            emotion_logits = self.emotion(torch.cat(parts, dim=-1))
        return emotion_logits, au_logits
