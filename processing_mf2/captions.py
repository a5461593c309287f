"""Labels to sentences and back: MFA's captions by rule, Exp-BLIP's and VL-FAU's forms, and the parsers of all."""

import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from typing import Literal

import numpy as np

from configuration_mf2.facs import ACTION_UNITS, UNKNOWN_LABEL, LabelSet, check_action_units, resolve_label_set

from .wording import (
    AU_WORDING,
    EMOTION_SENTENCE,
    KEY_AU_PROMPT,
    capitalise,
    emotion_wording,
    join_list,
    third_person,
)


ExpBlipVariant = Literal["au", "emot", "mix", "cat", "exp"]
EXP_BLIP_VARIANTS: tuple[str, ...] = ExpBlipVariant.__args__

# An emotion caption has 61 tokens: four cues and two more beside them fit.
_MAX_CUES, _MAX_CUES_BESIDE = 4, 2

NEUTRAL_CAPTION = "The face is at rest: the brows are level, the cheeks are smooth and the mouth is relaxed."
"""AU caption of a face whose action units are all known and all inactive."""

PARTLY_NEUTRAL_CAPTION = "None of the labelled action units is active."
"""The same when some action units are unknown: describing the whole face would claim too much."""

# Patterns. {cues} is a list of noun phrases, {Cues} the same as a sentence's start; {s} and {are} agree with it.
EMOTION_FROM_CUES = (
    "{Cues} point{s} to {emotion}.",
    "The face shows {cues}, which suggest{s} {emotion}.",
    "With {cues}, the face conveys {emotion}.",
    "{Cues} {are} visible, so the face is read as showing {emotion}.",
    "Judging by {cues}, the face expresses {emotion}.",
)
EMOTION_BESIDE_CUES = (
    " {Cues} {are} also visible.",
    " Besides, the face shows {cues}.",
    " {Cues} come{s} with it.",
)
EMOTION_DESPITE_CUES = (
    "{Cues} {are} visible, which is not typical of {emotion}, yet the face conveys it.",
    "The face shows {emotion}, although {cues} would not tell so.",
)
EMOTION_NEUTRAL_CUES = (
    "{Cues} {are} visible, yet the face keeps {emotion}.",
    "The face shows {cues}, which {are} too little for an emotion: this is {emotion}.",
)
EMOTION_AT_REST = (
    "No action unit is active, yet the face conveys {emotion}.",
    "Hardly anything moves in the face, but it shows {emotion}.",
)
EMOTION_NEUTRAL_AT_REST = (
    "The whole face is at rest, so it shows {emotion}.",
    "No action unit is active, which means {emotion}.",
)
EMOTION_ONLY = (EMOTION_SENTENCE, "The face expresses {emotion}.", "The face conveys {emotion}.")

# {keys} is a list such as "AU6 (Cheek Raiser) and AU12 (Lip Corner Puller)"; {key_s} and {key_are} agree with it.
KEY_FOUND = (
    "{keys} {key_are} decisive for {emotion}: {cues} {are} typical of it.",
    "{keys} tell{key_s} that the face shows {emotion}, since {cues} belong{s} to it.",
    "{keys} make{key_s} the face show {emotion}, by way of {cues}.",
)
KEY_BESIDE = (" {Codes} {are} active too, but tell{s} less.", " {Codes} {are} active as well, but not decisive.")
KEY_NONE_TYPICAL = (
    "none of those typical of {emotion} is active; the face shows it with {codes} only.",
    "none stands out; {codes} {are} active, which is not typical of {emotion}.",
)
KEY_NO_PROTOTYPE = (
    "none is decisive; with {codes} active, the face shows {emotion}.",
    "none is known to tell {emotion}; active {are} {codes}.",
)
KEY_NEUTRAL_CUES = (
    "none is decisive; {codes} {are} active, yet the face keeps {emotion}.",
    "none, since {codes} alone {are} not enough to leave {emotion}.",
)
KEY_AT_REST = (
    "none is active, yet the face shows {emotion}.",
    "none, as nothing moves; even so the face shows {emotion}.",
)
KEY_NEUTRAL_AT_REST = (
    "none is active, which makes for {emotion}.",
    "none, as nothing moves; the face shows {emotion}.",
)
KEY_PARTLY_KNOWN = (
    "none of the labelled ones is active; the face shows {emotion}.",
    "none among the labelled ones; the face conveys {emotion}.",
)

