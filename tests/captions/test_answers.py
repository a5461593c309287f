"""Prompts, and the check of what a chat model answered."""

import json
import re

import pytest

from configuration_mf2.facs import EMOTIONS, LABEL_SETS
from mf2face.captions.check import UnreadableAnswerError, check_caption, judge, named_aus, read_answer
from mf2face.captions.prompts import CHAT_CAPTIONS, answer_schema, chat_prompt, known_captions, prompt_version
from mf2face.captions.styles import CaptionRow, CaptionStyle
from processing_mf2.captions import parse_au_caption, parse_emotion
from processing_mf2.wording import KEY_AU_PROMPT


MFA = LABEL_SETS["mfa"].action_units
LABELS = [1, -1, 0, 0, 0, 0, 0, 0, 0, 0, 1, 1]
MFA_CAPTIONS = ("au_caption", "emotion_caption", "key_au_caption")


@pytest.mark.parametrize("captions", [(name,) for name in CHAT_CAPTIONS] + [MFA_CAPTIONS])
def test_chat_prompt_has_role_example_and_cue(captions):
    messages = chat_prompt(captions, LABELS, "Surprise")
    assert [message["role"] for message in messages] == ["system", "user", "assistant", "user"]
    assert list(json.loads(messages[2]["content"])) == list(captions) == answer_schema(captions)["required"]
    assert all(f'"{name}":' in messages[0]["content"] for name in captions)
    cue = messages[-1]["content"]
    has_units = "AU1 (Inner Brow Raiser), AU25 (Lips Part) and AU26 (Jaw Drop)" in cue
    assert has_units == (captions not in {("emotion_caption",), ("exp_blip_emot",)})
    # Nothing is said of unknown AUs, of inactive ones only where a description is asked for, never which AUs are key.
    assert "AU2 " not in cue and ("AU4 (Brow Lowerer)" in cue) == ("vl_fau_local" in captions)
    assert "key" not in cue.lower() and "decisive" not in cue


def test_truth_is_given_where_it_is_needed_only():
    assert "Emotion: Surprise." in chat_prompt(("key_au_caption",), LABELS, "Surprise")[-1]["content"]
    assert "Emotion" not in chat_prompt(("au_caption",), LABELS, "Surprise")[-1]["content"]
    assert chat_prompt(("au_caption",), [0] * 12, None)[-1]["content"].endswith("Active action units: none.")
    assert "action units" not in chat_prompt(("emotion_caption",), None, "Other")[-1]["content"]
    for images, has_aus, has_emotion in ((("au_caption",), True, False), (("emotion_caption",), False, True)):
        assert known_captions(MFA_CAPTIONS, has_aus, has_emotion) == images
    assert known_captions(CHAT_CAPTIONS, False, False) == ()
    for lacking, message in (
        ((("story",), LABELS, "Fear"), r"captions: got \['story'\]"),
        ((("au_caption",), [-1] * 12, "Fear"), "au_labels: got no known label"),
        ((("key_au_caption",), LABELS, -1), "emotion: got -1"),
        ((("emotion_caption",), None, "Joy"), "emotion: got 'Joy'"),
    ):
        with pytest.raises(ValueError, match=message):
            chat_prompt(*lacking)


def test_worked_answers_are_of_the_form_that_our_parsers_read():
    example = json.loads(chat_prompt(CHAT_CAPTIONS, LABELS, 3)[2]["content"])
    assert list(parse_au_caption(example["au_caption"], MFA)) == ["AU4", "AU7", "AU10", "AU23"]
    local = parse_au_caption(example["vl_fau_local"], MFA)
    assert [au for au, text in local.items() if text.startswith("Inactive, ")] == ["AU12", "AU25"]
    assert {parse_emotion(example[name], EMOTIONS) for name in ("emotion_caption", "exp_blip_emot")} == {"Anger"}
    assert example["key_au_caption"].startswith(KEY_AU_PROMPT)


def test_a_prompt_without_image_says_so_and_is_another_version():
    texts = [chat_prompt(MFA_CAPTIONS, LABELS, 3, with_image=image)[0]["content"] for image in (True, False)]
    assert "No image" not in texts[0] and "No image" in texts[1]
    versions = {prompt_version(captions, image) for captions in (MFA_CAPTIONS, ("au_caption",)) for image in (0, 1)}
    assert len(versions) == 4 and prompt_version(MFA_CAPTIONS) in versions


STYLE = CaptionStyle("mfa")
ROW = CaptionRow("a", [1, 0, 0, -1, 0, 0, 1, 0, 0, 0, 0, 0], "Happiness")  # AU1 and AU12; AU6 is unknown
STATES = STYLE.states(ROW)
GOOD = {
    "au_caption": "1. AU1 (Inner Brow Raiser): the inner brows rise.\n2. AU12 (Lip Corner Puller): a smile.",
    "emotion_caption": "Raised lip corners show happiness.",
    "key_au_caption": "Key action units: AU12 (Lip Corner Puller) tells happiness.",
}


def problem(name, text, emotion="Happiness", states=STATES):
    return check_caption(name, text, states, emotion)[1]


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        (json.dumps(GOOD), GOOD),
        (f"```json\n{json.dumps(GOOD, indent=1)}\n```", GOOD),
        (f"Here you are: {json.dumps(GOOD)} Anything else?", GOOD),
        ('{"au_caption": ["1. a", "2. b"], "emotion_caption": 3}', {"au_caption": "1. a\n2. b"}),
        ('{"au_caption": "1. a\n2. b"}', {"au_caption": "1. a\n2. b"}),  # a bare line break
    ],
)
def test_answers_are_read_with_what_stands_around_them(content, expected):
    assert read_answer(content, tuple(GOOD)) == expected


