"""What adaptation to a few labelled photographs gives: `finetuning.py --photos`.

    python examples/benchmark/finetuning.py --photos FOLDER [--labels FILE.csv] [--model CHECKPOINT] [--json FILE]

Labels: as for `train.py --dataset own:FOLDER`: image, emotion, subject. Faces are found and cut out once, below the
user's cache, and so are the frozen outputs that DFN, the probe, LoRA and full fine-tuning read; nothing is written
beside the photographs. Five folds by person: every photograph is answered once, by a model that learned from
`--labelled` photographs of other people, drawn at random, rarer emotions shown more often (`train.py --balance True`).
Steps and learning rates are fixed before; no photograph that is answered chooses anything. `--part choose` takes one
half of the people, by a hash of their names, on which steps and rates may be chosen.

released_macro_recall            of the checkpoint as it is
dfn_400_macro_recall, probe_..., lora_..., full_...    after so many labelled photographs; ..._low, ..._high: 95 %
                                 interval over people
untrained_400_macro_recall       the same model from random weights, tower included, all of it trained
dfn_400_cpu_s ...                CPU seconds of one fold's training
Macro recall is over the emotions of which there are at least 20 photographs; chance is one over their count.
"""

import copy
import os
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from datasets import Dataset
from photographs import LEAST, half_of, interval
from report import options, write_json
from sklearn.model_selection import StratifiedGroupKFold
from torch.utils.data import Subset

from mf2face.data.build.own import build_own
from mf2face.data.cache import load_folder
from mf2face.data.examples import MF2Collator, MF2Examples
from mf2face.files import cache_folder
from mf2face.training.arguments import parse_arguments
from mf2face.training.build import RELEASED, build_model
from mf2face.training.finetuning import BalancedExamples, adapt, with_states
from mf2face.training.stores import collate_stored, load_or_store
from mf2face.training.trainer import MF2Trainer
from modeling_mf2 import MF2ForFaceAnalysis


TASKS = {"dfn": "dfn", "probe": "linear_probe", "lora": "lora", "full": "full", "untrained": "full"}
STEPS = {"dfn": 300, "probe": 300, "lora": 100, "full": 100, "untrained": 150}
RATES = {"dfn": 3e-4, "probe": 2e-3, "lora": 1e-3, "full": 5e-4, "untrained": 1e-3}


class Photographs:
    """Aligned faces with their emotions and people, as a model's examples in every form in which methods read them."""

    def __init__(self, folder: Path, labels: Path | None, model: str, part: str | None = None) -> None:
        reader = {} if labels is None else {"labels": str(labels)}
        settings = parse_arguments(["--task", "linear_probe", "--model_name_or_path", model])
        self.parts = build_model(settings)
        rows = load_folder(build_own(folder, self.parts.model.config.label_set, **reader))
        wanted = [part in (None, half_of(subject)) for subject in rows["subject"][:]]
        self.rows: Dataset = rows.select(np.flatnonzero(wanted & (np.array(rows["emotion"][:]) >= 0)))
        self.emotion, self.people = np.array(self.rows["emotion"][:]), np.array(self.rows["subject"][:])
        self.plain = MF2Examples(self.rows, self.parts.processor, texts=False)
        self.tokens = MF2Examples(self.rows, self.parts.processor, texts=False)
        tower = self.parts.model.base_model.vision
        self.tokens.stored = load_or_store(tower, [self.plain], cache_folder("own") / "tokens")
        self.known = [place for place in range(len(self.parts.model.config.emotions)) if self.count(place) >= LEAST]
        self.ready: list[dict[str, Any]] = []

    def count(self, emotion: int) -> int:
        return int((self.emotion == emotion).sum())

    def examples(self, method: str, model: torch.nn.Module) -> Any:
        if method in ("dfn", "probe"):
            return with_states(model, self.plain, cache_folder("own") / "states")
        if method != "untrained":
            return self.tokens
        if not self.ready:
            self.ready = [example for start in range(0, len(self.plain), 64) for example in self._some(start)]
        return self.ready

    def _some(self, start: int) -> list[dict[str, Any]]:
        return self.plain.__getitems__(range(start, min(start + 64, len(self.plain))))

    def recall(self, answers: np.ndarray, rows: np.ndarray) -> float:
        of = {emotion: rows[self.emotion[rows] == emotion] for emotion in self.known}
        return float(np.mean([(answers[some] == emotion).mean() for emotion, some in of.items() if len(some)]))

    def scored(self, name: str, logits: np.ndarray) -> dict[str, float]:
        rows = np.flatnonzero(np.isin(self.emotion, self.known) & np.isfinite(logits).all(1))
        answers = np.array(self.known)[logits[:, self.known].argmax(1)]
        low, high = interval(lambda chosen: self.recall(answers, rows[chosen]), self.people[rows])
        return {name: self.recall(answers, rows), f"{name}_low": low, f"{name}_high": high}


def new_model(method: str, base: torch.nn.Module) -> torch.nn.Module:
    if method == "untrained":
        config = copy.deepcopy(base.config)
        config.vision_config.frozen = False
        return MF2ForFaceAnalysis(config)
    model = copy.deepcopy(base)
    return model if method == "full" else adapt(model, TASKS[method])


