"""Scores of the alignment with language on test images: matching, captioning, zero-shot, retrieval."""

from collections.abc import Iterator, Mapping, Sequence

import numpy as np
import torch
from torch.utils.data import DataLoader
from transformers import PreTrainedModel

from configuration_mf2.facs import UNKNOWN_LABEL
from mf2face.data.examples import MF2Collator, MF2Examples
from mf2face.data.metrics import action_unit_scores
from modeling_mf2.baselines.vl_fau import VLFAUForFaceAnalysis
from modeling_mf2.losses import image_text_similarity
from modeling_mf2.modeling_mf2 import Branch, MF2ForCaptioning
from modeling_mf2.pretraining import MF2ForPreTraining
from processing_mf2.captions import au_sentence_state, parse_emotion
from processing_mf2.processing_mf2 import MF2Processor
from processing_mf2.wording import au_state_prompts, emotion_prompts


FIGURES: dict[str, str] = {
    "itm_au_accuracy": "ITM on an AU's region with the sentence of its state, and with that of the opposite state: "
    "share right at probability 0.5, each AU and state counting alike (chance 0.5)",
    "itm_au_accuracy_tuned": "the same at the threshold below",
    "itm_au_threshold": "best on validation images",
    "itm_emo_accuracy": "ITM on a face with its own emotion caption, and with that of a random face of another "
    "emotion: share right at probability 0.5 (chance 0.5)",
    "itm_emo_accuracy_tuned": "the same at the threshold below",
    "itm_emo_threshold": "best on validation images; low, since ITM is trained against the most similar captions",
    "caption_au_f1": "AUs that the sentences written from the image call active, macro F1",
    "caption_emotion_top1": "the emotion that the caption written from the image names, share right",
    "zero_shot_au_auc": "sentence of the active state against the sentence at rest, AUC, mean of the AUs (chance 0.5)",
    "zero_shot_emotion_top1": "the emotion whose sentence is nearest to the face, share right",
    "retrieval_emotion": "the caption of another face that is nearest to a face has the face's emotion, share",
    "retrieval_emotion_over_chance": "the same, divided by a random caption's share",
    "retrieval_au_state": "the AU sentences of another face that are nearest to a face's regions have the states of "
    "all its AUs, share",
    "retrieval_au_state_over_chance": "the same, divided by a random face's share",
}

# VL-FAU's decoders, on its own descriptions.
WORD_FIGURES: dict[str, str] = {
    "local_top5": "words of the AUs' descriptions that were among the local decoder's five likeliest, each predicted "
    "from the true words before it, share",
    "global_top5": "the same of the whole face's descriptions and the global decoder",
}

# Captions of Exp-BLIP's stage 2.
CAPTION_FIGURES: dict[str, str] = {
    "bleu_4": "BLEU-4 of the captions written from test images alone, against those of the caption set, all together",
    "rouge_l": "ROUGE-L F of the same, mean of the images",
    "cider": "CIDEr-D of the same, 0 to 10",
    "fact_au_f1_macro": "AUs that the captions call active, macro F1 against the labels",
    "fact_emotion_accuracy": "the emotion that the captions name, share right",
    "fact_emotion_stated": "share of the captions that name an emotion",
    "fact_contradicted": "share of the captions' claims that the labels contradict",
}

LANGUAGE_FIGURES = FIGURES | WORD_FIGURES | CAPTION_FIGURES

Batch = dict[str, torch.Tensor]


@torch.no_grad()
def language_scores(
    model: MF2ForPreTraining, processor: MF2Processor, examples: MF2Examples, validation: MF2Examples
) -> dict[str, float]:
    """`FIGURES` of the branches and labels that there are, thresholds tuned on `validation`."""
    training = model.training
    model.eval()
    test, tuning = (list(_encoded(model, processor, rows)) for rows in (examples, validation))
    scores: dict[str, float] = {}
    if model.config.use_au_branch and "au_labels" in examples.labels:
        scores |= _action_units(model, processor, test)
        scores |= _matching("au", *(_matched_units(model, processor, part) for part in (test, tuning)))
    if model.config.use_emo_branch and model.config.emotions and "emotion" in examples.labels:
        scores |= _emotions(model, processor, test)
        if "input_ids" in test[0]:
            scores |= _matching("emo", *(_matched_captions(model, part) for part in (test, tuning)))
    model.train(training)
    return {name: value for name, value in scores.items() if np.isfinite(value)}  # else a label or a state is missing


