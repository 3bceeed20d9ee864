"""``conformance vary``: the space, the rows, the search and its shrinking, and what is written."""

from __future__ import annotations

import dataclasses
import itertools
import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from fakes import LINK, defect, ledger_toml, models_toml, shows
from typer.testing import CliRunner

from conformance.checkpoints.twin_catalogue import TWINS
from conformance.errors import ConformanceError, RecordsError, SpecError
from conformance.spec import load_spec
from conformance.vary.command import Options, explore
from conformance.vary.explore import Budget, Explorer
from conformance.vary.known import Known, meets
from conformance.vary.pairs import Pairs
from conformance.vary.records import Difference, Failure, Judged, read
from conformance.vary.space import Factor, Space, key, space_from, space_of, twin_of
from conformance.vary.tables import markdown, page_from, runs

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from conformance.spec import Spec
    from conformance.vary.space import Choice

LLAMA: dict[str, Any] = {
    "hidden_size": 48,
    "num_hidden_layers": 3,
    "num_attention_heads": 6,
    "num_key_value_heads": 2,
    "hidden_act": "silu",
    "rms_norm_eps": 1e-5,
    "tie_word_embeddings": False,
    "rope_parameters": {"rope_type": "default", "rope_theta": 10000.0},
    "attention_bias": False,
    "attention_dropout": 0.0,
    "head_dim": 8,
    "riddle": 3,
}


# --- the space ------------------------------------------------------------------------------------


@pytest.mark.parametrize("twin", ["llama", "gemma3", "falcon-7b", "mpt", "deepseek-v3", "gpt2"])
def test_every_field_is_varied_or_said_not_to_be(twin: str) -> None:
    space = space_of(twin)
    varied = {name for f in space.factors for name in (f.name, f.name.split(".")[0])}
    said = {name.split(".")[0] for name in (*space.left_out, *space.not_varied)}
    assert set(space.base) <= varied | said
    assert all(space.left_out.values())
    assert all(f.values for f in space.factors)


def test_a_field_that_no_rule_knows_is_not_dropped() -> None:
    space = space_from("llama", "LlamaForCausalLM", LLAMA)
    assert space.not_varied["riddle"] == "a number"
    assert space.left_out["attention_dropout"] == "off when a model is judged"
    assert space.labels()["num_key_value_heads"] == ("1", "6")
    assert space.labels()["attention_bias"] == ("True",)
    assert "silu" not in space.labels()["hidden_act"]
    assert space.labels()["head_dim"] == ("12",)


def test_a_configuration_sets_what_it_says_and_nothing_else() -> None:
    space = space_from("llama", "LlamaForCausalLM", LLAMA)
    assert space.config({}) == {}
    assert space.config({"attention_bias": "True"}) == {"attention_bias": True}
    rope = {"rope_parameters.rope_type": "linear", "rope_parameters.rope_theta": "500000.0"}
    assert space.config(rope) == {
        "rope_parameters": {"rope_theta": 500000.0, "rope_type": "linear", "factor": 4.0}
    }
    assert space.words({"head_dim": "12", "attention_bias": "True"}) == (
        "attention_bias=True, head_dim=12"
    )


def test_another_type_of_rotary_positions_keeps_nothing_of_the_first() -> None:
    yarn = {"rope_type": "yarn", "rope_theta": 10000.0, "factor": 4.0, "beta_fast": 32.0}
    space = space_from("llama", "LlamaForCausalLM", {**LLAMA, "rope_parameters": yarn})
    assert space.config({"rope_parameters.rope_type": "default"}) == {
        "rope_parameters": {"rope_theta": 10000.0, "rope_type": "default"}
    }


def test_longrope_has_a_factor_for_each_pair_that_is_rotated() -> None:
    space = space_from("llama", "LlamaForCausalLM", LLAMA)
    changes = space.config({"rope_parameters.rope_type": "longrope", "head_dim": "12"})
    assert changes["rope_parameters"]["short_factor"] == [1.0, 1.125, 1.25, 1.375, 1.5, 1.625]
    assert len(changes["rope_parameters"]["long_factor"]) == 6


