"""A licensed corpus's folder, or your own, becomes a data set that train.py takes.

    python examples/build_dataset.py aff_wild2 ~/corpora/Aff-Wild2 datasets/mfa --landmarks template --paper
    python examples/build_dataset.py own ~/pictures datasets/mine --map Contempt=Other
    python train.py --dataset datasets/mfa [--streaming --max_steps 20000]

Every image that has a label is kept unless you ask otherwise; the last line counts what was left out, and why.
Reader options behind --reader: --reader threshold=1 images=original.
"""

import argparse
from contextlib import nullcontext

from mf2face.command_line import named, python_value, run_as_command
from mf2face.data.build.landmark_cache import open_cache
from mf2face.data.build.mfa import BuildOptions, build_mfa, planned_counts, summary
from mf2face.data.build.splits import PAPER_PROTOCOL, differences_from_paper, plan_mfa
from mf2face.data.corpora.frames import REQUIRED
from mf2face.data.corpora.read import SOURCES, protocol, read_corpus
from processing_mf2.detection import DETECTORS


def parse(argv: list[str] | None) -> argparse.Namespace:
    form = argparse.RawDescriptionHelpFormatter
    protocols = "\n\n".join(f"{name}: {protocol(name)}" for name in SOURCES)
    parser = argparse.ArgumentParser(description=__doc__, epilog=protocols, formatter_class=form)
    parser.add_argument("corpus", choices=SOURCES)
    parser.add_argument("folder")
    parser.add_argument("out")
    for name, kind, read, example, about in (
        ("reader", "VALUE", python_value, "NAME=VALUE", "options of the corpus's reader"),
        ("map", "EMOTION", str, "Contempt=Other", "an emotion's name in your files, and what it counts as"),
        ("per_emotion", "WHOLE NUMBER", int, "train=3915", "so many images of each emotion; the others are left out"),
        ("sizes", "NUMBER", float, "train=0.8", "shares of the splits"),
        ("videos", "WHOLE NUMBER", int, "train=134", "how many in each split"),
    ):
        parser.add_argument(f"--{name}", nargs="+", type=named(name, kind, read), metavar=example, help=about)
    parser.add_argument("--label_set", help="AUs and emotions by name; the corpus's own unless given")
    parser.add_argument("--require", choices=REQUIRED, help="labels that an image must have; any of them unless given")
    parser.add_argument("--every", type=int, default=1, help="every n-th frame, and changes of labels")
    either = argparse.BooleanOptionalAction
    parser.add_argument("--balance", action=either, help="as many images of each emotion, and the others left out")
    parser.add_argument("--official", action=either, help="the corpus's own split")
    parser.add_argument("--fold", type=int, help="of the corpus's folds, the one to test on")
    parser.add_argument("--paper", action="store_true", help="the MFA paper's protocol and counts, as near as possible")
    parser.add_argument("--landmark_cache", help="cache of detected landmarks; beside the images unless given")
    parser.add_argument("--detector", choices=DETECTORS, help="mediapipe if `mf2 setup` was run, else face_alignment")
    parser.add_argument("--device", default="cpu", help="of face_alignment")
    for name, default in vars(BuildOptions()).items():
        flag = {"action": either} if isinstance(default, bool) else {"type": type(default)}
        parser.add_argument(f"--{name}", default=None if name == "near" else default, **flag)
    given = parser.parse_args(argv)
    given.near = given.near or ("drop" if given.paper else BuildOptions.near)
    return given


def main(argv: list[str] | None = None) -> dict:
    given = parse(argv)
    options = BuildOptions(**{name: getattr(given, name) for name in vars(BuildOptions())})
    reader = {"label_set": given.label_set, "emotion_map": dict(given.map or ()), **dict(given.reader or ())}
    frames = read_corpus(given.corpus, given.folder, **{name: value for name, value in reader.items() if value})
    print(f"{given.corpus}: " + ", ".join(f"{value:,} {name}" for name, value in frames.counts.items()))
    plan = {name: getattr(given, name) for name in ("require", "every", "balance", "official", "fold", "seed")}
    plan |= {name: dict(getattr(given, name) or ()) or None for name in ("sizes", "videos", "per_emotion")}
    plan = {name: value for name, value in plan.items() if value is not None}
    frames, split = plan_mfa(frames, **((PAPER_PROTOCOL if given.paper else {}) | plan))
    if given.paper:  # before hours of cropping
        lines = differences_from_paper(planned_counts(frames, split)) or ["the paper's counts of images and videos"]
        print("\n".join(f"--paper, planned: {line}" for line in lines))
    detect = options.landmarks == "detector"
    where = {"file": given.landmark_cache, "device": given.device}
    with open_cache(given.folder, given.detector, **where) if detect else nullcontext() as cache:
        report = build_mfa(frames, split, given.out, options, cache)
    print(summary(report, given.out))
    print(*(f"--paper: {line}\n" for line in differences_from_paper(report["counts"]) if given.paper), sep="", end="")
    return report


if __name__ == "__main__":
    run_as_command(main)
