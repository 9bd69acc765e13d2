"""The command line: which commands there are, and how errors reach a person."""

from __future__ import annotations

import importlib.util
import os
import sys
import warnings

# threads that wait should sleep: spinning is many times slower as soon as another program wants the cores
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

# mace-torch prints advice about accelerators that a screening does not need; what matters is raised as an error
warnings.filterwarnings("ignore", module=r"(mace|e3nn|torch)\b.*")
warnings.filterwarnings("ignore", message=".*(TORCH_FORCE|weights_only|TorchScript|torch.jit).*")

import typer  # noqa: E402

from selectron import __version__  # noqa: E402
from selectron.errors import SelectronError  # noqa: E402

app = typer.Typer(
    name="selectron",
    help="Find the structures worth a quantum-chemistry label.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)


def _version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"selectron {__version__}")
        raise typer.Exit


@app.callback()
def _common(
    debug: bool = typer.Option(False, "--debug", help="Show the traceback of an error."),
    version: bool = typer.Option(False, "--version", callback=_version, is_eager=True, help="Show the version."),
) -> None:
    """Find the structures worth a quantum-chemistry label."""
    del version
    if debug:
        os.environ["SELECTRON_DEBUG"] = "1"


def main() -> None:
    """Runs the command line; a SelectronError becomes one sentence and exit code 2."""
    from selectron.cli import demo, lists, score, select

    for module in (select, score, lists, demo):
        module.register(app)
    try:
        app(standalone_mode=True)
    except SelectronError as error:
        if os.environ.get("SELECTRON_DEBUG"):
            raise
        _say(f"Error: {_sentence(error)}")
        sys.exit(2)
    except KeyboardInterrupt:
        _say("Stopped. Feature rows computed so far are kept; the same command goes on from there.")
        sys.exit(130)
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(141)
    except OSError as error:
        if os.environ.get("SELECTRON_DEBUG"):
            raise
        _say(f"Error: {error.strerror or error}{f': {error.filename}' if error.filename else ''}.")
        sys.exit(2)


def _sentence(error: SelectronError) -> str:
    text = str(error)
    return text[:1].upper() + text[1:] if text and not text.startswith(("mace", "torch")) else text


def _say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


def have(package: str) -> bool:
    """Whether ``package`` can be imported here."""
    return importlib.util.find_spec(package) is not None
