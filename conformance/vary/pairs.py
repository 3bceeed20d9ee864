"""Configurations that between them hold every pair of values: a covering array, made as it is used.

Each row is chosen greedily from the pairs that no row has held yet. What a row turned out to break
on is avoided from then on, so that one failing value, known already, hides no other. Pairs with a
default are held by the configurations in which one value alone is not the default.
"""

from __future__ import annotations

import itertools
import random
from typing import TYPE_CHECKING

from conformance.vary.space import Choice, Key, key

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

Item = tuple[str, str]


class Pairs:
    """The pairs still to be held.

    Args:
        labels: factor -> the labels of its values, the default's left out.
        seed: of the order among equals.
    """

    def __init__(self, labels: Mapping[str, Sequence[str]], seed: int = 0) -> None:
        self._labels = dict(labels)
        self._random = random.Random(seed)
        self._bad: list[Key] = []
        self.all: frozenset[frozenset[Item]] = frozenset(
            frozenset(pair)
            for (f, fs), (g, gs) in itertools.combinations(self._labels.items(), 2)
            for pair in itertools.product([(f, v) for v in fs], [(g, v) for v in gs])
        )
        # In an order of its own: sets have none that is the same in every process.
        self._open = dict.fromkeys(sorted(self.all, key=sorted))
        self.covered = 0

    @property
    def open(self) -> int:
        """How many pairs no row has held, and may still be held."""
        return len(self._open)

    def avoid(self, bad: Choice) -> None:
        """Put these values together into no further row."""
        found = key(bad)
        if not found:
            return
        self._bad.append(found)
        self._open = {pair: None for pair in self._open if not found <= pair}

    def cover(self, row: Choice) -> None:
        """A row was judged, and what it holds is known."""
        held = key(row)
        left = {pair: None for pair in self._open if not pair <= held}
        self.covered += len(self._open) - len(left)
        self._open = left

    def drop(self, row: Choice) -> None:
        """Try no more for the pairs of a row, without counting them as covered."""
        held = key(row)
        self._open = {pair: None for pair in self._open if not pair <= held}

    def allowed(self, choice: Choice) -> bool:
        """Whether a configuration holds nothing that is to be avoided."""
        held = key(choice)
        return not any(bad <= held for bad in self._bad)

    def row(self) -> dict[str, str] | None:
        """A configuration that holds as many open pairs as can be had greedily; None at the end."""
        while self._open:
            first = self._random.choice(list(self._open))
            if self.allowed(dict(first)):
                return self._grown(dict(sorted(first)))
            del self._open[first]
        return None

    def _grown(self, row: dict[str, str]) -> dict[str, str]:
        others = [name for name in self._labels if name not in row]
        self._random.shuffle(others)
        for name in others:
            gains = [
                (self._gain(row, (name, label)), label)
                for label in self._labels[name]
                if self.allowed({**row, name: label})
            ]
            best = max((gain for gain, _ in gains), default=0)
            if best:
                row[name] = self._random.choice([label for gain, label in gains if gain == best])
        return row

    def _gain(self, row: Choice, item: Item) -> int:
        return sum(frozenset({item, other}) in self._open for other in row.items())
