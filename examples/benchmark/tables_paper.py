"""What the papers report in the tables that `tables.py` makes anew: their numbers, on their data, with their models."""

from dataclasses import dataclass


@dataclass(frozen=True)
class PaperTable:
    """rows: a system of ours -> the paper's values, in %, unless the column's name has another unit; None: none given.

    mean: the column that is shown beside our rows. digits: behind the point of a percentage, as printed."""

    source: str
    columns: tuple[str, ...]
    rows: dict[str, tuple[float | None, ...]]
    mean: str = "avg"
    digits: int = 2

    def shown(self, system: str) -> dict[str, str]:
        """The values of a row as the paper prints them, by column; empty for a system that it does not have."""
        values = dict(zip(self.columns, self.rows.get(system, ()), strict=system in self.rows))
        scores = {*_MFA_UNITS, *_BP4D_UNITS, *_EMOTIONS, self.mean, "AU F1", "emotion"}
        forms = {name: f".{self.digits}f" if name in scores else "g" for name in values}
        return {name: "–" if value is None else format(value, forms[name]) for name, value in values.items()}


_MFA_UNITS = tuple(f"AU{number}" for number in (1, 2, 4, 6, 7, 10, 12, 15, 23, 24, 25, 26))
_BP4D_UNITS = tuple(f"AU{number}" for number in (1, 2, 4, 6, 7, 10, 12, 14, 15, 17, 23, 24))
_EMOTIONS = ("Neutral", "Anger", "Disgust", "Fear", "Happiness", "Sadness", "Surprise", "Other")
_DFN = (84.53, 92.57, 79.95, 82.41, 83.92, 89.51, 87.14, 75.21, 84.40)
_PRETRAINED = (87.70, 95.50, 86.37, 86.64, 86.05, 88.09, 82.08, 55.39, 83.48)

