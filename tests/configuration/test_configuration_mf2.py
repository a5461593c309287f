"""MF²'s config: mistakes that are named, files and their versions, overrides, labels; JSON files; loading checks."""

import json
import re
import warnings
from importlib.metadata import version

import pytest
import torch
from huggingface_hub.errors import StrictDataclassError
from transformers import AutoConfig, DynamicCache

import modeling_mf2  # noqa: F401 - registers the Auto classes
from configuration_mf2 import MF2Config, MF2QFormerConfig, MF2VisionConfig
from configuration_mf2.base import UnknownFieldWarning
from configuration_mf2.baselines import HSEmotionConfig
from configuration_mf2.configuration_mf2 import LOSSES, SIZES
from configuration_mf2.facs import ACTION_UNITS, LABEL_SETS, REGION_RULES
from configuration_mf2.hub import check_finite_weights, check_loading_info
from configuration_mf2.json_files import parse_json, read_json
from configuration_mf2.version import FIELD, VERSION, NewerCheckpointWarning, check_version


def content(config):
    return json.loads(config.to_json_string(use_diff=False))


def every(names):
    """A pattern that wants all names in the message, in this order."""
    return "(?s)" + ".*".join(re.escape(name) for name in names)


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({"label_set": "mffa"}, ["'mffa'", *sorted(LABEL_SETS)]),
        ({"num_query_tokens": 4}, ["MF2Config", "'num_query_tokens'", "'action_units'", "'use_emo_branch'"]),
        ({"region_gird": 3}, ["'region_gird'", "did you mean 'region_grid'"]),
        ({"temperature": 0.1}, ["'temperature'", "did you mean 'initial_temperature'"]),
        ({"emo_config": {"hiden_size": 8}}, ["MF2QFormerConfig", "'hiden_size'", "did you mean 'hidden_size'"]),
        ({"vision_config": {"frozn": True}}, ["MF2VisionConfig", "'frozn'", "did you mean 'frozen'"]),
        ({"action_units": ["AU1", "AU3"]}, ["action_units", "['AU3']", *ACTION_UNITS]),
        ({"action_units": ["AU1", "AU1"]}, ["action_units", "twice"]),
        ({"action_units": ["AU21"]}, ["['AU21']", *REGION_RULES, "use_au_branch=False"]),
        ({"action_units": "AU1"}, ["action_units", "list"]),
        ({"emotions": ["Joy", "Joy"]}, ["emotions", "Joy", "once"]),
        ({"au_thresholds": [0.5]}, ["au_thresholds", "1 values", "12", "'AU26'"]),
        ({"au_class_weights": [1.0] * 13}, ["au_class_weights", "13 values", "12", "'AU26'"]),
        ({"loss_weights": {"itc": 1.0}}, ["loss_weights", "['itc']", *LOSSES]),
        ({"initial_temperature": 0}, ["initial_temperature", "0"]),
        ({"region_grid": 0}, ["region_grid", "0"]),
        ({"region_window": 0.0}, ["region_window", "0.0"]),
        ({"region_grid": "3"}, ["region_grid", "int", "str"]),
        ({"classification_target": "aus"}, ["classification_target", "emotion", "action_units", "aus"]),
        ({"label_set": "disfa", "classification_target": "emotion"}, ["classification_target", "'disfa'"]),
        ({"label_set": "affectnet"}, ["use_au_branch", "'affectnet'", "use_au_branch=False"]),
        ({"use_emo_branch": False, "use_au_branch": False}, ["use_emo_branch", "use_au_branch", "at least one"]),
        ({"emo_config": {"vocab_size": 31000}}, ["au_config.vocab_size", "30523", "31000"]),
        ({"emo_config": {"hidden_size": 100}}, ["hidden_size", "100", "12"]),
        ({"emo_config": {"num_query_tokens": 0}}, ["num_query_tokens", "0"]),
        ({"emo_config": {"cross_attention_frequency": 0}}, ["cross_attention_frequency", "0"]),
        ({"vision_config": {"image_size": 100}}, ["image_size", "100", "patch_size", "16"]),
        ({"au_thresholds": [5.0] * 12}, ["au_thresholds: got 5.0", "0 to 1"]),
        ({"au_class_weights": [-1.0] * 12}, ["au_class_weights: got -1.0"]),
        ({"loss_weights": {"au": float("nan")}}, ["loss_weights: got nan"]),
        ({"emotion_max_length": 0}, ["emotion_max_length: got 0", "3"]),
        ({"emo_config": {"max_position_embeddings": 20}}, ["emotion_max_length: got", "20"]),
        ({"vision_config": {"image_size": 0}}, ["image_size: got 0"]),
        ({"emo_config": {"hidden_dropout_prob": 7}}, ["hidden_dropout_prob: got 7"]),
        ({"emo_config": {"hidden_act": "foo"}}, ["hidden_act: got 'foo'"]),
        ({"num_labels": 3}, ["num_labels: got 3", "8"]),
    ],
    ids=str,
)
def test_a_mistake_is_an_error_that_names_what_is_valid(fields, said):
    with pytest.raises((ValueError, StrictDataclassError), match=every(said)):
        MF2Config(**fields)


