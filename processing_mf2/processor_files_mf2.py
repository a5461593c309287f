"""What is wrong with a processor's files, by file and field, where the libraries that read them do not say it."""

import json
import re
from collections.abc import Iterator
from typing import Any

from transformers.utils import cached_file


_SETTINGS = {"": dict, "image_processor_type": str, "auto_map": dict}
_FIELDS: dict[str, dict[str, type | tuple[type, ...]]] = {
    "processor_config.json": {
        **{"": dict, "processor_class": str, "auto_map": dict},
        **{f"image_processor.{name}".rstrip("."): kind for name, kind in _SETTINGS.items()},
    },
    "preprocessor_config.json": _SETTINGS,
    "tokenizer_config.json": {
        **{"": dict, "tokenizer_class": str, "processor_class": str, "auto_map": dict, "added_tokens_decoder": dict},
        **{"do_lower_case": bool, "tokenize_chinese_chars": bool, "strip_accents": (bool, type(None))},
        **{f"{name}_token": (str, dict, type(None)) for name in ("bos", "cls", "sep", "pad", "unk", "mask")},
    },
    "tokenizer.json": {"": dict},
}
_NAMES = {dict: "an object", str: "text", bool: "true or false", type(None): "null"}
_SENTENCE = re.compile(r"[\w.\[\]/-]+(, \w+)*: .*(got|expected|there is no)", re.DOTALL)


def named_error(source: Any, error: Exception, where: dict[str, Any]) -> Exception:
    """The error of loading a processor from `source` as one that names file and field; a sentence stays as it is."""
    if isinstance(error, ValueError | TypeError) and _SENTENCE.match(str(error)):
        return type(error)(f"{source}: {error}") if type(error) in (ValueError, TypeError) else error
    found = next(_wrong_fields(source, where), None)
    if found is None:
        found = f"processor_config.json, tokenizer_config.json or tokenizer.json: {type(error).__name__}: {error}"
    return ValueError(f"{source}: {found}; download the file again, or save the processor anew with save_pretrained")


def _wrong_fields(source: Any, where: dict[str, Any]) -> Iterator[str]:
    where = {
        name: where[name] for name in ("revision", "token", "cache_dir", "subfolder") if where.get(name) is not None
    }
    for file, fields in _FIELDS.items():
        try:
            path = cached_file(source, file, local_files_only=True, **where)
        except OSError:  # there is none
            continue
        try:
            with open(path, encoding="utf-8") as opened:
                content = json.load(opened)
        except ValueError as error:  # of JSON or of UTF-8
            yield f"{file}: got {error}, expected JSON"
            continue
        for field, kinds in fields.items():
            value, missing = content, False
            for name in field.split(".") if field else ():
                missing = missing or not isinstance(value, dict) or name not in value
                value = None if missing else value[name]
            kinds = kinds if isinstance(kinds, tuple) else (kinds,)
            if not missing and not isinstance(value, kinds):
                expected = " or ".join(_NAMES[kind] for kind in kinds)
                yield f"{file}: {field or 'its content'}: got {value!r:.80}, expected {expected}"


__all__ = ["named_error"]
