"""DFN as a method of peft: finds a model's ports, builds towers there, keeps names and bases apart."""

import logging
import tempfile
from collections.abc import Sequence
from typing import Any

import torch
from huggingface_hub import HfApi
from torch import nn

from .config import DFNConfig, spread_layers
from .layer import DFNLayer, raise_unmergeable
from .port import DFNPort


try:
    from peft.mapping import PEFT_TYPE_TO_CONFIG_MAPPING
    from peft.tuners.tuners_utils import BaseTuner
    from peft.utils import PeftType, register_peft_method
except ImportError:
    raise


logger = logging.getLogger(__name__)

_TOWERS = "dfn_towers"


def find_ports(model: nn.Module) -> dict[str, DFNPort]:
    """Known by an attribute: a checkpoint's own code brings another class of the same."""
    return {
        name: module.get_base_layer() if hasattr(module, "base_layer") else module
        for name, module in model.named_modules()
        if getattr(module, "is_dfn_port", False) and not name.endswith(".base_layer")
    }


class DFNModel(BaseTuner):
    """
    Side towers that read a frozen model's hidden states (MF² §III-B). The model has to have ports (see `DFNPort`).

    It may say what its losses reach (`adapter_pathways`) and which heads are trained (`adapter_heads`, by
    `DFNConfig.heads`); without these all of its pathways get towers, and no head is trained.
    """

    prefix = "dfn_"
    tuner_layer_cls = DFNLayer
    target_module_mapping: dict[str, list[str]] = {}

    def inject_adapter(self, model: nn.Module, adapter_name: str, *args: Any, **kwargs: Any) -> None:
        try:
            self._check_name(model, adapter_name)
            super().inject_adapter(model, adapter_name, *args, **kwargs)
        except Exception:
            if len(self.peft_config) > 1 and not self._has(model, adapter_name):
                self.peft_config.pop(adapter_name, None)
            raise
        model.train(model.training)  # a branch that is read from now on leaves training mode

    @staticmethod
    def _has(model: nn.Module, adapter_name: str) -> bool:
        return any(isinstance(module, DFNLayer) and adapter_name in module.dfn_towers for module in model.modules())

    def _check_name(self, model: nn.Module, adapter_name: str) -> None:
        """peft drops keys that have another adapter's name in them: a module of that name would lose its weights."""
        if self._has(model, adapter_name):
            return
        others = {*self.peft_config} - {adapter_name}
        taken = {part for name, _ in model.named_modules() for part in name.split(".")} - others
        taken |= {part for name, _ in model.named_parameters() for part in name.split(".")} - others
        taken |= {_TOWERS, "base_layer", "modules_to_save", "original_module", "base_model", "model"}
        taken |= {"cells", "down", "up", "gate", "output", "mix", "spread", "weight", "bias", *map(str, range(100))}
        taken |= {pathway for port in find_ports(model).values() for pathway in port.pathways}
        if adapter_name in taken or "." in adapter_name:
            raise ValueError(
                f"adapter_name: got {adapter_name!r}, expected a name without dots that no module of the model has: "
                "weights under it would be mistaken for the adapter's; take another"
            )

    def _prepare_adapter_config(self, peft_config: DFNConfig, model_config: dict[str, Any]) -> DFNConfig:
        ports = find_ports(self.model)
        if not ports:
            raise ValueError(
                f"DFN: {type(self.model).__name__} has no port (see DFNPort) whose hidden states could be read; adapt "
                "a model of MF², or give yours one"
            )
        if peft_config.target_modules is None:
            peft_config.target_modules = {name.rpartition(".")[2] for name in ports}
        shapes = {pathway: shape for port in ports.values() for pathway, shape in port.pathways.items()}
        self._check_base(peft_config, shapes, model_config)
        peft_config.pathways = self._built(peft_config, shapes)
        for pathway in peft_config.pathways:
            spread_layers(peft_config.of_pathway("layers", pathway), shapes[pathway].states, pathway)
        if peft_config.modules_to_save is None and peft_config.heads != "none":
            wanted = getattr(self.model, "adapter_heads", {}).get(peft_config.heads, [])
            names = {name.rpartition(".")[2] for name, _ in self.model.named_modules()}
            peft_config.modules_to_save = [name for name in wanted if name in names] or None
        self._check_saved(peft_config.modules_to_save or ())
        return peft_config

    def _check_saved(self, names: Sequence[str]) -> None:
        modules = [name for name, _ in self.model.named_modules()]
        for name in names:
            if not any(module == name or module.endswith(f".{name}") for module in modules):
                kind, children = type(self.model).__name__, sorted(child for child, _ in self.model.named_children())
                raise ValueError(f"modules_to_save: got {name!r}, expected modules of {kind}, such as {children}")

    def _check_base(self, peft_config: DFNConfig, shapes: dict[str, Any], model_config: dict[str, Any]) -> None:
        base: dict[str, Any] = {name: [shape.states, shape.width] for name, shape in shapes.items()}
        base |= {name: list(model_config[name]) for name in ("action_units", "emotions") if name in model_config}
        for name, expected in (peft_config.base or {}).items():
            actual = base.get(name, expected)
            if actual != expected:
                what = "(hidden states, width)" if name in shapes else "labels"
                raise ValueError(
                    f"DFN: the adapter belongs to a model whose {name} is {expected} {what}, but "
                    f"{type(self.model).__name__} here has {actual}; load it into the base that it was trained on "
                    f"({peft_config.base_model_name_or_path}), or make a fresh DFNConfig"
                )
        peft_config.base = base

    def _built(self, peft_config: DFNConfig, shapes: dict[str, Any]) -> list[str]:
        reached = getattr(self.model, "adapter_pathways", None)
        reached = set(shapes if reached is None else reached) & set(shapes)
        if peft_config.inference_mode and reached:  # trained in another class, whose losses reached more of the image
            reached |= {pathway for pathway in shapes if not pathway.startswith("language")}
        built = [pathway for pathway in peft_config.pathways if pathway in reached]
        left_out = [pathway for pathway in peft_config.pathways if pathway not in reached]
        missing = [pathway for pathway in left_out if pathway.startswith("vision") and pathway not in shapes]
        if not built or missing:
            raise ValueError(
                f"pathways: got {missing or peft_config.pathways}, expected some that {type(self.model).__name__} has "
                f"and its losses reach: {sorted(reached) or 'none'}"
            )
        if left_out:
            logger.warning(
                "DFN: no tower is built for %s, which no loss of %s reaches", left_out, type(self.model).__name__
            )
        return built

    def _create_and_replace(
        self,
        peft_config: DFNConfig,
        adapter_name: str,
        target: nn.Module,
        target_name: str,
        parent: nn.Module,
        current_key: str,
        parameter_name: str | None = None,
    ) -> None:
        if isinstance(target, DFNLayer):
            target.update_layer(adapter_name, peft_config)
        elif getattr(target, "is_dfn_port", False):
            layer = DFNLayer(target, adapter_name, peft_config)
            if adapter_name not in self.active_adapters:
                layer.requires_grad_(False)
            setattr(parent, target_name, layer)
        else:
            raise TypeError(
                f"target_modules: got {current_key!r}, a {type(target).__name__}; expected ports, which are "
                f"{sorted(find_ports(self.model))}"
            )

    def _replace_module(self, parent: nn.Module, child_name: str, new_module: nn.Module, child: nn.Module) -> None:
        setattr(parent, child_name, new_module)  # at unload(); classifiers have no `weight`, as peft expects

    def set_adapter(self, adapter_name: str | list[str], inference_mode: bool = False) -> None:
        names = [adapter_name] if isinstance(adapter_name, str) else list(adapter_name)
        if len(names) > 1:
            raise ValueError(f"adapter_name: got {names}, expected one: DFN has one active adapter at a time")
        super().set_adapter(adapter_name, inference_mode=inference_mode)

    def _check_merge_allowed(self) -> None:
        raise_unmergeable()

    @classmethod
    def _remove_adapter_name_from_key(cls, key: str, adapter_name: str) -> str:
        return key.replace(f".{_TOWERS}.{adapter_name}.", f".{_TOWERS}.")

    @classmethod
    def _remap_adapter_state_dict_for_load(
        cls,
        model: nn.Module,
        config: DFNConfig,
        adapter_name: str,
        state_dict: dict[str, torch.Tensor],
    ) -> dict[str, torch.Tensor]:
        """peft would load what there is of a damaged file, and only warn."""
        mapped = super()._remap_adapter_state_dict_for_load(model, config, adapter_name, state_dict)
        expected = {key: p.shape for key, p in model.named_parameters() if f".{_TOWERS}.{adapter_name}." in key}
        missing = sorted(set(expected) - set(mapped))
        other = [key for key, shape in expected.items() if key in mapped and mapped[key].shape != shape]
        if missing or other:
            wrong = f"{len(missing)} of {len(expected)} tensors are missing, the first {missing[0]}" if missing else ""
            if other:
                wrong = f"{other[0]}: got {list(mapped[other[0]].shape)}, expected {list(expected[other[0]])}"
            raise ValueError(
                f"adapter weights: {wrong}; the file is damaged, or its adapter_config.json (bottleneck, layers, "
                "output_layer, pathways, pooling, readout, slots) is another adapter's: copy or download it again"
            )
        return mapped


def push_adapter(model: nn.Module, repo_id: str, token: str | None = None, private: bool | None = None) -> str:
    """What `save_pretrained` writes, in one commit. peft's own `push_to_hub` puts an empty card in place of the one
    that names the base."""
    api = HfApi(token=token)
    repo_id = api.create_repo(repo_id, private=private, exist_ok=True).repo_id
    with tempfile.TemporaryDirectory() as folder:
        model.save_pretrained(folder)
        return api.upload_folder(repo_id=repo_id, folder_path=folder, commit_message="Upload DFN adapter").commit_url


def register_dfn() -> None:
    """Idempotent, also where a checkpoint's own code brings this file a second time."""
    if PeftType.DFN not in PEFT_TYPE_TO_CONFIG_MAPPING:
        register_peft_method(name="dfn", config_cls=DFNConfig, model_cls=DFNModel)


register_dfn()


__all__ = ["DFNModel", "find_ports", "push_adapter", "register_dfn"]
