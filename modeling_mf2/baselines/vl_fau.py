"""VL-FAU's vision: scales combined (its equation 1), and a refinement branch an AU (equations 2-3), all AUs at once."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import torch
from torch import nn
from transformers import initialization as init
from transformers.utils import ModelOutput, can_return_tuple

from configuration_mf2.baselines import VLFAUConfig
from modeling_mf2.loading import check_unused, fetched
from modeling_mf2.losses import FaceAnalysisOutput, au_loss, classification_losses, masked_mean, weighted_sum, wide

from .base import ComparedPreTrainedModel, FeatureMaps, face_and_units


# Channels that are searched together for the largest one.
_LANES = 32


class _WriteOut(torch.autograd.Function):
    """Maps from their three factors. What autograd would make of it keeps one more tensor of their size, and takes
    twice the time backward: these maps are the largest tensors of the model."""

    @staticmethod
    def forward(
        ctx: torch.autograd.function.FunctionCtx, face: torch.Tensor, channel: torch.Tensor, spatial: torch.Tensor
    ) -> torch.Tensor:
        ctx.save_for_backward(face, channel, spatial)
        return (channel[:, :, None] * face[:, None]).mul_(spatial[..., None])

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: torch.autograd.function.FunctionCtx, gradient: torch.Tensor) -> tuple[torch.Tensor, ...]:
        face, channel, spatial = ctx.saved_tensors
        seen = gradient * face[:, None]
        of_channel = (spatial[:, :, None] @ seen).squeeze(2)
        of_spatial = (seen @ channel[..., None]).squeeze(3)
        torch.mul(gradient, channel[:, :, None], out=seen)
        return seen.mul_(spatial[..., None]).sum(dim=1), of_channel, of_spatial


@dataclass
class Attended:
    """Feature maps of one or several branches over the same face, kept as factors: the paper's V-hat of branch i is
    `face` times its channel attention times its spatial attention, and is written out only by `maps`.

    face (batch, places, width); channel (batch, branches, width) and spatial (batch, branches, places), or None for
    the face itself as the only branch.
    """

    face: torch.Tensor
    channel: torch.Tensor | None = None
    spatial: torch.Tensor | None = None

    def maps(self) -> torch.Tensor:
        """(batch, branches, places, width)."""
        if self.channel is None:
            return self.face[:, None]
        return _WriteOut.apply(self.face, self.channel, self.spatial)

    def weighted(self, weights: torch.Tensor) -> torch.Tensor:
        """Sum over the places, weights (batch, branches, places) -> (batch, branches, width)."""
        if self.channel is None:
            return weights @ self.face
        return self.channel * ((weights * self.spatial) @ self.face)

    def mean(self) -> torch.Tensor:
        branches = 1 if self.channel is None else self.channel.shape[1]
        places = self.face.shape[1]
        return self.weighted(self.face.new_full((len(self.face), branches, places), 1 / places))

    def repeated(self, times: int) -> "Attended":
        """Every branch several times in a row, for the beams of a search."""
        if self.channel is None:
            shape = (len(self.face), times)
            ones = self.face.new_ones(*shape, self.face.shape[2]), self.face.new_ones(*shape, self.face.shape[1])
            return Attended(self.face, *ones)
        return Attended(self.face, self.channel.repeat_interleave(times, 1), self.spatial.repeat_interleave(times, 1))


class MultiScaleCombination(nn.Module):
    """Equation 1: a 3x3 convolution brings each stage to the size of the last, a linear layer joins them."""

    def __init__(self, channels: list[int], config: VLFAUConfig) -> None:
        super().__init__()
        self.convolutions = nn.ModuleList(nn.Conv2d(count, config.scale_channels, 3, padding=1) for count in channels)
        self.join = nn.Linear(config.scale_channels * len(channels), config.hidden_size)

    def forward(self, stages: list[torch.Tensor]) -> tuple[torch.Tensor, tuple[int, int]]:
        """-> (batch, places, hidden), and the last stage's height and width."""
        size = tuple(stages[-1].shape[-2:])
        maps = []
        for stage, layer in zip(stages, self.convolutions, strict=True):
            strides = tuple(-(-have // want) for have, want in zip(stage.shape[-2:], size, strict=True))
            with fetched(layer):
                scaled = nn.functional.conv2d(stage, layer.weight, layer.bias, strides, layer.padding)
            maps.append(scaled.flatten(2).transpose(1, 2))
        return self.join(torch.cat(maps, dim=-1)), size


def largest_channel(channel: torch.Tensor, face: torch.Tensor) -> torch.Tensor:
    """Which channel of a refined map is largest at each place: (batch, branches, width), (batch, places, width) ->
    (batch, branches, places). In two rounds, as a maximum without its place is many times faster to find."""
    products = channel[:, :, None] * face[:, None]
    lanes = _LANES if products.shape[-1] % _LANES == 0 else 1
    lined = products.unflatten(-1, (-1, lanes))
    lane = lined.amax(-2).argmax(-1)
    rows = lined.gather(-1, lane[..., None, None].expand(*lined.shape[:-1], 1)).squeeze(-1)
    return rows.argmax(-1) * lanes + lane


class DualLevelRefinement(nn.Module):
    """DAIR: what CBAM does to a map, by weights of each AU's own. Their leading dimension counts the AUs."""

    def __init__(self, units: int, config: VLFAUConfig) -> None:
        super().__init__()
        width, narrow = config.hidden_size, max(1, config.hidden_size // config.reduction)
        self.down_weight = nn.Parameter(torch.empty(units, narrow, width))
        self.down_bias = nn.Parameter(torch.empty(units, narrow))
        self.up_weight = nn.Parameter(torch.empty(units, width, narrow))
        self.up_bias = nn.Parameter(torch.empty(units, width))
        self.spatial_weight = nn.Parameter(torch.empty(units, 2, 3, 3))
        self.spatial_bias = nn.Parameter(torch.empty(units))

    def init_weights(self) -> None:
        for weight in (self.down_weight, self.up_weight):
            init.normal_(weight, std=weight.shape[2] ** -0.5)
        init.normal_(self.spatial_weight, std=0.02)
        init.zeros_(self.down_bias)
        init.zeros_(self.up_bias)
        # Equation 3 has no sigmoid: attention starts near 1 everywhere, not near 0.
        init.ones_(self.spatial_bias)

    def channel_attention(self, face: torch.Tensor) -> torch.Tensor:
        """Equation 2: (batch, places, width) -> (batch, AU, width)."""
        pooled = torch.cat([face.amax(dim=1), face.mean(dim=1)])
        hidden = nn.functional.linear(pooled, self.down_weight.flatten(0, 1), self.down_bias.flatten()).relu()
        # The MLP's second layer is linear: it takes the sum of both poolings, and its bias twice.
        hidden = hidden.view(2, len(face), *self.down_bias.shape).sum(dim=0).transpose(0, 1)
        both = torch.baddbmm(2 * self.up_bias[:, None], hidden, self.up_weight.transpose(1, 2))
        return both.sigmoid().transpose(0, 1)

    def forward(self, face: torch.Tensor, size: tuple[int, int]) -> Attended:
        """Equations 2-3. The refined maps themselves are never written out."""
        channel = self.channel_attention(face)
        with torch.no_grad():
            index = largest_channel(channel, face)  # (batch, AU, places)
        largest = channel.gather(2, index) * face.gather(2, index.transpose(1, 2)).transpose(1, 2)
        average = channel @ face.transpose(1, 2) / face.shape[2]
        pooled = torch.stack([largest, average], dim=2).flatten(1, 2).unflatten(-1, size)  # (batch, AU * 2, h, w)
        spatial = nn.functional.conv2d(
            pooled, self.spatial_weight, self.spatial_bias, padding=1, groups=len(self.spatial_bias)
        )
        return Attended(face, channel, spatial.flatten(2))


class UnitClassifiers(nn.Module):
    """One weight vector an AU: (batch, AU, width) -> (batch, AU)."""

    def __init__(self, units: int, width: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(units, width))
        self.bias = nn.Parameter(torch.empty(units))

    def init_weights(self) -> None:
        init.normal_(self.weight, std=self.weight.shape[1] ** -0.5)
        init.zeros_(self.bias)

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        return (features * self.weight).sum(dim=-1) + self.bias


State = tuple[torch.Tensor, torch.Tensor]

_TOP = 5


@dataclass
class Described:
    """loss: equation 10 or 11. seen (batch, branches, width): what was looked at, averaged over the words. hits: of
    `words` words, those among the five likeliest."""

    loss: torch.Tensor
    seen: torch.Tensor
    hits: torch.Tensor
    words: torch.Tensor


class AttentionDecoder(nn.Module):
    """One decoder for any number of branches: the local one serves all AUs, the global one the face.

    Equation 5 gives the cell the attended map and the last state. As in the captioning model that the paper follows,
    and as its equations 10-11 condition on the words so far, the last word's embedding comes in too, and the first
    state is made of the mean of the map.
    """

    def __init__(self, config: VLFAUConfig) -> None:
        super().__init__()
        width = config.hidden_size
        self.config = config
        self.words = nn.Embedding(config.vocab_size, config.word_size)
        self.attend_map = nn.Linear(width, width)  # W^v
        self.attend_state = nn.Linear(width, width)  # W^h
        self.attend = nn.Linear(width, 1, bias=False)  # W^a; softmax does not see a bias
        self.first_state = nn.Linear(width, 2 * width)
        # The cell's input, forget, cell and output gates, from each of the three things they read.
        self.gates_word = nn.Linear(config.word_size, 4 * width)
        self.gates_seen = nn.Linear(width, 4 * width, bias=False)
        self.gates_state = nn.Linear(width, 4 * width, bias=False)
        self.vocabulary = nn.Linear(width, config.vocab_size)  # W^s

    def begin(self, maps: Attended) -> State:
        hidden, cell = self.first_state(maps.mean()).chunk(2, dim=-1)
        return hidden.tanh(), cell

    def step(self, maps: Attended, keys: torch.Tensor, word: torch.Tensor, state: State) -> tuple[State, torch.Tensor]:
        """keys: `attend_map` of the maps; word: `gates_word` of the last word. -> the new state, and what was seen."""
        hidden, cell = state
        scores = self.attend((keys + self.attend_state(hidden)[..., None, :]).relu()).squeeze(-1)
        seen = maps.weighted(scores.softmax(dim=-1))  # equation 4
        gates = word + self.gates_seen(seen) + self.gates_state(hidden)
        enter, forget, new, out = gates.chunk(4, dim=-1)
        cell = forget.sigmoid() * cell + enter.sigmoid() * new.tanh()
        return (out.sigmoid() * cell.tanh(), cell), seen

    def forward(
        self, maps: Attended, input_ids: torch.Tensor, mask: torch.Tensor, loss_name: str | None = None
    ) -> Described:
        """input_ids, mask (batch, branches, length): a description that starts with any token; without tokens there is
        none. loss_name: in `Step.counts`."""
        given = input_ids[..., :-1].clone()
        given[..., :1] = self.config.bos_token_id
        words, keys = self.gates_word(self.words(given)), self.attend_map(maps.maps())
        state, states, seen = self.begin(maps), [], []
        for place in range(given.shape[-1]):
            state, looked_at = self.step(maps, keys, words[..., place, :], state)
            states.append(state[0])
            seen.append(looked_at)
        written = mask[..., 1:].bool()
        if not states:  # no text is longer than its first token
            return self._nothing(maps, written)
        lengths = written.sum(dim=-1)
        weights = written.to(seen[0].dtype) / lengths.clamp_min(1)[..., None].to(seen[0].dtype)
        average = torch.einsum("bqt,bqtd->bqd", weights, torch.stack(seen, dim=2))
        # Padding is not worth a vocabulary's logits.
        logits = wide(self.vocabulary(torch.stack(states, dim=2)[written]))
        targets = input_ids[..., 1:][written]
        losses = nn.functional.cross_entropy(logits, targets, reduction="none")
        each = losses.new_zeros(written.shape).masked_scatter(written, losses).sum(dim=-1) / lengths.clamp_min(1)
        hits = top_words(logits, targets)
        return Described(masked_mean(each, lengths > 0, loss_name), average, hits.sum(), lengths.sum())

    def _nothing(self, maps: Attended, written: torch.Tensor) -> Described:
        words = written.sum()
        return Described(0 * self.begin(maps)[0].sum(), 0 * maps.mean(), words, words)

    @torch.no_grad()
    def write(self, maps: Attended, max_length: int, num_beams: int) -> torch.Tensor:
        """(batch, branches, length): the likeliest description that a beam search finds; 1 beam is greedy. It starts
        with `bos_token_id` and ends with `eos_token_id` or at `max_length`, then padding."""
        shape = (len(maps.face), 1 if maps.channel is None else maps.channel.shape[1], num_beams)
        maps = maps.repeated(num_beams)
        keys, state = self.attend_map(maps.maps()), self.begin(maps)
        tokens = torch.full((*shape, 1), self.config.bos_token_id, device=keys.device)
        # All beams start alike, so that only the first may be gone on with.
        scores = torch.zeros(shape, device=keys.device).index_fill(2, torch.arange(1, num_beams).to(keys.device), -1e9)
        done = torch.zeros(shape, dtype=torch.bool, device=keys.device)
        for _ in range(max_length - 1):
            words = self.gates_word(self.words(tokens[..., -1].flatten(1)))
            state, _ = self.step(maps, keys, words, state)
            candidates = scores[..., None] + self._next(state[0].unflatten(1, shape[1:]), done)
            scores, best = candidates.flatten(2).topk(num_beams, dim=-1)
            beam, word = best // candidates.shape[-1], best % candidates.shape[-1]
            tokens = torch.cat([tokens.gather(2, beam[..., None].expand_as(tokens)), word[..., None]], dim=-1)
            done = done.gather(2, beam) | (word == self.config.eos_token_id)
            state = tuple(_follow(part.unflatten(1, shape[1:]), beam) for part in state)
            if done.all():
                break
        return tokens[:, :, 0]

    def _next(self, hidden: torch.Tensor, done: torch.Tensor) -> torch.Tensor:
        """Log probabilities of the next word: never a start or padding, but nothing else where the end was reached."""
        logits = wide(self.vocabulary(hidden))
        forbidden = torch.zeros(logits.shape[-1], dtype=torch.bool, device=logits.device)
        forbidden[[self.config.pad_token_id, self.config.bos_token_id]] = True
        ended = torch.full_like(logits[0, 0, 0], -torch.inf)
        ended[self.config.pad_token_id] = 0
        return torch.where(done[..., None], ended, logits.log_softmax(dim=-1).masked_fill(forbidden, -torch.inf))


def _follow(part: torch.Tensor, beam: torch.Tensor) -> torch.Tensor:
    return part.gather(2, beam[..., None].expand_as(part)).flatten(1, 2)


def top_words(logits: torch.Tensor, targets: torch.Tensor, top: int = _TOP) -> torch.Tensor:
    """Whether each target is among the `top` likeliest words; a word that ties with it stands before it."""
    own = logits.detach().gather(-1, targets[..., None])
    return (logits.detach() >= own).sum(dim=-1) <= top


@dataclass
class VLFAUOutput(FaceAnalysisOutput):
    r"""
    local_text, global_text: equations 10 and 11, where descriptions were given.
    global_au: loss of the AUs that are read from what the global decoder looked at.
    local_hits of local_words words were among the decoder's five likeliest, and likewise of the global description.
    """

    local_text: torch.Tensor | None = None
    global_text: torch.Tensor | None = None
    global_au: torch.Tensor | None = None
    local_hits: torch.Tensor | None = None
    local_words: torch.Tensor | None = None
    global_hits: torch.Tensor | None = None
    global_words: torch.Tensor | None = None


@dataclass
class VLFAUExplanation(ModelOutput):
    r"""
    local_ids (`(batch, AU, length)`), global_ids (`(batch, length)`): token ids of the descriptions; None where the
        model has no such decoder.
    """

    local_ids: torch.Tensor | None = None
    global_ids: torch.Tensor | None = None
    emotion_logits: torch.Tensor | None = None
    au_logits: torch.Tensor | None = None


class VLFAUForFaceAnalysis(ComparedPreTrainedModel):
    """Action units and their descriptions from an image alone. The emotion head is ours, for comparison: the paper has
    none, and `emotions=[]` leaves it out."""

    config_class = VLFAUConfig
    hub_system = "vl_fau"
    input_modalities = ("image", "text")

    def __init__(self, config: VLFAUConfig) -> None:
        super().__init__(config)
        units, width = len(config.action_units), config.hidden_size
        self.vision = FeatureMaps(config)
        if config.use_marl:
            self.combine = MultiScaleCombination(self.vision.channels, config)
            self.refine = DualLevelRefinement(units, config)
        else:
            self.narrow = nn.Linear(self.vision.width, width)
        self.units = UnitClassifiers(units, width)
        self.emotion = nn.Linear((1 + units) * width, len(config.emotions)) if config.emotions else None
        self.local_decoder = AttentionDecoder(config) if config.use_llga else None
        self.global_decoder = AttentionDecoder(config) if config.use_glga else None
        self.global_units = nn.Linear(width, units) if config.use_glga else None
        self.post_init()

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        super()._init_weights(module)
        if isinstance(module, DualLevelRefinement | UnitClassifiers):
            module.init_weights()

    def look(self, pixel_values: torch.Tensor, maps: list[torch.Tensor] | None = None) -> tuple[Attended, Attended]:
        """The face, and every AU's refinement of it; without MARL all AUs have the face itself. maps: as
        `FeatureMaps.tokens`."""
        if not self.config.use_marl:
            face = Attended(self.narrow(self.vision.tokens(pixel_values, maps)))
            return face, face
        stages = self.vision.stages(pixel_values)
        if maps is not None:
            maps += stages
        combined, size = self.combine(stages)
        return Attended(combined), self.refine(combined, size)

    def classify(self, face: Attended, units: Attended) -> tuple[torch.Tensor | None, torch.Tensor]:
        """-> emotion logits, AU logits."""
        whole, each = face.mean().squeeze(1), units.mean()
        each = each.expand(-1, len(self.config.action_units), -1)
        emotion = None if self.emotion is None else self.emotion(face_and_units(whole, each))
        return emotion, self.units(each)

    @can_return_tuple
    def forward(
        self,
        pixel_values: torch.Tensor,
        input_ids: torch.Tensor | None = None,
        attention_mask: torch.Tensor | None = None,
        au_input_ids: torch.Tensor | None = None,
        au_attention_mask: torch.Tensor | None = None,
        au_labels: torch.Tensor | None = None,
        emotion_labels: torch.Tensor | None = None,
        output_hidden_states: bool | None = None,
        **kwargs: object,
    ) -> VLFAUOutput:
        r"""
        input_ids, attention_mask (`(batch, length)`): the global description; a row without any token has none.
        au_input_ids, au_attention_mask (`(batch, AU, length)`): a local description an AU, active or not; likewise.
        au_labels (`(batch, AU)`), emotion_labels (`(batch,)`): -1 where unknown.
        """
        check_unused(self, kwargs)
        maps = self.kept_maps(output_hidden_states)
        face, units = self.look(pixel_values, maps)
        emotion_logits, au_logits = self.classify(face, units)
        parts = classification_losses(self.config, emotion_logits, emotion_labels, au_logits, au_labels)
        states = maps and tuple(maps)
        output = VLFAUOutput(emotion_logits=emotion_logits, au_logits=au_logits, hidden_states=states)
        if self.local_decoder is not None and au_input_ids is not None:
            shape = (len(pixel_values), len(self.config.action_units))
            said = self._describe("local", units, au_input_ids, au_attention_mask, shape)
            parts["local_text"], output.local_hits, output.local_words = said.loss, said.hits, said.words
        if self.global_decoder is not None and input_ids is not None:
            shown = None if attention_mask is None else attention_mask[:, None]
            said = self._describe("global", face, input_ids[:, None], shown, (len(pixel_values), 1))
            parts["global_text"], output.global_hits, output.global_words = said.loss, said.hits, said.words
            if au_labels is not None:
                logits, weights = self.global_units(said.seen.squeeze(1)), self.config.au_class_weights
                parts["global_au"] = au_loss(logits, au_labels, weights)
        for name, part in parts.items():
            output[name] = part
        output.loss = weighted_sum(self.config, parts)  # equation 12
        return output

    def _describe(
        self,
        kind: str,
        maps: Attended,
        input_ids: torch.Tensor,
        mask: torch.Tensor | None,
        shape: tuple[int, int],
    ) -> Described:
        if input_ids.shape[:2] != shape:
            field = "au_input_ids" if kind == "local" else "input_ids"
            got, wanted = (size if kind == "local" else size[:1] for size in (tuple(input_ids.shape[:2]), shape))
            raise ValueError(f"{field}: got texts for {got}, expected {wanted}: one for each image (and AU)")
        mask = torch.ones_like(input_ids) if mask is None else mask
        decoder = self.local_decoder if kind == "local" else self.global_decoder
        return decoder(maps, input_ids, mask, f"{kind}_text")

    @torch.no_grad()
    def explain(self, pixel_values: torch.Tensor, num_beams: int | None = None) -> VLFAUExplanation:
        """Answers and their descriptions, from images alone. num_beams: the config's unless given; 1 is greedy."""
        beams = self.config.num_beams if num_beams is None else num_beams
        if beams < 1:
            raise ValueError(f"num_beams: got {beams}, expected at least 1")
        face, units = self.look(pixel_values)
        output = VLFAUExplanation(**dict(zip(("emotion_logits", "au_logits"), self.classify(face, units), strict=True)))
        if self.local_decoder is not None:
            output.local_ids = self.local_decoder.write(units, self.config.local_max_length, beams)
        if self.global_decoder is not None:
            output.global_ids = self.global_decoder.write(face, self.config.global_max_length, beams).squeeze(1)
        return output

    @torch.no_grad()
    def word_accuracy(self, batches: Iterable[Mapping[str, torch.Tensor]]) -> dict[str, float]:
        """`local_top5`, `global_top5`: the share of all words of the batches that were among the five likeliest, each
        predicted from the true words before it (the paper's Table 4). A decoder without any word is left out."""
        sums: dict[str, float] = {}
        for batch in batches:
            output = self(**batch)
            for name in ("local_hits", "local_words", "global_hits", "global_words"):
                if output.get(name) is not None:
                    sums[name] = sums.get(name, 0.0) + output[name].item()
        kinds = [kind for kind in ("local", "global") if sums.get(f"{kind}_words")]
        return {f"{kind}_top5": sums[f"{kind}_hits"] / sums[f"{kind}_words"] for kind in kinds}


__all__ = [
    "Attended",
    "AttentionDecoder",
    "Described",
    "DualLevelRefinement",
    "MultiScaleCombination",
    "UnitClassifiers",
    "VLFAUForFaceAnalysis",
    "top_words",
]
