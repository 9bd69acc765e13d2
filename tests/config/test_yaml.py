"""What a YAML file means, and what is said of a wrong one: the line, the key, and what would be right."""

import re
from typing import Annotated, Literal

import pytest
from pydantic import Field

from selectron.acquisition import SELECTORS
from selectron.config.campaign import CampaignConfig
from selectron.config.load import Section, load_yaml
from selectron.config.sections import FeaturesSection, SelectorSection
from selectron.config.templates import TEMPLATES
from selectron.config.yaml_document import parse_yaml, read_yaml
from selectron.errors import SelectronError
from selectron.features import FEATURES


class Cat(Section):
    kind: Literal["cat"]
    lives: int = 9


class Dog(Section):
    kind: Literal["dog"]
    tricks: tuple[str, ...] = ()


class House(Section):
    street: str
    area_m2: Annotated[float, Field(gt=0.0)] = 100.0
    pet: Annotated[Cat | Dog, Field(discriminator="kind")] | None = None
    rooms: tuple[Cat, ...] = ()


def load(tmp_path, text, model=House):
    path = tmp_path / "house.yaml"
    path.write_text(text)
    return load_yaml(path, model)


def said_of(tmp_path, text, model=House):
    with pytest.raises(SelectronError) as error:
        load(tmp_path, text, model)
    return str(error.value)


def test_values_follow_yaml_1_2(tmp_path):
    text = "a: 1e-3\nb: no\nc: 2026-01-01\nd: 12:30\ne: 0x1F\nf: '7'\ng: ~\nh: true\ni: [1., .5, -.inf]\nj: 010\n"
    data = parse_yaml(text, tmp_path / "x.yaml").data
    assert data == {
        "a": 0.001,
        "b": "no",
        "c": "2026-01-01",
        "d": "12:30",
        "e": 31,
        "f": "7",
        "g": None,
        "h": True,
        "i": [1.0, 0.5, float("-inf")],
        "j": 10,
    }


def test_places_are_those_of_the_text(tmp_path):
    document = parse_yaml("a:\n  b: [x,\n      y]\nc: &one {d: 1}\ne: *one\n", tmp_path / "x.yaml")
    assert document.place(("a", "b", 1)) == "x.yaml:3:7"
    assert document.place(("a", "b"), key=True) == "x.yaml:2:3"
    assert document.place(("c", "d")) == "x.yaml:4:13"
    assert document.data["e"] == {"d": 1}
    assert document.place(("a", "missing")) == "x.yaml:2:3"


@pytest.mark.parametrize(
    ("text", "place", "words"),
    [
        ("street: A\nare_m2: 3\n", "2:1", ["'are_m2' is no key", "did you mean 'area_m2'?"]),
        ("street: A\narea_m2: -3\n", "2:10", ["area_m2", "greater than 0", "-3"]),
        ("street: A\n\narea_m2: big\n", "3:10", ["area_m2", "number", "'big'"]),
        ("area_m2: 3\n", "1:1", ["'street' is missing"]),
        ("area_m2: 3\nstret: A\n", "2:1", ["did you mean 'street'?"]),
        ("street: A\npet:\n  kind: cta\n", "3:9", ["pet.kind", "'cat'", "dog"]),
        ("street: A\npet:\n  lives: 3\n", "3:3", ["'kind' of 'pet' is missing"]),
        ("street: A\npet:\n  kind: dog\n  lives: 3\n", "4:3", ["'lives' is no key of 'pet'", "kind, tricks"]),
        ("street: A\npet: {kind: cat, lives: many}\n", "2:25", ["pet.lives", "integer"]),
        ("street: A\nrooms:\n- kind: cat\n- kind: cat\n  live: 1\n", "5:3", ["rooms[1]", "did you mean 'lives'?"]),
        ("street: A\nstreet: B\n", "2:1", ["'street' stands here twice", "line 1"]),
        ("street: A\npet:\n  kind: cat\n  lives: 1\n  lives: 2\n", "5:3", ["twice", "line 4"]),
        ("street: A\n\tarea_m2: 2\n", "2:1", ["not YAML"]),
        ("street: [A\n", "2:1", ["not YAML"]),
        ("- street\n", "1:1", ["mapping"]),
        ("street: !!python/object:os.system A\n", "1:9", ["tag"]),
        ("street: &a [*a]\n", "1:9", ["alias"]),
        ("street: A\n? [x, y]\n: 1\n", "2:3", ["key"]),
    ],
)
def test_mistakes_are_told_with_their_place(tmp_path, text, place, words):
    said = said_of(tmp_path, text)
    assert said.startswith(f"house.yaml:{place}: "), said
    for word in words:
        assert word in said
    assert said.count("\n") == 0