PAPER: dict[str, PaperTable] = {
    "II": PaperTable(
        "MF²'s Table II: AU F1 in %, on MFA, which is made of Aff-Wild2",
        (*_MFA_UNITS, "avg"),
        {
            "exp_blip": (40.25, 12.63, 63.41, 53.28, 69.43, 71.76, 60.18, 46.85, 27.60, 10.27, 86.43, 25.61, 47.31),
            "me_graph_au": (41.94, 13.72, 55.91, 41.92, 76.57, 70.48, 53.68, 61.42, 20.13, 3.88, 85.53, 30.47, 46.30),
            "vl_fau": (43.09, 15.86, 55.59, 49.35, 77.57, 73.51, 54.81, 60.00, 29.50, 3.72, 84.25, 31.08, 48.19),
            "mf2": (50.17, 18.75, 73.18, 54.83, 76.58, 70.00, 52.57, 48.92, 29.06, 11.72, 88.68, 34.80, 50.77),
            "mf2_dfn": (44.76, 15.64, 66.90, 50.42, 76.70, 73.17, 57.80, 54.51, 33.49, 43.02, 89.26, 34.55, 53.35),
        },
    ),
    "III": PaperTable(
        "MF²'s Table III: emotion accuracy in %, which its values show to be one-vs-rest, on MFA",
        (*_EMOTIONS, "avg"),
        {
            "exp_blip": (82.17, 92.74, 86.58, 86.79, 90.73, 88.30, 79.56, 50.24, 82.14),
            "hsemotion": (80.95, 85.99, 86.82, 86.73, 85.31, 77.84, 69.05, 76.30, 81.12),
            "mf2": _PRETRAINED,
            "mf2_dfn": _DFN,
        },
    ),
    "IV": PaperTable(
        "MF²'s Table IV: emotion accuracy in %, minutes on an RTX A6000 with 31,320 training and 3,376 validation "
        "images, millions of trainable parameters. Averages as printed; the values of the third and fourth row have "
        "the means 81.92 and 81.37",
        (*_EMOTIONS, "avg", "training, min an epoch", "inference, min", "trainable, M"),
        {
            "mf2_dfn": (*_DFN, 12.6, 6.4, 52.88),
            "mf2": (*_PRETRAINED, 62.3, 5.1, 373.4),
            "mf2_without_emo_vl": (88.57, 94.55, 86.82, 86.76, 84.66, 84.86, 50.71, 78.44, 82.42, 8.4, 4.5, 186.7),
            "mf2_without_au_vl": (90.52, 93.39, 86.85, 87.17, 71.39, 88.92, 71.18, 61.56, 81.87, 4.1, 2.1, 186.7),
        },
    ),
    "V": PaperTable(
        "MF²'s Table V: emotion accuracy in %, on MFA",
        ("avg",),
        {"exp_blip_au_to_emotion": (78.91,), "mf2_au_to_emotion": (80.07,)},
    ),
    "vlfau4": PaperTable(
        "VL-FAU's Table 4: AU F1 in %, top-5 accuracy of words in %, on BP4D",
        (*_BP4D_UNITS, "avg", "local words", "global words"),
        {
            "vl_fau_1": (50.0, 46.3, 60.3, 78.0, 80.0, 83.8, 88.6, 64.1, 50.2, 64.0, 50.1, 56.5, 64.3, None, None),
            "vl_fau_2": (50.0, 45.5, 60.0, 79.6, 80.1, 83.1, 88.7, 66.5, 51.0, 63.3, 53.6, 55.3, 64.7, None, None),
            "vl_fau_3": (51.4, 48.2, 60.2, 79.1, 80.8, 83.4, 88.6, 65.0, 52.4, 65.6, 52.1, 57.0, 65.3, 86.3, None),
            "vl_fau_4": (54.8, 47.4, 61.2, 79.2, 79.4, 84.1, 88.8, 63.8, 52.2, 65.2, 50.6, 55.6, 65.2, None, 64.4),
            "vl_fau": (56.3, 49.9, 62.6, 79.5, 80.1, 82.6, 88.6, 66.8, 51.3, 63.5, 51.3, 57.1, 65.8, 86.6, 64.7),
        },
        digits=1,
    ),
    "expblip": PaperTable(
        "Exp-BLIP's supplement, Tables 2 and 6, ViT-B and OPT-2.7B: mean AU F1 in % on BP4D, emotion accuracy in % on "
        "AffectNet; trained on further data sets. Its bare ViT-B has 52.7 and 37.8 by a linear probe, 60.4 and 51.4 "
        "fine-tuned",
        ("AU F1", "emotion"),
        {
            "exp_blip_emot_vision_probe": (53.3, 38.2),
            "exp_blip_emot_qformer_probe": (56.9, 54.3),
            "exp_blip_au_vision_probe": (52.9, 38.8),
            "exp_blip_au_qformer_probe": (60.9, 45.2),
            "exp_blip_mix_vision_probe": (52.7, 38.6),
            "exp_blip_mix_qformer_probe": (60.3, 52.1),
            "exp_blip_cat_vision_probe": (52.7, 39.8),
            "exp_blip_cat_qformer_probe": (58.3, 48.1),
            "exp_blip_exp_vision_probe": (53.2, 39.6),
            "exp_blip_exp_qformer_probe": (60.3, 48.2),
            "exp_blip_emot_vision_tuned": (61.5, 52.9),
            "exp_blip_emot_qformer_tuned": (62.5, 54.7),
            "exp_blip_au_vision_tuned": (61.7, 51.9),
            "exp_blip_au_qformer_tuned": (64.1, 53.6),
            "exp_blip_mix_vision_tuned": (61.9, 52.6),
            "exp_blip_mix_qformer_tuned": (63.9, 54.3),
            "exp_blip_cat_vision_tuned": (61.9, 52.1),
            "exp_blip_cat_qformer_tuned": (63.6, 54.3),
            "exp_blip_exp_vision_tuned": (61.5, 52.1),
            "exp_blip": (64.4, 54.8),
        },
        digits=1,
    ),
}
