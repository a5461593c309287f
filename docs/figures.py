"""Fills the figures of README and pages from the files that measurements wrote; run again after each of these changed.

    python docs/figures.py              numbers and tables
    python docs/figures.py --pictures   and the README's picture and answer, by the released checkpoint

`<!--photographs.faces_found:.1%-->99.3` holds a figure of examples/benchmark/results/photographs.json, in a format of
Python (% means times 100), `checkpoint.` one of the released checkpoint; `<!--table:NAME-->` stands above a table.
"""

import argparse
import json
import re
import tempfile
from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path


ROOT = Path(__file__).resolve().parents[1]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
HERO = ROOT / "examples" / "gallery" / "hero.jpg"
FIGURE = re.compile(r"(<!--(\w+)\.([^:>]+):([^>]*?)-->)-?[\d.,]*\d")
TABLE = re.compile(r"(?<=^<!--table:)(\w+)-->\n(?:\|.*\n)*", re.MULTILINE)
ANSWER = re.compile(r"(```python\n(import mf2face\n.*?)```\n\n```text\n).*?(?=```)", re.DOTALL)


@cache
def results(name: str) -> dict[str, float]:
    """name: a file of examples/benchmark/results, or `checkpoint` for the released checkpoint's metrics."""
    released = ROOT / "model_cards" / "mf2-tiny-rendered" / "metrics.json"
    path = released if name == "checkpoint" else ROOT / "examples" / "benchmark" / "results" / f"{name}.json"
    return json.loads(path.read_text(encoding="utf-8"))


def figure(file: str, key: str, form: str) -> str:
    return format(results(file)[key], form).removesuffix("%")


def filled(text: str) -> str:
    text = FIGURE.sub(lambda found: found[1] + figure(*found.groups()[1:]), text)
    return TABLE.sub(lambda found: "\n".join([f"{found[1]}-->", *TABLES[found[1]](), ""]), text)


def table(head: str, rows: dict[str, list[str]]) -> Iterator[str]:
    yield f"| {head} |"
    yield f"|{'---|' * len(head.split('|'))}"
    yield from (f"| {' | '.join([name, *cells])} |" for name, cells in rows.items())


def checkpoint() -> Iterator[str]:
    f1, top1 = "baseline/au_f1_", "baseline/emotion_top1_"
    rows = {
        "AU F1, macro, thresholds tuned on validation subjects": (
            *("au_f1_tuned_macro", f"{f1}all_active", f"{f1}landmarks", f"{f1}ceiling"),
        ),
        "emotion top-1": ("emotion_top1", f"{top1}commonest", f"{top1}landmarks", f"{top1}from_true_aus"),
        "AUs named in the sentences that it writes, F1": ("caption_au_f1",),
        "AU by text, zero-shot, AUC": ("zero_shot_au_auc",),
    }
    cells = {
        name: [figure("checkpoint", key, ".3f") if key else "" for key in [*keys, "", "", ""][:4]]
        for name, keys in rows.items()
        if keys[0] in results("checkpoint")
    }
    return table("figure, synthetic faces | checkpoint | chance | landmarks alone | ceiling", cells)


def finetuning() -> Iterator[str]:
    methods = {"DFN, states stored": "dfn", "LoRA": "lora", "full fine-tuning": "full"}
    keys = ("trainable", "epoch_s", "memory_mb")
    rows = {t: [figure("finetuning_cost_base", f"{m}_{key}", ",.0f") for key in keys] for t, m in methods.items()}
    return table("cost at `base`, random weights | trainable | epoch, CPU-s | training memory, MiB", rows)


def inference() -> Iterator[str]:
    rows = {
        "`mf2` over a folder of 500 images, start and rows included, over the bare forward passes": "folder_over_bare",
        "AUs and emotion of image files, over transformers' pipeline with a plain ViT-B": "over_vit_pipeline",
        "speed by ONNX, over torch": "onnx_over_eager",
        "speed by 8 bits, over torch": "int8_over_eager",
        "macro AU F1 that 8 bits lose, the earlier checkpoint of drawn faces, on such faces": "int8_f1_loss",
        "peak memory for ten times as many images, the same": "memory_folder_ratio",
        "peak memory for a video of 20 minutes, over one of two": "memory_video_ratio",
    }
    forms = {"int8_f1_loss": ".4f"}
    cells = {title: [figure("inference_base", name, forms.get(name, ".2f"))] for title, name in rows.items()}
    return table("one CPU thread, `base` with random weights, drawn faces | measured", cells)


