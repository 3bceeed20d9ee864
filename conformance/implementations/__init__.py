"""The two sides: HuggingFace (the reference) and the TransformerLens ports (the subjects)."""
