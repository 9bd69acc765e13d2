"""``selectron models``, ``features``, ``selectors``: what there is, one line each."""

from __future__ import annotations

import typer


def register(app: typer.Typer) -> None:
    """Adds the commands to ``app``."""
    app.command("models")(models)
    app.command("features")(features)
    app.command("selectors")(selectors)


def models() -> None:
    """List the models that --model knows by name."""
    from selectron.potentials.load import FOUNDATION_MODELS, cached_foundation_file

    lines = {"embedded": "comes with selectron: 32 channels, H C N O, GFN2-xTB energies; MIT"}
    for name, model in FOUNDATION_MODELS.items():
        where = "in mace-torch's cache" if cached_foundation_file(name) else "mace-torch downloads it once"
        lines[name] = f"{where}; {model.licence}"
    lines["FILE"] = "any mace-torch .model file of class MACE or ScaleShiftMACE"
    lines["ase:MODULE:CLASS?KEY=VALUE"] = "any ASE calculator (energies and forces: for committees)"
    _print(lines)


def features() -> None:
    """List the feature maps."""
    from selectron.features import FEATURES

    _print({name: info.summary for name, info in FEATURES.items()})


def selectors() -> None:
    """List the selectors."""
    from selectron.acquisition import SELECTORS

    _print({name: info.summary for name, info in SELECTORS.items()})


def _print(lines: dict[str, str]) -> None:
    width = max(map(len, lines))
    for name, text in lines.items():
        typer.echo(f"{name:<{width}}  {text}")
