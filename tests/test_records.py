"""What is written can be read, also when it was cut short; what is damaged is said to be."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
from fakes import fake_model
from hypothesis import given
from hypothesis import strategies as st

from conformance import SEEDS
from conformance.errors import RecordsError
from conformance.recorder import Recorder, versions
from conformance.records import (
    OUTCOMES,
    SCHEMA_VERSION,
    Comparison,
    JudgementSummary,
    Verdict,
    read,
    to_json,
    verdict_from_dict,
)
from conformance.spec import Spec

SPEC = Spec(models=(fake_model("m"),), subjects={}, path=Path("/here/models.toml"), sha256="a" * 64)


def verdict(check: str = "logits", **fields: Any) -> Verdict:
    return Verdict("m", "bridge", check, **{"outcome": "passed", **fields})


numbers = st.floats(allow_nan=False) | st.none()
texts = st.text(st.characters(codec="utf-8"))
comparisons = st.builds(
    Comparison,
    judgement=st.sampled_from(["same_function", "exact"]),
    site=texts | st.none(),
    prompt=texts | st.none(),
    measured=st.floats(allow_nan=False),
    allowed=numbers,
    ok=st.booleans(),
    index=st.lists(st.integers(0, 9)).map(tuple) | st.none(),
    reference=numbers,
    subject=numbers,
    bound=texts,
    note=texts,
)
summaries = st.builds(
    JudgementSummary,
    compared=st.integers(0),
    failed=st.integers(0),
    measured=numbers,
    allowed=numbers,
    margin=numbers,
    site=texts | st.none(),
)
all_verdicts = st.builds(
    Verdict,
    model=texts,
    subject=texts,
    check=texts,
    outcome=st.sampled_from(OUTCOMES),
    verdict=st.dictionaries(texts, summaries, max_size=2),
    first_divergence=texts | st.none(),
    reason=texts | st.none(),
    duration_s=st.floats(0, 1e6),
    peak_bytes=st.integers(0) | st.none(),
    worst=st.lists(comparisons, max_size=2).map(tuple),
)


@given(all_verdicts)
def test_a_verdict_survives_the_way_through_a_file(original: Verdict) -> None:
    line = to_json(original)
    assert "\n" not in line
    assert verdict_from_dict(json.loads(line)) == original


def test_numbers_that_json_has_no_word_for() -> None:
    comparison = Comparison("exact", None, None, math.nan, math.inf, False, reference=-math.inf)
    line = to_json(verdict(worst=(comparison,), metrics={"kl": [math.nan]}))
    back = verdict_from_dict(json.loads(line, parse_constant=pytest.fail))
    assert math.isnan(back.worst[0].measured)
    assert back.worst[0].allowed == math.inf
    assert back.worst[0].reference == -math.inf


def test_an_unknown_outcome_is_refused() -> None:
    with pytest.raises(ValueError, match="is none of passed"):
        verdict(outcome="fine")


@pytest.mark.parametrize("data", [{}, {"model": "m"}, {"surplus": 1}])
def test_a_malformed_verdict_is_refused(data: dict[str, Any]) -> None:
    with pytest.raises(RecordsError, match="not a verdict record"):
        verdict_from_dict(data)


# --- a run's file ---


def test_a_complete_file(tmp_path: Path) -> None:
    recorder = Recorder(tmp_path / "deep" / "out", SPEC, 2, ("pytest", "-x"))
    recorder.add(verdict("weights"))
    recorder.add(verdict("logits", outcome="failed"))
    recorder.finish(1)
    records = read(recorder.path)
    header, footer = records.header, records.footer
    assert header.schema_version == SCHEMA_VERSION
    assert header.seeds == SEEDS
    assert (header.models_toml, header.models_toml_sha256) == ("/here/models.toml", "a" * 64)
    assert header.command == ("pytest", "-x")
    assert set(header.versions) >= {"python", "torch", "transformers", "transformer-lens"}
    assert header.platform
    assert [v.check for v in records.verdicts] == ["weights", "logits"]
    assert footer is not None
    assert (footer.exit_code, footer.outcomes) == (1, {"failed": 1, "passed": 1})
    assert not records.truncated
    assert records.missing == 0


def test_a_verdict_is_on_disk_at_once(tmp_path: Path) -> None:
    recorder = Recorder(tmp_path, SPEC, 2)
    recorder.add(verdict())
    records = read(recorder.path)
    assert len(records.verdicts) == 1
    assert records.truncated
    assert records.missing is None
    recorder.finish(0)
    assert read(recorder.path).missing == 1


def test_a_case_is_recorded_once(tmp_path: Path) -> None:
    recorder = Recorder(tmp_path, SPEC, 1)
    recorder.add(verdict())
    recorder.add(verdict(outcome="failed"))
    recorder.finish(0)
    assert [v.outcome for v in read(recorder.path).verdicts] == ["passed"]


@pytest.mark.parametrize("cut", range(1, 60, 7))
def test_a_write_cut_short_loses_its_line_only(tmp_path: Path, cut: int) -> None:
    recorder = Recorder(tmp_path, SPEC, 2)
    recorder.add(verdict("weights"))
    recorder.add(verdict("logits", reason="\N{EURO SIGN}" * 40))
    recorder._stream.close()
    raw = recorder.path.read_bytes()
    end = raw.rindex("\N{EURO SIGN}".encode()) + 3
    recorder.path.write_bytes(raw[: end - cut])
    records = read(recorder.path)
    assert records.truncated
    assert [v.check for v in records.verdicts] == ["weights"]


def test_odd_text_stays_on_its_line(tmp_path: Path) -> None:
    odd = "a\u2028b\x85c\x1cd\r\ne \udce9 f"
    recorder = Recorder(tmp_path, SPEC, 1)
    recorder.add(verdict(reason=odd))
    recorder.finish(0)
    assert read(recorder.path).verdicts[0].reason == odd


def test_an_earlier_run_is_kept(tmp_path: Path) -> None:
    for count in range(3):
        recorder = Recorder(tmp_path, SPEC, 1)
        recorder.add(verdict(duration_s=float(count)))
        recorder.finish(0)
    files = sorted(tmp_path.iterdir())
    assert len(files) == 3
    kept = [read(file).verdicts[0].duration_s for file in files]
    assert sorted(kept) == [0, 1, 2]
    assert read(tmp_path / "records.jsonl").verdicts[0].duration_s == 2


def test_an_earlier_file_that_is_damaged_is_kept_too(tmp_path: Path) -> None:
    tmp_path.joinpath("records.jsonl").write_text("not json\n")
    Recorder(tmp_path, SPEC, 1).finish(0)
    (kept,) = tmp_path.glob("records.2*.jsonl")
    assert kept.read_text() == "not json\n"


def test_a_directory_that_cannot_be_written(tmp_path: Path) -> None:
    tmp_path.joinpath("file").write_text("")
    with pytest.raises(RecordsError, match="--out"):
        Recorder(tmp_path / "file", SPEC, 1)


def test_versions_of_what_is_not_installed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("conformance.recorder._PACKAGES", ("no-such-package",))
    assert versions()["no-such-package"] == "not installed"


HEADER = {
    "kind": "header",
    "schema_version": SCHEMA_VERSION,
    "started": "2026-01-01T00:00:00+00:00",
    "versions": {},
    "platform": "",
    "seeds": {},
    "models_toml": "",
    "models_toml_sha256": "",
}


@pytest.mark.parametrize(
    ("lines", "message"),
    [
        ([], "empty"),
        (["{"], "line 1|:1:"),
        ([json.dumps({**HEADER, "schema_version": 99})], "not a header of schema version"),
        ([to_json(verdict())], "not a header"),
        ([json.dumps({**HEADER, "surplus": 1})], "surplus"),
        ([json.dumps(HEADER), "{broken", to_json(verdict())], ":2: "),
        ([json.dumps(HEADER), json.dumps({"kind": "novelty"})], "unknown kind 'novelty'"),
        ([json.dumps(HEADER), "[1]", ""], "not an object"),
        ([json.dumps(HEADER), json.dumps({"kind": "footer"})], "finished"),
    ],
)
def test_damage_is_reported(tmp_path: Path, lines: list[str], message: str) -> None:
    file = tmp_path / "records.jsonl"
    file.write_text("".join(f"{line}\n" for line in lines))
    with pytest.raises(RecordsError, match=message):
        read(file)


def test_a_missing_file(tmp_path: Path) -> None:
    with pytest.raises(RecordsError, match="No such file"):
        read(tmp_path / "records.jsonl")
