"""The parametrised suite: ``pytest --pyargs conformance.suite --models models.toml``."""
