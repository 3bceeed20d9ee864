"""What the script does with both sides: its precision, its measure, its end."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from conformance.explain.script.cases import Case, Port


def float64_part() -> str:
    return '''
class Float64(TorchFunctionMode):
    """Turns every request for a narrower float into one for float64.

    Casting a model is not enough: norms, softmax and rotary tables ask for float32 by name.
    """

    NARROW = (torch.float32, torch.bfloat16, torch.float16)
    CASTS = (torch.Tensor.float, torch.Tensor.half, torch.Tensor.bfloat16)

    def __torch_function__(self, func, types, args=(), kwargs=None):
        if func in self.CASTS:
            return args[0].to(torch.float64)
        args = tuple(self.wide(a) for a in args)
        result = func(*args, **{k: self.wide(v) for k, v in (kwargs or {}).items()})
        made = func in (torch.tensor, torch.as_tensor, torch.asarray)
        return result.to(torch.float64) if made and result.dtype in self.NARROW else result

    def wide(self, value):
        return torch.float64 if isinstance(value, torch.dtype) and value in self.NARROW else value


@contextlib.contextmanager
def precision(dtype):
    """Load and run in this dtype; float64 means float64 everywhere."""
    before = torch.get_default_dtype()
    with contextlib.ExitStack() as stack:
        if dtype == torch.float64:
            torch.set_default_dtype(dtype)
            stack.callback(torch.set_default_dtype, before)
            stack.enter_context(Float64())
        yield
'''


def difference_part() -> str:
    return '''
def difference(site, want, got, mask=None):
    """The largest difference relative to the largest value, rms likewise, and where."""
    want, got = want.double(), got.double()
    if want.shape != got.shape and want.numel() == got.numel():
        want = want.reshape(got.shape)
    if want.shape != got.shape and want.shape[1:] == got.shape[1:]:
        want, got = torch.broadcast_tensors(want, got)
    if want.shape != got.shape:
        return float("inf"), float("inf"), f"shape {tuple(got.shape)}, not {tuple(want.shape)}"
    gap = (got - want).abs()
    keep = torch.ones_like(gap, dtype=torch.bool)
    if site.endswith("attn.scores"):
        keep &= want > -6e4  # not what the mask forbids
    if mask is not None:
        real = mask.bool()
        if gap.ndim == 4 and site.endswith(("attn.scores", "attn.pattern")):
            keep &= real[:, None, :, None]
        elif gap.shape[:2] == real.shape:
            keep &= real.reshape(*real.shape, *[1] * (gap.ndim - 2))
        elif gap.shape[0] == real.numel():
            keep &= real.reshape(-1, *[1] * (gap.ndim - 1))
    gap, size = gap.where(keep, 0.0), want.abs().where(keep, 0.0)
    index = [int(i) for i in torch.unravel_index(gap.argmax(), gap.shape)]
    at = tuple(index)
    digits = 9 if gap.max() > 1e-7 * size.max() else 17
    where = f"at {index}: HuggingFace {want[at]:.{digits}g}, TransformerLens {got[at]:.{digits}g}"
    rms = (gap.square().sum() / size.square().sum().clamp_min(1e-300)).sqrt()
    return float(gap.max() / size.max().clamp_min(1e-300)), float(rms), where
'''


def main_part(case: Case, port: Port, exact: bool) -> str:
    mask = ", MASK" if case.mask is not None else ""
    lines = [
        "def main():",
        "    transformers.logging.set_verbosity_error()",
        "    transformers.logging.disable_progress_bar()",
        '    for package in ("transformer-lens", "transformers", "torch"):',
        "        print(package, version(package))",
        "    names = [row[0] for row in SITES if row[0]]",
        '    names += [f"blocks.{i}.{row[0]}" for i in range(LAYERS) for row in LAYER_SITES]',
        '    names += [row[0] for row in LAST_SITES if row[0]] + ["logits"]',
        "    with tempfile.TemporaryDirectory() as folder:",
        "        folder = build(folder)",
    ]
    if case.dtype is not None:
        lines += [
            "        with precision(torch.float64):",
            "            truth = run_reference(folder, torch.float64)",
            f"        want = run_reference(folder, torch.{case.dtype})",
            f"        got = run_port(folder, torch.{case.dtype})",
            "    for site in names:",
            "        if site not in got:",
            '            print(f"first diverging site: {site}, whose hook never fired")',
            "            return 1",
            f"        own = difference(site, truth[site], want[site]{mask})[1]",
            f"        _, error, where = difference(site, truth[site], got[site]{mask})",
            f"        floor = 2 * torch.finfo(torch.{case.dtype}).eps",
            "        if not error <= 4 * max(own, floor):",
            '            print(f"first diverging site: {site}, error {error:.2e} {where}; "',
            '                  f"HuggingFace\'s own error is {own:.2e}")',
            "            return 1",
        ]
    else:
        dtype = "torch.float64" if exact else "torch.float32"
        indent = "        "
        if exact:
            lines.append("        with precision(torch.float64):")
            indent += "    "
        lines += [
            f"{indent}want = run_reference(folder, {dtype})",
            *_run_port(case, f"run_port(folder, {dtype})", indent),
        ]
        if port.flags is not None:
            lines += [
                '    names = ["logits"]  # up to a constant per position, which processing removes',
                "    for side in (want, got):",
                '        side["logits"] = side["logits"] - side["logits"].mean(-1, keepdim=True)',
            ]
        lines += [
            "    for site in names:",
            "        if site not in got:",
            '            print(f"first diverging site: {site}, whose hook never fired")',
            "            return 1",
            f"        measured, _, where = difference(site, want[site], got[site]{mask})",
            "        if not measured <= ALLOWED:",
            '            size = f"relative difference {measured:.2e}"',
            '            print(f"first diverging site: {site}, {size} {where}")',
            f'            logits = difference("logits", want["logits"], got["logits"]{mask})',
            '            print(f"logits: relative difference {logits[0]:.2e} {logits[2]}")',
            "            return 1",
        ]
    lines += [
        '    print(f"{len(names)} sites agree")',
        "    return 0",
        "",
        "",
        'if __name__ == "__main__":',
        "    raise SystemExit(main())",
    ]
    return "\n".join(lines)


def _run_port(case: Case, call: str, indent: str) -> list[str]:
    if not case.crashes:
        return [f"{indent}got = {call}"]
    return [
        f"{indent}try:",
        f"{indent}    got = {call}",
        f"{indent}except Exception as error:",
        f'{indent}    said = f"{{type(error).__name__}}: {{error}}"',
        f'{indent}    print(f"first diverging site: logits, for TransformerLens raises {{said}}")',
        f"{indent}    return 1",
    ]
