"""Rule captions are grammatical, read back exactly and silent about unknown labels."""

import itertools
import re

import numpy as np
import pytest

from configuration_mf2.facs import ACTION_UNITS, EMOTIONS, LABEL_SETS
from processing_mf2.captions import (
    EXP_BLIP_VARIANTS,
    NEUTRAL_CAPTION,
    PARTLY_NEUTRAL_CAPTION,
    RuleCaptioner,
    au_sentence_state,
    caption_disagrees,
    caption_grammar,
    parse_au_caption,
    parse_emotion,
    split_au_caption,
)
from processing_mf2.pipelines import read_labels
from processing_mf2.wording import (
    AU_WORDING,
    KEY_AU_PROMPT,
    au_state_prompts,
    emotion_prompts,
    emotion_wording,
    third_person,
)


MFA = LABEL_SETS["mfa"].action_units
ALL_AUS = tuple(ACTION_UNITS)
SEEDS = (None, 0, 1, 2)


def generator(seed):
    return None if seed is None else np.random.default_rng(seed)


def labels(*active, action_units=MFA, unknown=()):
    return [-1 if au in unknown else int(au in active) for au in action_units]


def tokens(text):
    """Rather more than BERT makes: a word counts once for every seven letters, a code such as AU12 twice."""
    words = re.findall(r"[A-Za-z]+\d+|[A-Za-z]+|\d+|[^\w\s]", text)
    return sum(2 if re.fullmatch(r"AU\d+", word) else -(-len(word) // 7) for word in words)


def every_caption(captioner, au_labels, emotion, rng):
    return [
        *captioner.au_sentences(au_labels, rng),
        captioner.emotion_caption(au_labels, emotion, rng),
        captioner.key_au_caption(au_labels, emotion, rng),
        *(captioner.exp_blip_caption(au_labels, emotion, variant, rng) for variant in EXP_BLIP_VARIANTS),
        *captioner.vl_fau_local(au_labels, rng),
        captioner.vl_fau_global(au_labels, rng),
    ]


def check_grammar(text):
    assert text[0].isupper() and text.endswith("."), text
    assert "  " not in text and " ." not in text and " ," not in text and ".." not in text, text
    assert "{" not in text and "}" not in text, text
    assert not re.search(r"\ba [aeiou]|\ban [^aeiou]", text), text
    assert not re.search(r", and |,\S", text), text
    # One singular thing takes a singular verb, two or more a plural one.
    assert not re.search(r"^An? \w+(?: \w+)? (?:point|are|come|suggest)\b", text), text
    assert not re.search(r" and [^.,:]*?\b(?:points|is visible|suggests|is also|is active|is decisive)\b", text), text
    assert not re.search(r"(?:brows|cheeks|corners|eyelids|lips) (?:is|points|comes|suggests)\b", text), text


@pytest.mark.parametrize("seed", SEEDS)
def test_au_caption_round_trip_is_exact_for_every_combination(seed):
    captioner, rng = RuleCaptioner(), generator(seed)
    for combination in itertools.product((0, 1), repeat=len(MFA)):
        caption = captioner.au_caption(combination, rng)
        active = [au for au, value in zip(MFA, combination, strict=True) if value]
        parsed = parse_au_caption(caption, MFA)
        assert list(parsed) == active
        for au, sentence in parsed.items():
            assert sentence[0].lower() + sentence[1:-1] in AU_WORDING[au].active
        assert (caption == NEUTRAL_CAPTION) == (not active)


def test_every_phrasing_survives_the_round_trip_however_it_is_set():
    for au, wording in AU_WORDING.items():
        noun = ACTION_UNITS[au].noun.title()
        title = f"{au} ({noun})"
        spaced = title.lower().replace("(", "( ").replace(")", " )")
        for phrase in wording.active:
            sentence = f"{phrase[0].upper()}{phrase[1:]}."
            items = [f"1. {title}: {phrase}.", f"**1.{title}**: {sentence}", f"3. **{title}:** {phrase}"]
            items += [f"- **{title}**: {phrase}.", f"{title}: {phrase}.", f"2) {title.lower()}: {phrase}."]
            for text in (*items, f"1 . {spaced} : {phrase} .", f"{au}: {phrase}.", f"{au} - {noun}: {phrase}."):
                assert parse_au_caption(text, ALL_AUS) == {au: sentence}, text


@pytest.mark.parametrize("joint", [" ", "\n", "\n\n", "\r\n"])
def test_parser_finds_items_on_one_line_and_on_many(joint):
    items = ["1. AU1 (Inner Brow Raiser): the brows rise, as AU2 would do.", "2.AU12 (Smile): up", "10. AU26: open."]
    parsed = parse_au_caption(joint.join(items), MFA)
    assert parsed == {"AU1": "The brows rise, as AU2 would do.", "AU12": "Up.", "AU26": "Open."}


def test_split_gives_every_known_au_a_sentence():
    text = "1. AU1 (Inner Brow Raiser): sorrow lifts the brows.\n2. AU4 (Brow Lowerer): a deep frown."
    au_labels = labels("AU1", "AU12", unknown=("AU2",))
    sentences = dict(zip(MFA, split_au_caption(text, au_labels, MFA), strict=True))
    assert sentences["AU1"] == "Sorrow lifts the brows."
    assert sentences["AU12"] == "The lip corners are pulled up."  # left out by the caption
    assert sentences["AU4"] == "The brows are not lowered."  # the label decides
    assert sentences["AU2"] == ""
    captioner = RuleCaptioner()
    for seed in SEEDS:
        caption = captioner.au_caption(au_labels, generator(seed))
        assert split_au_caption(caption, au_labels, MFA, generator(seed)) == captioner.au_sentences(
            au_labels, generator(seed)
        )


def test_unknown_labels_are_never_mentioned():
    captioner = RuleCaptioner()
    unknown = ("AU4", "AU12", "AU26")
    au_labels = labels("AU1", "AU6", unknown=unknown)
    for seed in range(20):
        for emotion in (*EMOTIONS, None):
            texts = every_caption(captioner, au_labels, emotion, generator(seed))
            texts.append(captioner.au_caption(au_labels, generator(seed)))
            for au, text in itertools.product(unknown, texts):
                assert not re.search(rf"\b{au}\b", text)
                assert AU_WORDING[au].cue not in text.lower() or AU_WORDING[au].cue in AU_WORDING["AU6"].cue
    nothing = [-1] * len(MFA)
    assert captioner.au_caption(nothing) == captioner.emotion_caption(nothing, None) == ""
    assert captioner.key_au_caption(nothing, "Fear") == captioner.key_au_caption(labels("AU1"), -1) == ""
    assert captioner.emotion_caption(nothing, "Fear") == "The face shows fear."
    assert not any(every_caption(captioner, None, None, None))
    # Some unknown, none active: nothing is claimed about the whole face.
    some = labels(unknown=("AU1",))
    assert captioner.au_caption(some) == captioner.vl_fau_global(some) == PARTLY_NEUTRAL_CAPTION
    assert captioner.emotion_caption(some, "Anger") == "The face shows anger."


@pytest.mark.parametrize("name", LABEL_SETS)
def test_every_label_set_is_written_in_correct_grammar(name):
    captioner = RuleCaptioner(name)
    size, rng = len(captioner.action_units), np.random.default_rng(0)
    for trial in range(300):
        au_labels = np.where(rng.random(size) < 0.1, -1, rng.random(size) < rng.choice([0.0, 0.15, 0.5]))
        emotion = int(rng.integers(-1, len(captioner.emotions))) if captioner.emotions else None
        for text in every_caption(captioner, au_labels, emotion, rng if trial % 3 else None):
            if text:
                check_grammar(text)
        parsed = parse_au_caption(captioner.au_caption(au_labels, rng), captioner.action_units)
        assert list(parsed) == [au for au, v in zip(captioner.action_units, au_labels, strict=True) if v == 1]


@pytest.mark.parametrize("name", [name for name, label_set in LABEL_SETS.items() if label_set.emotions])
def test_emotion_is_read_back_from_every_caption(name):
    emotions = LABEL_SETS[name].emotions
    captioner = RuleCaptioner(action_units=ALL_AUS, emotions=emotions)
    rng = np.random.default_rng(0)
    for _ in range(100):
        au_labels = rng.random(len(ALL_AUS)) < rng.choice([0.0, 0.1, 0.4])
        for emotion in emotions:
            assert parse_emotion(captioner.emotion_caption(au_labels, emotion, rng), emotions) == emotion
            assert parse_emotion(captioner.key_au_caption(au_labels, emotion, rng), emotions) == emotion
            assert parse_emotion(captioner.exp_blip_caption(au_labels, emotion, "exp", rng), emotions) == emotion


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("Happiness", "Happiness"),
        ("other.", "Other"),
        ("He looks happy and full of JOY.", "Happiness"),
        ("Raised brows may mean fear or surprise; the open mouth tells surprise.", "Surprise"),
        ("The lips press against each other.", None),
        ("", None),
    ],
)
def test_emotion_is_found_in_free_text(text, expected):
    assert parse_emotion(text, EMOTIONS) == expected