@pytest.mark.parametrize(
    ("size", "width", "patches"), [("tiny", 128, 14), ("small", 320, 20), ("base", 768, 14), ("giant", 1408, 16)]
)
def test_sizes(size, width, patches, tmp_path):
    config = MF2Config.from_size(size)
    assert len(config.action_units) == 12 and len(config.emotions) == 8
    for branch in (config.emo_config, config.au_config):
        assert branch.encoder_hidden_size == config.vision_config.hidden_size == width
    assert config.vision_config.grid_size == patches
    queries = config.emo_config.num_query_tokens, config.emo_config.num_hidden_layers
    assert size in ("tiny", "small") or queries == (32, 12)
    fields = {"au_thresholds": [0.25] * 12, "loss_weights": {"au": 2}, "region_window": 2, "use_emo_branch": False}
    config = MF2Config.from_size(size, label_set="bp4d", **fields)
    config.save_pretrained(tmp_path)
    again = MF2Config.from_pretrained(tmp_path)
    assert content(again) == content(config) == content(MF2Config.from_dict(content(config)))
    assert again.id2label == config.id2label
    for part in ("vision_config", "emo_config", "au_config"):
        assert type(getattr(again, part)) is type(getattr(config, part))
    with pytest.raises(ValueError, match=every(["'large'", *SIZES])):
        MF2Config.from_size("large")


def test_an_override_of_a_part_changes_only_what_it_names():
    config = MF2Config.from_size("tiny", au_config={"num_query_tokens": 2}, label_set="bp4d")
    usual = MF2Config.from_size("tiny")
    assert config.au_config.num_query_tokens == 2
    assert config.au_config.hidden_size == usual.au_config.hidden_size
    assert content(config)["emo_config"] == content(usual)["emo_config"]
    assert config.classification_target == "action_units" and config.id2label[6] == "AU12"


def test_overrides_while_loading(tmp_path):
    MF2Config.from_size("tiny", au_thresholds=[0.25] * 12).save_pretrained(tmp_path)
    other = MF2Config.from_pretrained(tmp_path, label_set="disfa")
    assert other.action_units == list(LABEL_SETS["disfa"].action_units) and other.emotions == []
    assert other.au_thresholds is None and other.classification_target == "action_units"
    assert other.id2label[7] == "AU26" and other.problem_type == "multi_label_classification"
    target = MF2Config.from_pretrained(tmp_path, classification_target="action_units")
    assert target.id2label[0] == "AU1" and target.num_labels == 12 and target.au_thresholds == [0.25] * 12
    part = MF2Config.from_pretrained(tmp_path, au_config={"num_query_tokens": 1}, region_grid=5)
    assert part.au_config.num_query_tokens == 1 and part.au_config.hidden_size == 128
    assert part.tokens_per_region == 50
    with pytest.raises(ValueError, match="num_query_token'; did you mean 'num_query_tokens'"):
        MF2Config.from_pretrained(tmp_path, au_config={"num_query_token": 1})


