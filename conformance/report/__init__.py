"""Reports, each made from records alone."""

from __future__ import annotations

#: The page written beside ``records.jsonl`` as text; the one to open is :data:`PAGES`.
REPORT = "report.md"
#: The first page of the report for a browser, beside ``records.jsonl``.
PAGES = "report/index.html"
