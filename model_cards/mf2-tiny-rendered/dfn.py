from .modeling_mf2 import DFNPort
from .modeling_mf2 import PathwayShape
from .modeling_mf2 import check_adapter_file
from .modeling_mf2 import repeated
from collections.abc import Sequence
from dataclasses import dataclass
from dataclasses import field
from importlib.metadata import version
from pathlib import Path
from torch import nn
from typing import Any
import logging
import torch


# modeling_mf2/dfn/config.py


# In `try`, here and in the files that import this one: a checkpoint's own code has to load where peft is missing.
try:
    from peft.config import PeftConfig
    from peft.utils import PeftType, TaskType
except ImportError as error:
    raise ImportError("DFN adapters need peft: pip install peft") from error


BRANCHES = ("emo", "au")


KINDS = ("visual", "language", "vision")


PATHWAYS = tuple(f"{kind}_{branch}" for kind in KINDS for branch in BRANCHES)


POOLINGS = ("mean", "cls", "all")


READOUTS = ("add", "mix")


ACTIVATIONS = ("relu", "gelu", "silu", "tanh")


HEADS = ("task", "all", "none")


MOST = 65_536  # of a width: what is larger comes from a damaged file


def extend_peft_types(types: type = PeftType) -> None:
    """Adds DFN to peft's list of methods, which is an Enum without a public way to extend it.

    transformers needs a real member, not a string. The only place of the package that uses private names of an Enum:
    where a later peft or Python keeps its members otherwise, an error says which versions work.
    """
    if "DFN" in types.__members__:
        return
    try:
        member = str.__new__(types, "DFN")
        member._name_, member._value_ = "DFN", "DFN"
        types._member_names_.append("DFN")
        types._member_map_["DFN"] = types._value2member_map_["DFN"] = member
        type.__setattr__(types, "DFN", member)
        if types("DFN") is not member or "DFN" not in types.__members__:
            raise TypeError("the new member is not found")
    except (AttributeError, TypeError, ValueError) as error:
        raise ImportError(
            f"peft: got version {version('peft')}, in which PeftType cannot be extended by DFN ({error}); expected an "
            "Enum of strings as in peft 0.21: install a version that setup.cfg names"
        ) from error


extend_peft_types()


def spread_layers(wanted: int | list[int], states: int, pathway: str) -> list[int]:
    """Which of a pathway's hidden states are read, 0 being the embedding state."""
    if isinstance(wanted, int):
        count = min(wanted, states)
        return [round(place * (states - 1) / max(count - 1, 1)) for place in range(count)]
    wrong = [layer for layer in wanted if not 0 <= layer < states]
    if wrong:
        raise ValueError(
            f"layers: got {wrong[0]} for {pathway!r}, expected 0 (the embedding state) to {states - 1} (the last block)"
        )
    return sorted(set(wanted))


def _are_names(values: Any) -> bool:
    return isinstance(values, list | tuple | set | dict) and all(isinstance(value, str) for value in values)


