"""Perceptual hashes find copies, and leave other people alone."""

import cv2
import numpy as np

from mf2face.data.build.mfa import HASH_BYTES, MOST_BITS, image_hash, near_pairs
from mf2face.data.synthetic.faces import draw_example


def test_copies_are_found_and_other_people_are_not():
    faces = [draw_example(16 * person + frame, size=112)[0] for person in range(12) for frame in (0, 9)]
    copies = []
    for face in faces:
        small = cv2.resize(face, (80, 80), interpolation=cv2.INTER_AREA)
        _, encoded = cv2.imencode(".jpg", small, [cv2.IMWRITE_JPEG_QUALITY, 60])
        copies.append(image_hash(cv2.imdecode(encoded, cv2.IMREAD_COLOR)))
    hashes, copies = np.array([image_hash(face) for face in faces]), np.array(copies)
    pairs = {tuple(pair) for pair in near_pairs(copies, hashes).tolist()}
    assert {(k, k) for k in range(len(faces))} <= pairs
    assert {(a // 2, b // 2) for a, b in pairs} == {(k, k) for k in range(12)}


def test_pairs_are_those_of_the_distance_whatever_the_blocks():
    rng = np.random.default_rng(0)
    first = rng.integers(0, 256, (2100, HASH_BYTES), dtype=np.uint8)
    second = rng.integers(0, 256, (2300, HASH_BYTES), dtype=np.uint8)
    for row, bits in ((0, 0), (2060, MOST_BITS), (5, MOST_BITS + 1)):
        flipped = np.unpackbits(first[row])
        flipped[rng.permutation(256)[:bits]] ^= 1
        second[2299 - row] = np.packbits(flipped)
    assert sorted(near_pairs(first, second).tolist()) == [[0, 2299], [2060, 239]]
    assert near_pairs(first[:0], second).shape == (0, 2)
