"""The smallest case that still shows a divergence: few tokens, few layers, a script of its own."""

from __future__ import annotations

import contextlib
import dataclasses
import io
import os
import re
import runpy
import subprocess
import sys
import tempfile
import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from conformance.bounds import PLAIN_IN_FLOAT32, SCRIPT_ALLOWED
from conformance.classes import read_config
from conformance.explain.explanations import MinimalCase
from conformance.explain.script import INSIDE, Case, Port, Source, write
from conformance.sites import parse

if TYPE_CHECKING:
    import torch

    from conformance.explain.localize import Finding
    from conformance.explain.survey import Survey
    from conformance.implementations.lens_model import LensModel
    from conformance.prompts import Prompt
    from conformance.spec import ModelSpec

FILE_NAME = "reproduce.py"

#: A model made in the script is kept below a real one's size.
_FEW_LAYERS = 4
#: Longest time for one run of a script, in seconds.
_SCRIPT_S = 240.0
#: Token ids of a checkpoint made in the script stay below this: no weight is worth its space.
_SMALL_VOCABULARY = 256


# --- tokens -----------------------------------------------------------------------------------


def shortest(survey: Survey, finding: Finding) -> Prompt:
    """The shortest beginning of the failing prompt on which the port still diverges.

    A causal model gives the same values to a beginning as to the whole, so the reference need not
    run again. Of a padded batch one sequence is kept, with its padding.
    """
    from conformance.prompts import Prompt

    assert finding.prompt is not None
    whole = survey.prompt(finding.prompt)
    processed = finding.location.kind == "processing"

    def diverges(prompt: Prompt, rows: list[int]) -> bool:
        return _diverges(survey, whole.name, prompt, rows, processed)

    for row in [[row] for row in range(whole.tokens.shape[0])]:
        mask = None if whole.mask is None else whole.mask[row]
        one = Prompt(whole.name, whole.tokens[row], mask)
        if not diverges(one, row):
            continue
        if mask is not None and not bool(mask[:, 0].all()):
            return one  # padded on the left: a beginning would be padding
        low, high = 0, one.tokens.shape[1] if mask is None else int(mask.sum())
        while high - low > 1:  # high diverges, low does not
            middle = (low + high) // 2
            if diverges(_beginning(one, middle), row):
                high = middle
            else:
                low = middle
        return _beginning(one, high)
    return whole


def _beginning(prompt: Prompt, length: int) -> Prompt:
    mask = None if prompt.mask is None else prompt.mask[:, :length]
    if mask is not None and bool(mask.all()):
        mask = None
    return dataclasses.replace(prompt, tokens=prompt.tokens[:, :length], mask=mask)


def _diverges(survey: Survey, name: str, prompt: Prompt, rows: list[int], processed: bool) -> bool:
    """Whether any site of an ordinary pass is past its bound on part of a prompt.

    Args:
        processed: the port's weights are: only the centred logits count.
    """
    from conformance import bounds
    from conformance.compare import measure
    from conformance.variants import CENTRED

    reference, wrong = survey.reference, False

    def on_site(site: str, value: torch.Tensor) -> None:
        nonlocal wrong
        if wrong or site not in reference.sites or (processed and site != "logits"):
            return
        truth = _part(site, reference.truth(name, site), survey.prompt(name), prompt, rows)
        if truth.shape != value.shape:
            wrong = True
            return
        loose = site.endswith("attn.scores") and survey.exact.scores_up_to_a_constant
        spread = reference.spread(name, CENTRED if processed else site)
        allowed = bounds.same_function(spread)[0]
        found = measure(site, truth, value, prompt.valid, up_to_a_constant=loose, centre=processed)
        wrong = not found.rel_max <= allowed

    try:
        on_site("logits", survey.exact.run(prompt, on_site))
    except Exception:
        return True
    return wrong


def _part(
    site: str, truth: torch.Tensor, whole: Prompt, part: Prompt, rows: list[int]
) -> torch.Tensor:
    """The reference's value on some sequences' beginnings."""
    axes, n = parse(site).axes, part.tokens.shape[1]
    if axes[0] == "token":
        return truth.unflatten(0, tuple(whole.tokens.shape))[rows, :n].flatten(0, 1)
    truth = truth[rows] if truth.shape[0] > 1 else truth
    if axes[1] == "pos":
        return truth[:, :n]
    return truth[:, :, :n, :n]


# --- layers and scripts -------------------------------------------------------------------------


@dataclass(frozen=True)
class Candidate:
    """One script that may show the divergence.

    Attributes:
        text: the script.
        layers: how many layers its model has.
        note: how it came about.
    """

    text: str
    layers: int
    tokens: tuple[tuple[int, ...], ...]
    note: str


