"""The strict ledger of expected failures: judged by, kept fresh, changed only by proposal.

Reading and validating it is part of :mod:`conformance.spec`.
"""
