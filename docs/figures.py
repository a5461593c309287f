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


def spread(file: str, key: str) -> str:
    return f"{figure(file, f'{key}/mean', '.1%')} ± {figure(file, f'{key}/sd', '.1%')}"


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
    methods = {"linear probe": "linear_probe", "DFN, states stored": "dfn", "LoRA": "lora", "full fine-tuning": "full"}
    worth, cost = "finetuning_accuracy_tiny", "finetuning_cost_base"

    def cells(name: str) -> Iterator[str]:
        for key in (f"{name}_au", f"{name}_emotion"):
            known = key in results(worth)
            yield f"{figure(worth, key, '.3f')} ± {figure(worth, f'{key}_sd', '.3f')}" if known else ""
        for key in (f"{name}_trainable", f"{name}_epoch_s", f"{name}_memory_mb"):
            yield figure(cost, key, ",.0f") if key in results(cost) else ""

    head = "synthetic faces; cost: random weights | AU F1, tuned | emotion top-1 | trainable, `base` | "
    head += "epoch, CPU-s, `base` | training memory, MiB, `base`"
    return table(head, {title: [*cells(name)] for title, name in methods.items()})


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


def systems() -> Iterator[str]:
    titles = {"mf2": "MF² (pre-train)", "mf2_dfn": "MF² + DFN", "vl_fau": "VL-FAU", "exp_blip": "Exp-BLIP"}
    titles |= {"me_graph_au": "ME-GraphAU", "hsemotion": "HSEmotion"}
    titles |= {"mf2_without_emo_vl": "MF² without Emo-VL", "mf2_without_au_vl": "MF² without AU-VL"}
    columns = ("au", "au_tuned", "top1", "macro_recall", "macro_f1", "avg")
    rows = {
        title: [spread("tables_tiny", f"all/{name}/{column}") for column in columns] for name, title in titles.items()
    }
    head = "synthetic faces, in % | AU F1 at 0.5 | AU F1, tuned | emotion top-1 | macro recall | macro F1 | "
    return table(f"{head}one-vs-rest accuracy", rows)


def exp_blip() -> Iterator[str]:
    def cells(name: str) -> Iterator[str]:
        for by in ("probe", "tuned"):
            for features in ("vision", "qformer"):
                cell = "exp_blip" if (name, features, by) == ("exp", "qformer", "tuned") else None
                cell = cell or f"exp_blip_{name}_{features}_{by}"
                keys = [f"expblip/{cell}/{column}/mean" for column in ("au_tuned", "top1")]
                yield " / ".join(figure("exp_blip_tiny", key, ".1%") for key in keys)
        for column in ("bleu_4", "au_facts", "emotion_facts"):
            yield figure("exp_blip_tiny", f"captions/exp_blip_{name}_stage2/{column}/mean", ".1%")

    titles = {"emot": "Emot", "au": "AU", "mix": "Mix", "cat": "Cat", "exp": "Exp"}
    head = "synthetic faces, in % | tower, probe | Q-Former, probe | tower, fine-tuned | Q-Former, fine-tuned | "
    head += "BLEU-4 | AU facts, F1 | emotion facts"
    return table(head, {title: [*cells(name)] for name, title in titles.items()})


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
    made.__name__: made for made in (checkpoint, finetuning, inference, systems, exp_blip, rendered)
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
