"""``conformance prove``: known faults put into ports, and what the checks say of them.

``command`` runs it over models; ``ports`` over the catalogue on one port; ``bench`` puts one
fault in and takes it out; ``proof`` is the record.
"""
