"""Runs with all that a page shows, made without a model; and pages read back."""

from __future__ import annotations

import base64
import json
import math
import struct
from dataclasses import dataclass, field
from html.parser import HTMLParser
from typing import TYPE_CHECKING, Any

from made_runs import run, verdict, write

from conformance.checks.names import CHECKS
from conformance.recorder import keep_sample
from conformance.records import Comparison, JudgementSummary, Name, Records, Verdict

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

ALLOWED = 1e-12
KINDS = ("dense", "mixture of experts", "latent attention", "hybrid")
_VOID = frozenset({"meta", "link", "input", "br", "img", "hr"})
_WORDS = ("Call", " me", "</script>", "\n", "<b>", *"fghijkl")
_STREAM = ("resid_post", "attn_out", "mlp_out")
_PARTS = ("ln1", "attn", "ln2", "mlp", "block")


def error(layer: int, failing: int | None, seed: int = 1) -> float:
    """What a layer measures: within its bound before the failing one."""
    return (seed + 1) * (3e-5 if failing is not None and layer >= failing else 1e-15) * (layer + 1)


def by_layer(parts: Sequence[str], layers: int, failing: int | None) -> dict[str, Any]:
    return {
        dtype: {
            part: [
                [n, scale * error(n, failing, i), scale * ALLOWED, f"blocks.{n}.{part}"]
                for n in range(layers)
            ]
            for i, part in enumerate(parts)
        }
        for dtype, scale in (("float64", 1.0), ("float32", 1e6))
    }


def packed(values: Sequence[float]) -> dict[str, Any]:
    scale = max(map(abs, values), default=0.0)
    halves = struct.pack(f"<{len(values)}e", *(v / scale if scale else 0.0 for v in values))
    return {"scale": scale, "data": base64.b64encode(halves).decode()}


def sample(layers: int, neurons: int = 8, tokens: int = 12) -> dict[str, Any]:
    """A sample as large as they get: value [pos, neuron] is sin(pos + neuron)."""
    values = [math.sin(p + n) for p in range(tokens) for n in range(neurons)]
    pattern = [1 / (q + 1) for _ in range(3) for q in range(tokens) for _ in range(tokens)]
    sites = []
    for layer in range(min(layers, 3)):
        for kind in ("attn_out", "mlp.post", "mlp_out", "resid_post"):
            sites.append(
                {
                    "site": f"blocks.{layer}.{kind}",
                    "axes": ["pos", "neuron"],
                    "of": 48,
                    "index": list(range(neurons)),
                    "reference": packed(values),
                    "difference": packed([v * 1e-5 for v in values]),
                }
            )
        sites.append(
            {
                "site": f"blocks.{layer}.attn.pattern",
                "axes": ["head", "query", "key"],
                "of": 6,
                "index": [0, 1, 2],
                "reference": packed(pattern),
                "difference": packed([0.0] * len(pattern)),
            }
        )
    guesses = {"ids": [[5, 6, 7, 8, 9]] * tokens, "logits": [[5.5, 4.5, 3.5, 2.5, 1.5]] * tokens}
    return {
        "prompt": "text",
        "length": 64,
        "ids": list(range(tokens)),
        "words": {str(i): w for i, w in enumerate(_WORDS)},
        "guesses": {"reference": guesses, "subject": guesses},
        "sites": sites,
    }


