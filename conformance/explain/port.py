"""``conformance explain``: what is wrong with a port, where, why, and the smallest case of it.

A loaded subject and the reference's stored run go in, an :class:`Explanation` comes out. The
passes stop at the first divergence: wrong formulas before lost precision before weight processing.
"""

from __future__ import annotations

import dataclasses
import gc
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from importlib import metadata
from typing import TYPE_CHECKING, Any

from conformance.explain.explanations import Bisection, Cause, Explanation, Location, MinimalCase
from conformance.jobs import Job
from conformance.native import ARCHITECTURE

if TYPE_CHECKING:
    from pathlib import Path

    import torch

    from conformance.explain.bisection import Load
    from conformance.explain.localize import Finding
    from conformance.explain.reproduce import Runner
    from conformance.explain.survey import Survey
    from conformance.implementations.lens_model import LensModel
    from conformance.reference import Reference
    from conformance.report.pictures import Data
    from conformance.spec import ModelSpec

Progress = Callable[[str], None]


#: Prompts of a real model longer than this, in tokens, run in ordinary passes only.
_SHORT = 128


def _silent(_: str) -> None:
    pass


def explain_port(
    model: ModelSpec,
    subject: LensModel,
    reference: Reference,
    checkpoint: Path,
    *,
    out: Path | None = None,
    load: Load | None = None,
    loader: str | None = None,
    runner: Runner | None = None,
    pictures: bool = True,
    progress: Progress = _silent,
) -> Explanation:
    """Explain a loaded port.

    Args:
        subject: in promoted float64, without weight processing. If nothing else is found its
            weights are processed in place.
        checkpoint: the directory it was loaded from.
        out: where pictures and the script go; None writes neither.
        load: loads the port afresh in a dtype; without it precision and weight processing are
            judged as far as ``subject`` allows, and neither is bisected.
        loader: of a declared subject, for the script.
        runner: runs the script; None writes none. A fault put into ``subject`` is not in the
            library, so no script can show it.
    """
    since = time.perf_counter()
    work = _Work(model, subject, reference, checkpoint, out, load, loader, runner, progress)
    explanation = work.explain(pictures)
    return dataclasses.replace(explanation, duration_s=round(time.perf_counter() - since, 3))


