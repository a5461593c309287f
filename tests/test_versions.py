"""What the rooms use of transformers, peft, datasets and accelerate exists in the installed versions, and is public.

`make test-oldest` and `make test-newest` run this with the rest, at both ends of what `setup.cfg` allows.
"""

import ast
import configparser
import functools
import importlib
import inspect
import pkgutil
import re
import textwrap
from collections.abc import Iterator
from pathlib import Path

import pytest


ROOT = Path(__file__).parent.parent
ROOMS = ("configuration_mf2", "processing_mf2", "modeling_mf2", "mf2face")
LIBRARIES = ("transformers", "peft", "datasets", "accelerate")
TREES = {
    path.relative_to(ROOT).as_posix(): ast.parse(path.read_text(encoding="utf-8"))
    for place in (*ROOMS, "examples")
    for path in sorted((ROOT / place).rglob("*.py"))
}
# Private names that the libraries' own documentation tells a model, a pipeline or a method of peft to define or read.
# Abstract methods need not be named.
EXTENSION_POINTS = {
    # transformers: docstring of `PreTrainedModel`, guides "Contribute a model" and "Attention backends"
    *("_init_weights", "_no_split_modules", "_supports_sdpa", "_supports_attention_backend", "_attn_implementation"),
    "_keys_to_ignore_on_load_unexpected",
    # peft: docstrings of `BaseTuner` ("one needs to overwrite the following methods") and of the method
    *("_prepare_adapter_config", "_check_merge_allowed"),
    # Python: `collections.namedtuple`
    "_replace",
}
# What has no public way, by file: names, why, and the test that fails when they change.
STILL_PRIVATE = {
    "modeling_mf2/dfn/config.py": {
        # peft's Enum of methods cannot be extended otherwise. test_dfn: a clear error where this fails.
        *("_member_names_", "_member_map_", "_value2member_map_", "_name_", "_value_"),
    },
    "modeling_mf2/dfn/model.py": {
        # peft takes an adapter's name only off the end of a key. test_dfn_model: two adapters are saved and loaded.
        "_remove_adapter_name_from_key",
        # peft only warns of weights that are missing. test_dfn_model: a damaged adapter is refused.
        "_remap_adapter_state_dict_for_load",
        # peft gives what unload() puts back a `weight`, which classifiers lack. test_dfn: fields of a file.
        "_replace_module",
    },
    "mf2face/training/trainer.py": {
        # save_pretrained leaves weights out by no public argument. test_trainer: checkpoints share frozen weights.
        "_keys_to_ignore_on_save",
    },
    "modeling_mf2/loading.py": {
        # accelerate's align_module_device skips a module that has two hooks. test_loading: the weights are fetched.
        "_hf_hook",
    },
    "modeling_mf2/qformer.py": {
        # PyTorch has no other way to ask for hooks. test_qformer: hooks see what they would see.
        *("_forward_hooks", "_forward_pre_hooks"),
    },
}


def imports(tree: ast.AST) -> Iterator[tuple[int, str, str | None]]:
    """(line, module, name) of everything that is imported from the libraries, also inside functions."""
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and not node.level and (node.module or "").split(".")[0] in LIBRARIES:
            yield from ((node.lineno, node.module, alias.name) for alias in node.names)
        elif isinstance(node, ast.Import):
            yield from ((node.lineno, a.name, None) for a in node.names if a.name.split(".")[0] in LIBRARIES)


def is_private(name: str) -> bool:
    return name.startswith("_") and not name.startswith("__")


def exists(module: str, name: str | None) -> bool:
    try:
        found = importlib.import_module(module)
    except ImportError:
        return False
    if name is None or hasattr(found, name):
        return True
    return any(part.name == name for part in pkgutil.iter_modules(getattr(found, "__path__", ())))


def own_attributes() -> set[str]:
    """What classes of this project define, or set on themselves."""
    names = set()
    for node in (node for tree in TREES.values() for node in ast.walk(tree)):
        if isinstance(node, ast.ClassDef):
            names |= {part.name for part in node.body if isinstance(part, ast.FunctionDef | ast.AsyncFunctionDef)}
            names |= {part.id for part in ast.walk(node) if isinstance(part, ast.Name) and is_stored(part)}
        elif isinstance(node, ast.Attribute) and is_stored(node) and is_name(node.value, "self", "cls"):
            names.add(node.attr)
    return names


