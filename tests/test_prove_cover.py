"""The covering selection: which ports come first, and what each is given."""

from __future__ import annotations

from typing import TYPE_CHECKING

from twins import twin_model

from conformance.prove import command
from conformance.prove.command import Outcome, Task
from conformance.prove.cover import Cover
from conformance.prove.proof import Proof

if TYPE_CHECKING:
    from conformance.faults import Fault


def _task(twin: str, **fields: object) -> Task:
    return Task(twin_model(twin), "bridge", None, (), "", **fields)  # type: ignore[arg-type]


def _faults(*names: str) -> list[Fault]:
    from conformance.prove.ports import catalogue

    return catalogue(names)


def _outcome(task: Task, *names: str, note: str = "") -> Outcome:
    proofs = [
        Proof("fault", name, "norm", task.model.id, task.subject, caught=True, note=note)
        for name in names
    ]
    return Outcome(task.model.id, task.subject, tuple(proofs))


def _order(tasks: list[Task], times: int = 1) -> list[str]:
    """Twins in the order in which they come, as long as nothing is proven."""
    cover = Cover(tasks, _faults("norm_shared"), times)
    return [task.model.id.removesuffix("-test") for task in cover]


def test_ports_come_in_the_order_of_what_they_add() -> None:
    tasks = [_task(twin) for twin in ("qwen2", "mistral", "gpt2", "mixtral")]
    tasks.append(Task(twin_model("mistral", id="mistral-again"), "bridge", None, (), ""))
    # Mixtral has all that Mistral has, and experts; GPT-2 a table of positions.
    once = _order(tasks)
    assert once.index("gpt2") < 2
    assert len(once) < len(tasks), "a second port of a build adds nothing"
    assert len(once) < len(_order(tasks, 2)) <= len(tasks)


def test_ports_of_another_subject_are_apart() -> None:
    bridge = _task("gpt2")
    hooked = Task(bridge.model, "hooked", None, (), "")
    given = list(Cover([bridge, hooked], _faults("norm_shared"), 1))
    assert [task.subject for task in given] == ["bridge", "hooked"]


def test_a_port_that_cannot_be_run_covers_nothing() -> None:
    again = twin_model("mistral", id="mistral-again")
    tasks = [_task("mistral"), Task(again, "bridge", None, (), "")]
    cover = Cover(tasks, _faults("norm_shared"), 1)
    given = iter(cover)
    first = next(given)
    cover.add(Outcome(first.model.id, first.subject, skipped="no such port"))
    assert next(given).model.id != first.model.id
    assert len(_order(tasks)) == 1


def test_a_port_is_given_what_is_still_wanted() -> None:
    tasks = [_task("gpt2"), _task("mixtral"), _task("gpt2", seed=3)]
    cover = Cover(tasks, _faults("norm_shared", "experts_swapped", "norm_upcast_lost"), 1)
    given = iter(cover)
    first = next(given)
    assert first.faults == ("norm_shared", "experts_swapped"), "an upcast is lost in bfloat16 only"
    cover.add(_outcome(first, "norm_shared"))
    cover.add(_outcome(first, "experts_swapped", note="could not be put in"))
    second = next(given)
    assert second.model.id != first.model.id
    assert second.faults == ("experts_swapped",)
    assert cover.said() == ["bridge: 1 of 2 entries in 1 port(s); in fewer: experts_swapped (0)"]
    cover.add(_outcome(second, "experts_swapped"))
    assert cover.said() == ["bridge: 2 of 2 entries in 1 port(s)"]
    assert [task.seed for task in given] == [3], "further seeds are judged unfaulted all the same"


def test_a_task_is_asked_for_when_it_can_begin() -> None:
    def work(task: Task) -> Outcome:
        return _outcome(task, *task.faults)

    tasks = [_task("gpt2"), _task("mixtral"), _task("falcon-7b")]
    cover = Cover(tasks, _faults("norm_shared"), 1)
    begun: list[str] = []
    for outcome in command.outcomes(
        cover, 1, lambda task: begun.append(task.model.id), command.work
    ):
        cover.add(outcome)
    assert len(begun) == 1, "all is proven in the first"
