"""The covering selection: which ports come first, and what each is given."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from twins import twin_model
from typer.testing import CliRunner

from conformance.cli import app
from conformance.prove import command
from conformance.prove.command import Outcome, Task
from conformance.prove.cover import PORTS_EACH, Cover
from conformance.prove.proof import Proof

if TYPE_CHECKING:
    from conformance.faults import Fault


def _task(twin: str, **fields: object) -> Task:
    return Task(twin_model(twin), "bridge", None, (), "", **fields)  # type: ignore[arg-type]


def _faults(*names: str) -> list[Fault]:
    from conformance.prove.ports import catalogue

    return catalogue(names)


def _add(cover: Cover, task: Task, *names: str) -> None:
    cover.add(task.model.id, task.subject, names, ran=True)


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
    cover.add(first.model.id, first.subject, (), ran=False)
    assert next(given).model.id != first.model.id
    assert len(_order(tasks)) == 1


def test_a_port_is_given_what_is_still_wanted() -> None:
    tasks = [_task("gpt2"), _task("mixtral"), _task("gpt2", seed=3)]
    cover = Cover(tasks, _faults("norm_shared", "experts_swapped", "norm_upcast_lost"), 1)
    given = iter(cover)
    first = next(given)
    assert first.faults == ("norm_shared", "experts_swapped"), "an upcast is lost in bfloat16 only"
    _add(cover, first, "norm_shared")
    second = next(given)
    assert second.model.id != first.model.id
    assert second.faults == ("experts_swapped",)
    assert cover.said() == ["bridge: 1 of 2 entries in 1 port(s); in fewer: experts_swapped (0)"]
    _add(cover, second, "experts_swapped")
    assert cover.said() == ["bridge: 2 of 2 entries in 1 port(s)"]
    assert [task.seed for task in given] == [3], "further seeds are judged unfaulted all the same"


def test_a_task_is_asked_for_when_it_can_begin() -> None:
    def work(task: Task) -> Outcome:
        return Outcome(task.model.id, task.subject)

    tasks = [_task("gpt2"), _task("mixtral"), _task("falcon-7b")]
    cover = Cover(tasks, _faults("norm_shared"), 1)
    begun: list[str] = []
    for outcome in command.outcomes(cover, 1, lambda task: begun.append(task.model.id), work):
        cover.add(outcome.model, outcome.subject, ["norm_shared"], ran=True)
    assert len(begun) == 1, "all is proven in the first"


def test_what_could_not_be_put_in_is_not_proven() -> None:
    proof = Proof("fault", "norm_shared", "norm", "m", "bridge", caught=True)
    notes = ("", "could not be put in: KeyError")
    proofs = [dataclasses.replace(proof, fault=f"f{i}", note=n) for i, n in enumerate(notes)]
    unfaulted = dataclasses.replace(proof, kind="unfaulted", fault="none")
    assert Outcome("m", "bridge", (unfaulted, *proofs)).put_in == ("f0",)


@pytest.mark.parametrize(
    ("args", "cover"),
    [
        ((), PORTS_EACH),
        (("--subject", "bridge"), PORTS_EACH),
        (("--cover", "1"), 1),
        (("--every",), None),
        (("--model", "gpt2-twin"), None),
        (("--fault", "norm_shared"), None),
        (("--fault", "norm_shared", "--cover", "3"), 3),
    ],
)
@pytest.mark.parametrize("causes", [False, True])
def test_what_is_not_narrowed_is_covered(
    monkeypatch: pytest.MonkeyPatch, args: tuple[str, ...], cover: int | None, causes: bool
) -> None:
    """``conformance prove`` alone takes minutes; all of it must be asked for."""
    given: list[object] = []

    def run(*_: object, **options: object) -> int:
        given.append(options["cover"])
        return 0

    monkeypatch.setattr(
        f"conformance.prove.{'causes' if causes else 'command'}.run", run, raising=True
    )
    result = CliRunner().invoke(app, ["prove", *args, *(["--causes"] if causes else [])])
    assert result.exit_code == 0, result.output
    assert given == [cover]


def test_of_two_ports_that_bring_as_much_the_shorter_is_taken(tmp_path: Path) -> None:
    from conformance.spec import load_spec

    spec = load_spec(Path(__file__).parents[1] / "models.toml")
    twins = ["gemma3-official-twin", "gemma3-twin"]
    todo = command.tasks(spec, twins, ["bridge"], (), tmp_path)
    assert [task.model.id for task in todo] == twins, "the longest first, where all are run"
    cover = Cover(todo[::-1], _faults("norm_shared"), 1)
    assert next(iter(cover)).model.id == "gemma3-twin"
