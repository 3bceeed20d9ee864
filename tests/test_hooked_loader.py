"""Loading checkpoints as ``HookedTransformer``: small twins built here, and what is refused."""

from __future__ import annotations

import importlib.machinery
import importlib.util
import socket
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from conformance.errors import ConformanceError, ImplementationError, NotApplicable
from conformance.implementations import hooked
from conformance.implementations.hooked import HARD_CODED, OFFICIAL, load_hooked

if TYPE_CHECKING:
    from collections.abc import Callable

SIZES = {
    "hidden_size": 32,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "intermediate_size": 40,
    "vocab_size": 61,
    "max_position_embeddings": 64,
    "pad_token_id": 0,
}
OWN_HEAD_DIM = {**SIZES, "head_dim": 10}
ROPE = {"rope_type": "default", "rope_theta": 54321.0}

# model_type and configuration; hard-coded names get the constants that OFFICIAL's notes state.
TWINS: dict[str, tuple[str, dict[str, Any]]] = {
    "GPT2LMHeadModel": (
        "gpt2",
        {"n_embd": 32, "n_layer": 3, "n_head": 4, "n_positions": 64, "n_ctx": 64, "vocab_size": 61},
    ),
    "LlamaForCausalLM": (
        "llama",
        {**SIZES, "rms_norm_eps": 3e-4, "rope_parameters": ROPE, "tie_word_embeddings": True},
    ),
    "MistralForCausalLM": (
        "mistral",
        {**OWN_HEAD_DIM, "sliding_window": 7, "rope_parameters": ROPE},
    ),
    "MixtralForCausalLM": (
        "mixtral",
        {**SIZES, "num_local_experts": 3, "num_experts_per_tok": 2, "head_dim": None},
    ),
    "Gemma2ForCausalLM": (
        "gemma2",
        {
            **OWN_HEAD_DIM,
            "sliding_window": 4096,
            "query_pre_attn_scalar": 10,
            "attn_logit_softcapping": 50.0,
            "final_logit_softcapping": 30.0,
        },
    ),
    "Gemma3ForCausalLM": (
        "gemma3_text",
        {
            **OWN_HEAD_DIM,
            "num_hidden_layers": 7,
            "sliding_window": 512,
            "query_pre_attn_scalar": 10,
        },
    ),
    "Olmo2ForCausalLM": (
        "olmo2",
        {
            **SIZES,
            "num_key_value_heads": 4,
            "rms_norm_eps": 1e-6,
            "rope_parameters": {"rope_type": "default", "rope_theta": 500000.0},
        },
    ),
}

#: What the sizes of a configuration are, and what TransformerLens derives from them.
SIZE_FIELDS = {
    "d_head",
    "d_mlp",
    "d_model",
    "d_vocab",
    "d_vocab_out",
    "n_ctx",
    "n_heads",
    "n_key_value_heads",
    "n_layers",
    "n_params",
    "rotary_dim",
    "attn_scale",
}


def _installed() -> bool:
    try:
        hooked._require_hooked_transformer()
    except NotApplicable:
        return False
    return True


needs_hooked = pytest.mark.skipif(
    not _installed(), reason="the installed TransformerLens has no HookedTransformer"
)