def compared(rows: dict[str, str], head: str, columns: dict[str, str]) -> Iterator[str]:
    """In %, with the 95 % interval over people. rows: title -> `table/system`; the last row names what has not run."""
    path = ROOT / "examples" / "benchmark" / "results" / "tables_tiny.json"
    known = results("tables_tiny") if path.is_file() else {}

    def cell(key: str) -> str:
        if f"{key}/mean" not in known:
            return ""
        mean, low, high = (format(known[f"{key}/{kind}"], ".1%").removesuffix("%") for kind in ("mean", "low", "high"))
        return f"{mean} [{low}, {high}]"

    run = {title: key for title, key in rows.items() if f"{key}/style/au_f1/mean" in known}
    cells = {title: [cell(f"{key}/{column}") for column in columns.values()] for title, key in run.items()}
    if missing := [title for title in rows if title not in run]:
        cells[f"not run yet: {'; '.join(missing)}"] = [""] * len(columns)
    return table(" | ".join([head, *columns]), cells)


SYSTEMS = {
    "linear probe, all tokens": "probe_tokens",
    "linear probe, mean of tokens": "probe_pooled",
    "linear probe, landmarks": "probe_landmarks",
    "linear probe, all tokens and landmarks": "probe_tokens_landmarks",
    "MF², tower frozen": "mf2",
    "MF² without language, as many steps": "mf2_no_language",
    "MF² without language, as many CPU-seconds": "mf2_no_language_cpu",
    "MF² + DFN (ours)": "mf2_dfn",
    "MF² + LoRA": "mf2_lora",
    "MF², tower trained": "mf2_tower",
    "full fine-tuning, linear head": "full",
    "HSEmotion": "hsemotion",
    "VL-FAU": "vl_fau",
    "ME-GraphAU": "me_graph_au",
    "Exp-BLIP": "exp_blip",
}
_COLUMNS = {
    "AU F1, report people": "test/au_f1",
    "AU F1, another style": "style/au_f1",
    "emotion recall, another style": "style/emotion_macro_recall",
    "emotion recall, photographs": "photographs/emotion_macro_recall",
    "AU AUC, photographs": "photographs/au_auc",
}


def systems() -> Iterator[str]:
    rows = {title: f"headline/{name}" for title, name in SYSTEMS.items()}
    return compared(rows, "in %, 95 % interval over people", _COLUMNS)


def telling() -> Iterator[str]:
    """The README's four rows."""
    names = ("linear probe, all tokens", "MF², tower frozen", "full fine-tuning, linear head", "MF², tower trained")
    rows = {title: f"headline/{SYSTEMS[title]}" for title in names}
    columns = {
        title: key for title, key in _COLUMNS.items() if title in ("AU F1, another style", "AU AUC, photographs")
    }
    return compared(rows, "in %", columns)


def adapted() -> Iterator[str]:
    names = {"MF² as it is": "mf2", "linear probe, all tokens": "adapt_probe", "MF², its heads": "adapt_heads"}
    names |= {"DFN (ours)": "adapt_dfn", "the paper's DFN": "adapt_dfn_paper", "LoRA": "adapt_lora", "IA3": "adapt_ia3"}
    rows = {t: f"adapt/{name}" for t, name in {**names, "all of MF², tower too": "adapt_full"}.items()}
    return compared(rows, "256 labelled images, in %", dict(list(_COLUMNS.items())[1:]))


_ENDS = ("", "_low", "_high")


def labelled() -> Iterator[str]:
    names = {"as released": "released", "DFN (ours)": "dfn_400", "linear probe": "probe_400", "LoRA": "lora_400"}
    names["all of it from random weights"] = "untrained_400"
    rows = {t: [figure("adaptation", f"{n}_macro_recall{kind}", ".3f") for kind in _ENDS] for t, n in names.items()}
    return table("400 labelled photographs, macro recall of emotions | mean | low | high", rows)


def outside() -> Iterator[str]:
    tools = {
        "MF² as released: synthetic people alone": "mf2",
        "landmarks + logistic regression, labels of these photographs' other people": "landmarks",
        "`fer` 25.10.3: MIT, FER2013's photographs": "fer",
        "`facex` 1.1.0: MIT, data not stated": "facex",
    }
    rows = {t: [figure("outside", f"{name}_macro_recall{kind}", ".3f") for kind in _ENDS] for t, name in tools.items()}
    return table("emotion, macro recall on photographs | mean | low | high", rows)


