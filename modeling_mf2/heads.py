"""Heads of the Q-Formers: projections and heads of the alignment losses, and the classifiers with their losses."""

from collections.abc import Callable, Collection, Sequence
from typing import NamedTuple

import torch
from torch import nn
from transformers import initialization as init
from transformers.activations import ACT2FN

from configuration_mf2.configuration_mf2 import MF2Config, MF2QFormerConfig

from .losses import INTENSITY_LEVELS, au_loss, classification_losses, intensity_loss
from .regions import inner_shape


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


class FaceLogits(NamedTuple):
    """What the classifiers answer; None where there is no such head."""

    emotion: torch.Tensor | None = None
    au: torch.Tensor | None = None
    sides: torch.Tensor | None = None
    """(batch, AU, 2)"""
    levels: torch.Tensor | None = None
    """(batch, AU, 5): logits of intensities 1 to 5 or above."""

    @property
    def outputs(self) -> dict[str, torch.Tensor]:
        """By the names of a model's outputs, without those that there are not."""
        intensities = None if self.levels is None else self.levels.sigmoid().sum(-1)
        names = ("emotion_logits", "au_logits", "au_side_logits", "au_intensities")
        answers = zip(names, (*self[:3], intensities), strict=True)
        return {name: tensor for name, tensor in answers if tensor is not None}


class FaceLabels(NamedTuple):
    """What `FaceLogits` are compared with; None where nothing is known, else -1 where it is not."""

    emotion: torch.Tensor | None = None
    au: torch.Tensor | None = None
    sides: torch.Tensor | None = None
    intensities: torch.Tensor | None = None