def _build(folder: Path, architecture: str, **changes: Any) -> Path:
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    model_type, fields = TWINS[architecture]
    config = AutoConfig.for_model(model_type, **{**fields, **changes})
    config.architectures = [architecture]
    generator = torch.Generator().manual_seed(0)
    model = AutoModelForCausalLM.from_config(config)
    with torch.no_grad():
        for parameter in model.parameters():
            noise = torch.randn(parameter.shape, generator=generator)
            if parameter.ndim == 1:
                parameter.add_(0.3 * noise)
            else:
                parameter.copy_(noise / parameter.shape[-1] ** 0.5)
    model.save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def twin(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """The directory of an architecture's twin, built once."""
    built: dict[str, Path] = {}

    def get(architecture: str) -> Path:
        if architecture not in built:
            built[architecture] = _build(tmp_path_factory.mktemp("twin"), architecture)
        return built[architecture]

    return get


@pytest.fixture
def offline(monkeypatch: pytest.MonkeyPatch) -> None:
    def connect(*args: object) -> None:
        raise AssertionError(f"asked for the network: {args}")

    monkeypatch.setattr(socket.socket, "connect", connect)
    monkeypatch.setattr(socket, "getaddrinfo", connect)


def _reference(folder: Path, dtype: Any) -> Any:
    from transformers import AutoModelForCausalLM

    return AutoModelForCausalLM.from_pretrained(
        folder, dtype=dtype, attn_implementation="eager", experts_implementation="eager"
    ).eval()


def _tokens() -> Any:
    import torch

    return torch.randint(1, 61, (2, 40), generator=torch.Generator().manual_seed(1))


@needs_hooked
@pytest.mark.usefixtures("offline")
@pytest.mark.parametrize("architecture", TWINS)
def test_a_right_port_agrees_to_rounding_in_promoted_float64(
    twin: Callable[[str], Path], architecture: str
) -> None:
    import torch

    from conformance.precision import promoted

    with promoted(torch.float64), torch.no_grad():
        model = load_hooked(twin(architecture), architecture=architecture, dtype=torch.float64)
        theirs = model(_tokens())
        ours = _reference(twin(architecture), torch.float64)(_tokens()).logits
    assert theirs.dtype == torch.float64
    assert (theirs - ours).abs().max() < 1e-12 * ours.abs().max()


@needs_hooked
@pytest.mark.parametrize("architecture", TWINS)
def test_float32_is_what_was_asked_for(twin: Callable[[str], Path], architecture: str) -> None:
    import torch

    model = load_hooked(twin(architecture), architecture=architecture, dtype=torch.float32)
    assert {p.dtype for p in model.parameters()} == {torch.float32}
    assert not model.training
    assert model.tokenizer is None
    with torch.no_grad():
        ours = _reference(twin(architecture), torch.float32)(_tokens()).logits
        assert (model(_tokens()) - ours).abs().max() < 1e-4 * ours.abs().max()


@needs_hooked
def test_weights_are_not_processed(twin: Callable[[str], Path]) -> None:
    import torch

    folder = twin("GPT2LMHeadModel")
    model = load_hooked(folder, architecture="GPT2LMHeadModel", dtype=torch.float32)
    reference = _reference(folder, torch.float32)
    assert torch.equal(model.blocks[1].ln1.w, reference.transformer.h[1].ln_1.weight)
    assert torch.equal(model.W_U, reference.lm_head.weight.T)
    assert model.b_V.any()


@needs_hooked
@pytest.mark.parametrize("architecture", [a for a in TWINS if not OFFICIAL[a].config_driven])
def test_a_hard_coded_configuration_loses_its_sizes_and_nothing_else(
    twin: Callable[[str], Path], architecture: str
) -> None:
    import torch
    from transformer_lens import loading_from_pretrained as loading

    ours = load_hooked(twin(architecture), architecture=architecture, dtype=torch.float32).cfg
    with hooked._served_as(twin(architecture), OFFICIAL[architecture].name) as hub_cache:
        official = loading.get_pretrained_model_config(
            OFFICIAL[architecture].name,
            device="cpu",
            cache_dir=str(hub_cache),
            local_files_only=True,
        )
    ours_fields, official_fields = ours.to_dict(), official.to_dict()
    changed = {k for k in official_fields if ours_fields[k] != official_fields[k]}
    assert changed - {"tokenizer_name"} <= SIZE_FIELDS
    assert ours.d_model == 32
    assert ours.n_layers == TWINS[architecture][1]["num_hidden_layers"]
    assert ours.n_ctx == 64
    assert ours.rotary_dim == ours.d_head


@needs_hooked
def test_a_larger_context_does_not_lift_the_official_cap(tmp_path: Path) -> None:
    import torch

    folder = _build(tmp_path, "Gemma3ForCausalLM", max_position_embeddings=32768)
    model = load_hooked(folder, architecture="Gemma3ForCausalLM", dtype=torch.float32)
    assert model.cfg.n_ctx == 8192


@needs_hooked
def test_a_config_driven_name_reads_the_checkpoint(twin: Callable[[str], Path]) -> None:
    import torch

    folder = twin("LlamaForCausalLM")
    cfg = load_hooked(folder, architecture="LlamaForCausalLM", dtype=torch.float32).cfg
    assert cfg.model_name == "Yi-6B"
    assert (cfg.eps, cfg.rotary_base, cfg.n_key_value_heads) == (3e-4, 54321.0, 2)


@needs_hooked
def test_the_name_can_be_chosen(twin: Callable[[str], Path]) -> None:
    import torch

    cfg = load_hooked(
        twin("LlamaForCausalLM"),
        architecture="LlamaForCausalLM",
        dtype=torch.float32,
        official_name="meta-llama/Llama-3.1-8B",
    ).cfg
    assert cfg.use_NTK_by_parts_rope
    assert (cfg.eps, cfg.rotary_base) == (1e-5, 500000.0)
    assert (cfg.n_layers, cfg.d_vocab, cfg.n_key_value_heads, cfg.rotary_dim) == (3, 61, 2, 8)


@needs_hooked
@pytest.mark.usefixtures("offline")
def test_the_checkpoint_s_tokenizer_is_used(tmp_path: Path) -> None:
    import torch
    from tokenizers import Tokenizer, models
    from transformers import PreTrainedTokenizerFast

    folder = _build(tmp_path, "GPT2LMHeadModel")
    words = {"<pad>": 0, "<bos>": 1, "<unk>": 2, "lens": 3}
    PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer(models.WordLevel(words, unk_token="<unk>")),
        bos_token="<bos>",
        pad_token="<pad>",
        unk_token="<unk>",
        padding_side="left",
    ).save_pretrained(folder)
    model = load_hooked(folder, architecture="GPT2LMHeadModel", dtype=torch.float32)
    assert model.tokenizer is not None
    assert model.to_tokens("lens", prepend_bos=False).tolist() == [[3]]
    # No mask may be guessed from ids that happen to be the padding id.
    assert model.tokenizer.padding_side == "right"


