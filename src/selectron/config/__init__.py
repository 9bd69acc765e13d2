"""YAML files to checked models, with errors that say where; see :func:`selectron.config.load.load_yaml`."""
