"""A licensed corpus's folder, or your own, becomes a data set that train.py takes.

    python examples/build_dataset.py aff_wild2 ~/corpora/Aff-Wild2 datasets/mfa --landmarks template --paper
    python examples/build_dataset.py own ~/pictures datasets/mine --require emotion --no-balance
    python train.py --dataset datasets/mfa [--streaming --max_steps 20000]

Reader options behind --reader: --reader threshold=1 images=original.
"""

import argparse
import ast

from dataset_mf2.building_mf2 import BuildOptions, build_mfa
from dataset_mf2.landmark_cache_mf2 import LandmarkCache
from dataset_mf2.sources_mf2 import SOURCES, protocol, read_corpus
from dataset_mf2.splitting_mf2 import PAPER_PROTOCOL, plan_mfa


def pairs(words: list[str]) -> dict:
    """name=value, where a value is Python's, or else a text."""
    found = {}
    for name, _, value in (word.partition("=") for word in words):
        try:
            found[name] = ast.literal_eval(value)
        except (ValueError, SyntaxError):
            found[name] = value
    return found


def parse(argv: list[str] | None) -> argparse.Namespace:
    form = argparse.RawDescriptionHelpFormatter
    protocols = "\n\n".join(f"{name}: {protocol(name)}" for name in SOURCES)
    parser = argparse.ArgumentParser(description=__doc__, epilog=protocols, formatter_class=form)
    parser.add_argument("corpus", choices=SOURCES)
    parser.add_argument("folder")
    parser.add_argument("out")
    parser.add_argument("--reader", nargs="+", default=[], metavar="NAME=VALUE", help="options of the corpus's reader")
    parser.add_argument("--label_set", help="AUs and emotions by name; the corpus's own unless given")
    parser.add_argument("--require", default="both", choices=("both", "au", "emotion", "any"))
    parser.add_argument("--every", type=int, default=1, help="every n-th frame, and changes of labels")
    parser.add_argument("--balance", action=argparse.BooleanOptionalAction, default=True, help="emotions alike")
    parser.add_argument("--per_emotion", nargs="+", default=[], metavar="train=3915")
    parser.add_argument("--sizes", nargs="+", default=["train=0.8", "validation=0.1", "test=0.1"])
    parser.add_argument("--videos", nargs="+", default=[], metavar="train=134")
    parser.add_argument("--official", action=argparse.BooleanOptionalAction, help="the corpus's own split")
    parser.add_argument("--fold", type=int, help="of the corpus's folds, the one to test on")
    parser.add_argument("--paper", action="store_true", help="the MFA paper's counts (for aff_wild2)")
    parser.add_argument("--landmark_cache", help="where found landmarks are kept; beside the images unless given")
    parser.add_argument("--device", default="cpu", help="of the landmark detector")
    for name, default in vars(BuildOptions()).items():
        flag = {"action": argparse.BooleanOptionalAction} if isinstance(default, bool) else {"type": type(default)}
        parser.add_argument(f"--{name}", default=default, **flag)
    return parser.parse_args(argv)


def main(argv: list[str] | None = None) -> dict:
    given = parse(argv)
    reader = pairs(given.reader) | ({"label_set": given.label_set} if given.label_set else {})
    frames = read_corpus(given.corpus, given.folder, **reader)
    print(f"{given.corpus}: " + ", ".join(f"{value:,} {name}" for name, value in frames.counts.items()))
    counts = {name: pairs(getattr(given, name)) or None for name in ("sizes", "videos", "per_emotion")}
    frames, split = plan_mfa(
        frames,
        **(PAPER_PROTOCOL if given.paper else counts | {"require": given.require}),
        **{name: getattr(given, name) for name in ("every", "balance", "official", "fold", "seed")},
    )
    options = BuildOptions(**{name: getattr(given, name) for name in vars(BuildOptions())})
    if options.landmarks == "detector":
        with LandmarkCache(given.folder, file=given.landmark_cache, device=given.device) as cache:
            report = build_mfa(frames, split, given.out, options, cache)
    else:
        report = build_mfa(frames, split, given.out, options)
    for name, counts in report["counts"].items():
        print(f"{name}: " + ", ".join(f"{value:,} {what}" for what, value in counts.items()))
    print(f"{len(report['near_identical'])} all but identical across splits; see {given.out}/README.md")
    return report


if __name__ == "__main__":
    main()
