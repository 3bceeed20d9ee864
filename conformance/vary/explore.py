"""Which configurations are judged, in which order, and how a failing one is made small.

The twin as it is; each value alone; rows of a pairwise covering array; then a search by hypothesis,
until the budget is spent. What does not pass is shrunk at once, by hypothesis, to the fewest fields
away from their defaults, and its values are put together no more: a value that fails alone is
judged once and hides nothing. Every configuration is judged once, whoever asks for it.
"""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field

from conformance.vary.pairs import Pairs
from conformance.vary.records import Difference, Judged, Role
from conformance.vary.space import Choice, Key, Space, key

#: Judges one configuration, given as factor -> label.
Judge = Callable[[Choice], Judged]
#: Told of each configuration once, as soon as it is judged.
Told = Callable[[Choice, Role, Judged], None]

#: To shrink one, hypothesis may try so many, and have so many judged that were not before.
_TRIES, _SHRINKS = 1000, 60


@dataclass(frozen=True, slots=True)
class Budget:
    """How much may be explored.

    Attributes:
        configurations: how many, those of shrinking not among them; None for no limit.
        seconds: for everything but explanations; None for no limit.
    """

    configurations: int | None = None
    seconds: float | None = None


@dataclass(frozen=True, slots=True)
class Found:
    """A configuration that does not pass and cannot be made smaller.

    Attributes:
        minimal: whether shrinking came to its end.
        difference: the difference that it was shrunk by; None where it is refused.
    """

    choice: Mapping[str, str]
    judged: Judged
    minimal: bool = True
    difference: Difference | None = None


