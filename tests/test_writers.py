"""Loggers beside metrics.csv: what services are told, what becomes of one that fails, and videos of evaluations."""

from __future__ import annotations

import importlib
import importlib.util
import json
import re
import sys
import threading
from collections.abc import Mapping
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
import torch
import yaml

from rlcore.checkpoint import load_checkpoint
from rlcore.config import ConfigError, from_dict
from rlcore.ppo_config import PPOConfig
from rlcore.train import writers as writers_module
from rlcore.train.cli import main
from rlcore.train.config import TrainConfig
from rlcore.train.filming import HEIGHT, Film
from rlcore.train.groups import leaves
from rlcore.train.writers import Aside

WORDS = "train --task CartPole --num-envs 4 --agent.num-steps 16 --eval-envs 2 --threads 1 --no-export --no-report"


class Service:
    """What stands for a package: it keeps what it is told."""

    def __init__(self) -> None:
        self.inits: list[dict[str, Any]] = []
        self.rows: list[tuple[int, dict[str, float]]] = []
        self.videos: list[int] = []
        self.ended: list[int] = []
        self.broken = False


@pytest.fixture
def wandb(monkeypatch: pytest.MonkeyPatch) -> Service:
    service, module = Service(), ModuleType("wandb")

    def log(values: Mapping[str, Any], step: int) -> None:
        if service.broken:
            raise ConnectionError("the service is gone")
        if "eval/video" in values:
            service.videos.append(step)
        else:
            service.rows.append((step, dict(values)))

    def init(**options: Any) -> Any:
        service.inits.append(options)
        own = SimpleNamespace(id=options.get("id", "abc"), url="https://service/abc", log=log)
        own.finish = lambda exit_code: service.ended.append(exit_code)
        return own

    module.init, module.Settings, module.Video = init, lambda **o: o, lambda path, format: path  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "wandb", module)
    return service


def trained(folder: Path, *words: str, name: str = "x") -> Path:
    assert main([*WORDS.split(), "--runs-dir", str(folder), "--name", name, *words]) == 0
    (run,) = folder.glob(f"CartPole/ppo/*-{name}")
    return run


def test_a_service_gets_settings_and_rows_by_env_steps_and_goes_on_when_resumed(tmp_path: Path, wandb: Service) -> None:
    run = trained(
        tmp_path,
        *["--logger", "tensorboard,wandb", "--num-iterations", "4", "--log-interval", "2", "--log-project", "arms"],
    )
    (first,) = wandb.inits
    assert first["project"] == "arms" and first["config"]["agent"]["num_steps"] == 16 and "id" not in first
    assert [step for step, _ in wandb.rows] == [128, 256]
    assert wandb.rows[0][1]["rollout/reward"] == 1.0 and "eval/return" in wandb.rows[1][1]
    assert wandb.ended == [0]
    assert json.loads((run / "loggers.json").read_text()) == {"wandb": "abc"}
    assert list(run.glob("events*"))
    assert main(["train", "--resume", str(run), "--num-iterations", "6"]) == 0
    assert (wandb.inits[1]["id"], wandb.inits[1]["resume"]) == ("abc", "allow")
    assert [step for step, _ in wandb.rows] == [128, 256, 384]


def test_a_service_that_fails_is_off_after_one_warning(
    tmp_path: Path, wandb: Service, capsys: pytest.CaptureFixture[str]
) -> None:
    wandb.broken = True
    run = trained(tmp_path, *["--logger", "wandb", "--num-iterations", "5", "--log-interval", "1"])
    out = capsys.readouterr().out
    assert out.count("wandb is off from here on: ConnectionError: the service is gone; metrics.csv") == 1
    assert len((run / "metrics.csv").read_text().splitlines()) == 6
    assert not list(run.glob("events*"))


def test_a_package_that_is_missing_or_cannot_begin_is_told_and_training_goes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, "mlflow", None)
    broken = ModuleType("wandb")
    monkeypatch.setitem(sys.modules, "wandb", broken)
    trained(tmp_path, *["--logger", "mlflow,wandb", "--num-iterations", "1"])
    out = capsys.readouterr().out
    assert "mlflow is off: it is not installed; pip install mlflow" in out
    assert "wandb is off: AttributeError" in out


