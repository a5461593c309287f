"""Weights as others store them: a file, a folder, a repository on the Hub -> tensors by the names they have there."""

import pickle
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from transformers.utils import cached_file, has_file
from transformers.utils.hub import get_checkpoint_shard_files


State = dict[str, torch.Tensor]

_IN_FOLDER = ("model.safetensors", "model.safetensors.index.json", "pytorch_model.bin", "pytorch_model.bin.index.json")


def _read_file(path: Path) -> State:
    try:
        if path.suffix == ".safetensors":
            state = load_file(path)
        else:
            state = torch.load(path, map_location="cpu", weights_only=True)
    except (SafetensorError, pickle.UnpicklingError, EOFError, RuntimeError) as error:
        raise ValueError(
            f"source: {path} cannot be read: it is damaged, or holds more than tensors (code in a file is never run); "
            f"re-save its tensors with safetensors. {type(error).__name__}: {str(error)[:200]}"
        ) from error
    if not isinstance(state, dict):
        raise ValueError(f"source: {path} holds a {type(state).__name__}, expected a dict of tensors by name")
    while nested := next((k for k in ("model", "state_dict", "module") if isinstance(state.get(k), dict)), None):
        state = state[nested]
    state = {key: value for key, value in state.items() if isinstance(value, torch.Tensor)}
    if state and all(key.startswith("module.") for key in state):
        state = {key.removeprefix("module."): value for key, value in state.items()}
    return state


def read_weights(source: str | Path) -> State:
    """The tensors of a local file, of a folder as `save_pretrained` writes it, or of a repository on the Hub.

    Other files than `.safetensors` are read with `torch.load(weights_only=True)`, which runs no code of the file.
    """
    path = Path(source)
    if path.is_file():
        return _read_file(path)
    if path.suffix in (".safetensors", ".pth", ".pt", ".bin"):
        raise ValueError(f"source: got {path}, which is no file; expected a file, a folder or a name on the Hub")
    for name in _IN_FOLDER:
        if has_file(str(source), name):
            found = cached_file(str(source), name)
            files = get_checkpoint_shard_files(str(source), found)[0] if name.endswith(".json") else [found]
            return {key: value for file in files for key, value in _read_file(Path(file)).items()}
    raise ValueError(f"source: {source} is out of reach or has no weights; expected one of {', '.join(_IN_FOLDER)}")
