"""Tokenizers to train with: a WordPiece vocabulary made from our captions, or BERT's. A checkpoint has its own."""

import functools
from collections import Counter
from collections.abc import Iterable
from pathlib import Path

from tokenizers import normalizers, pre_tokenizers
from transformers import AutoTokenizer, BertTokenizer, PreTrainedTokenizerBase
from transformers.utils import has_file

from configuration_mf2.facs import ACTION_UNITS, LABEL_SETS, LabelSet

from .captions import caption_grammar


SPECIAL_TOKENS: tuple[str, ...] = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "[DEC]")
"""In the order of their ids. [CLS] starts a sentence to read, [DEC] one to write."""

VOCAB_LIMIT = 2048

_LETTERS = "abcdefghijklmnopqrstuvwxyz0123456789"
_MARKS = "!\"#$%&'()*+,-./:;<=>?@[\\]^_`{|}~"


def build_vocabulary(texts: Iterable[str], limit: int = VOCAB_LIMIT) -> tuple[str, ...]:
    """A WordPiece vocabulary: special tokens, single characters, the words of the texts, and pieces that words share.

    The trainer of `tokenizers` breaks ties by hash order, so no two runs agree; here the order is by frequency, then
    alphabetical. With every letter in it, no Latin word becomes [UNK].
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
    """One vocabulary for all label sets: everything the rule captioner can write about any AU and any emotion."""
    emotions = dict.fromkeys(name for labels in LABEL_SETS.values() for name in labels.emotions)
    return build_vocabulary(caption_grammar(LabelSet(tuple(ACTION_UNITS), tuple(emotions))))


def build_tokenizer(texts: Iterable[str] | None = None) -> BertTokenizer:
    """Lower-case WordPiece in BERT's own class; without texts, of the rule captioner's vocabulary."""
    vocabulary = caption_vocabulary() if texts is None else build_vocabulary(texts)
    ids = {token: index for index, token in enumerate(vocabulary)}
    return BertTokenizer(ids, bos_token="[DEC]", model_max_length=512)


def load_bert_tokenizer(name_or_path: str = "bert-base-uncased", **kwargs: object) -> PreTrainedTokenizerBase:
    """BERT's tokenizer with [DEC] added behind its vocabulary (id 30522), from a folder, the cache or the Hub."""
    tokenizer = AutoTokenizer.from_pretrained(name_or_path, **kwargs)
    tokenizer.add_special_tokens({"bos_token": "[DEC]"})
    return tokenizer


_VOCABULARY_FILES = ("tokenizer.json", "vocab.txt")


def tokenizer_beside(weights: str | Path) -> PreTrainedTokenizerBase | None:
    """BERT's tokenizer of a folder, a file's folder or a name on the Hub. None where there is none (transformers would
    make up an empty one) and where it is a language model's, whose words a Q-Former does not read."""
    source = Path(weights).parent if Path(weights).is_file() else weights
    try:
        if not any(has_file(str(source), name) for name in _VOCABULARY_FILES):
            return None
    except OSError:  # out of reach: the weights will say so
        return None
    tokenizer = AutoTokenizer.from_pretrained(str(source), trust_remote_code=False)
    if tokenizer.cls_token_id is None or tokenizer.sep_token_id is None:
        return None
    return load_bert_tokenizer(str(source))


def tokenizer_of_weights(*weights: str) -> PreTrainedTokenizerBase:
    """The one tokenizer that BERT's and BLIP-2's weights were trained with; `bert-base-uncased` where none lies beside
    them, as BLIP-2 reads it too."""
    tokenizers = {name: tokenizer for name in weights if (tokenizer := tokenizer_beside(name)) is not None}
    first, *others = tokenizers or [None]
    for other in others:
        if tokenizers[other].get_vocab() != tokenizers[first].get_vocab():
            counts = " and ".join(f"{name} has {len(tokenizers[name])} words" for name in (first, other))
            raise ValueError(f"tokenizer: {counts}, which differ; expected weights of one vocabulary")
    if tokenizers:
        return tokenizers[first]
    try:
        return load_bert_tokenizer()
    except OSError as error:
        raise ValueError(
            f"tokenizer: none lies beside {' or '.join(weights)}, and bert-base-uncased is out of reach; expected "
            "BERT's tokenizer.json or vocab.txt there, or a folder that has it in --tokenizer_name_or_path"
        ) from error
