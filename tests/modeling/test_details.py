"""Sides, intensities and the token of the landmarks: what they are made of, and models without them."""

import re

import pytest
import torch
from conftest import shake, tiny_config
from huggingface_hub.errors import StrictDataclassError
from peft import get_peft_model

from configuration_mf2 import MF2Config
from configuration_mf2.facs import CANONICAL_FACE
from modeling_mf2 import DFNConfig, MF2ForFaceAnalysis, MF2ForPreTraining
from modeling_mf2.dfn.states import compute_states
from modeling_mf2.heads import FaceLabels, label_losses
from modeling_mf2.losses import intensity_loss
from modeling_mf2.regions import inner_shape
from processing_mf2 import MF2Processor


DETAILS = {"sides": True, "intensities": True, "geometry_token": True, "shape_weight": 2}
BRANCHES = ({}, {"use_emo_branch": False}, {"use_au_branch": False})


@pytest.fixture(scope="module")
def faces():
    generator = torch.Generator().manual_seed(1)
    points = 64 * torch.tensor(CANONICAL_FACE) + torch.randn(3, 68, 2, generator=generator)
    return {"pixel_values": torch.randn(3, 3, 64, 64, generator=generator), "landmarks": points}


@pytest.mark.parametrize("branches", BRANCHES, ids=str)
@pytest.mark.parametrize("cls", [MF2ForFaceAnalysis, MF2ForPreTraining])
def test_every_model_answers_and_learns_them(cls, branches, faces):
    model = shake(cls(tiny_config(**DETAILS, **branches, au_only_loss_weight=0.5))).train()
    labels = {"side_labels": torch.tensor([[[1, 0], [-1, 1], [0, 0]]]).expand(3, 3, 2)}
    labels["intensity_labels"] = torch.tensor([[2.5, -1.0, 5.0]]).expand(3, 3)
    output = model(**faces, **labels)
    assert output.au_side_logits.shape == (3, 3, 2) and output.au_intensities.shape == (3, 3)
    assert 0 <= output.au_intensities.min() and output.au_intensities.max() <= 5
    torch.testing.assert_close(output.loss, output.side + output.intensity)
    output.loss.backward()
    names = [name for name, _ in model.named_parameters() if "side_" in name or "level_" in name or "geometry" in name]
    gradients = dict(model.named_parameters())
    assert names and all(gradients[name].grad is not None and gradients[name].grad.any() for name in names)


def test_decision_and_intensity_follow_from_one_score(faces):
    """A stronger score is never a lower intensity, whatever was learned."""
    classifiers = shake(MF2ForFaceAnalysis(tiny_config(**DETAILS)), scale=1.0).classifiers
    scores = torch.linspace(-8, 8, 50)[:, None].expand(-1, 3)
    intensities = classifiers._levels(scores).sigmoid().sum(-1)
    assert (intensities.diff(dim=0) >= 0).all() and (intensities[-1] > intensities[0] + 1).all()
    assert intensities.min() >= 0 and intensities.max() <= 5
    untrained = MF2ForFaceAnalysis(tiny_config(**DETAILS)).classifiers._levels(torch.zeros(1, 3))
    torch.testing.assert_close(untrained.sigmoid().sum(-1), torch.full((1, 3), 2.0), atol=0.1, rtol=0)


def test_probabilities_and_levels_are_fitted_to_answers():
    classifiers = shake(MF2ForFaceAnalysis(tiny_config(**DETAILS))).classifiers.requires_grad_(True)
    scores = torch.linspace(-1, 1, 400)[:, None].expand(-1, 3)  # narrower than what they say
    unknown = torch.arange(400)[:, None] % 5 == 0
    strong = (2.5 + 2.5 * scores).masked_fill(unknown, -1)
    active = (scores * 4 - 1 + torch.randn(400, 3) > 0).long().masked_fill(unknown, -1)

    def error(answers: torch.Tensor) -> float:
        return (classifiers._levels(answers).sigmoid().sum(-1) - strong).abs()[strong >= 0].mean().item()

    before, kept = error(scores), classifiers.au_weight.clone()
    answers = classifiers.calibrate(scores, active, strong)
    assert error(answers) < 0.35 < before and torch.equal(classifiers.au_weight, kept)
    shown = answers.sigmoid()
    assert abs(shown.mean() - (active[active >= 0] == 1).float().mean()) < 0.05 and shown.max() > 0.9
    again = classifiers.calibrate(answers, active, strong)
    torch.testing.assert_close(again, answers, atol=0.02, rtol=0.01)
    assert all(torch.equal(part, part.half().float()) for part in (classifiers.unit_scale, classifiers.level_cuts))


def test_the_expected_intensity_is_the_best_answer():
    levels = torch.full((1, 1, 5), 0.0, requires_grad=True)
    optimizer = torch.optim.Adam([levels], lr=0.3)
    for _ in range(200):
        optimizer.zero_grad()
        intensity_loss(levels, torch.tensor([[2.7]])).backward()
        optimizer.step()
    assert levels.sigmoid().sum().item() == pytest.approx(2.7, abs=0.02)
    assert intensity_loss(levels, torch.tensor([[-1.0]])) == 0
    with pytest.raises(ValueError, match="intensity_labels: got shape"):
        intensity_loss(levels, torch.tensor([2.7]))


def test_half_of_the_loss_is_that_of_the_aus_alone():
    model = shake(MF2ForFaceAnalysis(tiny_config(**DETAILS, au_only_loss_weight=1.0))).train()
    emo, au = torch.randn(2, 3, 32), torch.randn(2, 3, 2, 32)
    labels = FaceLabels(None, None, torch.ones(2, 3, 2), torch.full((2, 3), 3.0))
    parts = [label_losses(model, face, au, None, model.classifiers(face, au), labels) for face in (emo, emo + 1)]
    assert set(parts[0]) == {"side", "intensity"} and parts[0] == parts[1]