def word_scores(model: VLFAUForFaceAnalysis, processor: MF2Processor, examples: MF2Examples) -> dict[str, float]:
    """`WORD_FIGURES` of the decoders that there are."""
    training = model.training
    scores = model.eval().word_accuracy(_batches(model, processor, examples))
    model.train(training)
    return scores


def _batches(model: PreTrainedModel, processor: MF2Processor, examples: MF2Examples) -> Iterator[Batch]:
    for batch in DataLoader(examples, 64, collate_fn=MF2Collator(processor.tokenizer.pad_token_id)):
        yield {name: tensor.to(model.device) for name, tensor in batch.items()}


def _encoded(model: MF2ForPreTraining, processor: MF2Processor, examples: MF2Examples) -> Iterator[Batch]:
    """Batches with the tower's tokens in place of images."""
    for batch in _batches(model, processor, examples):
        batch["image_tokens"] = model.mf2.look(batch.pop("pixel_values", None), batch.get("image_tokens"))
        yield batch


def _match(
    model: MF2ForPreTraining, name: Branch, image: torch.Tensor, input_ids: torch.Tensor, mask: torch.Tensor
) -> torch.Tensor:
    """The probability that a row's image and sentence belong together."""
    branch = model.mf2.branch(name)
    states = branch.qformer(
        queries=model.mf2.branch_queries(name), image=image, input_ids=input_ids, text_mask=mask, mode="two_way"
    ).query_states
    return branch.heads.itm(states).mean(dim=1).float().softmax(dim=-1)[:, 1]


def _image(batch: Batch) -> Batch:
    return {name: batch[name] for name in ("image_tokens", "landmarks") if name in batch}


def _captioner(model: MF2ForPreTraining) -> MF2ForCaptioning:
    captioner = MF2ForCaptioning(model.config).eval()
    captioner.mf2 = model.mf2
    return captioner


def _action_units(model: MF2ForPreTraining, processor: MF2Processor, batches: Sequence[Batch]) -> dict[str, float]:
    names, captioner = list(model.config.action_units), _captioner(model)
    prompts = _state_sentences(model, processor)
    prompt_features = [model.mf2.get_text_features(*text, branch="au").pooler_output for text in prompts]
    labels, similarities, written, faces, sentences = [], [], [], [], []
    for batch in batches:
        image = _image(batch)
        features = model.mf2.get_image_features(**image, branch="au").pooler_output
        labels.append(batch["au_labels"])
        active, rest = (_nearest(features, prompt) for prompt in prompt_features)
        similarities.append(active - rest)
        captions = processor.decode_captions(captioner.generate(**image, branch="au"))
        written += [[au_sentence_state(s, unit) for s, unit in zip(row, names, strict=True)] for row in captions]
        if "au_input_ids" in batch:
            faces.append(features)
            text = model.mf2.get_text_features(batch["au_input_ids"], batch["au_attention_mask"], "au")
            sentences.append(text.pooler_output)
    truth = torch.cat(labels).cpu()
    states = np.array(written, dtype=np.float64)
    scores = {"caption_au_f1": action_unit_scores(states, truth.numpy(), names)["au_f1_macro"]}
    zero_shot = action_unit_scores(torch.cat(similarities).cpu().double().sigmoid(), truth.numpy(), names)
    if any(name.startswith("au_roc_auc/") for name in zero_shot):  # some AU occurs in both states
        scores["zero_shot_au_auc"] = zero_shot["au_roc_auc_macro"]
    if faces:
        similarity = _similarity_of_faces(torch.cat(faces), torch.cat(sentences)).cpu()
        known = (truth != UNKNOWN_LABEL).all(dim=1)
        powers = 2 ** torch.arange(len(names))
        scores |= _retrieval("retrieval_au_state", similarity, torch.where(known, (truth * powers).sum(dim=1), -1))
    return scores