def metrics(check: str, layers: int, failing: int | None, number: int) -> dict[str, Any]:
    """What a check keeps besides its verdict."""
    found: dict[str, Any] = {
        "cost": {
            "reference_s": 1.5,
            "reference_peak_bytes": 2**28,
            "subject_s": 70.0,
            "subject_peak_bytes": 2**31,
        }
    }
    if check == "weights":
        found["facts"] = {
            "parameters": 64_176 * (number + 1),
            "kind": KINDS[number % len(KINDS)],
            **{"layers": layers, "heads": 6, "kv_heads": 2, "d_model": 48, "d_head": 8},
            **{"d_vocab": 113, "context": 96, "experts": 0, "dtype": "float32"},
        }
    if check == "activations":
        found["by_layer"] = by_layer(_STREAM, layers, failing)
        found["by_head"] = {
            kind: [
                [n, ALLOWED, [error(n, failing, head) for head in range(6)]] for n in range(layers)
            ]
            for kind in ("attn.pattern", "attn.z")
        }
        found["differences"] = {
            dtype: {
                kind: {"equal": 40, "not_finite": 0, "first": -32, "counts": [3, 9, 27, 0, 5]}
                for kind in ("resid_post", "attn.pattern", "mlp.post", "attn.q")
            }
            for dtype in ("float64", "float32")
        }
        found["sample"] = sample(layers)
    if check == "components":
        found["by_layer"] = by_layer(_PARTS, layers, failing)
        found["by_layer"]["float64"]["unembed"] = [[None, 2e-13, ALLOWED, "logits"]]
    if check == "logits":
        found["logits"] = {prompt: logits(prompt) for prompt in ("sixteen", "long")}
        found["logits_processed"] = {"sixteen": logits("sixteen")}
        found["differences"] = {
            "float64": {
                "logits": {"equal": 7, "not_finite": 1, "first": -30, "counts": [11, 2]},
            }
        }
    return found


def logits(prompt: str) -> dict[str, Any]:
    return {
        "positions": len(prompt),
        **{"mse": 2.5e-13, "mean_abs": 4e-7, "max_abs": 1.25e-6, "max_abs_index": [0, 1, 2]},
        **{"max_rel": 1e-7, "cosine_min": 1 - 2**-40, "cosine_mean": 1.0},
        **{"kl_rs_mean": 1e-13, "kl_rs_stderr": 0.0, "kl_rs_p99": 0.0, "kl_rs_max": 3e-13},
        **{"kl_sr_mean": 1e-13, "kl_sr_stderr": 0.0, "kl_sr_p99": 0.0, "kl_sr_max": 6e-13},
        **{"top1_agree": 0.99999, "top1_decided": 9, "top1_decided_agree": 1.0},
        "top5_overlap": 0.875,
    }


def made(
    model: str,
    subject: str,
    check: str,
    outcome: str,
    *,
    number: int = 0,
    layers: int = 3,
    architecture: str = "LlamaForCausalLM",
    **fields: Any,
) -> Verdict:
    """A verdict with everything a page shows; what fails does so from layer 1 on."""
    failing = 1 if outcome in ("failed", "xfailed") else None
    if outcome in ("not_applicable", "crashed", "skipped", "error"):
        return verdict(model, subject, check, outcome, architecture=architecture, **fields)
    worst = tuple(
        Comparison(
            "same_function",
            f"blocks.{n}.attn.q",
            "sixteen",
            error(n, failing, number % 7),
            ALLOWED,
            failing is None or n < failing,
            (0, n, 2),
            1.5,
            1.5 + error(n, failing, number % 7),
            "floor 1e-12 of promoted float64",
        )
        for n in range(layers)
    )
    largest = error(layers - 1, failing, number % 7)
    summary = JudgementSummary(
        layers, 0 if failing is None else 2, largest, ALLOWED, largest / ALLOWED, "blocks.2.attn.q"
    )
    given = {
        "worst": worst,
        "verdict": {"same_function": summary},
        "metrics": metrics(check, layers, failing, number),
        "duration_s": 1.5,
        "architecture": architecture,
    }
    return verdict(model, subject, check, outcome, **{**given, **fields})


#: A handful of ports that between them have everything.
CASES = {
    ("alpha-twin", "bridge"): {},
    ("beta-twin", "bridge"): {"logits": "failed", "activations": "failed", "weights": "failed"},
    ("beta-twin", "hooked"): {"hooks": "xfailed"},
    ("gamma-real", "bridge"): dict.fromkeys(CHECKS, "crashed"),
    ("delta-twin", "hooked"): dict.fromkeys(CHECKS, "not_applicable"),
    ("delta-twin", "bridge"): {"heads": "not_applicable", "loss": "skipped"},
}


