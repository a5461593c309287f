"""Words for action units and emotions: the sentences of zero-shot labels, and what captions are made of."""

import re
from collections.abc import Sequence
from dataclasses import dataclass

from configuration_mf2.facs import check_action_units


KEY_AU_PROMPT = "Key action units:"
"""Every key-AU caption begins with it, so that one decoder can be asked for this kind of caption."""

EMOTION_SENTENCE = "The face shows {emotion}."


@dataclass(frozen=True)
class AUWording:
    active: tuple[str, ...]
    rest: tuple[str, ...]
    """Very short: the sentences of an image share one budget of tokens."""
    cue: str
    """A noun phrase, with an article exactly if it is singular."""
    trace: str
    """A further trace of the action; second sentence of a local description."""


# AU | active; ... | at rest; ... | cue | trace
_AU_TABLE = """
AU1 | the inner ends of the brows are lifted; the brows rise at their inner ends; the inner brows move up |
    the inner brows rest; the inner brows stay down | raised inner brows | short lines cross the middle of the forehead
AU2 | the outer ends of the brows are lifted; the brows arch at their outer ends; the outer brows move up |
    the outer brows rest; the outer brows stay down | raised outer brows | lines cross the sides of the forehead
AU4 | the brows are drawn down and together; the brows are lowered and knit; the brows sink toward the eyes |
    the brows are not lowered; the brows stay apart | lowered brows | upright lines appear between the brows
AU5 | the upper lids are raised; the eyes are opened wide; the upper lids pull back from the eyes |
    the upper lids rest; the upper lids are not raised | wide open eyes | more white shows above the iris
AU6 | the cheeks are raised toward the eyes; the cheeks bunch under the eyes; the cheeks are pushed up |
    the cheeks rest; the cheeks stay flat | raised cheeks | small lines fan out beside the eyes
AU7 | the eyelids are tightened; the lids narrow the eyes; the lower lids are tense |
    the eyelids rest; the eyelids are loose | tight eyelids | the opening of the eyes becomes narrow
AU8 | the lips are drawn toward each other; both lips move closer; the lips approach in front of the teeth |
    the lips keep their distance; the lips do not approach | lips drawn together | the gap between the lips shrinks
AU9 | the nose is wrinkled; the skin of the nose is drawn up; wrinkles cross the root of the nose |
    the nose rests; the nose is smooth | a wrinkled nose | folds form along the sides of the nose
AU10 | the upper lip is raised; the upper lip is lifted in its middle; the upper lip moves toward the nose |
    the upper lip rests; the upper lip is not raised | a raised upper lip | the wings of the nose lift
AU11 | the folds beside the nose are deep; the fold from nose to mouth deepens; deep lines leave the nostrils |
    the nose folds rest; the nose folds are shallow | deep nose folds | the skin above the upper lip is drawn aside
AU12 | the lip corners are pulled up; the mouth corners rise in a smile; the lip corners move up and back |
    the lip corners are not raised; the mouth does not smile | raised lip corners | the folds of the cheeks grow deeper
AU14 | the lip corners are tightened inward; the mouth corners press in; dimples appear beside the mouth |
    no dimples show; the mouth corners are loose | dimpled mouth corners | small pits form in the cheeks
AU15 | the lip corners are pulled down; the mouth corners sink; the corners of the mouth turn down |
    the lip corners are not lowered; the mouth corners do not sink | lowered lip corners |
    the line between the lips bends down
AU16 | the lower lip is pulled down; the lower lip bares the teeth; the lower lip moves toward the chin |
    the lower lip rests; the lower lip is not lowered | a lowered lower lip | the lower teeth may show
AU17 | the chin is pushed up; the chin rises and wrinkles; the chin pushes the lower lip up |
    the chin rests; the chin is smooth | a raised chin | the skin of the chin looks rough
AU18 | the lips are puckered; the lips gather as for a kiss; the mouth is drawn small and forward |
    the lips do not pucker; the lips are not gathered | puckered lips | small lines run around the mouth
AU19 | the tongue shows between the lips; the tongue sticks out; the tip of the tongue is visible |
    the tongue is hidden; the tongue stays inside | a visible tongue | the lips open around the tongue
AU20 | the lips are stretched sideways; the mouth is pulled toward the ears; the lips are drawn straight back |
    the lips are not stretched; the mouth keeps its width | stretched lips | the lips look flat and long
AU21 | the neck is tightened; the muscles of the neck stand out; the skin of the neck is tense |
    the neck rests; the neck is loose | a tight neck | cords show under the jaw
AU22 | the lips are funneled forward; the lips turn out like a funnel; the lips are pushed out and round |
    the lips are not funneled; the lips do not turn out | funneled lips | the inner side of the lips shows
AU23 | the lips are tightened; the lips are tense and narrow; the red of the lips grows thin |
    the lips are not tight; the lips are soft | tight lips | fine lines edge the lips
AU24 | the lips are pressed together; the lips push against each other; the mouth is shut with pressure |
    the lips are not pressed; no pressure holds the lips | pressed lips | skin bulges above and below the lips
AU25 | the lips are parted; the lips are open; a gap shows between the lips |
    the lips are not parted; the lips are closed | parted lips | the teeth or the inside of the mouth may show
AU26 | the jaw is dropped; the jaw hangs down; the lower jaw sinks |
    the jaw rests; the jaw is not dropped | a dropped jaw | the lower face looks longer
AU27 | the mouth is stretched wide open; the mouth gapes; the jaw is pulled far down |
    the mouth does not gape; the mouth is not stretched | a gaping mouth | the cheeks are drawn flat
AU28 | the lips are sucked in; the lips roll over the teeth; the lips vanish into the mouth |
    the lips are not sucked in; the lips do not roll in | lips rolled inward | the skin around the mouth is pulled tight
AU43 | the eyes are closed; the upper lids cover the eyes; the eyelids are shut |
    the eyes are open; the eyes are not closed | closed eyes | nothing of the iris can be seen
"""


