"""Published weights -> what ``save_pretrained`` writes: float32 safetensors and a config.

Every conversion ends with a reload that must give the same parameters, bit for bit.
"""

from __future__ import annotations

import contextlib
import difflib
import io
import json
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

from conformance.classes import model_class
from conformance.errors import CheckpointError

if TYPE_CHECKING:
    from pathlib import Path

    import torch

#: Only the way from words to ids and back is compared, not whether the split is a good one.
_SAMPLE = "Hello, world! 12345 na\u00efve \u65e5\u672c\u8a9e\n\tdef f(x): return x + 1"
#: Where the file came from; some loaders guess an architecture from it.
_NAMES = ("_model_name_or_path", "_name_or_path", "transformers_version")


def from_gguf(weights: Path, overrides: Mapping[str, Any], architecture: str, target: Path) -> None:
    """Dequantise a GGUF file, with its config and tokenizer, into ``target``.

    Raises:
        CheckpointError: it holds another architecture, or its tensors do not fit the config.
    """
    import torch
    import transformers

    folder, name = weights.parent, weights.name
    with _quiet():
        read = transformers.AutoConfig.from_pretrained(
            folder, gguf_file=name, local_files_only=True
        )
        config = _corrected(type(read), read.to_dict(), overrides)
        loaded, info = transformers.AutoModelForCausalLM.from_pretrained(
            folder,
            gguf_file=name,
            config=config,
            dtype=torch.float32,
            local_files_only=True,
            output_loading_info=True,
        )
        tokenizer = transformers.AutoTokenizer.from_pretrained(
            folder, gguf_file=name, local_files_only=True
        )
    if type(loaded).__name__ != architecture:
        raise CheckpointError(
            f"the GGUF file holds a {type(loaded).__name__}, models.toml says {architecture}",
            f'write architecture = "{type(loaded).__name__}"',
        )
    _require_fit(
        missing=info["missing_keys"],
        unexpected=info["unexpected_keys"],
        mismatched=info["mismatched_keys"],
    )
    state = loaded.state_dict()
    _save(type(loaded), config, state, target)
    tokenizer.save_pretrained(target)
    _verify(type(loaded), state, target)
    with _quiet():
        again = transformers.AutoTokenizer.from_pretrained(target, local_files_only=True)
    if again(_SAMPLE)["input_ids"] != tokenizer(_SAMPLE)["input_ids"]:
        raise CheckpointError(
            "the tokenizer gives other ids after save_pretrained and reloading",
            "a defect of the installed transformers: try another version",
        )


def from_state_dict(
    config_file: Path,
    weights: Path,
    overrides: Mapping[str, Any],
    architecture: str,
    target: Path,
) -> None:
    """Convert a pickled state dict, read without running any code in it, into ``target``.

    Raises:
        CheckpointError: not a state dict, or one that does not fit the architecture exactly.
    """
    import torch
    import transformers

    cls = model_class(architecture)
    if cls is None:
        raise CheckpointError(
            f"the installed transformers {transformers.__version__} has no {architecture}",
            "correct architecture in models.toml, or install another version",
        )
    config = _corrected(
        cls.config_class, json.loads(config_file.read_text(encoding="utf-8")), overrides
    )
    loaded = torch.load(weights, map_location="cpu", weights_only=True)
    if not isinstance(loaded, Mapping) or not all(
        isinstance(value, torch.Tensor) for value in loaded.values()
    ):
        raise CheckpointError(
            "the state dict holds something other than tensors",
            "name the member that torch.save wrote from model.state_dict()",
        )
    state = {name: value.to(torch.float32) for name, value in loaded.items()}
    state = _complete(state, cls, config)
    _save(cls, config, state, target)
    _verify(cls, state, target)


