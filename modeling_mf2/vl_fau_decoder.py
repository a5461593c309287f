"""VL-FAU's language: an LSTM that looks at a map by soft attention before every word (its equations 4-6)."""

from dataclasses import dataclass

import torch
from torch import nn

from configuration_mf2.configuration_vl_fau import VLFAUConfig

from .losses_mf2 import masked_mean, wide
from .vl_fau_layers import Attended


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
        self, maps: Attended, input_ids: torch.Tensor, mask: torch.Tensor, count: torch.Tensor | None = None
    ) -> Described:
        """input_ids, mask (batch, branches, length): a description that starts with any token; without tokens there is
        none. count: what the mean over the descriptions divides by, where this is one micro-batch of several."""
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
        return Described(masked_mean(each, lengths > 0, count), average, hits.sum(), lengths.sum())

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
            found = scores[..., None] + self._next(state[0].unflatten(1, shape[1:]), done)
            scores, best = found.flatten(2).topk(num_beams, dim=-1)
            beam, word = best // found.shape[-1], best % found.shape[-1]
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


__all__ = ["AttentionDecoder", "Described", "top_words"]