def few_ports(**given: Any) -> Records:
    """A run of :data:`CASES`."""
    order = sorted({model for model, _ in CASES})
    verdicts = [
        made(
            model,
            subject,
            check,
            outcomes.get(check, "passed"),
            number=order.index(model),
            evidence="real" if model.endswith("real") else "twin",
            architecture="GPT2LMHeadModel" if model[0] in "ag" else "LlamaForCausalLM",
        )
        for (model, subject), outcomes in CASES.items()
        for check in CHECKS
    ]
    return run(verdicts, **given)


def catalogue(models: int = 136) -> Records:
    """As many architectures as there are, each with all checks and two subjects."""
    verdicts = [
        made(
            f"model-{number:03}-twin",
            subject,
            check,
            "xfailed" if (number + place) % 9 == 0 else "passed",
            number=number,
            layers=4,
            architecture=f"Model{number:03}ForCausalLM",
        )
        for number in range(models)
        for subject in ("bridge", "hooked")
        for place, check in enumerate(CHECKS)
    ]
    return run(verdicts)


def write_run(records: Records, folder: Path) -> Path:
    """A run's folder: records and samples; returns the records file."""
    folder.mkdir(parents=True, exist_ok=True)
    verdicts = tuple(keep_sample(v, folder) for v in records.verdicts)
    kept = Records(records.header, verdicts, records.footer, records.names)
    return write(kept, folder / "records.jsonl")


NAMES = (
    Name("org/alpha", "GPT2LMHeadModel", "twin", "alpha-twin"),
    Name("org/nobody", "OtherModel", None, None, "no twin yet"),
)


# --- reading pages ----------------------------------------------------------------------------


@dataclass
class Element:
    tag: str
    attributes: dict[str, str]
    children: list[Element | str] = field(default_factory=list)
    parent: Element | None = None

    @property
    def text(self) -> str:
        return "".join(c if isinstance(c, str) else c.text for c in self.children)

    @property
    def words(self) -> str:
        """Its text in one line."""
        return " ".join(self.text.split())

    def all(self, tag: str, **attributes: str) -> list[Element]:
        """Every element below with this tag and these attributes (``cls`` for a class)."""
        cls = attributes.get("cls")
        found = []
        for child in self.children:
            if isinstance(child, str):
                continue
            has = cls is None or cls in child.attributes.get("class", "").split()
            same = all(child.attributes.get(k) == v for k, v in attributes.items() if k != "cls")
            if (tag in ("*", child.tag)) and has and same:
                found.append(child)
            found += child.all(tag, **attributes)
        return found

    def one(self, tag: str, **attributes: str) -> Element:
        (found,) = self.all(tag, **attributes)
        return found

    def table(self) -> tuple[list[str], dict[str, list[str]]]:
        """Header, and first cell -> the other cells."""
        header, *rows = self.all("tr")
        cells = [
            [c.words for c in row.children if isinstance(c, Element)] for row in (header, *rows)
        ]
        return cells[0], {row[0]: row[1:] for row in cells[1:]}


class _Reader(HTMLParser):
    def __init__(self) -> None:
        super().__init__()
        self.root = self.at = Element("document", {})

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        made = Element(tag, {k: v or "" for k, v in attrs}, parent=self.at)
        self.at.children.append(made)
        if tag not in _VOID:
            self.at = made

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.at.children.append(Element(tag, {k: v or "" for k, v in attrs}, parent=self.at))

    def handle_endtag(self, tag: str) -> None:
        assert self.at.tag == tag, f"</{tag}> closes <{self.at.tag}> at {self.getpos()}"
        assert self.at.parent is not None
        self.at = self.at.parent

    def handle_data(self, data: str) -> None:
        self.at.children.append(data)


def parse(text: str) -> Element:
    """A page; fails where its tags do not match."""
    reader = _Reader()
    reader.feed(text)
    reader.close()
    assert reader.at is reader.root, f"<{reader.at.tag}> is not closed"
    return reader.root


def embedded(page: Element, name: str) -> Any:
    """The JSON that a page carries."""
    return json.loads(page.one("script", id=name).text)
