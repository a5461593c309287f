import pytest
import torch
from compared_systems import check_half_precision, check_unknown_labels_do_not_matter
from conftest import shake, tiny_config
from exp_blip_models import faces_and_captions, small_config
from transformers import AutoModel, AutoModelForPreTraining, TrainingArguments, default_data_collator

from mf2face.training.trainer import MF2Trainer
from modeling_mf2 import ExpBlipForFaceAnalysis, ExpBlipForPreTraining, MF2ForPreTraining
from modeling_mf2.pretraining import MF2ForPreTraining as Ours


def labels(rows: int = 4) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(1)
    units = torch.randint(0, 2, (rows, 3), generator=generator)
    emotions = torch.randint(0, 3, (rows,), generator=generator)
    units[0, 0] = emotions[-1] = -1
    return {"au_labels": units, "emotion_labels": emotions}


def classifier(tower: str = "conv", **fields) -> ExpBlipForFaceAnalysis:
    probe = fields.setdefault("frozen_features", True)
    return shake(ExpBlipForFaceAnalysis(small_config(tower, vision={"frozen": probe}, **fields)))


def learned(model) -> list[str]:
    return [name for name, p in model.named_parameters() if p.grad is not None and p.grad.abs().sum() > 0]


# Stage 1


def test_stage_one_is_mf2s_alignment_of_faces_and_captions():
    """The same weights in MF²'s own class say the same, but for labels, which only that one looks at."""
    model = shake(ExpBlipForPreTraining(small_config())).eval()
    batch = faces_and_captions(model.config)
    found = model(**batch)
    assert [name for name, value in found.items() if value.ndim == 0] == ["loss", *model.loss_names]
    assert torch.allclose(found.loss, found.itc_emo + found.itm_emo + found.itg_emo)
    mf2 = Ours(tiny_config(use_au_branch=False, emotions=[], action_units=["AU1"])).eval()
    mf2.load_state_dict(model.state_dict(), strict=False)
    expected = mf2(**batch)
    for name in ("itc_emo", "itg_emo"):  # ITM draws its negatives
        assert torch.equal(found[name], expected[name]), name
    assert not [name for name in model.state_dict() if name.startswith("classifiers")]


def test_faces_of_one_emotion_with_other_captions_are_negatives():
    model = ExpBlipForPreTraining(small_config()).eval()
    batch = faces_and_captions(model.config)
    alone, labelled = model(**batch), model(**batch, **labels(), index=torch.arange(4))
    assert torch.equal(alone.itc_emo, labelled.itc_emo)
    mf2 = MF2ForPreTraining(tiny_config(use_au_branch=False)).eval()
    same = {"emotion_labels": torch.zeros(4, dtype=torch.long)}
    assert not torch.equal(mf2(**batch).itc_emo, mf2(**batch, **same).itc_emo), "else this test tells nothing"


@pytest.mark.parametrize("frozen", [True, False])
def test_the_tower_learns_or_does_not(frozen):
    model = shake(ExpBlipForPreTraining(small_config(vision={"frozen": frozen}))).train()
    model(**faces_and_captions(model.config)).loss.backward()
    still = {name for name, p in model.named_parameters() if p.grad is None}
    tower = {name for name, _ in model.named_parameters() if name.startswith("mf2.vision.")}
    assert still == (tower if frozen else set()) and tower