def trainer_of(method: str, model: torch.nn.Module, learned: Any, pad: int, given: Any, scratch: str) -> MF2Trainer:
    task = ["--task", TASKS[method], *(["--model_name_or_path", given.model] if method != "untrained" else [])]
    fixed = "--eval_strategy no --save_strategy no --logging_strategy no --load_best_model_at_end False "
    fixed += "--report_to none --use_cpu True --disable_tqdm True --warmup_steps 0.1 --per_device_train_batch_size 32"
    own = {"output_dir": scratch, "max_steps": given.steps or STEPS[method], "learning_rate": given.rates[method]}
    options = [text for name, value in (own | {"seed": given.seed}).items() for text in (f"--{name}", str(value))]
    training = parse_arguments([*task, *fixed.split(), *options]).training
    collate = collate_stored if method in ("dfn", "probe") else MF2Collator(pad)
    return MF2Trainer(model=model, args=training, train_dataset=learned, data_collator=collate)


def adapted(photographs: Photographs, method: str, count: int, given: Any) -> tuple[np.ndarray, float]:
    """Logits of every photograph from the fold that did not learn from it, and CPU seconds of a fold's training."""
    logits, spent = np.full((len(photographs.emotion), len(photographs.parts.model.config.emotions)), np.nan), []
    folds = StratifiedGroupKFold(5, shuffle=True, random_state=0)
    places = list(folds.split(photographs.emotion, photographs.emotion, photographs.people))
    for fold, (others, held_out) in enumerate(places[: given.folds]):
        rows = np.random.default_rng((given.seed, fold)).permutation(others)[:count]
        torch.manual_seed(given.seed)
        model = new_model(method, photographs.parts.model)
        examples = photographs.examples(method, model)
        learned = BalancedExamples(_Rows(examples), photographs.emotion[rows], rows)
        with tempfile.TemporaryDirectory() as scratch:
            pad = photographs.parts.processor.tokenizer.pad_token_id
            trainer, start = trainer_of(method, model, learned, pad, given, scratch), time.process_time()
            trainer.train()
            spent.append(time.process_time() - start)
            logits[held_out] = trainer.predict(Subset(_Rows(examples), held_out.tolist())).predictions[0]
    return logits, float(np.mean(spent))


class _Rows(torch.utils.data.Dataset):
    """Rows of a list or of examples, several at once."""

    def __init__(self, examples: Any) -> None:
        self.examples = examples

    def __len__(self) -> int:
        return len(self.examples)

    def __getitems__(self, indexes: Sequence[int]) -> Any:
        take = getattr(self.examples, "__getitems__", None)
        return [self.examples[index] for index in indexes] if take is None else take(list(indexes))


def untouched(photographs: Photographs) -> np.ndarray:
    model, logits = copy.deepcopy(photographs.parts.model).eval(), []
    collate = MF2Collator(photographs.parts.processor.tokenizer.pad_token_id)
    with torch.no_grad():
        for start in range(0, len(photographs.plain), 64):
            batch = collate(photographs.tokens.__getitems__(range(start, min(start + 64, len(photographs.plain)))))
            logits.append(model(image_tokens=batch["image_tokens"], landmarks=batch["landmarks"]).emotion_logits)
    return torch.cat(logits).numpy()


def main(argv: Sequence[str] | None = None) -> dict[str, float]:
    parser = options(__doc__)
    parser.add_argument("--photos", type=Path, required=True)
    parser.add_argument("--labels", type=Path, help="labels.csv in the folder unless given")
    parser.add_argument("--model", default=str(RELEASED), help="the checkpoint that is adapted")
    parser.add_argument("--labelled", nargs="+", type=int, default=[100, 400, 1200], help="photographs to learn from")
    parser.add_argument("--methods", nargs="+", choices=TASKS, default=list(TASKS))
    parser.add_argument("--folds", type=int, default=5, choices=range(1, 6), help="how many of the five are answered")
    parser.add_argument("--steps", type=int, help="of every method; its own number unless given")
    parser.add_argument("--learning_rates", nargs="+", default=[], metavar="METHOD=RATE", help="in place of its own")
    parser.add_argument("--part", choices=("choose", "report"), help="one half of the people alone")
    parser.add_argument("--seed", type=int, default=0)
    given = parser.parse_args(argv)
    rates = dict(pair.partition("=")[::2] for pair in given.learning_rates)
    if unknown := set(rates) - set(TASKS):
        parser.error(f"--learning_rates: got {unknown.pop()!r}, expected METHOD=RATE with one of {list(TASKS)}")
    given.rates = RATES | {name: float(rate) for name, rate in rates.items()}
    torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS", "1")))
    photographs = Photographs(given.photos, given.labels, given.model, given.part)
    if len(photographs.known) < 2:
        parser.error(f"--labels: got fewer than two emotions with at least {LEAST} photographs, expected two or more")
    figures = {"photographs": len(photographs.emotion), "people": len(set(photographs.people.tolist()))}
    figures["chance"] = 1 / len(photographs.known)
    figures |= photographs.scored("released_macro_recall", untouched(photographs))
    for count in given.labelled:
        for method in given.methods:
            logits, spent = adapted(photographs, method, count, given)
            name = f"{method}_{count}_macro_recall"
            figures |= {**photographs.scored(name, logits), f"{method}_{count}_cpu_s": spent}
            print(f"{name:<32}{figures[name]:6.3f} ({figures[f'{name}_low']:.3f} to {figures[f'{name}_high']:.3f})")
    print(f"released, without adaptation: {figures['released_macro_recall']:.3f}; chance {figures['chance']:.3f}")
    print(f"{figures['photographs']:,} photographs of {figures['people']:,} people, labels of emotion only")
    write_json(given.json, figures)
    return figures


if __name__ == "__main__":
    main()
