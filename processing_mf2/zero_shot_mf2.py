"""Labels of zero-shot classification to the sentences that stand for them."""

import difflib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from configuration_mf2.facs_mf2 import ACTION_UNITS, EMOTIONS

from .prompts_mf2 import au_state_prompts, emotion_prompts
from .wording_mf2 import EMOTION_ONLY


TEMPLATE = EMOTION_ONLY[0].replace("{emotion}", "{}")


@dataclass(frozen=True)
class ZeroShotLabels:
    """branch "emo": sentences compete for the face. branch "au": each AU's own state against its state at rest."""

    branch: Literal["emo", "au"]
    labels: tuple[str, ...]
    sentences: tuple[str, ...]
    action_units: tuple[str, ...] = ()
    at_rest: tuple[str, ...] = ()


def read_labels(
    labels: Any, action_units: Sequence[str], branch: str | None = None, template: str = TEMPLATE
) -> ZeroShotLabels:
    """labels: emotions or words of the user's own; or AUs by code ("AU12") or noun ("lip corner puller").

    A mapping gives sentences of the user's own: of a label one, of an AU one or a pair (active, at rest).
    """
    if branch not in (None, "emo", "au"):
        raise ValueError(f"branch: got {branch!r}, expected 'emo' or 'au', or none: the labels tell")
    if not isinstance(labels, Mapping | list | tuple) or not labels:
        raise ValueError(
            f"candidate_labels: got {labels!r:.80}, expected a list of at least one label, such as ['Happiness', "
            "'Anger'] or ['AU6', 'AU12'], or a mapping from labels to sentences"
        )
    names = list(labels)
    wrong = [name for name in names if not isinstance(name, str) or not name.strip()]
    if wrong or len(set(names)) < len(names):
        raise ValueError(f"candidate_labels: got {names!r:.120}, expected different strings that are not empty")
    units = [_action_unit(name) for name in names]
    if branch is None:
        branch = "au" if any(units) else "emo"
    own = dict(labels) if isinstance(labels, Mapping) else {}
    if branch == "emo":
        return ZeroShotLabels("emo", tuple(names), tuple(_about_face(name, own.get(name), template) for name in names))
    _check_units(names, units, action_units)
    active, rest = zip(*(_states(unit, own.get(name)) for name, unit in zip(names, units, strict=True)), strict=True)
    return ZeroShotLabels("au", tuple(names), active, tuple(units), rest)


_BY_NOUN = {unit.noun: name for name, unit in ACTION_UNITS.items()}


def _action_unit(label: str) -> str | None:
    """'AU12', 'au 12', 'AU012' and 'Lip corner puller' are AU12; an AU that FACS does not have is kept as written."""
    words = label.strip().lower()
    digits = words.removeprefix("au").strip()
    if words.startswith("au") and digits.isdigit():
        return f"AU{int(digits)}"
    return _BY_NOUN.get(words)


def _check_units(names: Sequence[str], units: Sequence[str | None], known: Sequence[str]) -> None:
    wrong = [name for name, unit in zip(names, units, strict=True) if unit not in known]
    if wrong:
        near = difflib.get_close_matches(wrong[0].lower(), _BY_NOUN, n=1)
        hint = f"did you mean {near[0]!r}? " if near else ""
        raise ValueError(
            f"candidate_labels: got {wrong}, expected action units of this model: {list(known)}, by code or noun; "
            f"{hint}Ask about emotions, or in words of your own, in a call without action units"
        )


def _states(unit: str, own: Any) -> tuple[str, str]:
    usual = au_state_prompts([unit])[unit]
    own = (own,) if isinstance(own, str) else tuple(own or ())
    if len(own) > 2 or not all(isinstance(sentence, str) and sentence.strip() for sentence in own):
        raise ValueError(f"candidate_labels[{unit!r}]: got {own!r:.80}, expected one sentence, or two: active, at rest")
    return (*own, *usual[len(own) :])


def _about_face(label: str, own: Any, template: str) -> str:
    if own is not None:
        if not isinstance(own, str) or not own.strip():
            raise ValueError(f"candidate_labels[{label!r}]: got {own!r:.80}, expected a sentence")
        return own
    by_name = {name.lower(): name for name in EMOTIONS}
    if label.strip().lower() in by_name and template == TEMPLATE:
        name = by_name[label.strip().lower()]
        return emotion_prompts([name])[name]
    near = difflib.get_close_matches(label.strip().lower(), [*by_name, *_BY_NOUN], n=1, cutoff=0.85)
    if near and near[0] != label.strip().lower():
        raise ValueError(
            f"candidate_labels: got {label!r}, did you mean {by_name.get(near[0], near[0])!r}? If not, give the "
            "sentence that it stands for: {label: sentence}"
        )
    if template.count("{}") != 1:
        raise ValueError(f"hypothesis_template: got {template!r}, expected a sentence with one {{}} for the label")
    return template.format(label)


__all__ = ["ZeroShotLabels", "read_labels"]