@dataclass
class _Work:
    model: ModelSpec
    subject: LensModel
    reference: Reference
    checkpoint: Path
    out: Path | None
    load: Load | None
    loader: str | None
    runner: Runner | None
    progress: Progress

    def __post_init__(self) -> None:
        from conformance.explain.localize import Localizer
        from conformance.explain.survey import Survey

        self.survey: Survey = Survey(self.reference, self.subject, self.progress)
        # In promoted float64 an ordinary pass that agrees everywhere says all there is to say.
        long = {p.name for p in self.reference.prompts if p.tokens.shape[1] > _SHORT}
        self.sparing = frozenset() if self.model.evidence == "twin" else frozenset(long)
        self.localizer = Localizer(self.survey, self.sparing)

    def explain(self, pictures: bool) -> Explanation:
        from conformance.precision import DTYPES

        found = self.localizer.function()
        if found is not None:
            return self._explained(found, pictures)
        used = None
        if self.load is not None and self.model.dtype != "float64":
            used = self.load(DTYPES[self.model.dtype])
            found = self.localizer.precision(used)
            if found is not None:
                dtypes = self._bisect_dtypes(found)
                diagnosed = narrower(found.location.measured, self.model.dtype, dtypes)
                return self._explained(
                    found, pictures, used=used, dtypes=dtypes, diagnosed=diagnosed
                )
        for port in (self.subject, used):
            found = None if port is None else self._processed(port)
            if found is not None:
                flags, found = self._bisect_flags(found)
                return self._explained(found, pictures, used=used, flags=flags)
        notes = []
        if self.sparing:
            notes.append(
                f"precision was not isolated, nor processed weights run, on prompt "
                f"{', '.join(sorted(self.sparing))}: `conformance run` does"
            )
        margins = self.survey.margins()
        return self._record(Location("none"), conforms=True, margins=margins, notes=tuple(notes))

    # --- weight processing ---

    def _processed(self, port: LensModel) -> Finding | None:
        """A difference after the library's standard weight processing, which is in place."""
        from conformance.explain.localize import Finding
        from conformance.explain.localize_weights import numbers
        from conformance.explain.survey import failures

        prompts = [p.name for p in self.reference.prompts if p.name not in self.sparing]
        dtype = str(port.dtype).removeprefix("torch.")
        self.progress(f"{port.name}: weight processing in {dtype}")
        try:
            port.process_weights()
        except Exception as error:
            text = f"it raises {type(error).__name__}: {_first_line(error)}"
            location = Location("processing", part=text, prompt=prompts[0], sentence=text)
            return Finding(location, prompt=prompts[0])
        for name in prompts:
            failed = failures(self.survey.run("processed", name, port))
            if failed:
                site = failed[0].site
                location = Location(
                    "processing",
                    site=site,
                    part=f"after processing, in {dtype}",
                    prompt=name,
                    sentence="" if site else failed[0].note,
                    **numbers(failed[0]),
                )
                return Finding(location, site=site, prompt=name)
        return None

    def _bisect_flags(self, found: Finding) -> tuple[tuple[Bisection, ...], Finding]:
        """Which flag alone breaks it; the finding then says so."""
        from conformance.explain.bisection import culprits, flags

        if self.load is None:
            return (), found
        assert found.prompt is not None
        tried = flags(self.load, self.reference, self.survey.prompt(found.prompt), self.progress)
        results = tuple(t.result for t in tried)
        guilty = culprits(results)
        words = [found.location.sentence] if found.location.sentence else []
        if len(guilty) == 1:
            alone = next(b for b in results if b.setting == guilty[0]).measured is not None
            how = "alone breaks it" if alone else "breaks it: the others are right without it"
            words.append(f"{guilty[0]} {how}")
        elif guilty:
            words.append("each of these alone breaks it: " + ", ".join(guilty))
        else:
            words.append("no flag alone breaks it")
        raising = [b.setting for b in results if b.ok is False and b.measured is None]
        words += [f"{name} alone raises" for name in raising if " " not in name]
        first = next((t.first for t in tried if t.result.setting in guilty and t.first), None)
        if first is not None and first != "logits":
            words.append(f"the first site that processing should leave alone is {first}")
        location = dataclasses.replace(found.location, sentence="; ".join(words))
        return results, dataclasses.replace(found, location=location)

    def _bisect_dtypes(self, found: Finding) -> tuple[Bisection, ...]:
        from conformance.explain.bisection import dtypes

        if self.load is None or found.site is None or found.prompt is None or not found.of_site:
            return ()
        names = [p.name for p in self.reference.prompts]
        prompt = "sixteen" if "sixteen" in names else found.prompt
        return dtypes(
            self.load,
            self.reference,
            self.survey.prompt(prompt),
            found.site,
            found.mode == "components",
            self.model.architecture,
            self.checkpoint,
            self.progress,
            self.model.trust_remote_code,
        )

    # --- what is made of a finding ---

    def _explained(
        self,
        found: Finding,
        pictures: bool,
        *,
        used: LensModel | None = None,
        flags: tuple[Bisection, ...] = (),
        dtypes: tuple[Bisection, ...] = (),
        diagnosed: str = "",
    ) -> Explanation:
        location = found.location
        causes: tuple[Cause, ...] = ()
        notes: tuple[str, ...] = ()
        if location.kind not in ("precision", "processing") and found.site is not None:
            causes, diagnosed, notes = self._diagnose(found)
        symptom = self._symptom(found, used) if location.kind != "processing" else ""
        drawn = self._draw(found, used) if pictures and self.out is not None else ()
        gc.collect()
        minimal = self._minimise(found, flags)
        return self._record(
            location,
            others=found.others,
            causes=causes,
            diagnosed=diagnosed,
            symptom=symptom,
            minimal=minimal,
            flags=flags,
            dtypes=dtypes,
            errors=self.survey.errors(),
            pictures=drawn,
            notes=(*found.notes, *notes),
        )

    def _record(self, location: Location, *, conforms: bool = False, **fields: Any) -> Explanation:
        minimal: MinimalCase | None = fields.get("minimal")
        run = f"conformance run --model {self.model.id} --subject {self.subject.name}"
        if self.model.dtype != "float32":
            run += f" --dtype {self.model.dtype}"
        script = None if minimal is None else minimal.script
        return Explanation(
            model=self.model.id,
            subject=self.subject.name,
            architecture=self.model.architecture,
            evidence=self.model.evidence,
            conforms=conforms,
            location=location,
            versions=_versions(),
            next_command=run if script is None else f"python {script}",
            **fields,
        )

    def _diagnose(self, found: Finding) -> tuple[tuple[Cause, ...], str, tuple[str, ...]]:
        """Causes, what to say of them, and what to note if they could not be looked for."""
        from conformance.diagnose import checkpoint_config, evidence, investigate, watch

        assert found.site is not None
        assert found.prompt is not None
        self.progress(f"causes of {found.site}")
        twin = self.model.evidence == "twin"
        prompts = {found.prompt, "sixteen"} | ({"padded_left", "long"} if twin else set())
        modes = ("components", "plain") if found.mode == "components" else ("plain",)
        try:
            seen = watch(
                self.reference,
                self.subject,
                tuple(prompts),
                modes=modes,  # type: ignore[arg-type]
                lean=not twin,
            )
            diagnosis = investigate(
                evidence(
                    self.reference,
                    checkpoint_config(self.checkpoint),
                    seen,
                    site=found.site,
                    mode=found.mode,  # type: ignore[arg-type]
                )
            )
        except Exception as error:
            return (), "", (f"causes could not be looked for: {type(error).__name__}: {error}",)
        causes = diagnosis.causes
        if not causes and found.location.kind == "weights":
            said = (
                f"The weight is why: {found.site}, where it is first used, is the first to differ."
            )
            return (), said, ()
        if len(causes) > 1:
            return causes, f"{len(causes)} explanations fit equally well:", ()
        if causes:
            return causes, "", ()
        if diagnosis.formulas:
            tried = ", ".join(diagnosis.formulas)
            return (), f"No hypothesis about the formula reproduces the port (tried: {tried}).", ()
        return (), "No formula is known for this step of this architecture; none was tried.", ()

    def _symptom(self, found: Finding, used: LensModel | None) -> str:
        """What it does to the logits of the failing prompt."""
        from conformance.compare import measure

        if found.prompt is None:
            return ""
        port = used if found.location.kind == "precision" else None
        try:
            shown = self.survey.values("plain", found.prompt, {"logits"}, port)["logits"]
        except Exception:
            return ""
        prompt = self.survey.prompt(found.prompt)
        truth = self.reference.truth(found.prompt, "logits")
        if shown.shape != truth.shape:
            return f"The logits have shape {tuple(shown.shape)}, not {tuple(truth.shape)}."
        distance = measure("logits", truth, shown, prompt.valid).rel_max
        changed = (shown.argmax(-1) != truth.argmax(-1)) & prompt.valid
        total, moved = int(prompt.valid.sum()), int(changed.sum())
        if distance <= (found.location.allowed or 0.0) and not moved:
            return "The logits agree."
        return (
            f"The logits are off by {distance:.2e} (relative), and the most likely next token "
            f"changes at {moved} of {total} positions of prompt {found.prompt}."
        )

    def _minimise(self, found: Finding, flags: tuple[Bisection, ...]) -> MinimalCase | None:
        from conformance.explain.reproduce import candidates, minimal_case, reduce, shortest
        from conformance.sites import parse

        if found.prompt is None:
            return None  # an accessor, a weight that no prompt uses
        whole = self.survey.prompt(found.prompt)
        original, n_layers = whole.tokens.shape[1], self.subject.dims.n_layers
        if whole.extra:
            given = " and ".join(sorted(whole.extra))
            note = f"scripts are given tokens alone, and this prompt has {given}"
            return minimal_case(None, whole, original, n_layers, note)
        kind = found.location.kind
        prompt = whole
        if kind != "precision" and (kind != "processing" or found.site is not None):
            self.progress("the shortest prompt that shows it")
            prompt = shortest(self.survey, found)
        if self.subject.family.architecture == ARCHITECTURE:
            note = "scripts import transformers alone, which has no class for this model"
            return minimal_case(None, prompt, original, n_layers, note)
        if self.runner is None or self.out is None:
            return minimal_case(None, prompt, original, n_layers)
        chosen = None
        if kind == "processing":
            chosen = _for_script(flags)
        site = found.site or "logits"
        ran = reduce(
            candidates(
                self.model,
                self.checkpoint,
                self.subject,
                found,
                prompt,
                loader=self.loader,
                flags=chosen,
            ),
            "logits" if kind == "processing" else parse(site).kind,
            self.out,
            self.runner,
            self.progress,
        )
        note = "no script of fewer layers or of all showed it by itself" if ran is None else ""
        return minimal_case(ran, prompt, original, n_layers, note)

    def _draw(self, found: Finding, used: LensModel | None) -> tuple[str, ...]:
        from conformance.report.pictures import draw

        assert self.out is not None
        if found.prompt is None or found.location.kind == "processing":
            return ()
        self.progress("pictures")
        return draw(self._picture_data(found, used), self.out)

    def _bound(self, prompt: str, site: str) -> float:
        from conformance import bounds

        return bounds.same_function(self.reference.spread(prompt, site))[0]

    def _picture_data(self, found: Finding, used: LensModel | None) -> Data:
        from conformance import profiles
        from conformance.report.pictures import Data
        from conformance.sites import parse

        assert found.prompt is not None
        location, site = found.location, found.site
        port = used if location.kind == "precision" else None
        dtype = str((port or self.subject).dtype).removeprefix("torch.")
        if location.kind != "precision":
            self.survey.run("components", found.prompt)
        data = Data(
            f"{self.model.id}, {self.subject.name}",
            found.prompt,
            dtype,
            self.survey.errors(),
            self.subject.dims.n_layers,
        )
        if site is None:
            return data
        valid = self.survey.prompt(found.prompt).valid
        kind = parse(site).kind
        wanted = {s for s in self.reference.sites if parse(s).kind == kind}
        values = self.survey.values(found.mode, found.prompt, wanted, port)
        relative: dict[str, torch.Tensor] = {}
        for name, value in values.items():
            truth = self.reference.truth(found.prompt, name)
            if truth.shape == value.shape:
                relative[name] = profiles.relative(name, truth, value, valid)
        if site not in relative:
            return data
        heat, rows = _heat_map(relative, site, valid)
        return dataclasses.replace(
            data,
            site=site,
            relative=relative[site].numpy(),
            heat=None if heat is None else heat.numpy(),
            rows=rows,
            allowed=0.0 if port is not None else self._bound(found.prompt, site),
        )


