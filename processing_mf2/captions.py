"""Labels to sentences and back: MFA's three captions by rule, Exp-BLIP's and VL-FAU's forms, and the parsers of all."""

import re
from collections import Counter
from collections.abc import Iterator, Sequence
from typing import Literal

import numpy as np

from configuration_mf2.facs import ACTION_UNITS, UNKNOWN_LABEL, LabelSet, check_action_units, resolve_label_set

from .wording import (
    AU_WORDING,
    EMOTION_AT_REST,
    EMOTION_BESIDE_CUES,
    EMOTION_DESPITE_CUES,
    EMOTION_FROM_CUES,
    EMOTION_NEUTRAL_AT_REST,
    EMOTION_NEUTRAL_CUES,
    EMOTION_ONLY,
    EXP_BLIP_AU,
    EXP_BLIP_DESPITE,
    EXP_BLIP_EMOTION,
    EXP_BLIP_EXPLAINED,
    EXP_BLIP_EXPLAINED_AT_REST,
    EXP_BLIP_EXPLAINED_NEUTRAL,
    GLOBAL_ACTIVE,
    KEY_AT_REST,
    KEY_AU_PROMPT,
    KEY_BESIDE,
    KEY_FOUND,
    KEY_NEUTRAL_AT_REST,
    KEY_NEUTRAL_CUES,
    KEY_NO_PROTOTYPE,
    KEY_NONE_TYPICAL,
    KEY_PARTLY_KNOWN,
    LOCAL_INACTIVE,
    NEUTRAL_CAPTION,
    PARTLY_NEUTRAL_CAPTION,
    capitalise,
    emotion_wording,
    fill,
    join_list,
    third_person,
)


ExpBlipVariant = Literal["au", "emot", "mix", "cat", "exp"]
EXP_BLIP_VARIANTS: tuple[str, ...] = ("au", "emot", "mix", "cat", "exp")

# An emotion caption has 61 tokens; four cues and two more beside them keep within.
_MAX_CUES, _MAX_CUES_BESIDE = 4, 2


def au_title(action_unit: str) -> str:
    """'AU1' -> 'AU1 (Inner Brow Raiser)'."""
    return f"{action_unit} ({ACTION_UNITS[action_unit].noun.title()})"


def _sentence(phrase: str) -> str:
    return f"{capitalise(phrase)}."


def _pick(options: Sequence[str], rng: np.random.Generator | None) -> str:
    return options[0] if rng is None else options[int(rng.integers(len(options)))]


def _cue_slots(action_units: Sequence[str]) -> dict:
    cues = [AU_WORDING[au].cue for au in action_units]
    return {"items": cues, "is_plural": len(cues) > 1 or not cues[0].startswith(("a ", "an "))}