def test_key_au_caption_names_only_active_typical_aus():
    captioner = RuleCaptioner()
    rng = np.random.default_rng(0)
    for _ in range(300):
        au_labels = (rng.random(len(MFA)) < 0.3).astype(int)
        active = {au for au, value in zip(MFA, au_labels, strict=True) if value}
        for emotion in EMOTIONS:
            caption = captioner.key_au_caption(au_labels, emotion, rng)
            assert caption.startswith(f"{KEY_AU_PROMPT} ")
            check_grammar(caption)
            assert set(re.findall(r"AU\d+", caption)) <= active
            # A key AU stands with its name, another active one with its code alone.
            keys = set(re.findall(r"AU\d+(?= \()", caption))
            assert keys == active & set(emotion_wording(emotion).typical)
            assert keys or "none" in caption


def test_exp_blip_forms():
    captioner = RuleCaptioner()
    smile = labels("AU6", "AU12")
    facts = "The face raises cheek and pulls lip corner"
    assert captioner.exp_blip_caption(smile, "Happiness", "au") == f"{facts}."
    assert captioner.exp_blip_caption(smile, "Happiness", "emot") == "The face shows happiness."
    assert captioner.exp_blip_caption(smile, "Happiness", "cat") == f"{facts}. The face shows happiness."
    assert captioner.exp_blip_caption(smile, "Happiness", "exp") == f"{facts}, which implies happiness."
    mixed = {captioner.exp_blip_caption(smile, "Happiness", "mix", generator(seed)) for seed in range(20)}
    assert mixed == {f"{facts}.", "The face shows happiness."}
    for variant in ("mix", "cat", "exp"):  # the known half
        assert captioner.exp_blip_caption(smile, None, variant) == f"{facts}."
        assert captioner.exp_blip_caption(None, "Fear", variant) == "The face shows fear."
    everything = RuleCaptioner(action_units=ALL_AUS).exp_blip_caption([1] * len(ALL_AUS), None, "au")
    for form in ("presses lips", "stretches lips", "stretches mouth", "sticks tongue out", "closes eyes", "shows lip"):
        assert form in everything
    assert (third_person("carry"), third_person("play")) == ("carries", "plays")


