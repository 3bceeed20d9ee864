"""Loads the plugin in a checkout that is not installed; harmless in one that is."""

pytest_plugins = ("conformance.plugin", "pytester")