@dataclass
class Explorer:
    """One exploration. Deterministic: the same answers and seed give the same questions.

    Attributes:
        judged: every configuration judged, as it is less what the twin itself shows.
        found: what does not pass, smallest configurations only.
        ended: why it ended.
    """

    space: Space
    judge: Judge
    budget: Budget
    seed: int = 0
    told: Told = lambda *_: None
    clock: Callable[[], float] = time.monotonic
    judged: dict[Key, Judged] = field(default_factory=dict)
    found: list[Found] = field(default_factory=list)
    ended: str = ""
    explored: int = 0

    def __post_init__(self) -> None:
        self._began = self.clock()
        self._known: frozenset[tuple[str, str]] = frozenset()
        self.pairs = Pairs(self.space.labels(), self.seed)

    # --- the whole --------------------------------------------------------------------------------

    def run(self) -> None:
        """Explore until nothing is left or the budget is spent."""
        own = self.ask({}, "default")
        if own.outcome in ("refused", "error"):
            self.found.append(Found({}, own))
            self.ended = f"the twin as it is is no case: {own.reason}"
            return
        if own.outcome == "failed":
            self.found.append(Found({}, own, difference=own.first))
            if any(d.check in ("load", "run", "logits") for d in own.differences):
                self.ended = "the twin as it is is wrong: no variant of it can be judged"
                return
            self._known = frozenset(d.signature for d in own.differences)
        for choice in self._rows():
            if self._spent():
                return
            role: Role = "single" if len(choice) == 1 else "pairs"
            self._take(choice, self.ask(choice, role))
        if not self._spent():
            self._search()

    def _rows(self) -> Iterator[dict[str, str]]:
        for name, labels in self.space.labels().items():
            for label in labels:
                yield {name: label}
        while (row := self.pairs.row()) is not None:
            yield row

    def ask(self, choice: Choice, role: Role) -> Judged:
        """One configuration, judged now or before, less what the twin itself shows."""
        at = key(choice)
        if at not in self.judged:
            raw = self.judge(choice)
            if role != "shrink":
                self.explored += 1
            self.judged[at] = raw.without(self._known)
            self.told(choice, role, self.judged[at])
        return self.judged[at]

    def _take(self, choice: Choice, judged: Judged) -> None:
        """Count what a row covers, or shrink what does not pass and avoid it from then on."""
        if judged.outcome == "passed":
            self.pairs.cover(choice)
            return
        small = self._shrunk(choice, judged)
        self.found.append(small)
        self.pairs.avoid(small.choice)
        if judged.outcome == "error":
            self.pairs.drop(choice)

    def _spent(self) -> bool:
        if self.budget.configurations is not None and self.explored >= self.budget.configurations:
            self.ended = f"the limit of {self.budget.configurations} configurations"
        elif self._late():
            self.ended = f"the limit of {self.budget.seconds:g} seconds"
        return bool(self.ended)

    def _late(self) -> bool:
        limit = self.budget.seconds
        return limit is not None and self.clock() - self._began >= limit

    # --- hypothesis -------------------------------------------------------------------------------

    def _shrunk(self, choice: Choice, judged: Judged) -> Found:
        """The smallest part of a configuration that does not pass in the same way."""
        signature = judged.signature
        if len(choice) == 1:
            return self._as_found(choice, signature, True)
        shrinking = _Shrinking(self, signature)
        # Most of what is drawn keeps most of the row: a failure of several values is met soon.
        labels = {name: (label, label, label) for name, label in choice.items()}
        small = self._least(labels, shrinking, _TRIES) or dict(choice)
        return self._as_found(small, signature, not shrinking.stopped)

    def _as_found(self, choice: Choice, signature: tuple[str, str], minimal: bool) -> Found:
        judged = self.judged[key(choice)]
        shown = next((d for d in judged.differences if d.signature == signature), None)
        return Found(dict(choice), judged, minimal, shown)

    def _search(self) -> None:
        """Configurations of any number of values, drawn until the budget is spent."""
        if self.budget.configurations is None:
            self.ended = "every pair is covered"
            return

        while not self._spent():
            shrinking: _Shrinking | None = None

            def fails(choice: dict[str, str]) -> bool:
                nonlocal shrinking
                if not choice or not self.pairs.allowed(choice):
                    return False  # the twin itself was taken care of
                if shrinking is not None:
                    return shrinking(choice)
                if key(choice) not in self.judged and self._spent():
                    return False
                judged = self.ask(choice, "search")
                if judged.outcome != "passed":
                    shrinking = _Shrinking(self, judged.signature)
                return shrinking is not None

            small = self._least(self.space.labels(), fails, _TRIES)
            if small is None or shrinking is None:
                break
            self.found.append(self._as_found(small, shrinking.signature, not shrinking.stopped))
            self.pairs.avoid(small)
        self.ended = self.ended or "every pair is covered, and the search found no more"

    def _least(
        self,
        labels: Mapping[str, Sequence[str]],
        fails: Callable[[dict[str, str]], bool],
        tries: int,
    ) -> dict[str, str] | None:
        """The least configuration that fails: fewest values away from their defaults.

        Args:
            labels: factor -> what it may be besides its default.
        """
        from hypothesis import Phase, find, settings
        from hypothesis import strategies as st
        from hypothesis.errors import NoSuchExample

        # The default is first, and so the simplest; what is left out of a dictionary is at it.
        drawn = st.fixed_dictionaries(
            {name: st.sampled_from((None, *values)) for name, values in labels.items()}
        )
        configurations = drawn.map(lambda d: {k: v for k, v in d.items() if v is not None})
        how = settings(
            max_examples=tries,
            database=None,
            deadline=None,
            derandomize=False,
            phases=(Phase.generate, Phase.shrink),
        )
        try:
            return find(configurations, fails, settings=how, random=random.Random(self.seed))
        except NoSuchExample:
            return None

    def may_shrink(self, choice: Choice) -> bool:
        """Whether there is time to judge another configuration."""
        return key(choice) in self.judged or not self._late()

    # --- what came of it --------------------------------------------------------------------------

    def excluded(self) -> int:
        """Pairs that no configuration may hold, because of what is refused or fails."""
        return len(self.pairs.all) - self.pairs.covered - self.pairs.open

    def effectless(self, floor: float) -> dict[str, tuple[str, ...]]:
        """Factor -> labels of values that alone move the reference by no more than this."""
        found: dict[str, tuple[str, ...]] = {}
        for name, labels in self.space.labels().items():
            none = []
            for label in labels:
                judged = self.judged.get(key({name: label}))
                if judged is not None and judged.effect is not None and judged.effect <= floor:
                    none.append(label)
            if none:
                found[name] = tuple(none)
        return found


@dataclass
class _Shrinking:
    """Whether a configuration does not pass in the same way as the one that is made smaller.

    Attributes:
        stopped: whether one was left unjudged, so that a smaller one may exist.
    """

    explorer: Explorer
    signature: tuple[str, str]
    stopped: bool = False
    asked: int = 0
    best: Choice | None = None

    def __call__(self, choice: dict[str, str]) -> bool:
        if key(choice) not in self.explorer.judged:
            if self._minimal():
                return False  # no part of the best can be left out: the rest is of other failures
            if self.asked >= _SHRINKS or not self.explorer.may_shrink(choice):
                self.stopped = True
                return False
            self.asked += 1
        shows = self.explorer.ask(choice, "shrink").shows(self.signature)
        if shows and (self.best is None or len(choice) < len(self.best)):
            self.best = choice
        return shows

    def _minimal(self) -> bool:
        """Whether the best was judged without each of its values, and does not show it so."""
        if self.best is None:
            return False
        parts = (key({k: v for k, v in self.best.items() if k != name}) for name in self.best)
        found = [self.explorer.judged.get(part) for part in parts]
        return all(one is not None and not one.shows(self.signature) for one in found)
