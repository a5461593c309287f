"""What all pipelines share: any kind of input in batches, and a bad item that does not take the others with it."""

import difflib
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import islice
from typing import Any, ClassVar, Literal

import numpy as np
import torch
from PIL import Image
from torch.utils.data import DataLoader, Dataset
from transformers import Pipeline

from .image_settings_mf2 import MF2ImageProcessorKwargs, check_choices
from .results_mf2 import check_finite


OnError = Literal["raise", "skip"]

# A user's file, array or setting; anything else is a mistake of the program and is never skipped.
_OF_AN_ITEM = (ValueError, TypeError, OSError)
_ONE_IMAGE = (str, bytes, bytearray, Mapping, Image.Image)


class MF2Pipeline(Pipeline):
    """One image, or many: a list, a generator, a dataset. Answers are in the order of the images, one an image.

    An image is whatever the image processor reads, or a mapping with `image` (and `landmarks`, if known).
    on_error (`str`): `"raise"`, or `"skip"`: an image that cannot be read or has no face where one is required is
        answered by `{"error": {"index": ..., "type": ..., "message": ...}}`, and the others as ever.
    Settings of the image processor, such as `on_no_face` or `landmark_source`, may be given to the pipeline or a call.
    """

    forward_names: ClassVar[tuple[str, ...]] = ()
    postprocess_names: ClassVar[tuple[str, ...]] = ()
    many_faces: ClassVar[str] = "largest"

    def __init__(
        self, model: Any, *args: Any, num_workers: int | None = None, batch_size: int | None = None, **kwargs: Any
    ) -> None:
        if kwargs.get("processor") is None:
            raise ValueError(
                f"processor: got none, expected the model's: {type(self).__name__}(model, processor="
                "MF2Processor.from_pretrained(...)), or MF2Processor.for_model(model.config) if it has none yet"
            )
        adapted = hasattr(model, "get_base_model")  # peft's wrapper: its layers stand inside the model
        super().__init__(model.get_base_model() if adapted else model, *args, **kwargs)
        self.num_workers, self.batch_size = num_workers or 0, batch_size or 1
        names = {name for step in self.setting_names().values() for name in step}
        self.settings = {name: kwargs[name] for name in names & kwargs.keys()}
        self.model.eval()  # dropout would make answers random

    def setting_names(self) -> dict[str, Sequence[str]]:
        """What may be given to the pipeline or a call, by the step that it is for."""
        own = {"return_landmark_source", "return_faces", *(["on_many_faces"] if self.many_faces == "largest" else [])}
        of_images = sorted(set(MF2ImageProcessorKwargs.__annotations__) - own)
        return {"preprocess": ("on_error", *of_images), "forward": self.forward_names, "post": self.postprocess_names}

    def _sanitize_parameters(self, **given: Any) -> tuple[dict, dict, dict]:
        known = self.setting_names()
        sorted_out: dict[str, dict[str, Any]] = {step: {} for step in known}
        for name, value in given.items():
            steps = [step for step, names in known.items() if name in names]
            if not steps:
                names = [name for names in known.values() for name in names]
                near = difflib.get_close_matches(name, names, n=1)
                hint = f"did you mean {near[0]!r}? " if near else ""
                raise TypeError(f"{type(self).__name__}: got an unknown parameter {name!r}; {hint}Parameters: {names}")
            sorted_out[steps[0]][name] = value
        if given.get("on_error", "raise") not in OnError.__args__:
            raise ValueError(f"on_error: got {given['on_error']!r}, expected one of {list(OnError.__args__)}")
        choices = ("landmark_source", "on_no_face", "on_many_faces")
        check_choices({name: given[name] for name in choices if given.get(name) is not None})
        return tuple(sorted_out.values())

    def __call__(
        self, inputs: Any = None, num_workers: int | None = None, batch_size: int | None = None, **kwargs: Any
    ) -> Any:
        for name in ("images", "image"):  # as the pipelines of transformers call them
            inputs = kwargs.pop(name, inputs)
        params = self._sanitize_parameters(**{**self.settings, **kwargs})
        workers = self.num_workers if num_workers is None else num_workers
        size = self.batch_size if batch_size is None else batch_size
        if type(size) is not int or size < 1:
            raise ValueError(f"batch_size: got {size!r}, expected a whole number from 1")
        several = not isinstance(inputs, _ONE_IMAGE) and isinstance(inputs, Iterable | Dataset)
        if isinstance(inputs, np.ndarray | torch.Tensor):
            several = inputs.ndim == 4
        if not several:
            return self.run_single(inputs, *params)
        if hasattr(inputs, "__len__") and len(inputs) == 0:
            raise ValueError("inputs: got an empty list, expected at least one image")
        answers = self.get_iterator(inputs, workers, size, *params)
        return list(answers) if isinstance(inputs, list | tuple | np.ndarray | torch.Tensor) else answers

    def save_pretrained(self, save_directory: str | os.PathLike, **kwargs: Any) -> None:
        """Model and processor, with the code of both and of the pipelines."""
        self.model.save_pretrained(save_directory, **kwargs)
        self.processor.save_pretrained(save_directory, **kwargs)

    def run_single(self, inputs: Any, preprocess_params: dict, forward_params: dict, postprocess_params: dict) -> Any:
        ready = _Ready(self, preprocess_params, numbered=False)
        return next(self._answers([[ready((0, inputs))]], 1, forward_params, postprocess_params, ready))

    def get_iterator(
        self,
        inputs: Any,
        num_workers: int,
        batch_size: int,
        preprocess_params: dict,
        forward_params: dict,
        postprocess_params: dict,
    ) -> Iterator[Any]:
        ready = _Ready(self, preprocess_params, numbered=True)
        has_places = hasattr(inputs, "__len__") and hasattr(inputs, "__getitem__")
        if has_places and (num_workers or not isinstance(inputs, Iterable)):
            batches = DataLoader(_Rows(inputs, ready), batch_size, num_workers=num_workers, collate_fn=list)
        else:
            batches = _batches(map(ready, enumerate(inputs)), batch_size)
        return self._answers(batches, batch_size, forward_params, postprocess_params, ready)

    def preprocess(self, item: Any, on_error: OnError = "raise", **settings: Any) -> dict[str, Any]:
        """Every face that is to be judged, a row each: none if `on_no_face="skip"` leaves the image out."""
        landmarks = None
        if isinstance(item, Mapping) and "image" in item:
            item, landmarks = item["image"], item.get("landmarks")
        settings = {"on_many_faces": self.many_faces, **settings, "return_faces": True}
        return dict(self.processor.image_processor(item, landmarks, return_tensors="pt", **settings))

    def _answers(
        self,
        batches: Iterable[list[dict]],
        batch_size: int,
        forward_params: dict,
        postprocess_params: dict,
        ready: "_Ready",
    ) -> Iterator[Any]:
        with torch.no_grad():
            forward_params = {**forward_params, **self.once_a_call(forward_params)}
        index = -1
        for batch in batches:
            good = [item for item in batch if "error" not in item]
            rows = iter(self._rows(good, batch_size, forward_params))
            for item in batch:
                index += 1
                if "error" in item:
                    yield item
                    continue
                of_item = [{"face": face, **next(rows)} for face in item["faces"]]
                try:
                    for row in of_item:
                        for name, values in row.items():
                            if isinstance(values, torch.Tensor):
                                check_finite(values, name)
                    answer = self.postprocess(of_item, **postprocess_params)
                except ValueError as error:
                    answer = ready.failed(index, error)
                yield answer

    def _rows(self, items: list[dict], batch_size: int, forward_params: dict) -> Iterator[dict[str, Any]]:
        """What the model says of each face; an image may have many, and the model still gets `batch_size` at once."""
        if not any(item["faces"] for item in items):
            return
        pixels = torch.cat([item["pixel_values"] for item in items])
        landmarks = torch.cat([item["landmarks"] for item in items])
        for start in range(0, len(pixels), batch_size):
            part = slice(start, start + batch_size)
            # Landmarks stay as they are: half precision would move them by up to a pixel.
            inputs = {"pixel_values": pixels[part].to(self.dtype), "landmarks": landmarks[part]}
            said = self.forward(inputs, **forward_params)
            for row in range(len(pixels[part])):
                yield {name: values[row] for name, values in said.items()}

    def once_a_call(self, forward_params: dict) -> dict[str, Any]:
        """What `_forward` needs besides and is the same for all batches."""
        return {}


