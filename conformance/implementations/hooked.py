"""Loads a local checkpoint as a ``HookedTransformer`` (TransformerLens before 4.0), offline.

What is tested is TransformerLens's own port, so its own code does the work: its configuration
branch, its weight conversion, its ``from_pretrained_no_processing``. It only accepts official
model names, so the checkpoint is served to it under one, through a throw-away directory laid out
like the hub's cache. Most branches then read the checkpoint's configuration as they would read
the hub's. A few ignore it and hard-code the official model's; for those the *sizes* are replaced
by the checkpoint's, and nothing else: every constant (eps, rotary base, windows, soft caps, ...)
stays what TransformerLens believes the official model to have.
"""

from __future__ import annotations

import contextlib
import importlib.util
import io
import tempfile
import warnings
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

from conformance.classes import read_config
from conformance.errors import ConformanceError, ImplementationError, NotApplicable
from conformance.native import ARCHITECTURE

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    import torch
    from transformer_lens import HookedTransformer


@dataclass(frozen=True, slots=True)
class HookedName:
    """An official TransformerLens name whose branch ports an architecture.

    Attributes:
        name: the official name.
        config_driven: whether TransformerLens derives its configuration from the checkpoint's;
            if not, a checkpoint must carry the official model's constants to conform.
        note: what a reader of a verdict should know.
    """

    name: str
    config_driven: bool
    note: str = ""


#: HuggingFace architecture class -> the name it is loaded under unless told otherwise.
OFFICIAL: Mapping[str, HookedName] = MappingProxyType(
    {
        "ApertusForCausalLM": HookedName("swiss-ai/Apertus-8B-2509", True),
        "BloomForCausalLM": HookedName(
            "bigscience/bloom-560m", True, "ALiBi slopes are right for powers of two of heads only"
        ),
        "GPT2LMHeadModel": HookedName(
            "gpt2", True, "the configuration must carry n_ctx; n_inner is not read"
        ),
        "GPTJForCausalLM": HookedName(
            "EleutherAI/gpt-j-6B", True, "layer_norm_epsilon and n_inner are not read"
        ),
        "GPTNeoForCausalLM": HookedName(
            "EleutherAI/gpt-neo-125M", True, "intermediate_size is not read"
        ),
        "GPTNeoXForCausalLM": HookedName("EleutherAI/pythia-70m", True, "rope_theta is not read"),
        "Gemma2ForCausalLM": HookedName(
            "google/gemma-2-2b",
            False,
            "eps 1e-6, rope_theta 1e4, window 4096 on even layers, soft caps 50 and 30, "
            "attention scaled by head_dim",
        ),
        "Gemma3ForCausalLM": HookedName(
            "google/gemma-3-270m",
            False,
            "eps 1e-6, rope_theta 1e6 and locally 1e4, window 512, every sixth layer global, "
            "attention scaled by head_dim",
        ),
        "GemmaForCausalLM": HookedName(
            "google/gemma-2b",
            False,
            "eps 1e-6, rope_theta 1e4, exact gelu (HuggingFace: tanh approximation)",
        ),
        "GptOssForCausalLM": HookedName(
            "openai/gpt-oss-20b", True, "swiglu_limit and swiglu_alpha are not read"
        ),
        "LlamaForCausalLM": HookedName(
            "01-ai/Yi-6B",
            True,
            "Meta's own names are hard-coded, this one is not; head_dim, biases and rope scaling "
            "other than llama3 are not read",
        ),
        "MistralForCausalLM": HookedName("mistralai/Mistral-7B-v0.1", True),
        "MixtralForCausalLM": HookedName(
            "mistralai/Mixtral-8x7B-v0.1", True, "head_dim is not read"
        ),
        "OPTForCausalLM": HookedName("facebook/opt-125m", True, "pre-norm with biases only"),
        "Olmo2ForCausalLM": HookedName(
            "allenai/OLMo-2-0425-1B",
            False,
            "eps 1e-6, rope_theta 5e5, no grouped-query attention",
        ),
        "Olmo3ForCausalLM": HookedName("allenai/Olmo-3-1025-7B", True),
        "OlmoForCausalLM": HookedName(
            "allenai/OLMo-1B-hf",
            False,
            "rope_theta 1e4, no grouped-query attention; clip_qkv is read",
        ),
        "OlmoeForCausalLM": HookedName("allenai/OLMoE-1B-7B-0924", True),
        "Phi3ForCausalLM": HookedName(
            "microsoft/Phi-3-mini-4k-instruct",
            True,
            "partial_rotary_factor and rope scaling are not read",
        ),
        "PhiForCausalLM": HookedName("microsoft/phi-1", True),
        "Qwen2ForCausalLM": HookedName(
            "Qwen/Qwen2-0.5B", True, "windows and rope scaling are not read"
        ),
        "Qwen3ForCausalLM": HookedName(
            "Qwen/Qwen3-0.6B", True, "windows, rope scaling and attention_bias are not read"
        ),
    }
)

