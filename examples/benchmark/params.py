"""Counts the parameters of each part, on the meta device: no memory is needed, not even for the paper's size.

python examples/benchmark/params.py [--size giant] [--json FILE]
"""

import torch
from peft import get_peft_model
from report import options, write_json
from torch import nn

from configuration_mf2 import MF2Config
from modeling_mf2 import DFNConfig, MF2ForPreTraining


# Table IV
PAPER_MILLIONS = {"emo_vl_trainable": 186.7, "au_vl_trainable": 186.7, "both_trainable": 373.4, "dfn_heads_all": 52.88}


def count(module: nn.Module, trainable: bool = True) -> int:
    return sum(parameter.numel() for parameter in module.parameters() if parameter.requires_grad or not trainable)


def dfn_counts(size: str) -> dict[str, int]:
    """Trained by the adapter alone, with the classifiers, and with every head beside them."""
    figures = {}
    for name, heads in (("dfn_towers", "none"), ("dfn_heads_task", "task"), ("dfn_heads_all", "all")):
        with torch.device("meta"):
            model = get_peft_model(MF2ForPreTraining(MF2Config.from_size(size)), DFNConfig(heads=heads))
        figures[name] = count(model)
    return figures


def main(argv: list[str] | None = None) -> dict[str, int]:
    parser = options(__doc__)
    parser.add_argument("--size", default="giant", choices=("tiny", "base", "giant"))
    arguments = parser.parse_args(argv)
    with torch.device("meta"):
        model = MF2ForPreTraining(MF2Config.from_size(arguments.size))
    mf2 = model.mf2
    adapters = dfn_counts(arguments.size)
    figures = {
        "emo_vl_trainable": count(mf2.emo_vl),
        "au_vl_trainable": count(mf2.au_vl),
        "both_trainable": count(mf2.emo_vl) + count(mf2.au_vl),
        "au_identity_and_region_positions": mf2.au_embedding.numel() + count(mf2.regions),
        "classifiers": count(model.classifiers),
        "vision_tower_frozen": count(mf2.vision, trainable=False),
        "vision_tower_trainable": count(mf2.vision),
        "all_trainable": count(model),
        **adapters,
    }
    print(f"{'MF2 ' + arguments.size + ', parameters':40} {'ours':>15} {'the paper':>12}")
    for name, value in figures.items():
        paper = f"{PAPER_MILLIONS[name]} M" if arguments.size == "giant" and name in PAPER_MILLIONS else ""
        print(f"{name:40} {value:15,} {paper:>12}")
    if arguments.size == "giant":
        vocabularies = sum(branch.qformer.word_embeddings.weight.numel() for branch in (mf2.emo_vl, mf2.au_vl))
        outputs = 2 * count(nn.Linear(mf2.emo_vl.qformer.config.hidden_size, mf2.emo_vl.qformer.config.hidden_size))
        print(
            f"""
DFN's 28 cells at bottleneck 64 are {figures["dfn_towers"]:,}, with all heads of both branches
{figures["dfn_heads_all"]:,}. No one setting gives the paper's 52.88 M, and the paper does not say what it counts.
Its size would need a vocabulary for each language head ({vocabularies:,} in both; ours are the frozen word
embeddings) and an output layer for each branch ({outputs:,})."""
        )
    write_json(arguments.json, figures)
    return figures


if __name__ == "__main__":
    main()