def test_the_shape_of_a_face_is_that_of_any_similar_one(faces):
    points, turn = faces["landmarks"], torch.tensor([[0.8, -0.6], [0.6, 0.8]])
    shape = inner_shape(points, 64)
    assert shape.shape == (3, 102) and 0.3 < shape.std() < 3
    torch.testing.assert_close(inner_shape(1.7 * points @ turn.T + 9, 64), shape, atol=1e-3, rtol=1e-3)
    torch.testing.assert_close(
        inner_shape(64 * torch.tensor(CANONICAL_FACE)[None], 64), torch.zeros(1, 102), atol=1e-4, rtol=0
    )
    opened = points.clone()
    opened[:, 57] += torch.tensor([0.0, 3.0])  # the lower lip
    moved = (inner_shape(opened, 64) - shape).view(3, 51, 2).abs().sum(-1) > 1e-4
    assert moved.nonzero()[:, 1].unique().tolist() == [57 - 17]


def test_each_branch_reads_one_more_token_that_follows_the_landmarks(faces):
    model = shake(MF2ForFaceAnalysis(tiny_config(**DETAILS))).eval().mf2
    tokens = model.vision(faces["pixel_values"])
    for name, count in (("emo", 16), ("au", 8)):
        read = model.branch_image(name, tokens, faces["landmarks"])
        assert read.shape[1] == count + 1
        moved = faces["landmarks"].clone()
        moved[:, 48:] += torch.randn(20, 2)
        assert not torch.equal(model.branch_image(name, tokens, moved)[:, -1], read[:, -1])
    mean = 64 * torch.tensor(CANONICAL_FACE).expand(3, -1, -1)
    without, canonical = (model.branch_image("emo", tokens, points) for points in (None, mean))
    torch.testing.assert_close(without, canonical)


def test_the_shape_s_own_answer_is_learned_apart_and_averaged(faces):
    model = shake(MF2ForFaceAnalysis(tiny_config(**DETAILS))).eval()
    answer, said = model(**faces), model.classifiers.shape(faces["landmarks"])
    seen = model.classifiers(answer.emo_states, answer.au_states)
    mean = (seen.au + 2 * said.au) / 3
    torch.testing.assert_close(answer.au_logits, model.classifiers.unit_scale * mean + model.classifiers.unit_shift)
    torch.testing.assert_close(answer.emotion_logits, (seen.emotion + 2 * said.emotion) / 3)
    template = torch.cat([64 * torch.tensor(CANONICAL_FACE)[None], faces["landmarks"][1:]])
    known = model(faces["pixel_values"], template)
    alone = model.classifiers(known.emo_states, known.au_states)
    torch.testing.assert_close(known.au_logits[0], alone.au[0])
    assert not torch.allclose(known.au_logits[1], alone.au[1])
    labels = {"au_labels": torch.tensor([[1, 0, -1]] * 3), "emotion_labels": torch.tensor([0, 1, -1])}
    for owner, losses in {"seen": ("au", "emotion"), "shape": ("shape",)}.items():
        model.zero_grad()
        output = model.train()(**faces, **labels)
        sum(output[name] for name in losses).backward()
        learned = {
            ("shape" if "classifiers.shape" in n else "seen") for n, p in model.named_parameters() if p.grad is not None
        }
        assert learned == {owner}
    torch.testing.assert_close(output.loss, output.au + output.emotion + output.shape)


def test_an_adapter_s_stored_states_bring_the_shape(faces):
    model = get_peft_model(shake(MF2ForFaceAnalysis(tiny_config(**DETAILS))), DFNConfig()).eval()
    states = compute_states(model.base_model.model, faces)
    torch.testing.assert_close(model(states=states).au_logits, model(**faces).au_logits)
    assert not torch.allclose(
        model(**faces).au_logits, model(**{**faces, "landmarks": faces["landmarks"].flip(0)}).au_logits
    )


def test_an_older_checkpoint_has_none_of_them(tmp_path, faces):
    old = shake(MF2ForFaceAnalysis(tiny_config())).eval()
    old.save_pretrained(tmp_path)
    again = MF2ForFaceAnalysis.from_pretrained(tmp_path)
    answer = again(**faces)
    assert answer.au_side_logits is None and answer.au_intensities is None
    assert not [name for name in again.state_dict() if re.search("side_|level_|geometry|shape", name)]
    with pytest.raises((ValueError, StrictDataclassError), match="sides, intensities: got True"):
        MF2Config(label_set="raf_db", use_au_branch=False, sides=True)


def test_results_have_them_by_name(faces):
    config = tiny_config(**DETAILS)
    model = shake(MF2ForFaceAnalysis(config)).eval()
    processor = MF2Processor.for_model(MF2Config.from_size("tiny", action_units=config.action_units))
    processor.emotions = config.emotions
    output = model(**faces)
    (_, second, _) = processor.post_process_face_analysis(output)
    unit = second["action_units"]["AU6"]
    assert unit["intensity"] == pytest.approx(output.au_intensities[1, 1].item())
    sides = output.au_side_logits[1, 1].sigmoid()
    assert (unit["left"], unit["right"]) == (pytest.approx(sides[0].item()), pytest.approx(sides[1].item()))
    with pytest.raises(ValueError, match="au_side_logits: got shape"):
        processor.post_process_face_analysis({"au_logits": output.au_logits, "au_side_logits": output.au_logits})