def is_stored(node: ast.Name | ast.Attribute) -> bool:
    return isinstance(node.ctx, ast.Store)


def is_name(node: ast.expr, *names: str) -> bool:
    return isinstance(node, ast.Name) and node.id in names


def read_names(tree: ast.AST) -> Iterator[tuple[int, str]]:
    """(line, name) of `thing.name`, of `getattr(thing, "name")` and of `call(name=...)`."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute) and not is_name(node.value, "torch"):
            yield node.lineno, node.attr
        elif isinstance(node, ast.keyword) and node.arg:
            yield node.lineno, node.arg
        elif isinstance(node, ast.Call) and is_name(node.func, "getattr", "hasattr", "setattr"):
            if isinstance(node.args[1], ast.Constant):
                yield node.lineno, node.args[1].value


@functools.cache
def overridden() -> set[tuple[type, str]]:
    """(class, name) of what a class of this project defines, or sets on itself, before a class of a library that comes
    after it."""
    pairs = set()
    for file in (file for file in TREES if not file.startswith("examples/")):
        for found in vars(
            importlib.import_module(file.removesuffix(".py").removesuffix("/__init__").replace("/", "."))
        ).values():
            kinds = found.__mro__ if inspect.isclass(found) else ()
            for place, kind in enumerate(kinds):
                behind = [base for base in kinds[place + 1 :] if base.__module__.split(".")[0] in LIBRARIES]
                for name in own_names(kind) if behind and kind.__module__.split(".")[0] in ROOMS else ():
                    theirs = next((base for base in behind if name in vars(base)), None)
                    if theirs is not None and not getattr(vars(theirs)[name], "__isabstractmethod__", False):
                        pairs.add((kind, name))
    return pairs


@functools.cache
def own_names(kind: type) -> set[str]:
    source = textwrap.dedent(inspect.getsource(kind))
    stored = (node for node in ast.walk(ast.parse(source)) if isinstance(node, ast.Attribute) and is_stored(node))
    written = {name for name in vars(kind) if name in source}  # not what the libraries keep on a class
    return {*written, *(node.attr for node in stored if is_name(node.value, "self"))}


def private_uses() -> set[tuple[str, int, str]]:
    """(file, line, name) of what is imported, read from a thing that is not this project's, or overridden.

    Private is what has a leading underscore, in the path of its module or in its own name; everything else is public.
    """
    found, ours = set(), own_attributes()
    for file, tree in TREES.items():
        for line, module, name in imports(tree):
            if any(map(is_private, (*module.split("."), name or ""))):
                found.add((file, line, name or module))
        found |= {(file, line, name) for line, name in read_names(tree) if is_private(name) and name not in ours}
    for kind, name in overridden():
        if is_private(name) and name != "_abc_impl":
            file = kind.__module__.replace(".", "/") + ".py"
            found.add((file, inspect.getsourcelines(kind)[1], name))
    return {use for use in found if use[2] not in EXTENSION_POINTS}


@pytest.mark.parametrize("library", LIBRARIES)
def test_every_name_that_is_imported_exists(library: str) -> None:
    for file, tree in TREES.items():
        for line, module, name in imports(tree):
            assert module.split(".")[0] != library or exists(module, name), f"{file}:{line} {module}.{name}"


def test_what_is_used_of_the_libraries_is_public() -> None:
    uses = private_uses()
    new = [f"{file}:{line} {name}" for file, line, name in sorted(uses) if name not in STILL_PRIVATE.get(file, ())]
    assert not new, "use a public name, or say in STILL_PRIVATE why there is none"
    assert {name for _, name in overridden()} >= EXTENSION_POINTS - {"_attn_implementation", "_replace"}, "not defined"
    listed = {(file, name) for file, names in STILL_PRIVATE.items() for name in names}
    assert listed <= {(file, name) for file, _, name in uses}, "needed no more: take it off the list"


def test_every_requirement_has_a_bound_below_and_above() -> None:
    setup = configparser.ConfigParser()
    setup.read(ROOT / "setup.cfg")
    named = [setup["options"]["install_requires"], *setup["options.extras_require"].values()]
    for line in "\n".join(named).split():
        assert re.fullmatch(r"[\w-]+>=[\d.]+,<[\d.]+", line), line
