"""A pre-training step of ours against a plain reference: same weights, same pairs, equal losses, side by side in a run.

python examples/benchmark/pretraining.py [--size tiny] [--batch_size 16] [--rounds 7] [--json FILE]

The reference calls the same modules as a plain reading of the papers would: a Q-Former pass of its own for the images,
the texts, ITM and ITG, each of which reads the image anew; one action unit after the other; captions padded to their
maximum (emotion 61 and key-AU 169 tokens as in the config, a sentence 32 as in BLIP-2). It is slower than LAVIS in one
point: that one, too, keeps the queries' keys of its image pass for ITG. Two further rows take the padding, then also
the loop from it, so that one sees what each is worth.

A step is forward, backward and AdamW. All pairs are taken and negatives are the most similar ones, in both, so that
nothing is left to chance; dropout is off. Images, captions and labels are MFASynthetic's, as training sees them. Each
round times all rows, in turning order; ratios are medians over the rounds.
"""

import argparse
import os
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable
from functools import partial
from pathlib import Path

import torch
from report import in_turns, options, seconds, write_json
from safetensors.torch import load_file, save_file
from torch.nn.functional import cross_entropy, pad

from configuration_mf2 import MF2Config
from configuration_mf2.configuration_mf2 import LOSSES
from modeling_mf2 import MF2ForPreTraining
from modeling_mf2.losses import classification_losses, weighted_sum
from modeling_mf2.modeling_mf2 import MF2Branch


Batch = dict[str, torch.Tensor]
SENTENCE_LENGTH = 32  # LAVIS's max_txt_len for BLIP-2
NO_DROPOUT = {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}


def real_batch(size: str, images: int) -> Batch:
    """What training's collator makes of synthetic faces of many people."""
    import datasets  # here: the processes that measure memory need none of it

    from mf2face.data.examples import MF2Collator, MF2Examples
    from mf2face.data.synthetic.faces import MFASynthetic
    from processing_mf2 import MF2Processor

    datasets.disable_progress_bars()
    config = MF2Config.from_size(size, shape_weight=0)
    processor = MF2Processor.for_model(config)
    with tempfile.TemporaryDirectory() as folder:
        examples = MF2Examples(
            MFASynthetic(8 * images, size=config.vision_config.image_size, cache_dir=folder), processor
        )
        chosen = torch.randperm(len(examples), generator=torch.Generator().manual_seed(0))[:images]
        return MF2Collator(processor.tokenizer.pad_token_id)([examples[i] for i in chosen.tolist()])


def pad_to_maximum(batch: Batch, config: MF2Config) -> Batch:
    limits = {"": config.emotion_max_length, "key_au_": config.au_max_length, "au_": SENTENCE_LENGTH}
    padded = dict(batch)
    for prefix, limit in limits.items():
        for name in (f"{prefix}input_ids", f"{prefix}attention_mask"):
            padded[name] = pad(batch[name], (0, max(0, limit - batch[name].shape[-1])))
    return padded


