"""Our own tokenizer is the same on every run and speaks all our captions; texts are cut to fit, never into nothing."""

import subprocess
import sys

import pytest
from tokenizers import Tokenizer, models
from transformers import AutoTokenizer, BertTokenizer, PreTrainedTokenizerFast

from processing_mf2.captions import caption_grammar
from processing_mf2.processing_mf2 import check_tokenizer, encode_sentences, encode_texts, pad_rows
from processing_mf2.tokenizer import (
    SPECIAL_TOKENS,
    VOCAB_LIMIT,
    build_tokenizer,
    build_vocabulary,
    caption_vocabulary,
    load_bert_tokenizer,
)


@pytest.fixture(scope="module")
def tokenizer():
    return build_tokenizer()


def test_special_tokens_have_their_ids(tokenizer):
    assert tokenizer.convert_tokens_to_ids(list(SPECIAL_TOKENS)) == list(range(6))
    ids = (tokenizer.pad_token_id, tokenizer.unk_token_id, tokenizer.cls_token_id, tokenizer.sep_token_id)
    assert ids == (0, 1, 2, 3) and (tokenizer.mask_token_id, tokenizer.bos_token_id) == (4, 5)
    assert 500 < len(tokenizer) <= VOCAB_LIMIT


def test_every_word_of_our_captions_is_one_token(tokenizer):
    for label_set in ("mfa", "raf_au"):
        for caption in list(caption_grammar(label_set))[::7]:
            ids = tokenizer(caption)["input_ids"]
            assert (ids[0], ids[-1]) == (2, 3) and tokenizer.unk_token_id not in ids
            assert not any(token.startswith("##") for token in tokenizer.convert_ids_to_tokens(ids))


def test_the_vocabulary_is_the_same_on_every_run():
    code = "from processing_mf2.tokenizer import caption_vocabulary; print(' '.join(caption_vocabulary()))"
    command = [sys.executable, "-c", code]
    # Another process orders its hash tables otherwise.
    output = subprocess.run(command, check=True, capture_output=True, text=True, env={"PYTHONHASHSEED": "1"}).stdout
    assert tuple(output.splitlines()[-1].split()) == caption_vocabulary()


def test_foreign_words_and_scripts_do_not_crash(tokenizer):
    pieces = tokenizer.tokenize("The Flibbertigibbet grinned.")
    assert "[UNK]" not in pieces and any(piece.startswith("##") for piece in pieces)
    assert tokenizer.tokenize("他笑了 😀") and set(tokenizer.tokenize("他笑了")) == {"[UNK]"}
    assert tokenizer.tokenize("naïve") == tokenizer.tokenize("NAIVE")


def test_saved_and_loaded_is_equal(tokenizer, tmp_path):
    tokenizer.save_pretrained(tmp_path)
    loaded = AutoTokenizer.from_pretrained(tmp_path)
    assert type(loaded) is BertTokenizer and loaded.get_vocab() == tokenizer.get_vocab()
    assert loaded.bos_token == "[DEC]" and loaded.backend_tokenizer.to_str() == tokenizer.backend_tokenizer.to_str()


def test_other_texts_make_another_vocabulary():
    vocabulary = build_vocabulary(["brow brow lip", "a smiling face, smiles, smiled"], limit=130)
    assert vocabulary[:6] == SPECIAL_TOKENS and len(vocabulary) <= 130
    assert vocabulary.index("brow") < vocabulary.index("lip") and "smil" in vocabulary
    assert build_tokenizer(["brow"]).tokenize("brow") == ["brow"]
    assert len(build_vocabulary([f"word{i}" for i in range(3000)])) == VOCAB_LIMIT


def test_bert_gets_dec_behind_its_vocabulary(tmp_path):
    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *(f"w{i}" for i in range(30_517))]
    BertTokenizer({word: index for index, word in enumerate(words)}).save_pretrained(tmp_path)
    loaded = load_bert_tokenizer(str(tmp_path))
    assert (loaded.bos_token_id, len(loaded)) == (30_522, 30_523)
    check_tokenizer(loaded)
    bare = PreTrainedTokenizerFast(tokenizer_object=Tokenizer(models.WordLevel({"a": 0}, unk_token="a")))
    with pytest.raises(ValueError, match=r"no pad_token, cls_token, sep_token, bos_token.*load_bert_tokenizer"):
        check_tokenizer(bare)


def test_empty_texts_have_no_tokens_and_long_ones_end_in_sep(tokenizer):
    rows = encode_texts(tokenizer, ["", "brow " * 500, "lip", "  \n"], 61, "text")
    assert [len(row) for row in rows] == [0, 61, 3, 0] and rows[1][-1] == 3
    ids, mask = pad_rows(rows, tokenizer.pad_token_id)
    assert ids.shape == (4, 61) and mask.sum(1).tolist() == [0, 61, 3, 0] and ids[0].eq(0).all()
    assert pad_rows([[], []], 0)[0].shape == (2, 1)


def test_texts_without_a_known_word_are_empty_and_warned_about(tokenizer, transformers_log):
    for _ in range(2):
        rows = encode_texts(tokenizer, ["", "lip", "这张脸很高兴", "\x00\x01", "这 lip"], 61, "text")
    assert [len(row) for row in rows] == [0, 3, 0, 0, 4]
    (message,) = [record.getMessage() for record in transformers_log.records]
    assert "text: " in message and "index 2" in message


@pytest.mark.parametrize("budget", [36, 60, 100, 169])
def test_sentences_share_their_budget(tokenizer, budget):
    words = [0, 1, 3, 9, 9, 30, 60, 2, 4, 4, 80, 5]
    rows = encode_sentences(tokenizer, ["brow " * count for count in words], budget, "au_sentences")
    lengths = [len(row) for row in rows]
    full = [count + 2 if count else 0 for count in words]
    cap = max(lengths)
    assert lengths == [min(length, cap) for length in full]
    # The cap is the largest that fits.
    assert sum(lengths) <= budget < sum(min(length, cap + 1) for length in full)
    assert all(row[0] == 2 and row[-1] == 3 for row in rows if row)
    assert encode_sentences(tokenizer, ["brow"] * 12, budget, "au_sentences") == [tokenizer("brow")["input_ids"]] * 12
