"""Our Q-Former against `transformers`' `Blip2QFormerModel`: same shape, same weights, side by side in one run.

python examples/benchmark/qformer.py [--rounds 9] [--small] [--json FILE]

Two loads: 8 images x 32 queries over 197 tokens, and 96 AU regions x 32 queries over 18 tokens. Each round times ours
and theirs (sdpa and eager) one after the other, in turning order, so that a slow moment of the machine meets all three.
The figures are medians over the rounds of our time divided by that of the better of their two attention paths. The
share of the peak is the necessary multiplications of the load a second, over what a large matrix product reaches in the
same process.
"""

import statistics
from collections.abc import Callable
from functools import partial

import torch
from report import in_turns, options, seconds, write_json
from transformers import Blip2QFormerConfig, Blip2QFormerModel

from configuration_mf2 import MF2QFormerConfig
from modeling_mf2.convert import qformer_names
from modeling_mf2.qformer import MF2QFormer


LOADS = {"32": (8, 197), "384": (96, 18)}


def peak_flops() -> float:
    left, right = torch.randn(2048, 2048), torch.randn(2048, 2048)
    return 2 * 2048**3 / min(seconds(lambda: left @ right) for _ in range(7))


def necessary_flops(config: MF2QFormerConfig, images: int, tokens: int, queries: int = 32) -> float:
    """Of one forward pass: projections, attention and feed-forward nets of the query path, all blocks."""
    width, rows = config.hidden_size, images * queries
    self_attention = 4 * rows * width**2 + 2 * rows * queries * width
    cross_attention = 2 * rows * width**2 + 2 * images * tokens * config.encoder_hidden_size * width
    cross_attention += 2 * rows * tokens * width
    feed_forward = 2 * rows * width * config.intermediate_size
    crossing = len(range(0, config.num_hidden_layers, config.cross_attention_frequency))
    return 2.0 * (config.num_hidden_layers * (self_attention + feed_forward) + crossing * cross_attention)


def our_states(model: MF2QFormer, queries: torch.Tensor, image: torch.Tensor) -> torch.Tensor:
    return model(queries=queries, image=image).query_states


def their_states(model: Blip2QFormerModel, queries: torch.Tensor, image: torch.Tensor) -> torch.Tensor:
    return model(query_embeds=queries.expand(len(image), -1, -1), encoder_hidden_states=image).last_hidden_state


def forward(call: Callable[[], torch.Tensor]) -> None:
    with torch.no_grad():
        call()


def forward_backward(call: Callable[[], torch.Tensor]) -> None:
    call().square().mean().backward()


def main(argv: list[str] | None = None) -> dict[str, float]:
    parser = options(__doc__)
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--small", action="store_true", help="a few narrow blocks: shows that the script works")
    arguments = parser.parse_args(argv)

    torch.manual_seed(0)
    shape = {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0, "encoder_hidden_size": 768}
    if arguments.small:
        shape |= {"num_hidden_layers": 2, "hidden_size": 96, "intermediate_size": 192, "encoder_hidden_size": 96}
    theirs = {
        name: Blip2QFormerModel(Blip2QFormerConfig(**shape, attn_implementation=name)) for name in ("sdpa", "eager")
    }
    theirs["eager"].load_state_dict(theirs["sdpa"].state_dict())
    ours = MF2QFormer(MF2QFormerConfig(**shape))
    ours.load_state_dict(qformer_names(theirs["sdpa"].state_dict()), strict=False)

    figures: dict[str, float] = {}
    peak = peak_flops()
    print(f"{torch.get_num_threads()} threads, matrix-product peak {peak / 1e9:.0f} GFLOP/s, {arguments.rounds} rounds")
    print(f"{'load':38} {'ours':>8} {'sdpa':>8} {'eager':>8} {'ours/best':>9} {'of peak':>8}")
    for load, (images, tokens) in LOADS.items():
        queries = torch.randn(1, 32, ours.config.hidden_size)
        image = torch.randn(images, tokens, ours.config.encoder_hidden_size)
        calls = {"ours": partial(our_states, ours, queries, image)}
        calls |= {name: partial(their_states, model, queries, image) for name, model in theirs.items()}
        with torch.no_grad():
            difference = (calls["ours"]() - calls["sdpa"]()).abs().max().item()
        if difference > 1e-4:
            raise RuntimeError(f"ours and theirs differ by {difference}: nothing to compare")
        for kind, run, passes in (("forward", forward, 1), ("train", forward_backward, 3)):
            rounds = in_turns({name: partial(run, call) for name, call in calls.items()}, arguments.rounds)
            medians = {name: statistics.median(times[name] for times in rounds) for name in calls}
            best = min(theirs, key=medians.get)
            ratio = statistics.median(times["ours"] / times[best] for times in rounds)
            share = passes * necessary_flops(ours.config, images, tokens) / medians["ours"] / peak
            columns = " ".join(f"{medians[name]:7.3f}s" for name in calls)
            title = f"{kind}, {images} x 32 queries, {tokens} tokens"
            print(f"{title:38} {columns} {ratio:9.3f} {share:8.2f}")
            figures[f"{kind}_{load}"] = ratio
            figures[f"{kind}_{load}_share_of_peak"] = share
    write_json(arguments.json, figures)
    return figures


if __name__ == "__main__":
    main()
