"""How often the right cause is named: the catalogue's faults put into a port, and diagnosed.

Only this module knows the catalogue. The hypotheses do not: they recompute from the reference's
values, the checkpoint's weights and its config.
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from conformance.diagnose import diagnose
from conformance.diagnose.evidence import MODES, checkpoint_config, collect, watch
from conformance.jobs import Job

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence
    from pathlib import Path

    from conformance.faults import Fault
    from conformance.implementations.lens_model import LensModel
    from conformance.reference import Reference
    from conformance.spec import ModelSpec

#: Fault of the catalogue that is a formula -> the hypotheses that name its cause.
EXPECTED: Mapping[str, frozenset[str]] = {
    name: frozenset(ids.split())
    for name, ids in {
        "rope_base_0.01%": "rotary_base",
        "rope_base_1%": "rotary_base",
        "rope_base_tenfold": "rotary_base rotary_local_global_swapped",
        "rope_partial_dim": "rotary_dim",
        "rope_adjacent_pairs": "rotary_pairing",
        "rope_reversed": "rotary_direction",
        "rope_linear_scaling": "rotary_positions_scaled",
        "rope_scaling_dropped": "rotary_scaling_dropped",
        "rope_queries_late": "rotary_positions_shifted",
        "rope_stretched": "rotary_positions_scaled",
        "rope_local_global_swapped": "rotary_local_global_swapped rotary_base",
        "rope_keys_not_rotated": "rotary_skipped",
        "rope_queries_not_rotated": "rotary_skipped",
        "attn_scale_dropped": "attention_scale",
        "attn_scale_0.1%": "attention_scale",
        "attn_scale_inverse_layer": "attention_scale",
        "heads_tiled": "grouped_heads_tiled",
        "heads_swapped": "head_order",
        "values_of_next_head": "head_order",
        "causal_one_too_wide": "causal_mask",
        "causal_one_too_narrow": "causal_mask",
        "padding_ignored": "padding_ignored",
        "window_one_too_wide": "window_width",
        "window_one_too_narrow": "window_width",
        "window_absent": "window_absent",
        "window_parity": "window_on_global_layer",
        "softcap_missing": "softcap_missing",
        "softcap_off": "softcap",
        "sinks_ignored": "sinks_ignored",
        "alibi_slopes": "alibi_slopes",
        "alibi_slopes_regular": "alibi_slopes",
        "relative_bias_missing": "relative_missing",
        "relative_bias_of_decoder_missing": "relative_missing",
        "relative_buckets_one_way": "relative_direction",
        "relative_distance_doubled": "relative_distance",
        "q_norm_skipped": "qk_norm_skipped",
        "k_norm_1%": "scaled",
        "clip_qkv_ignored": "clip_qkv_ignored",
        "bias_q_skipped": "bias_skipped",
        "bias_k_skipped": "bias_skipped",
        "bias_v_skipped": "bias_skipped",
        "bias_o_skipped": "bias_skipped",
        "pattern_unnormalised": "scaled",
        "norm_eps_tenfold": "norm_eps",
        "norm_eps_tenth": "norm_eps",
        "norm_eps_of_torch": "norm_eps",
        "final_norm_eps": "norm_eps",
        "norm_offset_missing": "norm_offset",
        "norm_centring": "norm_centring",
        "norm_bias_skipped": "bias_skipped",
        "norm_skipped": "norm_skipped",
        "post_norm_skipped": "norm_skipped",
        "mlp_post_norm_skipped": "norm_skipped",
        "final_norm_skipped": "norm_skipped",
        "encoder_norm_skipped": "norm_skipped",
        "norm_shared": "norm_shared",
        "gelu_exact_for_tanh": "activation",
        "gelu_tanh_for_exact": "activation",
        "gelu_quick": "activation",
        "silu_for_gelu": "activation",
        "gelu_for_silu": "activation",
        "gate_up_swapped": "gate_up_swapped",
        "bias_in_skipped": "bias_skipped",
        "bias_out_skipped": "bias_skipped",
        "mlp_clamped": "activation_clamped",
        "router_not_renormalised": "router_renormalisation",
        "router_renormalised": "router_renormalisation",
        "shared_expert_dropped": "shared_expert_dropped",
        "shared_expert_not_weighted": "shared_expert_not_weighted",
        "router_one_less": "router_top_k",
        "router_one_more": "router_top_k",
        "router_weights_swapped": "router_weights_order",
        "router_uniform": "router_uniform",
        "experts_swapped": "experts_swapped",
        "swiglu_limit_missing": "swiglu_limit",
        "swiglu_alpha": "swiglu_alpha",
        "layers_swapped": "weights_of_layer",
        "parallel_for_sequential": "parallel",
        "sequential_for_parallel": "sequential",
        "residual_scaled": "residual_scale",
        "attn_out_scaled": "scaled",
        "mlp_out_scaled": "scaled",
        "mixer_out_scaled": "scaled",
        "cross_attn_out_scaled": "scaled",
        "cross_values_of_next_head": "head_order",
        "embed_scale_missing": "embed_scale scaled",
        "embed_scale_rounded": "embed_scale scaled",
        "logits_scaled": "logits_scaled",
        "final_softcap_missing": "final_softcap_missing",
        "final_softcap_off": "final_softcap",
        "head_untied": "logits_scaled",
        "positions_late": "positions_shifted",
        "positions_count_padding": "positions_count_padding",
        "position_offset_missing": "positions_offset_missing",
        "shortformer_positions_in_stream": "positions_missing positions_in_stream",
        "shortformer_positions_in_values": "positions_in_values",
        "residual_multiplier_missing": "residual_multiplier_missing",
        "embed_multiplier_missing": "embed_scale",
        "stream_scale_missing": "stream_scale_missing residual_scale",
        "logit_scale_missing": "logit_scale_missing",
        "W_Q_transposed": "matrix_transposed",
        "W_O_transposed": "matrix_transposed",
    }.items()
}

#: Faults that are no formula, but that a hypothesis may still describe rightly.
DESCRIBED: Mapping[str, frozenset[str]] = {
    "dropout_on": frozenset({"dropout"}),
    "hook_v_shows_k": frozenset({"hook_shows_other"}),
    "hook_pattern_shows_scores": frozenset({"hook_shows_other"}),
    "hook_resid_pre_shows_mid": frozenset({"hook_shows_other"}),
    "hook_rot_q_shows_rot_k": frozenset({"hook_shows_other"}),
    "hook_post_shows_pre": frozenset({"hook_shows_other"}),
    "hook_mlp_out_shows_resid": frozenset({"hook_shows_other"}),
}


@dataclass(frozen=True, slots=True)
class Scored:
    """One fault, diagnosed.

    Attributes:
        fault: its name.
        site: where the port first diverged, given right inputs; None if nowhere.
        causes: what was named, hypothesis and statement.
        formula: whether the fault is a formula, so that its cause should be named.
        named: whether it was.
        wrong: hypotheses named that are not its cause.
        duration_s: the run and the diagnosis.
    """

    fault: str
    site: str | None
    causes: tuple[tuple[str, str], ...]
    formula: bool
    named: bool
    wrong: tuple[str, ...]
    duration_s: float


@dataclass
class Patient:
    """A port in promoted float64 with what is wrong with it when no fault is in."""

    reference: Reference
    config: Any
    subject: LensModel
    known: frozenset[str]

    @classmethod
    def load(
        cls,
        model: ModelSpec,
        subject: str,
        cache: Path,
        progress: Callable[[str], None] = lambda _: None,
        *,
        loader: str | None = None,
    ) -> Patient:
        """Run or read the reference, load the port.

        Raises:
            ConformanceError: either could not be done.
        """
        import torch

        from conformance.engine import load, prepared, quiet_libraries
        from conformance.precision import DTYPES

        quiet_libraries()
        torch.set_num_threads(1)
        checkpoint, reference = prepared(model, cache, progress)
        job = Job("subject", model, str(cache), subject, loader, ())
        port = load(job, checkpoint, reference, DTYPES["float64"], progress)
        run = watch(reference, port)
        known = frozenset(site for mode in MODES for site in run.failing(mode))
        return cls(reference, checkpoint_config(checkpoint.path), port, known)

    def score(self, fault: Fault) -> Scored:
        """Put a fault in, diagnose, take it out."""
        since = time.perf_counter()
        with fault.apply(self.subject):
            found = collect(self.reference, self.subject, config=self.config, ignore=self.known)
        causes = diagnose(found)
        expected = EXPECTED.get(fault.name) or DESCRIBED.get(fault.name, frozenset())
        return Scored(
            fault=fault.name,
            site=found.site,
            causes=tuple((c.hypothesis, c.statement) for c in causes),
            formula=fault.name in EXPECTED,
            named=any(c.hypothesis in expected for c in causes),
            wrong=tuple(c.hypothesis for c in causes if c.hypothesis not in expected),
            duration_s=time.perf_counter() - since,
        )


def diagnosable(fault: Fault) -> bool:
    """Whether a fault changes what a forward pass shows, weights unprocessed."""
    return fault.kind == "fault" and not fault.processed and fault.needs is None


def score(
    model: ModelSpec,
    subject: str,
    faults: Sequence[Fault],
    *,
    cache: Path,
    loader: str | None = None,
) -> Iterator[Scored]:
    """Diagnose every fault that applies to one port of one twin.

    Those that are not :func:`diagnosable` are left out.
    """
    patient = Patient.load(model, subject, cache, loader=loader)
    for fault in faults:
        if diagnosable(fault) and fault.fits(patient.subject):
            yield patient.score(fault)
