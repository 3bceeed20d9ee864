"""Commands of the command line, a module each; :mod:`conformance.cli` registers them."""
