import pytest

from configuration_mf2.facs import LABEL_SETS
from processing_mf2.pipelines import read_labels
from processing_mf2.wording import au_state_prompts, emotion_prompts


UNITS = LABEL_SETS["mfa"].action_units


def test_emotions_stand_for_the_sentences_of_training_and_other_words_for_the_template() -> None:
    read = read_labels(["happiness", "Other", "tired"], UNITS)
    prompts = emotion_prompts(["Happiness", "Other"])
    assert read.sentences == (prompts["Happiness"], prompts["Other"], "The face shows tired.")
    assert (read.branch, read.labels) == ("emo", ("happiness", "Other", "tired"))
    assert read_labels(["tired"], UNITS, template="A {} face.").sentences == ("A tired face.",)
    assert read_labels({"tired": "The eyes close."}, UNITS).sentences == ("The eyes close.",)


def test_action_units_are_known_by_code_and_noun_and_have_a_state_at_rest() -> None:
    read = read_labels(["au 12", "Cheek raiser", "AU04"], UNITS)
    assert read.action_units == ("AU12", "AU6", "AU4") and read.branch == "au"
    prompts = au_state_prompts(read.action_units)
    assert list(zip(read.sentences, read.at_rest, strict=True)) == [prompts[unit] for unit in read.action_units]
    own = read_labels({"AU12": "A smile.", "AU6": ("Raised.", "Not raised.")}, UNITS)
    assert own.sentences == ("A smile.", "Raised.")
    assert own.at_rest == (prompts["AU12"][1], "Not raised.")


@pytest.mark.parametrize(
    ("labels", "settings", "said"),
    [
        ([], {}, "at least one label"),
        ("Happiness", {}, "expected a list"),
        (["Anger", "Anger"], {}, "different strings"),
        (["Anger", 3], {}, "different strings"),
        (["AU99", "AU12"], {}, "['AU99']"),
        (["AU12", "Happiness"], {}, "by code or noun"),
        (["lip corner pullr"], {"branch": "au"}, "did you mean 'lip corner puller'"),
        (["Hapiness"], {}, "did you mean 'Happiness'"),
        (["lip corner pullr"], {}, "did you mean 'lip corner puller'"),
        (["Anger"], {"branch": "face"}, "'emo' or 'au'"),
        (["tired"], {"template": "A face."}, "one {} for the label"),
        ({"tired": ""}, {}, "expected a sentence"),
        ({"AU12": ("a", "b", "c")}, {}, "active, at rest"),
    ],
)
def test_wrong_labels_are_named(labels: object, settings: dict[str, str], said: str) -> None:
    with pytest.raises(ValueError) as caught:
        read_labels(labels, UNITS, **settings)
    assert said in str(caught.value)