@torch.no_grad()
def zero_shot_units(
    model: MF2ForPreTraining,
    processor: MF2Processor,
    examples: MF2Examples,
    sentences: Mapping[str, tuple[str, str]] | None = None,
) -> torch.Tensor:
    """(images, AUs): how much nearer an AU's region is to the sentence of its active state than to that at rest."""
    model.eval()
    texts = _state_sentences(model, processor, sentences)
    active, rest = (model.mf2.get_text_features(*text, branch="au").pooler_output for text in texts)
    found = []
    for batch in _encoded(model, processor, examples):
        features = model.mf2.get_image_features(**_image(batch), branch="au").pooler_output
        found.append(_nearest(features, active) - _nearest(features, rest))
    return torch.cat(found).float().cpu()


def _nearest(features: torch.Tensor, prompt: torch.Tensor) -> torch.Tensor:
    return (features * prompt[None, :, None]).sum(-1).amax(-1)


def _state_sentences(
    model: MF2ForPreTraining, processor: MF2Processor, sentences: Mapping[str, tuple[str, str]] | None = None
) -> list[tuple[torch.Tensor, torch.Tensor]]:
    """Ids and masks (AU, length) of every AU's sentence: in action, and at rest."""
    names = list(model.config.action_units)
    prompts = sentences or au_state_prompts(names)
    texts = [processor(au_sentences=[[prompts[name][place] for name in names]]).to(model.device) for place in (0, 1)]
    return [(text["au_input_ids"][0], text["au_attention_mask"][0]) for text in texts]


def _emotions(model: MF2ForPreTraining, processor: MF2Processor, batches: Sequence[Batch]) -> dict[str, float]:
    names = list(model.config.emotions)
    prompts = processor(text=list(emotion_prompts(names).values())).to(model.device)
    prompts = model.mf2.get_text_features(prompts["input_ids"], prompts["attention_mask"], "emo").pooler_output
    captioner, faces, captions, named = _captioner(model), [], [], []
    for batch in batches:
        faces.append(model.mf2.get_image_features(**_image(batch), branch="emo").pooler_output)
        written = processor.decode_captions(captioner.generate(**_image(batch), branch="emo"))
        named += [parse_emotion(text, names) for text in written]
        if "input_ids" in batch:
            text = model.mf2.get_text_features(batch["input_ids"], batch["attention_mask"], "emo")
            captions.append(text.pooler_output)
    truth = torch.cat([batch["emotion_labels"] for batch in batches]).cpu()
    known, features = truth != UNKNOWN_LABEL, torch.cat(faces)
    nearest = image_text_similarity(features, prompts).argmax(dim=1).cpu()
    stated = torch.tensor([names.index(name) if name else UNKNOWN_LABEL for name in named])
    scores = {
        "zero_shot_emotion_top1": float((nearest == truth)[known].double().mean()),
        "caption_emotion_top1": float((stated == truth)[known].double().mean()),
    }
    if captions:
        similarity = image_text_similarity(features, torch.cat(captions)).cpu()
        scores |= _retrieval("retrieval_emotion", similarity, truth)
    return scores


# Probabilities of pairs that belong together and of pairs that do not, by kinds that count alike.
Matches = list[tuple[torch.Tensor, torch.Tensor]]


def _matched_units(model: MF2ForPreTraining, processor: MF2Processor, batches: Sequence[Batch]) -> Matches:
    """A kind is an AU in one state: its regions with the sentence of that state, and with that of the other one."""
    texts, truth, probabilities = _state_sentences(model, processor), [], []
    for batch in batches:
        count = len(batch["au_labels"])
        regions = model.mf2.branch_image("au", batch["image_tokens"], batch.get("landmarks"))
        pairs = [_match(model, "au", regions, *(part.repeat(count, 1) for part in text)) for text in texts]
        probabilities.append(torch.stack(pairs, dim=-1).view(count, -1, 2))
        truth.append(batch["au_labels"])
    return _by_state(torch.cat(truth).cpu(), torch.cat(probabilities).cpu())