def test_rotary_positions_by_kind_of_layer_and_nested_configs() -> None:
    own = {"full_attention": {"rope_type": "default", "rope_theta": 1e6}}
    base = {**LLAMA, "rope_parameters": own, "attn_config": {"alibi": True}}
    space = space_from("x", "X", base, ("attn_config",))
    at = "rope_parameters.full_attention.rope_type"
    assert space.config({at: "linear", "attn_config.alibi": "False"}) == {
        "attn_config": {"alibi": False},
        "rope_parameters": {
            "full_attention": {"rope_theta": 1e6, "rope_type": "linear", "factor": 4.0}
        },
    }


def test_a_window_is_set_with_what_switches_it_on() -> None:
    base = {**LLAMA, "use_sliding_window": False, "sliding_window": None, "max_window_layers": 28}
    space = space_from("qwen2", "Qwen2ForCausalLM", base)
    assert space.config({"sliding_window": "in the last layer"}) == {
        "use_sliding_window": True,
        "sliding_window": 12,
        "max_window_layers": 2,
    }
    assert "use_sliding_window" not in space.labels()


def test_a_window_is_in_the_layers_that_its_value_names() -> None:
    """``max_window_layers`` is counted from either end, or there is no such field."""
    from transformers import Qwen2Config, Qwen2MoeConfig, Qwen3Config, Qwen3MoeConfig

    for kind in (Qwen2Config, Qwen3Config, Qwen2MoeConfig):
        base = kind(num_hidden_layers=3).to_dict()
        space = space_from("qwen", "QwenForCausalLM", base)
        for label, kinds in {"in every layer": 0, "in the last layer": 2}.items():
            config = kind(**{**base, **space.config({"sliding_window": label})})
            windows = [one == "sliding_attention" for one in config.layer_types]
            assert windows == [layer >= kinds for layer in range(3)], (kind, label)
            assert config.sliding_window == 12
    base = Qwen3MoeConfig(num_hidden_layers=3).to_dict()
    space = space_from("qwen3-moe", "Qwen3MoeForCausalLM", base)
    assert space.labels()["sliding_window"] == ("in every layer",)
    config = Qwen3MoeConfig(**{**base, **space.config({"sliding_window": "in every layer"})})
    assert config.sliding_window == 12


def test_heads_that_are_not_varied_stay_the_twin_s() -> None:
    """SmolLM3 has 16 heads unless its config says otherwise, the twin 6."""
    from conformance.checkpoints.shrink import shrink
    from conformance.checkpoints.twin_catalogue import TWINS

    for twin in ("smollm3", "starcoder2", "qwen3", "falcon-7b", "gemma3"):
        space, entry = space_of(twin), TWINS[twin]
        own = shrink(entry.model_type, entry.config)
        factor = next(f for f in space.factors if "kv_heads" in f.name or "key_value" in f.name)
        for label in factor.values:
            changes = space.config({factor.name: label})
            config = shrink(entry.model_type, {**entry.config, **changes})
            assert getattr(config, factor.name) == int(label)
            assert config.num_attention_heads == own.num_attention_heads
            assert getattr(config, "head_dim", None) == getattr(own, "head_dim", None)


def test_a_head_of_what_has_no_attention_is_not_varied() -> None:
    space = space_of("mamba2")
    assert space.not_varied["head_dim"] == "a number"
    base = {**LLAMA, "head_dim": None}
    assert space_from("llama", "L", base).labels()["head_dim"] == ("12",)


def test_every_twin_has_a_space() -> None:
    from conformance.checkpoints.twin_catalogue import TWINS

    for twin in TWINS:
        assert space_of(twin).factors, twin


def test_only_some_fields_may_vary() -> None:
    space = space_from("llama", "LlamaForCausalLM", LLAMA)
    assert [f.name for f in space.only(["rope_th*", "*bias"]).factors] == [
        "rope_parameters.rope_theta",
        "attention_bias",
    ]
    with pytest.raises(ConformanceError, match="no field 'bais' varies") as caught:
        space.only(["bais"])
    assert "attention_bias" in caught.value.hint


