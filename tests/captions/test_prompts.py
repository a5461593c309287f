import json

import pytest

from configuration_mf2.facs import ACTION_UNITS, EMOTIONS, LABEL_SETS
from mf2face.captions.prompts import (
    CHAT_CAPTIONS,
    answer_schema,
    chat_prompt,
    correction_prompt,
    known_captions,
    prompt_version,
)
from processing_mf2.captions import RuleCaptioner, parse_au_caption, parse_emotion
from processing_mf2.wording import KEY_AU_PROMPT, au_state_prompts, emotion_prompts


MFA = LABEL_SETS["mfa"].action_units
LABELS = [1, -1, 0, 0, 0, 0, 0, 0, 0, 0, 1, 1]
MFA_CAPTIONS = ("au_caption", "emotion_caption", "key_au_caption")


def test_zero_shot_prompts_are_the_canonical_sentences():
    prompts = emotion_prompts(EMOTIONS)
    assert prompts["Anger"] == "The face shows anger."
    assert {name: parse_emotion(text, EMOTIONS) for name, text in prompts.items()} == {name: name for name in EMOTIONS}
    states = au_state_prompts(tuple(ACTION_UNITS))
    captioner = RuleCaptioner(action_units=tuple(ACTION_UNITS))
    assert [active for active, _ in states.values()] == captioner.au_sentences([1] * len(states))
    assert [rest for _, rest in states.values()] == captioner.au_sentences([0] * len(states))


@pytest.mark.parametrize("captions", [(name,) for name in CHAT_CAPTIONS] + [MFA_CAPTIONS])
def test_chat_prompt_has_role_example_and_cue(captions):
    messages = chat_prompt(captions, LABELS, "Surprise")
    assert [message["role"] for message in messages] == ["system", "user", "assistant", "user"]
    assert all(set(message) == {"role", "content"} and message["content"] for message in messages)
    assert list(json.loads(messages[2]["content"])) == list(captions) == answer_schema(captions)["required"]
    assert all(f'"{name}":' in messages[0]["content"] for name in captions)
    cue = messages[-1]["content"]
    told = "AU1 (Inner Brow Raiser), AU25 (Lips Part) and AU26 (Jaw Drop)" in cue
    assert told == (captions not in {("emotion_caption",), ("exp_blip_emot",)})
    # Of unknown action units nothing is said, of inactive ones only where their description is asked for.
    assert "AU2 " not in cue and ("AU4 (Brow Lowerer)" in cue) == ("vl_fau_local" in captions)
    # The example is no answer to the question at hand, and the cue gives truth only, never which AUs are key.
    assert "key" not in cue.lower() and "decisive" not in cue


def test_truth_is_given_where_it_is_needed_only():
    assert "Emotion: Surprise." in chat_prompt(("key_au_caption",), LABELS, "Surprise")[-1]["content"]
    assert "Emotion" not in chat_prompt(("au_caption",), LABELS, "Surprise")[-1]["content"]
    assert known_captions(MFA_CAPTIONS, True, False) == ("au_caption",)
    assert known_captions(MFA_CAPTIONS, False, True) == ("emotion_caption",)
    assert known_captions(CHAT_CAPTIONS, False, False) == ()


def test_worked_answers_are_of_the_form_that_our_parsers_read():
    example = json.loads(chat_prompt(CHAT_CAPTIONS, LABELS, 3)[2]["content"])
    assert list(parse_au_caption(example["au_caption"], MFA)) == ["AU4", "AU7", "AU10", "AU23"]
    local = parse_au_caption(example["vl_fau_local"], MFA)
    assert [au for au, text in local.items() if text.startswith("Inactive, ")] == ["AU12", "AU25"]
    assert {parse_emotion(example[name], EMOTIONS) for name in ("emotion_caption", "exp_blip_emot")} == {"Anger"}
    assert example["key_au_caption"].startswith(KEY_AU_PROMPT)


def test_a_face_at_rest_can_be_asked_for():
    assert chat_prompt(("au_caption",), [0] * 12, None)[-1]["content"].endswith("Active action units: none.")
    assert "action units" not in chat_prompt(("emotion_caption",), None, "Other")[-1]["content"]


def test_a_prompt_without_image_says_so_and_is_another_version():
    told = [chat_prompt(MFA_CAPTIONS, LABELS, 3, with_image=image)[0]["content"] for image in (True, False)]
    assert "No image" not in told[0] and "No image" in told[1]
    versions = {prompt_version(captions, image) for captions in (MFA_CAPTIONS, ("au_caption",)) for image in (0, 1)}
    assert len(versions) == 4 and prompt_version(MFA_CAPTIONS) in versions


def test_a_correction_names_every_problem():
    assert '- "au_caption" names AU9.\n- "b" is missing.' in correction_prompt(
        {"au_caption": "names AU9", "b": "is missing"}
    )


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((("story",), LABELS, "Fear"), r"captions: got \['story'\], expected some of \['au_caption', "),
        ((("au_caption",), [-1] * 12, "Fear"), "au_labels: got no known label"),
        ((("key_au_caption",), LABELS, -1), r"emotion: got -1, expected a known one for \['key_au_caption'\]"),
        ((("emotion_caption",), None, "Joy"), "emotion: got 'Joy', expected one of"),
    ],
)
def test_errors(arguments, message):
    with pytest.raises(ValueError, match=message):
        chat_prompt(*arguments)
