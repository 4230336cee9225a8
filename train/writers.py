"""Where metrics go beside ``metrics.csv``: tensorboard, Weights & Biases and MLflow.

The first lies in the run folder, and what goes wrong with it ends the run, as a full disk does. The others may be
services of other machines: they are written from a thread of their own, and one that fails is off from then on.
"""

from __future__ import annotations

import contextlib
import importlib
import json
import math
import os
import queue
import re
import threading
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from rlcore.config import check, nearest
from rlcore.files import whole_file
from rlcore.train.groups import leaves

if TYPE_CHECKING:
    from torch.utils.tensorboard import SummaryWriter

PROJECT = "rlcore"
"""Project of Weights & Biases, or experiment of MLflow, where nobody names one."""

IDS_FILE = "loggers.json"
"""In the run folder: what services call the run, so that a resumed run goes on there."""

WAITING = 1000
"""Rows that wait for a service that is slow; what comes while so many wait is left out."""

PATIENCE = 60.0
"""Seconds that the end of a run waits for a service."""

PARAMETERS = 100
"""Parameters that MLflow takes at a time."""

Warn = Callable[[str], None]


class Writer(Protocol):
    """Takes the metrics of a run."""

    def write(self, env_steps: int, metrics: Mapping[str, float]) -> None:
        """Take one row; the x-axis is steps of single envs."""
        ...

    def video(self, env_steps: int, path: Path) -> None:
        """Take the video of an evaluation, a GIF."""
        ...

    def close(self, failed: bool) -> None:
        """The run is over; ``failed`` tells whether an error or a signal ended it."""
        ...


class TensorBoard:
    """Event files in the run folder."""

    def __init__(self, folder: Path, resumed_steps: int | None = None) -> None:
        from torch.utils.tensorboard import SummaryWriter  # here, because it is slow to import

        purge = None if resumed_steps is None else resumed_steps + 1
        self._events: SummaryWriter = SummaryWriter(str(folder), purge_step=purge)

    def write(self, env_steps: int, metrics: Mapping[str, float]) -> None:
        """See ``Writer``."""
        for key, value in metrics.items():
            self._events.add_scalar(key, value, env_steps)

    def video(self, env_steps: int, path: Path) -> None:
        """See ``Writer``. An image that moves is what tensorboard's videos are, too."""
        from PIL import Image

        kinds: Any = importlib.import_module("tensorboard.compat.proto.summary_pb2")
        with Image.open(path) as picture:
            width, height = picture.size
        image = kinds.Summary.Image(height=height, width=width, colorspace=3, encoded_image_string=path.read_bytes())
        summary = kinds.Summary(value=[kinds.Summary.Value(tag="eval/video", image=image)])
        self._events._get_file_writer().add_summary(summary, env_steps)  # type: ignore[no-untyped-call]

    def close(self, failed: bool) -> None:
        """See ``Writer``."""
        self._events.close()


class WandB:
    """A run of Weights & Biases. What its own variables say, such as WANDB_MODE and WANDB_ENTITY, holds.

    Args:
        library: the package.
        folder: of the run.
        config: settings of the run.
        project: None: what WANDB_PROJECT says, else ``PROJECT``.
        known: what the service called the run before it was resumed; None for a new one.
    """

    def __init__(
        self, library: Any, folder: Path, config: Mapping[str, Any], project: str | None, known: str | None
    ) -> None:
        again = {} if known is None else {"id": known, "resume": "allow"}
        project = project or os.environ.get("WANDB_PROJECT") or PROJECT
        self._library = library
        self._run = library.init(
            project=project, name=run_name(folder), group=str(config["task"]), dir=str(folder), config=dict(config),
            settings=library.Settings(console="off"),  # what is drawn anew four times a second is no log
            **again,
        )  # fmt: skip
        self.id = str(self._run.id)
        self.place = str(getattr(self._run, "url", None) or self._run.dir)

    def write(self, env_steps: int, metrics: Mapping[str, float]) -> None:
        """See ``Writer``."""
        self._run.log(dict(metrics), step=env_steps)

    def video(self, env_steps: int, path: Path) -> None:
        """See ``Writer``."""
        self._run.log({"eval/video": self._library.Video(str(path), format="gif")}, step=env_steps)

    def close(self, failed: bool) -> None:
        """See ``Writer``."""
        self._run.finish(exit_code=int(failed))


class MLflow:
    """A run of MLflow, on the server or in the folder that MLFLOW_TRACKING_URI names.

    Args:
        library: the package.
        folder: of the run.
        config: settings of the run.
        project: its experiment; None: what MLFLOW_EXPERIMENT_NAME says, else ``PROJECT``.
        known: what MLflow called the run before it was resumed; None for a new one.
    """

    def __init__(
        self, library: Any, folder: Path, config: Mapping[str, Any], project: str | None, known: str | None
    ) -> None:
        self._entities = importlib.import_module(f"{library.__name__}.entities")
        self._client = library.MlflowClient()
        if known is None:
            name = project or os.environ.get("MLFLOW_EXPERIMENT_NAME") or PROJECT
            found = self._client.get_experiment_by_name(name)
            experiment = self._client.create_experiment(name) if found is None else found.experiment_id
            tags = {"mlflow.source.name": "rlcore train", "run_folder": str(folder)}
            self.id = str(self._client.create_run(experiment, run_name=run_name(folder), tags=tags).info.run_id)
            items = [self._entities.Param(_plain_name(k), str(v)[:500]) for k, v in leaves(config)]
            for first in range(0, len(items), PARAMETERS):
                self._client.log_batch(self.id, params=items[first : first + PARAMETERS])
        else:
            self.id = known
            self._client.update_run(known, status="RUNNING")
        self.place = f"{library.get_tracking_uri()}, run {self.id}"

    def write(self, env_steps: int, metrics: Mapping[str, float]) -> None:
        """See ``Writer``."""
        now = int(time.time() * 1000)
        values = {_plain_name(key): value for key, value in metrics.items() if math.isfinite(value)}
        items = [self._entities.Metric(key, value, now, env_steps) for key, value in values.items()]
        self._client.log_batch(self.id, metrics=items)

    def video(self, env_steps: int, path: Path) -> None:
        """See ``Writer``."""
        self._client.log_artifact(self.id, str(path), "videos")

    def close(self, failed: bool) -> None:
        """See ``Writer``."""
        self._client.set_terminated(self.id, status="FAILED" if failed else "FINISHED")


