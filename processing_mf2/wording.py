"""The words of every caption: what each action unit and emotion looks like, and the patterns that join them."""

from collections.abc import Sequence
from dataclasses import dataclass


KEY_AU_PROMPT = "Key action units:"
"""Every key-AU caption begins with it, so that one decoder can be asked for this kind of caption."""

NEUTRAL_CAPTION = "The face is at rest: the brows are level, the cheeks are smooth and the mouth is relaxed."
"""The AU caption of a face whose action units are all known and all inactive."""

PARTLY_NEUTRAL_CAPTION = "None of the labelled action units is active."
"""The same when some action units are unknown: a description of the whole face would claim too much."""


@dataclass(frozen=True)
class AUWording:
    active: tuple[str, ...]
    rest: tuple[str, ...]
    """Very short: the twelve sentences of an image share one budget of tokens."""
    cue: str
    """A noun phrase; it carries an article exactly if it is singular."""
    trace: str
    """What else the action leaves on the face; the second sentence of a local description."""


AU_WORDING: dict[str, AUWording] = {
    "AU1": AUWording(
        ("the inner ends of the brows are lifted", "the brows rise at their inner ends", "the inner brows move up"),
        ("the inner brows rest", "the inner brows stay down"),
        "raised inner brows",
        "short lines cross the middle of the forehead",
    ),
    "AU2": AUWording(
        ("the outer ends of the brows are lifted", "the brows arch at their outer ends", "the outer brows move up"),
        ("the outer brows rest", "the outer brows stay down"),
        "raised outer brows",
        "lines cross the sides of the forehead",
    ),
    "AU4": AUWording(
        ("the brows are drawn down and together", "the brows are lowered and knit", "the brows sink toward the eyes"),
        ("the brows are not lowered", "the brows stay apart"),
        "lowered brows",
        "upright lines appear between the brows",
    ),
    "AU5": AUWording(
        ("the upper lids are raised", "the eyes are opened wide", "the upper lids pull back from the eyes"),
        ("the upper lids rest", "the upper lids are not raised"),
        "wide open eyes",
        "more white shows above the iris",
    ),
    "AU6": AUWording(
        ("the cheeks are raised toward the eyes", "the cheeks bunch under the eyes", "the cheeks are pushed up"),
        ("the cheeks rest", "the cheeks stay flat"),
        "raised cheeks",
        "small lines fan out beside the eyes",
    ),
    "AU7": AUWording(
        ("the eyelids are tightened", "the lids narrow the eyes", "the lower lids are tense"),
        ("the eyelids rest", "the eyelids are loose"),
        "tight eyelids",
        "the opening of the eyes becomes narrow",
    ),
    "AU8": AUWording(
        ("the lips are drawn toward each other", "both lips move closer", "the lips approach in front of the teeth"),
        ("the lips keep their distance", "the lips do not approach"),
        "lips drawn together",
        "the gap between the lips shrinks",
    ),
    "AU9": AUWording(
        ("the nose is wrinkled", "the skin of the nose is drawn up", "wrinkles cross the root of the nose"),
        ("the nose rests", "the nose is smooth"),
        "a wrinkled nose",
        "folds form along the sides of the nose",
    ),
    "AU10": AUWording(
        ("the upper lip is raised", "the upper lip is lifted in its middle", "the upper lip moves toward the nose"),
        ("the upper lip rests", "the upper lip is not raised"),
        "a raised upper lip",
        "the wings of the nose lift",
    ),
    "AU11": AUWording(
        ("the folds beside the nose are deep", "the fold from nose to mouth deepens", "deep lines leave the nostrils"),
        ("the nose folds rest", "the nose folds are shallow"),
        "deep nose folds",
        "the skin above the upper lip is drawn aside",
    ),
    "AU12": AUWording(
        ("the lip corners are pulled up", "the mouth corners rise in a smile", "the lip corners move up and back"),
        ("the lip corners are not raised", "the mouth does not smile"),
        "raised lip corners",
        "the folds of the cheeks grow deeper",
    ),
    "AU14": AUWording(
        ("the lip corners are tightened inward", "the mouth corners press in", "dimples appear beside the mouth"),
        ("no dimples show", "the mouth corners are loose"),
        "dimpled mouth corners",
        "small pits form in the cheeks",
    ),
    "AU15": AUWording(
        ("the lip corners are pulled down", "the mouth corners sink", "the corners of the mouth turn down"),
        ("the lip corners are not lowered", "the mouth corners do not sink"),
        "lowered lip corners",
        "the line between the lips bends down",
    ),
    "AU16": AUWording(
        ("the lower lip is pulled down", "the lower lip bares the teeth", "the lower lip moves toward the chin"),
        ("the lower lip rests", "the lower lip is not lowered"),
        "a lowered lower lip",
        "the lower teeth may show",
    ),
    "AU17": AUWording(
        ("the chin is pushed up", "the chin rises and wrinkles", "the chin pushes the lower lip up"),
        ("the chin rests", "the chin is smooth"),
        "a raised chin",
        "the skin of the chin looks rough",
    ),
    "AU18": AUWording(
        ("the lips are puckered", "the lips gather as for a kiss", "the mouth is drawn small and forward"),
        ("the lips do not pucker", "the lips are not gathered"),
        "puckered lips",
        "small lines run around the mouth",
    ),
    "AU19": AUWording(
        ("the tongue shows between the lips", "the tongue sticks out", "the tip of the tongue is visible"),
        ("the tongue is hidden", "the tongue stays inside"),
        "a visible tongue",
        "the lips open around the tongue",
    ),
    "AU20": AUWording(
        ("the lips are stretched sideways", "the mouth is pulled toward the ears", "the lips are drawn straight back"),
        ("the lips are not stretched", "the mouth keeps its width"),
        "stretched lips",
        "the lips look flat and long",
    ),
    "AU21": AUWording(
        ("the neck is tightened", "the muscles of the neck stand out", "the skin of the neck is tense"),
        ("the neck rests", "the neck is loose"),
        "a tight neck",
        "cords show under the jaw",
    ),
    "AU22": AUWording(
        ("the lips are funneled forward", "the lips turn out like a funnel", "the lips are pushed out and round"),
        ("the lips are not funneled", "the lips do not turn out"),
        "funneled lips",
        "the inner side of the lips shows",
    ),
    "AU23": AUWording(
        ("the lips are tightened", "the lips are tense and narrow", "the red of the lips grows thin"),
        ("the lips are not tight", "the lips are soft"),
        "tight lips",
        "fine lines edge the lips",
    ),
    "AU24": AUWording(
        ("the lips are pressed together", "the lips push against each other", "the mouth is shut with pressure"),
        ("the lips are not pressed", "no pressure holds the lips"),
        "pressed lips",
        "skin bulges above and below the lips",
    ),
    "AU25": AUWording(
        ("the lips are parted", "the lips are open", "a gap shows between the lips"),
        ("the lips are not parted", "the lips are closed"),
        "parted lips",
        "the teeth or the inside of the mouth may show",
    ),
    "AU26": AUWording(
        ("the jaw is dropped", "the jaw hangs down", "the lower jaw sinks"),
        ("the jaw rests", "the jaw is not dropped"),
        "a dropped jaw",
        "the lower face looks longer",
    ),
    "AU27": AUWording(
        ("the mouth is stretched wide open", "the mouth gapes", "the jaw is pulled far down"),
        ("the mouth does not gape", "the mouth is not stretched"),
        "a gaping mouth",
        "the cheeks are drawn flat",
    ),
    "AU28": AUWording(
        ("the lips are sucked in", "the lips roll over the teeth", "the lips vanish into the mouth"),
        ("the lips are not sucked in", "the lips do not roll in"),
        "lips rolled inward",
        "the skin around the mouth is pulled tight",
    ),
    "AU43": AUWording(
        ("the eyes are closed", "the upper lids cover the eyes", "the eyelids are shut"),
        ("the eyes are open", "the eyes are not closed"),
        "closed eyes",
        "nothing of the iris can be seen",
    ),
}


