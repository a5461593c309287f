"""The chat prompts that ask for captions."""

import hashlib
import json
from collections.abc import Mapping, Sequence

from configuration_mf2.facs import UNKNOWN_LABEL, LabelSet
from processing_mf2.captions import RuleCaptioner, au_states, au_title, emotion_name
from processing_mf2.wording import KEY_AU_PROMPT, emotion_wording, join_list


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
    "both": (
        "You are both a certified FACS coder and an expert in reading facial expressions. You look at one face and are "
        "given what holds of it: its active action units and its emotion. Stay with what is visible and with what is "
        "given: add no action unit and no other emotion. Do not guess who the person is, nor age, sex or origin."
    ),
}

_TEXT_ONLY = (
    "No image comes with the question: describe how the given labels usually look on a face, and nothing that only an "
    "image could tell."
)

_TASKS: dict[str, str] = {
    "au_caption": (
        "Describe every active action unit of the face in one short sentence each, as a numbered list, one item a "
        "line; begin each item with the code, the name in brackets and a colon. Keep the whole list below 100 words. "
        "If none is active, describe the face at rest in one sentence instead."
    ),
    "emotion_caption": (
        "Explain in one or two sentences of running text, 40 words at most, which visible cues lead to the emotion. "
        "Use no list and no action unit codes."
    ),
    "key_au_caption": (
        f'Begin with "{KEY_AU_PROMPT}" and then say in one or two sentences, 80 words at most, which of the active '
        "action units, each by code and name in brackets, were decisive for the emotion, and why. Often only some of "
        "them are: judge for yourself, choose among the active ones only, and say so if none of them tells the emotion."
    ),
    "exp_blip_au": (
        "Tell in one sentence, 30 words at most, what the muscles of the face do: one verb form for each active action "
        "unit, no codes. If none is active, say that the face is at rest."
    ),
    "exp_blip_emot": "Tell in one short sentence which emotion the face shows. Say nothing of single features.",
    "exp_blip_exp": (
        "Join both in one or two sentences, 40 words at most, no codes: what the face does, and that it implies the "
        "emotion, or shows it in spite of that."
    ),
    "vl_fau_global": (
        "Describe in one sentence, 40 words at most, no codes, all active action units of the whole face. If none is "
        "active, say that the face is at rest."
    ),
    "vl_fau_local": (
        "Describe each given action unit in turn, the inactive ones too, as a numbered list, one item a line; begin "
        'each item with the code, the name in brackets and a colon, then the word "active" or "inactive" and a comma, '
        "then at most 15 words on what that place of the face looks like."
    ),
}
CHAT_CAPTIONS = tuple(_TASKS)

_NEEDS_AUS = frozenset(_TASKS) - {"emotion_caption", "exp_blip_emot"}
NEEDS_EMOTION = frozenset({"emotion_caption", "key_au_caption", "exp_blip_emot", "exp_blip_exp"})

# The example is an angry face with one action unit more than anger needs, so that choosing is part of what is shown.
_EXAMPLE_AUS, _EXAMPLE_INACTIVE, _EXAMPLE_EMOTION = ("AU4", "AU7", "AU10", "AU23"), ("AU12", "AU25"), "Anger"

_EXAMPLE_ANSWERS: dict[str, str] = {
    "au_caption": (
        "1. AU4 (Brow Lowerer): the brows are pulled down and inward, with two upright folds between them.\n"
        "2. AU7 (Lid Tightener): the lower lids are drawn tight, so that the eyes look narrow and hard.\n"
        "3. AU10 (Upper Lip Raiser): the middle of the upper lip is lifted a little toward the nose.\n"
        "4. AU23 (Lip Tightener): the lips are tense and roll in slightly, which leaves only a thin red edge."
    ),
    "emotion_caption": (
        "The brows are pulled low over eyes that have become narrow, and the lips are tense and thin. This strain in "
        "the upper and the lower face at once conveys anger."
    ),
    "key_au_caption": (
        f"{KEY_AU_PROMPT} AU4 (Brow Lowerer), AU7 (Lid Tightener) and AU23 (Lip Tightener) decide for anger, since the "
        "hard look under low brows and the tense lips belong to it; the slightly raised upper lip would fit disgust as "
        "well and tells less."
    ),
    "exp_blip_au": "The face lowers its brows, tightens its lids, lifts the upper lip and tightens both lips.",
    "exp_blip_emot": "The face shows anger.",
    "exp_blip_exp": "The face lowers its brows and tightens lids and lips, which together imply anger.",
    "vl_fau_global": "Low brows, tight lids, a lifted upper lip and tense, thin lips are seen across the whole face.",
    "vl_fau_local": (
        "1. AU4 (Brow Lowerer): active, the brows are drawn down and two upright folds stand between them.\n"
        "2. AU7 (Lid Tightener): active, the lower lids are tense and narrow the eyes.\n"
        "3. AU10 (Upper Lip Raiser): active, the middle of the upper lip is lifted.\n"
        "4. AU12 (Lip Corner Puller): inactive, the corners of the mouth lie level.\n"
        "5. AU23 (Lip Tightener): active, the red of the lips is thin and tense.\n"
        "6. AU25 (Lips Part): inactive, no gap shows between the lips."
    ),
}

