"""Which captions a style has, what may be asked of a chat model for one image, and the writer by rule."""

import hashlib
import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from configuration_mf2.facs_mf2 import UNKNOWN_LABEL, LabelSet
from processing_mf2.captions_mf2 import RuleCaptioner, au_states, au_title, emotion_name
from processing_mf2.prompts_mf2 import known_captions

from .builder_mf2 import as_label_set


STYLES: Mapping[str, tuple[str, ...]] = {
    "mfa": ("au_caption", "emotion_caption", "key_au_caption"),
    "exp_blip": ("exp_blip_au", "exp_blip_emot", "exp_blip_mix", "exp_blip_cat", "exp_blip_exp"),
    "vl_fau": ("vl_fau_global", "vl_fau_local"),
}
RULE = "rule"

# Made of the two sentences that are asked for, so nobody pays for them.
_COMPOSED = ("exp_blip_mix", "exp_blip_cat")


@dataclass(frozen=True)
class CaptionRow:
    """What a writer needs of an image. `au_labels` are aligned with the label set, -1 is unknown; `emotion` is an index
    or a name. `id` names the row in the journal. The image is looked at only by a writer that sends images."""

    id: str
    au_labels: Sequence[int] | None = None
    emotion: int | str | None = None
    image: Any = None


@dataclass(frozen=True)
class Captions:
    """The captions of one row: caption -> text, "" where the labels tell nothing. `writer` is "" if nothing was
    written, "rule", a model's name, or a model's name and the captions that fell to the rule."""

    id: str
    texts: Mapping[str, str] = field(default_factory=dict)
    writer: str = ""


def writer_mark(model: str, by_rule: Sequence[str] = ()) -> str:
    """What stands in `caption_writer`."""
    return f"{model} ({RULE}: {', '.join(by_rule)})" if by_rule else model


class CaptionStyle:
    """One style over one label set; `seed` draws the rule's wording, for each row by its id alone."""

    def __init__(self, style: str = "mfa", label_set: str | LabelSet = "mfa", *, seed: int = 0, varied: bool = True):
        if style not in STYLES:
            raise ValueError(f"style: got {style!r}, expected one of {list(STYLES)}")
        self.name, self.captions = style, STYLES[style]
        self.label_set = as_label_set(label_set)
        self.rule = RuleCaptioner(self.label_set)
        self.seed, self.varied = seed, varied

    @property
    def asked(self) -> tuple[str, ...]:
        """The captions that a chat model is asked for, if all labels are known."""
        return tuple(name for name in self.captions if name not in _COMPOSED)

    def states(self, row: CaptionRow) -> dict[str, int]:
        return au_states(row.au_labels, self.rule.action_units)

    def emotion(self, row: CaptionRow) -> str | None:
        return emotion_name(row.emotion, self.rule.emotions)

    def asked_of(self, row: CaptionRow) -> tuple[str, ...]:
        """Nothing is asked about labels that are unknown."""
        has_aus = any(state != UNKNOWN_LABEL for state in self.states(row).values())
        return known_captions(self.asked, has_aus, self.emotion(row) is not None)

    def by_rule(self, row: CaptionRow) -> Captions:
        texts = {name: self._by_rule(name, row) for name in self.captions}
        return Captions(row.id, texts, RULE if any(texts.values()) else "")

    def compose(self, row: CaptionRow, written: Mapping[str, str]) -> dict[str, str]:
        """All captions of the style, from those that were asked for: what is not among them is made of them, or ""."""
        texts = {name: written.get(name, "") for name in self.captions}
        if self.name == "exp_blip":
            halves = [text for name in ("exp_blip_au", "exp_blip_emot") if (text := texts[name])]
            texts["exp_blip_cat"] = " ".join(halves)
            texts["exp_blip_mix"] = halves[int(self._rng(row, "mix").integers(len(halves)))] if halves else ""
            texts["exp_blip_exp"] = texts["exp_blip_exp"] or (halves[0] if halves else "")
        return texts

    def key(self, row: CaptionRow, *writer: str) -> str:
        """Names a caption in the journal: with other labels, style, model or prompt it is another one."""
        told = [row.id, self.states(row), self.emotion(row), self.name, *writer]
        return hashlib.sha256(json.dumps(told).encode()).hexdigest()[:24]

    def _by_rule(self, name: str, row: CaptionRow) -> str:
        rng, labels, emotion = self._rng(row, name), row.au_labels, row.emotion
        if name == "au_caption":
            return self.rule.au_caption(labels, rng)
        if name == "emotion_caption":
            return self.rule.emotion_caption(labels, emotion, rng)
        if name == "key_au_caption":
            return self.rule.key_au_caption(labels, emotion, rng)
        if name == "vl_fau_global":
            return self.rule.vl_fau_global(labels, rng)
        if name == "vl_fau_local":
            return numbered(dict(zip(self.rule.action_units, self.rule.vl_fau_local(labels, rng), strict=True)))
        return self.rule.exp_blip_caption(labels, emotion, name.removeprefix("exp_blip_"), rng)

    def _rng(self, row: CaptionRow, name: str) -> np.random.Generator | None:
        if not self.varied and name != "mix":
            return None
        digest = hashlib.sha256(json.dumps([self.seed, row.id, name]).encode()).digest()
        return np.random.default_rng(int.from_bytes(digest[:8]))


def numbered(sentences: Mapping[str, str]) -> str:
    """AU -> sentence, as the numbered list that `parse_au_caption` reads; what is "" is left out."""
    items = [(au, text) for au, text in sentences.items() if text]
    return "\n".join(f"{number}. {au_title(au)}: {text}" for number, (au, text) in enumerate(items, start=1))


def write_by_rule(
    rows: Iterable[CaptionRow], style: str = "mfa", label_set: str | LabelSet = "mfa", *, seed: int = 0
) -> Iterator[Captions]:
    """Offline, at once, for nothing; the same seed and row give the same words, in any order."""
    captions = CaptionStyle(style, label_set, seed=seed)
    for row in rows:
        yield captions.by_rule(row)


__all__ = ["RULE", "STYLES", "CaptionRow", "CaptionStyle", "Captions", "numbered", "write_by_rule", "writer_mark"]