@pytest.mark.parametrize("frozen", [True, False])
def test_micro_batches_are_one_step(frozen, tmp_path):
    """Also of a tower that learns. Without ITM, whose negatives are drawn."""
    steps = []
    for pieces in (1, 2):
        torch.manual_seed(0)
        # Not the small tower, whose norms follow their micro-batches.
        model = ExpBlipForPreTraining(small_config("vit", vision={"frozen": frozen}, loss_weights={"itm_emo": 0.0}))
        batch = faces_and_captions(model.config, rows=6)
        rows = [dict(zip(batch, row, strict=True)) for row in zip(*batch.values(), strict=True)]
        settings = {"per_device_train_batch_size": 6 // pieces, "gradient_accumulation_steps": pieces}
        training = TrainingArguments(
            **{"output_dir": str(tmp_path), "use_cpu": True, "disable_tqdm": True, "max_steps": 1, "logging_steps": 1},
            **{"save_strategy": "no", "optim": "sgd", "max_grad_norm": 0.0, "learning_rate": 1.0, **settings},
        )
        trainer = MF2Trainer(model=model, args=training, train_dataset=rows, data_collator=default_data_collator)
        before = {name: p.detach().clone() for name, p in model.named_parameters()}
        trainer.train()
        assert set(model.loss_names) <= set(next(entry for entry in trainer.state.log_history if "loss" in entry))
        steps.append({name: before[name] - p.detach() for name, p in model.named_parameters()})
    for name, step in steps[0].items():
        assert torch.allclose(step, steps[1][name], atol=1e-4, rtol=1e-3), name
    assert any(step.abs().sum() > 0 for name, step in steps[0].items() if ".vision." in name) != frozen


# The classifier


@pytest.mark.parametrize("features", ["vision", "qformer"])
def test_a_probe_learns_its_heads_and_leaves_no_graph_below(features):
    model = classifier(features=features).train()
    assert not any(module.training for module in model.mf2.modules())
    read = model.features(faces_and_captions(model.config)["pixel_values"])
    assert not read.requires_grad and read.grad_fn is None
    model(faces_and_captions(model.config)["pixel_values"], **labels()).loss.backward()
    wanted = {name for name, p in model.named_parameters() if p.requires_grad}
    assert (
        set(learned(model))
        == wanted
        == {f"classifiers.{n}.{k}" for n in ("units", "emotion") for k in ("weight", "bias")}
    )


@pytest.mark.parametrize("pooling", ["mean", "concat"])
@pytest.mark.parametrize("features", ["vision", "qformer"])
def test_fine_tuning_reaches_all_that_the_features_are_made_of_and_counts_nothing_else(features, pooling):
    model = classifier("vit", features=features, query_pooling=pooling, frozen_features=False).train()
    model(faces_and_captions(model.config)["pixel_values"], **labels()).loss.backward()
    wanted = {name for name, p in model.named_parameters() if p.requires_grad}
    # The keys' bias shifts all scores of a query alike, and gets no gradient but rounding's.
    assert {name for name in wanted if not name.endswith("k_proj.bias")} <= set(learned(model)) <= wanted
    assert any(name.startswith("mf2.vision.") for name in wanted)
    assert any(name.startswith("mf2.emo_vl.qformer.") for name in wanted) == (features == "qformer")


def test_features_are_the_mean_of_the_patches_or_the_queries():
    images = faces_and_captions(small_config("vit"))["pixel_values"]
    model = classifier("vit", features="vision").eval()
    assert torch.equal(model.features(images), model.mf2.vision(images)[:, 1:].mean(dim=1)), "no class token"
    for pooling in ("mean", "concat"):
        model = classifier("vit", query_pooling=pooling).eval()
        states = model.mf2(images).emo_states
        expected = states.mean(dim=1) if pooling == "mean" else states.flatten(1)
        assert torch.equal(model.features(images), expected)
        assert torch.equal(model.features(image_tokens=model.mf2.vision(images)), expected)


@pytest.mark.parametrize("features", ["vision", "qformer"])
def test_unknown_labels_and_half_precision(features):
    model = classifier(features=features, frozen_features=False)
    batch = {**faces_and_captions(model.config), **labels()}
    check_unknown_labels_do_not_matter(model, batch)
    check_half_precision(model, batch)


def test_a_label_set_without_emotions_has_no_emotion_head():
    model = classifier(emotions=[])
    answer = model(faces_and_captions(model.config)["pixel_values"], **labels())
    assert answer.emotion_logits is None and answer.emotion is None and answer.au_logits.shape == (4, 3)


def test_fresh_heads_stand_on_what_stage_one_has_learned(tmp_path, caplog):
    stage_one = shake(ExpBlipForPreTraining(small_config(caption_set="au"))).eval()
    stage_one.save_pretrained(tmp_path)
    images = faces_and_captions(stage_one.config)["pixel_values"]
    again = ExpBlipForPreTraining.from_pretrained(tmp_path)
    assert all(torch.equal(tensor, again.state_dict()[name]) for name, tensor in stage_one.state_dict().items())
    # Other labels are welcome: stage 1 has learned nothing for any.
    assert ExpBlipForPreTraining.from_pretrained(tmp_path, label_set="disfa").config.emotions == []
    model = ExpBlipForFaceAnalysis.from_pretrained(tmp_path, action_units=["AU4", "AU12"], query_pooling="concat")
    assert torch.equal(model.features(images), stage_one.mf2(images).emo_states.flatten(1))
    assert model.config.caption_set == "au" and model(images).au_logits.shape == (4, 2)
    assert model.classifiers.units.weight.abs().sum() > 0 and model.classifiers.units.bias.abs().sum() == 0


def test_trained_heads_answer_for_no_other_labels_and_read_no_other_features(tmp_path):
    model = classifier().eval()
    model.config.au_thresholds = [0.4, 0.5, 0.6]
    model.save_pretrained(tmp_path)
    again = AutoModel.from_pretrained(tmp_path)
    assert isinstance(again, ExpBlipForFaceAnalysis) and again.config.au_thresholds == [0.4, 0.5, 0.6]
    images = faces_and_captions(model.config)["pixel_values"]
    assert torch.equal(again(images).au_logits, model(images).au_logits)
    assert isinstance(AutoModelForPreTraining.from_pretrained(tmp_path), ExpBlipForPreTraining)
    with pytest.raises(ValueError, match=r"action_units: got .* but the checkpoint"):
        ExpBlipForFaceAnalysis.from_pretrained(tmp_path, action_units=["AU1", "AU2", "AU25"])
    with pytest.raises(ValueError, match=r"features: got 'vision', but the heads of .* were trained on 'qformer'"):
        ExpBlipForFaceAnalysis.from_pretrained(tmp_path, features="vision")
    with pytest.raises(ValueError, match=r"query_pooling: got 'concat', but the heads"):
        ExpBlipForFaceAnalysis.from_pretrained(tmp_path, query_pooling="concat")
    with pytest.raises(ValueError, match=r"vision_config\.frozen: got True, expected False"):
        ExpBlipForFaceAnalysis(small_config(features="vision", frozen_features=False))


def test_checkpoints_of_other_systems_are_refused(tmp_path):
    MF2ForPreTraining(tiny_config()).save_pretrained(tmp_path / "mf2")
    ExpBlipForPreTraining(small_config()).save_pretrained(tmp_path / "exp_blip")
    for kind in (ExpBlipForPreTraining, ExpBlipForFaceAnalysis):
        with pytest.raises(ValueError, match="is a checkpoint of 'mf2', expected one of 'exp_blip'"):
            kind.from_pretrained(tmp_path / "mf2")
    with pytest.raises(ValueError, match="is a checkpoint of 'exp_blip', expected one of 'mf2'"):
        MF2ForPreTraining.from_pretrained(tmp_path / "exp_blip")