class RuleCaptioner:
    """Writes captions from labels alone.

    AU labels are aligned with `action_units` (1 active, 0 inactive, -1 unknown); an emotion is a name, an index into
    `emotions`, or -1/None if unknown. What is unknown is never mentioned; a caption of which nothing is known is "".
    With a generator the wording varies; with `None` it is the plain canonical one.
    """

    def __init__(
        self,
        label_set: str | LabelSet = "mfa",
        *,
        action_units: Sequence[str] | None = None,
        emotions: Sequence[str] | None = None,
    ):
        """Given `action_units` or `emotions` take the place of the label set; the one not given is then empty."""
        if action_units is not None or emotions is not None:
            label_set = LabelSet(tuple(action_units or ()), tuple(emotions or ()))
        elif isinstance(label_set, str):
            label_set = resolve_label_set(label_set)
        self.action_units = check_action_units(label_set.action_units)
        self.emotions = tuple(label_set.emotions)
        if not all(isinstance(name, str) and name.strip() for name in self.emotions):
            raise ValueError(f"emotions: got {list(self.emotions)}, expected names that are not empty")

    def au_caption(self, au_labels: Sequence[int] | None, rng: np.random.Generator | None = None) -> str:
        states = self._au_states(au_labels)
        drawn = [(au, self._au_phrase(au, state, rng)) for au, state in states.items()]
        active = [(au, phrase) for au, phrase in drawn if states[au] == 1]
        if not active:
            return self._no_active_caption(states)
        return "\n".join(f"{number}. {au_title(au)}: {text}." for number, (au, text) in enumerate(active, start=1))

    def au_sentences(self, au_labels: Sequence[int] | None, rng: np.random.Generator | None = None) -> list[str]:
        """One sentence for every AU: what is seen, a short one at rest, "" if unknown. Equal generators give the
        sentences of `au_caption`."""
        states = self._au_states(au_labels)
        phrases = [self._au_phrase(au, state, rng) for au, state in states.items()]
        return [_sentence(phrase) if phrase else "" for phrase in phrases]

    def emotion_caption(
        self,
        au_labels: Sequence[int] | None,
        emotion: int | str | None,
        rng: np.random.Generator | None = None,
    ) -> str:
        states, name = self._au_states(au_labels), self._emotion_name(emotion)
        if name is None:
            return ""
        wording, active = emotion_wording(name), _active(states)
        if not active:
            patterns = EMOTION_ONLY
            if _all_known(states):
                patterns = EMOTION_NEUTRAL_AT_REST if name == "Neutral" else EMOTION_AT_REST
            return _pick(patterns, rng).format(emotion=wording.phrase)
        typical = [au for au in active if au in wording.typical]
        if name == "Neutral":
            patterns, told = EMOTION_NEUTRAL_CUES, active
        elif wording.typical and not typical:
            patterns, told = EMOTION_DESPITE_CUES, active
        else:
            patterns, told = EMOTION_FROM_CUES, typical or active
        told = told[:_MAX_CUES]
        caption = fill(_pick(patterns, rng), emotion=wording.phrase, **_cue_slots(told))
        beside = [au for au in active if au not in told][:_MAX_CUES_BESIDE]
        return caption + fill(_pick(EMOTION_BESIDE_CUES, rng), **_cue_slots(beside)) if beside else caption

    def key_au_caption(
        self,
        au_labels: Sequence[int] | None,
        emotion: int | str | None,
        rng: np.random.Generator | None = None,
    ) -> str:
        """Which active AUs were decisive for the emotion; says so if none of them is typical of it."""
        states, name = self._au_states(au_labels), self._emotion_name(emotion)
        if name is None or all(state == UNKNOWN_LABEL for state in states.values()):
            return ""
        wording, active = emotion_wording(name), _active(states)
        keys = [au for au in active if au in wording.typical]
        if keys:
            number = {"key_s": "", "key_are": "are"} if len(keys) > 1 else {"key_s": "s", "key_are": "is"}
            titles = join_list([au_title(au) for au in keys])
            text = fill(_pick(KEY_FOUND, rng), keys=titles, emotion=wording.phrase, **number, **_cue_slots(keys))
            beside = [au for au in active if au not in keys]
            text += fill(_pick(KEY_BESIDE, rng), items=beside, is_plural=len(beside) > 1) if beside else ""
            return f"{KEY_AU_PROMPT} {text}"
        if active and name == "Neutral":
            patterns = KEY_NEUTRAL_CUES
        elif active:
            patterns = KEY_NONE_TYPICAL if wording.typical else KEY_NO_PROTOTYPE
        elif _all_known(states):
            patterns = KEY_NEUTRAL_AT_REST if name == "Neutral" else KEY_AT_REST
        else:
            patterns = KEY_PARTLY_KNOWN
        text = fill(_pick(patterns, rng), items=active, is_plural=len(active) > 1, emotion=wording.phrase)
        return f"{KEY_AU_PROMPT} {text}"

    def exp_blip_caption(
        self,
        au_labels: Sequence[int] | None,
        emotion: int | str | None,
        variant: ExpBlipVariant,
        rng: np.random.Generator | None = None,
    ) -> str:
        """Exp-BLIP's five caption sets. 'mix', 'cat' and 'exp' fall back to the known half if the other is unknown."""
        if variant not in EXP_BLIP_VARIANTS:
            raise ValueError(f"variant: got {variant!r}, expected one of {list(EXP_BLIP_VARIANTS)}")
        states, name = self._au_states(au_labels), self._emotion_name(emotion)
        active = _active(states)
        verbs = join_list([third_person(ACTION_UNITS[au].verb) for au in active]) if active else ""
        au_text = _pick(EXP_BLIP_AU, rng).format(verbs=verbs) if active else self._no_active_caption(states)
        phrase = emotion_wording(name).phrase if name else ""
        emotion_text = _pick(EXP_BLIP_EMOTION, rng).format(emotion=phrase) if name else ""
        halves = [text for text in (au_text, emotion_text) if text]
        if variant == "au":
            return au_text
        if variant == "emot":
            return emotion_text
        if len(halves) < 2:
            return "".join(halves)
        if variant == "mix":
            return _pick(halves, rng)
        if variant == "cat":
            return " ".join(halves)
        if active:
            typical = emotion_wording(name).typical
            implied = name != "Neutral" and (not typical or any(au in typical for au in active))
            patterns = EXP_BLIP_EXPLAINED if implied else EXP_BLIP_DESPITE
        elif not _all_known(states):
            return emotion_text
        else:
            patterns = EXP_BLIP_EXPLAINED_NEUTRAL if name == "Neutral" else EXP_BLIP_EXPLAINED_AT_REST
        return _pick(patterns, rng).format(verbs=verbs, emotion=phrase)

    def vl_fau_local(self, au_labels: Sequence[int] | None, rng: np.random.Generator | None = None) -> list[str]:
        """VL-FAU's local descriptions, one an AU: its state in detail, active or not; "" if unknown."""
        texts = []
        for au, state in self._au_states(au_labels).items():
            phrase = self._au_phrase(au, state, rng)
            detail = _sentence(AU_WORDING[au].trace) if state == 1 else _pick(LOCAL_INACTIVE, rng)
            texts.append(f"{_sentence(phrase)} {detail.format(name=au_title(au))}" if phrase else "")
        return texts

    def vl_fau_global(self, au_labels: Sequence[int] | None, rng: np.random.Generator | None = None) -> str:
        """VL-FAU's global description: all active AUs of the face."""
        states = self._au_states(au_labels)
        active = _active(states)
        return fill(_pick(GLOBAL_ACTIVE, rng), **_cue_slots(active)) if active else self._no_active_caption(states)

    @staticmethod
    def _au_phrase(action_unit: str, state: int, rng: np.random.Generator | None) -> str:
        # An unknown AU draws too, so that equal generators word the other AUs equally.
        phrase = _pick(AU_WORDING[action_unit].active if state == 1 else AU_WORDING[action_unit].rest, rng)
        return phrase if state != UNKNOWN_LABEL else ""

    @staticmethod
    def _no_active_caption(states: dict[str, int]) -> str:
        if all(state == UNKNOWN_LABEL for state in states.values()):
            return ""
        return NEUTRAL_CAPTION if _all_known(states) else PARTLY_NEUTRAL_CAPTION

    def _au_states(self, au_labels: Sequence[int] | None) -> dict[str, int]:
        return au_states(au_labels, self.action_units)

    def _emotion_name(self, emotion: int | str | None) -> str | None:
        return emotion_name(emotion, self.emotions)