def test_an_architecture_stands_for_its_first_twin() -> None:
    assert twin_of("LlamaForCausalLM") == "llama"
    assert twin_of("llama-bias") == "llama-bias"
    with pytest.raises(ConformanceError, match="did you mean LlamaForCausalLM"):
        twin_of("LamaForCausalLM")


# --- rows -----------------------------------------------------------------------------------------

LABELS = {"a": ("1", "2"), "b": ("x",), "c": ("p", "q", "r"), "d": ("t",)}


def rows(pairs: Pairs) -> list[dict[str, str]]:
    found = []
    while (row := pairs.row()) is not None:
        pairs.cover(row)
        found.append(row)
    return found


def test_rows_hold_every_pair_in_far_fewer_than_all_configurations() -> None:
    pairs = Pairs(LABELS)
    found = rows(pairs)
    held = {frozenset(p) for row in found for p in itertools.combinations(row.items(), 2)}
    assert held >= pairs.all
    assert (pairs.covered, pairs.open) == (len(pairs.all), 0)
    assert len(found) == 6, "as many as the two largest factors need"
    assert found == rows(Pairs(LABELS)), "the same seed gives the same rows"


def test_what_breaks_is_put_together_no_more() -> None:
    pairs = Pairs(LABELS)
    pairs.avoid({"b": "x"})
    pairs.avoid({"a": "1", "c": "q"})
    for row in rows(pairs):
        assert "b" not in row
        assert not {("a", "1"), ("c", "q")} <= set(row.items())
    assert pairs.open == 0
    assert pairs.covered < len(pairs.all)


# --- exploring, with a judge that knows what is wrong ---------------------------------------------

SPACE = Space(
    "gpt2",
    "GPT2LMHeadModel",
    dict.fromkeys("abcdef"),
    tuple(
        Factor(name, "default", {label: {name: label} for label in labels})
        for name, labels in {**LABELS, "e": ("u",), "f": ("v", "w")}.items()
    ),
)
#: What is wrong with a configuration: where it holds these values, this differs.
Wrong = dict[frozenset[tuple[str, str]], Difference]


def difference(check: str = "logits", kind: str = "logits") -> Difference:
    return Difference(check, f"blocks.0.{kind}", kind, "sixteen", 1.0, 1e-12)


def wrong(*items: tuple[Choice, Difference]) -> Wrong:
    return {key(choice): d for choice, d in items}


class Judge:
    """Answers from what is wrong, and remembers what it was asked."""

    def __init__(self, faults: Wrong, refused: tuple[Choice, ...] = ()) -> None:
        self.faults, self.refused = faults, [key(c) for c in refused]
        self.asked: list[dict[str, str]] = []

    def __call__(self, choice: Mapping[str, Any]) -> Judged:
        self.asked.append({k: str(v) for k, v in choice.items()})
        held = key(self.asked[-1])
        if any(bad <= held for bad in self.refused):
            return Judged("refused", "transformers", "no such thing")
        found = tuple(d for bad, d in self.faults.items() if bad <= held)
        return Judged("failed" if found else "passed", differences=found, effect=1.0)


def explored(judge: Judge, **fields: Any) -> Explorer:
    budget = Budget(fields.pop("limit", None), fields.pop("seconds", None))
    explorer = Explorer(SPACE, judge, budget, **fields)
    explorer.run()
    return explorer


def test_a_right_port_passes_every_pair() -> None:
    explorer = explored(judge := Judge({}))
    assert not explorer.found
    assert explorer.pairs.open == 0
    assert explorer.ended == "every pair is covered"
    assert len(judge.asked) == len({key(c) for c in judge.asked}), "each is judged once"
    assert judge.asked == (again := Judge({}), explored(again))[0].asked, "deterministic"


def test_one_wrong_value_is_found_alone_and_hides_no_other() -> None:
    faults = wrong(({"c": "q"}, difference()), ({"f": "w"}, difference("weights", "W_Q")))
    explorer = explored(judge := Judge(faults))
    assert [one.choice for one in explorer.found] == [{"c": "q"}, {"f": "w"}]
    assert not [c for c in judge.asked if len(c) > 1 and (c.get("c") == "q" or c.get("f") == "w")]
    assert explorer.pairs.open == 0