#: Beginnings of the official names whose configuration TransformerLens hard-codes.
HARD_CODED = (
    "allenai/OLMo-",
    "codellama/",
    "google/gemma-",
    "google/medgemma-",
    "meta-llama/",
)

#: Those among them whose weight conversion knows no grouped key and value heads.
UNGROUPED = ("allenai/OLMo-",)

_COMMIT = "0" * 40

#: What the served snapshot may contain: data, never code.
_SERVED_SUFFIXES = (".json", ".safetensors", ".bin")


def load_hooked(
    checkpoint_dir: Path,
    *,
    architecture: str,
    dtype: torch.dtype,
    device: str = "cpu",
    official_name: str | None = None,
    processed: bool = False,
    flags: Mapping[str, bool] | None = None,
) -> HookedTransformer:
    """A ``HookedTransformer`` of the checkpoint, without weight processing.

    Args:
        checkpoint_dir: a directory ``from_pretrained`` can read.
        architecture: the HuggingFace class, e.g. ``LlamaForCausalLM``.
        dtype: the dtype asked of TransformerLens.
        device: where the model is put.
        official_name: load under this official name instead of the one in :data:`OFFICIAL`.
        processed: with the library's standard weight processing instead.
        flags: which steps of that processing, by the library's names; None for its defaults.

    Raises:
        NotApplicable: the installed TransformerLens has no ``HookedTransformer``, or that does
            not port the architecture.
        ImplementationError: the name is not an official one, or TransformerLens failed to load
            the checkpoint under it.
    """
    _require_hooked_transformer()
    own_format = architecture == ARCHITECTURE
    from conformance.native.loading import official_name as of_layout

    name = official_name or (
        of_layout(checkpoint_dir) if own_format else _default_name(architecture)
    )

    from transformer_lens import HookedTransformer
    from transformer_lens import loading_from_pretrained as loading

    try:
        name = loading.get_official_model_name(name)
    except ValueError as error:
        raise ImplementationError(
            f"{name!r} is not a name that HookedTransformer.from_pretrained accepts",
            "set hooked_name to one of transformer_lens.supported_models.OFFICIAL_MODEL_NAMES",
        ) from error

    tokenizer = tokenizer_of(checkpoint_dir)
    offered = (
        _own_format(checkpoint_dir)
        if own_format
        else _as_on_the_hub(loading, checkpoint_dir, name, has_tokenizer=tokenizer is not None)
    )
    with (
        offered as where,
        contextlib.redirect_stdout(io.StringIO()),
        warnings.catch_warnings(),
    ):
        warnings.filterwarnings("ignore", message=r"HookedTransformer.* deprecated")
        try:
            load = (
                HookedTransformer.from_pretrained
                if processed
                else HookedTransformer.from_pretrained_no_processing
            )
            model = load(
                name,
                dtype=dtype,
                device=device,
                tokenizer=tokenizer,
                # Masks are the caller's to give: with "left" TransformerLens would guess one
                # from token ids that happen to equal the padding id.
                default_padding_side=None if tokenizer is None else "right",
                **where,
                **(flags or {}),
            )
        except (ConformanceError, MemoryError):
            raise
        except Exception as error:
            raise ImplementationError(
                f"HookedTransformer failed to load {architecture} as {name!r}: "
                f"{type(error).__name__}: {error}",
                "the traceback shows where TransformerLens stopped; if it does not claim to "
                "port such a checkpoint, set another hooked_name",
            ) from error
    return model.eval()


def _require_hooked_transformer() -> None:
    """Answers from the files of the installed package: importing it takes seconds."""
    spec = importlib.util.find_spec("transformer_lens")
    if spec is None:
        raise NotApplicable(
            "TransformerLens is not installed", "pip install 'transformer-lens>=3.9,<4'"
        )
    folders = [Path(folder) for folder in spec.submodule_search_locations or ()]
    if not any((folder / "HookedTransformer.py").is_file() for folder in folders):
        raise NotApplicable(
            "the installed TransformerLens has no HookedTransformer (it was removed in 4.0)",
            "run the hooked subject in an environment with transformer-lens 3.9",
        )


def _default_name(architecture: str) -> str:
    if architecture not in OFFICIAL:
        raise NotApplicable(
            f"no official HookedTransformer name has the architecture {architecture}",
            "use the bridge subject; or, if TransformerLens does port it, set hooked_name",
        )
    return OFFICIAL[architecture].name


