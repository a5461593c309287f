"""Regions of action units: against loops, turned, scaled and mirrored with the face, and their gradients."""

import math

import numpy as np
import pytest
import torch

from configuration_mf2.configuration_mf2 import MF2Config
from configuration_mf2.facs import CANONICAL_FACE, LANDMARK_MIRROR, REGION_RULES
from modeling_mf2.regions import MF2Regions, face_axes, region_centres, region_points, sample_grid


UNITS = list(REGION_RULES)


def faces(batch, size=64.0, seed=0, dtype=torch.float32):
    noise = torch.randn(batch, 68, 2, generator=torch.Generator().manual_seed(seed)) * size / 30
    return (torch.tensor(CANONICAL_FACE) * size + noise).to(dtype)


def build(size=64, units=UNITS, grid=3, window=1.0, width=6):
    vision = {"backbone": "conv", "image_size": size, "hidden_size": width, "num_prefix_tokens": 0}
    regions = MF2Regions(MF2Config(vision_config=vision, action_units=units, region_grid=grid, region_window=window))
    torch.nn.init.zeros_(regions.positions)
    return regions


def rule_tables(regions, dtype=torch.float32):
    return torch.tensor(regions.averages, dtype=dtype), torch.tensor(regions.downs, dtype=dtype)


def points_by_loop(landmarks, units, grid, window):
    """(68, 2) -> (AU, 2 * grid * grid, 2), one point after the other."""
    axis = landmarks[45] - landmarks[36]
    right = axis / math.hypot(*axis)
    down = np.array([-right[1], right[0]])
    unit = math.hypot(*(landmarks[42] - landmarks[39]))
    steps = [0.0] if grid == 1 else [window * (i / (grid - 1) - 0.5) for i in range(grid)]
    points = []
    for name in units:
        rule = REGION_RULES[name]
        row = []
        for group in (rule.first, rule.second):
            centre = sum(landmarks[i] for i in group) / len(group) + rule.down * unit * down
            row += [centre + unit * (y * down + x * right) for y in steps for x in steps]
        points.append(row)
    return np.array(points)


def bilinear_by_loop(grid, x, y):
    """grid: (height, width, channels); cell (r, c) has its middle at (c + 0.5, r + 0.5)."""
    height, width, _ = grid.shape
    x, y = min(max(x - 0.5, 0.0), width - 1.0), min(max(y - 0.5, 0.0), height - 1.0)
    left, top = min(int(x), width - 2), min(int(y), height - 2)
    a, b = x - left, y - top
    upper = (1 - a) * grid[top, left] + a * grid[top, left + 1]
    lower = (1 - a) * grid[top + 1, left] + a * grid[top + 1, left + 1]
    return (1 - b) * upper + b * lower


def test_sampling_against_torch():
    tokens = torch.randn(2, 4, 5, 3, dtype=torch.float64)
    points = torch.rand(2, 200, 2, dtype=torch.float64) * 9 - 2  # inside and far outside
    maps, places = tokens.permute(0, 3, 1, 2), (2 * points / torch.tensor([5.0, 4.0]) - 1)[:, :, None]
    theirs = torch.nn.functional.grid_sample(maps, places, padding_mode="border", align_corners=False)
    assert torch.allclose(sample_grid(tokens, points), theirs[..., 0].transpose(1, 2), atol=1e-9)


@pytest.mark.parametrize(("grid", "window"), [(1, 1.0), (2, 0.7), (3, 1.0), (4, 1.5)])
def test_regions_against_a_loop(grid, window):
    regions = build(grid=grid, window=window)
    torch.nn.init.normal_(regions.positions)
    tokens, landmarks = torch.randn(2, 16, 6), faces(2)
    read = regions(tokens, landmarks)
    assert read.shape == (2, len(UNITS), 2 * grid * grid, 6)
    for row in range(2):
        cells = tokens[row].view(4, 4, 6).double().numpy()
        points = points_by_loop(landmarks[row].double().numpy() / 16, UNITS, grid, window)
        expected = [[bilinear_by_loop(cells, *point) for point in unit] for unit in points]
        expected += regions.positions.detach().numpy()
        np.testing.assert_allclose(read[row].detach().numpy(), expected, atol=1e-5)