def test_two_values_wrong_together_are_found_by_a_row_and_shrunk_to_those() -> None:
    explorer = explored(Judge(wrong(({"a": "2", "f": "w"}, difference()))))
    (one,) = explorer.found
    assert one.choice == {"a": "2", "f": "w"}
    assert one.minimal
    assert one.difference == difference()


def test_shrinking_does_not_slip_to_another_failure() -> None:
    faults = wrong(
        ({"a": "1", "c": "p"}, difference("weights", "W_Q")),
        ({"a": "1", "e": "u"}, difference("loss", "logits")),
        ({"d": "t", "f": "v", "b": "x"}, difference("logits")),
    )
    found = {key(one.choice): one.difference for one in explored(Judge(faults)).found}
    assert found == faults


def test_three_values_wrong_together_are_searched_for_by_hypothesis() -> None:
    bad = {"a": "1", "c": "r", "f": "v"}
    rowless = explored(Judge(wrong((bad, difference()))), limit=None)
    explorer = explored(Judge(wrong((bad, difference()))), limit=150)
    assert not rowless.found or rowless.found[0].choice == bad
    assert [one.choice for one in explorer.found] == [bad]
    assert explorer.found[0].minimal


def test_what_transformers_refuses_is_left_out_of_the_rows() -> None:
    explorer = explored(Judge({}, refused=({"b": "x", "d": "t"}, {"e": "u"})))
    assert {key(one.choice) for one in explorer.found} == {
        key({"b": "x", "d": "t"}),
        key({"e": "u"}),
    }
    assert all(one.difference is None for one in explorer.found)
    assert explorer.pairs.open == 0
    assert explorer.excluded() > 0


def test_what_fails_in_the_twin_itself_is_not_blamed_on_a_value() -> None:
    own = difference("activations", "attn.scores")
    faults = {frozenset(): own, key({"b": "x"}): difference()}
    explorer = explored(Judge(faults), limit=100)
    assert [one.choice for one in explorer.found] == [{}, {"b": "x"}]
    assert explorer.ended
    assert explorer.found[0].difference == own


def test_a_twin_whose_logits_are_wrong_ends_it() -> None:
    explorer = explored(judge := Judge({frozenset(): difference()}))
    assert judge.asked == [{}]
    assert "no variant of it can be judged" in explorer.ended


def test_the_limit_counts_what_is_explored_and_not_what_is_shrunk() -> None:
    explorer = explored(judge := Judge(wrong(({"a": "2", "f": "w"}, difference()))), limit=14)
    assert explorer.explored == 14
    assert len(judge.asked) >= 14
    assert explorer.ended == "the limit of 14 configurations"


def test_time_ends_exploring_and_says_what_is_not_smallest() -> None:
    ticks = itertools.count()
    faults = wrong(({"a": "2", "f": "w"}, difference()))
    found = [explored(Judge(faults), seconds=s, clock=lambda: next(ticks)) for s in (3, 30, 45)]
    assert found[0].ended == "the limit of 3 seconds"
    assert all(one.minimal or one.choice for e in found for one in e.found)


def test_a_value_without_effect_is_said_to_have_none() -> None:
    def judge(choice: Choice) -> Judged:
        return Judged("passed", effect=0.0 if "b" in choice else None if "d" in choice else 1.0)

    explorer = Explorer(SPACE, judge, Budget())
    explorer.run()
    assert explorer.effectless(1e-12) == {"b": ("x",)}


# --- what the ledger knows ------------------------------------------------------------------------


def test_a_condition_is_about_fields_of_the_config() -> None:
    config = {"bias": True, "n": 1, "rope": {"type": "yarn"}, "cap": None}
    assert meets(config, {"bias": True, "rope.type": ["linear", "yarn"], "n": {"not": [2, 3]}})
    assert meets(config, {"cap": "none"})
    for no in ({"bias": False}, {"bias": 1}, {"n": True}, {"rope.type": "linear"}, {"x": 1}):
        assert not meets(config, no), no
    assert not meets(config, {"rope.kind": {"not": ["yarn"]}}), "a field that it lacks"
    assert not meets(config, {"n": {"not": [1]}})


