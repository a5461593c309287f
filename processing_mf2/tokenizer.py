"""Sentences to token ids: a WordPiece tokenizer made from our own captions, or BERT's, and how texts are cut to fit."""

import functools
from collections import Counter
from collections.abc import Iterable, Sequence

import torch
from tokenizers import normalizers, pre_tokenizers
from transformers import AutoTokenizer, BertTokenizer, PreTrainedTokenizerBase
from transformers.utils import logging

from configuration_mf2.facs import ACTION_UNITS, LABEL_SETS, LabelSet

from .captions import caption_grammar


logger = logging.get_logger(__name__)

SPECIAL_TOKENS: tuple[str, ...] = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "[DEC]")
"""Their ids are their places. [CLS] starts a sentence to be read, [DEC] one to be written."""

VOCAB_LIMIT = 2048

_LETTERS = "abcdefghijklmnopqrstuvwxyz0123456789"
_MARKS = "!\"#$%&'()*+,-./:;<=>?@[\\]^_`{|}~"
SHORTEST_SENTENCE = 3
"""Tokens: [CLS], one word, [SEP]."""


def build_vocabulary(texts: Iterable[str], limit: int = VOCAB_LIMIT) -> tuple[str, ...]:
    """A WordPiece vocabulary: special tokens, single characters, the words of the texts, and pieces that words share.

    Not the trainer of `tokenizers`: it breaks ties by the order of a hash table, so no two runs agree. Here the order
    is by frequency, then alphabetical. With every letter in it, no Latin word becomes [UNK].
    """
    normalizer, splitter = normalizers.BertNormalizer(lowercase=True), pre_tokenizers.BertPreTokenizer()
    words = Counter(
        word for text in texts for word, _ in splitter.pre_tokenize_str(normalizer.normalize_str(text.strip()))
    )
    pieces: Counter[str] = Counter()
    for word in words:
        spans = [(start, end) for start in range(len(word)) for end in range(start + 2, len(word) + 1)]
        pieces.update({("##" if start else "") + word[start:end] for start, end in spans})
    # A piece is worth the letters it saves over all the words that have it.
    shared = [piece for piece, count in pieces.items() if count >= 3]
    by_worth = sorted(shared, key=lambda piece: (-pieces[piece] * (len(piece.removeprefix("##")) - 1), piece))
    by_frequency = sorted(words, key=lambda word: (-words[word], word))
    characters = [*_LETTERS, *_MARKS, *(f"##{letter}" for letter in _LETTERS)]
    return tuple(dict.fromkeys([*SPECIAL_TOKENS, *characters, *by_frequency, *by_worth]))[:limit]


@functools.lru_cache(maxsize=1)
def caption_vocabulary() -> tuple[str, ...]:
    """Of everything the rule captioner can say about any AU and any emotion: one vocabulary for all label sets."""
    emotions = dict.fromkeys(name for labels in LABEL_SETS.values() for name in labels.emotions)
    return build_vocabulary(caption_grammar(LabelSet(tuple(ACTION_UNITS), tuple(emotions))))


def build_tokenizer(texts: Iterable[str] | None = None) -> BertTokenizer:
    """Lower-case WordPiece in BERT's own class. Without texts it speaks the rule captioner's language."""
    vocabulary = caption_vocabulary() if texts is None else build_vocabulary(texts)
    return BertTokenizer(
        {token: index for index, token in enumerate(vocabulary)}, bos_token="[DEC]", model_max_length=512
    )


def load_bert_tokenizer(name_or_path: str = "bert-base-uncased", **kwargs: object) -> PreTrainedTokenizerBase:
    """BERT's tokenizer with [DEC] added behind its vocabulary (id 30522), from a folder, the cache or the Hub."""
    tokenizer = AutoTokenizer.from_pretrained(name_or_path, **kwargs)
    tokenizer.add_special_tokens({"bos_token": "[DEC]"})
    return tokenizer