def candidates(
    model: ModelSpec,
    checkpoint: Path,
    subject: LensModel,
    finding: Finding,
    prompt: Prompt,
    *,
    loader: str | None = None,
    flags: dict[str, bool] | None = None,
) -> Iterator[Candidate]:
    """Scripts from the smallest on: fewest layers, weights drawn rather than loaded."""

    location = finding.location
    site = finding.site or location.site or "logits"
    config = read_config(checkpoint, trust_remote_code=model.trust_remote_code)
    fam, n_layers = subject.family, subject.dims.n_layers
    where = parse(site).layer
    precision = location.kind == "precision"
    exact = not precision and not (location.measured or 0.0) > PLAIN_IN_FLOAT32
    for keep in _slices(where, n_layers):
        for drawn in (True, False):
            if drawn and model.evidence == "real" and len(keep) == n_layers > _FEW_LAYERS:
                continue  # as large as the checkpoint, and less to the point
            source = _source(model, checkpoint, config, keep, n_layers, drawn)
            if source is None:
                continue
            tokens = tuple(tuple(int(t) for t in row) for row in prompt.tokens)
            size = source.config.get("vocab_size") if drawn else None
            if size is not None and max(max(row) for row in tokens) >= size:
                tokens = tuple(tuple(3 + t % (size - 3) for t in row) for row in tokens)
            mask = None
            if prompt.mask is not None:
                mask = tuple(tuple(int(t) for t in row) for row in prompt.mask)
            at = site if where is None else _moved(site, keep.index(where))
            case = Case(
                title=_title(model, subject, at, flags),
                site=at,
                tokens=tokens,
                mask=mask,
                layers=len(keep),
                exact=exact,
                allowed=SCRIPT_ALLOWED["float64" if exact else "float32"],
                dtype=model.dtype if precision else None,
                crashes=location.kind == "structure" and location.site is None,
            )
            how = "weights drawn in the script" if drawn else "weights of the checkpoint"
            kept = "" if len(keep) == n_layers else f", layers {list(keep)} of {n_layers}"
            port = _port(model, subject, config, len(keep), loader, flags)
            dims = dataclasses.replace(subject.dims, n_layers=len(keep))
            yield Candidate(write(source, port, case, fam, dims), len(keep), tokens, how + kept)


def _slices(layer: int | None, n_layers: int) -> tuple[tuple[int, ...], ...]:
    """Which layers to try, fewest first."""
    everything = tuple(range(n_layers))
    few = [(0,)] if layer is None else [(layer,), everything[: layer + 1]]
    return tuple(dict.fromkeys((*few, everything)))


def _moved(site: str, layer: int) -> str:
    return f"blocks.{layer}.{parse(site).kind}"


def _source(
    model: ModelSpec,
    checkpoint: Path,
    config: Any,
    keep: tuple[int, ...],
    n_layers: int,
    drawn: bool,
) -> Source | None:
    """Where the script's checkpoint comes from; None where that way is closed."""
    from conformance.spec import HubSource, TwinSource

    changes = _changes(config, keep, n_layers)
    twin = model.source if isinstance(model.source, TwinSource) else None
    if not drawn:
        if twin is not None:
            return None  # a twin's own weights are drawn in the script
        hub = model.source if isinstance(model.source, HubSource) else None
        whole = keep == tuple(range(n_layers))
        return Source(
            model.architecture,
            config.model_type,
            checkpoint=str(checkpoint) if hub is None else hub.hub,
            revision=None if hub is None else hub.revision,
            keep=None if whole else keep,
            changes={} if whole else changes,
        )
    if twin is not None:
        from conformance.checkpoints.shrink import arguments_of
        from conformance.checkpoints.twin_catalogue import TWINS

        entry = TWINS[twin.twin]
        own = arguments_of(entry.model_type, {**entry.config, **(twin.config or {})})
        given = {k: v for k, v in own.items() if k not in _PER_LAYER}
        arguments = {**given, **(changes if len(keep) < n_layers else own)}
        return Source(
            model.architecture, entry.model_type, arguments, twin.seed, getattr(entry, "gains", {})
        )
    arguments = {**_arguments(config), **changes}
    if int(arguments.get("vocab_size") or 0) > _SMALL_VOCABULARY:
        arguments["vocab_size"] = _SMALL_VOCABULARY
        for name in ("bos_token_id", "eos_token_id", "pad_token_id"):
            if arguments.get(name) is not None:
                arguments[name] = {"bos_token_id": 1, "eos_token_id": 2}.get(name, 0)
    return Source(model.architecture, config.model_type, arguments)


