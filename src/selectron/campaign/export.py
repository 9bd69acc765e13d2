"""What a campaign leaves for mace-torch: labelled sets, the model, and what may be done with it."""

from __future__ import annotations

import shutil
from pathlib import Path

from ase import Atoms

from selectron.campaign.records import ArmRecord, CampaignRecord
from selectron.errors import SelectronError
from selectron.structures import Pool
from selectron.structures.atomic import atomic_output
from selectron.training.labels import equally_weighted, labelled, write_for_mace
from selectron.training.mace_process import loss_arguments
from selectron.wording import counted

README = """# {name}

Exported from a selectron campaign ({arm} picks, {labels} labels).

| file | what it is |
|---|---|
{table}

Energies in eV, forces in eV/Å, in the keys that mace-torch reads by default (`REF_energy`, `REF_forces`). Oracle: `{oracle}`.
{weights}

To train again with mace-torch:

```sh
mace_run_train --name=again --foundation_model=start.model --multiheads_finetuning=False \\
  --train_file=train.extxyz --valid_file={valid} --test_file=test.extxyz --E0s=foundation \\
  {loss} \\
  --max_num_epochs={epochs} --batch_size={batch_size} --default_dtype=float64 --seed={seed}
```
{shift}
## Licence of the model
{licence}
"""


def export_campaign(record: CampaignRecord, folder: Path, *, arm: str = "selected") -> list[Path]:
    """Writes training, validation and test set as extended XYZ, the newest model, and a README into ``folder``.

    Gives the files. Raises SelectronError where there is nothing to export yet, or the folder cannot be written.
    """
    chosen = next((one for one in record.arms if one.name == arm), None)
    if chosen is None:
        raise SelectronError(f"The campaign has no arm {arm!r}; it has {', '.join(one.name for one in record.arms)}.")
    if not chosen.labels:
        raise SelectronError(f"There is nothing to export yet: the campaign in {record.folder} has no labels.")
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise SelectronError(f"Cannot make the folder {folder}: {error.strerror}.") from None
    files: dict[str, str] = {}
    train = training_set(record, chosen)
    fitted = labelled(train)
    write_for_mace(folder / "train.extxyz", fitted if weighted(record) else equally_weighted(fitted))
    files["train.extxyz"] = f"{counted(len(train), 'structure')}: {_parts(record, chosen)}"
    for name, path in (("validation", record.validation_path), ("test", record.test_path)):
        if path is not None:
            structures = _read(path)
            write_for_mace(folder / f"{name}.extxyz", equally_weighted(labelled(structures, what=name)))
            files[f"{name}.extxyz"] = counted(len(structures), "structure")
    if record.start_model is not None:
        _copy(record.start_model, folder / "start.model")
        files["start.model"] = "the model that the campaign began with"
    if chosen.model is not None:
        _copy(chosen.model, folder / "fine_tuned.model")
        files["fine_tuned.model"] = "the fine-tuned model of the last round whose training succeeded"
    with atomic_output(folder / "README.md") as stream:
        stream.write(_readme(record, chosen, files))
    return [folder / name for name in (*files, "README.md")]


def training_set(record: CampaignRecord, arm: ArmRecord) -> list[Atoms]:
    """What the arm's last model was fitted to: its labels, after the initial training set where that is fitted too."""
    initial = record.config.train is not None and record.config.train.fit and record.train_path is not None
    known = _read(record.train_path) if initial and record.train_path else []
    return known + [pick.structure for one in arm.rounds for pick in one.picks if pick.labelled]


def weighted(record: CampaignRecord) -> bool:
    """Whether the campaign's trainings count labels by their weights."""
    return record.config.trainer.weights == "given"


def _read(path: Path) -> list[Atoms]:
    with Pool.open([path]) as pool:
        return pool[:]


def _parts(record: CampaignRecord, arm: ArmRecord) -> str:
    initial = len(training_set(record, arm)) - arm.labels
    bought = f"{arm.labels} labels of the campaign"
    return f"{initial} of the initial training set and {bought}" if initial else bought


def _copy(source: Path, target: Path) -> None:
    with open(source, "rb") as reading, atomic_output(target, "wb") as writing:
        shutil.copyfileobj(reading, writing)


def _readme(record: CampaignRecord, arm: ArmRecord, files: dict[str, str]) -> str:
    options, name = record.config.trainer, record.facts["model_name"]
    licence = record.facts.get("model_licence")
    if licence is None:
        text = (
            f"It was fine-tuned from `{Path(name).name}`. selectron does not know the licence of that file: "
            "see where it came from."
        )
    elif licence == "MIT":
        text = f"It was fine-tuned from `{name}`, whose licence is MIT."
    else:
        text = (
            f"It was fine-tuned from `{name}`, whose licence is {licence}: the fine-tuned model is a derivative, "
            "and the same conditions hold for it."
        )
    training = next((one.training for one in reversed(arm.rounds) if one.training and one.training.model), None)
    references = training.references if training is not None else None
    shift = ""
    if references is not None and references["applied"]:
        moved = ", ".join(f"{symbol} {value:+.4f}" for symbol, value in references["shift_eV"].items())
        shift = (
            f"\nThe level of theory of the labels differs from the model's: its atomic energies were moved by {moved} eV "
            "before training (`fine_tuned.model` has the new ones). Training again from the old model needs the same.\n"
        )
    weights = ""
    if weighted(record) and any(pick.weight != 1.0 for one in arm.rounds for pick in one.picks):
        weights = (
            "`config_weight` is what a label counts for in the loss: the root of how many candidates its structure stood for, "
            "1 in the mean of its round. mace-torch reads it too, but leaves it out of the force term of its absolute loss.\n"
        )
    return README.format(
        name=record.config.name,
        arm=arm.name,
        labels=arm.labels,
        table="\n".join(f"| `{file}` | {what} |" for file, what in files.items()),
        oracle=record.config.oracle.kind,
        weights=weights,
        valid="validation.extxyz" if record.validation_path else "train.extxyz",
        loss=" ".join(loss_arguments(options)),
        epochs=options.epochs,
        batch_size=options.batch_size,
        seed=options.seed + record.config.seed,
        shift=shift,
        licence=text,
    )