def _heat_map(
    relative: Mapping[str, torch.Tensor], site: str, valid: torch.Tensor
) -> tuple[torch.Tensor | None, str]:
    """The largest difference by head and position; by layer and position where there is no head."""
    import torch

    from conformance.sites import parse

    axes = parse(site).axes
    if axes[0] == "token":
        own = relative[site].amax(dim=-1).unflatten(0, tuple(valid.shape))
        return own.amax(dim=0, keepdim=True), "all experts"
    head = next((i for i, a in enumerate(axes) if a in ("head", "kv_head")), None)
    place = axes.index("query") if "query" in axes else axes.index("pos")
    if head is not None:
        others = [i for i in range(len(axes)) if i not in (head, place)]
        table = relative[site].amax(dim=others)
        return (table if head < place else table.T), axes[head].replace("kv_", "key/value ")
    others = [i for i in range(len(axes)) if i != place]
    lines = {parse(s).layer or 0: t.amax(dim=others) for s, t in relative.items()}
    rows = "layer" if parse(site).layer is not None else "whole model"
    return torch.stack([lines[i] for i in sorted(lines)]), rows


def narrower(error: float | None, dtype: str, tried: tuple[Bisection, ...]) -> str:
    """Which narrower dtype a loss of precision is the size of.

    Args:
        error: relative rms error in ``dtype``. One rounding to a dtype is half a unit in its last
            place at most, and about a quarter of one on average.
        tried: the same in other dtypes.
    """
    from conformance.bounds import EPS

    wide = [b.setting for b in tried if b.ok is False]
    right = [b.setting for b in tried if b.ok]
    words = []
    if wide and right:
        words.append(f"It is wrong in {' and '.join(wide)}, right in {' and '.join(right)}.")
    for name in ("float32", "float16", "bfloat16"):
        unit = EPS[name]
        if error is not None and EPS[dtype] < unit and unit / 10 <= error <= 2 * unit:
            words.append(f"The error is that of about one rounding to {name} on the way.")
            break
    return " ".join(words)


