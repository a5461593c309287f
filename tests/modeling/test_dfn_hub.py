"""An adapter on a Hub loads where the base's code comes from the Hub and no package of ours is there."""

import json
from pathlib import Path

import pytest
import torch
from conftest import IMAGE, pick, shake, tiny_batch, tiny_config
from hub_server import LoopbackHub
from peft import get_peft_model
from strangers import ALONE, run
from transformers.dynamic_module_utils import get_class_from_dynamic_module

from modeling_mf2 import DFNConfig, MF2ForFaceAnalysis, MF2ForPreTraining


PUSH = """
import sys
import torch
from peft import get_peft_model
from modeling_mf2 import DFNConfig, MF2ForPreTraining, MF2ForImageClassification
from modeling_mf2.dfn.model import push_adapter
MF2ForPreTraining.from_pretrained(sys.argv[1]).push_to_hub("org/base")
base = MF2ForImageClassification.from_pretrained("org/base")
model = get_peft_model(base, DFNConfig(bottleneck=4, layers=3, pathways=["visual", "vision"])).eval()
torch.manual_seed(1)
for parameter in model.parameters():
    if parameter.requires_grad:
        parameter.data += 0.1 * torch.randn_like(parameter)
push_adapter(model, "org/adapter")
batch = torch.load(sys.argv[2])
with torch.no_grad():
    torch.save(model(**batch).logits, sys.argv[3])
"""

LOAD = f"""{ALONE}
import torch
from peft import PeftModel
from transformers import AutoModelForImageClassification

batch, answers = sys.argv[1:]
remote = {{"trust_remote_code": True}}
base = AutoModelForImageClassification.from_pretrained("org/base", **remote).eval()
before = base(**torch.load(batch)).logits
model = PeftModel.from_pretrained(base, "org/adapter").eval()
native = AutoModelForImageClassification.from_pretrained("org/adapter", **remote).eval()
assert not any(name.split(".")[0] in rooms for name in sys.modules)
with torch.no_grad():
    found = [each(**torch.load(batch)).logits for each in (model, native)]
expected = torch.load(answers)
assert not torch.equal(before, expected)
for logits in found:  # MKL rounds otherwise where a weight lies otherwise in memory
    torch.testing.assert_close(logits, expected, rtol=0, atol=1e-6)
"""

WITHOUT_PEFT = f"""{ALONE}
sys.modules["peft"] = None
import torch
from transformers import AutoModelForImageClassification

model = AutoModelForImageClassification.from_pretrained(sys.argv[1], trust_remote_code=True).eval()
print(tuple(model(**torch.load(sys.argv[2])).logits.shape))
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("dfn_hub")
    torch.manual_seed(0)
    config = tiny_config()
    shake(MF2ForPreTraining(config)).save_pretrained(folder / "base")
    torch.save(pick(tiny_batch(config), *IMAGE), folder / "batch.pt")
    return folder


def test_an_adapter_on_the_hub_names_its_base_and_loads_without_our_packages(folder: Path) -> None:
    with LoopbackHub() as hub:
        environment = {**hub.environment(folder / "home"), "HF_HUB_OFFLINE": "0"}
        run(PUSH, folder / "base", folder / "batch.pt", folder / "answers.pt", cwd=Path.cwd(), **environment)
        files = hub.repos["org/adapter"][-1][1]
        assert json.loads(files["adapter_config.json"])["base_model_name_or_path"] == "org/base"
        assert "base_model: org/base" in files["README.md"].decode()
        assert len(files["adapter_model.safetensors"]) < 60_000
        run(LOAD, folder / "batch.pt", folder / "answers.pt", cwd=folder, **environment)


def test_a_base_loads_from_its_own_code_where_peft_is_missing(folder: Path) -> None:
    found = run(WITHOUT_PEFT, folder / "base", folder / "batch.pt", cwd=folder, HF_HOME=str(folder / "home2"))
    assert found.split("\n")[-2] == "(4, 3)"


def test_the_same_process_may_hold_the_package_and_a_checkpoint_s_copy_of_it(folder: Path) -> None:
    copied = get_class_from_dynamic_module("mf2_hub_code.MF2ForFaceAnalysis", str(folder / "base"))
    assert copied is not MF2ForFaceAnalysis
    model = get_peft_model(copied.from_pretrained(folder / "base"), DFNConfig(bottleneck=4, pathways=["visual"])).eval()
    batch = torch.load(folder / "batch.pt")
    with torch.no_grad(), model.disable_adapter():
        before = model(**batch).au_logits
    assert torch.equal(model(**batch).au_logits, before)
