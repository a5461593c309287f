"""Every compared system goes the way of MF²: trained, measured, saved, and read back by those who lack our packages."""

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from short_runs import ROOT, history, short_run
from transformers import AutoModel

from mf2face.data.synthetic.faces import MFASynthetic
from mf2face.training.arguments import parse_arguments
from mf2face.training.build import Parts, build_model, caption_columns, with_sources
from mf2face.training.tasks import SYSTEMS, TASKS
from processing_mf2 import MF2Processor


def settings_of(model: str, *options: str):
    return with_sources(parse_arguments(["--model", model, "--vision_name_or_path", "none", *options]))


def built(model: str, *options: str, rows=None) -> Parts:
    return build_model(settings_of(model, *options), rows)


@pytest.mark.usefixtures("training_alone")
@pytest.mark.parametrize("name", [name for name in SYSTEMS if name != "exp_blip"])
def test_a_system_is_trained_measured_and_kept(name: str, tmp_path: Path) -> None:
    figures = short_run(tmp_path, model=name)
    model = TASKS[name, "full"].model_class.from_pretrained(tmp_path)
    assert set(model.loss_names) <= set(history(tmp_path)[0]), "every part of its loss is trained and told"
    assert max(model.config.au_class_weights) > 1.2, "rare AUs count more, by the training labels"
    assert model.config.au_thresholds == MF2Processor.from_pretrained(tmp_path).au_thresholds
    released = load_file(ROOT / "model_cards" / "mf2-tiny-rendered" / "model.safetensors")
    moved = model.vision.backbone.convolutions[0].weight - released["mf2.vision.backbone.convolutions.0.weight"].float()
    assert 0 < moved.abs().max() < 0.02, "the backbone begins where MF²'s tower is, and is trained"

    card = (tmp_path / "README.md").read_text()
    assert SYSTEMS[name].title in card and SYSTEMS[name].paper in card and "An MF² model" not in card
    assert "synthetic" in card.lower() and "no paper's" in card
    again = short_run(tmp_path / "again", model=name, task="evaluate", model_name_or_path=tmp_path)
    words = {"local_top5", "global_top5"} if name == "vl_fau" else set()
    assert {key for key in again if key.endswith("_top5")} == words
    for key in ("au_f1_tuned_macro", "emotion_top1", *words):
        assert again[key] == figures[key]
    with pytest.raises(ValueError, match=f"is a checkpoint of '{name}', expected one of 'mf2'"):
        short_run(tmp_path / "no", model_name_or_path=tmp_path)
    assert type(AutoModel.from_pretrained(tmp_path)) is type(model)


def test_me_graph_aus_second_stage_begins_with_the_first(tmp_path: Path) -> None:
    first, processor, _ = built("me_graph_au", "--model_options", "use_edges=False")
    first.save_pretrained(tmp_path)
    processor.save_pretrained(tmp_path)
    options = ["--model_name_or_path", str(tmp_path), "--model_options", "use_edges=True"]
    second = built("me_graph_au", *options).model
    assert second.config.use_edges and torch.equal(second.narrow.weight, first.narrow.weight)
    assert not hasattr(first, "edges") and second.edges is not None


def test_the_weight_of_a_label_that_never_occurs_is_finite() -> None:
    rows = MFASynthetic(16, "drawn", size=64)
    labels = [[0, *row[1:]] for row in rows["au_labels"][:]]
    rows = rows.remove_columns("au_labels").add_column("au_labels", labels)
    weights = built("vl_fau", rows=rows).model.config.au_class_weights
    assert weights[0] == 1 and all(0 < weight < 100 for weight in weights)


@pytest.mark.parametrize(
    ("options", "columns"),
    [
        ((), ("vl_fau_global", "vl_fau_local")),
        (("use_llga=False",), ("vl_fau_global",)),
        (("use_llga=False", "use_glga=False"), ()),
    ],
)
def test_ablations_learn_from_the_captions_that_they_still_have(options, columns) -> None:
    settings = settings_of("vl_fau", *(["--model_options", *options] if options else []))
    assert caption_columns(settings, build_model(settings).model.config) == columns


@pytest.mark.parametrize(
    ("options", "missing"),
    [
        ({"model": "vl_fau"}, "no column vl_fau_global, vl_fau_local, which VL-FAU learns from"),
        ({"model": "exp_blip", "task": "pretrain"}, "no column exp_blip_exp, which Exp-BLIP learns from"),
    ],
)
def test_a_dataset_without_the_captions_is_refused(options, missing, tmp_path: Path) -> None:
    MFASynthetic(40, "drawn", size=64).save_to_disk(tmp_path / "rows")
    with pytest.raises(ValueError, match=missing):
        short_run(tmp_path / "out", dataset=tmp_path / "rows", **options)


def test_a_frozen_backbone_stays_frozen() -> None:
    model = built("hsemotion", "--model_options", "frozen=True").model
    assert not any(p.requires_grad for p in model.train().vision.parameters())