def test_wording_varies_with_the_seed_and_only_with_it():
    captioner = RuleCaptioner()
    au_labels = labels("AU1", "AU4", "AU15", "AU25")
    write = lambda seed: (  # noqa: E731
        captioner.au_caption(au_labels, generator(seed)),
        *every_caption(captioner, au_labels, "Sadness", generator(seed)),
    )
    assert write(3) == write(3)
    assert write(None) == write(None)
    assert len({captioner.au_caption(au_labels, generator(seed)) for seed in range(30)}) > 15
    assert len({captioner.emotion_caption(au_labels, "Sadness", generator(seed)) for seed in range(60)}) == 15
    # What is written of an AU does not hang on another AU's label.
    one, two = (captioner.au_sentences(row, generator(5)) for row in (au_labels, labels("AU4", "AU15", "AU25")))
    assert [a == b for a, b in zip(one, two, strict=True)].count(False) == 1


def test_captions_keep_within_the_token_limits():
    captioner = RuleCaptioner()
    rng = np.random.default_rng(0)
    longest = {"emotion": 0, "sentences": 0, "sentences of 12": 0, "list of 8": 0}
    for _ in range(1500):
        row = rng.permutation(len(MFA))
        for active in (6, 8, 12):
            au_labels = (row < active).astype(int)
            emotion = captioner.emotion_caption(au_labels, int(rng.integers(8)), rng)
            longest["emotion"] = max(longest["emotion"], tokens(emotion) + 2)
            key = {6: "sentences", 12: "sentences of 12"}.get(active)
            if key:
                total = sum(tokens(sentence) + 2 for sentence in captioner.au_sentences(au_labels, rng))
                longest[key] = max(longest[key], total)
            if active == 8:
                longest["list of 8"] = max(longest["list of 8"], tokens(captioner.au_caption(au_labels, rng)) + 2)
    print(longest)
    assert longest["emotion"] <= 61
    assert longest["sentences"] <= 169 and longest["sentences of 12"] <= 169 and longest["list of 8"] <= 169