class MF2ShapeHead(nn.Module):
    """What the shape of a face says by itself: emotion and AU logits. Landmarks are found alike in renders and in
    photographs, so that this holds where what the tower sees does not."""

    def __init__(self, config: MF2Config, hidden: int = 128) -> None:
        super().__init__()
        self.image_size, self.shape_in = config.vision_config.image_size, nn.Linear(2 * 51, hidden)
        self.emotion = nn.Linear(hidden, len(config.emotions)) if config.emotions else None
        self.units = nn.Linear(hidden, len(config.action_units)) if config.action_units else None

    def says(self, landmarks: torch.Tensor) -> torch.Tensor:
        """(batch, 1): False where they are the mean face's, as crops have them in which none were looked for."""
        return inner_shape(landmarks, self.image_size).abs().amax(1, keepdim=True) > 0.01

    def forward(self, landmarks: torch.Tensor) -> FaceLogits:
        """landmarks (batch, 68, 2): in pixels of the image."""
        shape = inner_shape(landmarks, self.image_size).to(self.shape_in.weight.dtype)
        hidden = nn.functional.gelu(self.shape_in(shape))
        return FaceLogits(*(None if layer is None else layer(hidden) for layer in (self.emotion, self.units)))


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
        # A side differs from its AU by what the queries and the face say of it.
        self.side_weight = self.side_bias = self.side_from_face = None
        if config.sides:
            self.side_bias = nn.Parameter(torch.zeros(count, 2))
            if config.use_au_branch:
                self.side_weight = nn.Parameter(torch.empty(count, 2, au.num_query_tokens, au.hidden_size))
            self.side_from_face = nn.Linear(emo_width, 2 * count) if emo_width else None
        # An AU's logit, stretched and compared with a cut for each level: a stronger score is a higher intensity.
        self.level_stretch = self.level_cuts = None
        if config.intensities:
            self.level_stretch = nn.Parameter(torch.zeros(count))
            self.level_cuts = nn.Parameter(torch.zeros(count, INTENSITY_LEVELS))
        self.shape_weight, self.shape = config.shape_weight, MF2ShapeHead(config) if config.shape_weight else None
        # A mean of answers is less sure than they are: what makes probabilities of it is fitted afterwards.
        self.unit_scale = self.unit_shift = None
        if count and self.shape is not None:
            self.unit_scale = nn.Parameter(torch.ones(count), requires_grad=False)
            self.unit_shift = nn.Parameter(torch.zeros(count), requires_grad=False)
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
        if self.side_weight is not None and units:
            init.normal_(self.side_weight, std=0.1 * self.side_weight[0, 0].numel() ** -0.5)
        for parameter in (self.side_bias, self.level_stretch, self.level_cuts, self.unit_shift):
            if parameter is not None and units:
                init.zeros_(parameter)
        if self.unit_scale is not None and units:
            init.ones_(self.unit_scale)
        reads_units = self.norm_au is not None
        for layer, anew in (
            (self.au_from_face, units),
            (self.side_from_face, units),
            (getattr(self.shape, "units", None), units),
            (getattr(self.shape, "emotion", None), "emotions" in fields),
            (self.emotion, "emotions" in fields or (units and reads_units)),
        ):
            if layer is not None and anew:
                init.normal_(layer.weight, std=0.1 * layer.in_features**-0.5)
                init.zeros_(layer.bias)

    def forward(
        self,
        emo_states: torch.Tensor | None,
        au_states: torch.Tensor | None,
        landmarks: torch.Tensor | None = None,
    ) -> FaceLogits:
        """emo_states (batch, queries, hidden), au_states (batch, AU, queries, hidden), landmarks (batch, 68, 2).

        Without emo_states, where there is that branch: what the AUs alone say. Without landmarks: what is seen alone.
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
        if self.shape is not None and landmarks is not None:
            said, known = self.shape(landmarks), self.shape.says(landmarks)
            weight = self.shape_weight / (1 + self.shape_weight)
            if emotion_logits is not None:
                emotion_logits = torch.where(known, _mean(emotion_logits, said.emotion, weight), emotion_logits)
            if au_logits is not None:
                fitted = self.unit_scale * _mean(au_logits, said.au, weight) + self.unit_shift
                au_logits = torch.where(known, fitted.to(au_logits.dtype), au_logits)
        return FaceLogits(emotion_logits, au_logits, self._sides(au_logits, units, face), self._levels(au_logits))

    def _sides(
        self, au_logits: torch.Tensor | None, units: torch.Tensor | None, face: torch.Tensor | None
    ) -> torch.Tensor | None:
        if self.side_bias is None:
            return None
        sides = au_logits[..., None] + self.side_bias
        if self.side_weight is not None:
            sides = sides + torch.einsum("baqh,asqh->bas", units, self.side_weight)
        if self.side_from_face is not None:
            sides = sides + self.side_from_face(face).unflatten(1, (-1, 2))
        return sides

    def calibrate(
        self, au_logits: torch.Tensor, labels: torch.Tensor, intensities: torch.Tensor | None = None
    ) -> torch.Tensor:
        """Fits probabilities of AUs, and levels of intensity, to answers about people that were not learned from:
        (faces, AU) each. In training both are those of what is seen alone. -> the answers from now on."""
        raw = ((au_logits - self.unit_shift) / self.unit_scale).detach()
        units = torch.ones_like(self.unit_scale), torch.zeros_like(self.unit_shift)
        _fit(units, lambda: au_loss(raw * units[0] + units[1], labels))
        _keep((self.unit_scale, self.unit_shift), units)
        answers = (raw * self.unit_scale + self.unit_shift).detach()
        if self.level_cuts is not None and intensities is not None:
            levels = torch.zeros_like(self.level_stretch), torch.zeros_like(self.level_cuts)
            _fit(levels, lambda: intensity_loss(self._levels(answers, *levels), intensities))
            _keep((self.level_stretch, self.level_cuts), levels)
        return answers

    def _levels(
        self, au_logits: torch.Tensor | None, stretch: torch.Tensor | None = None, cuts: torch.Tensor | None = None
    ) -> torch.Tensor | None:
        if self.level_cuts is None:
            return None
        stretch, cuts = (self.level_stretch, self.level_cuts) if cuts is None else (stretch, cuts)
        # Untrained, what is as likely active as not has intensity 2.
        usual = torch.arange(INTENSITY_LEVELS, device=au_logits.device, dtype=au_logits.dtype) - 1.5
        return (au_logits * stretch.exp())[..., None] - usual - cuts


def _mean(seen: torch.Tensor, said: torch.Tensor, weight: float) -> torch.Tensor:
    return seen.lerp(said.to(seen.dtype), weight)  # autocast leaves them in different types


def _fit(parameters: Sequence[torch.Tensor], loss: Callable[[], torch.Tensor], steps: int = 300) -> None:
    optimizer = torch.optim.Adam([parameter.requires_grad_() for parameter in parameters], lr=0.05)
    with torch.enable_grad():
        for _ in range(steps):
            optimizer.zero_grad()
            loss().backward()
            optimizer.step()


def _keep(old: Sequence[torch.Tensor], new: Sequence[torch.Tensor]) -> None:
    for parameter, value in zip(old, new, strict=True):
        parameter.data.copy_(value.detach().half())  # as exact as a file in half precision holds it


def _losses_of(config: MF2Config, logits: FaceLogits, labels: FaceLabels) -> dict[str, torch.Tensor]:
    parts = classification_losses(config, logits.emotion, labels.emotion, logits.au, labels.au)
    if logits.sides is not None and labels.sides is not None:
        parts["side"] = au_loss(logits.sides, labels.sides, name="side")
    if logits.levels is not None and labels.intensities is not None:
        parts["intensity"] = intensity_loss(logits.levels, labels.intensities)
    return parts


def label_losses(
    model: nn.Module,
    emo_states: torch.Tensor | None,
    au_states: torch.Tensor | None,
    landmarks: torch.Tensor | None,
    logits: FaceLogits,
    labels: FaceLabels,
) -> dict[str, torch.Tensor]:
    """In training a share of the losses is that of the AUs alone, and what is seen learns apart from the shape."""
    classifiers = model.classifiers
    if model.training and classifiers.shape is not None:
        logits = classifiers(emo_states, au_states)
    parts = _losses_of(model.config, logits, labels)
    alone = model.config.au_only_loss_weight
    if model.training and alone and parts and emo_states is not None and au_states is not None:
        by_units = _losses_of(model.config, classifiers(None, au_states), labels)
        parts = {name: (1 - alone) * part + alone * by_units[name] for name, part in parts.items()}
    if classifiers.shape is not None and landmarks is not None:
        said = _losses_of(model.config, classifiers.shape(landmarks), labels)
        parts |= {"shape": sum(said.values())} if said else {}
    return parts
