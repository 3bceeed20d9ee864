"""``conformance explain``: what differs first in a port, where, why, and the smallest case.

``command`` runs it; ``port`` puts an explanation together from ``survey`` (what was seen),
``localize`` (which site and component), ``conformance.diagnose`` (which formula) and
``reproduce`` (the standalone script). ``explanations`` holds the records.
"""
