"""What language is worth: figures on small hand-made cases, and of a model that knows nothing."""

import pytest
import torch

from configuration_mf2 import MF2Config
from mf2face.data.examples import MF2Examples
from mf2face.data.synthetic.faces import MFASynthetic
from mf2face.training.language import (
    FIGURES,
    _by_state,
    _matching,
    _retrieval,
    language_scores,
    matching_accuracy,
)
from modeling_mf2 import MF2ForPreTraining
from processing_mf2 import MF2Processor


@pytest.fixture(scope="module")
def untrained():
    torch.manual_seed(0)
    config = MF2Config.from_size("tiny")
    processor = MF2Processor.for_model(config)
    return MF2ForPreTraining(config), processor, MFASynthetic(48, "paint", seed=3)


def test_every_figure_is_there_and_an_untrained_model_is_near_chance(untrained):
    model, processor, faces = untrained
    examples = MF2Examples(faces.select(range(20)), processor)
    scores = language_scores(model.train(), processor, examples, examples)
    assert set(scores) == set(FIGURES)
    assert scores["itm_au_accuracy"] == pytest.approx(0.5, abs=0.15)
    assert scores["zero_shot_au_auc"] == pytest.approx(0.5, abs=0.15)
    assert scores["caption_au_f1"] < 0.5
    assert model.training


def test_without_captions_labels_or_a_branch_their_figures_are_left_out(untrained):
    model, processor, faces = untrained
    few = faces.select(range(8))
    found = set(language_scores(model, processor, MF2Examples(few, processor, texts=False)))
    assert found == {
        "itm_au_accuracy",
        *(name for name in FIGURES if not name.startswith(("retrieval", "itm"))),
    }  # an AU's two sentences are known without captions
    assert not language_scores(model, processor, MF2Examples(few.remove_columns(["au_labels", "emotion"]), processor))
    config = MF2Config.from_size("tiny", use_au_branch=False)
    MF2Processor.for_model(config)
    found = language_scores(MF2ForPreTraining(config), processor, MF2Examples(few, processor))
    assert found and not any("au" in name.split("_") for name in found)


def test_matching_counts_each_unit_and_state_alike():
    truth = torch.tensor([[1, 0], [0, 0], [0, -1], [0, 1]])
    right = torch.where(truth[..., None] == torch.tensor([1, 0]), 0.9, 0.1)
    assert (
        matching_accuracy(_by_state(truth, right), 0.5) == 1
        and matching_accuracy(_by_state(truth, 1 - right), 0.5) == 0
    )
    always = torch.full((4, 2, 2), 0.9)  # half of the answers are right, whatever is seen
    assert matching_accuracy(_by_state(truth, always), 0.5) == 0.5
    only_rest = right.clone()
    only_rest[0, 0] = torch.tensor([0.1, 0.9])  # the only face with the first AU active
    assert matching_accuracy(_by_state(truth, only_rest), 0.5) == pytest.approx(0.75)


def test_a_threshold_is_tuned_on_other_pairs():
    tuning = [(torch.tensor([0.3, 0.2, 0.25]), torch.tensor([0.1, 0.05, 0.15]))]
    found = _matching("emo", [(torch.tensor([0.2, 0.9]), torch.tensor([0.1, 0.16]))], tuning)
    assert found["itm_emo_accuracy"] == 0.75 and found["itm_emo_accuracy_tuned"] == 1
    assert 0.15 <= found["itm_emo_threshold"] < 0.2
    assert set(_matching("emo", tuning, None)) == {"itm_emo_accuracy"}


def test_retrieval_never_counts_a_face_s_own_caption_nor_an_unknown_kind():
    kinds = torch.tensor([0, 0, 1, 1, -1])
    similarity = torch.eye(5) * 9
    similarity[0, 1] = similarity[1, 0] = 1
    similarity[2, 0] = similarity[3, 2] = 1
    similarity[:, 4] = 5
    found = _retrieval("r", similarity, kinds)
    assert found["r"] == 0.75
    assert found["r_over_chance"] == pytest.approx(0.75 / (1 / 3))
    assert _retrieval("r", torch.eye(2), torch.tensor([0, -1])) == {}
