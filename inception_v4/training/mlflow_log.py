"""A run's figures in MLflow (`--logger mlflow`). Its variables hold: MLFLOW_TRACKING_URI, MLFLOW_EXPERIMENT_NAME."""

from __future__ import annotations

import os
import time
from collections import defaultdict
from pathlib import Path
from typing import Any

from inception_v4.files import atomic_write
from inception_v4.training.trackers import FINISHED, STOPPED

_IDENTITY = "mlflow-run-id.txt"
"""In the run directory: the same run goes on there when this one is resumed."""
_MOST = 100
"""Settings in one message."""


class MlflowTracker:
    """One run in MLflow's store or server."""

    def __init__(self, folder: Path, settings: dict[str, Any]) -> None:
        # A server that does not answer is tried for minutes by default; and nobody else is told of the run.
        os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "2")
        os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
        from mlflow import MlflowClient
        from mlflow.entities import Param

        self._client = MlflowClient()
        self._last: dict[str, int] = defaultdict(lambda: -1)
        path = folder / _IDENTITY
        if path.is_file():
            self._id = path.read_text(encoding="ascii").strip()
            self._client.update_run(self._id, status="RUNNING")
            for name in self._client.get_run(self._id).data.metrics:
                self._last[name] = max(each.step for each in self._client.get_metric_history(self._id, name))
            return
        self._id = self._client.create_run(self._experiment(), run_name=folder.resolve().name).info.run_id
        with atomic_write(path) as temporary:
            temporary.write_text(self._id + "\n", encoding="ascii")
        parameters = [Param(name, str(value)[:500]) for name, value in settings.items()]
        for start in range(0, len(parameters), _MOST):
            self._client.log_batch(self._id, params=parameters[start : start + _MOST])

    def _experiment(self) -> str:
        name = os.environ.get("MLFLOW_EXPERIMENT_NAME", "inception-v4")
        found = self._client.get_experiment_by_name(name)
        return str(found.experiment_id if found else self._client.create_experiment(name))

    def log(self, step: int, figures: dict[str, float]) -> None:
        from mlflow.entities import Metric

        now = int(1000 * time.time())
        # MLflow would keep the steps that a resumed run does again twice.
        new = [Metric(name, value, now, step) for name, value in figures.items() if step > self._last[name]]
        if new:
            self._client.log_batch(self._id, metrics=new)

    def close(self, outcome: str) -> None:
        status = {FINISHED: "FINISHED", STOPPED: "KILLED"}.get(outcome, "FAILED")
        self._client.set_terminated(self._id, status)
