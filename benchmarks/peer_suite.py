"""What TransformerLens's own ``run_benchmark_suite`` makes of fifteen known faults.

The suite loads its bridge itself, by name; here it is handed the twin's directory, and gets a
bridge with a fault in it. Phases 1 to 3 (components, forward pass, hooks, gradients, generation,
processed weights) run with HuggingFace's model beside them; phase 4 scores generated text with
another model, which a twin's text is no input for. A fault counts as flagged if any result that
passes on the right port does not pass.

    python benchmarks/peer_suite.py [--twin llama] [--out peer.json]

Needs TransformerLens 4 (``transformer_lens.benchmarks``). Prints a Markdown table.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import json
import logging
import sys
import time
import warnings
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from conformance.faults import Fault
    from conformance.prove.bench import Bench

#: One or two of each class that a bridge can carry through a run that is not ours.
SAMPLE = (
    "rope_base_0.01%",
    "rope_base_1%",
    "rope_queries_not_rotated",
    "attn_scale_0.1%",
    "heads_tiled",
    "causal_one_too_wide",
    "norm_eps_tenfold",
    "norm_shared",
    "gelu_for_silu",
    "parallel_for_sequential",
    "residual_scaled",
    "logits_scaled",
    "W_Q_element",
    "embed_unused_row",
    "fold_final_norm_twice",
)

#: Within a twin's context of 96 (one token a character), unlike the suite's own text.
TEXT = "Natural language processing tasks, such as question answering"


@dataclass(frozen=True, slots=True)
class Outcome:
    """What the suite and the harness made of one fault."""

    fault: str
    klass: str
    changed: float
    harness: bool
    harness_site: str | None
    suite: bool
    flagged: tuple[str, ...]
    seconds: float


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the sample; 0 unless the suite could not run."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--twin", default="llama")
    parser.add_argument("--fault", action="append")
    parser.add_argument("--out", type=Path)
    options = parser.parse_args(arguments)
    warnings.simplefilter("ignore")
    logging.disable(logging.WARNING)

    from conformance.checkpoints import cache_dir
    from conformance.checkpoints.twin_catalogue import TWINS
    from conformance.prove.bench import Bench
    from conformance.prove.ports import catalogue
    from conformance.spec import ModelSpec, TwinSource

    model = ModelSpec(
        id=f"{options.twin}-twin",
        architecture=TWINS[options.twin].architecture,
        source=TwinSource(twin=options.twin),
    )
    bench = Bench.load(model, "bridge", cache_dir())
    right, tokens = suite(bench, None)
    failing = {name for name, passed in right.items() if not passed}
    print(f"{len(right)} results on the right port; not passed: {', '.join(failing) or 'none'}")
    found = []
    for fault in catalogue(options.fault or SAMPLE):
        if not bench.provable(fault):
            print(f"{fault.name} does not apply to {options.twin}", file=sys.stderr)
            continue
        since = time.perf_counter()
        results, shown = suite(bench, fault)
        proof = bench.prove(fault)
        found.append(
            Outcome(
                fault=fault.name,
                klass=fault.klass,
                changed=float((shown - tokens).abs().max() / tokens.abs().max()),
                harness=proof.caught,
                harness_site=proof.named,
                suite=any(not results.get(name, False) for name in right if right[name]),
                flagged=tuple(n for n in right if right[n] and not results.get(n, False)),
                seconds=round(time.perf_counter() - since, 2),
            )
        )
    print(table(found))
    if options.out:
        options.out.write_text(json.dumps([asdict(o) for o in found], indent=1) + "\n")
    return 0


def suite(bench: Bench, fault: Fault | None) -> tuple[dict[str, bool], Any]:
    """Run the suite on the port with the fault in it.

    Returns:
        ``phase/name`` -> passed, and the port's logits [1, pos, d_vocab] on :data:`TEXT`.
    """
    from transformer_lens.benchmarks import main_benchmark

    hidden = io.StringIO()  # progress bars, and advice on what is printed anyway
    with (
        contextlib.ExitStack() as stack,
        contextlib.redirect_stdout(hidden),
        contextlib.redirect_stderr(hidden),
    ):
        seen: list[Any] = []
        stack.enter_context(_booting(main_benchmark, bench, fault, stack, seen))
        results = main_benchmark.run_benchmark_suite(
            str(bench.checkpoint.path), test_text=TEXT, verbose=False, phases=[1, 2, 3]
        )
    skipped = main_benchmark.BenchmarkSeverity.SKIPPED
    counted = {f"{r.phase}/{r.name}": r.passed for r in results if r.severity != skipped}
    return counted, seen[0]


@contextlib.contextmanager
def _booting(
    module: Any, bench: Bench, fault: Fault | None, stack: contextlib.ExitStack, seen: list[Any]
) -> Iterator[None]:
    """Give the suite a bridge with the fault in it, when it asks for one with weights."""
    import torch

    from conformance.implementations.bridge import BridgeModel

    bridge_class = module.TransformerBridge
    boot = bridge_class.boot_transformers

    def faulty(*args: Any, **kwargs: Any) -> Any:
        bridge = boot(*args, **kwargs)
        if not kwargs.get("load_weights", True):
            return bridge
        exact = bench.exact
        port = BridgeModel(bridge.eval(), "bridge", exact.family, exact.dims, torch.float32)
        if fault is not None and fault.corrupt is not None:
            stack.enter_context(_processing(bridge, port, fault))
        elif fault is not None:
            stack.enter_context(fault.apply(port))
            for enter in port.extra:  # what our own runs would enter around a forward pass
                stack.enter_context(enter())
        with torch.no_grad():
            seen.append(bridge(TEXT, return_type="logits").clone())
        return bridge

    bridge_class.boot_transformers = staticmethod(faulty)
    try:
        yield
    finally:
        bridge_class.boot_transformers = boot


@contextlib.contextmanager
def _processing(bridge: Any, port: Any, fault: Fault) -> Iterator[None]:
    """Compatibility mode leaves the weights as the fault's wrong fold does."""
    import torch

    corrupt = fault.corrupt
    assert corrupt is not None
    right: Callable[..., Any] = bridge.enable_compatibility_mode

    def wrong(*args: Any, **kwargs: Any) -> Any:
        before = {name: t.clone() for name, t in port.named_weights().items()}
        result = right(*args, **kwargs)
        with torch.no_grad():
            corrupt(port, before)
        return result

    object.__setattr__(bridge, "enable_compatibility_mode", wrong)
    try:
        yield
    finally:
        object.__delattr__(bridge, "enable_compatibility_mode")


def table(found: Sequence[Outcome]) -> str:
    """Markdown."""
    lines = [
        "| fault | logits change by | harness | run_benchmark_suite | flagged by |",
        "|---|---|---|---|---|",
    ]
    lines += [
        f"| {o.fault} | {o.changed:.1e} | {'caught' if o.harness else 'missed'} "
        f"({o.harness_site}) | {'flagged' if o.suite else 'passed'} "
        f"| {', '.join(o.flagged) or '-'} |"
        for o in found
    ]
    caught, flagged = sum(o.harness for o in found), sum(o.suite for o in found)
    lines.append(f"\nof {len(found)}: harness {caught}, run_benchmark_suite {flagged}")
    return "\n".join(lines)


if __name__ == "__main__":
    raise SystemExit(main())