def _by_state(truth: torch.Tensor, pairs: torch.Tensor) -> Matches:
    """truth (faces, AU), pairs (faces, AU, 2): the probability of the active and of the resting sentence."""
    kinds = []
    for unit in range(truth.shape[1]):
        for state, own in ((1, 0), (0, 1)):
            rows = pairs[truth[:, unit] == state, unit]
            if len(rows):
                kinds.append((rows[:, own], rows[:, 1 - own]))
    return kinds


def _matched_captions(model: MF2ForPreTraining, batches: Sequence[Batch]) -> Matches:
    """Faces with their own captions, and with those of random faces of another emotion."""
    tokens = [model.mf2.branch_image("emo", batch["image_tokens"], batch.get("landmarks")) for batch in batches]
    tokens = torch.cat(tokens)
    ids, mask = (
        torch.nn.utils.rnn.pad_sequence([row for batch in batches for row in batch[name]], batch_first=True)
        for name in ("input_ids", "attention_mask")
    )
    emotions = torch.cat([batch["emotion_labels"] for batch in batches])
    others = torch.from_numpy(np.random.default_rng(0).permutation(len(ids))).to(ids.device)
    known = mask.any(dim=1) & (emotions != UNKNOWN_LABEL)
    rows = torch.nonzero(known & known[others] & (emotions != emotions[others])).squeeze(1)
    if not len(rows):
        return []
    parts = [(tokens[part], part, others[part]) for part in rows.split(64)]
    own = torch.cat([_match(model, "emo", image, ids[part], mask[part]) for image, part, _ in parts])
    other = torch.cat([_match(model, "emo", image, ids[part], mask[part]) for image, _, part in parts])
    return [(own.cpu(), other.cpu())]


def _matching(name: str, matches: Matches, tuning: Matches | None) -> dict[str, float]:
    scores = {f"itm_{name}_accuracy": matching_accuracy(matches, 0.5)}
    if tuning:
        # Candidates are quantiles of the probabilities; of equally good ones the median.
        candidates = torch.cat([torch.cat(kind) for kind in tuning]).quantile(torch.linspace(0, 1, 200))
        shares = torch.tensor([matching_accuracy(tuning, threshold) for threshold in candidates.tolist()])
        best = candidates[shares == shares.max()].median().item()
        tuned = matching_accuracy(matches, best)
        scores |= {f"itm_{name}_accuracy_tuned": tuned, f"itm_{name}_threshold": best}
    return scores


def matching_accuracy(matches: Matches, threshold: float) -> float:
    """Share of pairs on the right side of the threshold; kinds count alike, and in each the two sides."""
    shares = [side.double().mean() for own, other in matches for side in (own > threshold, other <= threshold)]
    return float(torch.stack(shares).mean()) if shares else float("nan")


def _similarity_of_faces(regions: torch.Tensor, sentences: torch.Tensor) -> torch.Tensor:
    """(images, AU, queries, dim) and (faces, AU, dim) -> (images, faces): summed over the AUs."""
    return sum(image_text_similarity(regions[:, unit], sentences[:, unit]) for unit in range(sentences.shape[1]))


def _retrieval(name: str, similarity: torch.Tensor, kinds: torch.Tensor) -> dict[str, float]:
    """Nearest caption but the face's own; kinds (faces,), -1 unknown. Chance: any other face of known kind."""
    known = torch.nonzero(kinds != UNKNOWN_LABEL).squeeze(1)
    if len(known) < 2:
        return {}
    kinds, similarity = kinds[known], similarity[known][:, known].clone()
    similarity.fill_diagonal_(-torch.inf)
    hits = (kinds[similarity.argmax(dim=1)] == kinds).double().mean()
    chance = ((kinds[:, None] == kinds[None, :]).double().sum(dim=1) - 1).mean() / (len(kinds) - 1)
    return {name: float(hits)} | ({f"{name}_over_chance": float(hits / chance)} if chance > 0 else {})
