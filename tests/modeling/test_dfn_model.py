"""DFN as a user of peft meets it: added, trained, saved, loaded, swapped, refused; and the backbone left alone."""

import json
import logging

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from conftest import LABELS, assert_close, assert_same, gradients, pick, rows_of, shake, tiny_batch, tiny_config
from peft import PeftConfig, PeftModel, get_peft_model, inject_adapter_in_model
from peft.mapping import PEFT_TYPE_TO_TUNER_MAPPING
from peft.utils import PeftType
from safetensors.torch import load_file, save_file
from torch import nn
from transformers import Trainer, TrainingArguments, default_data_collator

from configuration_mf2 import MF2Config
from modeling_mf2 import (
    DFNConfig,
    DFNModel,
    MF2ForCaptioning,
    MF2ForFaceAnalysis,
    MF2ForImageClassification,
    MF2ForPreTraining,
    MF2Model,
)
from modeling_mf2.dfn.model import register_dfn


def small(**fields):
    return DFNConfig(**{"bottleneck": 4, "layers": 3, "pathways": ["visual"], **fields})


def nudge(model, seed=3):
    """As if it had been trained."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter += 0.1 * torch.randn(parameter.shape, generator=generator)
    return model


def answers(model, batch):
    with torch.no_grad():
        return pick(model.eval()(**batch), "emotion_logits", "au_logits")


def same(first, second):
    return all(torch.equal(first[name], second[name]) for name in first)


def build(cls=MF2ForFaceAnalysis, **fields):
    torch.manual_seed(0)
    return shake(cls(tiny_config(**fields))).eval()


def adapted(seed=3, **fields):
    return nudge(get_peft_model(build(), small(**fields)), seed)


@pytest.fixture
def batch():
    return pick(tiny_batch(tiny_config()), "pixel_values", "landmarks", *LABELS)


@pytest.mark.parametrize("tower", ["conv", "vit"])
@pytest.mark.parametrize("pooling", ["mean", "all"])
def test_untrained_it_is_the_base_bit_for_bit(batch, tower, pooling):
    base = build(tower=tower)
    before = answers(base, batch)
    model = get_peft_model(base, small(pathways=["visual", "language", "vision"], pooling=pooling, readout="mix"))
    assert model.peft_config["default"].pathways == ["visual_emo", "visual_au", "vision_emo", "vision_au"]
    assert same(answers(model, batch), before)
    assert not same(answers(nudge(model), batch), before)
    with model.disable_adapter():
        assert same(answers(model, batch), before)


def test_untrained_the_paper_s_losses_are_the_base_s_and_language_towers_learn():
    base, batch = build(MF2ForPreTraining), tiny_batch(tiny_config())
    torch.manual_seed(0)
    before = base(**batch)
    model = get_peft_model(base, small(pathways=["visual", "language"]))
    torch.manual_seed(0)
    after = model(**batch)
    assert_same(after, before)
    found = gradients(model, after.loss)
    assert [name for name, parameter in model.named_parameters() if parameter.requires_grad and name not in found] == []
    moving = {name.split(".dfn_towers.default.")[1] for name in found if "up.bias" in name and found[name].any()}
    assert {name.split(".")[0] for name in moving} == {"visual_emo", "visual_au", "language_emo", "language_au"}


def test_a_pathway_that_no_loss_reaches_gets_no_tower_and_that_is_said(caplog):
    with caplog.at_level(logging.WARNING):
        model = get_peft_model(build(), small(pathways=["visual", "language"]))
    assert "no tower is built for ['language_emo', 'language_au']" in caplog.text
    assert not any("language" in name for name, _ in model.named_parameters() if "dfn_" in name)
    spoken = get_peft_model(build(MF2ForPreTraining, loss_weights={"itc_au": 0.0}), small(pathways=["language"]))
    assert spoken.peft_config["default"].pathways == ["language_emo"]


@pytest.mark.parametrize(
    ("model", "fields", "said"),
    [
        (lambda: build(MF2ForCaptioning), {}, "its losses reach: none"),
        (lambda: nn.Sequential(nn.Linear(2, 2)), {}, "has no port"),
        (build, {"layers": [0, 9]}, "layers: got 9 for 'visual_emo'"),
        (build, {"target_modules": ["q_proj"]}, r"target_modules: got .* expected ports, .*'mf2.au_vl.port'"),
    ],
)
def test_a_model_that_an_adapter_does_not_fit_is_refused(model, fields, said):
    with pytest.raises((ValueError, TypeError), match=said):
        get_peft_model(model(), small(**fields))


def test_the_backbone_has_no_graph_no_dropout_and_no_gradients(batch):
    base = build(qformer={"hidden_dropout_prob": 0.5, "attention_probs_dropout_prob": 0.5})
    before = answers(base, batch)
    model = get_peft_model(base, small())
    model.train()
    assert model.training and not base.mf2.emo_vl.qformer.training and not base.mf2.vision.training
    pixels = batch["pixel_values"].clone().requires_grad_()
    output = model(**{**batch, "pixel_values": pixels})
    assert same(before, output)
    output.loss.backward()
    assert pixels.grad is None
    trained = {name for name, parameter in model.named_parameters() if parameter.grad is not None}
    assert trained and all(".dfn_towers." in name or "classifiers.modules_to_save" in name for name in trained)


def test_saved_and_loaded_it_answers_bit_for_bit_and_is_small(batch, tmp_path):
    model = adapted(pathways=["visual", "vision"])
    expected = answers(model, batch)
    model.save_pretrained(tmp_path)
    trained = sum(parameter.numel() for parameter in model.parameters() if parameter.requires_grad)
    assert (tmp_path / "adapter_model.safetensors").stat().st_size < 4 * trained + 20_000
    for low_cpu_mem_usage in (False, True):
        loaded = PeftModel.from_pretrained(build(), tmp_path, low_cpu_mem_usage=low_cpu_mem_usage)
        assert same(answers(loaded, batch), expected)
        assert not any(parameter.requires_grad for parameter in loaded.parameters())
    config = PeftConfig.from_pretrained(tmp_path)
    assert isinstance(config, DFNConfig) and config.pathways == model.peft_config["default"].pathways
    loaded = PeftModel.from_pretrained(build(), tmp_path, is_trainable=True)
    assert sum(parameter.numel() for parameter in loaded.parameters() if parameter.requires_grad) == trained


def test_several_adapters_are_kept_apart(batch, tmp_path):
    base = build()
    before = answers(base, batch)
    model = nudge(get_peft_model(base, small(), adapter_name="first"))
    first = answers(model, batch)
    model.add_adapter("second", small(layers=[1], pooling="all", bottleneck=2))
    assert same(answers(model, batch), first)
    model.set_adapter("second")
    second = answers(nudge(model, 4), batch)
    assert not same(second, first)
    model.set_adapter("first")
    assert same(answers(model, batch), first)
    model.save_pretrained(tmp_path)
    model.load_adapter(tmp_path / "second", adapter_name="third")
    model.set_adapter("third")
    assert same(answers(model, batch), second)
    with pytest.raises(ValueError, match="one active adapter at a time"):
        model.base_model.set_adapter(["first", "second"])
    model.delete_adapter("third")
    model.delete_adapter("first")
    model.set_adapter("second")
    assert same(answers(model, batch), second)
    with model.disable_adapter():
        assert same(answers(model, batch), before)


def test_weights_are_swapped_in_place_while_the_model_serves(batch, tmp_path):
    found = []
    for seed in (1, 2):
        model = adapted(seed)
        found.append(answers(model, batch))
        model.save_pretrained(tmp_path / str(seed))
    places = [parameter.data_ptr() for parameter in model.parameters()]
    model.load_adapter(tmp_path / "1", adapter_name="default")
    assert same(answers(model, batch), found[0]) and not same(*found)
    assert places == [parameter.data_ptr() for parameter in model.parameters()]


def test_a_name_that_a_module_has_is_refused_and_leaves_the_model_as_it_was(batch):
    base = build()
    before, taken = answers(base, batch), ("emo_vl", "visual_emo", "classifiers", "0", "dfn_towers", "a.b", "weight")
    for name in taken:
        with pytest.raises(ValueError, match="expected a name without dots that no module"):
            get_peft_model(base, small(), adapter_name=name)
    assert same(answers(base, batch), before)
    model = nudge(get_peft_model(base, small()))
    expected = answers(model, batch)
    for name in taken:
        with pytest.raises(ValueError, match="expected a name without dots"):
            model.add_adapter(name, small())
    assert list(model.peft_config) == ["default"] and same(answers(model, batch), expected)


def test_native_adapters_of_transformers(batch, tmp_path):
    base = build()
    base.save_pretrained(tmp_path / "base")
    base = MF2ForFaceAnalysis.from_pretrained(tmp_path / "base")
    before = answers(base, batch)
    try:
        base.add_adapter(small())
    except ValueError as error:
        if "version of PEFT" not in str(error):
            raise
        pytest.skip(f"transformers refuses the installed peft: {error}")
    assert same(answers(base, batch), before)
    expected = answers(nudge(base), batch)
    base.save_pretrained(tmp_path / "adapter")
    assert json.loads((tmp_path / "adapter/adapter_config.json").read_text())["base_model_name_or_path"]
    base.disable_adapters()
    base.enable_adapters()
    assert same(answers(base, batch), expected), "towers and heads are both back"
    base.disable_adapters()
    assert same(answers(base, batch), before)
    other = MF2ForFaceAnalysis.from_pretrained(tmp_path / "base")
    other.load_adapter(str(tmp_path / "adapter"))
    assert same(answers(other, batch), expected)
    whole = MF2ForFaceAnalysis.from_pretrained(tmp_path / "adapter")
    assert same(answers(whole, batch), expected)
    other.load_adapter(str(tmp_path / "adapter"), adapter_name="again")
    for name in ("default", "again"):
        other.set_adapter(name)
        assert same(answers(other, batch), expected), name
    other.delete_adapter("default")
    assert same(answers(other, batch), expected)


def test_merging_says_why_not_and_unloading_gives_the_base_s_branches_back(batch):
    base = build()
    before = base.mf2(batch["pixel_values"], batch["landmarks"]).emo_states
    model = nudge(get_peft_model(base, small()))
    for merge in (model.merge_and_unload, model.merge_adapter):
        with pytest.raises(NotImplementedError, match="DFN cannot be merged"):
            merge()
    plain = model.unload()
    assert torch.equal(plain.mf2(batch["pixel_values"], batch["landmarks"]).emo_states, before)
    assert not any("dfn" in name for name, _ in plain.named_modules())


def test_an_adapter_of_another_base_is_refused(tmp_path):
    get_peft_model(build(), small()).save_pretrained(tmp_path)
    for fields in ({"emotions": ["Neutral", "Other", "Happiness"]}, {"qformer": {"num_hidden_layers": 2}}):
        base = build(**fields)
        with pytest.raises(ValueError, match="the adapter belongs to a model whose"):
            PeftModel.from_pretrained(base, tmp_path)
        assert not any("dfn" in name for name, _ in base.named_modules())


def test_a_damaged_adapter_is_refused(tmp_path):
    get_peft_model(build(), small()).save_pretrained(tmp_path)
    path = tmp_path / "adapter_model.safetensors"
    content, tensors = path.read_bytes(), load_file(path)
    path.write_bytes(content[:-100])
    with pytest.raises(OSError, match=r"adapter_model\.safetensors: damaged or cut short"):
        PeftModel.from_pretrained(build(), tmp_path)
    save_file({name: tensor for name, tensor in tensors.items() if "up.weight" not in name}, path)
    with pytest.raises(ValueError, match=r"tensors are missing, the first .*up\.weight"):
        PeftModel.from_pretrained(build(), tmp_path)


def test_stored_tokens_do_not_serve_a_vision_pathway(batch):
    model = get_peft_model(build(), small(pathways=["vision"]))
    with pytest.raises(ValueError, match="reads the vision tower's blocks"):
        model(image_tokens=torch.randn(4, 16, 32))


def test_counts_at_the_paper_s_size():
    register_dfn()
    assert PEFT_TYPE_TO_TUNER_MAPPING[PeftType.DFN] is DFNModel
    with torch.device("meta"):
        base = MF2ForPreTraining(MF2Config.from_size("giant"))
        model = get_peft_model(base, DFNConfig(heads="none"))
    towers = [parameter for name, parameter in model.named_parameters() if ".dfn_towers." in name]
    assert sum(parameter.numel() for parameter in towers) == 28 * (2 * 768 * 64 + 64 + 768 + 1) == 2_775_836
    assert model.get_nb_trainable_parameters()[0] == 2_775_836
    with torch.device("meta"):
        model = get_peft_model(MF2ForPreTraining(MF2Config.from_size("giant")), DFNConfig(heads="all"))
    every = model.get_nb_trainable_parameters()[0]

    def count(*parts):
        return sum(parameter.numel() for part in parts for parameter in part.parameters())

    branches = (base.mf2.emo_vl, base.mf2.au_vl)
    classifiers = count(base.classifiers)
    assert every == 2_775_836 + classifiers + count(*(branch.heads for branch in branches))
    # The paper's 52.88 M: language heads with their vocabularies (ours share the frozen embeddings), two output layers
    # and two temperatures, but no classifiers.
    vocabularies = count(*(branch.qformer.word_embeddings for branch in branches))
    assert every - classifiers + vocabularies + 2 * (768 * 768 + 768) + 2 == 52_876_184


def test_a_half_precision_base_keeps_a_full_precision_adapter(batch):
    base = build().to(torch.bfloat16)
    before = answers(base, batch)
    model = get_peft_model(base, small(pathways=["visual", "vision"]))
    assert {p.dtype for name, p in model.named_parameters() if ".dfn_towers." in name} == {torch.float32}
    assert same(answers(model, batch), before)
    model(**batch).loss.backward()
    with torch.autocast("cpu", torch.bfloat16):
        adapted()(**batch).loss.backward()


@pytest.mark.slow
def test_compiled_the_base_answers_the_same(batch):
    model = adapted()
    expected = answers(model, batch)
    compiled = torch.compile(model, backend="eager")
    for found, wanted in zip(answers(compiled, batch), expected, strict=True):
        torch.testing.assert_close(found, wanted)


def test_every_model_of_ours_takes_the_same_adapter(batch, tmp_path):
    model = adapted()
    expected = answers(model, batch)["emotion_logits"]
    model.save_pretrained(tmp_path)
    classifier = PeftModel.from_pretrained(build(MF2ForImageClassification), tmp_path).eval()
    assert torch.equal(classifier(batch["pixel_values"], batch["landmarks"]).logits, expected)
    both = nudge(get_peft_model(build(MF2ForPreTraining), small(pathways=["visual", "language"])))
    both.save_pretrained(tmp_path / "both")
    analysis = PeftModel.from_pretrained(build(), tmp_path / "both")
    assert same(answers(analysis, batch), answers(both, batch))
    features = inject_adapter_in_model(small(), build(MF2Model))
    assert features.peft_config["default"].modules_to_save is None


def trainer(model, batch, folder, **arguments):
    defaults = {"per_device_train_batch_size": 2, "learning_rate": 0.01, "report_to": [], "use_cpu": True}
    defaults |= {"save_strategy": "steps", "save_steps": 2, "eval_strategy": "steps", "eval_steps": 2}
    defaults |= {"load_best_model_at_end": True, "metric_for_best_model": "loss", "disable_tqdm": True}
    defaults |= {"label_names": ["au_labels", "emotion_labels"], "remove_unused_columns": False, "logging_steps": 1}
    arguments = TrainingArguments(str(folder), **{**defaults, **arguments})
    rows = [rows_of(batch, row) for row in range(4)]
    return Trainer(model, arguments, default_data_collator, rows, rows)


@pytest.mark.parametrize("checkpointing", [False, True])
def test_the_trainer_resumes_to_the_same_weights(batch, tmp_path, checkpointing):
    options = {"max_steps": 4, "gradient_checkpointing": checkpointing}
    runs = [trainer(get_peft_model(build(), small()), batch, tmp_path / "run", **options) for _ in range(2)]
    for run, start in zip(runs, (None, str(tmp_path / "run" / "checkpoint-2")), strict=True):
        run.train(resume_from_checkpoint=start)
        assert run.state.best_model_checkpoint
    whole, resumed = (run.model.state_dict() for run in runs)
    assert_same(resumed, {name: tensor for name, tensor in whole.items() if "dfn_" in name or "modules_to" in name})


def _one_of_two(rank, model, batch, folder):
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/meet", rank=rank, world_size=2)
    ddp = nn.parallel.DistributedDataParallel(model)
    ddp(**rows_of(batch, slice(2 * rank, 2 * rank + 2))).loss.backward()
    if rank == 0:
        torch.save({name: p.grad for name, p in model.named_parameters() if p.requires_grad}, folder / "gradients.pt")
    dist.destroy_process_group()


def test_two_processes_find_the_gradients_of_one(batch, tmp_path):
    batch["au_labels"].clamp_min_(0)  # so that both halves count the same
    batch["emotion_labels"].clamp_min_(0)
    model = adapted(pathways=["visual", "vision"])
    mp.start_processes(_one_of_two, (model, batch, tmp_path), nprocs=2, start_method="spawn")
    assert_close(torch.load(tmp_path / "gradients.pt"), gradients(model, model(**batch).loss))