@needs_hooked
def test_transformer_lens_is_left_as_it_was(
    twin: Callable[[str], Path], capsys: pytest.CaptureFixture[str]
) -> None:
    import torch
    from transformer_lens import loading_from_pretrained as loading

    before = loading.convert_hf_model_config
    load_hooked(twin("LlamaForCausalLM"), architecture="LlamaForCausalLM", dtype=torch.float32)
    assert loading.convert_hf_model_config is before
    with pytest.raises(ConformanceError):
        load_hooked(
            twin("LlamaForCausalLM"),
            architecture="LlamaForCausalLM",
            dtype=torch.float32,
            official_name="gpt2-xl-of-nobody",
        )
    assert loading.convert_hf_model_config is before
    assert capsys.readouterr().out == ""


@needs_hooked
def test_a_failure_of_transformer_lens_says_what_and_where(tmp_path: Path) -> None:
    import torch

    folder = _build(tmp_path, "LlamaForCausalLM", head_dim=10)
    told = r"(?s)'01-ai/Yi-6B': RuntimeError: .*W_Q"
    with pytest.raises(ImplementationError, match=told) as caught:
        load_hooked(folder, architecture="LlamaForCausalLM", dtype=torch.float32)
    assert caught.value.__cause__ is not None


@needs_hooked
def test_a_layer_beyond_the_official_pattern_is_refused(tmp_path: Path) -> None:
    import torch

    folder = _build(tmp_path, "Gemma3ForCausalLM", num_hidden_layers=19)
    with pytest.raises(ImplementationError, match=r"19 layers.*only 18"):
        load_hooked(folder, architecture="Gemma3ForCausalLM", dtype=torch.float32)


