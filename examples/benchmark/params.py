"""Counts the parameters of each part, on the meta device: no memory is needed, not even for the paper's size.

python examples/benchmark/params.py [--size giant] [--json FILE]
"""

import argparse

import torch
from report import write_json
from torch import nn

from configuration_mf2 import MF2Config
from modeling_mf2 import MF2ForPreTraining


PAPER_MILLIONS = {"emo_vl_trainable": 186.7, "au_vl_trainable": 186.7, "both_trainable": 373.4}  # Table IV


def count(module: nn.Module, trainable: bool = True) -> int:
    return sum(parameter.numel() for parameter in module.parameters() if parameter.requires_grad or not trainable)


def main(argv: list[str] | None = None) -> dict[str, int]:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", default="giant", choices=("tiny", "base", "giant"))
    parser.add_argument("--json", help="write the figures there, as one flat object")
    arguments = parser.parse_args(argv)
    with torch.device("meta"):
        model = MF2ForPreTraining(MF2Config.from_size(arguments.size))
    mf2 = model.mf2
    figures = {
        "emo_vl_trainable": count(mf2.emo_vl),
        "au_vl_trainable": count(mf2.au_vl),
        "both_trainable": count(mf2.emo_vl) + count(mf2.au_vl),
        "au_identity_and_region_positions": mf2.au_embedding.numel() + count(mf2.regions),
        "classifiers": count(model.classifiers),
        "vision_tower_frozen": count(mf2.vision, trainable=False),
        "vision_tower_trainable": count(mf2.vision),
        "all_trainable": count(model),
    }
    print(f"{'MF2 ' + arguments.size + ', parameters':40} {'ours':>15} {'the paper':>12}")
    for name, value in figures.items():
        paper = f"{PAPER_MILLIONS[name]} M" if arguments.size == "giant" and name in PAPER_MILLIONS else ""
        print(f"{name:40} {value:15,} {paper:>12}")
    write_json(arguments.json, figures)
    return figures


if __name__ == "__main__":
    main()
