"""Which samples are held out: whole groups of samples that share a picture, so that none is seen in both files.

Pictures are keys of 8 bytes, by their pixels: a million samples take 8 MB. Which groups are taken follows from the keys
and a seed alone, not from the order of the rows. It knows no pictures.
"""

import hashlib
from array import array
from collections.abc import Sequence
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components

from mgm_lora.errors import DataError

Keys = NDArray[np.uint64]


class Splitter:
    """Shown every sample once, it says of each whether it is held out."""

    def __init__(self, *, share: float, seed: int) -> None:
        self._share, self._seed = share, seed
        self._first, self._pairs = array("Q"), array("Q")
        self._heldout: Keys = np.empty(0, dtype=np.uint64)

    def show(self, keys: Sequence[int]) -> None:
        """A sample's pictures, one key at least."""
        self._first.append(keys[0])
        for one, other in pairwise(keys):
            self._pairs.extend((one, other))

    def decide(self) -> None:
        """Once all are shown; raises DataError where all samples belong together."""
        pairs = np.array(self._pairs, dtype=np.uint64).reshape(-1, 2)
        first = np.array(self._first, dtype=np.uint64)
        values, places = np.unique(np.concatenate([first, pairs.ravel()]), return_inverse=True)
        groups = _groups(len(values), places[len(first) :].reshape(-1, 2))
        sizes = np.bincount(groups[places[: len(first)]], minlength=groups.max(initial=-1) + 1)
        if len(sizes) < 2:
            raise DataError("all samples share a picture, so none can be held out: asked for two pictures at least")
        smallest = np.full(len(sizes), np.iinfo(np.uint64).max, dtype=np.uint64)
        np.minimum.at(smallest, groups, values)
        order = np.argsort(_mix(smallest, self._seed), kind="stable")
        reached = np.cumsum(sizes[order])[:-1]  # one group at least is learned from
        num_groups = int(np.argmin(np.abs(reached - self._share * len(first)))) + 1
        self._heldout = values[np.isin(groups, order[:num_groups])]

    def is_heldout(self, keys: Sequence[int]) -> bool:
        """Of a sample that was shown."""
        place = int(np.searchsorted(self._heldout, np.uint64(keys[0])))
        return place < len(self._heldout) and int(self._heldout[place]) == keys[0]


def key_of(content: bytes) -> int:
    """8 bytes that stand for some content."""
    return int.from_bytes(hashlib.blake2b(content, digest_size=8).digest(), "little")


def _groups(num_values: int, pairs: NDArray[np.int64]) -> NDArray[np.int64]:
    if not len(pairs):
        return np.arange(num_values)
    graph = coo_array((np.ones(len(pairs), dtype=np.int8), (pairs[:, 0], pairs[:, 1])), shape=(num_values, num_values))
    return np.asarray(connected_components(graph, directed=False)[1], dtype=np.int64)


def _mix(keys: Keys, seed: int) -> Keys:
    """Numbers in no order (splitmix64), others for another seed."""
    mixed = keys + np.uint64(key_of(str(seed).encode()))
    for shift, factor in ((30, 0xBF58476D1CE4E5B9), (27, 0x94D049BB133111EB)):
        mixed = (mixed ^ (mixed >> np.uint64(shift))) * np.uint64(factor)
    return mixed ^ (mixed >> np.uint64(31))
