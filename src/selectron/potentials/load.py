"""From what a user writes after ``--model`` to a potential."""

from __future__ import annotations

import contextlib
import hashlib
import io
import json
from pathlib import Path
from typing import NamedTuple
from urllib.parse import parse_qsl

import torch

from selectron.errors import SelectronError
from selectron.potentials.ase_potential import ase_potential_from
from selectron.potentials.base import Potential
from selectron.potentials.mace import MacePotential
from selectron.potentials.mace_files import load_mace
from selectron.potentials.mlp import MLPPotential
from selectron.potentials.surfaces import surface_from

DTYPES = {"float32": torch.float32, "float64": torch.float64}


class FoundationModel(NamedTuple):
    """A model that mace-torch can download: its family and name there, licence, and SHA-256 where we know it."""

    family: str
    key: str
    licence: str
    sha256: str | None = None


_MP_SMALL = "2ddb079cee0e131eaaf6912ba581b394551ead283e95c99cfe78c605d10b5736"
_OFF_SMALL = "165cce4cfec5a34b9c64d4ebf95de15d71106bb584b7291c8470f0749977c46f"

FOUNDATION_MODELS: dict[str, FoundationModel] = {
    "mace-off23-small": FoundationModel("off", "small", "ASL (academic use)", _OFF_SMALL),
    "mace-off23-medium": FoundationModel("off", "medium", "ASL (academic use)"),
    "mace-off23-large": FoundationModel("off", "large", "ASL (academic use)"),
    "mace-mp-small": FoundationModel("mp", "small", "MIT", _MP_SMALL),
    "mace-mp-medium": FoundationModel("mp", "medium", "MIT"),
    "mace-mp-large": FoundationModel("mp", "large", "MIT"),
    "mace-mpa-medium": FoundationModel("mp", "medium-mpa-0", "MIT"),
    "mace-omat-small": FoundationModel("mp", "small-omat-0", "ASL (academic use)"),
    "mace-omat-medium": FoundationModel("mp", "medium-omat-0", "ASL (academic use)"),
    "mace-matpes-pbe": FoundationModel("mp", "mace-matpes-pbe-0", "ASL (academic use)"),
    "mace-matpes-r2scan": FoundationModel("mp", "mace-matpes-r2scan-0", "ASL (academic use)"),
}


def load_potential(
    spec: str | Path,
    *,
    device: str = "cpu",
    dtype: str = "float32",
    head: str | None = None,
) -> Potential:
    """The potential that ``spec`` names.

    * ``embedded``: the small model that comes with selectron;
    * a name of :data:`FOUNDATION_MODELS`, which mace-torch downloads once into its own cache;
    * ``ase:package.module:Class?argument=value&…``: an ASE calculator (energies and forces only);
    * ``surface:name?argument=value&…``: an analytic surface of :data:`~selectron.potentials.SURFACES`, always float64;
    * a path that ends in ``.mlp``: a planar MLP that :meth:`MLPPotential.save` wrote, always float64; it runs no code;
    * anything else is the path of a mace-torch ``.model`` file. It is a pickle and can run code: open only what you trust.

    Raises SelectronError with one sentence where that does not work.
    """
    if dtype not in DTYPES:
        raise SelectronError(f"{dtype!r} is no dtype; say float32 or float64.")
    text = str(spec)
    if text.startswith("ase:"):
        import_path, _, query = text[4:].partition("?")
        return ase_potential_from(import_path, _arguments(query))
    if text.startswith("surface:"):
        name, _, query = text[8:].partition("?")
        return surface_from(name, _arguments(query), device=device)
    if text.endswith(".mlp"):
        return MLPPotential.load(text, device=device)
    return MacePotential(
        load_mace(model_file(text)),
        name=text if text in FOUNDATION_MODELS or text == "embedded" else Path(text).stem,
        device=device,
        dtype=DTYPES[dtype],
        head=head,
    )


def model_file(spec: str) -> Path:
    """The model file that ``spec`` means, downloaded by mace-torch if it has to be; known weights are verified."""
    if spec == "embedded":
        from selectron.embedded import model_path

        return model_path()
    if spec in FOUNDATION_MODELS and not Path(spec).exists():
        return _foundation_file(spec)
    if not Path(spec).exists():
        raise SelectronError(
            f"There is no model {spec!r}: no such file, and no known name (selectron models lists the names)."
        )
    return Path(spec)


def cached_foundation_file(name: str) -> Path | None:
    """Where mace-torch's cache has the model ``name``, or None where it is not there yet."""
    from mace.tools.utils import get_cache_dir

    url = _url(FOUNDATION_MODELS[name])
    base = url.rsplit("/", 1)[-1]
    cleaned = "".join(c for c in base if c.isalnum() or c == "_")
    found = [Path(get_cache_dir()) / candidate for candidate in (base, cleaned)]
    return next((path for path in found if path.is_file()), None)


def _url(model: FoundationModel) -> str:
    from mace.calculators.foundations_models import mace_mp_urls, mace_off_urls

    return str((mace_off_urls if model.family == "off" else mace_mp_urls)[model.key])


def _foundation_file(name: str) -> Path:
    model = FOUNDATION_MODELS[name]
    path = cached_foundation_file(name)
    if path is None:
        from mace.calculators import mace_off
        from mace.calculators.foundations_models import download_mace_mp_checkpoint

        try:
            with contextlib.redirect_stdout(io.StringIO()):
                if model.family == "off":
                    mace_off(model=model.key, return_raw_model=True, device="cpu")
                else:
                    download_mace_mp_checkpoint(model.key)
        except Exception as error:  # whatever the network raises
            raise SelectronError(
                f"mace-torch could not download {name} ({error}); fetch {_url(model)} and give its path to --model."
            ) from None
        path = cached_foundation_file(name)
        if path is None:
            raise SelectronError(f"mace-torch did not leave {name} in its cache.")
    if model.sha256 and hashlib.sha256(path.read_bytes()).hexdigest() != model.sha256:
        raise SelectronError(
            f"{path} is not {name}: its SHA-256 differs from the published weights; delete it and try again."
        )
    return path


def _arguments(query: str) -> dict[str, object]:
    return {key: _literal(value) for key, value in parse_qsl(query)}


def _literal(value: str) -> object:
    try:
        return json.loads(value)
    except json.JSONDecodeError:
        return value