def check_tokenizer(tokenizer: PreTrainedTokenizerBase) -> None:
    missing = [name for name in ("pad", "cls", "sep", "bos") if getattr(tokenizer, f"{name}_token_id", None) is None]
    if missing:
        raise ValueError(
            f"tokenizer: {type(tokenizer).__name__} has no {', '.join(f'{name}_token' for name in missing)}, expected "
            "a BERT-type tokenizer with [DEC] as bos_token; use build_tokenizer() or load_bert_tokenizer(name_or_path)"
        )
    if len(tokenizer) <= len(set(tokenizer.all_special_ids)):  # what transformers makes where tokenizer.json is missing
        raise ValueError(
            "tokenizer: got a vocabulary without a word; is there a tokenizer.json beside the other files?"
        )
    most = tokenizer.model_max_length
    if isinstance(most, bool) or not isinstance(most, int | float) or not most > 0:
        raise ValueError(f"tokenizer: got model_max_length {most!r:.80}, expected a number of tokens above 0")


def encode_texts(tokenizer: PreTrainedTokenizerBase, texts: Sequence[str], limit: int, name: str) -> list[list[int]]:
    """`[CLS] ... [SEP]` of each text, cut to `limit` tokens; nothing at all of an empty text, and of one without a
    single known word (only [UNK], or control characters): a model would learn to write [UNK] from it."""
    written = [text for text in texts if text.strip()]
    if not written:
        return [[] for _ in texts]
    encoded = iter(tokenizer(written, add_special_tokens=True, return_attention_mask=False, verbose=False)["input_ids"])
    rows = [next(encoded) if text.strip() else [] for text in texts]
    special = set(tokenizer.all_special_ids)
    unknown = [index for index, row in enumerate(rows) if row and special.issuperset(row)]
    if unknown:
        # Without the text, or a foreign corpus would be warned about row by row.
        logger.warning_once(
            f"{name}: the tokenizer knows no word of the text at index {unknown[0]}; such texts are taken as empty. "
            "Translate them, or take a tokenizer that knows their language: load_bert_tokenizer(name_or_path)."
        )
        rows = [[] if index in unknown else row for index, row in enumerate(rows)]
    if any(len(row) > limit for row in rows):
        logger.warning_once(f"{name}: a text is longer than {limit} tokens; such texts are cut off at the end.")
    return [_cut(row, limit) for row in rows]


def encode_sentences(
    tokenizer: PreTrainedTokenizerBase, sentences: Sequence[str], budget: int, name: str
) -> list[list[int]]:
    """The sentences of one image, which have `budget` tokens together: the longest are cut to one common length, the
    largest that fits, so that short ones are never shortened for the sake of long ones."""
    rows = encode_texts(tokenizer, sentences, budget, name)
    cap = max((len(row) for row in rows), default=0)
    if sum(map(len, rows)) > budget:
        logger.warning_once(f"{name}: the sentences of an image have more than {budget} tokens; the longest are cut.")
    while sum(min(len(row), cap) for row in rows) > budget:
        cap -= 1
    return [_cut(row, cap) for row in rows]


def _cut(row: list[int], limit: int) -> list[int]:
    return row if len(row) <= limit else [*row[: limit - 1], row[-1]]  # [SEP] stays


def pad_rows(rows: Sequence[Sequence[int]], pad_id: int, shortest: int = 1) -> tuple[torch.Tensor, torch.Tensor]:
    """Token ids and attention mask, (rows, length of the longest, at least `shortest`)."""
    length = max([shortest, *(len(row) for row in rows)])
    ids = torch.full((len(rows), length), pad_id, dtype=torch.int64)
    mask = torch.zeros((len(rows), length), dtype=torch.int64)
    for index, row in enumerate(rows):
        ids[index, : len(row)] = torch.tensor(row, dtype=torch.int64)
        mask[index, : len(row)] = 1
    return ids, mask
