"""Likeness to references, and the facts that texts state."""

import importlib.util
import math
import sys

import numpy as np
import pytest

from configuration_mf2.facs import ACTION_UNITS, EMOTIONS, LabelSet, resolve_label_set
from mf2face.captions.scores import caption_scores, claimed_units, fact_scores
from processing_mf2.captions import RuleCaptioner


MFA = resolve_label_set("mfa")
LIBRARIES = [name for name in ("sacrebleu", "rouge_score", "pycocoevalcap") if importlib.util.find_spec(name) is None]
needs_libraries = pytest.mark.skipif(bool(LIBRARIES), reason=f"the extra `scores` is not installed: {LIBRARIES}")


def drawn(label_set: LabelSet = MFA, rows: int = 60) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(0)
    units = (rng.random((rows, len(label_set.action_units))) < 0.3).astype(int)
    units[0] = 0
    return units, rng.integers(0, max(len(label_set.emotions), 1), rows)


@needs_libraries
def test_captions_alike_score_high_and_captions_of_nothing_score_nothing():
    units, emotions = drawn()
    writer, rng = RuleCaptioner(), np.random.default_rng(1)
    references = [writer.emotion_caption(u, e, rng) for u, e in zip(units, emotions, strict=True)]
    same, other = caption_scores(references, references), caption_scores(references[::-1], references)
    assert (same["bleu_4"], same["rouge_l"], same["cider"]) == pytest.approx((1, 1, 10), abs=1e-6)
    assert all(0 <= other[name] < same[name] for name in ("bleu_1", "bleu_4", "rouge_l", "cider"))
    capitals = caption_scores([text.upper() for text in references], references)
    assert capitals["bleu_4"] == pytest.approx(1) and capitals["cider"] == pytest.approx(10)
    nothing = caption_scores([""] * len(references), references)
    assert nothing["caption_empty"] == len(references) == nothing["caption_pairs"]
    assert not any(nothing[name] for name in ("bleu_1", "bleu_4", "rouge_l", "cider"))


@needs_libraries
def test_scores_are_those_of_their_definitions():
    # Unigrams: 4 of 5 are right, no shorter than the reference. Longest common subsequence: 4 of 5 and 5 words.
    scores = caption_scores(["the face raises the brow"], ["the face raises a brow"])
    assert scores["bleu_1"] == pytest.approx(0.8) and scores["rouge_l"] == pytest.approx(0.8)
    assert scores["cider"] == 0 and scores["caption_references"] == 1


@needs_libraries
def test_empty_references_are_left_out_and_never_nan():
    scores = caption_scores(["the face drops jaw now", "anything"], ["the face drops jaw now", " "])
    assert scores["bleu_4"] == pytest.approx(1) and scores["rouge_l"] == 1
    assert (scores["caption_pairs"], scores["caption_no_reference"]) == (1, 1)
    for texts in ([], ["a word"]):
        assert set(caption_scores(texts, [""] * len(texts)).values()) <= {0.0, float(len(texts))}


def test_wrong_lists_and_missing_libraries_are_named(monkeypatch):
    with pytest.raises(ValueError, match="references: got 1, expected 2"):
        caption_scores(["a", "b"], ["a"])
    with pytest.raises(ValueError, match="references: got None, expected a list of texts"):
        caption_scores(["a"], [None])
    with pytest.raises(ValueError, match="written: got 'a', expected a list"):
        caption_scores("a", "b")
    monkeypatch.setitem(sys.modules, "sacrebleu.metrics", None)
    monkeypatch.setitem(sys.modules, "pycocoevalcap.cider.cider", None)
    with pytest.raises(ImportError, match=r'is missing; expected .* Run `pip install -e "\.\[scores\]"`'):
        caption_scores(["a"], ["a"])


WHOLE = {  # styles that state every active AU
    "au_caption": lambda w, u, e, r: w.au_caption(u, r),
    "sentences": lambda w, u, e, r: w.au_sentences(u, r),
    "sentences joined": lambda w, u, e, r: " ".join(w.au_sentences(u, r)),
    "exp_blip au": lambda w, u, e, r: w.exp_blip_caption(u, e, "au", r),
    "exp_blip cat": lambda w, u, e, r: w.exp_blip_caption(u, e, "cat", r),
    "exp_blip exp": lambda w, u, e, r: w.exp_blip_caption(u, e, "exp", r),
    "vl_fau_global": lambda w, u, e, r: w.vl_fau_global(u, r),
    "vl_fau_local": lambda w, u, e, r: " ".join(w.vl_fau_local(u, r)),
    "key_au": lambda w, u, e, r: w.key_au_caption(u, e, r),
}
STATES_EMOTION = ("exp_blip cat", "exp_blip exp", "key_au", "emotion")