def _for_script(flags: tuple[Bisection, ...]) -> dict[str, bool]:
    """The flag that breaks it by its numbers alone, or the library's standard ones."""
    from conformance.explain.bisection import culprits
    from conformance.flags import FLAGS, STANDARD

    results = {b.setting: b for b in flags}
    alone = [f for f in culprits(flags) if results[f].measured is not None][:1]
    return {name: name in (alone or STANDARD) for name in FLAGS}


def _first_line(error: BaseException) -> str:
    return (str(error).splitlines() or [""])[0][:300]


def _versions() -> dict[str, str]:
    found = {}
    for name in ("transformer-lens", "transformers", "torch"):
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return found


# --- loading, in this process -------------------------------------------------------------------


def explain(
    model: ModelSpec,
    subject: str,
    cache: Path,
    *,
    out: Path | None = None,
    loader: str | None = None,
    runner: Runner | None = None,
    pictures: bool = True,
    progress: Progress = _silent,
) -> Explanation:
    """Load the port (and run the reference where there is no trace) and explain it.

    Raises:
        NotApplicable: the installed TransformerLens has no such subject.
        ImplementationError: the port could not be loaded.
        ConformanceError: the checkpoint or the reference failed.
    """
    import torch

    from conformance.engine import load as load_subject
    from conformance.engine import prepared, quiet_libraries

    quiet_libraries()
    if model.evidence == "twin":
        torch.set_num_threads(1)
    since = time.perf_counter()
    checkpoint, reference = prepared(model, cache, progress)
    job = Job("subject", model, str(cache), subject, loader)

    def load(dtype: torch.dtype) -> LensModel:
        return load_subject(job, checkpoint, reference, dtype, progress)

    explanation = explain_port(
        model,
        load(torch.float64),
        reference,
        checkpoint.path,
        out=out,
        load=load,
        loader=loader,
        runner=runner,
        pictures=pictures,
        progress=progress,
    )
    return dataclasses.replace(explanation, duration_s=round(time.perf_counter() - since, 3))