SERVICES: dict[str, Callable[..., Any]] = {"wandb": WandB, "mlflow": MLflow}
"""By the name of the package, which is that of the logger."""

LOGGERS = ("tensorboard", *SERVICES)


class Aside:
    """A service that is written from a thread: training waits for none, and goes on without one that fails.

    Args:
        name: of the service.
        writer: writes to it.
        warn: told in one line that it failed.
    """

    def __init__(self, name: str, writer: Writer, warn: Warn) -> None:
        self._name, self._writer, self._warn, self._off = name, writer, warn, False
        self._waiting: queue.Queue[Callable[[], None] | None] = queue.Queue(WAITING)
        self._thread = threading.Thread(target=self._work, name=f"rlcore {name}", daemon=True)
        self._thread.start()

    def write(self, env_steps: int, metrics: Mapping[str, float]) -> None:
        """See ``Writer``."""
        self._put(lambda: self._writer.write(env_steps, metrics))

    def video(self, env_steps: int, path: Path) -> None:
        """See ``Writer``."""
        self._put(lambda: self._writer.video(env_steps, path))

    def close(self, failed: bool) -> None:
        """See ``Writer``."""
        self._put(lambda: self._writer.close(failed))
        self._put(None)
        self._thread.join(PATIENCE)
        if self._thread.is_alive():
            self._fail(f"it has not taken all within {PATIENCE:g} s")

    def _put(self, job: Callable[[], None] | None) -> None:
        if not self._off:
            try:
                self._waiting.put_nowait(job)
            except queue.Full:
                self._fail(f"{WAITING:,} rows wait for it")

    def _work(self) -> None:
        while (job := self._waiting.get()) is not None and not self._off:
            try:
                job()
            except Exception as error:
                self._fail(f"{type(error).__name__}: {' '.join(str(error).split())[:300]}")

    def _fail(self, why: str) -> None:
        if not self._off:
            self._off = True
            with contextlib.suppress(queue.Full):
                self._waiting.put_nowait(None)
            self._warn(f"{self._name} is off from here on: {why}; metrics.csv in the run folder has everything")


def writers(
    names: tuple[str, ...], folder: Path, config: Mapping[str, Any], project: str | None, resumed_steps: int | None,
    say: Warn, warn: Warn,
) -> list[Writer]:  # fmt: skip
    """Open what a run is to be logged to.

    Args:
        names: of loggers.
        folder: of the run.
        config: its settings, as plain values.
        project: see ``WandB`` and ``MLflow``.
        resumed_steps: env steps that a continued run begins with; None for a new one.
        say: told where a service shows the run.
        warn: told of what is off, and why.
    """
    opened: list[Writer] = [TensorBoard(folder, resumed_steps)] if "tensorboard" in names else []
    for name in names:
        if name not in SERVICES:
            continue
        try:
            library = importlib.import_module(name)
        except ImportError:
            warn(f"{name} is off: it is not installed; pip install {name}, and resume the run to have it on")
            continue
        ids = _read_ids(folder)
        try:
            service = SERVICES[name](library, folder, config, project, ids.get(name))
            with whole_file(folder / IDS_FILE) as file:
                file.write(json.dumps(ids | {name: service.id}) + "\n")
        except Exception as error:
            warn(f"{name} is off: {type(error).__name__}: {' '.join(str(error).split())[:300]}")
            continue
        say(f"{name:<12} {service.place}")
        opened.append(Aside(name, service, warn))
    return opened


def check_loggers(names: tuple[str, ...] | None) -> None:
    """Refuse a logger that there is none of.

    Raises:
        ConfigError: names it and the nearest.
    """
    for name in names or ():
        check(name != "none" or len(names or ()) == 1, "logger", name, "it stands alone, for no logger; leave it out")
        check(name in LOGGERS, "logger", name, nearest(name, LOGGERS))


def run_name(folder: Path) -> str:
    """What services call a run: task, algorithm and folder."""
    return "-".join(folder.resolve().parts[-3:])


def _plain_name(name: str) -> str:
    """A name of the letters that MLflow takes."""
    return re.sub(r"[^\w\-. /]", "_", name)


def _read_ids(folder: Path) -> dict[str, str]:
    """What services call the run; nothing where the file is missing or damaged."""
    content: Any = None
    with contextlib.suppress(OSError, ValueError, RecursionError):
        content = json.loads((folder / IDS_FILE).read_text(encoding="utf-8"))
    if not isinstance(content, dict):
        return {}
    return {key: value for key, value in content.items() if isinstance(value, str)}
