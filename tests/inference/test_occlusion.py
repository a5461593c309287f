"""Hiding a region: what is hidden, what serves as control, and a drop where there must be one."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch
from conftest import tiny_config

from configuration_mf2.facs import CANONICAL_FACE
from mf2face.inference.explain.attention import region_corners
from mf2face.inference.explain.occlusion import control_masks, face_mask, hide, occlusion_check, region_mask


CONFIG = tiny_config(vision={"image_size": 112})
FACE = torch.tensor(CANONICAL_FACE) * 112


def _masks() -> dict[str, np.ndarray]:
    corners = region_corners(CONFIG, FACE[None])[0].numpy()
    return {name: region_mask(corners[place], 112) for place, name in enumerate(CONFIG.action_units)}


class Looker(torch.nn.Module):
    """Is sure of AU25 by the brightness of AU25's region, and of the others by nothing."""

    config = CONFIG

    def __init__(self) -> None:
        super().__init__()
        self.region, self.batches = torch.from_numpy(_masks()["AU25"]), []

    def forward(self, pixel_values: torch.Tensor, landmarks: torch.Tensor) -> SimpleNamespace:
        assert len(pixel_values) == len(landmarks)
        self.batches.append(len(pixel_values))
        bright = pixel_values[:, :, self.region].mean((1, 2))
        return SimpleNamespace(au_logits=torch.stack([0 * bright, 0 * bright, bright], dim=1))


def test_hiding_what_a_decision_stands_on_takes_it_away_and_hiding_elsewhere_does_not() -> None:
    model, crop = Looker(), torch.zeros(3, 112, 112)
    crop[:, model.region] = 4.0
    found = occlusion_check(model, crop, FACE, batch_size=5)
    lips = found["AU25"]
    assert lips.probability == pytest.approx(0.982, abs=1e-3)
    assert lips.drop > 0.3 and lips.control_drop == pytest.approx(0, abs=1e-6)
    assert found["AU1"].drop == 0 and found["AU1"].probability == 0.5
    assert max(model.batches) <= 6 and list(found) == CONFIG.action_units
    assert "region hidden: 0.98 → " in lips.text() and "elsewhere" in lips.text()


def test_controls_have_the_region_s_shape_and_none_of_its_pixels() -> None:
    face = face_mask(FACE.numpy(), 112)
    assert face.sum() > 2500 and face[60, 56] and not face[5, 5]
    for name, mask in _masks().items():
        controls = control_masks(mask, face)
        assert controls, name
        for control in controls:
            assert control.sum() == mask.sum() and not (control & mask).any()
            assert (control & face).sum() >= 0.5 * mask.sum()
    assert control_masks(np.ones((112, 112), bool), face) == []


def test_only_the_mask_changes_and_takes_the_face_s_mean() -> None:
    crop, mask = torch.rand(3, 112, 112), _masks()["AU6"]
    face = face_mask(FACE.numpy(), 112)
    hidden = hide(crop, mask, face)
    assert torch.equal(hidden[:, ~torch.from_numpy(mask)], crop[:, ~torch.from_numpy(mask)])
    expected = crop[:, torch.from_numpy(face & ~mask)].mean(1)
    assert torch.allclose(hidden[:, torch.from_numpy(mask)], expected[:, None].expand(-1, mask.sum()))


def test_what_cannot_be_hidden_is_said() -> None:
    model = Looker()
    with pytest.raises(ValueError, match="AU99"):
        occlusion_check(model, torch.zeros(3, 112, 112), FACE, action_units=["AU99"])
    model.config = tiny_config(use_au_branch=False)
    with pytest.raises(ValueError, match="no AU branch"):
        occlusion_check(model, torch.zeros(3, 112, 112), FACE)