@pytest.mark.parametrize("given", [True, False])
def test_mirrored_face_gives_mirrored_regions(given):
    regions, tokens, landmarks = build(size=128, grid=3), torch.randn(2, 8, 8, 6), faces(2, 128.0)
    other = landmarks[:, list(LANDMARK_MIRROR)] * torch.tensor([-1.0, 1.0]) + torch.tensor([128.0, 0])
    read = regions(tokens.flatten(1, 2), landmarks if given else None)
    mirrored = regions(tokens.flip(2).flatten(1, 2), other if given else None)
    mirrored = mirrored.view(2, len(UNITS), 2, 3, 3, 6).flip(4)  # each square of points, left to right
    for index, name in enumerate(UNITS):
        back = mirrored[:, index] if REGION_RULES[name].is_midline else mirrored[:, index].flip(1)
        assert torch.allclose(back.reshape(2, 18, 6), read[:, index], atol=1e-5), name


def test_points_turn_scale_and_move_with_the_face():
    regions, landmarks = build(), faces(3, dtype=torch.float64)
    tables = rule_tables(regions, torch.float64)

    def points(face):
        return region_points(face, region_centres(face, *tables), 3, 1.0)

    cos, sin, shift = math.cos(0.7), math.sin(0.7), torch.tensor([5.0, -3.0], dtype=torch.float64)
    turn = 1.9 * torch.tensor([[cos, -sin], [sin, cos]], dtype=torch.float64)
    assert torch.allclose(points(landmarks @ turn.T + shift), points(landmarks) @ turn.T + shift, atol=1e-9)
    right, down, unit = face_axes(torch.tensor(CANONICAL_FACE)[None])
    assert torch.allclose(torch.cat([right, down]), torch.eye(2), atol=1e-6) and unit.item() == pytest.approx(0.16)


def test_gradients_reach_tokens_and_landmarks():
    regions = build(units=["AU4", "AU7", "AU25"], grid=2)
    tables = rule_tables(regions, torch.float64)

    def read(tokens, landmarks):
        points = region_points(landmarks, region_centres(landmarks, *tables), 2, 0.8)
        return sample_grid(tokens, points.flatten(1, 2))

    tokens = torch.randn(1, 4, 4, 2, dtype=torch.float64, requires_grad=True)
    landmarks = faces(1, 4.0, dtype=torch.float64).requires_grad_()
    assert torch.autograd.gradcheck(read, (tokens, landmarks), eps=1e-7, atol=1e-6)

    tokens, landmarks = torch.randn(2, 16, 6, requires_grad=True), faces(2).requires_grad_()
    regions(tokens, landmarks).pow(2).sum().backward()
    used = {i for name in ("AU4", "AU7", "AU25") for i in (*REGION_RULES[name].first, *REGION_RULES[name].second)}
    moved = landmarks.grad.abs().sum((0, 2)).nonzero().flatten().tolist()
    assert set(moved) == used | {36, 39, 42, 45}
    assert tokens.grad.abs().sum() > 0 and regions.positions.grad.abs().sum() > 0


def test_without_landmarks_the_face_is_the_canonical_one():
    regions, tokens = build(), torch.randn(2, 16, 6)
    canonical = (torch.tensor(CANONICAL_FACE) * 64).expand(2, -1, -1)
    assert torch.equal(regions(tokens, None), regions(tokens, canonical))
    assert not torch.allclose(regions(tokens, None), regions(tokens, canonical + 8))


def test_half_precision_moves_no_centre():
    regions, tokens, landmarks = build(size=224), torch.randn(2, 196, 6), faces(2, 224.0)
    exact = regions(tokens, landmarks)
    half = regions.to(torch.bfloat16)(tokens.to(torch.bfloat16), landmarks)
    assert half.dtype == torch.bfloat16
    assert (half.float() - exact).abs().max() < 0.05  # half a pixel off would cost ten times that


def test_landmarks_of_another_shape_are_an_error_and_those_outside_read_the_border():
    regions, tokens = build(), torch.randn(2, 16, 6)
    for shape in ((2, 5, 2), (2, 68, 3), (1, 68, 2), (68, 2)):
        with pytest.raises(ValueError, match=r"landmarks: got .*expected \(2, 68, 2\)"):
            regions(tokens, torch.zeros(shape))
    far = regions(tokens, faces(2) + 1000)
    assert torch.allclose(far, tokens[:, None, -1:].expand_as(far), atol=1e-6)


def test_degenerate_landmarks_stay_finite_and_unknown_ones_stay_in_their_row():
    regions = build()
    tokens, landmarks = torch.randn(2, 16, 6), faces(2).requires_grad_()
    with torch.no_grad():
        landmarks[0] = 30.0
    read = regions(tokens, landmarks)
    read.sum().backward()
    assert read.isfinite().all() and landmarks.grad.isfinite().all()
    with torch.no_grad():
        landmarks[0, 36] = torch.nan
    broken = regions(tokens, landmarks)
    assert broken[0].isnan().any() and torch.equal(broken[1], read[1])