def tokenizer_of(checkpoint_dir: Path) -> Any | None:
    """The tokenizer of a checkpoint's directory, or None."""
    if not any((checkpoint_dir / f).is_file() for f in ("tokenizer.json", "tokenizer_config.json")):
        return None
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(checkpoint_dir, local_files_only=True)


@contextlib.contextmanager
def _as_on_the_hub(
    loading: Any, checkpoint_dir: Path, name: str, *, has_tokenizer: bool
) -> Iterator[dict[str, Any]]:
    """What tells TransformerLens to find the checkpoint under ``name``."""
    with (
        _served_as(checkpoint_dir, name) as hub_cache,
        _configuration(loading, checkpoint_dir, name, has_tokenizer=has_tokenizer),
    ):
        yield {"cache_dir": str(hub_cache), "local_files_only": True}


@contextlib.contextmanager
def _own_format(checkpoint_dir: Path) -> Iterator[dict[str, Any]]:
    """The same for TransformerLens's own format, of which it asks the hub for single files."""
    from conformance.native.loading import served

    with served(checkpoint_dir):
        yield {}


@contextlib.contextmanager
def _served_as(checkpoint_dir: Path, name: str) -> Iterator[Path]:
    """A directory laid out as the hub's cache would be had it downloaded ``name``."""
    with tempfile.TemporaryDirectory(prefix="conformance-hub-") as cache:
        repository = Path(cache) / f"models--{name.replace('/', '--')}"
        snapshot = repository / "snapshots" / _COMMIT
        snapshot.mkdir(parents=True)
        (repository / "refs").mkdir()
        (repository / "refs" / "main").write_text(_COMMIT)
        for file in checkpoint_dir.resolve().iterdir():
            if file.suffix in _SERVED_SUFFIXES:
                (snapshot / file.name).symlink_to(file)
        yield Path(cache)


@contextlib.contextmanager
def _configuration(
    loading: Any, checkpoint_dir: Path, name: str, *, has_tokenizer: bool
) -> Iterator[None]:
    """Lets TransformerLens's configuration branch run, then replaces what it hard-codes.

    That is: sizes, and only under a hard-coded name; and the tokenizer to ask of the hub, when
    the checkpoint has none.
    """
    convert = loading.convert_hf_model_config

    def converted(model_name: str, **kwargs: Any) -> dict[str, Any]:
        try:
            cfg: dict[str, Any] = convert(model_name, **kwargs)
        except NotImplementedError as error:
            raise NotApplicable(
                f"HookedTransformer does not load this checkpoint as {name!r}: {error}",
                "use the bridge subject, or set another hooked_name",
            ) from error
        if name.startswith(HARD_CODED):
            cfg |= _sizes(cfg, checkpoint_dir, name)
        if not has_tokenizer:
            cfg["tokenizer_name"] = None
        return cfg

    loading.convert_hf_model_config = converted
    try:
        yield
    finally:
        loading.convert_hf_model_config = convert


def _sizes(official: Mapping[str, Any], checkpoint_dir: Path, name: str) -> dict[str, Any]:
    """The checkpoint's sizes, in the terms of a hard-coded configuration."""
    config = read_config(checkpoint_dir, local_files_only=True).get_text_config()
    n_layers = config.num_hidden_layers
    pattern = official.get("attn_types")
    if pattern is not None and len(pattern) < n_layers:
        raise ImplementationError(
            f"the checkpoint has {n_layers} layers, TransformerLens's layer pattern for "
            f"{name!r} only {len(pattern)}",
            "set hooked_name to an official model with at least as many layers",
        )
    n_heads = config.num_attention_heads
    n_kv_heads = config.num_key_value_heads
    if n_kv_heads != n_heads and name.startswith(UNGROUPED):
        raise NotApplicable(
            f"HookedTransformer loads {name!r} without grouped heads only; the checkpoint has "
            f"{n_kv_heads} key/value heads for {n_heads} heads",
            "use the bridge subject",
        )
    d_head = getattr(config, "head_dim", None) or config.hidden_size // n_heads
    sizes = {
        "n_layers": n_layers,
        "d_model": config.hidden_size,
        "n_heads": n_heads,
        "d_head": d_head,
        "d_mlp": config.intermediate_size,
        "d_vocab": config.vocab_size,
        # Some official contexts are capped on purpose; a larger checkpoint does not lift the cap.
        "n_ctx": min(config.max_position_embeddings, official["n_ctx"]),
    }
    if official.get("n_key_value_heads") is not None or n_kv_heads != n_heads:
        sizes["n_key_value_heads"] = n_kv_heads
    if official.get("rotary_dim") == official["d_head"]:
        sizes["rotary_dim"] = d_head
    return sizes
