"""A run's log: metrics.jsonl and metrics.csv always, TensorBoard's event files where asked.

log = RunLog(folder)
log.write({"step": 1, "loss": 2.3, ...})
log.entries                                  # as written
"""

import csv
import io
import json
from pathlib import Path

from minilora.errors import ConfigError, TrainingError

COLUMNS = ("step", "loss", "lr", "grad_norm", "tokens", "eval_loss", "eval_perplexity", "eval_exact_match")


class RunLog:
    def __init__(self, folder: Path, tensorboard: bool = False, resume_at: int | None = None):
        """resume_at: keep the entries up to this step of a log that is there. Raises TrainingError, ConfigError."""
        self.jsonl, self.csv = folder / "metrics.jsonl", folder / "metrics.csv"
        self.entries = [] if resume_at is None else [e for e in _read(self.jsonl) if e["step"] <= resume_at]
        _write(self.jsonl, "".join(json.dumps(e) + "\n" for e in self.entries), "w")
        _write(self.csv, ",".join(COLUMNS) + "\n" + "".join(map(_row, self.entries)), "w")
        self.writer = _tensorboard(folder / "tensorboard") if tensorboard else None

    def write(self, entry: dict):
        self.entries.append(entry)
        _write(self.jsonl, json.dumps(entry) + "\n", "a")
        _write(self.csv, _row(entry), "a")
        if self.writer is not None:
            for name in COLUMNS[1:]:
                if name in entry:
                    self.writer.add_scalar(name.replace("eval_", "eval/"), entry[name], entry["step"])
            self.writer.flush()


def _row(entry: dict) -> str:
    line = io.StringIO()
    csv.writer(line, lineterminator="\n").writerow([entry.get(name, "") for name in COLUMNS])
    return line.getvalue()


def _read(path: Path) -> list[dict]:
    """The whole lines of a log; the last one may have been cut by whatever ended the run."""
    entries = []
    for line in path.read_text(encoding="utf-8").splitlines() if path.exists() else []:
        try:
            entries.append(json.loads(line))
        except json.JSONDecodeError:
            break
    return entries


def _tensorboard(folder: Path):
    try:
        from tensorboardX import SummaryWriter
    except ImportError:
        raise ConfigError("use_tensorboard needs the package tensorboardX: pip install 'minilora[logging]'") from None
    return SummaryWriter(str(folder))


def _write(path: Path, text: str, mode: str):
    try:
        with open(path, mode, encoding="utf-8") as file:
            file.write(text)
    except OSError as error:
        raise TrainingError(
            f"{path} could not be written: {error.strerror}; weights saved before are intact"
        ) from error
