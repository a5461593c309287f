"""The zero-shot pipeline of transformers itself says what ours says."""

import numpy as np
import pytest
import torch
from conftest import shake, tiny_batch, tiny_config
from PIL import Image
from transformers import AutoModelForZeroShotImageClassification, pipeline

from modeling_mf2 import MF2ForPreTraining, MF2ForZeroShotImageClassification
from processing_mf2 import MF2Processor, build_tokenizer, face_pipeline


def test_the_pipeline_of_transformers_chooses_as_ours_does(tmp_path) -> None:
    tokenizer = build_tokenizer()
    qformer = {"vocab_size": len(tokenizer), "max_position_embeddings": 192}
    config = tiny_config(qformer=qformer, emotion_max_length=61, au_max_length=169)
    processor = MF2Processor.for_model(config, tokenizer)
    trained = shake(MF2ForPreTraining(config)).eval()
    trained.save_pretrained(tmp_path)
    model, info = AutoModelForZeroShotImageClassification.from_pretrained(tmp_path, output_loading_info=True)
    assert type(model) is MF2ForZeroShotImageClassification and not any(info.values())
    face = Image.fromarray(np.random.default_rng(0).integers(0, 256, (90, 80, 3), dtype=np.uint8))
    parts = {"image_processor": processor.image_processor, "tokenizer": processor.tokenizer}
    choose = pipeline("zero-shot-image-classification", model=model, **parts)
    asked = {"candidate_labels": ["tired", "calm", "young"], "hypothesis_template": "The face shows {}."}
    expected = face_pipeline("zero-shot-image-classification", trained, processor)(face, **asked)
    for found in (choose(face, **asked), *choose([face, face], batch_size=2, **asked)):
        scores = {answer["label"]: answer["score"] for answer in expected}
        assert {answer["label"]: answer["score"] for answer in found} == pytest.approx(scores, abs=1e-5)


def test_every_image_meets_every_sentence_and_each_of_them_alone() -> None:
    config = tiny_config()
    model = shake(MF2ForZeroShotImageClassification(config)).eval()
    batch = tiny_batch(config)
    text = {"input_ids": batch["input_ids"][:3], "attention_mask": batch["attention_mask"][:3]}
    images = {"pixel_values": batch["pixel_values"], "landmarks": batch["landmarks"]}
    with torch.no_grad():
        whole = model(**text, **images)
        one = model(text["input_ids"][1:2], images["pixel_values"][2:3], text["attention_mask"][1:2])
    assert whole.logits_per_image.shape == (4, 3) and torch.equal(whole.logits_per_text, whole.logits_per_image.T)
    assert one.logits_per_image.item() == pytest.approx(whole.logits_per_image[2, 1].item(), abs=1e-4)
    with pytest.raises(ValueError, match="use_emo_branch: got False"):
        MF2ForZeroShotImageClassification(tiny_config(use_emo_branch=False))
