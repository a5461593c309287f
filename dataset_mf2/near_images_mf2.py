"""Pictures that are all but the same: by perceptual hashes, a few bytes an image, compared across the splits."""

import cv2
import numpy as np


HASH_BYTES = 32
MOST_BITS = 28
"""Of 256 that may differ. Of drawn faces, copies at two thirds of the size and JPEG quality 60 differ in 28 at most,
two people in 50 at least."""

_BLOCK = 2048


def image_hash(pixels: np.ndarray) -> np.ndarray:
    """(32,) bytes of an RGB picture: which of its 16 x 16 slowest cosine waves are stronger than their median."""
    grey = cv2.cvtColor(np.ascontiguousarray(pixels), cv2.COLOR_RGB2GRAY)
    small = cv2.resize(grey, (32, 32), interpolation=cv2.INTER_AREA).astype(np.float32)
    waves = cv2.dct(small)[:16, :16].ravel()
    return np.packbits(waves > np.median(waves))


def near_pairs(held_out: np.ndarray, training: np.ndarray, most: int = MOST_BITS) -> np.ndarray:
    """(pairs, 2) places of hashes that differ in at most `most` bits; memory does not grow with their number."""
    first, second = (
        np.ascontiguousarray(hashes).view(np.uint64).reshape(-1, HASH_BYTES // 8) for hashes in (held_out, training)
    )
    found = []
    for start in range(0, len(first), _BLOCK):
        block = first[start : start + _BLOCK]
        for low in range(0, len(second), _BLOCK):
            other = second[low : low + _BLOCK]
            bits = np.zeros((len(block), len(other)), np.uint16)
            for word in range(HASH_BYTES // 8):
                bits += np.bitwise_count(block[:, None, word] ^ other[None, :, word])
            rows, columns = np.nonzero(bits <= most)
            found.append(np.stack([rows + start, columns + low], 1))
    return np.concatenate(found) if found else np.zeros((0, 2), np.int64)


__all__ = ["MOST_BITS", "image_hash", "near_pairs"]