def test_a_field_of_an_older_file_is_read_by_its_old_name(tmp_path):
    MF2Config.from_size("tiny").save_pretrained(tmp_path)
    edit(tmp_path, {"units_alone_share": 0.75})
    for load in (MF2Config.from_pretrained, AutoConfig.from_pretrained):
        assert load(tmp_path).au_only_loss_weight == 0.75


def test_an_unknown_field_in_a_file_is_kept_with_a_warning(tmp_path):
    config = MF2Config.from_size("tiny")
    config.note = "mine"
    config.vision_config.froze = 1
    config.bos_token_id = 5  # as transformers' Trainer writes it
    config.save_pretrained(tmp_path)
    with pytest.warns(UnknownFieldWarning, match="MF2Config does not know: \\['note'\\]") as caught:
        again = MF2Config.from_pretrained(tmp_path)
    assert "MF2VisionConfig does not know: ['froze']" in "".join(str(warning.message) for warning in caught)
    assert again.note == "mine" and again.vision_config.froze == 1 and again.bos_token_id == 5
    assert content(again) == content(config)
    edit(tmp_path, {"to_dict": 3, "thresholds": [1]})  # what the class itself calls so
    with pytest.warns(UnknownFieldWarning, match="dropped"):
        config = MF2Config.from_pretrained(tmp_path)
    assert config.to_dict()["region_grid"] == config.region_grid and len(config.thresholds) == 12


def edit(folder, fields):
    file = folder / "config.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), **fields}))


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({"region_grid": "3"}, ["region_grid", "int", "str", "'3'"]),
        ({"region_grid": 100_000}, ["region_grid", "100000", "64"]),
        ({"region_window": float("nan")}, ["region_window", "nan"]),
        ({"initial_temperature": float("nan")}, ["initial_temperature", "nan"]),
        ({"emo_config": {"num_hidden_layers": 100_000}}, ["emo_config.num_hidden_layers", "100000", "256"]),
        ({"au_config": {"layer_norm_eps": -1.0}}, ["au_config.layer_norm_eps", "-1.0"]),
        (
            {"vision_config": {"backbone_kwargs": {"num_blocks": 10**6}}},
            ["vision_config.backbone_kwargs", "num_blocks"],
        ),
        ({"vision_config": {"image_std": [0, 0, 0]}}, ["vision_config.image_std", "[0, 0, 0]"]),
        ({"vision_config": "conv"}, ["vision_config", "dict", "conv"]),
        ({"emotions": 5}, ["emotions", "5"]),
        ({"dtype": 100_000}, ["dtype", "100000", "float32"]),
        ({"dtype": "x"}, ["dtype", "'x'", "float32"]),
        ({"label_set": "mffa"}, ["label_set", "'mffa'"]),
    ],
    ids=str,
)
def test_a_mistake_in_a_file_is_a_sentence(fields, said, tmp_path):
    MF2Config.from_size("tiny").save_pretrained(tmp_path)
    edit(tmp_path, fields)
    with pytest.raises(ValueError, match=every([tmp_path.name, "config.json", *said])):
        MF2Config.from_pretrained(tmp_path)


def test_a_file_that_holds_no_configuration_is_a_sentence_and_none_is_missing(tmp_path):
    with pytest.raises(FileNotFoundError, match=every([tmp_path.name, "config.json"])):
        MF2Config.from_pretrained(tmp_path)
    for text in ("[]", "3", "null", '"a"', "{", "{}", '{"x": ' + "9" * 5000 + "}", "[" * 100_000):
        (tmp_path / "config.json").write_text(text)
        with pytest.raises((ValueError, OSError), match=every([tmp_path.name, "config.json"])):
            MF2Config.from_pretrained(tmp_path)


