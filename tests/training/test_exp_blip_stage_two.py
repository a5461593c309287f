import pytest
import torch
from exp_blip_models import TOKENS, small_config, small_opt
from torch.utils.data import Dataset
from transformers import TrainingArguments

from configuration_mf2.baselines import CAPTION_SETS, ExpBlipConfig
from mf2face.captions.styles import caption_column, with_rule_captions
from mf2face.data.examples import MF2Examples
from mf2face.data.synthetic.faces import MFASynthetic
from mf2face.training.exp_blip import (
    CaptionedFaces,
    caption_inputs,
    random_language_model,
    train_captioner,
    write_captions,
)
from modeling_mf2 import ExpBlipForPreTraining
from modeling_mf2.baselines.exp_blip import to_blip2
from processing_mf2.processing_mf2 import MF2Processor
from processing_mf2.tokenizer import build_tokenizer


SAID = ("The face shows joy.", "It drops its jaw and looks sad.")


class Shades(Dataset):
    """Light faces and dark ones."""

    def __init__(self, rows: int = 16) -> None:
        self.rows = rows

    def set_epoch(self, epoch: int) -> None: ...

    def __len__(self) -> int:
        return self.rows

    def __getitem__(self, index: int) -> dict[str, torch.Tensor]:
        noise = 0.1 * torch.randn(3, 64, 64, generator=torch.Generator().manual_seed(index))
        return {"pixel_values": (1.0 if index % 2 else -1.0) + noise}

    def __getitems__(self, indexes: list[int]) -> list[dict[str, torch.Tensor]]:
        return [self[index] for index in indexes]


@pytest.fixture
def tokenizer():
    return build_tokenizer(SAID)


def captioner_of(tokenizer, tower: str = "conv", fresh: bool = True, **tower_settings):
    sizes = {"hidden_size": 32, "word_embed_proj_dim": 32, "ffn_dim": 64, "max_position_embeddings": 64}
    words = random_language_model(tokenizer, **sizes)
    tokens = {"start_token_id": tokenizer.bos_token_id, "end_token_id": tokenizer.sep_token_id, "pad_token_id": 0}
    model = ExpBlipForPreTraining(small_config(tower, vision=tower_settings or None))
    captioner = to_blip2(model, words, **tokens, image_token_id=len(tokenizer), max_new_tokens=24)
    captioner.config.fresh_language_model = fresh
    return captioner


def arguments(folder, **fields) -> TrainingArguments:
    settings = {"use_cpu": True, "disable_tqdm": True, "logging_steps": 1, "save_strategy": "no", "report_to": []}
    return TrainingArguments(str(folder), **{**settings, "per_device_train_batch_size": 8, **fields})


def faces(rows: int = 16) -> CaptionedFaces:
    return CaptionedFaces(Shades(rows), [SAID[index % 2] for index in range(rows)])


def test_a_place_for_each_query_then_the_start_and_what_is_learned(tokenizer):
    captioner = to_blip2(ExpBlipForPreTraining(small_config()), small_opt(), **TOKENS, max_new_tokens=5)
    found = caption_inputs(captioner, tokenizer, ["joy", "The face shows joy."])
    joy, *words = (tokenizer.convert_tokens_to_ids(word) for word in ("joy", "the", "face", "shows", "joy", "."))
    assert found["input_ids"].tolist() == [[40, 40, 40, 5, joy, 3, 0, 0, 0], [40, 40, 40, 5, *words[:4], 3]]
    skipped = [-100] * 4
    assert found["labels"].tolist() == [[*skipped, joy, 3, -100, -100, -100], [*skipped, *words[:4], 3]], "cut to 5"
    assert found["attention_mask"].tolist() == [[1] * 6 + [0] * 3, [1] * 9]


def test_what_padding_holds_changes_no_loss(tokenizer):
    captioner = captioner_of(tokenizer)
    image = Shades()[0]["pixel_values"][None]
    alone = caption_inputs(captioner, tokenizer, SAID[:1])
    together = {name: tensor[:1] for name, tensor in caption_inputs(captioner, tokenizer, SAID).items()}
    assert together["input_ids"].shape[1] > alone["input_ids"].shape[1]
    assert torch.allclose(captioner(image, **alone).loss, captioner(image, **together).loss, atol=1e-5)


