"""What the rooms use of transformers, peft, datasets and accelerate exists in the installed versions, and is public.

`make test-oldest` and `make test-newest` run this with the rest, at both ends of what `setup.cfg` allows.
"""

import ast
import configparser
import importlib
import inspect
import pkgutil
import re
from collections.abc import Iterator
from pathlib import Path

import pytest


ROOT = Path(__file__).parent.parent
ROOMS = ("configuration_mf2", "processing_mf2", "modeling_mf2", "dataset_mf2", "training_mf2", "analysis_mf2")
LIBRARIES = ("transformers", "peft", "datasets", "accelerate")
TREES = {
    path.relative_to(ROOT).as_posix(): ast.parse(path.read_text(encoding="utf-8"))
    for place in (*ROOMS, "examples")
    for path in sorted((ROOT / place).rglob("*.py"))
}
# Where the libraries' guides import from, beside their top level.
DOCUMENTED = {
    *("transformers.activations", "transformers.image_utils", "transformers.modeling_outputs", "transformers.utils"),
    *("transformers.modeling_utils", "transformers.pipelines", "transformers.processing_utils"),
    *("peft.tuners.tuners_utils", "peft.utils", "datasets.distributed", "accelerate.utils"),
}
# What the guides tell a model, a pipeline or a method of peft to define. Abstract methods need not be named.
EXTENSION_POINTS = {
    *("_init_weights", "_no_split_modules", "_supports_sdpa", "_supports_attention_backend", "_tied_weights_keys"),
    *("_keys_to_ignore_on_load_unexpected", "_keys_to_ignore_on_load_missing", "_attn_implementation"),
    *("_load_processor", "_load_tokenizer", "_load_image_processor", "_load_feature_extractor"),
    *("_load_video_processor", "_replace"),  # the last: namedtuple's
}
# Goal: the first alone. peft's Enum of methods has no door.
STILL_PRIVATE = {
    "modeling_mf2/dfn_config.py": {"_member_names_", "_member_map_", "_value2member_map_", "_name_", "_value_"},
    "modeling_mf2/dfn_layer.py": {"_get_base_layer_device_and_dtype", "_move_adapter_to_device_of_base_layer"},
    "modeling_mf2/dfn_model.py": {
        *("_check_merge_allowed", "_prepare_adapter_config", "_remap_adapter_state_dict_for_load"),
        *("_remove_adapter_name_from_key", "_replace_module"),
    },
    "modeling_mf2/dfn_states.py": {"AuxiliaryTrainingWrapper"},
    "modeling_mf2/feature_maps.py": {"_is_hf_initialized"},
    "modeling_mf2/loading_mf2.py": {"LoadStateDictInfo", "_is_hf_initialized", "_weight_conversions"},
    "modeling_mf2/modeling_mf2.py": {"_is_hf_initialized", "_load_pretrained_model"},
    "modeling_mf2/qformer_mf2.py": {"_forward_hooks", "_forward_pre_hooks", "_hf_hook"},
    "modeling_mf2/vision_mf2.py": {"_is_hf_initialized"},
    "modeling_mf2/weight_files_mf2.py": {"cached_file", "get_checkpoint_shard_files"},
    "configuration_mf2/hub_mf2.py": {"_upload_modified_files"},
    "processing_mf2/image_processing_mf2.py": {
        *("_fuse_mean_std_and_rescale_factor", "_preprocess_image_like_inputs", "_validate_preprocess_kwargs"),
    },
    "processing_mf2/pipeline_items_mf2.py": {
        *("_preprocess_params", "_forward_params", "_postprocess_params", "_num_workers", "_batch_size"),
    },
    "dataset_mf2/examples_mf2.py": {"Array2DExtensionType"},
    "training_mf2/finetuning_mf2.py": {"_fingerprint"},
    "training_mf2/trainer_mf2.py": {
        *("rotate_checkpoints", "_save_checkpoint", "_train_batch_size", "_models", "_prepare_inputs"),
    },
    "training_mf2/vision_store_mf2.py": {"_fingerprint"},
    "examples/benchmark/gpu.py": {"_from_config"},
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


def is_public(module: str, name: str | None) -> bool:
    if any(map(is_private, (*module.split("."), name or ""))):
        return False
    library = module.split(".")[0]
    return module in DOCUMENTED | {library} or (name is not None and exists(library, name))


def own_attributes() -> set[str]:
    """What classes of this project define, or set on themselves."""
    names = set()
    for node in (node for tree in TREES.values() for node in ast.walk(tree)):
        if isinstance(node, ast.ClassDef):
            names |= {part.name for part in node.body if isinstance(part, ast.FunctionDef | ast.AsyncFunctionDef)}
            names |= {part.id for part in ast.walk(node) if isinstance(part, ast.Name) and is_stored(part)}
        elif isinstance(node, ast.Attribute) and is_stored(node) and ast.unparse(node.value) in ("self", "cls"):
            names.add(node.attr)
    return names


def is_stored(node: ast.Name | ast.Attribute) -> bool:
    return isinstance(node.ctx, ast.Store)


def attributes(tree: ast.AST) -> Iterator[tuple[int, str]]:
    """(line, name) of `thing.name`, and of `getattr(thing, "name")`."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute) and ast.unparse(node.value) != "torch":
            yield node.lineno, node.attr
        elif isinstance(node, ast.Call) and ast.unparse(node.func) in ("getattr", "hasattr", "setattr"):
            if isinstance(node.args[1], ast.Constant):
                yield node.lineno, node.args[1].value


def overridden() -> Iterator[tuple[type, str]]:
    """(class, name) of what a class of this project defines before a class of a library that comes after it."""
    for file in (file for file in TREES if not file.startswith("examples/")):
        for found in vars(importlib.import_module(file.removesuffix(".py").replace("/", "."))).values():
            kinds = found.__mro__ if inspect.isclass(found) else ()
            for place, kind in enumerate(kinds):
                behind = [base for base in kinds[place + 1 :] if base.__module__.split(".")[0] in LIBRARIES]
                for name in vars(kind) if kind.__module__.split(".")[0] in ROOMS else ():
                    theirs = next((vars(base)[name] for base in behind if name in vars(base)), None)
                    if theirs is not None and not getattr(theirs, "__isabstractmethod__", False):
                        yield kind, name


def private_uses() -> set[tuple[str, int, str]]:
    """(file, line, name) of what is imported, read from a thing that is not this project's, or overridden."""
    found, ours = set(), own_attributes()
    for file, tree in TREES.items():
        for line, module, name in imports(tree):
            if not is_public(module, name):
                found.add((file, line, name or module))
        found |= {(file, line, name) for line, name in attributes(tree) if is_private(name) and name not in ours}
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
    for file, names in STILL_PRIVATE.items():
        text = (ROOT / file).read_text(encoding="utf-8")
        assert [name for name in names if name not in text] == [], f"{file} needs it no more: take it off the list"


def test_every_requirement_has_a_bound_below_and_above() -> None:
    setup = configparser.ConfigParser()
    setup.read(ROOT / "setup.cfg")
    named = [setup["options"]["install_requires"], *setup["options.extras_require"].values()]
    for line in "\n".join(named).split():
        assert re.fullmatch(r"[\w-]+>=[\d.]+,<[\d.]+", line), line
