"""The pages of docs/algorithms and docs/guides: their tables are those of the code, and what they quote is in it."""

from __future__ import annotations

import ast
import dataclasses
import inspect
import re
import textwrap
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from rlcore import DDPGConfig, NetworkConfig, PPOConfig, SACConfig
from rlcore.encoders import CNNConfig
from rlcore.off_policy_config import OffPolicyConfig
from rlcore.recurrent import RNNConfig
from rlcore.signals import SignalConfig

DOCS = Path(__file__).parents[1] / "docs"
PAGES = sorted(str(path.relative_to(DOCS)) for name in ("algorithms", "guides") for path in (DOCS / name).glob("*.md"))


def written(value: Any) -> str:
    """A default as one writes it in YAML; of settings inside settings, what differs from their own defaults."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        usual = type(value)()
        own = {f.name: getattr(value, f.name) for f in dataclasses.fields(value)}
        changed = {name: x for name, x in own.items() if x != getattr(usual, name)}
        return ", ".join(f"{name} {written(x)}" for name, x in changed.items()) or "its own"
    if value is None or value == {}:
        return "none"
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, tuple):
        return f"[{', '.join(map(written, value))}]" if value else "empty"
    if isinstance(value, float):
        return f"{value:g}".replace("e-0", "e-")
    return f"{value:,}" if isinstance(value, int) else str(value)


def told(config: type[Any]) -> dict[str, str]:
    """What the docstring of each field of a dataclass says, in one line."""
    found: dict[str, str] = {}
    for cls in reversed(config.__mro__[:-1]):
        (body,) = ast.parse(textwrap.dedent(inspect.getsource(cls))).body
        assert isinstance(body, ast.ClassDef)
        for field, text in zip(body.body, body.body[1:], strict=False):
            if isinstance(field, ast.AnnAssign) and isinstance(text, ast.Expr) and isinstance(field.target, ast.Name):
                assert isinstance(text.value, ast.Constant)
                found[field.target.id] = " ".join(str(text.value.value).split()).replace("|", r"\|").replace("``", "`")
    return found


def rows(config: type[Any], besides: type[Any] | None = None) -> list[str]:
    """Rows that list a dataclass, of which those are left out that are the same in another one."""
    texts, own = told(config), config()
    known = {} if besides is None else {f.name: getattr(besides(), f.name) for f in dataclasses.fields(besides)}
    values = {f.name: getattr(own, f.name) for f in dataclasses.fields(config)}
    kept = [name for name, value in values.items() if name not in known or known[name] != value]
    return [f"| `{name}` | {written(values[name])} | {texts[name]} |" for name in kept]


def preset(config: type[OffPolicyConfig], name: str) -> list[str]:
    """Rows that list a preset."""
    return [f"| `{key}` | {written(value)} |" for key, value in config.presets()[name].items()]


@pytest.mark.parametrize(
    ("page", "wanted"),
    [
        ("ppo", [*rows(PPOConfig), *rows(NetworkConfig), *rows(CNNConfig), *rows(SignalConfig)]),
        ("sac", [*rows(SACConfig), *preset(SACConfig, "gpu")]),
        ("ddpg", [*rows(DDPGConfig, OffPolicyConfig), *preset(DDPGConfig, "td3"), *preset(DDPGConfig, "gpu")]),
        ("recurrent", rows(RNNConfig)),
    ],
)
def test_the_settings_of_a_page_are_those_of_the_dataclasses(page: str, wanted: list[str]) -> None:
    text = (DOCS / "algorithms" / f"{page}.md").read_text(encoding="utf-8")
    section = text.partition("\n## Settings\n")[2].partition("\n## ")[0]
    there = [line for line in section.splitlines() if line.startswith("| `")]
    missing, wrong = Counter(wanted) - Counter(there), Counter(there) - Counter(wanted)
    assert not missing and not wrong, "\n".join(["to write:", *missing, "to take out:", *wrong])


def blocks(page: str, kind: str) -> list[str]:
    """The blocks of a page in one language."""
    text = (DOCS / page).read_text(encoding="utf-8")
    return re.findall(rf"^```{kind}\n(.*?)^```", text, flags=re.DOTALL | re.MULTILINE)


@pytest.mark.parametrize(("page", "block"), [(page, block) for page in PAGES for block in blocks(page, "py")])
def test_what_a_page_quotes_is_in_the_code(page: str, block: str) -> None:
    first, _, lines = block.partition("\n")
    place = re.fullmatch(r"# ([\w/]+\.py)(?:: ([\w.]+))?", first)
    assert place, f"{page}: begin with the file and the function that the lines are of, and not with {first!r}"
    source = (DOCS.parent / place[1]).read_text(encoding="utf-8")
    tree: ast.AST = ast.parse(source)
    for name in (place[2] or "").split(".") if place[2] else []:
        tree = next(node for node in ast.walk(tree) if getattr(node, "name", None) == name)
    if not isinstance(tree, ast.Module):
        source = "\n".join(source.splitlines()[tree.lineno - 1 : tree.end_lineno])  # type: ignore[attr-defined]
    plain = "\n".join(line.strip() for line in source.splitlines())
    assert "\n".join(line.strip() for line in lines.splitlines()) in plain


@pytest.mark.parametrize("page", PAGES)
def test_pictures_of_a_page_are_small(page: str) -> None:
    for picture in re.findall(r"!\[.*?\]\((.*?)\)", (DOCS / page).read_text(encoding="utf-8")):
        assert (DOCS / page).parent.joinpath(picture).stat().st_size < 100_000


def has(config: Any, name: str) -> bool:
    """Whether there is a setting of a dotted name."""
    for key in name.split("."):
        if not hasattr(config, key):
            return False
        config = getattr(config, key)
    return True


@pytest.mark.parametrize(
    ("begin", "end", "configs"),
    [("## PPO", "## SAC", [PPOConfig()]), ("## SAC", "## What changes", [SACConfig(), DDPGConfig()])],
)
def test_the_map_of_settings_names_settings_that_there_are(begin: str, end: str, configs: list[Any]) -> None:
    text = (DOCS / "guides" / "moving.md").read_text(encoding="utf-8")
    names = re.findall(r"^\| `agent\.([\w.]+)`", text[text.index(begin) : text.index(end)], flags=re.MULTILINE)
    assert len(names) > 10
    assert [name for name in names if not any(has(config, name) for config in configs)] == []