# Exp-BLIP's forms. {verbs} is a list such as "raises cheek and pulls lip corner".
EXP_BLIP_AU = ("The face {verbs}.",)
EXP_BLIP_EMOTION = (EMOTION_SENTENCE,)
EXP_BLIP_EXPLAINED = (
    "The face {verbs}, which implies {emotion}.",
    "Since the face {verbs}, it shows {emotion}.",
    "The face {verbs}, a sign of {emotion}.",
)
EXP_BLIP_DESPITE = ("The face {verbs}, yet it shows {emotion}.", "Although the face {verbs}, it shows {emotion}.")
EXP_BLIP_EXPLAINED_AT_REST = ("No action unit moves the face, yet it shows {emotion}.",)
EXP_BLIP_EXPLAINED_NEUTRAL = ("No action unit moves the face, which implies {emotion}.",)

# VL-FAU's forms.
LOCAL_INACTIVE = ("{name} is inactive.", "{name} is not seen.")
GLOBAL_ACTIVE = (
    "The whole face shows {cues}.",
    "Across the face, {cues} {are} visible.",
    "{Cues} {are} active in this face.",
)


AULabels = Sequence[int] | None
Emotion = int | str | None
Rng = np.random.Generator | None


def au_title(action_unit: str) -> str:
    """'AU1' -> 'AU1 (Inner Brow Raiser)'."""
    return f"{action_unit} ({ACTION_UNITS[action_unit].noun.title()})"


def au_states(au_labels: AULabels, action_units: Sequence[str]) -> dict[str, int]:
    """AU name -> 1, 0 or -1; `None`: all unknown."""
    values = [UNKNOWN_LABEL] * len(action_units) if au_labels is None else list(au_labels)
    if len(values) != len(action_units):
        raise ValueError(
            f"au_labels: got {len(values)} values, expected {len(action_units)}, one for each of {list(action_units)}"
        )
    for au, value in zip(action_units, values, strict=True):
        if value not in (0, 1, UNKNOWN_LABEL):
            raise ValueError(f"au_labels: got {value!r} for {au}, expected 1 (active), 0 (inactive) or -1 (unknown)")
    return {au: int(value) for au, value in zip(action_units, values, strict=True)}


def emotion_name(emotion: Emotion, emotions: Sequence[str]) -> str | None:
    """The name of an emotion given by name or index; `None` if unknown."""
    if emotion is None:
        return None
    if isinstance(emotion, str):
        if emotion in emotions:
            return emotion
    elif int(emotion) == emotion and UNKNOWN_LABEL <= emotion < len(emotions):
        return None if emotion == UNKNOWN_LABEL else emotions[int(emotion)]
    raise ValueError(f"emotion: got {emotion!r}, expected one of {list(emotions)}, an index into them, or -1 (unknown)")


def _pick(options: Sequence[str], rng: Rng) -> str:
    return options[0] if rng is None else options[int(rng.integers(len(options)))]


def _sentence(phrase: str) -> str:
    return f"{capitalise(phrase)}."


def _fill(pattern: str, *, items: Sequence[str] = (), is_plural: bool = True, **slots: str) -> str:
    """Fills a pattern: {cues} or {codes} stand for the list `items`, {s} and {are} agree with it."""
    text = join_list(items) if items else ""
    number = {"s": "", "are": "are"} if is_plural else {"s": "s", "are": "is"}
    lists = {"cues": text, "Cues": capitalise(text), "codes": text, "Codes": text}
    return pattern.format(**{**lists, **number, **slots})


def _cue_slots(action_units: Sequence[str]) -> dict:
    cues = [AU_WORDING[au].cue for au in action_units]
    return {"items": cues, "is_plural": len(cues) > 1 or not cues[0].startswith(("a ", "an "))}


def _active(states: dict[str, int]) -> list[str]:
    return [au for au, state in states.items() if state == 1]


def _all_known(states: dict[str, int]) -> bool:
    return bool(states) and all(state != UNKNOWN_LABEL for state in states.values())


def _au_phrase(action_unit: str, state: int, rng: Rng) -> str:
    # An unknown AU draws too, so that equal generators word the other AUs equally.
    phrase = _pick(AU_WORDING[action_unit].active if state == 1 else AU_WORDING[action_unit].rest, rng)
    return phrase if state != UNKNOWN_LABEL else ""


def _no_active_caption(states: dict[str, int]) -> str:
    if all(state == UNKNOWN_LABEL for state in states.values()):
        return ""
    return NEUTRAL_CAPTION if _all_known(states) else PARTLY_NEUTRAL_CAPTION


