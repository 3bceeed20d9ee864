"""Reports, each made from records alone."""

from __future__ import annotations

#: The page written beside ``records.jsonl``.
REPORT = "report.md"