@dataclass(frozen=True)
class EmotionWording:
    phrase: str
    """The object of "the face shows ..."."""
    forms: tuple[str, ...]
    """Words by which a text may name it, besides its own name."""
    typical: tuple[str, ...] = ()
    """Action units that tell it, as in EMFACS; lips that part with the jaw are counted in."""


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

# How a compound emotion's name points at its parts: "Happily Surprised", "Sadly Fearful".
_STEMS = {
    **{"happ": "Happiness", "sad": "Sadness", "fear": "Fear", "ang": "Anger"},
    **{"surpris": "Surprise", "disgust": "Disgust", "contempt": "Contempt"},
}


def article(words: str) -> str:
    return "an" if words[0].lower() in "aeiou" else "a"


def emotion_wording(name: str) -> EmotionWording:
    """An emotion outside the table is named as it is; a compound one is typical by the AUs of its parts."""
    if name in EMOTION_WORDING:
        return EMOTION_WORDING[name]
    words = name.lower().split()
    parts = [part for word in words for stem, part in _STEMS.items() if word.startswith(stem)]
    typical = dict.fromkeys(au for part in parts for au in EMOTION_WORDING[part].typical)
    low = " ".join(words)
    phrase = low if len(words) == 1 else f"{article(low)} {low} expression"
    return EmotionWording(phrase, (), tuple(typical))


