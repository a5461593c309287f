"""Configuration of DFN, and the entry of its name in peft's list of methods."""

from dataclasses import dataclass, field
from importlib.metadata import version
from pathlib import Path
from typing import Any

from modeling_mf2.loading import check_adapter_file


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


__all__ = ["DFNConfig", "extend_peft_types", "spread_layers"]