_PER_LAYER = ("layer_types", "attention_types", "attention_layers")


def _changes(config: Any, keep: tuple[int, ...], n_layers: int) -> dict[str, Any]:
    """Config entries of a checkpoint with only these layers."""
    name = config.attribute_map.get("num_hidden_layers", "num_hidden_layers")
    changes: dict[str, Any] = {name: len(keep)}
    for key, value in config.to_dict().items():
        if isinstance(value, (list, tuple)) and len(value) == n_layers:
            if key in ("attention_layers",) or not key.startswith("layer"):
                continue
            changes[key] = [value[i] for i in keep]
    layers = getattr(config, "attention_layers", None)
    if layers is not None and getattr(config, "attention_types", None) is not None:
        changes["attention_types"] = [[[layers[i] for i in keep], 1]]
    return changes


def _arguments(config: Any) -> dict[str, Any]:
    """The arguments that make this config, without what belongs to the files or the run."""
    left_out = {"architectures", "model_type", "transformers_version", "dtype", "torch_dtype"}
    return {
        key: value
        for key, value in config.to_diff_dict().items()
        if key not in left_out and not key.startswith("_")
    }


def _port(
    model: ModelSpec,
    subject: LensModel,
    config: Any,
    n_layers: int,
    loader: str | None,
    flags: dict[str, bool] | None,
) -> Port:
    """How a script loads and reads this subject."""
    _, hidden = subject.expected_hooks()
    hooks = {k: h for k, h in subject.hook_table().items() if h and k not in hidden}
    if subject.kind == "HookedTransformer":
        for site in subject.module_sites():
            where = parse(site)
            at = "" if where.layer is None else "blocks.{l}."
            name = {"attn.out": "attn", "mlp.out": "mlp"}.get(where.kind, where.kind)
            hooks[where.kind] = f"module:{at}{name}"
    absent = set(subject.family.absent())
    if subject.scores_up_to_a_constant:
        absent.add("attn.scores")
    hooks = {k: h for k, h in hooks.items() if k not in absent}
    transposed: frozenset[str] = frozenset()
    if subject.kind == "TransformerBridge" and subject.family.qk_norm == "per_head":
        transposed = frozenset({"attn.q_normed", "attn.k_normed"} & set(hooks))
    kind = "declared" if loader else "hooked" if subject.kind == "HookedTransformer" else "bridge"
    official, sizes = None, {}
    if kind == "hooked":
        from conformance.implementations.hooked import HARD_CODED, OFFICIAL

        official = model.hooked_name or OFFICIAL[model.architecture].name
        if official.startswith(HARD_CODED):
            cfg = subject.model.cfg
            names = ("d_model", "n_heads", "d_head", "d_mlp", "d_vocab", "n_ctx", "rotary_dim")
            sizes = {name: getattr(cfg, name) for name in names if getattr(cfg, name) is not None}
            sizes["n_layers"] = n_layers
            if cfg.n_key_value_heads is not None:
                sizes["n_key_value_heads"] = cfg.n_key_value_heads
    return Port(
        kind,  # type: ignore[arg-type]
        hooks,
        transposed,
        loader,
        official,
        sizes,
        flags,
    )


def _title(model: ModelSpec, subject: LensModel, site: str, flags: dict[str, bool] | None) -> str:
    after = ""
    if flags is not None:
        after = f" after weight processing ({', '.join(k for k, v in flags.items() if v)})"
    return (
        f"{site} of {model.architecture}{after} is not the same in TransformerLens's "
        f"{subject.kind}\nand in HuggingFace transformers."
    )


# --- running them -------------------------------------------------------------------------------


@dataclass(frozen=True)
class ScriptRun:
    """What came of a script: exit code and what it printed."""

    code: int
    output: str

    @property
    def shows(self) -> str:
        """The line that names the first diverging site; "" if there is none."""
        lines = [x for x in self.output.splitlines() if x.startswith("first diverging site: ")]
        return lines[-1] if lines else ""

    @property
    def site(self) -> str:
        """The site that it names."""
        found = re.match(r"first diverging site: ([\w.]+)", self.shows)
        return found.group(1) if found else ""


#: Runs a script in a process of its own.
Runner = Callable[[Path], ScriptRun]


