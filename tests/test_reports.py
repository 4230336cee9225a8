"""The page of a run: what is on it, that nothing of a run can break out of it, and that damage is told, not fatal."""

from __future__ import annotations

import base64
import hashlib
import json
import math
import re
import shutil
import subprocess
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from rlcore.config import save_yaml
from rlcore.train.cli import main
from rlcore.train.config import TrainConfig
from rlcore.train.defaults import default_config
from rlcore.train.logger import MetricsFile
from rlcore.train.reports import page as page_module
from rlcore.train.reports.comparison import comparison_page
from rlcore.train.reports.page import run_page
from rlcore.train.reports.run import read_metrics, read_run
from rlcore.train.reports.seeds import POINTS, group_curve, grouped, mean_interval, run_line
from rlcore.train.run import RunFolder

PNG = base64.b64decode(
    "iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAYAAAAfFcSJAAAADUlEQVR42mNkYPhfDwAChwGA60e6kgAAAABJRU5ErkJggg=="
)
HOSTILE = '</script><img src=x onerror="alert(1)">&amp;\'"'
VOID = {"meta", "img", "input", "br"}


class Page(HTMLParser):
    """Reads a page as a browser does: elements, attributes, and the text of each script."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.scripts: list[str] = []
        self.words: list[str] = []
        self.feed(text)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if self.open[-1:] == ["script"]:
            self.scripts.append(data)
        elif self.open[-1:] != ["style"]:
            self.words.append(data)

    @property
    def text(self) -> str:
        return "\n".join(self.words)

    @property
    def data(self) -> Any:
        return json.loads(self.scripts[0])


def make_run(folder: Path, seed: int = 1, **env: Any) -> Path:
    config, _ = default_config("CartPole")
    config = replace(config, seed=seed, env=env, agent=replace(config.agent, gamma=0.9125))
    (folder / "checkpoints").mkdir(parents=True)
    save_yaml(folder / "config.yaml", config)
    metrics = MetricsFile(folder / "metrics.csv")
    for i in range(1, 11):
        metrics.write(i, 100 * i, {"rollout/reward": i * seed, "time/total_s": 2.0 * i})
    metrics.write(11, 1100, {"rollout/reward": math.nan, "eval/return": 12.5})
    return folder


def test_the_page_has_curves_figures_settings_and_pictures(tmp_path: Path) -> None:
    run = make_run(tmp_path / "20260101-first")
    figures = {"episodes": 20, "return_mean": 77.25, "return_ci95": [70.5, 84.0], "success": 0.5}
    tasks = {"Left": {"return_mean": 1.5}, "Right": {"return_mean": 2.5, "success": 0.25}}
    record = {**figures, "tasks": tasks, "onnx": {"return_mean": 78.5}}
    (run / "eval.json").write_text(json.dumps(record))
    (run / "system.json").write_text(json.dumps({"gpu": "Some GPU", "memory_gib": None}))
    (run / "picture.png").write_bytes(PNG)
    text = run_page(read_run(run))
    page = Page(text)
    curves = {chart["name"]: chart["lines"] for chart in page.data["charts"]}
    assert curves["rollout/reward"][0]["x"] == list(range(100, 1001, 100))
    assert curves["rollout/reward"][0]["y"] == list(range(1, 11))
    assert curves["rollout/reward"][0]["t"][0] == pytest.approx(2 / 3600, rel=1e-4)
    assert curves["eval/return"] == [{"label": "", "x": [1100], "y": [12.5], "t": curves["eval/return"][0]["t"]}]
    assert "It goes on, or was killed before it could say why it ended." in page.text
    for shown in ("77.25 (70.5 to 84)", "78.5", "50 %", "Left", "25 %", "Some GPU", "0.9125", "1 value not finite"):
        assert shown in page.text
    assert re.search(r"<code>agent\.gamma</code></td><td><mark>0\.9125</mark></td><td>0\.99?\d*</td>", text)
    assert "<mark>" in text and "<mark>ppo" not in text
    sources = [attributes["src"] or "" for tag, attributes in page.elements if tag == "img"]
    assert len(sources) == 1 and base64.b64decode(sources[0].partition("base64,")[2]) == PNG


def test_the_page_says_why_the_run_ended_and_where_its_videos_are(tmp_path: Path) -> None:
    run = RunFolder(make_run(tmp_path / "run"))
    run.note_end("after iteration 11: eval/return >= 12 (12.5)", 11)
    run.videos.mkdir()
    for name in ("000005.gif", "000010.gif"):
        (run.videos / name).write_bytes(b"GIF89a")
    text = " ".join(Page(run_page(read_run(run.path))).text.split())
    assert "Ended after iteration 11: eval/return >= 12 (12.5)" in text
    assert "videos/000005.gif to videos/000010.gif" in text


def test_the_page_needs_no_network_and_runs_its_own_program_alone(tmp_path: Path) -> None:
    text = run_page(read_run(make_run(tmp_path / "run")))
    page = Page(text)
    for _, attributes in page.elements:
        assert not {"href", "srcset", "action", "style"} & set(attributes)
        assert (attributes.get("src") or "data:").startswith("data:")
    assert "http" not in text.replace("http-equiv", "").replace("http://www.w3.org/2000/svg", "")
    (policy,) = (a["content"] or "" for _, a in page.elements if a.get("http-equiv") == "Content-Security-Policy")
    (style,) = re.findall(r"<style>(.*?)</style>", text, flags=re.DOTALL)
    for kind, content in (("style", style), ("script", page.scripts[1])):
        digest = base64.b64encode(hashlib.sha256(content.encode()).digest()).decode()
        assert f"{kind}-src 'sha256-{digest}'" in policy
    assert policy.startswith("default-src 'none'") and "unsafe" not in policy
    assert len(text) < 100_000


def test_nothing_of_a_run_can_break_out_of_the_page(tmp_path: Path) -> None:
    options: dict[str, Any] = {HOSTILE: HOSTILE, "plain": [HOSTILE, "\x00\ud800"]}
    run = make_run(tmp_path / "run<b>", **options)
    config = (
        (run / "config.yaml").read_text(errors="surrogateescape").replace("task: CartPole", f"task: '{HOSTILE[:-2]}'''")
    )
    (run / "config.yaml").write_text(config, errors="surrogateescape")
    metrics = MetricsFile(run / "metrics.csv")
    metrics.write(1, 10, {f"rollout/{HOSTILE}": 1.0, "time/total_s": 1.0})
    (run / "eval.json").write_text(json.dumps({HOSTILE: 1, "best": HOSTILE, "tasks": {HOSTILE: {HOSTILE: 2}}}))
    (run / "system.json").write_text(json.dumps({HOSTILE: HOSTILE}))
    (run / "end.json").write_text(json.dumps({"ended": HOSTILE}))
    (run / "<img onerror=x>.png").write_bytes(PNG)
    facts = read_run(run)
    for text in (
        run_page(facts),
        comparison_page([facts, replace(facts, config=facts.config | {"num_envs": HOSTILE})]),
    ):
        page = Page(text)
        kinds = [tag for tag, _ in page.elements]
        assert kinds.count("script") == 2 and "b" not in page.open
        assert not any(name.startswith("on") for _, attributes in page.elements for name in attributes)
        assert all((a["src"] or "").startswith("data:") for tag, a in page.elements if tag == "img")
        assert page.data["charts"][0]["name"] == f"rollout/{HOSTILE}"
        assert HOSTILE in page.text
        text.encode("utf-8")


def test_a_damaged_table_keeps_its_whole_rows(tmp_path: Path) -> None:
    path = make_run(tmp_path / "run") / "metrics.csv"
    whole = path.read_bytes()
    path.write_bytes(whole + b"12,1200,nonsense,,\n13,,1,,\n14,\0\n15,15")
    metrics = read_metrics(path)
    assert list(metrics.steps) == [100 * i for i in range(1, 12)]
    assert metrics.last("rollout/reward") == 10
    assert metrics.notes == ["metrics.csv: 3 rows cut short or damaged, left out"]


@pytest.mark.parametrize(
    "content",
    [b"", b"\xff\xfe\0\0", b"a,b\n1,2\n", b"env_steps,env_steps\n1,2\n", b'env_steps,x\n1,"' + b"9" * 200_000],
)
def test_what_is_no_table_is_noted(content: bytes, tmp_path: Path) -> None:
    run = make_run(tmp_path / "run")
    (run / "metrics.csv").write_bytes(content)
    facts = read_run(run)
    assert len(facts.notes) == 1 and "metrics.csv" in facts.notes[0]
    page = Page(run_page(facts))
    assert "There are no curves." in page.text and facts.notes[0] in page.text


def test_a_run_with_nothing_but_its_settings_has_a_page(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run")
    (run / "metrics.csv").unlink()
    page = Page(run_page(read_run(run)))
    assert "there is no metrics.csv" in page.text and "agent.gamma" in page.text
    assert page.data == {"charts": []}


def test_damaged_files_are_told_and_take_nothing_else_with_them(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run")
    (run / "eval.json").write_text('{"return_mean": 1, "tasks": 3}')
    (run / "robustness.json").write_text('{"score": "success", "policies": [{"types": 1}]}')
    (run / "system.json").write_text("[" * 100_000)
    (run / "export").mkdir()
    (run / "export" / "policy.onnx").write_bytes(b"no file of ONNX")
    (run / "drawing.png").write_text("<svg onload='x'/>")
    (run / "large.gif").write_bytes(b"GIF89a" + bytes(5_000_000))
    page = Page(run_page(read_run(run)))
    for told in (
        "the evaluation cannot be shown", "the robustness cannot be shown", "system.json cannot be read",
        "the exported file cannot be read", "drawing.png is left out", "large.gif is left out", "agent.gamma",
    ):  # fmt: skip
        assert told in page.text
    assert len(page.data["charts"]) == 3


def test_what_a_run_names_is_not_loaded(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run")
    own = tmp_path / "own.py"
    own.write_text(f"open({str(tmp_path / 'loaded')!r}, 'w')")
    config = (run / "config.yaml").read_text()
    config = config.replace("algo: ppo", f"algo: {own}").replace("task: CartPole", f"task: python:{own}:Env")
    (run / "config.yaml").write_text(config)
    assert "are not known here" in Page(run_page(read_run(run))).text
    assert not (tmp_path / "loaded").exists()


def test_runs_are_put_together_by_all_but_their_seed(tmp_path: Path) -> None:
    runs = [read_run(make_run(tmp_path / f"a{seed}", seed)) for seed in (1, 2, 3)]
    runs.append(read_run(make_run(tmp_path / "b", 1, randomize_start=True)))
    groups = grouped(runs)
    assert [len(group.runs) for group in groups] == [3, 1]
    assert [group.label for group in groups] == ["env.randomize_start unset", "env.randomize_start True"]
    page = Page(comparison_page(runs))
    (chart,) = (chart for chart in page.data["charts"] if chart["name"] == "rollout/reward")
    assert chart["lines"][0]["y"] == [2 * i for i in range(1, 11)]
    assert chart["lines"][0]["high"][0] == pytest.approx(2 + 4.302653 / math.sqrt(3), abs=1e-3)
    assert "low" not in chart["lines"][1]
    assert "12.5 (12.5 to 12.5)" in page.text


def test_a_seed_that_comes_twice_is_named(tmp_path: Path) -> None:
    runs = [read_run(make_run(tmp_path / name, seed)) for name, seed in (("a", 1), ("b", 2), ("c", 1))]
    assert "A seed comes twice in CartPole, ppo" in Page(comparison_page(runs)).text
    assert "comes twice" not in Page(comparison_page(runs[:2])).text


def test_the_interval_over_seeds_is_students() -> None:
    mean, low, high = mean_interval(np.array([[1.0, 5.0], [2.0, 5.0], [3.0, 5.0]]))
    half = 4.302653 / math.sqrt(3)  # t quantile of two degrees of freedom
    assert (
        mean == pytest.approx([2, 5]) and low == pytest.approx([2 - half, 5]) and high == pytest.approx([2 + half, 5])
    )
    assert np.isnan(mean_interval(np.array([[4.0]]))[1]).all()


def test_seeds_with_other_steps_are_compared_where_all_have_been(tmp_path: Path) -> None:
    for seed, steps in ((1, range(100, 1001, 100)), (2, range(250, 2000, 50))):
        run = make_run(tmp_path / f"run{seed}", seed)
        metrics = MetricsFile(run / "metrics.csv")
        for i, step in enumerate(steps):
            metrics.write(i, step, {"rollout/reward": 3.0 * step * seed})
    (group,) = grouped([read_run(tmp_path / f"run{seed}") for seed in (1, 2)])
    curve = group_curve(group, "rollout/reward")
    assert curve is not None and curve.low is not None
    assert curve.x[0] == 250 and curve.x[-1] == 1000
    assert curve.mean == pytest.approx(4.5 * curve.x)


def test_a_long_curve_is_thinned_by_means(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run")
    rows = [f"{i},{i},{i % 2}" for i in range(5 * POINTS)]
    (run / "metrics.csv").write_text("\n".join(["iteration,env_steps,loss/value", *rows, ""]))
    x, y = run_line(read_run(run), "loss/value")
    assert len(x) == POINTS and x[0] == 2 and y.mean() == pytest.approx(0.5)


def test_the_command_writes_the_page_of_a_run_and_of_several(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    for seed in (1, 2):
        make_run(Path(f"run{seed}"), seed)
    assert main(["report", "run1"]) == 0
    assert Page(Path("run1/report.html").read_text()).data["charts"]
    assert main(["report", "run1", "run2"]) == 0
    assert "2 runs compared" in Page(Path("comparison.html").read_text()).text
    assert main(["report", "run1", "run1/checkpoints", "--output", "new/page.html"]) == 0
    assert "compared" not in Path("new/page.html").read_text()
    capsys.readouterr()
    for words, told in (
        ([], "the run is missing"),
        (["nowhere"], "no run at"),
        (["run1", "--output", "new"], "a folder"),
    ):
        assert main(["report", *words]) == 2
        assert told in capsys.readouterr().err
    Path("run2/config.yaml").write_text("[")
    assert main(["report", "run2"]) == 2
    assert "config.yaml" in capsys.readouterr().err


TRAIN = ["train", "--task", "CartPole", "--num-envs", "2", "--num-iterations", "1", "--eval-envs", "2", "--runs-dir"]


def test_a_training_ends_with_a_page_unless_told_otherwise(tmp_path: Path) -> None:
    assert main([*TRAIN, str(tmp_path / "on")]) == 0
    (path,) = (tmp_path / "on").glob("*/*/*/report.html")
    page = Page(path.read_text())
    for shown in ("num_envs", "opset", "parity max abs error", "torch threads", "rollout/reward"):
        assert shown in page.text
    assert json.loads((path.parent / "system.json").read_text())["device"]
    assert main([*TRAIN, str(tmp_path / "off"), "--no-report", "--no-export"]) == 0
    assert not list((tmp_path / "off").glob("*/*/*/report.html"))


def test_a_page_that_cannot_be_written_takes_nothing_from_the_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def fails(run: Any) -> str:
        raise RuntimeError("no page today")

    monkeypatch.setattr(page_module, "run_page", fails)
    assert main([*TRAIN, str(tmp_path), "--no-export"]) == 0
    assert "the report could not be written: RuntimeError: no page today" in capsys.readouterr().out
    assert list(tmp_path.glob("*/*/*/eval.json")) and not list(tmp_path.glob("*/*/*/*.html"))


def test_the_setting_is_one_that_a_resumed_run_may_change() -> None:
    from rlcore.train.config import RESUMABLE

    assert "report" in RESUMABLE and TrainConfig(task="CartPole").report


@pytest.mark.skipif(shutil.which("node") is None, reason="needs node")
def test_the_program_of_the_page_is_one() -> None:
    path = Path(page_module.__file__).with_name("page.js")
    assert subprocess.run(["node", "--check", path], capture_output=True).returncode == 0