def _read_table() -> dict[str, AUWording]:
    wordings = {}
    for entry in re.split(r"\n(?=AU\d)", _AU_TABLE.strip()):
        name, active, rest, cue, trace = (" ".join(cell.split()) for cell in entry.split("|"))
        wordings[name] = AUWording(tuple(active.split("; ")), tuple(rest.split("; ")), cue, trace)
    return wordings


AU_WORDING: dict[str, AUWording] = _read_table()


@dataclass(frozen=True)
class EmotionWording:
    phrase: str
    """Object of "the face shows ..."."""
    forms: tuple[str, ...]
    """Words that name it in a text, besides its own name."""
    typical: tuple[str, ...] = ()
    """Prototypical action units, as in EMFACS, with the lips that part with the jaw."""


EMOTION_WORDING: dict[str, EmotionWording] = {
    "Neutral": EmotionWording("a neutral expression", ("neutral",)),
    "Anger": EmotionWording("anger", ("angry",), ("AU4", "AU5", "AU7", "AU17", "AU23", "AU24")),
    "Disgust": EmotionWording("disgust", ("disgusted",), ("AU9", "AU10", "AU15", "AU16", "AU17")),
    "Fear": EmotionWording(
        "fear", ("fearful", "afraid", "scared"), ("AU1", "AU2", "AU4", "AU5", "AU7", "AU20", "AU25", "AU26")
    ),
    "Happiness": EmotionWording("happiness", ("happy", "joy", "joyful"), ("AU6", "AU12")),
    "Sadness": EmotionWording("sadness", ("sad",), ("AU1", "AU4", "AU15", "AU17")),
    "Surprise": EmotionWording("surprise", ("surprised",), ("AU1", "AU2", "AU5", "AU25", "AU26", "AU27")),
    "Contempt": EmotionWording("contempt", ("contemptuous",), ("AU12", "AU14")),
    # "other" alone stands in many a sentence about lips, so it never names this emotion by itself.
    "Other": EmotionWording("an emotion other than the basic ones", ("other than the basic", "another emotion")),
}

# Stems by which a compound name refers to its parts: "Happily Surprised", "Sadly Fearful".
_STEMS = {
    **{"happ": "Happiness", "sad": "Sadness", "fear": "Fear", "ang": "Anger"},
    **{"surpris": "Surprise", "disgust": "Disgust", "contempt": "Contempt"},
}


def emotion_wording(name: str) -> EmotionWording:
    """Also of emotions outside the table: their name as it is; a compound one has the AUs of its parts."""
    if name in EMOTION_WORDING:
        return EMOTION_WORDING[name]
    words = name.lower().split()
    parts = [part for word in words for stem, part in _STEMS.items() if word.startswith(stem)]
    typical = dict.fromkeys(au for part in parts for au in EMOTION_WORDING[part].typical)
    low = " ".join(words)
    phrase = low if len(words) == 1 else f"{'an' if low[0] in 'aeiou' else 'a'} {low} expression"
    return EmotionWording(phrase, (), tuple(typical))


def emotion_prompts(emotions: Sequence[str]) -> dict[str, str]:
    """Emotion -> its sentence in zero-shot classification."""
    return {name: EMOTION_SENTENCE.format(emotion=emotion_wording(name).phrase) for name in emotions}


def au_state_prompts(action_units: Sequence[str]) -> dict[str, tuple[str, str]]:
    """AU -> the sentences of its active and of its resting state, as in the canonical captions."""
    wordings = {au: AU_WORDING[au] for au in check_action_units(list(action_units))}
    return {au: (f"{capitalise(w.active[0])}.", f"{capitalise(w.rest[0])}.") for au, w in wordings.items()}


def join_list(items: Sequence[str]) -> str:
    return items[0] if len(items) == 1 else f"{', '.join(items[:-1])} and {items[-1]}"


def capitalise(text: str) -> str:
    return text[:1].upper() + text[1:]


def third_person(verb: str) -> str:
    """Conjugates the first word: "press lips" -> "presses lips"."""
    word, _, rest = verb.partition(" ")
    if word.endswith(("s", "sh", "ch", "x", "z", "o")):
        word += "es"
    elif word.endswith("y") and word[-2] not in "aeiou":
        word = word[:-1] + "ies"
    else:
        word += "s"
    return f"{word} {rest}".rstrip()
