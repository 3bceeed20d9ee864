"""The report as pages: ``report/index.html`` beside the records, and a page for each model.

Made from the records of a run, and from what the run left beside them (samples of activations,
explanations); the pages say where either is missing. They open from a disk, without a network.
"""
