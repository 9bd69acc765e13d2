"""What README and documentation show can be run as it stands."""

import re
from pathlib import Path

import pytest

from selectron.cli.app import main

ROOT = Path(__file__).resolve().parents[1]
PAGES = sorted([ROOT / "README.md", *(ROOT / "docs").rglob("*.md")])


def blocks(page, language):
    return re.findall(rf"^```{language}\n(.*?)^```", page.read_text(encoding="utf-8"), re.MULTILINE | re.DOTALL)


@pytest.mark.parametrize("name", ["README.md", "docs/python-api.md"])
def test_python_examples_run(name, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("SELECTRON_CACHE", str(tmp_path / "cache"))
    namespace: dict = {}
    examples = blocks(ROOT / name, "python")
    assert examples
    for example in examples:
        exec(compile(example, name, "exec"), namespace)
    assert (tmp_path / "picks.extxyz").stat().st_size
    assert len(capsys.readouterr().out.splitlines()) >= 3


def test_the_readme_shows_the_api_in_ten_lines():
    (example,) = blocks(ROOT / "README.md", "python")
    assert len([line for line in example.splitlines() if line.strip()]) <= 10


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_commands_and_options_exist(page, capsys):
    lines = [line for block in blocks(page, "sh") for line in block.replace("\\\n", " ").splitlines()]
    for line in lines:
        words = line.partition("#")[0].split()
        if not words or words[0] != "selectron":
            continue
        with pytest.raises(SystemExit) as ended:
            main([words[1], "--help"])
        assert not ended.value.code, line
        known = set(re.findall(r"(?<![\w-])--?[a-z][\w-]*", capsys.readouterr().out))
        assert {word for word in words[2:] if word.startswith("-")} <= known, line


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_links_lead_somewhere(page):
    text = re.sub(r"^```.*?^```", "", page.read_text(encoding="utf-8"), flags=re.MULTILINE | re.DOTALL)
    for target in re.findall(r"\]\(([^)#]+)(?:#[^)]*)?\)", text):
        if "://" not in target:
            assert (page.parent / target).exists(), f"{page.name} links to {target}"
