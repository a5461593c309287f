"""A linear probe on all tokens of a tower: what an MF² on the same tower has to beat. Styles not trained on."""

from collections.abc import Mapping

import numpy as np
import torch
from datasets import Dataset
from torch import nn

from configuration_mf2.facs import UNKNOWN_LABEL
from mf2face.data.examples import LABELS, MF2Examples
from mf2face.data.metrics import tune_thresholds
from mf2face.training.evaluation import EMOTION_FOUR, UNIT_TWO, score
from modeling_mf2.losses import classification_losses
from modeling_mf2.modeling_mf2 import MF2PreTrainedModel
from modeling_mf2.vision import MF2VisionTower
from processing_mf2.processing_mf2 import MF2Processor


SHIFT_FIGURES = {
    "style_shift/au_f1_macro": "AU F1 at 0.5, macro, in a style not trained on",
    "style_shift/emotion_macro_recall": "emotion macro recall, in a style not trained on",
    "probe/au_f1_macro": "AU F1 at 0.5, macro, of a linear probe on all of the tower's tokens",
    "probe/emotion_macro_recall": "emotion macro recall of that probe",
    "style_shift/probe_au_f1_macro": "AU F1 at 0.5, macro, of that probe in a style not trained on",
}
_MOST_ROWS, _MOST_NUMBERS = 4096, 2**28
"""Training images of the probe: their tokens are held in memory."""
_DECAYS = (1.0, 10.0, 100.0)
_EPOCHS, _BATCH = 15, 128

Read = tuple[torch.Tensor, torch.Tensor, torch.Tensor]


@torch.no_grad()
def tower_tokens(vision: MF2VisionTower, examples: MF2Examples) -> torch.Tensor:
    """(rows, tokens * width), in half precision."""
    parts, was_training = [], vision.training
    vision.eval()
    for start in range(0, len(examples), 64):
        rows = examples.__getitems__(range(start, min(start + 64, len(examples))))
        pixels = torch.stack([row["pixel_values"] for row in rows]).to(vision.device)
        parts.append(vision(pixels).flatten(1).half().cpu())
    vision.train(was_training)
    return torch.cat(parts)


def _read(vision: MF2VisionTower, processor: MF2Processor, rows: Dataset) -> Read:
    examples = MF2Examples(rows, processor, texts=False, warned={*LABELS})
    units = rows["au_labels"][:] if "au_labels" in rows.column_names else [[UNKNOWN_LABEL]] * len(rows)
    emotions = rows["emotion"][:] if "emotion" in rows.column_names else [UNKNOWN_LABEL] * len(rows)
    shape = (len(rows), len(processor.action_units))
    return tower_tokens(vision, examples), torch.tensor(units).expand(shape), torch.tensor(emotions)


class LinearProbe(nn.Module):
    """Emotion and AU logits from standardised tokens."""

    def __init__(self, tokens: torch.Tensor, emotions: int, units: int) -> None:
        super().__init__()
        self.sizes = [emotions, units]
        self.register_buffer("mean", tokens.float().mean(0))
        self.register_buffer("scale", 1 / (tokens.float().std(0, correction=0) + 1e-3))
        self.linear = nn.Linear(tokens.shape[1], emotions + units)
        nn.init.zeros_(self.linear.weight)

    def forward(self, tokens: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        weight = self.linear.weight * self.scale  # as if the tokens were standardised, which are many more numbers
        bias = self.linear.bias - weight @ self.mean
        return nn.functional.linear(tokens.float(), weight, bias).split(self.sizes, 1)

    @torch.no_grad()
    def answers(self, tokens: torch.Tensor) -> list[np.ndarray]:
        parts = [self(part) for part in tokens.split(512)]
        return [torch.cat(columns).numpy() for columns in zip(*parts, strict=True)]


def fit_probe(
    config: object, train: Read, decay: float, seed: int = 0, rate: float = 3e-4, epochs: int = _EPOCHS
) -> LinearProbe:
    tokens, units, emotions = train
    probe, generator = LinearProbe(tokens, len(config.emotions), units.shape[1]), torch.Generator().manual_seed(seed)
    optimizer = torch.optim.AdamW(probe.parameters(), lr=rate, weight_decay=decay)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, epochs)
    for _ in range(epochs):
        for rows in torch.randperm(len(tokens), generator=generator).split(_BATCH):
            emotion_logits, au_logits = probe(tokens[rows])
            pairs = (emotion_logits if config.emotions else None, emotions[rows], au_logits, units[rows])
            losses = classification_losses(config, *pairs)
            optimizer.zero_grad()
            sum(losses.values()).backward()
            optimizer.step()
        schedule.step()
    return probe


def probe_scores(
    model: MF2PreTrainedModel, processor: MF2Processor, splits: Mapping[str, Dataset], shifted: Dataset | None
) -> dict[str, float]:
    """`probe/...` of the test images, and `style_shift/probe_...` of those of another style. Weight decay and
    thresholds are chosen on validation images."""
    config, vision = model.config, model.base_model.vision
    rows, face = splits["train"], config.vision_config
    numbers = (face.grid_size**2 + face.num_prefix_tokens) * face.hidden_size
    most = min(_MOST_ROWS, _MOST_NUMBERS // numbers)
    chosen = np.sort(np.random.default_rng(0).permutation(len(rows))[:most])
    train, validation = (_read(vision, processor, part) for part in (rows.select(chosen), splits["validation"]))

    def measured(probe: LinearProbe, read: Read, thresholds: np.ndarray | None = None) -> dict[str, float]:
        return score(config, probe.answers(read[0]), (read[2].numpy(), read[1].numpy()), thresholds)

    probes = [fit_probe(config, train, decay) for decay in _DECAYS]
    found = [measured(probe, validation) for probe in probes]
    best = max(range(len(probes)), key=lambda n: found[n]["au_f1_macro"] + found[n].get("emotion_macro_recall", 0))
    probe, wanted = probes[best], (*UNIT_TWO, *EMOTION_FOUR)
    logits = probe.answers(validation[0])[1]
    thresholds = tune_thresholds(1 / (1 + np.exp(-logits.astype(float))), validation[1].numpy())
    scores = measured(probe, _read(vision, processor, splits["test"]), thresholds)
    scores = {f"probe/{name}": scores[name] for name in wanted if name in scores}
    if shifted is not None:
        there = measured(probe, _read(vision, processor, shifted), thresholds)
        scores |= {f"style_shift/probe_{name}": there[name] for name in wanted if name in there}
    return scores
