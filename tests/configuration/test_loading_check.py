"""What a checkpoint lacks is named, however much it is."""

import pytest
import torch

from configuration_mf2.hub import check_finite_weights, check_loading_info


def test_many_missing_weights_are_counted_and_the_first_are_named():
    info = {"missing_keys": {f"layer.{index:02}" for index in range(20)}, "mismatched_keys": set()}
    with pytest.raises(ValueError, match=r"folder: lacks 20 weights.*layer\.00, .*layer\.07 and 12 more"):
        check_loading_info(info, "folder")
    check_loading_info({"missing_keys": set(), "mismatched_keys": set()}, "folder")


def test_a_tensor_of_another_shape_is_named_with_or_without_its_shapes():
    for key in ("head.bias", ("head.bias", (3,), (4,))):
        with pytest.raises(ValueError, match=r"another shape 1 weights.*head\.bias"):
            check_loading_info({"missing_keys": set(), "mismatched_keys": {key}}, "folder")


def test_only_tensors_that_are_no_numbers_are_refused():
    layer = torch.nn.BatchNorm1d(2)  # with a count, which is an integer
    check_finite_weights(layer, "folder")
    layer.running_var[1] = torch.inf
    with pytest.raises(ValueError, match=r"folder: 1 tensors.*running_var"):
        check_finite_weights(layer, "folder")
