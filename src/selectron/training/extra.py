"""Arguments of mace_run_train that may be handed through, and those that would train on something else than is said.

What is refused is what mace-torch 0.3.16 would take without a word: keys of labels (the file that it gets has selectron's keys
alone, so a label of another name would be missing, and missing labels are not trained on), other data, references or another
model than selectron prepared, files under names where selectron does not look, and losses that count what they should not.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

from selectron.errors import SelectronError

_KEYS = (
    "the file that mace-torch gets holds labels under selectron's own keys; name those of your files with --energy-key, "
    "--forces-key and --stress-key"
)
_REFERENCES = "atomic references come from references (keep, fit, atoms or auto) and atom_energies_eV"
_DATA = "the data that mace-torch gets is what was read from the training, validation and replay files"
_MODEL = "the model to start from is prepared by selectron (model, head, method)"
_PLACE = "files have names by which selectron finds them; folder says where they go"
_STAGES = "a second stage is asked for with stage_two_start and the stage_two_ options, or its model would not be found"
_STRESS = "stresses are fitted with stress_weight (--stress-weight)"
_FILE = "a file of arguments could set any of those that are refused; write them out"
_REFUSED = {
    "config": _FILE,
    "E0s": _REFERENCES,
    "statistics_file": _REFERENCES,
    **dict.fromkeys(
        ("train_file", "valid_file", "valid_fraction", "heads", "config_type_weights", "atomic_numbers"), _DATA
    ),
    **dict.fromkeys(("foundation_model", "foundation_head", "foundation_model_elements", "model"), _MODEL),
    **dict.fromkeys(("name", "work_dir", "model_dir", "checkpoints_dir", "results_dir", "log_dir"), _PLACE),
    **dict.fromkeys(("swa", "stage_two", "start_swa", "start_stage_two"), _STAGES),
    **dict.fromkeys(
        ("stress_weight", "virials_weight", "swa_stress_weight", "swa_virials_weight", "compute_stress"), _STRESS
    ),
    **dict.fromkeys(("stage_two_stress_weight", "stage_two_virials_weight"), _STRESS),
    "restart_latest": "a training begins from the model that is given",
}
_LOSSES = {
    "ef": "it leaves out energy_weight and forces_weight; squares is that loss with them",
    "forces_only": "it leaves energies out; say energy_weight: 0 in place of it",
    "virials": f"virials are turned into stresses, and {_STRESS}",
    "stress": _STRESS,
    "huber": "it counts a label that is missing as 0 (a molecule's stress, for one) and leaves all weights of structures out; "
    "absolute is selectron's loss that large errors do not rule",
    **dict.fromkeys(("dipole", "dipole_polar", "energy_forces_dipole"), "dipoles and polarizabilities are not read"),
}
UNIVERSAL = "universal"
"""The loss that leaves config_weight out; mace-torch's multi-head fine-tuning always takes it."""


def arguments(extra: Sequence[str]) -> list[tuple[str, str]]:
    """Names, without dashes, and values of ``extra``, in which a value may also be an element of its own."""
    found: list[tuple[str, str]] = []
    for one in extra:
        if one.startswith("--"):
            name, _, value = one[2:].partition("=")
            found.append((name, value))
        elif found:
            found[-1] = (found[-1][0], one)
    return found


def refusal(extra: Sequence[str]) -> str | None:
    """Why ``extra`` would train on something else than selectron says; None where it would not."""
    for name, value in arguments(extra):
        reason = _reason(name)
        if reason is None and _is_loss(name):
            name, reason = f"loss={value}", _LOSSES.get(value)
        if reason is not None:
            return f"--{name} is not handed to mace-torch: {reason}"
    return None


def loss_of(extra: Sequence[str]) -> str | None:
    """The loss that ``extra`` asks for, in mace-torch's words; None where it asks for none."""
    given = arguments(extra)
    if any(name == "multiheads_finetuning" and value.lower() in ("true", "") for name, value in given):
        return UNIVERSAL
    return next((value for name, value in reversed(given) if _is_loss(name)), None)


def _is_loss(name: str) -> bool:
    return len(name) > 2 and "loss".startswith(name)  # argparse takes the beginning of a name for the whole


def _reason(name: str) -> str | None:
    if re.search(r"_k(ey?)?$", name) or name == "embedding_specs":
        return _KEYS
    whole = next((one for one in _REFUSED if one == name or (len(name) > 2 and one.startswith(name))), None)
    return None if whole is None else _REFUSED[whole]


def check_weights(extra: Sequence[str], *, weighted: bool) -> None:
    """Raises SelectronError where structures have weights that the loss asked for in ``extra`` leaves out."""
    if weighted and loss_of(extra) == UNIVERSAL:
        raise SelectronError(
            "The loss universal, which multi-head fine-tuning takes too, leaves out the weights of structures (config_weight, "
            "which picks carry): train with loss absolute or squares, which count them, or say weights: equal "
            "(--weights equal)."
        )
