"""Which cases the options leave, and what is said of names that do not exist."""

from __future__ import annotations

from pathlib import Path

import pytest
from fakes import fake_model

from conformance.checks.names import CHECKS
from conformance.selection import Case, SelectionError, known_subjects, select, with_dtype
from conformance.spec import Spec, SubjectSpec

SPEC = Spec(
    models=(
        fake_model("llama-a"),
        fake_model("llama-b", subjects=("bridge",)),
        fake_model("gpt2"),
    ),
    subjects={"mine": SubjectSpec(loader="package.module:function")},
    path=Path("models.toml"),
    sha256="0" * 64,
)


def test_everything_in_the_order_of_the_file() -> None:
    cases = select(SPEC)
    assert known_subjects(SPEC) == ("bridge", "hooked", "mine")
    assert len(cases) == (3 + 1 + 3) * len(CHECKS)
    assert [case.id for case in cases[:2]] == [
        "llama-a/bridge/weights",
        "llama-a/bridge/activations",
    ]
    models = [case.model for case in cases]
    assert models == sorted(models, key=["llama-a", "llama-b", "gpt2"].index)


def test_options_narrow_it_down() -> None:
    assert select(SPEC, models=["llama*"], subjects=["bridge"], checks=["loss"]) == (
        Case("llama-a", "bridge", "loss"),
        Case("llama-b", "bridge", "loss"),
    )
    assert {case.model for case in select(SPEC, subjects=["mine"])} == {"llama-a", "gpt2"}


def test_every_unknown_name_is_reported_with_what_was_meant() -> None:
    with pytest.raises(SelectionError) as caught:
        select(
            SPEC,
            models=["llama-c", "nothing*", "gpt2"],
            subjects=["Brige"],
            checks=["wieghts", "zzz"],
        )
    assert caught.value.message.splitlines() == [
        "--model: unknown model 'llama-c'; did you mean 'llama-b'?",
        "--model: unknown model 'nothing*'; known: llama-a, llama-b, gpt2",
        "--subject: unknown subject 'Brige'; did you mean 'bridge'?",
        "--check: unknown check 'wieghts'; did you mean 'weights'?",
        f"--check: unknown check 'zzz'; none of {len(CHECKS)} is like it",
    ]


def test_a_long_list_is_not_recited() -> None:
    many = SPEC.model_copy(update={"models": tuple(fake_model(f"m{n}") for n in range(20))})
    with pytest.raises(SelectionError, match="none of 20 is like it"):
        select(many, models=["zzz"])


def test_nothing_left_is_an_error() -> None:
    with pytest.raises(SelectionError, match="no model chosen lists mine among its subjects"):
        select(SPEC, models=["llama-b"], subjects=["mine"])


def test_a_dtype_is_every_model_s() -> None:
    given = Spec(
        models=(fake_model("a"), fake_model("b", dtype="float16")),
        subjects={},
        path=Path("models.toml"),
        sha256="0" * 64,
    )
    assert [m.dtype for m in with_dtype(given, "bfloat16").models] == ["bfloat16", "bfloat16"]
    assert with_dtype(given, None) is given


@pytest.mark.parametrize(
    ("asked", "said"),
    [
        ("bf16", "did you mean 'bfloat16'?"),
        ("float-32", "did you mean 'float32'?"),
        ("int8", "known: float32, bfloat16, float16, float64"),
    ],
)
def test_an_unknown_dtype_is_refused_with_what_was_meant(asked: str, said: str) -> None:
    with pytest.raises(SelectionError) as caught:
        with_dtype(SPEC, asked)
    assert caught.value.message == f"--dtype: unknown dtype {asked!r}; {said}"
