"""Scores of written captions: likeness to reference texts, and whether the facts that they state are true.

`caption_scores` needs `pip install -e ".[scores]"`; `fact_scores` needs nothing further. No score is ever NaN: one that
is not defined is 0, and so is the count beside it.
"""

import re
from collections.abc import Mapping, Sequence
from functools import cache

import numpy as np

from configuration_mf2.facs import ACTION_UNITS, UNKNOWN_LABEL, LabelSet
from mf2face.captions.check import named_aus
from mf2face.data.metrics import action_unit_scores
from mf2face.data.schema import as_label_set
from processing_mf2.captions import au_sentence_state, au_states, emotion_name, parse_emotion
from processing_mf2.wording import AU_WORDING, third_person


Written = str | Sequence[str]
"""A text of a face, or one sentence for each AU of the label set, in its order."""

_WORDS = re.compile(r"[a-z0-9]+(?:'[a-z]+)?")


def caption_scores(written: Sequence[str], references: Sequence[str]) -> dict[str, float]:
    """`bleu_1`, `bleu_4` (of all texts together), `rouge_l` (F, mean of the texts): 0 to 1; `cider` (CIDEr-D): 0 to 10.

    A pair without a reference is left out; an empty text with one counts, as wrong. Counts: `caption_pairs` (scored),
    `caption_no_reference`, `caption_empty`, `caption_references` (different ones; with one alone CIDEr is always 0).
    """
    for name, texts in (("written", written), ("references", references)):
        wrong = [text for text in texts if not isinstance(text, str)]
        if isinstance(texts, str) or wrong:
            raise ValueError(f"{name}: got {(wrong or [texts])[0]!r:.60}, expected a list of texts, one an image")
    if len(written) != len(references):
        raise ValueError(f"references: got {len(references)}, expected {len(written)}, one for each text written")
    bleu, rouge, cider = _libraries()
    pairs = [(" ".join(text.split()), own) for text, own in zip(written, references, strict=True) if own.strip()]
    texts, own = [text for text, _ in pairs], [reference for _, reference in pairs]
    scores = dict.fromkeys(("bleu_1", "bleu_4", "rouge_l", "cider"), 0.0)
    if pairs:
        for order in (1, 4):
            scores[f"bleu_{order}"] = bleu(lowercase=True, max_ngram_order=order).corpus_score(texts, [own]).score / 100
        scorer = rouge(["rougeL"])
        scores["rouge_l"] = float(np.mean([scorer.score(r, t)["rougeL"].fmeasure for t, r in pairs]))
        # Its own tokenizer is a Java program.
        split = [{i: [_plain(text)] for i, text in enumerate(part)} for part in (own, texts)]
        scores["cider"] = float(cider().compute_score(*split)[0])
    counts = {
        "caption_pairs": len(pairs),
        "caption_no_reference": len(references) - len(pairs),
        "caption_empty": texts.count(""),
        "caption_references": len(set(map(_plain, own))),
    }
    return scores | {name: float(count) for name, count in counts.items()}


def _libraries() -> tuple[type, type, type]:
    try:
        from pycocoevalcap.cider.cider import Cider
        from rouge_score.rouge_scorer import RougeScorer
        from sacrebleu.metrics import BLEU
    except ImportError as error:
        expected = "expected sacrebleu, rouge-score and pycocoevalcap"
        message = f'caption_scores: {error.name} is missing; {expected}. Run `pip install -e ".[scores]"`'
        raise ImportError(message) from error
    return BLEU, RougeScorer, Cider


def _plain(text: str) -> str:
    return " ".join(_WORDS.findall(text.lower()))


_NONE_ACTIVE = re.compile(
    r"\b(?:no action unit (?:is active|moves)|(?:nothing|hardly anything) moves|none is active|face is at rest|"
    r"none (?:of|among) the labelled)\b"
)
_DENIED_BEFORE = re.compile(r"\b(?:no|not|without|never|nor|neither)\s+(?:an?\s+|the\s+)?$")
_DENIED_AFTER = re.compile(
    r"^\s*(?:\([^()]*\)|\))?\s*"
    r"(?::[\s*_]*inactive|(?:is|are)\s+(?:inactive|absent|at rest|not (?:active|visible|seen)))\b"
)


@cache
def _phrases() -> tuple[re.Pattern, Mapping[str, tuple[str, int]]]:
    """A pattern of every phrase by which a caption of any style states an AU, and what each phrase means."""
    means: dict[str, tuple[str, int]] = {}
    for au, unit in ACTION_UNITS.items():
        wording = AU_WORDING[au]
        active = (*wording.active, wording.cue.removeprefix("a ").removeprefix("an "), third_person(unit.verb))
        means |= {phrase.lower(): (au, 1) for phrase in (*active, unit.noun)}
        means |= {phrase.lower(): (au, 0) for phrase in wording.rest}
    longest_first = sorted(means, key=len, reverse=True)
    codes = r"au\s?0*(?P<code>\d+)"
    return re.compile(rf"\b(?:{codes}|{'|'.join(map(re.escape, longest_first))})\b"), means


def claimed_units(text: str) -> dict[str, int]:
    """AU -> 1 or 0, for each that a text calls active or at rest, in the words of any style.

    A phrase about the state overrides a mere mention by code or name; of equals the first counts.
    """
    low = re.sub(r"\s+([.,;:!?)])", r"\1", " ".join(text.lower().split()))
    pattern, means = _phrases()
    stated: dict[str, int] = {}
    mentioned: dict[str, int] = {}
    for match in pattern.finditer(low):
        au, state = means.get(match[0], (f"AU{match['code']}", 1))
        is_name = match["code"] is not None or match[0] == ACTION_UNITS[au].noun
        denied = _DENIED_BEFORE.search(low[: match.start()]) or _DENIED_AFTER.search(low[match.end() :])
        if denied and state:
            stated.setdefault(au, 0)
        elif is_name:
            mentioned.setdefault(au, 1)
        else:
            stated.setdefault(au, state)
    mentioned |= dict.fromkeys(named_aus(text), 1)  # "AUs 6, 7 and 12"
    return mentioned | stated