class RuleCaptioner:
    """Writes captions from labels alone.

    AU labels are aligned with `action_units` (1 active, 0 inactive, -1 unknown); an emotion is a name, an index into
    `emotions`, or -1/None if unknown. Unknown labels are never mentioned; a caption without a known label is "".
    A generator varies the wording; `None` gives the canonical one.
    """

    def __init__(
        self,
        label_set: str | LabelSet = "mfa",
        *,
        action_units: Sequence[str] | None = None,
        emotions: Sequence[str] | None = None,
    ):
        """`action_units` or `emotions` replace the label set; the one not given is then empty."""
        if action_units is not None or emotions is not None:
            label_set = LabelSet(tuple(action_units or ()), tuple(emotions or ()))
        elif isinstance(label_set, str):
            label_set = resolve_label_set(label_set)
        self.action_units = check_action_units(label_set.action_units)
        self.emotions = tuple(label_set.emotions)
        if not all(isinstance(name, str) and name.strip() for name in self.emotions):
            raise ValueError(f"emotions: got {list(self.emotions)}, expected names that are not empty")

    def _states(self, au_labels: AULabels, emotion: Emotion) -> tuple[dict[str, int], list[str], str | None]:
        states = au_states(au_labels, self.action_units)
        return states, _active(states), emotion_name(emotion, self.emotions)

    def au_caption(self, au_labels: AULabels, rng: Rng = None) -> str:
        states = au_states(au_labels, self.action_units)
        phrases = {au: _au_phrase(au, state, rng) for au, state in states.items()}
        lines = [f"{n}. {au_title(au)}: {phrases[au]}." for n, au in enumerate(_active(states), start=1)]
        return "\n".join(lines) or _no_active_caption(states)

    def au_sentences(self, au_labels: AULabels, rng: Rng = None) -> list[str]:
        """A sentence an AU, "" if unknown. Equal generators give the sentences of `au_caption`."""
        states = au_states(au_labels, self.action_units)
        phrases = [_au_phrase(au, state, rng) for au, state in states.items()]
        return [_sentence(phrase) if phrase else "" for phrase in phrases]

    def emotion_caption(self, au_labels: AULabels, emotion: Emotion, rng: Rng = None) -> str:
        states, active, name = self._states(au_labels, emotion)
        if name is None:
            return ""
        wording = emotion_wording(name)
        if not active:
            patterns = EMOTION_ONLY
            if _all_known(states):
                patterns = EMOTION_NEUTRAL_AT_REST if name == "Neutral" else EMOTION_AT_REST
            return _pick(patterns, rng).format(emotion=wording.phrase)
        typical = [au for au in active if au in wording.typical]
        if name == "Neutral":
            patterns, shown = EMOTION_NEUTRAL_CUES, active
        elif wording.typical and not typical:
            patterns, shown = EMOTION_DESPITE_CUES, active
        else:
            patterns, shown = EMOTION_FROM_CUES, typical or active
        shown = shown[:_MAX_CUES]
        caption = _fill(_pick(patterns, rng), emotion=wording.phrase, **_cue_slots(shown))
        beside = [au for au in active if au not in shown][:_MAX_CUES_BESIDE]
        return caption + _fill(_pick(EMOTION_BESIDE_CUES, rng), **_cue_slots(beside)) if beside else caption

    def key_au_caption(self, au_labels: AULabels, emotion: Emotion, rng: Rng = None) -> str:
        """Which active AUs were decisive for the emotion, or that none is typical of it."""
        states, active, name = self._states(au_labels, emotion)
        if name is None or all(state == UNKNOWN_LABEL for state in states.values()):
            return ""
        wording = emotion_wording(name)
        keys = [au for au in active if au in wording.typical]
        if keys:
            number = {"key_s": "", "key_are": "are"} if len(keys) > 1 else {"key_s": "s", "key_are": "is"}
            titles = join_list([au_title(au) for au in keys])
            text = _fill(_pick(KEY_FOUND, rng), keys=titles, emotion=wording.phrase, **number, **_cue_slots(keys))
            beside = [au for au in active if au not in keys]
            text += _fill(_pick(KEY_BESIDE, rng), items=beside, is_plural=len(beside) > 1) if beside else ""
            return f"{KEY_AU_PROMPT} {text}"
        if active and name == "Neutral":
            patterns = KEY_NEUTRAL_CUES
        elif active:
            patterns = KEY_NONE_TYPICAL if wording.typical else KEY_NO_PROTOTYPE
        elif _all_known(states):
            patterns = KEY_NEUTRAL_AT_REST if name == "Neutral" else KEY_AT_REST
        else:
            patterns = KEY_PARTLY_KNOWN
        text = _fill(_pick(patterns, rng), items=active, is_plural=len(active) > 1, emotion=wording.phrase)
        return f"{KEY_AU_PROMPT} {text}"

    def exp_blip_caption(self, au_labels: AULabels, emotion: Emotion, variant: ExpBlipVariant, rng: Rng = None) -> str:
        """Exp-BLIP's five caption sets. 'mix', 'cat' and 'exp' fall back to the known half if the other is unknown."""
        if variant not in EXP_BLIP_VARIANTS:
            raise ValueError(f"variant: got {variant!r}, expected one of {list(EXP_BLIP_VARIANTS)}")
        states, active, name = self._states(au_labels, emotion)
        verbs = join_list([third_person(ACTION_UNITS[au].verb) for au in active]) if active else ""
        au_text = _pick(EXP_BLIP_AU, rng).format(verbs=verbs) if active else _no_active_caption(states)
        wording = emotion_wording(name) if name else None
        emotion_text = _pick(EXP_BLIP_EMOTION, rng).format(emotion=wording.phrase) if name else ""
        if variant in ("au", "emot"):
            return au_text if variant == "au" else emotion_text
        if not (au_text and emotion_text):
            return au_text or emotion_text
        if variant == "mix":
            return _pick([au_text, emotion_text], rng)
        if variant == "cat":
            return f"{au_text} {emotion_text}"
        if active:
            implied = name != "Neutral" and (not wording.typical or any(au in wording.typical for au in active))
            patterns = EXP_BLIP_EXPLAINED if implied else EXP_BLIP_DESPITE
        elif not _all_known(states):
            return emotion_text
        else:
            patterns = EXP_BLIP_EXPLAINED_NEUTRAL if name == "Neutral" else EXP_BLIP_EXPLAINED_AT_REST
        return _pick(patterns, rng).format(verbs=verbs, emotion=wording.phrase)

    def vl_fau_local(self, au_labels: AULabels, rng: Rng = None) -> list[str]:
        """VL-FAU's local descriptions, one an AU: active or not, with a detail; "" if unknown."""
        texts = []
        for au, state in au_states(au_labels, self.action_units).items():
            phrase = _au_phrase(au, state, rng)
            detail = _sentence(AU_WORDING[au].trace) if state == 1 else _pick(LOCAL_INACTIVE, rng)
            texts.append(f"{_sentence(phrase)} {detail.format(name=au_title(au))}" if phrase else "")
        return texts

    def vl_fau_global(self, au_labels: AULabels, rng: Rng = None) -> str:
        """VL-FAU's global description: all active AUs of the face."""
        states = au_states(au_labels, self.action_units)
        active = _active(states)
        return _fill(_pick(GLOBAL_ACTIVE, rng), **_cue_slots(active)) if active else _no_active_caption(states)