def test_label_names_of_transformers_become_the_labels(tmp_path):
    MF2Config.from_size("tiny", au_thresholds=[0.25] * 12).save_pretrained(tmp_path)
    names = {0: "calm", 1: "tense", 2: "gone"}
    inverted = {name: index for index, name in names.items()}
    for given in ({"id2label": names, "label2id": inverted, "num_labels": 3}, {"label2id": inverted}):
        config = MF2Config.from_pretrained(tmp_path, **given)
        assert config.emotions == list(names.values()) and config.id2label == names and config.num_labels == 3
        assert config.classification_target == "emotion" and config.au_thresholds == [0.25] * 12
    units = MF2Config.from_pretrained(tmp_path, id2label={"0": "AU1", "1": "AU12"})
    assert units.action_units == ["AU1", "AU12"] and units.classification_target == "action_units"
    assert units.problem_type == "multi_label_classification" and units.au_thresholds is None
    assert MF2Config.from_pretrained(tmp_path, num_labels=8).num_labels == 8
    with pytest.raises(ValueError, match=r"num_labels: got 3.*id2label"):
        MF2Config.from_pretrained(tmp_path, num_labels=3)
    with pytest.raises(ValueError, match="id2label: got"):
        MF2Config.from_pretrained(tmp_path, id2label={0: "a", 2: "b"})


@pytest.mark.parametrize("make", [MF2Config, *(lambda size=size: MF2Config.from_size(size) for size in SIZES)])
def test_instances_share_no_mutable_value(make):
    before = content(make())
    config = make()
    config.loss_weights["au"] = 3.0
    config.vision_config.backbone_kwargs["depth"] = 1
    config.action_units.append("AU5")
    config.emotions.clear()
    config.emo_config.num_query_tokens = 5
    config.id2label[0] = "x"
    assert content(make()) == before


def test_targets_follow_the_labels():
    config = MF2Config()
    assert config.num_labels == 8 and config.label2id["Other"] == 7 and config.id2label[4] == "Happiness"
    assert config.problem_type == "single_label_classification"
    aus = MF2Config(classification_target="action_units")
    assert aus.label2id["AU26"] == 11 and aus.problem_type == "multi_label_classification"
    assert MF2Config(label_set="raf_db", use_au_branch=False).num_labels == 7
    assert config.thresholds == [0.5] * 12
    assert MF2Config(action_units=["AU21"], use_au_branch=False).action_units == ["AU21"], "nobody looks for a region"


def test_tokenizer_ids_are_adopted():
    class Tokenizer:
        pad_token_id, bos_token_id, sep_token_id = 1, 2, 4

        def __len__(self):
            return 2000

    config = MF2Config.from_size("tiny")
    config.adopt_tokenizer(Tokenizer())
    for branch in (config.emo_config, config.au_config):
        assert (branch.pad_token_id, branch.bos_token_id, branch.eos_token_id) == (1, 2, 4)
    small = {"emo_config": {"vocab_size": 1999}, "au_config": {"vocab_size": 1999}}
    with pytest.raises(ValueError, match=r"2000 tokens, the model 1999.*vocab_size=2000"):
        MF2Config.from_size("tiny", **small).adopt_tokenizer(Tokenizer())


def test_parts_stand_alone_and_load_from_a_whole_models_file(tmp_path):
    assert MF2VisionConfig().grid_size == 14
    assert MF2QFormerConfig(hidden_size=24, num_attention_heads=2).hidden_size == 24
    with pytest.raises(ValueError, match="did you mean 'hidden_act'"):
        MF2QFormerConfig(hidden_acts="gelu")
    config = MF2Config.from_size("tiny")
    config.save_pretrained(tmp_path)
    assert MF2VisionConfig.from_pretrained(tmp_path).to_dict() == config.vision_config.to_dict()
    assert MF2QFormerConfig.from_pretrained(tmp_path).to_dict() == config.emo_config.to_dict()