class _Ready:
    """An item to tensors, or to a named error."""

    def __init__(self, pipeline: MF2Pipeline, params: dict[str, Any], numbered: bool) -> None:
        self.pipeline, self.params, self.numbered = pipeline, params, numbered

    def __call__(self, item: tuple[int, Any]) -> dict[str, Any]:
        index, value = item
        try:
            return self.pipeline.preprocess(value, **self.params)
        except _OF_AN_ITEM as error:
            return self.failed(index, error)

    def failed(self, index: int, error: Exception) -> dict[str, Any]:
        name = f"inputs[{index}]" if self.numbered else "inputs"
        message = f"{name}: {str(error).removeprefix('images: ')}"
        if self.params.get("on_error") == "skip":
            return {"error": {"index": index, "type": type(error).__name__, "message": message}}
        kind = type(error) if type(error) in (*_OF_AN_ITEM, FileNotFoundError) else ValueError
        raise kind(message) from error


class _Rows(Dataset):
    def __init__(self, inputs: Any, ready: _Ready) -> None:
        self.inputs, self.ready = inputs, ready

    def __len__(self) -> int:
        return len(self.inputs)

    def __getitem__(self, index: int) -> dict[str, Any]:
        return self.ready((index, self.inputs[index]))


def _batches(items: Iterable[dict], size: int) -> Iterator[list[dict]]:
    items = iter(items)
    while batch := list(islice(items, size)):
        yield batch


__all__ = ["MF2Pipeline"]