def spec(tmp_path: Path, *variants: str) -> Spec:
    (tmp_path / "known.toml").write_text(ledger_toml(*variants))
    (tmp_path / "models.toml").write_text(models_toml(["one"], top='ledger = "known.toml"'))
    return load_spec(tmp_path / "models.toml")


def variant(when: str, checks: str = '["logits"]', subject: str = "bridge", **more: str) -> str:
    rest = "".join(f"{name} = {json.dumps(value)}\n" for name, value in more.items())
    return (
        f'[[variant]]\nreason = "known"\nlink = "{LINK}"\nsubject = "{subject}"\n{rest}'
        f'architectures = ["GPT2LMHeadModel"]\nchecks = {checks}\nwhen = {when}\n'
    )


def test_an_entry_knows_a_failure_by_config_check_and_version(tmp_path: Path) -> None:
    loaded = spec(tmp_path, variant('{ c = "q" }', transformer_lens="<4"))
    old, new = ({"transformer-lens": v, "transformers": "5.0"} for v in ("3.9.0", "4.3.0"))
    known = Known(loaded, "GPT2LMHeadModel", "bridge", versions=old)
    assert known.entry({"c": "q"}, difference()) is not None
    assert known.entry({"c": "r"}, difference()) is None
    assert known.entry({"c": "q"}, difference("weights")) is None
    assert not Known(loaded, "GPT2LMHeadModel", "bridge", versions=new).entries
    assert not Known(loaded, "GPT2LMHeadModel", "hooked", versions=old).entries
    assert known.contradicted([("c=q, e=u", {"c": "q"}, Judged("passed"))]) == (
        f"{LINK} (when c = 'q') passes with c=q, e=u",
    )
    assert not known.contradicted([("c=q", {"c": "q"}, Judged("refused", "port"))])


def test_what_a_run_expects_of_the_twin_is_known_of_the_twin_itself(tmp_path: Path) -> None:
    twin = next(iter(TWINS))
    loaded = spec(tmp_path, defect(shows("logits", "one"), shows("hooks", "one", kinds=["z"])))
    known = Known(loaded, "GPT2LMHeadModel", "bridge", twin)
    assert known.link({}, difference(), own=True) == LINK
    assert known.link({}, difference("processing"), own=True) == LINK
    assert known.link({"c": "q"}, difference()) is None
    assert known.link({}, difference("weights"), own=True) is None
    assert known.link({}, difference("hooks", "resid_mid"), own=True) is None
    assert Known(loaded, "GPT2LMHeadModel", "bridge", "x").link({}, difference(), own=True) is None


def test_a_wrong_entry_says_what_is_wrong(tmp_path: Path) -> None:
    with pytest.raises(SpecError) as caught:
        spec(tmp_path, variant('{ c = "q" }', '["logit"]', "brigde").replace("GPT2", "GTP2"))
    for said in ("unknown check 'logit'", "unknown subject 'brigde'", "no model is a GTP2LMHead"):
        assert said in caught.value.message
    with pytest.raises(SpecError, match="when"):
        spec(tmp_path, variant("{}"))


# --- what is written ------------------------------------------------------------------------------


def explain(failure: Failure, logits_only: bool) -> Failure:
    return dataclasses.replace(failure, cause="a cause", script=f"repro_{failure.number:03d}.py")


def command(
    tmp_path: Path,
    judge: Callable[[Mapping[str, Any]], Judged],
    *variants: str,
    **options: Any,
) -> tuple[int, list[str]]:
    said: list[str] = []
    status = explore(
        spec(tmp_path, *variants),
        SPACE,
        Options(limit=None, **options),
        tmp_path / "out",
        said.append,
        judge,
        explain,
    )
    return status, said


FAULTS = wrong(
    ({"c": "p"}, difference()), ({"c": "q"}, difference()), ({"a": "2", "f": "w"}, difference())
)