# Patterns. {cues} is a list of noun phrases, {Cues} the same as a sentence's start; {s} and {are} agree with it.
EMOTION_FROM_CUES = (
    "{Cues} point{s} to {emotion}.",
    "The face shows {cues}, which suggest{s} {emotion}.",
    "With {cues}, the face conveys {emotion}.",
    "{Cues} {are} visible, so the face is read as showing {emotion}.",
    "Judging by {cues}, the face expresses {emotion}.",
)
EMOTION_BESIDE_CUES = (
    " {Cues} {are} also visible.",
    " Besides, the face shows {cues}.",
    " {Cues} come{s} with it.",
)
EMOTION_DESPITE_CUES = (
    "{Cues} {are} visible, which is not typical of {emotion}, yet the face conveys it.",
    "The face shows {emotion}, although {cues} would not tell so.",
)
EMOTION_NEUTRAL_CUES = (
    "{Cues} {are} visible, yet the face keeps {emotion}.",
    "The face shows {cues}, which {are} too little for an emotion: this is {emotion}.",
)
EMOTION_AT_REST = (
    "No action unit is active, yet the face conveys {emotion}.",
    "Hardly anything moves in the face, but it shows {emotion}.",
)
EMOTION_NEUTRAL_AT_REST = (
    "The whole face is at rest, so it shows {emotion}.",
    "No action unit is active, which means {emotion}.",
)
EMOTION_ONLY = ("The face shows {emotion}.", "The face expresses {emotion}.", "The face conveys {emotion}.")

# {keys} is a list such as "AU6 (Cheek Raiser) and AU12 (Lip Corner Puller)"; {key_s} and {key_are} agree with it.
KEY_FOUND = (
    "{keys} {key_are} decisive for {emotion}: {cues} {are} typical of it.",
    "{keys} tell{key_s} that the face shows {emotion}, since {cues} belong{s} to it.",
    "{keys} make{key_s} the face show {emotion}, by way of {cues}.",
)
KEY_BESIDE = (" {Codes} {are} active too, but tell{s} less.", " {Codes} {are} active as well, but not decisive.")
KEY_NONE_TYPICAL = (
    "none of those typical of {emotion} is active; the face shows it with {codes} only.",
    "none stands out; {codes} {are} active, which is not typical of {emotion}.",
)
KEY_NO_PROTOTYPE = (
    "none is decisive; with {codes} active, the face shows {emotion}.",
    "none is known to tell {emotion}; active {are} {codes}.",
)
KEY_NEUTRAL_CUES = (
    "none is decisive; {codes} {are} active, yet the face keeps {emotion}.",
    "none, since {codes} alone {are} not enough to leave {emotion}.",
)
KEY_AT_REST = (
    "none is active, yet the face shows {emotion}.",
    "none, as nothing moves; even so the face shows {emotion}.",
)
KEY_NEUTRAL_AT_REST = (
    "none is active, which makes for {emotion}.",
    "none, as nothing moves; the face shows {emotion}.",
)
KEY_PARTLY_KNOWN = (
    "none of the labelled ones is active; the face shows {emotion}.",
    "none among the labelled ones; the face conveys {emotion}.",
)

# Exp-BLIP's forms. {verbs} is a list such as "raises cheek and pulls lip corner".
EXP_BLIP_AU = ("The face {verbs}.",)
EXP_BLIP_EMOTION = ("The face shows {emotion}.",)
EXP_BLIP_EXPLAINED = (
    "The face {verbs}, which implies {emotion}.",
    "Since the face {verbs}, it shows {emotion}.",
    "The face {verbs}, a sign of {emotion}.",
)
EXP_BLIP_DESPITE = ("The face {verbs}, yet it shows {emotion}.", "Although the face {verbs}, it shows {emotion}.")
EXP_BLIP_EXPLAINED_AT_REST = ("No action unit moves the face, yet it shows {emotion}.",)
EXP_BLIP_EXPLAINED_NEUTRAL = ("No action unit moves the face, which implies {emotion}.",)

# VL-FAU's forms.
LOCAL_INACTIVE = ("{name} is inactive.", "{name} is not seen.")
GLOBAL_ACTIVE = (
    "The whole face shows {cues}.",
    "Across the face, {cues} {are} visible.",
    "{Cues} {are} active in this face.",
)


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


def fill(pattern: str, *, items: Sequence[str] = (), is_plural: bool = True, **slots: str) -> str:
    """Fills a pattern; `items` is the list that {cues} or {codes} stand for, and `is_plural` its number."""
    text = join_list(items) if items else ""
    number = {"s": "", "are": "are"} if is_plural else {"s": "s", "are": "is"}
    lists = {"cues": text, "Cues": capitalise(text), "codes": text, "Codes": text}
    return pattern.format(**{**lists, **number, **slots})