def run_subprocess(path: Path) -> ScriptRun:
    """A fresh interpreter, as a maintainer would."""
    try:
        done = subprocess.run(
            [sys.executable, str(path)],
            capture_output=True,
            text=True,
            timeout=_SCRIPT_S,
            env={**os.environ, "PYTHONWARNINGS": "ignore"},
            check=False,
        )
    except subprocess.TimeoutExpired:
        return ScriptRun(-1, f"no end after {_SCRIPT_S:g} s")
    return ScriptRun(done.returncode, done.stdout + done.stderr)


class Forked:
    """Runs scripts in processes forked before torch started any thread, with its import paid.

    Make it first thing in a process whose threads have not been used; close it at the end.
    """

    def __init__(self) -> None:
        ask, ours = os.pipe()
        theirs, answer = os.pipe()
        self._pid = os.fork()
        if self._pid == 0:
            os.close(ours)
            os.close(theirs)
            self._serve(ask, answer)
        os.close(ask)
        os.close(answer)
        self._ask, self._answer = os.fdopen(ours, "w"), os.fdopen(theirs)

    def __call__(self, path: Path) -> ScriptRun:
        """Run a script to its end."""
        with tempfile.NamedTemporaryFile("r", suffix=".txt") as output:
            self._ask.write(f"{path}\n{output.name}\n")
            self._ask.flush()
            code = self._answer.readline().strip()
            return ScriptRun(int(code or -1), output.read())

    def close(self) -> None:
        """End the process that forks."""
        self._ask.close()
        self._answer.close()
        with contextlib.suppress(ChildProcessError):
            os.waitpid(self._pid, 0)

    @staticmethod
    def _serve(ask: int, answer: int) -> None:
        with os.fdopen(ask) as asked, os.fdopen(answer, "w") as answers:
            while path := asked.readline().strip():
                output = asked.readline().strip()
                child = os.fork()
                if child == 0:
                    os._exit(_execute(path, output))
                _, status = os.waitpid(child, 0)
                answers.write(f"{os.waitstatus_to_exitcode(status)}\n")
                answers.flush()
        os._exit(0)


def _execute(path: str, output: str) -> int:
    """Run a script as ``__main__``, its output to a file."""
    code = 0
    with Path(output).open("w") as stream:
        try:
            with (
                contextlib.redirect_stdout(stream),
                contextlib.redirect_stderr(io.StringIO()),
                warnings.catch_warnings(),
            ):
                warnings.simplefilter("ignore")
                runpy.run_path(path, run_name="__main__")
        except SystemExit as stop:
            code = stop.code if isinstance(stop.code, int) else int(stop.code is not None)
        except BaseException as error:
            stream.write(f"{type(error).__name__}: {error}\n")
            code = 70
    return code


def reduce(
    found: Iterator[Candidate],
    expected: str,
    out: Path,
    runner: Runner,
    progress: Callable[[str], None],
) -> tuple[Candidate, Path, ScriptRun] | None:
    """The first candidate whose script exits with 1, written to ``out``; None if none does.

    Args:
        expected: the kind of site that the script must name, ``attn.q``; another one will do only
            if no script names it.
    """
    out.mkdir(parents=True, exist_ok=True)
    path = out / FILE_NAME
    second: tuple[Candidate, ScriptRun] | None = None
    for candidate in found:
        progress(f"a script with {candidate.layers} layers, {candidate.note}")
        path.write_text(candidate.text, encoding="utf-8")
        ran = runner(path)
        if ran.code == 1 and ran.site and parse(ran.site).kind == expected:
            return candidate, path, ran
        if ran.code == 1 and ran.site and second is None:
            second = candidate, ran
    if second is None:
        path.unlink(missing_ok=True)
        return None
    path.write_text(second[0].text, encoding="utf-8")
    return second[0], path, second[1]


def minimal_case(
    found: tuple[Candidate, Path, ScriptRun] | None,
    prompt: Prompt,
    original: int,
    n_layers: int,
    note: str = "",
) -> MinimalCase:
    """What the explanation says of it."""
    tokens = tuple(tuple(int(t) for t in row) for row in prompt.tokens)
    if found is None:
        return MinimalCase(
            tokens,
            prompt.tokens.shape[1],
            original,
            n_layers,
            n_layers,
            note=note or "no script was made",
        )
    candidate, path, ran = found
    return MinimalCase(
        candidate.tokens,
        prompt.tokens.shape[1],
        original,
        candidate.layers,
        n_layers,
        str(path),
        True,
        ran.shows,
        candidate.note,
    )


__all__: Sequence[str] = (
    "INSIDE",
    "Candidate",
    "Forked",
    "Runner",
    "ScriptRun",
    "candidates",
    "minimal_case",
    "reduce",
    "run_subprocess",
    "shortest",
)