def test_failures_of_one_kind_are_one_and_each_is_the_smallest(tmp_path: Path) -> None:
    status, said = command(tmp_path, Judge(FAULTS))
    assert status == 1
    run = read(tmp_path / "out" / "vary.jsonl")
    assert [f.choice for f in run.failures] == [{"c": "p"}, {"a": "2", "f": "w"}]
    assert run.failures[0].also == ({"c": "q"},)
    assert run.failures[1].config == {"a": "2", "f": "w"}
    assert run.result is not None
    assert (run.result.exit_code, run.result.open) == (1, 0)
    assert sum(run.result.outcomes.values()) == len(run.configurations)
    text = "\n".join(said)
    for words in (
        "FAILS: c=p\n  logits at blocks.0.logits, 1.0e+00 where 1.0e-12 is allowed",
        "  and so does c=q",
        "  cause: a cause",
        "  script: repro_002.py",
        "2 distinct failures, 2 not known",
    ):
        assert words in text


def test_known_failures_are_no_news(tmp_path: Path) -> None:
    entries = variant('{ c = ["p", "q"] }'), variant('{ a = "2", f = "w" }')
    status, said = command(tmp_path, Judge(FAULTS), *entries)
    assert status == 0, said
    assert f"  known: {LINK}" in said
    assert command(tmp_path, Judge(FAULTS), entries[0])[0] == 1
    assert command(tmp_path, Judge(FAULTS), variant('{ c = "p" }'), entries[1])[0] == 1, "c=q"


def test_an_entry_that_fails_no_more_is_said(tmp_path: Path) -> None:
    status, said = command(tmp_path, Judge({}), variant('{ e = "u" }'))
    assert status == 1
    expected = f"{LINK} (when e = 'u') passes with e=u"
    assert f"XPASS: the ledger expects a failure where there is none: {expected}" in said


def test_a_failure_of_the_harness_is_none_of_the_port(tmp_path: Path) -> None:
    def judge(config: Mapping[str, Any]) -> Judged:
        return Judged("error", "", "it broke") if config.get("e") else Judged("passed")

    status, said = command(tmp_path, judge)
    assert status == 3
    assert "e=u: THE HARNESS FAILED: it broke" in said


class Interrupting(Judge):
    """Stops after so many configurations, as Ctrl-C does."""

    def __init__(self, faults: Wrong, after: int) -> None:
        super().__init__(faults)
        self.after = after

    def __call__(self, choice: Mapping[str, Any]) -> Judged:
        if len(self.asked) == self.after:
            raise KeyboardInterrupt
        return super().__call__(choice)


def test_an_interruption_loses_nothing_and_is_resumed(tmp_path: Path) -> None:
    with pytest.raises(KeyboardInterrupt):
        command(tmp_path, Interrupting(FAULTS, 9))
    path = tmp_path / "out" / "vary.jsonl"
    cut = read(path)
    assert (len(cut.configurations), cut.result) == (9, None)
    path.write_text(path.read_text() + '{"kind": "configur')  # as a killed process leaves it
    command(tmp_path, rest := Judge(FAULTS), resume=True)
    resumed = read(path)
    whole = Judge(FAULTS)
    command(tmp_path, whole)
    assert whole.asked[:9] == [dict(c.config) for c in cut.configurations]
    assert rest.asked == whole.asked[9:]
    once = read(path)
    assert once.configurations == resumed.configurations
    assert once.failures == resumed.failures
    assert list((tmp_path / "out").glob("vary.2*.jsonl")), "an older run is kept aside"


def test_another_space_is_not_resumed(tmp_path: Path) -> None:
    command(tmp_path, Judge({}))
    with pytest.raises(RecordsError, match="another seed"):
        command(tmp_path, Judge({}), resume=True, seed=1)


def test_the_page_is_made_of_the_files_alone(tmp_path: Path) -> None:
    def judge(config: Mapping[str, Any]) -> Judged:
        if config.get("e"):
            return Judged("refused", "port", "NotImplementedError: no u")
        return Judge(FAULTS)(config)

    command(tmp_path, judge, variant('{ c = ["p", "q"] }'))
    page = markdown(runs([tmp_path]))
    assert "| GPT2LMHeadModel | gpt2 | bridge 4" in page or "| bridge 3" in page
    assert "| `c=p` or `c=q` | logits at `blocks.0.logits`, 1.0e+00 |" in page
    assert "`e=u`: the port: NotImplementedError: no u" in page
    with pytest.raises(RecordsError, match=r"no vary\.jsonl"):
        runs([tmp_path / "nowhere"])