def test_stage_two_learns_to_say_what_it_sees(tokenizer, tmp_path):
    captioner = captioner_of(tokenizer)
    settings = {"learning_rate": 1e-2, "max_steps": 30, "lr_scheduler_type": "cosine"}
    trainer = train_captioner(captioner, tokenizer, arguments(tmp_path, **settings), faces(), faces(4))
    losses = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
    assert losses[-1] < 0.2 * losses[0], losses
    assert trainer.evaluate()["eval_loss"] < 0.5
    written = write_captions(captioner, tokenizer, Shades(6), batch_size=4)
    assert written == [SAID[index % 2].lower() for index in range(6)]


@pytest.mark.parametrize("train_tower", [True, False])
@pytest.mark.parametrize("tower", ["conv", "vit"])
def test_only_what_stage_two_is_about_changes(tower, train_tower, tokenizer, tmp_path):
    """A pretrained language model is frozen; of a frozen tower not even a norm's statistics move."""
    captioner = captioner_of(tokenizer, tower, fresh=False)
    before = {name: tensor.clone() for name, tensor in captioner.state_dict().items()}
    training = arguments(tmp_path, max_steps=1, learning_rate=1e-2)
    train_captioner(captioner, tokenizer, training, faces(), train_tower=train_tower)
    after = captioner.state_dict()
    changed = {name.split(".")[0] for name in before if not torch.equal(after[name], before[name])}
    assert changed == {"query_tokens", "qformer", "language_projection", *(["vision_model"] if train_tower else [])}


def test_a_run_that_was_cut_short_ends_as_if_it_had_not_been(tokenizer, tmp_path):
    """And micro-batches are one step: the second run has two of half the size, whose captions differ in length."""
    ends, losses = [], []
    for name, stops in (("whole", [4]), ("pieces", [2, 4])):
        for stop in stops:
            size = {"per_device_train_batch_size": 8 if name == "whole" else 4}
            size |= {"gradient_accumulation_steps": 1 if name == "whole" else 2}
            settings = {"max_steps": stop, "save_strategy": "steps", "save_steps": 2, "lr_scheduler_type": "constant"}
            training = arguments(tmp_path / name, **settings, **size, learning_rate=1e-3)
            torch.manual_seed(0)
            captioner = captioner_of(tokenizer, "vit")
            trainer = train_captioner(captioner, tokenizer, training, faces())
            assert trainer.state.global_step == stop
        ends.append(captioner.state_dict())
        losses.append([entry["loss"] for entry in trainer.state.log_history if "loss" in entry])
    assert losses[0] == pytest.approx(losses[1], rel=1e-3)
    for name, tensor in ends[0].items():
        assert torch.allclose(tensor, ends[1][name], atol=2e-4), name


def test_faces_without_a_caption_are_left_out():
    found = CaptionedFaces(Shades(4), ["", SAID[0], "", SAID[1]])
    assert [example["caption"] for example in found] == list(SAID)
    assert torch.equal(found[1]["pixel_values"], Shades()[3]["pixel_values"])
    with pytest.raises(ValueError, match="captions: got 3, expected 4"):
        CaptionedFaces(Shades(4), [*SAID, ""])
    with pytest.raises(ValueError, match="captions: got none but empty ones"):
        CaptionedFaces(Shades(4), [""] * 4)


def test_every_caption_set_is_a_column_of_the_dataset():
    rows = with_rule_captions(MFASynthetic(6, "paint"), [caption_column(name) for name in CAPTION_SETS], "mfa")
    processor = MF2Processor.for_model(ExpBlipConfig.from_size("tiny"))
    examples = MF2Examples(rows, processor, texts=())
    told = {tuple(CaptionedFaces.of(examples, name).captions) for name in CAPTION_SETS}
    assert len(told) == len(CAPTION_SETS)
    assert CaptionedFaces.of(examples, "exp")[0]["pixel_values"].shape == (3, 112, 112)
    with pytest.raises(ValueError, match=r"caption_set: got 'both', expected one of \['au', 'emot'"):
        caption_column("both")
    without = MF2Examples(rows.remove_columns("exp_blip_au"), processor, texts=())
    with pytest.raises(ValueError, match=r"the dataset has no column 'exp_blip_au'.*write_captions"):
        CaptionedFaces.of(without, "au")