def au_states(au_labels: Sequence[int] | None, action_units: Sequence[str]) -> dict[str, int]:
    """AU name -> 1, 0 or -1; `None` stands for all unknown."""
    values = [UNKNOWN_LABEL] * len(action_units) if au_labels is None else list(au_labels)
    if len(values) != len(action_units):
        raise ValueError(
            f"au_labels: got {len(values)} values, expected {len(action_units)}, one for each of {list(action_units)}"
        )
    for au, value in zip(action_units, values, strict=True):
        if value not in (0, 1, UNKNOWN_LABEL):
            raise ValueError(f"au_labels: got {value!r} for {au}, expected 1 (active), 0 (inactive) or -1 (unknown)")
    return {au: int(value) for au, value in zip(action_units, values, strict=True)}


def emotion_name(emotion: int | str | None, emotions: Sequence[str]) -> str | None:
    """The name of an emotion given by name or index; `None` if unknown."""
    if emotion is None:
        return None
    if isinstance(emotion, str):
        if emotion in emotions:
            return emotion
    elif int(emotion) == emotion and UNKNOWN_LABEL <= emotion < len(emotions):
        return None if emotion == UNKNOWN_LABEL else emotions[int(emotion)]
    raise ValueError(
        f"emotion: got {emotion!r}, expected one of {list(emotions)}, an index into them, or -1 if it is unknown"
    )


def _active(states: dict[str, int]) -> list[str]:
    return [au for au, state in states.items() if state == 1]


def _all_known(states: dict[str, int]) -> bool:
    return bool(states) and all(state != UNKNOWN_LABEL for state in states.values())


# The start of a list item: after the start, a line's or a sentence's end, or anywhere if it carries a number. Number,
# bold marks and title may be missing, and the colon may be a dash.
_AU_HEADER = re.compile(
    r"(?:^|[\n.!?;]|(?=(?<!\w)\d+\s*[.)]))(?P<item>[\s*_#>•-]*(?:\d+\s*[.)])?[\s*_]*AU\s?0*(?P<number>\d+)"
    r"[\s*_]*(?:\([^()]*\))?[\s*_]*(?::|\s[-–—]\s)[*_]*)",
    re.IGNORECASE,
)