# A list item starts after the end of a line or a sentence, or anywhere if it has a number. Number, bold marks and title
# are optional, and the colon may be a dash.
_AU_HEADER = re.compile(
    r"(?:^|[\n.!?;]|(?=(?<!\w)\d+\s*[.)]))(?P<item>[\s*_#>•-]*(?:\d+\s*[.)])?[\s*_]*AU\s?0*(?P<number>\d+)"
    r"[\s*_]*(?:\([^()]*\))?[\s*_]*(?::|\s[-–—]\s)[*_]*)",
    re.IGNORECASE,
)


def parse_au_caption(text: str, action_units: Sequence[str]) -> dict[str, str]:
    """AU name -> its sentence, for every item of a numbered list that names one of `action_units`.

    Tolerates bold marks, missing numbers, lost line breaks, other capitals and a tokenizer's spaces around marks.
    """
    headers = list(_AU_HEADER.finditer(text))
    sentences: dict[str, str] = {}
    ends = [following.start("item") for following in headers[1:]] + [len(text)]
    for header, end in zip(headers, ends, strict=False):  # without any item there is one end too many
        name = f"AU{header['number']}"
        if name not in action_units or name in sentences:
            continue
        body = " ".join(text[header.end() : end].split())
        # "AU1 - Inner Brow Raiser: ..." leaves the title in front of the sentence.
        body = re.sub(rf"^{ACTION_UNITS[name].noun}[*_]*\s?[:–—-][*_]*\s?", "", body, flags=re.IGNORECASE)
        sentence = re.sub(r"\s+([.,;:!?])", r"\1", body).strip(" *_;,")
        if sentence:
            sentences[name] = capitalise(sentence if sentence.endswith((".", "!", "?")) else f"{sentence}.")
    return sentences