@pytest.mark.parametrize("name", LABEL_SETS)
def test_grammar_holds_every_word_the_writer_can_say(name):
    captioner = RuleCaptioner(name)
    phrases = list(caption_grammar(name))
    assert len(set(phrases)) == len(phrases) and all(phrases)
    known = {word for phrase in phrases for word in re.findall(r"\w+|[^\w\s]", phrase)}
    rng = np.random.default_rng(0)
    for _ in range(200):
        au_labels = rng.integers(-1, 2, len(captioner.action_units))
        emotion = int(rng.integers(-1, len(captioner.emotions))) if captioner.emotions else None
        texts = [*every_caption(captioner, au_labels, emotion, rng), captioner.au_caption(au_labels, rng)]
        assert {word for text in texts for word in re.findall(r"\w+|[^\w\s]", text)} <= known


def test_labels_may_be_arrays_names_or_indices():
    captioner = RuleCaptioner()
    as_list = captioner.emotion_caption(labels("AU12"), "Happiness")
    assert captioner.emotion_caption(np.array(labels("AU12"), dtype=np.int8), np.int64(4)) == as_list


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda c: c.emotion_caption(None, "Hapiness"), r"emotion: got 'Hapiness', expected one of \['Neutral', .*"),
        (lambda c: c.emotion_caption(None, 8), "emotion: got 8, expected one of"),
        (lambda c: c.emotion_caption(None, -2), "emotion: got -2"),
        (lambda c: c.au_caption([1, 0]), "au_labels: got 2 values, expected 12, one for each of"),
        (lambda c: c.au_caption([3] + [0] * 11), "au_labels: got 3 for AU1, expected 1"),
        (lambda c: c.exp_blip_caption(None, None, "both"), "variant: got 'both', expected one of"),
        (lambda c: RuleCaptioner("mfb"), "label_set: got 'mfb', expected one of"),
        (lambda c: RuleCaptioner(action_units=["AU3"]), r"action_units: got \['AU3'\]"),
        (lambda c: RuleCaptioner(emotions=["Fear", ""]), "emotions: got"),
    ],
)
def test_errors_name_what_was_got_and_what_is_valid(call, message):
    with pytest.raises(ValueError, match=message):
        call(RuleCaptioner())