def test_generic_code_finds_one_vocabulary_the_layers_of_a_cache_and_a_level_for_each_channel():
    config = MF2Config.from_size("tiny")
    config.vocab_size = 99
    assert config.emo_config.vocab_size == config.au_config.vocab_size == config.vocab_size == 99
    assert len(DynamicCache(config=config).layers) == 4
    for kind in (MF2VisionConfig, HSEmotionConfig):
        config = kind(image_mean=0.4, image_std=0.2)
        assert (config.image_mean, config.image_std) == ([0.4] * 3, [0.2] * 3)


@pytest.mark.parametrize("make", [lambda: MF2Config.from_size("tiny"), MF2VisionConfig], ids=["model", "tower"])
def test_a_config_carries_the_version_once_and_forgets_it_when_read(make, tmp_path):
    assert version("mf2face") == VERSION
    make().save_pretrained(tmp_path)
    text = (tmp_path / "config.json").read_text()
    assert json.loads(text)[FIELD] == VERSION and text.count(FIELD) == 1
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        again = type(make()).from_pretrained(tmp_path)
    assert not hasattr(again, FIELD), "what this code saves next is of this code's version"
    assert again.to_dict() == make().to_dict()


@pytest.mark.parametrize("load", [MF2Config.from_pretrained, AutoConfig.from_pretrained], ids=["own", "auto"])
def test_a_newer_major_is_named_and_loads(load, tmp_path):
    MF2Config.from_size("tiny").save_pretrained(tmp_path)
    major = int(VERSION.split(".")[0])
    edit(tmp_path, {FIELD: f"{major + 1}.2.0"})
    with pytest.warns(NewerCheckpointWarning, match=every([tmp_path.name, f"{major + 1}.2.0", VERSION])) as caught:
        config = load(tmp_path)
    assert len(caught) == 1 and json.loads(config.to_json_string())[FIELD] == VERSION
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for saved in (None, "0.0.1", f"{major}.99.0", VERSION):
            check_version(saved, "here")
    with pytest.warns(NewerCheckpointWarning, match="here: written by version unknown"):
        check_version("unknown", "here")


def test_json_that_cannot_be_read_is_a_sentence_that_names_the_file(tmp_path):
    file = tmp_path / "facts.json"
    with pytest.raises(FileNotFoundError, match="facts"):
        read_json(file)
    for damaged in (b"", b'{"a": [1', b'{"a": ' + b"9" * 5000 + b"}", b"[" * 100_000, b'{"a": "\xff"}'):
        file.write_bytes(damaged)
        with pytest.raises(ValueError, match=f"^{re.escape(str(file))}: got .*, expected JSON"):
            read_json(file)
        with pytest.raises(ValueError, match=r"^facts\.json, line 3: got "):
            parse_json(damaged, "facts.json, line 3")
    file.write_text('{"ä": [1.5, null]}', encoding="utf-8")
    assert read_json(file) == parse_json('{"ä": [1.5, null]}', "text") == {"ä": [1.5, None]}


def test_what_a_checkpoint_lacks_is_named_however_much_it_is():
    check_loading_info({"missing_keys": set(), "mismatched_keys": set()}, "folder")
    for missing, mismatched, said in (
        ({f"layer.{i:02}" for i in range(20)}, set(), r"folder: lacks 20 weights.*layer\.00, .*layer\.07 and 12 more"),
        (set(), {"head.bias"}, r"another shape 1 weights.*head\.bias"),
        (set(), {("head.bias", (3,), (4,))}, r"another shape 1 weights.*head\.bias"),
    ):
        with pytest.raises(ValueError, match=said):
            check_loading_info({"missing_keys": missing, "mismatched_keys": mismatched}, "folder")
    layer = torch.nn.BatchNorm1d(2)  # with a count, which is an integer
    check_finite_weights(layer, "folder")
    layer.running_var[1] = torch.inf
    with pytest.raises(ValueError, match=r"folder: 1 tensors.*running_var"):
        check_finite_weights(layer, "folder")