_ANSWER_FORM = "Answer with one JSON object and nothing else. It has exactly these keys, each with one text:"
_AGAIN = "Your answer cannot be used as it is:\n{problems}\nGive the whole JSON object again, corrected."


def known_captions(captions: Sequence[str], has_aus: bool, has_emotion: bool) -> tuple[str, ...]:
    """Those of the captions that can be asked for when AUs or the emotion are known, or both."""
    return tuple(c for c in captions if (has_aus or c not in _NEEDS_AUS) and (has_emotion or c not in NEEDS_EMOTION))


def chat_prompt(
    captions: Sequence[str],
    au_labels: Sequence[int] | None,
    emotion: int | str | None,
    label_set: str | LabelSet = "mfa",
    *,
    with_image: bool = True,
) -> list[dict[str, str]]:
    """The messages that ask a chat model for captions of one image: role, worked example, cue with the ground truth.

    captions: some of `CHAT_CAPTIONS`, keys of the JSON object that is the answer. with_image: the image itself belongs
    into the last message; without one the prompt says so. Labels are given where a caption needs them, yet never which
    AUs are key.
    """
    unknown = [name for name in captions if name not in _TASKS]
    if unknown or not captions:
        raise ValueError(f"captions: got {list(captions)}, expected some of {list(_TASKS)}")
    captioner = RuleCaptioner(label_set)
    states, name = au_states(au_labels, captioner.action_units), emotion_name(emotion, captioner.emotions)
    has_aus = any(state != UNKNOWN_LABEL for state in states.values())
    if lacking := [c for c in captions if c not in known_captions([c], has_aus, True)]:
        raise ValueError(f"au_labels: got no known label, expected at least one for {lacking}; leave these out")
    if lacking := [c for c in captions if c not in known_captions([c], True, name is not None)]:
        raise ValueError(f"emotion: got {emotion!r}, expected a known one for {lacking}; leave these out")
    active = tuple(au for au, state in states.items() if state == 1)
    inactive = tuple(au for au, state in states.items() if state == 0)
    tasks = "\n".join(f'- "{name}": {_TASKS[name]}' for name in captions)
    role = {(True, True): "both", (True, False): "au", (False, True): "emotion"}[_needs(captions)]
    rules = [_ROLES[role], *([] if with_image else [_TEXT_ONLY]), f"{_ANSWER_FORM}\n{tasks}"]
    example = _truth(captions, _EXAMPLE_AUS, _EXAMPLE_INACTIVE, _EXAMPLE_EMOTION)
    answer = json.dumps({name: _EXAMPLE_ANSWERS[name] for name in captions})
    cue = f"Now the {'image' if with_image else 'face'} at hand, in the same form."
    return [
        {"role": "system", "content": "\n\n".join(rules)},
        {"role": "user", "content": f"An example first. {example}"},
        {"role": "assistant", "content": answer},
        {"role": "user", "content": f"{cue} {_truth(captions, active, inactive, name)}"},
    ]


def correction_prompt(problems: Mapping[str, str]) -> str:
    """Sends an answer back. problems: caption -> what is wrong with it."""
    return _AGAIN.format(problems="\n".join(f'- "{name}" {problem}.' for name, problem in problems.items()))


def answer_schema(captions: Sequence[str]) -> dict:
    """The JSON schema of the answer to `chat_prompt`."""
    texts = {name: {"type": "string"} for name in captions}
    return {"type": "object", "properties": texts, "required": list(captions), "additionalProperties": False}


def prompt_version(captions: Sequence[str], with_image: bool = True) -> str:
    """A short digest of the prompts, apart from the labels of the image."""
    texts = [chat_prompt((name,), [1, 0], "Anger", _TWO_AUS, with_image=with_image) for name in captions]
    texts += [chat_prompt(captions, [1, 0], "Anger", _TWO_AUS, with_image=with_image), _AGAIN]
    return hashlib.sha256(json.dumps(texts).encode()).hexdigest()[:12]


_TWO_AUS = LabelSet(("AU4", "AU12"), ("Neutral", "Anger"))


def _needs(captions: Sequence[str]) -> tuple[bool, bool]:
    """The action units, the emotion."""
    return not _NEEDS_AUS.isdisjoint(captions), not NEEDS_EMOTION.isdisjoint(captions)


def _truth(captions: Sequence[str], active: Sequence[str], inactive: Sequence[str], emotion: str | None) -> str:
    parts = []
    needs_aus, needs_emotion = _needs(captions)
    if needs_aus:
        parts.append(f"Active action units: {_titles(active)}.")
    if "vl_fau_local" in captions:
        parts.append(f"Inactive action units: {_titles(inactive)}.")
    if needs_emotion:
        # "Other" alone would tell a chat model nothing.
        parts.append(f"Emotion: {emotion_wording(emotion).phrase if emotion == 'Other' else emotion}.")
    return " ".join(parts)


def _titles(action_units: Sequence[str]) -> str:
    return join_list([au_title(au) for au in action_units]) if action_units else "none"
