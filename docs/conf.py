"""Sphinx: reference from the docstrings, guides from the examples, options from the commands' help."""

import ast
import contextlib
import io
import itertools
import os
import re
import sys
from pathlib import Path
from typing import Any


os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["OMP_NUM_THREADS"] = "1"
os.environ["COLUMNS"] = "100"
sys.path.insert(0, str(Path(__file__).resolve().parent))
sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from docstrings import inline, to_rst

from configuration_mf2.version import VERSION


HERE = Path(__file__).resolve().parent
ROOT = HERE.parent

project, author, release = "MF²", "the authors of MF²", VERSION
extensions = ["myst_parser", "sphinx.ext.autodoc"]
exclude_patterns = ["_build"]
html_theme, html_title, html_static_path, html_css_files = "furo", "MF²", ["_static"], ["mf2.css"]
html_show_sphinx, html_copy_source, html_show_copyright = False, False, False
myst_heading_anchors = 3
html_search_scorer = str(HERE / "_static" / "scorer.js")
# A default value or a parameter may be called as several attributes are; a page that is announced may not be there yet.
suppress_warnings = ["ref.python", "toc.empty_glob"]
autodoc_inherit_docstrings = False  # torch's words about forward() say nothing here
autodoc_member_order, autodoc_typehints_format, autodoc_preserve_defaults = "bysource", "short", True
python_maximum_signature_line_length = 100
python_use_unqualified_type_names = True
toc_object_entries_show_parents = "hide"

# A reference that a docstring or a page makes has to lead somewhere; the types in signatures are often other packages'.
nitpicky = True
nitpick_ignore_regex = [("py:(class|data|exc|meth|func|attr)", ".*"), ("py:obj", r"typing\..*")]

ROOMS = {
    "configuration_mf2": "Configs, action units, emotions, label sets, and the code that a checkpoint carries.",
    "processing_mf2": "Images, landmarks and captions to tensors, and logits to named results.",
    "modeling_mf2": "Models, losses, DFN, the compared systems, conversion and export.",
    "mf2face": "Data, captions, training and inference: what never travels with a checkpoint.",
}


def write_pages() -> None:
    """Writes the generated pages into `_generated`, and removes those of files that are gone."""
    folder = HERE / "_generated"
    folder.mkdir(exist_ok=True)
    pages = {f"mf2{'_' * bool(name)}{name}.txt": help_of("mf2face.inference.cli", name) for name in ("", *COMMANDS)}
    pages["train.txt"] = help_of("train")
    for room, about in ROOMS.items():
        modules = [path.relative_to(ROOT) for path in sorted((ROOT / room).rglob("*.py")) if path.stem != "__init__"]
        pages |= {f"{dotted(path)}.rst": module_page(dotted(path)) for path in modules}
        pages[f"{room.removesuffix('_mf2')}.rst"] = room_page(room, about, modules)
    for name in {path.name for path in folder.iterdir()} - set(pages):
        (folder / name).unlink()
    for name, text in pages.items():
        target = folder / name
        if not target.exists() or target.read_text(encoding="utf-8") != text:  # else Sphinx would read it again
            target.write_text(text, encoding="utf-8")


def dotted(path: Path) -> str:
    return ".".join(path.with_suffix("").parts)


def module_page(name: str) -> str:
    """A file is a topic: what is public in it. The room's page leads here; the sidebar is for the guides."""
    return f""":orphan:

{name}
{"=" * len(name)}

.. automodule:: {name}
   :members:
   :undoc-members:
   :show-inheritance:
"""


def room_page(room: str, about: str, modules: list[Path]) -> str:
    """A line a topic, by folder."""
    lines = [room, "=" * len(room), "", about, ""]
    for folder, files in itertools.groupby(sorted(modules, key=lambda path: path.parent), lambda path: path.parent):
        lines += ["", str(folder), "-" * len(str(folder)), ""] if folder != Path(room) else []
        for path in files:
            first = (ast.get_docstring(ast.parse((ROOT / path).read_text(encoding="utf-8"))) or "").split("\n\n")[0]
            lines.append(f"- :doc:`{path.stem} <{dotted(path)}>`: {inline(' '.join(first.split()))}")
    return "\n".join([*lines, ""])


COMMANDS = ("compare", "events", "certify", "merge", "setup")


def help_of(module: str, command: str = "") -> str:
    """As the command prints it, on a terminal of 100 columns, with this machine's folders left out."""
    main = __import__(module, fromlist=["main"]).main
    output = io.StringIO()
    with contextlib.redirect_stdout(output), contextlib.suppress(SystemExit):
        main([*command.split(), "--help"])
    # The Trainer's two hundred options are listed once, not in the usage as well.
    text = re.sub(r"^usage: (?!mf2).*?\n\n", f"usage: {module}.py [options]\n\n", output.getvalue(), flags=re.DOTALL)
    return text.replace(str(ROOT) + os.sep, "").replace(str(Path.home()), "~")


def rewrite(app: Any, what: str, name: str, thing: Any, options: Any, lines: list[str]) -> None:
    lines[:] = [*to_rst("\n".join(lines), thing).splitlines(), ""]


def sign(app: Any, what: str, name: str, thing: Any, options: Any, given: str | None, returned: Any) -> tuple:
    """Without the fields that every config of transformers has; `<factory>` is no Python, and would break the lines."""
    return re.sub(r"\(transformers_version.*?\*, ", "(*, ", given or "").replace("<factory>", "...") or None, returned


def skip(app: Any, what: str, name: str, thing: Any, skipped: bool, options: Any) -> bool | None:
    """Leaves out attributes that transformers and peft require of a class."""
    return True if name.rpartition(".")[2] in PLUMBING else None


PLUMBING = {
    *("model_type", "base_config_key", "sub_configs_defaults", "hub_auto_classes", "config_class", "base_model_prefix"),
    *("main_input_name", "attributes", "valid_kwargs", "model_input_names", "sub_configs", "has_no_defaults_at_init"),
    *("supports_gradient_checkpointing", "accepts_loss_kwargs", "input_modalities", "attribute_map"),
    *("prefix", "tuner_layer_cls", "target_module_mapping", "adapter_layer_names", "other_param_names"),
}


def setup(app: Any) -> None:
    write_pages()
    app.connect("autodoc-process-docstring", rewrite)
    app.connect("autodoc-process-signature", sign)
    app.connect("autodoc-skip-member", skip)
