"""Whether PySCF's result has the dispersion that the name of a functional means, found out before anything is bought.

PySCF 2.14 reads a name in three ways at once: ``xc-d3bj`` and ``xc-d4`` are a functional and a dispersion, some names stand for
another functional (``wb97x-d3bj`` is wB97X-V without VV10, with D3(BJ)), and all else goes to libxc, which has functionals
that were fitted together with a dispersion that libxc does not hold (``b97-d``, ``wb97xd``): those are computed without it.
"""

from __future__ import annotations

import re
import warnings

from selectron.errors import SelectronError

_FITTED_WITH_DISPERSION = re.compile(r"_D\d?$|_3C$|VDW$|DLDF$")
"""Of libxc's names: B97_D, WB97X_D, WB97X_D3, B97_3C, OPBE_D, SSB_D, BEEFVDW, OPTB88_VDW, DLDF and the like."""

_INSTEAD = {
    "b97d": "functional 'b97-d' with dispersion 'd3bj' or 'd3zero'",
    "b97d3": "functional 'b97-d' with dispersion 'd3zero'",
    "b97d3bj": "functional 'b97-d' with dispersion 'd3bj'",
    "wb97xd": "'wb97x-d3bj', 'wb97x-v', or functional 'wb97xd3' with dispersion 'd3zero:wb97x' (wB97X-D3)",
    "wb97xd3": "functional 'wb97xd3' with dispersion 'd3zero:wb97x'",
    "b973c": "another functional: its correction of short bonds is missing too",
}


def check_functional(functional: str, dispersion: str | None) -> None:
    """Raises SelectronError, with what to write instead, where the result would not be what the two names mean.

    That is: PySCF does not know the functional or its dispersion; the dispersion in the name would be dropped for another,
    or stand beside VV10; the functional was fitted with a dispersion that would be missing; a dash would be read as a minus;
    exchange is missing; the parameters that libraries keep under this name are of another functional.
    """
    from pyscf.dft import libxc
    from pyscf.scf.dispersion import parse_dft

    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            kernel, nonlocal_, named = parse_dft(functional)
        (exact, *_), terms = libxc.parse_xc(kernel)
        vv10 = nonlocal_ != 0 and bool(libxc.is_nlc(kernel))
    except NotImplementedError:
        raise _refused(functional, "PySCF does not have its dispersion") from None
    except (KeyError, ValueError) as error:
        said = " ".join(str(error).split())
        raise SelectronError(f"PySCF does not know the functional {functional!r} ({said}).") from None
    if _plain(functional) in _INSTEAD and named is not None:
        raise _refused(functional, "PySCF looks for it under the name without its last part")
    if named == "d3":
        raise SelectronError(
            f"The functional {functional!r} does not say which D3: write {functional + 'bj'!r} or {functional + 'zero'!r}."
        )
    if any(factor < 0 for _, factor in terms):
        raise SelectronError(
            f"PySCF reads the dash in the functional {functional!r} as a minus sign; write {functional.replace('-', '_')!r}."
        )
    names = {int(number): name for name, number in libxc.available_libxc_functionals().items()}
    parts = [names.get(int(number), "") for number, _ in terms]
    if not exact and parts and not any("_X_" in part or "_XC_" in part for part in parts):
        raise SelectronError(f"The functional {functional!r} is correlation without exchange ({', '.join(parts)}).")
    if named is not None and dispersion is not None and named != dispersion:
        raise SelectronError(
            f"The functional {functional!r} names the dispersion {named!r}, and {dispersion!r} is asked for: name one."
        )
    if vv10 and (named or dispersion):
        raise SelectronError(
            f"The functional {functional!r} has the dispersion VV10 in it, and {named or dispersion!r} would count on top: "
            "leave that out, or write such names as 'wb97x-d3bj', which has it in place of VV10."
        )
    if any("RVV10" in part for part in parts):
        raise _refused(functional, "PySCF computes VV10 for its rVV10")
    if any(part.endswith("_3C") for part in parts):
        raise _refused(functional, "PySCF has not all its corrections")
    fitted = [part for part in parts if _FITTED_WITH_DISPERSION.search(part)]
    if fitted and not (named or dispersion or vv10):
        raise _refused(functional, f"libxc's {fitted[0]} was fitted with a dispersion that PySCF would leave out")
    if any(part.endswith("_WB97X") for part in parts) and dispersion is not None and ":" not in dispersion:
        raise SelectronError(
            f"The parameters of {dispersion!r} for wB97X are of other functionals (wB97X-V without VV10, wB97X-D3): "
            "write functional 'wb97x-d3bj', or functional 'wb97x' with dispersion 'd4:wb97x-2008'."
        )


def _refused(functional: str, why: str) -> SelectronError:
    plain = _plain(functional)
    general = "another functional" + (
        "" if plain.endswith("3c") else ", or give its dispersion as dispersion, such as d3bj"
    )
    return SelectronError(
        f"The functional {functional!r} cannot be had with its dispersion ({why}); write {_INSTEAD.get(plain, general)}."
    )


def _plain(functional: str) -> str:
    return re.sub(r"^(hyb_)?(lda|m?gga)_xc?_|[-_]", "", functional.lower())
