"""Prompts: zero-shot sentences for emotions and AU states, and the chat prompts that ask for MFA's captions."""

from collections.abc import Sequence
from typing import Literal

from configuration_mf2.facs_mf2 import UNKNOWN_LABEL, LabelSet, check_action_units

from .captions_mf2 import RuleCaptioner, au_states, au_title, emotion_name
from .wording_mf2 import AU_WORDING, EMOTION_ONLY, KEY_AU_PROMPT, capitalise, emotion_wording, join_list


CaptionKind = Literal["au", "emotion", "key_au"]


def emotion_prompts(emotions: Sequence[str]) -> dict[str, str]:
    """Emotion -> the sentence that stands for it in zero-shot classification."""
    return {name: EMOTION_ONLY[0].format(emotion=emotion_wording(name).phrase) for name in emotions}


def au_state_prompts(action_units: Sequence[str]) -> dict[str, tuple[str, str]]:
    """AU -> the sentences of its active and of its resting state, as in the canonical captions."""
    wordings = {au: AU_WORDING[au] for au in check_action_units(list(action_units))}
    return {au: (f"{capitalise(w.active[0])}.", f"{capitalise(w.rest[0])}.") for au, w in wordings.items()}


# Three stages: the role, a worked question with its answer, and the cue with the ground truth of the image at hand.
_ROLES: dict[str, str] = {
    "au": (
        "You are a certified FACS coder. You look at one face and put into words how each given action unit shows. "
        "Stay with what is visible in the image: skin, brows, lids, nose, lips, chin. Add no action unit that is not "
        "given, and leave none out. Do not guess who the person is, nor age, sex or origin."
    ),
    "emotion": (
        "You are an expert in reading facial expressions. You look at one face and explain, from visible cues, why it "
        "shows the given emotion. Name the emotion, stay with what is visible, and do not guess who the person is, "
        "nor age, sex or origin."
    ),
    "key_au": (
        "You are both a certified FACS coder and an expert in reading facial expressions. You are given the active "
        "action units of a face and its emotion. Judge from the image which of these action units were decisive for "
        "the emotion: often only some of them are. Choose among the given ones only, and say so if none of them tells "
        "the emotion. Do not guess who the person is, nor age, sex or origin."
    ),
}

_TASKS: dict[str, str] = {
    "au": (
        "Describe every active action unit of the face in one short sentence each. Answer with a numbered list and "
        "nothing else; begin each item with the code, the name in brackets and a colon. Keep the whole list below 100 "
        "words. If none is active, describe the face at rest in one sentence instead."
    ),
    "emotion": (
        "Explain in one or two sentences of running text, 40 words at most, which visible cues lead to the emotion. "
        "Use no list and no action unit codes."
    ),
    "key_au": (
        f'Begin with "{KEY_AU_PROMPT}" and then say in one or two sentences, 80 words at most, which of the active '
        "action units, each by code and name in brackets, were decisive for the emotion, and why."
    ),
}

# The example is an angry face with one action unit more than anger needs, so that choosing is part of what is shown.
_EXAMPLE_AUS, _EXAMPLE_EMOTION = ("AU4", "AU7", "AU10", "AU23"), "Anger"

_EXAMPLE_ANSWERS: dict[str, str] = {
    "au": (
        "1. AU4 (Brow Lowerer): the brows are pulled down and inward, with two upright folds between them.\n"
        "2. AU7 (Lid Tightener): the lower lids are drawn tight, so that the eyes look narrow and hard.\n"
        "3. AU10 (Upper Lip Raiser): the middle of the upper lip is lifted a little toward the nose.\n"
        "4. AU23 (Lip Tightener): the lips are tense and roll in slightly, which leaves only a thin red edge."
    ),
    "emotion": (
        "The brows are pulled low over eyes that have become narrow, and the lips are tense and thin. This strain in "
        "the upper and the lower face at once conveys anger."
    ),
    "key_au": (
        f"{KEY_AU_PROMPT} AU4 (Brow Lowerer), AU7 (Lid Tightener) and AU23 (Lip Tightener) decide for anger, since the "
        "hard look under low brows and the tense lips belong to it; the slightly raised upper lip would fit disgust as "
        "well and tells less."
    ),
}


def chat_prompt(
    kind: CaptionKind,
    au_labels: Sequence[int] | None,
    emotion: int | str | None,
    label_set: str | LabelSet = "mfa",
) -> list[dict[str, str]]:
    """The messages that ask a chat model for one caption of one image: role, worked example, cue with the ground truth.

    Text only: the image belongs into the last message, which is the user's. An 'au' prompt gives the active AUs, an
    'emotion' prompt the emotion, a 'key_au' prompt both, yet never which AUs are key. What it gives must be known.
    """
    if kind not in _ROLES:
        raise ValueError(f"kind: got {kind!r}, expected one of {list(_ROLES)}")
    captioner = RuleCaptioner(label_set)
    states, name = au_states(au_labels, captioner.action_units), emotion_name(emotion, captioner.emotions)
    if kind != "emotion" and all(state == UNKNOWN_LABEL for state in states.values()):
        raise ValueError(f"au_labels: got no known label, expected at least one for a {kind!r} prompt; skip this image")
    if kind != "au" and name is None:
        raise ValueError(f"emotion: got {emotion!r}, expected a known one for a {kind!r} prompt; skip this image")
    active = tuple(au for au, state in states.items() if state == 1)
    return [
        {"role": "system", "content": f"{_ROLES[kind]}\n\n{_TASKS[kind]}"},
        {"role": "user", "content": f"An example first. {_truth(kind, _EXAMPLE_AUS, _EXAMPLE_EMOTION)}"},
        {"role": "assistant", "content": _EXAMPLE_ANSWERS[kind]},
        {"role": "user", "content": f"Now the image at hand, in the same form. {_truth(kind, active, name)}"},
    ]


def _truth(kind: str, active: tuple[str, ...], emotion: str | None) -> str:
    parts = []
    if kind != "emotion":
        parts.append(f"Active action units: {join_list([au_title(au) for au in active]) if active else 'none'}.")
    if kind != "au":
        # "Other" alone would tell a chat model nothing.
        parts.append(f"Emotion: {emotion_wording(emotion).phrase if emotion == 'Other' else emotion}.")
    return " ".join(parts)
