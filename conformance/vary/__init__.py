"""``conformance vary``: an architecture's configurations, and those in which its port breaks.

``values`` says which fields of a config class change the mathematics and what else they may be;
``space`` makes of it the configurations of one twin; ``pairs`` chooses them pairwise; ``explore``
judges them, searches further and shrinks what fails with hypothesis; ``bench`` judges one;
``command`` runs it all and writes ``vary.jsonl``, which ``records`` describes and ``tables`` reads.
"""