def split_au_caption(text: str, au_labels: AULabels, action_units: Sequence[str], rng: Rng = None) -> list[str]:
    """A sentence an AU: the caption's for an active AU, the rule's for one at rest or missing in the caption, "" for an
    unknown one. The labels decide: the caption's words about an inactive AU are dropped."""
    written = parse_au_caption(text, action_units)
    states = au_states(au_labels, action_units)
    by_rule = RuleCaptioner(action_units=action_units).au_sentences(au_labels, rng)
    return [
        written.get(au, sentence) if state == 1 else sentence
        for (au, state), sentence in zip(states.items(), by_rule, strict=True)
    ]


def au_sentence_state(sentence: str, action_unit: str) -> int:
    """1 if a sentence describes the AU in action, 0 if it describes the AU at rest, another AU, or nothing.

    Only the rule's own words count as at rest; any other sentence is an action, unless it is the rule's for another AU.
    """
    said = " ".join(sentence.lower().split()).strip(" .")
    wording = AU_WORDING[action_unit]
    if not said or said in wording.rest:
        return 0
    if said in wording.active:
        return 1
    return int(not any(said in (*other.active, *other.rest) for other in AU_WORDING.values()))


def caption_disagrees(caption: str, emotion: str | None, emotions: Sequence[str], active: Mapping[str, bool]) -> bool:
    """Whether a caption names another emotion than `emotion`, or an AU (by code or cue) that is not `active`."""
    if emotion is not None and parse_emotion(caption, emotions) not in (None, emotion):
        return True
    inactive = [(unit, AU_WORDING[unit].cue.removeprefix("a ")) for unit, is_active in active.items() if not is_active]
    return any(re.search(rf"\b(?:{unit}|{cue})\b", caption, re.IGNORECASE) for unit, cue in inactive)


def parse_emotion(text: str, emotions: Sequence[str]) -> str | None:
    """The emotion that a text names most often, the first of equals; `None` if it names none of `emotions`."""
    low = " ".join(text.lower().split())
    for name in emotions:
        if low.strip(" .!\"'*") == name.lower():
            return name
    forms = {}
    for name in emotions:
        words = () if name == "Other" else (name,)
        forms.update({form.lower(): name for form in (*words, *emotion_wording(name).forms)})
    if not forms:
        return None
    # Longest first: "happily surprised" must not be read as "surprised".
    longest_first = sorted(forms, key=len, reverse=True)
    named = re.findall(rf"\b(?:{'|'.join(re.escape(form) for form in longest_first)})\b", low)
    counts = Counter(forms[form] for form in named)
    return counts.most_common(1)[0][0] if counts else None


class _Nth:
    """A generator that always draws the n-th option, modulo their number."""

    def __init__(self, n: int):
        self.n = n

    def integers(self, high: int) -> int:
        return self.n % high


def caption_grammar(label_set: str | LabelSet = "mfa") -> Iterator[str]:
    """Every phrase the captioner can write, once each: to build a vocabulary that lacks none of its words."""
    captioner = RuleCaptioner(label_set)
    size = len(captioner.action_units)
    # One AU active, two neighbours, all, none, and one unknown: every list and every agreement occurs.
    pairs = [(first, second) for first in range(size) for second in (first, first + 1)]
    rows = [[int(i in pair) for i in range(size)] for pair in pairs]
    rows += [[1] * size, [0] * size, [UNKNOWN_LABEL] * size, [UNKNOWN_LABEL, *[0] * (size - 1)][:size]]
    emotions = [*captioner.emotions, None]
    said: set[str] = set()
    # No place has more than five options.
    for rng in (None, *(_Nth(n) for n in range(5))):
        for row in rows:
            phrases = [captioner.au_caption(row, rng), *captioner.au_sentences(row, rng)]
            phrases += [*captioner.vl_fau_local(row, rng), captioner.vl_fau_global(row, rng)]
            for emotion in emotions:
                phrases += [captioner.emotion_caption(row, emotion, rng), captioner.key_au_caption(row, emotion, rng)]
                phrases += [captioner.exp_blip_caption(row, emotion, v, rng) for v in EXP_BLIP_VARIANTS]
            new = [phrase for phrase in dict.fromkeys(phrases) if phrase and phrase not in said]
            said.update(new)
            yield from new