def _corrected(cls: Any, fields: Mapping[str, Any], overrides: Mapping[str, Any]) -> Any:
    """A config from what the file states and what ``models.toml`` corrects."""
    kept = {key: value for key, value in fields.items() if key not in _NAMES}
    stated = cls.from_dict(kept)
    for key in overrides:
        # What the class does not know is kept, as from_pretrained keeps it: other readers may.
        near = difflib.get_close_matches(key, stated.to_dict(), n=1)
        if not hasattr(stated, key) and near:
            raise CheckpointError(
                f"source.wheel.config: {cls.__name__} has no field {key!r}",
                f"did you mean {near[0]!r}?",
            )
    return cls.from_dict({**kept, **overrides})


def _empty(cls: Any, config: Any) -> Any:
    """The model without storage: the weights are assigned to it."""
    import torch

    with torch.device("meta"):
        return cls(config)


def _complete(state: dict[str, torch.Tensor], cls: Any, config: Any) -> dict[str, torch.Tensor]:
    """Give keys the prefix they lack and tied parameters their value; then all must fit."""
    import torch

    model = _empty(cls, config)
    wanted = model.state_dict()
    prefix = f"{cls.base_model_prefix}."
    if not any(name.startswith(prefix) for name in state):
        state = {name if name in wanted else prefix + name: value for name, value in state.items()}
    for name, origin in model.all_tied_weights_keys.items():
        if name in state and origin in state and not torch.equal(state[name], state[origin]):
            raise CheckpointError(
                f"{name} and {origin} differ, but the config ties them",
                "add config = { tie_word_embeddings = false } to the wheel source",
            )
        for one, other in ((name, origin), (origin, name)):
            if one in state:
                state.setdefault(other, state[one])
    _require_fit(
        missing=wanted.keys() - state.keys(),
        unexpected=state.keys() - wanted.keys(),
        mismatched=[
            f"{name}: {tuple(state[name].shape)} in the file, {tuple(wanted[name].shape)} wanted"
            for name in wanted.keys() & state.keys()
            if state[name].shape != wanted[name].shape
        ],
    )
    return state


def _require_fit(**groups: Any) -> None:
    found = [
        f"{word} {len(keys)}: {', '.join(sorted(map(str, keys))[:4])}"
        for word, keys in groups.items()
        if keys
    ]
    if found:
        raise CheckpointError(
            "the weights do not fit the architecture: " + "; ".join(found),
            "check architecture, members and config of the wheel source",
        )


def _save(cls: Any, config: Any, state: Mapping[str, torch.Tensor], target: Path) -> None:
    import torch

    if bad := [name for name, value in state.items() if not bool(torch.isfinite(value).all())]:
        raise CheckpointError(
            f"not finite: {', '.join(bad[:4])}", "the file is damaged, or its format is misread"
        )
    # A model loaded from GGUF refuses to be saved; an equal one without that past does not.
    model = _empty(cls, config)
    model.load_state_dict(state, strict=True, assign=True)
    model.tie_weights()
    with _quiet():
        model.save_pretrained(target)


def _verify(cls: Any, state: Mapping[str, torch.Tensor], target: Path) -> None:
    """Reload what was saved; it must be what was in memory."""
    import torch

    with _quiet():
        reloaded, info = cls.from_pretrained(
            target, dtype=torch.float32, local_files_only=True, output_loading_info=True
        )
    _require_fit(
        missing=info["missing_keys"],
        unexpected=info["unexpected_keys"],
        mismatched=info["mismatched_keys"],
    )
    found = reloaded.state_dict()
    different = sorted(
        name
        for name in state.keys() | found.keys()
        if name not in state or name not in found or not torch.equal(state[name], found[name])
    )
    if different:
        raise CheckpointError(
            f"{len(different)} parameters differ after saving and reloading: "
            + ", ".join(different[:4]),
            "a defect of the installed transformers: try another version",
        )


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Hide progress bars. Loggers keep the stream they have: transformers is imported by now."""
    with contextlib.redirect_stderr(io.StringIO()):
        yield
