import pytest
import torch
from compared_systems import (
    SMALL,
    SMALL_SWIN,
    check_every_parameter_learns,
    check_half_precision,
    check_saved_and_loaded,
    check_unknown_labels_do_not_matter,
    small_batch,
)
from conftest import shake

from configuration_mf2.baselines import MEGraphAUConfig
from mf2face.training.grad_cache import micro_batches
from modeling_mf2 import MEGraphAUForFaceAnalysis, VLFAUForFaceAnalysis


def build(swin: bool = False, **fields) -> MEGraphAUForFaceAnalysis:
    sizes = {"hidden_size": 32, "neighbors": 2}
    return MEGraphAUForFaceAnalysis(MEGraphAUConfig(**{**(SMALL_SWIN if swin else SMALL), **sizes, **fields}))


@pytest.mark.parametrize("use_edges", [False, True])
def test_every_parameter_of_either_stage_learns(use_edges):
    model = build(use_edges=use_edges)
    check_every_parameter_learns(model, small_batch(model.config))


def test_logits_are_of_the_probabilities_that_the_loss_reads():
    model = shake(build()).eval()
    images = small_batch(model.config)["pixel_values"]
    _, nodes, _ = model.look(images)
    assert torch.allclose(model(images).au_logits.sigmoid(), model.classifiers(nodes), atol=2e-6)


def test_lambda_weighs_the_edges():
    model = shake(build(loss_weights={"edge": 0.5})).eval()
    output = model(**small_batch(model.config))
    assert torch.allclose(output.loss, output.au + output.emotion + 0.5 * output.edge)
    first = build(use_edges=False)(**small_batch(model.config))
    assert first.edge is None and first.edge_logits is None


def test_the_second_stage_begins_with_what_the_first_has_learned(tmp_path):
    first = shake(build(use_edges=False))
    first.save_pretrained(tmp_path)
    second = MEGraphAUForFaceAnalysis.from_pretrained(tmp_path, use_edges=True)
    assert second.config.use_edges
    known = first.state_dict()
    for name, tensor in second.state_dict().items():
        if name in known:
            assert torch.equal(tensor, known[name]), name
        assert tensor.isfinite().all(), name
    assert second(**small_batch(second.config)).edge.isfinite()


def test_several_micro_batches_make_the_step_of_one_where_all_labels_are_known():
    model = shake(build()).eval()
    batch = small_batch(model.config, texts=False)
    batch["au_labels"].clamp_(min=0)
    model(**batch).loss.backward()
    expected = {name: p.grad.clone() for name, p in model.named_parameters()}
    model.zero_grad()
    parts = [{name: tensor[rows] for name, tensor in batch.items()} for rows in (slice(0, 3), slice(3, 4))]
    for part in micro_batches(model, parts, compares_rows=False):
        with part.entered():
            (model(**part.inputs).loss / 2).backward()
    for name, p in model.named_parameters():
        assert torch.allclose(p.grad, expected[name], rtol=1e-3, atol=1e-5), name


def test_unknown_labels_do_not_matter():
    check_unknown_labels_do_not_matter(build(), small_batch(build().config))


def test_half_precision():
    model = build(swin=True)
    check_half_precision(model, small_batch(model.config))


def test_saved_and_loaded_bit_by_bit(tmp_path):
    check_saved_and_loaded(build(), tmp_path, VLFAUForFaceAnalysis)
