import pytest

from configuration_mf2.facs_mf2 import ACTION_UNITS, EMOTIONS, LABEL_SETS
from processing_mf2.captions_mf2 import RuleCaptioner, parse_au_caption, parse_emotion
from processing_mf2.prompts_mf2 import au_state_prompts, chat_prompt, emotion_prompts
from processing_mf2.wording_mf2 import KEY_AU_PROMPT


MFA = LABEL_SETS["mfa"].action_units
LABELS = [1, -1, 0, 0, 0, 0, 0, 0, 0, 0, 1, 1]


def test_zero_shot_prompts_are_the_canonical_sentences():
    prompts = emotion_prompts(EMOTIONS)
    assert prompts["Anger"] == "The face shows anger."
    assert {name: parse_emotion(text, EMOTIONS) for name, text in prompts.items()} == {name: name for name in EMOTIONS}
    states = au_state_prompts(tuple(ACTION_UNITS))
    captioner = RuleCaptioner(action_units=tuple(ACTION_UNITS))
    assert [active for active, _ in states.values()] == captioner.au_sentences([1] * len(states))
    assert [rest for _, rest in states.values()] == captioner.au_sentences([0] * len(states))


@pytest.mark.parametrize("kind", ["au", "emotion", "key_au"])
def test_chat_prompt_has_role_example_and_cue(kind):
    messages = chat_prompt(kind, LABELS, "Surprise")
    assert [message["role"] for message in messages] == ["system", "user", "assistant", "user"]
    assert all(set(message) == {"role", "content"} and message["content"] for message in messages)
    cue = messages[-1]["content"]
    assert ("AU1 (Inner Brow Raiser), AU25 (Lips Part) and AU26 (Jaw Drop)" in cue) == (kind != "emotion")
    assert ("Emotion: Surprise." in cue) == (kind != "au")
    assert "AU2 " not in cue and "AU4" not in cue
    # The example is no answer to the question at hand, and the cue gives truth only, never which AUs are key.
    assert "key" not in cue.lower() and "decisive" not in cue


def test_worked_answers_are_of_the_form_that_our_parsers_read():
    assert list(parse_au_caption(chat_prompt("au", LABELS, None)[2]["content"], MFA)) == ["AU4", "AU7", "AU10", "AU23"]
    assert parse_emotion(chat_prompt("emotion", None, "Fear")[2]["content"], EMOTIONS) == "Anger"
    key = chat_prompt("key_au", LABELS, 3)
    assert key[2]["content"].startswith(KEY_AU_PROMPT) and KEY_AU_PROMPT in key[0]["content"]


def test_a_face_at_rest_can_be_asked_for():
    assert chat_prompt("au", [0] * 12, None)[-1]["content"].endswith("Active action units: none.")
    assert "action units" not in chat_prompt("emotion", None, "Other")[-1]["content"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("story", LABELS, "Fear"), r"kind: got 'story', expected one of \['au', 'emotion', 'key_au'\]"),
        (("au", [-1] * 12, "Fear"), "au_labels: got no known label"),
        (("key_au", LABELS, -1), "emotion: got -1, expected a known one"),
        (("emotion", None, "Joy"), "emotion: got 'Joy', expected one of"),
    ],
)
def test_errors(arguments, message):
    with pytest.raises(ValueError, match=message):
        chat_prompt(*arguments)
