"""The command line: which commands there are, and how errors reach a person."""

from __future__ import annotations

import os
import signal
import sys
import traceback
import warnings
from collections.abc import Sequence
from types import FrameType
from typing import Annotated

from selectron.waiting import wait_briefly

wait_briefly(os.environ)  # before anything imports PyTorch

# mace-torch prints advice about accelerators that a screening does not need; what matters is raised as an error
warnings.filterwarnings("ignore", module=r"(mace|e3nn|torch)\b.*")
warnings.filterwarnings("ignore", message=".*(TORCH_FORCE|weights_only|TorchScript|torch.jit).*")

import typer  # noqa: E402

from selectron import __version__  # noqa: E402
from selectron.cli import (  # noqa: E402
    demo,
    export,
    inspect,
    label,
    lists,
    report,
    resume,
    run,
    sample,
    schema,
    score,
    select,
    status,
    template,
    train,
    validate,
)
from selectron.errors import SelectronError  # noqa: E402

app = typer.Typer(
    name="selectron",
    help="Find the structures worth a quantum-chemistry label.",
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)
_campaign = (run, resume, status, report, export, validate, schema, template)
for _module in (inspect, select, score, sample, label, train, *_campaign, lists, demo):
    _module.register(app)

STOPPED = "Stopped. Feature rows and labels that are stored already are not computed again."


def _version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"selectron {__version__}")
        raise typer.Exit


@app.callback()
def _common(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Show the version.")
    ] = False,
    debug: Annotated[
        bool, typer.Option("--debug", help="Show the traceback of an error; may stand anywhere in the line.")
    ] = False,
) -> None:
    """Find the structures worth a quantum-chemistry label."""
    del version, debug


def main(arguments: Sequence[str] | None = None) -> None:
    """Runs the command line and exits: 0 done, 2 bad input (one sentence), 1 a bug, 130 Ctrl-C, 143 terminated."""
    given = list(sys.argv[1:] if arguments is None else arguments)
    debug = "--debug" in given
    given = [one for one in given if one != "--debug"] or ["--help"]
    signal.signal(signal.SIGTERM, _terminate)
    code = 0
    try:
        # --help and Ctrl-C come back as exit codes, a command as None
        code = app(given, prog_name="selectron", standalone_mode=False) or 0
        sys.stdout.flush()
        if code == 130:
            _say(STOPPED, code)
    except BrokenPipeError:
        # whoever read our output has gone; what is left of it goes nowhere, without a word
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
        code = 141
    except (KeyboardInterrupt, typer.Abort):  # outside of any command
        code = _say(STOPPED, 130)
    except Exception as error:
        if debug:
            traceback.print_exc()
        text, code = _explained(error, debug)
        if text:
            _say(f"Error: {text}", code)
    sys.exit(code)


def _explained(error: Exception, debug: bool) -> tuple[str, int]:
    """What to say about ``error``, and the exit code."""
    if isinstance(error, SelectronError):
        return str(error), 2
    if isinstance(error, typer.BadParameter.__mro__[2]):  # any error of usage; typer does not export their base class
        usage = error.format_message()  # type: ignore[attr-defined]
        return f"{usage.rstrip('.')}; --help shows what there is." if usage else "", 2
    if isinstance(error, OSError) and error.strerror:
        return f"{error.strerror}{f': {error.filename}' if error.filename else ''}.", 2
    hint = "" if debug else "; run it again with --debug to see where, and report it"
    return f"selectron met what it does not expect ({type(error).__name__}: {error}){hint}.", 1


def _say(text: str, code: int) -> int:
    print(text, file=sys.stderr, flush=True)
    return code


def _terminate(number: int, frame: FrameType | None) -> None:
    """Leaves by way of an exception, so that drafts of outputs are removed."""
    del frame
    sys.exit(128 + number)
