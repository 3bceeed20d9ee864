"""Models of TransformerLens's own format, for which transformers has no class.

Attention-only and shortformer models, SoLU models and others were published as state dicts of
TransformerLens itself (``NeelNanda/...``, ``ArthurConmy/...``, ``Baidicoot/...``). Their reference
is :mod:`conformance.native.model`: the formulas of their papers in plain torch, made a class of
transformers so that everything else treats it like any other. It shares no code with
TransformerLens; :mod:`conformance.native.published` writes what was published of a checkpoint, and
TransformerLens's own loaders read that.
"""

#: The class of :mod:`conformance.native.model`, as ``models.toml`` names it: what TransformerLens
#: itself calls the architecture.
ARCHITECTURE = "TransformerLensNative"