@dataclass
class DFNConfig(PeftConfig):
    """
    Configuration of [`DFNModel`]: towers beside a frozen model that read its hidden states (MF² §III-B, after IISAN).

    Args:
        layers (`int`, `list[int]` or a dict of them by pathway): hidden states that a tower reads, a cell each. A
            number spreads them evenly from the embedding state (0) to the last block: 7 of 12 blocks is every second.
        bottleneck (`int`): inner width of a cell.
        activation (`str`): `"relu"`, `"gelu"`, `"silu"` or `"tanh"`.
        gate_temperature (`float`): g = sigmoid(p / temperature) weighs a hidden state against the cell before.
        pathways (`list[str]`): what towers read, each of `visual` (queries), `language` (text) and `vision` (the
            vision tower, earliest layers first: `vision_emo` all of it, `vision_au` each AU's region), with `_emo` or
            `_au`; without either, both. Those that no loss of the model reaches build no tower.
        pooling (`str`, `int` or a dict by pathway): `"mean"` reads the mean over tokens, `"cls"` the first token
            (of texts and of a ViT `[CLS]`), `"all"` every token, a number so many means, each of tokens that follow one
            another (rows of a grid). Texts have no number.
        readout (`str`): how all tokens reach the queries: by `"add"` the tower's result is added to the query that it
            is of (where tokens are not queries, its mean to each); by `"mix"` the tower works on a few slots, each a
            learned mean of the tokens, and each query gets a learned share of each slot (of regions: other means and
            shares for each AU). What is pooled to one is added to each.
        slots (`int`): of a tower that mixes; its cost grows with them, not with the tokens or queries.
        output_layer (`bool`): a linear layer, zero at first, on the tower's last state. Without it the result is what
            the cells have written. Where the tower's width is not the branch's there always is one.
        dropout (`float`): in the cells' bottleneck.
        heads (`str`): what is trained and saved beside the towers: `"task"` the classifiers, `"all"` also projections,
            ITM and LM heads, `"none"`. `modules_to_save` names modules in its place.
        init_weights (`bool`): the untrained adapter changes nothing. `False` is for tests.
        target_modules, exclude_modules: the ports to adapt; all unless given.
        base (`dict`): shapes and labels of the model that the adapter belongs to; filled in.
    """

    layers: int | list[int] | dict[str, Any] = 7
    bottleneck: int = 64
    activation: str = "relu"
    gate_temperature: float = 0.1
    pathways: list[str] = field(default_factory=lambda: ["visual", "language"])
    pooling: str | int | dict[str, Any] = "mean"
    readout: str = "add"
    slots: int = 4
    output_layer: bool = False
    dropout: float = 0.0
    heads: str = "task"
    init_weights: bool = True
    target_modules: list[str] | str | None = None
    exclude_modules: list[str] | str | None = None
    modules_to_save: list[str] | None = None
    base: dict[str, Any] | None = None

    def __post_init__(self) -> None:
        self._check_names()
        super().__post_init__()
        self.peft_type = PeftType.DFN
        for name in ("target_modules", "exclude_modules"):
            if isinstance(getattr(self, name), list):
                setattr(self, name, set(getattr(self, name)))
        self._check_types()
        self._check_choices()
        self._check_numbers()
        self.pathways = self._by_name(self.pathways, "pathways")
        for name in ("layers", "pooling"):
            if isinstance(getattr(self, name), dict):
                self._by_name(getattr(self, name), name)

    def _check_names(self) -> None:
        for name in ("target_modules", "exclude_modules", "modules_to_save"):
            value = getattr(self, name)
            if not (value is None or isinstance(value, str) or _are_names(value)):
                raise TypeError(f"{name}: got {value!r}, expected null, a name or a list of names of modules")
        if self.task_type is not None and self.task_type not in [kind.value for kind in TaskType]:
            raise ValueError(f"task_type: got {self.task_type!r}, expected null, or one that peft knows")
        base = self.base
        if not (base is None or (isinstance(base, dict) and all(isinstance(value, list) for value in base.values()))):
            raise TypeError(f"base: got {base!r}, expected null, or lists of shapes and labels by name")

    def _check_types(self) -> None:
        whole, number = (int,), (int, float)
        kinds = {"bottleneck": whole, "slots": whole, "gate_temperature": number, "dropout": number}
        kinds |= {"output_layer": (bool,), "init_weights": (bool,)}
        words = {whole: "a whole number", number: "a number", (bool,): "True or False"}
        for name, types in kinds.items():
            value = getattr(self, name)
            if not isinstance(value, types) or (isinstance(value, bool) and bool not in types):
                raise TypeError(f"{name}: got {value!r}, expected {words[types]}")

    def _check_choices(self) -> None:
        poolings = self.pooling.values() if isinstance(self.pooling, dict) else [self.pooling]
        numbers = [pooling for pooling in poolings if isinstance(pooling, int) and not isinstance(pooling, bool)]
        if any(number < 1 for number in numbers):
            raise ValueError(f"pooling: got {min(numbers)}, expected 1 or more means, or one of {list(POOLINGS)}")
        checks = [("pooling", pooling, POOLINGS) for pooling in poolings if pooling not in numbers]
        checks += [("readout", self.readout, READOUTS), ("activation", self.activation, ACTIVATIONS)]
        for name, value, choices in [*checks, ("heads", self.heads, HEADS)]:
            if value not in choices:
                raise ValueError(f"{name}: got {value!r}, expected one of {list(choices)}")

    def _check_numbers(self) -> None:
        for name in ("bottleneck", "slots"):
            if not 1 <= getattr(self, name) <= MOST:
                raise ValueError(f"{name}: got {getattr(self, name)}, expected at least 1, at most {MOST}")
        if self.gate_temperature <= 0:
            raise ValueError(f"gate_temperature: got {self.gate_temperature}, expected a number above 0")
        if not 0 <= self.dropout < 1:
            raise ValueError(f"dropout: got {self.dropout}, expected 0 or more, less than 1")
        for layers in self.layers.values() if isinstance(self.layers, dict) else [self.layers]:
            numbers = list(layers) if isinstance(layers, list | tuple) else [layers]
            least = 0 if isinstance(layers, list | tuple) else 1
            if not numbers or any(type(number) is not int or number < least for number in numbers):
                raise ValueError(
                    f"layers: got {layers!r}, expected how many (1 or more), or a list of layer indices from 0"
                )

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path: str, subfolder: str | None = None, **kwargs: Any) -> Any:
        """peft reads the config first: a cut file of weights is named here, before anything is built."""
        check_adapter_file(Path(str(pretrained_model_name_or_path)) / (subfolder or ""))
        return super().from_pretrained(pretrained_model_name_or_path, subfolder=subfolder, **kwargs)

    @staticmethod
    def _by_name(names: Any, field_name: str) -> list[str]:
        """The pathways that are meant, in one order: `visual` stands for those of both branches."""
        known = {*PATHWAYS, *KINDS}
        if not (isinstance(names, str) or _are_names(names)):
            raise TypeError(f"{field_name}: got {names!r}, expected a list of pathways among {sorted(known)}")
        names = [names] if isinstance(names, str) else list(names)
        unknown = [name for name in names if name not in known]
        if unknown or not names:
            raise ValueError(
                f"{field_name}: got {unknown[0] if unknown else names!r}, expected pathways among {sorted(known)}"
            )
        return [pathway for pathway in PATHWAYS if pathway in names or pathway.rpartition("_")[0] in names]

    def of_pathway(self, name: str, pathway: str) -> Any:
        """`layers` or `pooling` of one pathway."""
        value = getattr(self, name)
        if not isinstance(value, dict):
            return value
        default = {"layers": 7, "pooling": "mean"}[name]
        return value.get(pathway, value.get(pathway.rpartition("_")[0], default))