def test_a_sentence_tells_the_state_of_its_unit():
    captioner = RuleCaptioner("mfa")
    for seed, state in itertools.product(range(5), (0, 1)):
        said = captioner.au_sentences([state] * len(MFA), generator(seed))
        assert {au_sentence_state(text, name) for text, name in zip(said, MFA, strict=True)} == {state}
    for text, unit, state in (
        ("", "AU1", 0),
        ("the outer brows move up.", "AU1", 0),  # another unit's
        ("THE OUTER BROWS  MOVE UP", "AU2", 1),
        ("Deep lines cross the forehead as the brows climb.", "AU1", 1),  # free words
    ):
        assert au_sentence_state(text, unit) == state


def test_emotions_stand_for_the_sentences_of_training_and_other_words_for_the_template() -> None:
    read = read_labels(["happiness", "Other", "tired"], MFA)
    prompts = emotion_prompts(["Happiness", "Other"])
    assert read.sentences == (prompts["Happiness"], prompts["Other"], "The face shows tired.")
    assert (read.branch, read.labels) == ("emo", ("happiness", "Other", "tired"))
    assert read_labels(["tired"], MFA, template="A {} face.").sentences == ("A tired face.",)
    assert read_labels({"tired": "The eyes close."}, MFA).sentences == ("The eyes close.",)


def test_a_caption_disagrees_with_other_labels_than_its_own() -> None:
    captioner, rng = RuleCaptioner(), generator(0)
    for _ in range(60):
        labels, emotion = (
            rng.integers(0, 2, len(MFA)).tolist(),
            captioner.emotions[int(rng.integers(len(captioner.emotions)))],
        )
        active = dict(zip(MFA, map(bool, labels), strict=True))
        for caption in (
            captioner.emotion_caption(labels, emotion, rng),
            captioner.key_au_caption(labels, emotion, rng),
        ):
            assert not caption_disagrees(caption, emotion, captioner.emotions, active), (caption, emotion, active)
    smile = "Raised cheeks and raised lip corners point to happiness. A dropped jaw is also visible."
    active = dict.fromkeys(("AU6", "AU12", "AU26"), True) | {"AU1": False}
    assert not caption_disagrees(smile, "Happiness", captioner.emotions, active)
    assert caption_disagrees(smile, "Sadness", captioner.emotions, active)
    assert caption_disagrees(smile, "Happiness", captioner.emotions, active | {"AU26": False})
    assert caption_disagrees("Key action units: AU1 is decisive.", None, [], active)


def test_action_units_are_known_by_code_and_noun_and_have_a_state_at_rest() -> None:
    read = read_labels(["au 12", "Cheek raiser", "AU04"], MFA)
    assert read.action_units == ("AU12", "AU6", "AU4") and read.branch == "au"
    prompts = au_state_prompts(read.action_units)
    assert list(zip(read.sentences, read.at_rest, strict=True)) == [prompts[unit] for unit in read.action_units]
    own = read_labels({"AU12": "A smile.", "AU6": ("Raised.", "Not raised.")}, MFA)
    assert own.sentences == ("A smile.", "Raised.")
    assert own.at_rest == (prompts["AU12"][1], "Not raised.")


@pytest.mark.parametrize(
    ("labels", "settings", "said"),
    [
        ([], {}, "got []"),
        ("Happiness", {}, "expected a list"),
        (["Anger", "Anger"], {}, "different labels"),
        (["Anger", 3], {}, "different labels"),
        (["AU99", "AU12"], {}, "['AU99']"),
        (["AU12", "Happiness"], {}, "by code or noun"),
        (["Hapiness"], {}, "did you mean 'Happiness'"),
        (["lip corner pullr"], {}, "did you mean 'lip corner puller'"),
        (["Anger"], {"branch": "face"}, "branch"),
        (["tired"], {"template": "A face."}, "one {} for the label"),
        ({"tired": ""}, {}, "expected a sentence"),
        ({"AU12": ("a", "b", "c")}, {}, "active, at rest"),
    ],
)
def test_wrong_labels_are_named(labels: object, settings: dict[str, str], said: str) -> None:
    with pytest.raises(ValueError) as caught:
        read_labels(labels, MFA, **settings)
    assert said in str(caught.value)