def test_a_page_keeps_the_rows_of_what_is_not_explored_again(tmp_path: Path) -> None:
    text = (Path(__file__).parents[1] / "docs" / "variants.md").read_text(encoding="utf-8")
    before = page_from(text)
    assert before.markdown() == text
    command(tmp_path, Judge(FAULTS), variant('{ c = ["p", "q"] }'))
    found = runs([tmp_path])
    alone, page = page_from(markdown(found)), page_from(markdown(found, before))
    mine = {(line.architecture, line.subject) for line in alone.explored}
    for section in ("explored", "fails", "refused", "fields"):
        lines = getattr(page, section)
        assert list(lines) == sorted(lines, key=lambda line: line.order)
        others = [line for line in lines if (line.architecture, line.subject) not in mine]
        old = getattr(before, section)
        assert others == [li for li in old if (li.architecture, li.subject) not in mine]
        # And of its own it has nothing but what it has now.
        assert [line for line in lines if line not in others] == list(getattr(alone, section))
    # Once more changes nothing.
    assert markdown(found, page) == page.markdown()
    # What was renamed is not known to be the same: both rows stay.
    renamed = page_from(text.replace("| GPT2LMHeadModel |", "| GPT2Renamed |"))
    assert len(page_from(markdown(found, renamed)).explored) == len(renamed.explored) + 1


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (("# Variants of", "# Variations of"), "no page of variants"),
        (("| gpt2 | bridge", "| bridge"), r"line \d+ has 13 cells"),
        (("- GptOssForCausalLM, bridge 4.3.0, ", "- GptOss: "), "names no architecture"),
        ((" with transformers ", " with "), "names no version"),
    ],
)
def test_what_is_no_page_is_not_kept(change: tuple[str, str], said: str) -> None:
    text = (Path(__file__).parents[1] / "docs" / "variants.md").read_text(encoding="utf-8")
    assert change[0] in text
    with pytest.raises(RecordsError, match=said):
        page_from(text.replace(*change))


def test_the_command_keeps_rows_where_it_is_asked_to(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from conformance.cli import app

    command(tmp_path, Judge(FAULTS))
    (tmp_path / "models.toml").write_text(models_toml(["one"]))
    monkeypatch.chdir(tmp_path)
    text = (Path(__file__).parents[1] / "docs" / "variants.md").read_text(encoding="utf-8")
    page = tmp_path / "page.md"
    page.write_text(text, encoding="utf-8")
    arguments = ["vary", "--table", "--out", "out", "--into", "page.md"]
    assert CliRunner().invoke(app, [*arguments, "--keep"]).exit_code == 0
    kept = page_from(page.read_text(encoding="utf-8"))
    assert {line.architecture for line in kept.explored} == {
        line.architecture for line in page_from(text).explored
    }
    assert CliRunner().invoke(app, arguments).exit_code == 0
    assert len(page_from(page.read_text(encoding="utf-8")).explored) == 1
    page.write_text("# Another\n", encoding="utf-8")
    refused = CliRunner().invoke(app, [*arguments, "--keep"])
    assert refused.exit_code == 2
    assert "page.md: no page of variants" in refused.output
    assert page.read_text(encoding="utf-8") == "# Another\n"


# --- the command line -----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["LamaForCausalLM"], "did you mean LlamaForCausalLM"),
        (["llama", "--subject", "nobody"], "no subject named 'nobody'"),
        ([], "name an architecture"),
        (["llama", "--table"], "--table takes no architecture"),
        (["llama", "--into", "x.md"], "--into needs --table"),
        (["--table", "--keep"], "--keep needs --into"),
        (["--table", "--out", "nowhere"], "no vary.jsonl in nowhere"),
    ],
)
def test_misuse_is_told_and_ends_with_2(
    arguments: list[str], said: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from conformance.cli import app

    (tmp_path / "models.toml").write_text(models_toml(["one"]))
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "200")
    result = CliRunner().invoke(app, ["vary", *arguments])
    assert result.exit_code == 2, result.output
    assert said in " ".join(result.output.replace("│", " ").split())