# modeling_mf2/dfn/layer.py


try:
    from peft.tuners.tuners_utils import BaseTunerLayer
except ImportError:
    raise


Selected = dict[str, list[torch.Tensor]]


_ACTIVATIONS = {"relu": nn.ReLU, "gelu": nn.GELU, "silu": nn.SiLU, "tanh": nn.Tanh}


class DFNCell(nn.Module):
    """FC down -> activation -> FC up over g * hidden state + (1 - g) * cell before."""

    def __init__(self, width: int, config: DFNConfig) -> None:
        super().__init__()
        self.down = nn.Linear(width, config.bottleneck)
        self.activation = _ACTIVATIONS[config.activation]()
        self.dropout = nn.Dropout(config.dropout)
        self.up = nn.Linear(config.bottleneck, width)
        self.gate = nn.Parameter(torch.zeros(1))
        self.temperature = config.gate_temperature

    def forward(
        self, seen: torch.Tensor, state: torch.Tensor | None, written: torch.Tensor | None
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """-> (state, what of it the cells have written)."""
        share = torch.sigmoid(self.gate / self.temperature)
        mixed = share * seen
        if state is not None:
            mixed = mixed + (1 - share) * state
        own = self.up(self.dropout(self.activation(self.down(mixed))))
        return mixed + own, own if written is None else (1 - share) * written + own


class DFNTower(nn.Module):
    """A cell for each hidden state it reads. Its result is what is added to the branch's last state: 0 at first."""

    def __init__(self, pathway: str, shape: PathwayShape, port: DFNPort, config: DFNConfig) -> None:
        super().__init__()
        self.kind = pathway.rpartition("_")[0]
        self.layers = spread_layers(config.of_pathway("layers", pathway), shape.states, pathway)
        self.shared = [layer for layer in self.layers if layer < shape.shared]
        self.pooling = config.of_pathway("pooling", pathway)
        tokens = self._tokens_read(pathway, shape)
        self.pooled = self.pooling in ("mean", "cls", 1)
        self.are_queries = self.kind == "visual" and tokens == port.tokens
        self.cells = nn.ModuleList(DFNCell(shape.width, config) for _ in self.layers)
        self.output = None
        if config.output_layer or shape.width != port.width:
            self.output = nn.Linear(shape.width, port.width)
        self.mix = self.spread = None
        if config.readout == "mix" and tokens is not None and not self.pooled:
            slots = min(config.slots, port.tokens)
            self.mix = nn.Parameter(torch.full((len(self.layers), shape.kinds, slots, tokens), 1 / tokens))
            turns = torch.eye(slots).repeat(-(-port.tokens // slots), 1)[: port.tokens]  # queries take slots in turn
            self.spread = nn.Parameter(turns.repeat(shape.kinds, 1, 1))
        if config.init_weights:
            self._start_at_zero()

    def _tokens_read(self, pathway: str, shape: PathwayShape) -> int | None:
        """None where it differs from text to text."""
        if self.pooling in POOLINGS:
            return shape.tokens if self.pooling == "all" else 1
        if shape.tokens is None or self.pooling > shape.tokens:
            expected = "'mean', 'cls' or 'all'" if shape.tokens is None else f"at most its {shape.tokens} tokens"
            raise ValueError(f"pooling: got {self.pooling} for {pathway!r}, expected {expected}")
        return self.pooling

    def _start_at_zero(self) -> None:
        for layer in [self.output] if self.output is not None else [cell.up for cell in self.cells]:
            nn.init.zeros_(layer.weight)
            nn.init.zeros_(layer.bias)

    @torch.no_grad()
    def select(self, hidden: tuple[torch.Tensor, ...], mask: torch.Tensor | None) -> list[torch.Tensor]:
        """What is read of the hidden states: (rows, width) each, or (rows, tokens, width). No parameter has a say, so
        that it can be stored."""
        states = [hidden[layer].detach() for layer in self.layers]
        if self.kind == "vision":  # a ViT's blocks do not end in a norm
            states = [nn.functional.layer_norm(state.float(), state.shape[-1:]) for state in states]
        if self.pooling == "all":
            return states
        if not self.pooled:
            return [nn.functional.adaptive_avg_pool1d(state.mT, self.pooling).mT for state in states]
        if self.pooling == "cls":
            return [state[:, 0] for state in states]
        if mask is None:
            return [state.mean(dim=1) for state in states]
        shown = mask[..., None].to(states[0].dtype)
        return [(state * shown).sum(dim=1) / shown.sum(dim=1).clamp_min(1) for state in states]

    def forward(self, states: list[torch.Tensor]) -> torch.Tensor:
        """-> (rows, 1 or tokens of the branch, its width)."""
        rows, dtype = max(state.shape[0] for state in states), self.cells[0].gate.dtype
        states = [seen.to(dtype) for seen in states]
        state = written = None
        if self.mix is not None:  # before the cells: there are fewer slots than tokens
            states = [self._mixed(*pair) for pair in zip(self.mix, states, strict=True)]
        for cell, seen in zip(self.cells, states, strict=True):
            if state is not None:
                seen = repeated(seen, rows)
                state, written = repeated(state, rows), repeated(written, rows)
            state, written = cell(seen, state, written)
        result = written if self.output is None else self.output(state)
        if self.pooled:
            return result[:, None]
        if self.spread is not None:
            return self._mixed(self.spread, result)
        per_query = self.are_queries or self.kind == "language"
        return result if per_query else result.mean(dim=1, keepdim=True)

    @staticmethod
    def _mixed(weights: torch.Tensor, tokens: torch.Tensor) -> torch.Tensor:
        by_kind = tokens.unflatten(0, (-1, len(weights)))  # (samples, kinds, tokens, width)
        return torch.einsum("kqt,nktw->nkqw", weights, by_kind).flatten(0, 1)


class DFNLayer(nn.Module, BaseTunerLayer):
    """In a port's place: adds what the active adapter's towers make of the hidden states to the last one."""

    adapter_layer_names = ("dfn_towers",)
    is_dfn_port = True

    def __init__(self, base_layer: nn.Module, adapter_name: str, config: DFNConfig) -> None:
        super().__init__()
        self.base_layer = base_layer
        self.dfn_towers = nn.ModuleDict()
        self.merged_adapters = []
        self.recorded: dict[str, torch.Tensor | list[torch.Tensor]] | None = None
        self.set_adapter(adapter_name)
        self.update_layer(adapter_name, config)

    def update_layer(self, adapter_name: str, config: DFNConfig) -> None:
        port = self.get_base_layer()
        built = [name for name in config.pathways if name in port.pathways]
        towers = nn.ModuleDict({name: DFNTower(name, port.pathways[name], port, config) for name in built})
        if not any(parameter.is_meta for parameter in towers.parameters()):  # those get a place with their weights
            towers.to(port.weight.device, port.weight.dtype)
        self.dfn_towers[adapter_name] = towers
        self.set_adapter(self.active_adapters, inference_mode=config.inference_mode)

    def merge(self, safe_merge: bool = False, adapter_names: list[str] | None = None) -> None:
        raise_unmergeable()

    def unmerge(self) -> None:
        raise_unmergeable()

    @property
    def in_features(self) -> int:
        return self.get_base_layer().width

    out_features = in_features

    @property
    def branch(self) -> str:
        return self.get_base_layer().branch

    @property
    def pathways(self) -> dict[str, PathwayShape]:
        return self.get_base_layer().pathways

    @property
    def active_towers(self) -> dict[str, DFNTower] | None:
        """None where no adapter is at work; an adapter may read nothing of this branch."""
        names = [] if self.disable_adapters else [name for name in self.active_adapters if name in self.dfn_towers]
        return dict(self.dfn_towers[names[0]].items()) if names else None

    @property
    def frozen(self) -> bool:
        return self.active_towers is not None

    def reads(self, kind: str) -> bool:
        return any(tower.kind == kind for tower in (self.active_towers or {}).values())

    def forward(
        self, last: torch.Tensor, mask: torch.Tensor | None = None, **hidden: tuple[torch.Tensor, ...]
    ) -> torch.Tensor:
        towers = self.active_towers
        if towers is None:
            return self.base_layer(last, mask=mask, **hidden)
        last = last.detach()
        selected = {
            name: tower.select(hidden[tower.kind], mask)
            for name, tower in towers.items()
            if hidden.get(tower.kind) is not None
        }
        if self.recorded is not None:
            self.recorded |= {f"last_{self.branch}": last, **selected}
        return self._added(last, selected)

    def _added(self, last: torch.Tensor, selected: Selected) -> torch.Tensor:
        for name, states in selected.items():
            last = last + repeated(self.active_towers[name](states), last.shape[0]).to(last.dtype)
        return last

    def from_states(self, states: dict[str, torch.Tensor]) -> torch.Tensor:
        """The same from a batch that was stored: no backbone is needed."""
        last = self.get_base_layer().from_states(states)
        return self._added(last, {name: self._stored(name, states) for name in self.active_towers or {}})

    def _stored(self, name: str, states: dict[str, torch.Tensor]) -> list[torch.Tensor]:
        tower = self.active_towers[name]
        own = [] if len(tower.shared) == len(tower.layers) else None
        try:
            shared = [states[f"{name}.{layer}"] for layer in tower.shared]
            own = list(states[name].flatten(0, 1).unbind(1)) if own is None else own
        except KeyError as error:
            raise ValueError(
                f"states: got {sorted(states)}, expected {error.args[0]!r} among them, which the active adapter reads; "
                "build the store with this adapter"
            ) from error
        if len(shared) + len(own) != len(tower.layers):
            raise ValueError(
                f"states: got {len(own)} hidden states of {name!r}, expected {len(tower.layers) - len(shared)}; build "
                "the store with this adapter"
            )
        return shared + own


def raise_unmergeable(*_: Any) -> None:
    raise NotImplementedError(
        "DFN cannot be merged: its towers read hidden states beside the frozen model, and no change of the model's own "
        "weights does the same. Keep the adapter beside the model, or call unload() to be rid of it"
    )


# modeling_mf2/dfn/model.py


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


def register_dfn() -> None:
    """Idempotent, also where a checkpoint's own code brings this file a second time."""
    if PeftType.DFN not in PEFT_TYPE_TO_CONFIG_MAPPING:
        register_peft_method(name="dfn", config_cls=DFNConfig, model_cls=DFNModel)


register_dfn()
