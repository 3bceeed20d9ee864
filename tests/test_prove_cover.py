"""The covering selection: which ports come first, and what each is given."""

from __future__ import annotations

from typing import TYPE_CHECKING

from twins import twin_model

from conformance.prove import command
from conformance.prove.command import Outcome, Task
from conformance.prove.cover import Cover, ordered
from conformance.prove.proof import Proof

if TYPE_CHECKING:
    import pytest

    from conformance.faults import Fault


def _task(twin: str, **fields: object) -> Task:
    return Task(twin_model(twin), "bridge", None, (), "", **fields)  # type: ignore[arg-type]


def _faults(*names: str) -> list[Fault]:
    from conformance.prove.ports import catalogue

    return catalogue(names)


def _proofs(task: Task, *names: str, note: str = "") -> list[Proof]:
    return [
        Proof("fault", name, "norm", task.model.id, task.subject, caught=True, note=note)
        for name in names
    ]


def test_ports_come_in_the_order_of_what_they_add() -> None:
    twins = ("qwen2", "mistral", "gpt2", "mixtral", "mistral")
    tasks = [_task(twin) for twin in twins]
    # Mixtral has all that Mistral has, and experts; GPT-2 a table of positions; Qwen 2 biases.
    once = [task.model.source.twin for task in ordered(tasks)]  # type: ignore[union-attr]
    assert once.index("gpt2") < 2
    assert once.count("mistral") <= 1, "a second port of a build adds nothing"
    twice = [task.model.source.twin for task in ordered(tasks, 2)]  # type: ignore[union-attr]
    assert len(once) < len(twice) <= len(tasks)


def test_ports_of_another_subject_are_apart() -> None:
    bridge = _task("gpt2")
    hooked = Task(bridge.model, "hooked", None, (), "")
    assert list(ordered([bridge, hooked])) == [bridge, hooked]
    assert list(ordered([bridge, bridge])) == [bridge]


def test_a_port_is_given_what_is_still_wanted() -> None:
    tasks = [_task("gpt2"), _task("mixtral"), _task("gpt2", seed=3)]
    cover = Cover(tasks, _faults("norm_shared", "experts_swapped", "norm_upcast_lost"), 1)
    given = iter(cover)
    first = next(given)
    assert first.faults == ("norm_shared", "experts_swapped"), "an upcast is lost in bfloat16 only"
    cover.add(_proofs(first, "norm_shared"))
    cover.add(_proofs(first, "experts_swapped", note="could not be put in"))
    second = next(given)
    assert second.model.id != first.model.id
    assert second.faults == ("experts_swapped",)
    assert cover.said() == ["bridge: 1 of 2 entries in 1 port(s); in fewer: experts_swapped (0)"]
    cover.add(_proofs(second, "experts_swapped"))
    assert cover.said() == ["bridge: 2 of 2 entries in 1 port(s)"]
    assert [task.seed for task in given] == [3], "further seeds are judged unfaulted all the same"


def test_a_task_is_asked_for_when_it_can_begin(monkeypatch: pytest.MonkeyPatch) -> None:
    def work(task: Task) -> Outcome:
        return Outcome(task.model.id, task.subject, tuple(_proofs(task, *task.faults)))

    monkeypatch.setattr(command, "work", work)
    tasks = [_task("gpt2"), _task("mixtral"), _task("falcon-7b")]
    cover = Cover(tasks, _faults("norm_shared"), 1)
    begun: list[str] = []
    for outcome in command.outcomes(cover, 1, lambda task: begun.append(task.model.id)):
        cover.add(outcome.proofs)
    assert len(begun) == 1, "all is proven in the first"
