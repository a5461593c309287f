import itertools

import pytest
import torch
from torch import nn

from configuration_mf2.baselines import VLFAUConfig
from modeling_mf2.baselines.vl_fau import Attended, AttentionDecoder, top_words


PAD, END, BEGIN, VOCABULARY, WIDTH = 0, 3, 5, 7, 8


@pytest.fixture
def decoder():
    config = VLFAUConfig(
        **{"hidden_size": WIDTH, "word_size": 6, "reduction": 2, "vocab_size": VOCABULARY},
        **{"pad_token_id": PAD, "eos_token_id": END, "bos_token_id": BEGIN},
    )
    return AttentionDecoder(config).double()


@pytest.fixture
def maps():
    def draw(*shape):
        return torch.randn(*shape, dtype=torch.float64)

    return Attended(draw(2, 4, WIDTH), draw(2, 3, WIDTH).sigmoid(), draw(2, 3, 4))


def spoken() -> tuple[torch.Tensor, torch.Tensor]:
    """(images, branches, length): one description is missing, one is its first token alone, the others differ."""
    ids = torch.randint(1, VOCABULARY, (2, 3, 6))
    lengths = torch.tensor([[6, 3, 0], [5, 1, 4]])[..., None]
    mask = (torch.arange(6) < lengths).long()
    return ids * mask, mask


def plain(decoder: AttentionDecoder, image: torch.Tensor, words: list[int]) -> tuple[torch.Tensor, torch.Tensor]:
    """Equations 4-6 for one map (places, width) and one description, with torch's own cell -> logits and what was
    seen, a row for each word."""
    cell = nn.LSTMCell(decoder.gates_word.in_features + WIDTH, WIDTH, dtype=torch.float64)
    with torch.no_grad():
        cell.weight_ih.copy_(torch.cat([decoder.gates_word.weight, decoder.gates_seen.weight], dim=1))
        cell.weight_hh.copy_(decoder.gates_state.weight)
        cell.bias_ih.copy_(decoder.gates_word.bias)
        cell.bias_hh.zero_()
    start = decoder.first_state(image.mean(dim=0))
    hidden, memory = start[:WIDTH].tanh(), start[WIDTH:]
    logits, seen = [], []
    for word in words:
        scores = [decoder.attend((decoder.attend_map(v) + decoder.attend_state(hidden)).relu()) for v in image]
        alpha = torch.cat(scores).softmax(dim=0)
        seen.append(sum(weight * v for weight, v in zip(alpha, image, strict=True)))
        read = torch.cat([decoder.words.weight[word], seen[-1]])
        hidden, memory = (part[0] for part in cell(read[None], (hidden[None], memory[None])))
        logits.append(decoder.vocabulary(hidden))
    return torch.stack(logits), torch.stack(seen)


def test_losses_and_what_was_seen_are_those_of_a_plain_loop(decoder, maps):
    """Equation 10: a mean over the words of a description, then over the descriptions; a missing one does not count."""
    ids, mask = spoken()
    found, each, hits = decoder(maps, ids, mask), [], 0
    for image, branch in itertools.product(range(2), range(3)):
        length = int(mask[image, branch].sum())
        if length < 2:
            assert found.seen[image, branch].abs().sum() == 0
            continue
        words = [BEGIN, *ids[image, branch, 1 : length - 1].tolist()]
        logits, seen = plain(decoder, maps.maps()[image, branch], words)
        targets = ids[image, branch, 1:length]
        each.append(-sum(row.log_softmax(0)[word] for row, word in zip(logits, targets, strict=True)) / len(targets))
        hits += sum(int(word in row.topk(5).indices) for row, word in zip(logits, targets, strict=True))
        assert torch.allclose(found.seen[image, branch], seen.mean(dim=0), rtol=0, atol=1e-9)
    assert torch.allclose(found.loss, torch.stack(each).mean(), rtol=0, atol=1e-9)
    assert (found.hits, found.words) == (hits, int(mask[..., 1:].sum()))


def test_the_first_token_and_padding_do_not_matter(decoder, maps):
    ids, mask = spoken()
    first = decoder(maps, ids, mask).loss
    other = torch.where(mask.bool(), ids, 6)
    other[..., 0] = 2
    wider = (nn.functional.pad(other, (0, 3), value=4), nn.functional.pad(mask, (0, 3)))
    assert torch.allclose(decoder(maps, *wider).loss, first)


@pytest.mark.parametrize("length", [1, 4])
def test_without_any_word_nothing_is_lost_and_nothing_breaks(decoder, maps, length):
    nothing = torch.zeros(2, 3, length, dtype=torch.long)
    found = decoder(maps, nothing, nothing)
    found.loss.backward()
    assert found.loss == 0 and found.words == 0 and found.seen.isfinite().all()


def test_a_wide_enough_beam_finds_the_likeliest_of_all_descriptions(decoder, maps):
    """Against all descriptions of at most three words, each with its exact probability."""
    words = [word for word in range(VOCABULARY) if word not in (PAD, BEGIN)]
    every = [list(found) for found in itertools.product(words, repeat=3)]
    best, likeliest = -torch.inf, None
    for said in every:
        said = said[: said.index(END) + 1] if END in said else said
        logits, _ = plain(decoder, maps.maps()[1, 2], [BEGIN, *said[:-1]])
        score = sum(row.log_softmax(0)[word] for row, word in zip(logits, said, strict=True))
        if score > best + 1e-12:
            best, likeliest = score, said
    found = decoder.write(maps, max_length=4, num_beams=150)[1, 2].tolist()
    assert [token for token in found[1:] if token != PAD] == likeliest


def test_one_beam_is_greedy_and_branches_do_not_disturb_each_other(decoder, maps):
    found = decoder.write(maps, max_length=6, num_beams=1)
    for image, branch in itertools.product(range(2), range(3)):
        said = [BEGIN]
        while said[-1] != END and len(said) < 6:
            row = plain(decoder, maps.maps()[image, branch], said)[0][-1]
            row[[PAD, BEGIN]] = -torch.inf
            said.append(int(row.argmax()))
        padded = [*said, *[PAD] * (found.shape[-1] - len(said))]
        assert found[image, branch].tolist() == padded
    alone = Attended(maps.face[1:], maps.channel[1:, :1], maps.spatial[1:, :1])
    several = decoder.write(maps, max_length=6, num_beams=3)[1, 0].tolist()
    single = decoder.write(alone, max_length=6, num_beams=3)[0, 0].tolist()
    assert [token for token in several if token != PAD] == [token for token in single if token != PAD]


def test_a_word_that_ties_with_others_is_not_among_the_likeliest_by_luck():
    assert not top_words(torch.zeros(1, 10), torch.tensor([0])).any()
    logits = torch.arange(10.0)[None].expand(10, -1)
    assert top_words(logits, torch.arange(10)).tolist() == [False] * 5 + [True] * 5