def test_nobody_waits_for_a_service_that_is_slow(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(writers_module, "WAITING", 3)
    monkeypatch.setattr(writers_module, "PATIENCE", 0.01)
    gate, told = threading.Event(), list[str]()
    slow = SimpleNamespace(write=lambda env_steps, metrics: gate.wait(20), close=lambda failed: None)
    writer = Aside("slow", slow, told.append)
    for step in range(20):
        writer.write(step, {})
    writer.close(False)
    gate.set()
    assert len(told) == 1 and "slow is off from here on" in told[0]


def test_no_logger_at_all_leaves_metrics_csv(tmp_path: Path) -> None:
    run = trained(tmp_path, "--logger", "none", "--num-iterations", "1")
    assert not list(run.glob("events*")) and (run / "metrics.csv").is_file()


def test_a_logger_of_another_name_is_refused() -> None:
    with pytest.raises(ConfigError, match="logger: 'tensorbord' is not possible; did you mean 'tensorboard'"):
        TrainConfig(task="CartPole", logger=("tensorbord",))


def test_settings_are_told_by_dotted_names() -> None:
    assert list(leaves({"a": {"b": 1, "c": {}}, "d": [2]})) == [("a.b", 1), ("a.c", {}), ("d", [2])]


@pytest.mark.skipif(importlib.util.find_spec("wandb") is None, reason="wandb is not installed")
def test_weights_and_biases_takes_a_run_offline(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WANDB_MODE", "offline")
    run = trained(tmp_path, *["--logger", "wandb", "--num-iterations", "2", "--log-interval", "1", "--eval-video", "1"])
    assert list(run.glob("wandb/offline-run-*/*.wandb"))
    assert list(run.glob("wandb/offline-run-*/files/media/videos/eval/*.gif"))
    assert main(["train", "--resume", str(run), "--num-iterations", "3", "--eval-video", "0"]) == 0
    name = json.loads((run / "loggers.json").read_text())["wandb"]
    assert len(list(run.glob(f"wandb/offline-run-*-{name}"))) == 2


def test_mlflow_takes_a_run_into_a_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    mlflow = pytest.importorskip("mlflow")
    store = (tmp_path / "store").as_uri()
    monkeypatch.setenv("MLFLOW_ALLOW_FILE_STORE", "true")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", store)
    words = "--logger mlflow --num-iterations 2 --log-interval 1 --eval-video 1"
    run = trained(tmp_path, *words.split())
    assert main(["train", "--resume", str(run), "--num-iterations", "3", "--eval-video", "0"]) == 0
    client = mlflow.MlflowClient(store)
    (found,) = client.search_runs([client.get_experiment_by_name("rlcore").experiment_id])
    assert found.info.status == "FINISHED" and found.data.params["agent.gamma"] == "0.99"
    history = client.get_metric_history(found.info.run_id, "rollout/reward")
    assert [(point.step, point.value) for point in history] == [(64, 1.0), (128, 1.0), (192, 1.0)]
    assert [file.path for file in client.list_artifacts(found.info.run_id, "videos")] == ["videos/000002.gif"]


def test_videos_reach_the_loggers_and_leave_no_trace_in_training(
    tmp_path: Path, wandb: Service, capsys: pytest.CaptureFixture[str]
) -> None:
    from PIL import Image

    words = (
        "--logger tensorboard,wandb --num-iterations 4 --eval-interval 2 --log-interval 2 --env.max_episode_length 20"
    )
    plain = trained(tmp_path, *words.split(), name="plain")
    filmed = trained(tmp_path, *words.split(), "--eval-video", "2", name="filmed")
    assert [path.name for path in sorted(filmed.glob("videos/*"))] == ["000002.gif"]
    assert wandb.videos == [128]
    assert f"videos       {filmed / 'videos'} (1)" in capsys.readouterr().out
    with Image.open(filmed / "videos" / "000002.gif") as video:
        assert video.height <= HEIGHT and getattr(video, "n_frames", 1) > 3
    place = "tensorboard.backend.event_processing.event_accumulator"
    events = importlib.import_module(place).EventAccumulator(str(filmed))
    events.Reload()
    (image,) = events.Images("eval/video")
    assert image.step == 128 and image.encoded_image_string.startswith(b"GIF")
    one, other = (load_checkpoint(run / "checkpoints" / "000004.pt") for run in (plain, filmed))
    assert torch.equal(one["rng"]["cpu"], other["rng"]["cpu"])
    for name, value in one["agent"]["policy"].items():
        assert torch.equal(value, other["agent"]["policy"][name])


def test_an_env_that_cannot_be_drawn_is_told_and_training_goes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from rlcore.envs.classic import CartPole

    def render(self: Any) -> Any:
        raise RuntimeError("no display")

    monkeypatch.setattr(CartPole, "render", render)
    run = trained(tmp_path, *["--num-iterations", "4", "--eval-interval", "1", "--eval-video", "1"], name="dark")
    assert capsys.readouterr().out.count("no video from here on: ") == 1
    assert not list(run.glob("videos/*.gif"))
    assert "one scene per process" in Film(TrainConfig(task="Isaac-X-v0", eval_video=1), torch.device("cpu")).fault


PAGE = (Path(__file__).parents[1] / "docs" / "logging.md").read_text(encoding="utf-8")


def test_the_settings_of_the_page_are_settings() -> None:
    (text,) = re.findall(r"```yaml\n(.*?)```", PAGE, flags=re.DOTALL)
    agent = from_dict(PPOConfig, yaml.safe_load(text)["agent"])
    assert agent.schedules["clip_range"].levels == 4
