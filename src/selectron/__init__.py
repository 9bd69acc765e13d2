"""selectron finds the structures worth a quantum-chemistry label for an interatomic potential."""

__version__ = "0.1.0"