def parse_au_caption(text: str, action_units: Sequence[str]) -> dict[str, str]:
    """AU name -> its sentence, for every item of a numbered list that names one of `action_units`.

    Bold marks, missing numbers, lost line breaks, other capitals and a tokenizer's spaces around marks are understood.
    An AU that a sentence merely mentions is not an item.
    """
    headers = list(_AU_HEADER.finditer(text))
    found: dict[str, str] = {}
    ends = [following.start("item") for following in headers[1:]] + [len(text)]
    for header, end in zip(headers, ends, strict=False):  # without any item there is one end too many
        name = f"AU{header['number']}"
        if name not in action_units or name in found:
            continue
        body = " ".join(text[header.end() : end].split())
        # "AU1 - Inner Brow Raiser: ..." leaves the title in front of the sentence.
        body = re.sub(rf"^{ACTION_UNITS[name].noun}[*_]*\s?[:–—-][*_]*\s?", "", body, flags=re.IGNORECASE)
        sentence = re.sub(r"\s+([.,;:!?])", r"\1", body).strip(" *_;,")
        if sentence:
            found[name] = capitalise(sentence if sentence.endswith((".", "!", "?")) else f"{sentence}.")
    return found


def split_au_caption(
    text: str,
    au_labels: Sequence[int] | None,
    action_units: Sequence[str],
    rng: np.random.Generator | None = None,
) -> list[str]:
    """One sentence an AU: the caption's own for an active AU, the rule's for one at rest or that the caption left out,
    "" for an unknown one. The labels decide: what the caption says of an inactive AU is not used."""
    written = parse_au_caption(text, action_units)
    states = au_states(au_labels, action_units)
    by_rule = RuleCaptioner(action_units=action_units).au_sentences(au_labels, rng)
    return [
        written.get(au, sentence) if state == 1 else sentence
        for (au, state), sentence in zip(states.items(), by_rule, strict=True)
    ]


def au_sentence_state(sentence: str, action_unit: str) -> int:
    """1 if a sentence tells of the AU in action, 0 if it tells that the AU is at rest, or of another AU, or nothing.

    At rest is what the rule's own words say, for they are everybody's; any other sentence is taken as an action, unless
    it is the rule's for another AU.
    """
    said = " ".join(sentence.lower().split()).strip(" .")
    wording = AU_WORDING[action_unit]
    if not said or said in wording.rest:
        return 0
    if said in wording.active:
        return 1
    return int(not any(said in (*other.active, *other.rest) for other in AU_WORDING.values()))


def parse_emotion(text: str, emotions: Sequence[str]) -> str | None:
    """The emotion that a text names most often, the earlier one of equals; `None` if it names none of `emotions`."""
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
    """Stands in for a generator and always draws the n-th option, around the end if there are fewer."""

    def __init__(self, n: int):
        self.n = n

    def integers(self, high: int) -> int:
        return self.n % high


def caption_grammar(label_set: str | LabelSet = "mfa") -> Iterator[str]:
    """Everything the writer can say, each phrase once: every pattern with every emotion and every AU.

    Meant for training a tokenizer on our own captions: no word or mark the writer can produce is missing.
    """
    captioner = RuleCaptioner(label_set)
    size = len(captioner.action_units)
    # One AU active, two neighbours, all, none, and the same with an unknown one: every list and every agreement occurs.
    pairs = [(first, second) for first in range(size) for second in (first, first + 1)]
    rows = [[int(i in pair) for i in range(size)] for pair in pairs]
    rows += [[1] * size, [0] * size, [UNKNOWN_LABEL] * size, [UNKNOWN_LABEL, *[0] * (size - 1)][:size]]
    emotions = [*captioner.emotions, None]
    said: set[str] = set()
    # Five options at most in any place, so that five rounds use them all.
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


def emotion_prompts(emotions: Sequence[str]) -> dict[str, str]:
    """Emotion -> the sentence that stands for it in zero-shot classification."""
    return {name: EMOTION_ONLY[0].format(emotion=emotion_wording(name).phrase) for name in emotions}


def au_state_prompts(action_units: Sequence[str]) -> dict[str, tuple[str, str]]:
    """AU -> the sentences of its active and of its resting state, as in the canonical captions."""
    wordings = {au: AU_WORDING[au] for au in check_action_units(list(action_units))}
    return {au: (f"{capitalise(w.active[0])}.", f"{capitalise(w.rest[0])}.") for au, w in wordings.items()}
