"""Reads, tidies and checks the answers of a chat model, caption by caption, against the labels."""

import contextlib
import json
import re
from collections.abc import Mapping, Sequence

from configuration_mf2.facs import ACTION_UNITS, UNKNOWN_LABEL
from mf2face.captions.prompts import NEEDS_EMOTION
from mf2face.captions.styles import CaptionRow, Captions, CaptionStyle, numbered
from processing_mf2.captions import au_title, parse_au_caption, parse_emotion
from processing_mf2.wording import KEY_AU_PROMPT, capitalise


MAX_CHARACTERS = 3000
# "AU6", "action unit 6", "AU6/12"; after a plural also "AUs 6, 7 and 12".
_CODE = re.compile(
    r"\b(?:AU|action unit)(?:\s?\d+(?:\s?[/+]\s?\d+)*|s\s?\d+(?:(?:\s?[/+,&]|,?\s(?:and|or))\s?\d+)*)\b", re.IGNORECASE
)
_BY_TITLE = {unit.noun.title(): au for au, unit in ACTION_UNITS.items()}
_TITLES = re.compile(rf"\b(?:{'|'.join(map(re.escape, _BY_TITLE))})\b")
_STATE = re.compile(r"^(active|inactive)\b[\s,.:;–—-]*", re.IGNORECASE)
_WITHOUT_CODES = {"emotion_caption", "exp_blip_au", "exp_blip_emot", "exp_blip_exp", "vl_fau_global"}


class UnreadableAnswerError(ValueError):
    """An answer that is no JSON object."""


def read_answer(content: str, asked: Sequence[str]) -> dict[str, str]:
    """The texts of the captions that were asked for. Understands words around the object, and a list in place of a text
    with line breaks: servers without structured output write such."""
    start, end, answer = content.find("{"), content.rfind("}"), None
    with contextlib.suppress(ValueError, RecursionError):
        answer = json.loads(content[start : end + 1], strict=False) if 0 <= start < end else None
    if not isinstance(answer, dict):
        raise UnreadableAnswerError(f"got {content[:80]!r}, expected a JSON object")
    texts = {}
    for name in asked:
        value = answer.get(name)
        if isinstance(value, list) and all(isinstance(line, str) for line in value):
            value = "\n".join(value)
        if isinstance(value, str) and value.strip():
            texts[name] = value.strip()
    return texts


def check_caption(name: str, text: str, states: Mapping[str, int], emotion: str | None) -> tuple[str, str | None]:
    """The text as it is kept, and what is wrong with it or None."""
    if len(text) > MAX_CHARACTERS:
        return text, f"has {len(text)} characters, expected {MAX_CHARACTERS} at most"
    if name == "vl_fau_local":
        return _check_local(text, states)
    active = [au for au, state in states.items() if state == 1]
    named = named_aus(text)
    if wrong := [au for au in named if au not in active]:
        verb = "is not active" if len(wrong) == 1 else "are not active"
        return text, f"names {', '.join(map(_title, wrong))}, which {verb}"
    if name in _WITHOUT_CODES and _CODE.search(text):
        return text, "names action units by code, expected running text without codes"
    if name == "au_caption" and active:
        sentences = parse_au_caption(text, active)
        if missing := [au for au in active if au not in sentences]:
            return text, f"has no item for {', '.join(map(_title, missing))}"
        return numbered({au: sentences[au] for au in active}), None
    if name == "key_au_caption" and not text.lower().startswith(KEY_AU_PROMPT.lower()):
        text = f"{KEY_AU_PROMPT} {text}"
    if name in NEEDS_EMOTION and (other := _another_emotion(text, emotion)):
        return text, f"describes {other.lower()}, but the emotion is {emotion}"
    return capitalise(" ".join(text.split())) if name != "au_caption" else text, None


def _check_local(text: str, states: Mapping[str, int]) -> tuple[str, str | None]:
    known = {au: state for au, state in states.items() if state != UNKNOWN_LABEL}
    sentences = parse_au_caption(text, list(ACTION_UNITS))
    if wrong := [au for au in sentences if au not in known]:
        return text, f"describes {', '.join(map(_title, wrong))}, which was not given"
    if missing := [au for au in known if au not in sentences]:
        return text, f"has no item for {', '.join(map(_title, missing))}"
    kept = {}
    for au, state in known.items():
        match, expected = _STATE.match(sentences[au]), "active" if state == 1 else "inactive"
        if match is None or match[1].lower() != expected:
            return text, f'does not call {_title(au)} "{expected}" right after the colon'
        body = sentences[au][match.end() :]
        kept[au] = capitalise(body) if body.strip(" .") else f"{au_title(au)} is {expected}."
    return numbered(kept), None


def named_aus(text: str) -> list[str]:
    """AUs that a text names by code ("AU12", "au 12"), or by name as a title ("Lip Corner Puller")."""
    codes = [f"AU{int(number)}" for run in _CODE.findall(text) for number in re.findall(r"\d+", run)]
    return list(dict.fromkeys(codes + [_BY_TITLE[title] for title in _TITLES.findall(text)]))


def _another_emotion(text: str, emotion: str | None) -> str | None:
    """The emotion that a text names in place of its own. "Other" is described by what it is not, a compound emotion by
    its parts, and features are called neutral."""
    if emotion not in _BASIC or parse_emotion(text, [emotion]):
        return None
    return parse_emotion(text, [name for name in _BASIC if name not in (emotion, "Neutral")])


_BASIC = ("Neutral", "Anger", "Disgust", "Fear", "Happiness", "Sadness", "Surprise", "Contempt")


def _title(action_unit: str) -> str:
    return au_title(action_unit) if action_unit in ACTION_UNITS else action_unit


def judge(
    style: CaptionStyle, row: CaptionRow, answers: Sequence[str], model: str
) -> tuple[Captions | None, dict[str, str]]:
    """The finished captions or None, and what has to be corrected.

    answers: one or two. A caption that is wrong in both is written by rule, and `writer` says so.
    """
    asked, states, emotion = style.asked_of(row), style.states(row), style.emotion(row)
    good: dict[str, str] = {}
    problems: dict[str, str] = {}
    for content in answers:
        texts = read_answer(content, asked)
        problems = dict.fromkeys((name for name in asked if name not in texts), "is missing or was cut off")
        for name, text in texts.items():
            kept, problem = check_caption(name, text, states, emotion)
            if problem is None:
                good[name] = kept
            else:
                problems[name] = problem
    by_rule = [name for name in asked if name not in good]
    if by_rule and len(answers) < 2:
        return None, {name: problems.get(name, "is missing") for name in by_rule}
    fallback = style.by_rule(row).texts if by_rule else {}
    texts = {name: good.get(name) or fallback[name] for name in asked}
    writer = f"{model} (rule: {', '.join(by_rule)})" if by_rule else model
    return Captions(row.id, style.compose(row, texts), writer), {}


__all__ = ["UnreadableAnswerError", "check_caption", "judge", "named_aus", "read_answer"]
