"""transformers' own Trainer with a model and processor of MF2: trained, saved, loaded by the Auto classes."""

import os
import subprocess
import sys
from pathlib import Path

import torch
from hub_server import LoopbackHub
from transformers import AutoModel, AutoProcessor, Trainer, TrainingArguments

from configuration_mf2 import MF2Config
from modeling_mf2 import MF2ForFaceAnalysis
from processing_mf2 import MF2Processor


def make_trainer(folder, **arguments):
    torch.manual_seed(0)
    config = MF2Config.from_size("tiny")
    model = MF2ForFaceAnalysis(config)
    rows = [
        {
            "pixel_values": torch.randn(3, config.vision_config.image_size, config.vision_config.image_size),
            "landmarks": torch.rand(68, 2) * config.vision_config.image_size,
            "au_labels": torch.randint(0, 2, (len(config.action_units),)),
            "emotion_labels": torch.tensor(row % len(config.emotions)),
        }
        for row in range(4)
    ]
    training = TrainingArguments(
        str(folder),
        max_steps=2,
        per_device_train_batch_size=2,
        use_cpu=True,
        disable_tqdm=True,
        save_strategy="no",
        label_names=["au_labels", "emotion_labels"],
        **arguments,
    )
    return Trainer(model=model, args=training, train_dataset=rows, processing_class=MF2Processor.for_model(config))


def test_saved_by_the_stock_trainer_it_loads_and_answers_the_same(tmp_path):
    trainer = make_trainer(tmp_path)
    trainer.train()
    trainer.save_model(tmp_path / "saved")
    batch = {name: trainer.train_dataset[0][name][None] for name in ("pixel_values", "landmarks")}
    again = MF2ForFaceAnalysis.from_pretrained(tmp_path / "saved").eval()
    for parameter in again.parameters():  # mapped from the file at any address, for which kernels sum in another order
        parameter.data = parameter.data.clone()
    with torch.no_grad():
        expected = trainer.model.eval()(**batch)
        assert torch.equal(again(**batch).au_logits, expected.au_logits)
    assert AutoModel.from_pretrained(tmp_path / "saved").config.action_units == again.config.action_units
    assert AutoProcessor.from_pretrained(tmp_path / "saved").action_units == again.config.action_units


PUSHED = """
import sys
sys.path[:0] = sys.argv[2:]
from test_stock_trainer import MF2ForFaceAnalysis, make_trainer
trainer = make_trainer(sys.argv[1], hub_model_id="org/stock", push_to_hub=True)
trainer.train()
trainer.push_to_hub()
assert MF2ForFaceAnalysis.from_pretrained("org/stock").config.action_units == trainer.model.config.action_units
"""


def test_pushed_by_the_stock_trainer_it_loads_from_the_hub(tmp_path):
    tests = Path(__file__).parents[1]
    with LoopbackHub() as hub:
        done = subprocess.run(
            [
                sys.executable,
                "-c",
                PUSHED,
                str(tmp_path / "run"),
                str(Path(__file__).parent),
                str(tests),
                str(tests / "servers"),
                str(tests.parent),
            ],
            env={**os.environ, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "0", **hub.environment(tmp_path / "home")},
            capture_output=True,
            text=True,
        )
        assert done.returncode == 0, done.stderr[-3000:]
        assert {"config.json", "model.safetensors", "processor_config.json"} <= set(hub.repos["org/stock"][-1][1])