def paper_scale() -> Iterator[str]:
    rows = {
        "dry run: memory of a step, estimated, off by, `tiny`, %": ("dry_run_memory_error_tiny", ".1%"),
        "dry run: memory of a step, estimated, off by, `base`, %": ("dry_run_memory_error_base", ".1%"),
        "tokens stored: a later epoch is faster by, Exp-BLIP's probe of the tower": ("store_speedup", ".1f"),
        "tokens stored, `--task full`, Emo-VL alone": ("store_speedup_full_emo_vl", ".2f"),
        "tokens stored, `--task full`": ("store_speedup_full", ".2f"),
        "tokens stored, `--task pretrain`": ("store_speedup_pretrain", ".2f"),
        "states stored: a later epoch is faster by, `--task dfn`": ("store_speedup_dfn", ",.0f"),
        "store by two processes, built faster by, CPU time of the busier": ("two_process_speedup_by_cpu_time", ".2f"),
        "store by two processes, built faster by, by the clock": ("two_process_speedup", ".2f"),
        "DFN to another style, macro AU F1, by all states": ("dfn_all_au_f1", ".3f"),
        "DFN to another style, macro AU F1, by compact states": ("dfn_compact_au_f1", ".3f"),
        "DFN to another style, emotion top-1, by all states": ("dfn_all_emotion_top1", ".3f"),
        "DFN to another style, emotion top-1, by compact states": ("dfn_compact_emotion_top1", ".3f"),
        "giant: operations of an image in pre-training, TFLOP": ("training_tflop_per_image", ".2f"),
        "giant: an epoch of 31,320 images on an H200, assumed, minutes": ("epoch_minutes_assumed_h200", ".1f"),
        "giant: answers of 3,376 images on an H200, assumed, s": ("inference_seconds_assumed_h200", ".1f"),
    }
    known = results("paper_scale")
    cells = {title: [figure("paper_scale", *found)] for title, found in rows.items() if found[0] in known}
    return table("synthetic (rendered) faces and random weights, `base` on one CPU thread | figure", cells)


def rendered() -> Iterator[str]:
    rows = {
        "examples a CPU-second, 112 pixels": ("images_per_cpu_s_112", ".0f"),
        "examples a CPU-second, 224 pixels": ("images_per_cpu_s_224", ".0f"),
        "found by MediaPipe's networks, heads turned by at most 45 degrees": ("found_by_detector", ".1%"),
        "their points from ours, median, in outer-eye distances": ("landmark_agreement", ".3f"),
        "the same, heads turned by at most 10 degrees": ("landmark_agreement_frontal", ".3f"),
        "their points from their own of the mirrored image": ("mirror_agreement", ".3f"),
        "AU F1, macro, of the nearest neighbour on pixels": ("knn_f1", ".2f"),
        "AU F1, macro, of logistic regression on pixels": ("pixel_logreg_f1", ".2f"),
        "AU F1, macro, of naming every AU": ("all_ones_f1", ".2f"),
        "AU F1, macro, of the truth: annotators err": ("au_ceiling", ".2f"),
        "emotion top-1 of the truth": ("emotion_ceiling", ".2f"),
        "AUC of light, age, glasses, skin and pose for the labels (chance 0.5)": ("facts_auc", ".2f"),
    }
    cells = {
        title: [format(results("rendered")[f"{style}_{key}"], form) for style in ("studio", "street", "webcam")]
        for title, (key, form) in rows.items()
        if f"studio_{key}" in results("rendered")
    }
    return table("rendered (synthetic) faces | `studio` | `street` | `webcam`", cells)


TABLES: dict[str, Callable[[], Iterator[str]]] = {
    made.__name__: made
    for made in (checkpoint, finetuning, inference, systems, telling, adapted, labelled, outside, paper_scale, rendered)
}


def picture() -> None:
    """The released checkpoint's own face, explained; it is synthetic."""
    from PIL import Image

    from mf2face import explain
    from mf2face.files import RELEASED

    with tempfile.TemporaryDirectory() as folder:
        explain(RELEASED / "face.png", aligned=True).save_png(Path(folder, "why.png"))
        shown = Image.open(Path(folder, "why.png")).convert("RGB")
        shown.thumbnail((1200, 1200), Image.Resampling.LANCZOS)
        shown.save(HERO, quality=90)


def answered(text: str) -> str:
    """With what the README's first lines print."""
    import contextlib
    import io

    def run(found: re.Match) -> str:
        with contextlib.redirect_stdout(io.StringIO()) as printed:
            exec(found[2], {})
        return found[1] + printed.getvalue()

    return ANSWER.sub(run, text)


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pictures", action="store_true", help="also the README's picture and answer (needs torch)")
    pictures = parser.parse_args(argv).pictures
    if pictures:
        picture()
    for page in PAGES:
        text = page.read_text(encoding="utf-8")
        new = filled(answered(text) if pictures and page.name == "README.md" else text)
        if new != text:
            page.write_text(new, encoding="utf-8")
            print(f"{page.relative_to(ROOT)}: renewed")


if __name__ == "__main__":
    main()