def test_several_mistakes_come_in_the_order_of_lines(tmp_path):
    said = said_of(tmp_path, "pet: {kind: cow}\narea_m2: none\nstreet: A\nflor: 3\n").splitlines()
    assert said[0] == "house.yaml has 3 mistakes:"
    assert [int(re.search(r"house.yaml:(\d+)", line)[1]) for line in said[1:]] == [1, 2, 4]


def test_files_that_cannot_be_read(tmp_path):
    with pytest.raises(SelectronError, match="No such file"):
        read_yaml(tmp_path / "nothing.yaml")
    (tmp_path / "bytes.yaml").write_bytes(b"a: \xff\n")
    with pytest.raises(SelectronError, match="UTF-8"):
        read_yaml(tmp_path / "bytes.yaml")
    (tmp_path / "empty.yaml").write_text("# nothing\n")
    with pytest.raises(SelectronError, match="is empty"):
        read_yaml(tmp_path / "empty.yaml")


def campaign(tmp_path, **changes):
    sections = {
        "pool": "{files: [pool/*.xyz, embedded]}",
        "model": "{file: my.model}",
        "test": "{files: [/data/test.xyz]}",
        "oracle": "{kind: mace, model: big.model}",
        "budget": "{labels: 10, per_round: 5}",
        **changes,
    }
    folder = tmp_path / "here"
    folder.mkdir(exist_ok=True)
    path = folder / "c.yaml"
    path.write_text("".join(f"{key}: {value}\n" for key, value in sections.items() if value is not None))
    return path


def test_paths_are_those_of_the_folder_of_the_file(tmp_path, monkeypatch):
    path = campaign(tmp_path, trainer="{replay: [old.xyz, embedded-train]}", label_store="labels.db")
    monkeypatch.chdir(tmp_path)
    config = load_yaml("here/c.yaml", CampaignConfig)
    here = str(path.parent)
    assert config.pool.files == [f"{here}/pool/*.xyz", "embedded"]
    assert config.model.file == f"{here}/my.model"
    assert config.test.files == ["/data/test.xyz"]
    assert config.oracle.model == f"{here}/big.model"
    assert config.trainer.replay == [f"{here}/old.xyz", "embedded-train"]
    assert config.label_store == f"{here}/labels.db"
    assert (
        load_yaml(campaign(tmp_path, model="{file: mace-off23-small}"), CampaignConfig).model.file == "mace-off23-small"
    )
    # what is kept in a campaign's state needs no folder
    assert CampaignConfig.model_validate(config.model_dump(mode="json")) == config


@pytest.mark.parametrize(
    ("changes", "line", "words"),
    [
        ({"budget": "{labels: 3, per_round: 5}"}, 5, "more than the budget"),
        ({"test": "{fraction: 0.5, files: [a.xyz]}"}, 3, "either files or a fraction"),
        ({"test": "{seed: 1}"}, 3, "either files or a fraction"),
        ({"stop": "{target: {below: 0.1}}"}, 1, "need a validation set"),
        ({"test": "{fraction: 0.6}", "validation": "{fraction: 0.5}"}, 1, "the whole pool"),
        ({"trainer": "{epochs: 5, stage_two_start: 7}"}, 6, "stage_two_start"),
        ({"baseline": "rnadom"}, 6, "did you mean 'random'?"),
        ({"selector": "{name: IPV}"}, 6, "did you mean 'ipv'?"),
    ],
)
def test_sections_that_do_not_fit_together(tmp_path, changes, line, words):
    with pytest.raises(SelectronError) as error:
        load_yaml(campaign(tmp_path, **changes), CampaignConfig)
    assert str(error.value).startswith(f"c.yaml:{line}:"), error.value
    assert words in str(error.value)


def test_names_are_those_that_exist():
    assert set(FeaturesSection.model_fields["name"].annotation.__args__) == set(FEATURES)
    single = {name for name in SELECTORS if not name.startswith("committee")}
    assert set(SelectorSection.model_fields["name"].annotation.__args__) == single


def test_every_key_of_a_campaign_is_described():
    schema = CampaignConfig.model_json_schema()
    own = [name for name in schema["$defs"] if name.endswith(("Section", "Rule", "Rules", "Budget", "HeldOut", "Data"))]
    assert len(own) >= 9
    for section in [schema, *(schema["$defs"][name] for name in own)]:
        assert section["additionalProperties"] is False
        for key, value in section["properties"].items():
            assert value.get("description") or "$ref" in value or "anyOf" in value, key


@pytest.mark.parametrize("kind", TEMPLATES)
def test_templates_are_campaigns(tmp_path, kind):
    path = tmp_path / "t.yaml"
    path.write_text(TEMPLATES[kind][1])
    load_yaml(path, CampaignConfig)
