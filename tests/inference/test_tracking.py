"""Faces keep their number while they can be followed, whatever order the detector names them in."""

import numpy as np

from mf2face.inference.faces import FaceTracker
from mf2face.inference.rows import PATIENCE


def square(left: float, top: float = 0.0, side: float = 10.0) -> list[float]:
    return [left, top, left + side, top + side]


def test_numbers_follow_faces_and_not_their_order() -> None:
    tracker = FaceTracker()
    assert tracker.follow([square(0), square(100)]) == [0, 1]
    assert tracker.follow([square(97), square(2), square(50)]) == [1, 0, 2]
    assert tracker.follow([]) == []
    assert tracker.follow([square(51), square(96)]) == [2, 1]


def test_the_nearer_of_two_faces_keeps_the_number() -> None:
    tracker = FaceTracker()
    tracker.follow([square(0)])
    assert tracker.follow([square(4), square(1)]) == [1, 0]
    assert tracker.follow([square(300)]) == [2]  # far from all that was there


def test_a_face_that_is_hidden_too_long_comes_back_as_another() -> None:
    for hidden, expected in ((PATIENCE, 0), (PATIENCE + 1, 1)):
        tracker = FaceTracker()
        tracker.follow([square(0)])
        for _ in range(hidden):
            tracker.follow([])
        assert tracker.follow([square(0)]) == [expected]


def test_a_hundred_walking_faces_stay_apart() -> None:
    tracker, random = FaceTracker(), np.random.default_rng(0)
    starts = np.array([(x, y) for x in range(10) for y in range(10)]) * 40.0
    for step in range(8):
        order = random.permutation(100)
        numbers = tracker.follow([square(*(starts[place] + 2 * step), side=30) for place in order])
        if step == 0:
            first = dict(zip(order, numbers, strict=True))
        assert [first[place] for place in order] == numbers
    assert tracker.next_id == 100


def test_a_run_that_goes_on_numbers_as_one_that_was_never_stopped() -> None:
    frames = [[square(0), square(40)], [square(41)], [square(2), square(80)], [square(81), square(3), square(42)]]
    whole, after = FaceTracker(), FaceTracker()
    numbers = [whole.follow(frame) for frame in frames]
    for frame, known in zip(frames[:2], numbers[:2], strict=True):
        after.remember(np.array(frame), known)
    assert [after.follow(frame) for frame in frames[2:]] == numbers[2:]
