"""transformers: Zamba 2 limits its time steps in a whole pass, and not in a single decoded token.

Exit status: 0 the defect shows, 1 it does not, 2 it does not apply to the installed versions.
"""

from __future__ import annotations

from importlib.metadata import version
from typing import Any

import torch
import transformers

CONFIG: dict[str, Any] = {
    **{"vocab_size": 50, "hidden_size": 48, "intermediate_size": 80, "num_hidden_layers": 3},
    **{"layers_block_type": ["linear_attention", "hybrid", "linear_attention"]},
    **{"num_attention_heads": 4, "n_mamba_heads": 8, "mamba_d_state": 8, "chunk_size": 8},
    **{"adapter_rank": 4},
}
PROMPT, LENGTH = 12, 20


def apart(least: float) -> float:
    """The largest difference of logits between one pass and decoding single tokens, relative.

    Args:
        least: ``time_step_min``, below which a whole pass lets no time step fall.
    """
    torch.manual_seed(0)
    model = transformers.Zamba2ForCausalLM(transformers.Zamba2Config(**CONFIG)).eval().double()
    with torch.no_grad():
        for parameter in model.parameters():
            noise = torch.randn_like(parameter)
            if parameter.ndim == 1:
                parameter.add_(0.3 * noise)
            else:
                parameter.copy_(0.3 * noise)
        for module in model.modules():
            if hasattr(module, "time_step_limit"):
                module.time_step_limit = (least, float("inf"))
        tokens = torch.randint(3, 50, (1, LENGTH))
        whole = model(tokens).logits
        made = model(tokens[:, :PROMPT], use_cache=True)
        found = [made.logits]
        for i in range(PROMPT, LENGTH):
            cache = made.past_key_values
            made = model(tokens[:, i : i + 1], past_key_values=cache, use_cache=True)
            found.append(made.logits)
    return float((torch.cat(found, dim=1) - whole).abs().max() / whole.abs().max())


def main() -> int:
    transformers.logging.set_verbosity_error()
    print("transformers", version("transformers"), "torch", version("torch"))
    limited, free = apart(transformers.Zamba2Config().time_step_min), apart(0.0)
    print(f"time_step_min 0.001, the default: decoding is off by {limited:.1e}")
    print(f"no limit:                         decoding is off by {free:.1e}")
    return 0 if limited > 1e-4 and free < 1e-6 else 1


if __name__ == "__main__":
    raise SystemExit(main())
