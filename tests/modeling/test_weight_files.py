import pickle

import huggingface_hub.constants
import pytest
import torch
from safetensors.torch import save_file

from modeling_mf2.weights import read_weights


WEIGHTS = {"layer.weight": torch.arange(6.0).view(2, 3), "layer.bias": torch.ones(2)}


def assert_read(source):
    found = read_weights(source)
    assert found.keys() == WEIGHTS.keys()
    assert all(torch.equal(found[name], WEIGHTS[name]) for name in WEIGHTS)


def test_files_plain_and_nested(tmp_path):
    save_file(WEIGHTS, tmp_path / "plain.safetensors")
    torch.save(WEIGHTS, tmp_path / "plain.bin")
    torch.save({"model": WEIGHTS, "epoch": 3, "config": {"lr": 0.1}}, tmp_path / "lavis.pth")
    parallel = {f"module.{name}": tensor for name, tensor in WEIGHTS.items()}
    torch.save({"state_dict": parallel}, tmp_path / "parallel.pt")
    for name in ("plain.safetensors", "plain.bin", "lavis.pth", "parallel.pt"):
        assert_read(tmp_path / name)


def sharded(folder):
    folder.mkdir(parents=True)
    weight_map = {}
    for number, (name, tensor) in enumerate(WEIGHTS.items()):
        weight_map[name] = f"model-{number}.safetensors"
        save_file({name: tensor}, folder / weight_map[name])
    text = str({"metadata": {}, "weight_map": weight_map}).replace("'", '"')
    (folder / "model.safetensors.index.json").write_text(text)
    return folder


def test_a_folder_in_shards(tmp_path):
    assert_read(sharded(tmp_path / "model"))


def test_a_name_on_the_hub(tmp_path, monkeypatch):
    repository = tmp_path / "models--someone--something"
    (repository / "refs").mkdir(parents=True)
    (repository / "refs" / "main").write_text("0123abc")
    sharded(repository / "snapshots" / "0123abc")
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    assert_read("someone/something")
    with pytest.raises(ValueError, match="someone/else is out of reach or has no weights"):
        read_weights("someone/else")


class Boom:
    def __reduce__(self):
        return print, ("a file ran code",)


def test_code_in_a_file_never_runs(tmp_path, capsys):
    (tmp_path / "plain.bin").write_bytes(pickle.dumps({"layer.weight": Boom()}, protocol=2))
    torch.save({"model": {}, "args": Boom()}, tmp_path / "torch.pth")
    for name in ("plain.bin", "torch.pth"):
        with pytest.raises(ValueError, match=f"{name} cannot be read.*code in a file is never run"):
            read_weights(tmp_path / name)
    assert "ran code" not in capsys.readouterr().out


def test_a_damaged_or_missing_file_is_named(tmp_path):
    save_file(WEIGHTS, tmp_path / "whole.safetensors")
    (tmp_path / "cut.safetensors").write_bytes((tmp_path / "whole.safetensors").read_bytes()[:-4])
    torch.save(WEIGHTS, tmp_path / "whole.pth")
    (tmp_path / "cut.pth").write_bytes((tmp_path / "whole.pth").read_bytes()[:-200])
    (tmp_path / "empty.pt").write_bytes(b"")
    torch.save(torch.ones(2), tmp_path / "tensor.pt")
    for name in ("cut.safetensors", "cut.pth", "empty.pt", "tensor.pt"):
        with pytest.raises(ValueError, match=name):
            read_weights(tmp_path / name)
    with pytest.raises(ValueError, match="is no file"):
        read_weights(tmp_path / "gone.pth")
    (tmp_path / "nothing").mkdir()
    with pytest.raises(ValueError, match="has no weights"):
        read_weights(tmp_path / "nothing")