def fact_scores(
    written: Sequence[Written],
    au_labels: Sequence[Sequence[int] | None] | None,
    emotion_labels: Sequence[int | str | None] | None,
    label_set: str | LabelSet = "mfa",
) -> dict[str, float]:
    """AUs and emotion as the texts state them, against labels; unknown ones (-1, None) are masked.

    `fact_au_f1/<AU>`, `fact_au_f1_macro`: an AU that a text does not call active counts as at rest.
    `fact_emotion_accuracy`: a text that states none counts as wrong. `fact_emotion_stated`: share of the texts that
    state one. `fact_contradicted`: share of the claims (an AU active or at rest, none active, the emotion) that a label
    contradicts, of those that it can judge. Counts: `fact_claims`, `fact_au_labels`, `fact_emotion_labels`,
    `fact_au_no_positive` (AUs of F1 0 that no image shows), `fact_empty` (texts without a word).
    """
    labels = as_label_set(label_set)
    units, emotions = _named_labels(written, au_labels, emotion_labels, labels)
    read = [_read(text, labels) for text in written]
    scores = {"fact_texts": float(len(written)), "fact_empty": float(sum(not "".join(t).strip() for t in written))}
    if labels.action_units:
        scores |= _unit_scores([states for states, _, _ in read], units, labels.action_units)
    if labels.emotions:
        stated = [emotion for _, _, emotion in read]
        known = [(truth, text) for truth, text in zip(emotions, stated, strict=True) if truth]
        scores["fact_emotion_accuracy"] = _share(sum(truth == text for truth, text in known), len(known))
        scores["fact_emotion_stated"] = _share(sum(text is not None for text in stated), len(stated))
        scores["fact_emotion_labels"] = float(len(known))
    rows = zip(read, units, emotions, strict=True)
    judged = [claim for claims, truth, emotion in rows for claim in _judge(*claims, truth, emotion)]
    return scores | {"fact_contradicted": _share(judged.count(False), len(judged)), "fact_claims": float(len(judged))}


def _named_labels(
    written: Sequence[Written],
    au_labels: Sequence[Sequence[int] | None] | None,
    emotion_labels: Sequence[int | str | None] | None,
    labels: LabelSet,
) -> tuple[list[dict[str, int]], list[str | None]]:
    """AU -> state, and the emotion's name, for each text."""
    for name, rows in (("au_labels", au_labels), ("emotion_labels", emotion_labels)):
        if rows is not None and len(rows) != len(written):
            raise ValueError(f"{name}: got {len(rows)} rows, expected {len(written)}, one for each text")
    for text in written:
        if not isinstance(text, str) and len(text) != len(labels.action_units):
            expected = f"a text, or {len(labels.action_units)} sentences, one for each of {list(labels.action_units)}"
            raise ValueError(f"written: got {len(text)} sentences, expected {expected}")
    absent = [None] * len(written)
    units = [au_states(row, labels.action_units) for row in (absent if au_labels is None else au_labels)]
    return units, [emotion_name(e, labels.emotions) for e in (absent if emotion_labels is None else emotion_labels)]


def _read(text: Written, labels: LabelSet) -> tuple[dict[str, int], bool, str | None]:
    """Claims about AUs of the label set, whether the text says that none is active, and the emotion."""
    if not isinstance(text, str):
        sentences = zip(labels.action_units, text, strict=True)
        return {au: au_sentence_state(one, au) for au, one in sentences if one.strip()}, False, None
    claims = claimed_units(text)
    states = {au: claims[au] for au in labels.action_units if au in claims}
    emotion = parse_emotion(text, labels.emotions) if labels.emotions else None
    return states, bool(_NONE_ACTIVE.search(" ".join(text.lower().split()))) and 1 not in states.values(), emotion


def _unit_scores(
    read: Sequence[Mapping[str, int]], truth: Sequence[Mapping[str, int]], action_units: Sequence[str]
) -> dict[str, float]:
    if not read:
        return dict.fromkeys(("fact_au_f1_macro", "fact_au_labels", "fact_au_no_positive"), 0.0)
    stated = np.array([[float(states.get(au, 0)) for au in action_units] for states in read])
    labels = np.array([[states[au] for au in action_units] for states in truth])
    scores = action_unit_scores(stated, labels, action_units)
    named = {f"fact_{name}": value for name, value in scores.items() if name.startswith(("au_f1/", "au_f1_macro"))}
    known, without = (labels != UNKNOWN_LABEL).sum(), len(scores["au_no_positive"])
    return named | {"fact_au_labels": float(known), "fact_au_no_positive": float(without)}


def _judge(
    states: Mapping[str, int], none_active: bool, stated: str | None, truth: Mapping[str, int], emotion: str | None
) -> list[bool]:
    """Whether each claim is true; one that no label can judge is left out."""
    judged = [truth[au] == state for au, state in states.items() if truth[au] != UNKNOWN_LABEL]
    known = [state for state in truth.values() if state != UNKNOWN_LABEL]
    if none_active and known:
        judged.append(1 not in known)
    return [*judged, stated == emotion] if stated and emotion else judged


def _share(part: int, whole: int) -> float:
    return part / whole if whole else 0.0


__all__ = ["caption_scores", "claimed_units", "fact_scores"]