@pytest.mark.parametrize("style", WHOLE)
@pytest.mark.parametrize("label_set", ["mfa", "all"])
def test_what_the_rule_writes_is_read_back_in_every_style(style, label_set):
    labels = MFA if label_set == "mfa" else LabelSet(tuple(ACTION_UNITS), EMOTIONS)
    units, emotions = drawn(labels, rows=120)
    writer, rng = RuleCaptioner(labels), np.random.default_rng(1)
    written = [WHOLE[style](writer, u, e, rng) for u, e in zip(units, emotions, strict=True)]
    scores = fact_scores(written, units, emotions, labels)
    assert scores["fact_au_f1_macro"] == 1 and scores["fact_contradicted"] == 0
    expected = float(style in STATES_EMOTION)
    assert scores["fact_emotion_stated"] == scores["fact_emotion_accuracy"] == expected
    assert scores["fact_claims"] >= units.sum()
    wrong = fact_scores(written, 1 - units, (emotions + 1) % 8, labels)
    assert wrong["fact_au_f1_macro"] == 0 and wrong["fact_contradicted"] > 0.95
    if style in STATES_EMOTION:
        assert wrong["fact_emotion_accuracy"] == 0


def test_a_caption_of_the_emotion_states_some_aus_and_no_wrong_one():
    units, emotions = drawn(rows=200)
    writer, rng = RuleCaptioner(), np.random.default_rng(1)
    written = [writer.emotion_caption(u, e, rng) for u, e in zip(units, emotions, strict=True)]
    scores = fact_scores(written, units, emotions)
    assert scores["fact_emotion_accuracy"] == scores["fact_emotion_stated"] == 1 and scores["fact_contradicted"] == 0
    assert 0.9 < scores["fact_au_f1_macro"] < 1  # of many active AUs six are named


@pytest.mark.parametrize(
    ("text", "claims"),
    [
        ("The person smiles (AUs 6 and 12), while AU25 is not visible.", {"AU6": 1, "AU12": 1, "AU25": 0}),
        ("the face raises inner eyebrow , lowers brow and raises upper lip .", {"AU1": 1, "AU4": 1, "AU10": 1}),
        ("The face raises upper lid, tightens lip corner.", {"AU5": 1, "AU14": 1}),
        ("The eyes are opened wide without raised cheeks.", {"AU5": 1, "AU6": 0}),
        ("2. AU4 (Brow Lowerer): inactive", {"AU4": 0}),
        ("AU1 (Inner Brow Raiser) and AU2 are active, but not decisive.", {"AU1": 1, "AU2": 1}),
        ("the lips are not parted and the jaw is dropped", {"AU25": 0, "AU26": 1}),
        ("1. AU26 (Jaw Drop): The jaw rests. AU26 (Jaw Drop) is not seen.", {"AU26": 0}),
        ("", {}),
        ("a face in the rain", {}),
    ],
)
def test_claims_are_read_from_texts_of_any_hand(text, claims):
    assert claimed_units(text) == claims


def test_contradictions_are_counted_claim_by_claim():
    labels = LabelSet(("AU1", "AU12", "AU25"), ("Neutral", "Happiness"))
    written = [
        "1. AU12 (Lip Corner Puller): the lip corners are pulled up. The lips are not parted. The face shows happiness."
    ]
    scores = fact_scores(written, [[-1, 1, 1]], [1], labels)
    assert scores["fact_claims"] == 3 and scores["fact_contradicted"] == pytest.approx(1 / 3)
    at_rest = fact_scores(["The face is at rest."], [[-1, 1, 0]], [-1], labels)
    assert at_rest["fact_claims"] == 1 == at_rest["fact_contradicted"]
    but_one = fact_scores(["Nothing moves, but the lips are parted."], [[0, 0, 1]], [-1], labels)
    assert but_one["fact_claims"] == 1 and but_one["fact_contradicted"] == 0
    unseen = fact_scores(["The face raises cheek."], [[0] * 12], [-1])
    assert unseen["fact_au_no_positive"] == 12 and unseen["fact_au_f1/AU6"] == 0 and unseen["fact_contradicted"] == 1


def test_unknown_labels_are_masked():
    units, emotions = drawn()
    writer = RuleCaptioner()
    written = [writer.exp_blip_caption(u, e, "cat") for u, e in zip(units, emotions, strict=True)]
    flipped, none = units.copy(), emotions.copy()
    written[1], flipped[1], none[1] = "The face drops jaw. The face shows fear.", -1, -1
    scores = fact_scores(written, flipped, none)
    assert scores["fact_au_f1_macro"] == scores["fact_emotion_accuracy"] == 1 and scores["fact_contradicted"] == 0
    assert scores["fact_au_labels"] == 59 * 12 and scores["fact_emotion_labels"] == 59


@pytest.mark.parametrize("written", [[], [""], ["The face raises cheek. The face shows fear."], [[""] * 12]])
def test_nothing_to_judge_is_defined_and_flagged(written):
    scores = fact_scores(written, None, None)
    assert all(math.isfinite(value) for value in scores.values())
    assert scores["fact_claims"] == scores["fact_au_labels"] == scores["fact_emotion_labels"] == 0
    assert scores["fact_au_f1_macro"] == scores["fact_emotion_accuracy"] == scores["fact_contradicted"] == 0
    assert scores["fact_empty"] == (len(written) if written in ([""], [[""] * 12]) else 0)


@pytest.mark.parametrize(
    ("written", "au_labels", "message"),
    [
        (["a", "b"], [[0] * 12], "au_labels: got 1 rows, expected 2"),
        ([["a", "b", "c"]], None, "written: got 3 sentences, expected a text, or 12 sentences"),
        (["a"], [[0, 1]], "au_labels: got 2 values, expected 12"),
    ],
)
def test_wrong_rows_are_named(written, au_labels, message):
    with pytest.raises(ValueError, match=message):
        fact_scores(written, au_labels, None)
