"""The ``selectron`` command: one module a command, no logic of its own."""

from selectron.cli.app import main

__all__ = ["main"]