class PlainBranch:
    """The losses of one branch. `groups`: the rows that go through a pass together."""

    def __init__(
        self, branch: MF2Branch, queries: torch.Tensor, image: torch.Tensor, groups: tuple[torch.Tensor, ...]
    ) -> None:
        self.branch, self.queries, self.image, self.groups = branch, queries, image, groups
        self.states = self.passes(lambda rows: branch.qformer(queries=queries[rows], image=image[rows]).query_states)

    def passes(self, one: Callable[[torch.Tensor], torch.Tensor]) -> torch.Tensor:
        return torch.cat([one(rows) for rows in self.groups])[torch.cat(self.groups).argsort()]

    def align(
        self, ids: torch.Tensor, mask: torch.Tensor, meaning: torch.Tensor, known: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """meaning (rows, n): what a caption is about; known (rows,): whether it has one."""
        image_features = self.branch.heads.image_features(self.states)
        text_states = self.passes(lambda rows: self.branch.read_text(ids[rows], mask[rows]).text_states)
        text_features = self.branch.heads.text_features(text_states)
        similarity = torch.einsum("iqd,td->itq", image_features, text_features).amax(-1) / self.branch.temperature
        texts, valid = ids * mask, mask.any(1)
        # Equal captions are no negatives of each other, nor are those that mean the same.
        same = (meaning[:, None] == meaning[None]).all(-1) & known[:, None] & known
        negative = (texts[:, None] != texts[None]).any(-1) & ~same & valid
        own = torch.arange(len(ids))
        hidden = ~(negative | torch.eye(len(ids), dtype=torch.bool))
        both = [table.masked_fill(hidden, -torch.inf) for table in (similarity, similarity.T)]
        contrast = sum(cross_entropy(table[valid], own[valid]) for table in both) / 2
        tables = torch.stack([similarity, similarity.T]).detach()
        most_similar = tables.masked_fill(~negative, -torch.inf).argmax(-1)  # to each image, to each text
        return contrast, self.match(ids, mask, most_similar, negative.any(1)), self.write(ids, mask, mask)

    def match(self, ids: torch.Tensor, mask: torch.Tensor, similar: torch.Tensor, found: torch.Tensor) -> torch.Tensor:
        wrong_text, wrong_image = similar

        def logits(rows: torch.Tensor) -> torch.Tensor:
            images = torch.cat([rows, wrong_image[rows], rows])
            texts = torch.cat([rows, rows, wrong_text[rows]])
            states = self.branch.qformer(
                queries=self.queries[images], image=self.image[images], input_ids=ids[texts], text_mask=mask[texts]
            ).query_states
            return self.branch.heads.itm(states).mean(1).view(3, len(rows), 2).transpose(0, 1)

        valid = mask.any(1)
        counted = torch.stack([valid, valid & found, valid & found], dim=1)
        target = torch.tensor([1, 0, 0]).expand(len(ids), 3)
        return cross_entropy(self.passes(logits)[counted], target[counted])

    def write(self, ids: torch.Tensor, mask: torch.Tensor, learned: torch.Tensor) -> torch.Tensor:
        def token_losses(rows: torch.Tensor) -> torch.Tensor:
            started = ids[rows].clone()
            started[:, 0] = self.branch.qformer.config.bos_token_id
            states = self.branch.qformer(
                **{"queries": self.queries[rows], "image": self.image[rows], "mode": "causal"},
                **{"input_ids": started, "text_mask": mask[rows]},
            ).text_states
            targets = started.masked_fill(learned[rows] == 0, -100)[:, 1:]
            return cross_entropy(self.branch.language_logits(states)[:, :-1].transpose(1, 2), targets, reduction="none")

        return self.passes(token_losses).sum() / learned[:, 1:].sum()


def plain_losses(model: MF2ForPreTraining, batch: Batch, loop: bool = True) -> Batch:
    mf2, config = model.mf2, model.config
    images, units = len(batch["pixel_values"]), len(config.action_units)
    rows = torch.arange(images * units)
    tokens = mf2.vision(batch["pixel_values"])
    regions = mf2.branch_image("au", tokens, batch["landmarks"])
    face = mf2.branch_image("emo", tokens, batch["landmarks"])
    emo = PlainBranch(mf2.emo_vl, mf2.branch_queries("emo").expand(images, -1, -1), face, (torch.arange(images),))
    groups = tuple(rows[unit::units] for unit in range(units)) if loop else (rows,)
    au = PlainBranch(mf2.au_vl, mf2.branch_queries("au").repeat(images, 1, 1), regions, groups)

    emotion, states = batch["emotion_labels"], batch["au_labels"].flatten()
    parts = dict(
        zip(
            LOSSES[:3],
            emo.align(batch["input_ids"], batch["attention_mask"], emotion[:, None], emotion >= 0),
            strict=True,
        )
    )
    learned = batch["key_au_attention_mask"].clone()
    learned[:, 1 : 1 + config.key_au_prompt_length] = 0
    parts["itg_key_au"] = emo.write(batch["key_au_input_ids"], batch["key_au_attention_mask"], learned)
    sentences = (batch[name].flatten(0, 1) for name in ("au_input_ids", "au_attention_mask"))
    parts |= dict(
        zip(LOSSES[4:7], au.align(*sentences, torch.stack([rows % units, states], dim=1), states >= 0), strict=True)
    )
    emotion_logits, au_logits = model.classifiers(emo.states, au.states.unflatten(0, (images, units)))[:2]
    return parts | classification_losses(config, emotion_logits, batch["emotion_labels"], au_logits, batch["au_labels"])


def our_losses(model: MF2ForPreTraining, batch: Batch) -> Batch:
    output = model(**batch)
    return {name: output[name] for name in LOSSES if name in output}


def step(
    losses: Callable[..., Batch], model: MF2ForPreTraining, optimizer: torch.optim.Optimizer, batch: Batch
) -> None:
    optimizer.zero_grad(set_to_none=True)
    weighted_sum(model.config, losses(model, batch)).backward()
    optimizer.step()


def build(size: str) -> tuple[MF2ForPreTraining, torch.optim.Optimizer]:
    torch.manual_seed(0)
    shares = {"emo_pair_share": 1.0, "au_pair_share": 1.0}
    model = MF2ForPreTraining(
        MF2Config.from_size(size, shape_weight=0, emo_config=NO_DROPOUT, au_config=NO_DROPOUT, **shares)
    )
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    return model.eval(), torch.optim.AdamW(trained, 1e-4)  # eval: all pairs, and the most similar negatives


def differences(model: MF2ForPreTraining, batch: Batch, padded: Batch) -> dict[str, float]:
    """The largest between the losses, and between their gradients."""
    found = []
    for parts in (our_losses(model, batch), plain_losses(model, padded)):
        model.zero_grad()
        weighted_sum(model.config, parts).backward()
        found.append((parts, {name: p.grad for name, p in model.named_parameters() if p.grad is not None}))
    largest = {}
    for figure, ours, theirs in zip(("loss_difference", "gradient_difference"), *found, strict=True):
        largest[figure] = max((ours[name] - theirs[name]).abs().max().item() for name in ours.keys() | theirs.keys())
        if not largest[figure] < 1e-4:
            raise RuntimeError(f"{figure}: got {largest[figure]}, expected less than 1e-4: there is nothing to compare")
    return largest


def shares(model: MF2ForPreTraining, losses: Callable[..., Batch], batch: Batch) -> dict[str, float]:
    """Seconds of the forward pass in each kind of Q-Former pass, and in all else."""
    spent, started = defaultdict(float), [0.0]

    def begin(module: torch.nn.Module, args: tuple, kwargs: dict) -> None:
        started[0] = time.perf_counter()

    def end(branch: str, module: torch.nn.Module, args: tuple, kwargs: dict, output: object) -> None:
        kinds = {"unimodal": "ITC text", "causal": "ITG", "two_way": "ITM"}
        kind = kinds[kwargs.get("mode", "two_way")] if kwargs.get("input_ids") is not None else "image"
        spent[f"{branch} {kind}"] += time.perf_counter() - started[0]

    hooks = []
    for name, branch in (("Emo", model.mf2.emo_vl), ("AU", model.mf2.au_vl)):
        hooks.append(branch.qformer.register_forward_pre_hook(begin, with_kwargs=True))
        hooks.append(branch.qformer.register_forward_hook(partial(end, name), with_kwargs=True))
    whole = seconds(lambda: losses(model, batch))
    for hook in hooks:
        hook.remove()
    return {**spent, "all else": whole - sum(spent.values())}


def peak_memory(size: str, losses: str, batch: Batch) -> float:
    """MiB that a process of its own held at most over two steps, libraries included."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "batch.safetensors"
        save_file({key: value.contiguous() for key, value in batch.items()}, path)
        command = [sys.executable, __file__, "--size", size, "--memory_of", losses, str(path)]
        known = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)}
        return float(subprocess.run(command, check=True, env=known, stdout=subprocess.PIPE, text=True).stdout)


def two_steps(size: str, losses: str, batch: str) -> None:
    model, optimizer = build(size)
    for _ in range(2):
        step(ROWS[losses], model, optimizer, load_file(batch))
    status = Path("/proc/self/status")
    if status.exists():  # rather than ru_maxrss, which also counts what the parent held when it started this process
        print(int(status.read_text().split("VmHWM:")[1].split()[0]) / 2**10)
    else:
        print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / (2**20 if sys.platform == "darwin" else 2**10))


# What is timed: its losses, and the figure that is ours divided by it.
ROWS = {
    "ours": our_losses,
    "reference": plain_losses,
    "reference, shorter padding": plain_losses,
    "... and no loop": partial(plain_losses, loop=False),
}
RATIOS = dict(zip(list(ROWS)[1:], ("step_ratio", "step_ratio_shorter_padding", "step_ratio_no_loop"), strict=True))


def compare(calls: dict[str, Callable[[], None]], rounds: int) -> dict[str, float]:
    measured = in_turns(calls, rounds)
    medians = {name: statistics.median(times[name] for times in measured) for name in calls}
    figures = {"step_s": medians["ours"], "reference_step_s": medians["reference"]}
    print(f"{'forward + backward + AdamW':28} {'a step':>9} {'ours / it':>10}")
    for name, median in medians.items():
        ratio = statistics.median(times["ours"] / times[name] for times in measured)
        print(f"{name:28} {median:8.3f}s {ratio:10.3f}")
        if name in RATIOS:
            figures[RATIOS[name]] = ratio
    return figures


def main(argv: list[str] | None = None) -> dict[str, float]:
    parser = options(__doc__)
    parser.add_argument("--size", default="tiny", choices=("tiny", "base"))
    parser.add_argument("--batch_size", type=int, default=16)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--no_memory", action="store_true", help="starts no further processes to measure it")
    parser.add_argument("--memory_of", nargs=2, help=argparse.SUPPRESS)
    arguments = parser.parse_args(argv)
    size, rounds = arguments.size, arguments.rounds
    if arguments.memory_of:
        two_steps(size, *arguments.memory_of)
        return {}

    batch = real_batch(size, arguments.batch_size)
    model, optimizer = build(size)
    batches = {name: pad_to_maximum(batch, model.config) if name == "reference" else batch for name in ROWS}
    figures = differences(model, batch, batches["reference"])
    print(f"MF2 {size}, {arguments.batch_size} synthetic faces, {torch.get_num_threads()} threads")
    print(", ".join(f"{name} {value:.1e}" for name, value in figures.items()))
    calls = {name: partial(step, losses, model, optimizer, batches[name]) for name, losses in ROWS.items()}
    figures |= compare(calls, rounds)
    for name, figure in (("ours", "peak_memory_mb"), ("reference", "reference_peak_memory_mb")):
        spent = shares(model, ROWS[name], batches[name])
        listed = ", ".join(f"{part} {100 * time / sum(spent.values()):.0f}" for part, time in spent.items())
        print(f"{name}, % of the forward pass: {listed}")
        if not arguments.no_memory:
            figures[figure] = peak_memory(size, name, batches[name])
            print(f"{name}, peak resident memory of a process of its own, libraries too: {figures[figure]:.0f} MiB")

    own = MF2Config.from_size(size, shape_weight=0)
    model.config.emo_pair_share, model.config.au_pair_share = own.emo_pair_share, own.au_pair_share
    model.train()
    figures["default_step_s"] = statistics.median(seconds(calls["ours"]) for _ in range(rounds))
    print(f"ours with the pair shares of the {size} config, which training takes ", end="")
    print(f"(Emo {own.emo_pair_share}, AU {own.au_pair_share}): {figures['default_step_s']:.3f}s a step")
    write_json(arguments.json, figures)
    return figures


if __name__ == "__main__":
    main()