@needs_hooked
def test_a_name_that_is_not_official_is_refused(tmp_path: Path) -> None:
    import torch

    with pytest.raises(ImplementationError, match="not a name") as caught:
        load_hooked(tmp_path, architecture="X", dtype=torch.float32, official_name="me/mine")
    assert "hooked_name" in caught.value.hint


@needs_hooked
def test_an_architecture_no_branch_ports_is_not_applicable(tmp_path: Path) -> None:
    import torch
    from transformers import AutoConfig

    config = AutoConfig.for_model("cohere")
    config.architectures = ["CohereForCausalLM"]
    config.save_pretrained(tmp_path)
    with pytest.raises(NotApplicable, match="CohereForCausalLM is not currently supported"):
        load_hooked(
            tmp_path,
            architecture="CohereForCausalLM",
            dtype=torch.float32,
            official_name="01-ai/Yi-6B",
        )


@needs_hooked
def test_olmo_with_grouped_heads_is_not_applicable(tmp_path: Path) -> None:
    import torch

    _build(tmp_path, "Olmo2ForCausalLM", num_attention_heads=4, num_key_value_heads=2)
    with pytest.raises(NotApplicable, match="2 key/value heads for 4 heads"):
        load_hooked(tmp_path, architecture="Olmo2ForCausalLM", dtype=torch.float32)


@needs_hooked
def test_the_table_names_official_models() -> None:
    from transformer_lens.supported_models import OFFICIAL_MODEL_NAMES

    assert {entry.name for entry in OFFICIAL.values()} <= set(OFFICIAL_MODEL_NAMES)


def test_the_table_agrees_with_the_hard_coded_names() -> None:
    for entry in OFFICIAL.values():
        assert entry.config_driven is not entry.name.startswith(HARD_CODED)
        assert entry.config_driven or "eps" in entry.note or "rope_theta" in entry.note


@pytest.mark.parametrize(
    "architecture",
    ["CohereForCausalLM", "FalconForCausalLM", "MptForCausalLM", "Qwen3MoeForCausalLM"],
)
def test_an_architecture_without_a_name_is_not_applicable(architecture: str) -> None:
    with pytest.raises(NotApplicable, match=architecture) as caught:
        hooked._default_name(architecture)
    assert "bridge" in caught.value.hint


def test_without_hooked_transformer_it_is_not_applicable(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    spec = importlib.machinery.ModuleSpec("transformer_lens", None, is_package=True)
    spec.submodule_search_locations = [str(tmp_path)]
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: spec)
    with pytest.raises(NotApplicable, match=r"removed in 4\.0") as caught:
        load_hooked(tmp_path, architecture="LlamaForCausalLM", dtype=None)  # type: ignore[arg-type]
    assert "3.9" in caught.value.hint
    (tmp_path / "HookedTransformer.py").touch()
    hooked._require_hooked_transformer()


def test_without_transformer_lens_it_is_not_applicable(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(NotApplicable, match="not installed"):
        load_hooked(tmp_path, architecture="LlamaForCausalLM", dtype=None)  # type: ignore[arg-type]


def test_refusing_imports_nothing_heavy() -> None:
    program = (
        "import sys\n"
        "from conformance.implementations import hooked\n"
        "try:\n"
        "    hooked._require_hooked_transformer()\n"
        "except Exception:\n"
        "    pass\n"
        "heavy = {'torch', 'transformers', 'transformer_lens'} & set(sys.modules)\n"
        "sys.exit(f'imported {heavy}' if heavy else 0)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", program],
        cwd=Path(__file__).parent.parent,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