@pytest.mark.parametrize("content", ["", "no", "{", '{"au_caption": "1. AU', "[1]", '{"a": 1}}', '{"a":' * 9999 + "}"])
def test_what_is_no_object_is_unreadable(content):
    with pytest.raises(UnreadableAnswerError, match="expected a JSON object"):
        read_answer(content, tuple(GOOD))


@pytest.mark.parametrize(
    ("name", "text", "emotion", "states"),
    [
        *((name, text, "Happiness", STATES) for name, text in GOOD.items()),
        ("au_caption", "All at rest.", "Happiness", dict.fromkeys(STATES, 0)),
        ("key_au_caption", "none of them tells; it shows happiness", "Happiness", STATES),
        # An emotion may be compared with others, and a vague one cannot be refused.
        ("emotion_caption", "No anger and no fear, and no anger: happiness.", "Happiness", STATES),
        ("emotion_caption", "A joyful face.", "Happiness", STATES),
        ("emotion_caption", "Neither anger nor fear.", "Other", STATES),
        ("emotion_caption", "Both happiness and surprise.", "Happily Surprised", STATES),
    ],
)
def test_true_captions_pass(name, text, emotion, states):
    assert problem(name, text, emotion, states) is None


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("au_caption", GOOD["au_caption"] + "\n3. AU2 (Outer Brow Raiser): up.", "names AU2 .*which is not active"),
        ("au_caption", GOOD["au_caption"] + "\n3. AU6: up.", "names AU6"),
        ("au_caption", GOOD["au_caption"] + "\n3. au 9 and AU04.", r"names AU9 .*, AU4 .*, which are not active"),
        ("au_caption", "1. AU1 (Inner Brow Raiser): up.", "has no item for AU12"),
        ("au_caption", "1. AU99: up.", "names AU99, which"),
        ("key_au_caption", "Key action units: AU6 (Cheek Raiser) tells happiness.", "names AU6"),
        ("key_au_caption", "Key action units: the Cheek Raiser tells happiness.", "names AU6"),
        ("emotion_caption", "AU12 shows happiness.", "by code"),
        ("emotion_caption", "The face shows anger.", "describes anger, but the emotion is Happiness"),
        ("emotion_caption", "x" * 4000, "has 4000 characters"),
        ("exp_blip_exp", "The lips rise, which implies sadness.", "describes sadness"),
    ],
)
def test_false_captions_are_told_apart(name, text, message):
    assert re.search(message, problem(name, text) or "passed"), problem(name, text)


def test_local_descriptions_must_call_each_state_by_its_name():
    states, text = {"AU1": 1, "AU2": 0, "AU4": -1}, "1. AU1 (X): active, it is up.\n2. AU2: Inactive - level."
    expected = "1. AU1 (Inner Brow Raiser): It is up.\n2. AU2 (Outer Brow Raiser): Level."
    assert check_caption("vl_fau_local", text, states, None) == (expected, None)
    for bad, message in {
        "1. AU1: active, a.\n2. AU2: active, b.": 'AU2 .* "inactive"',
        "1. AU1: active, a.": "no item for AU2",
        "1. AU1: active, a.\n2. AU2: inactive, b.\n3. AU4: active, c.": "describes AU4",
    }.items():
        assert re.search(message, problem("vl_fau_local", bad, None, states))


@pytest.mark.parametrize("text", ["AUs 6, 7 and 12", "action units 6, 7, and 12", "AU6/7/12", "au 06, AU7 + 12"])
def test_codes_in_a_row_are_all_read(text):
    assert named_aus(f"Happiness, by {text}, in 2 places and 3 ways.") == ["AU6", "AU7", "AU12"]


def test_a_false_caption_goes_back_once_and_then_falls_to_the_rule():
    false = {**GOOD, "au_caption": "1. AU9 (Nose Wrinkler): up."}
    captions, problems = judge(STYLE, ROW, [json.dumps(false)], "m")
    assert captions is None and list(problems) == ["au_caption"] and "AU9" in problems["au_caption"]
    corrected, _ = judge(STYLE, ROW, [json.dumps(false), json.dumps(GOOD)], "m")
    assert corrected.writer == "m" and "AU12 (Lip Corner Puller): A smile." in corrected.texts["au_caption"]
    stubborn, _ = judge(STYLE, ROW, [json.dumps(false)] * 2, "m")
    assert stubborn.writer == "m (rule: au_caption)"
    assert stubborn.texts["au_caption"] == STYLE.by_rule(ROW).texts["au_caption"]
    assert stubborn.texts["emotion_caption"] == GOOD["emotion_caption"]
    refused, _ = judge(STYLE, ROW, ["{}", "{}"], "m")
    assert refused.writer == "m (rule: au_caption, emotion_caption, key_au_caption)"
    # What was right at first is kept though the second answer spoilt it.
    swapped, _ = judge(STYLE, ROW, [json.dumps(false), json.dumps({**GOOD, "emotion_caption": "Fear."})], "m")
    assert swapped.writer == "m" and swapped.texts["emotion_caption"] == GOOD["emotion_caption"]
