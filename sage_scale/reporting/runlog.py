"""Reading a run folder back. Every part is optional: a run that was stopped, or has only stage 1, has a record too.

recipe.yaml                    the recipe, whole
pretrain/log.jsonl             a JSON object a line: {"event": "step" | "dev" | "start" | "save" ..., "step": ..., ...}
finetune/log.jsonl             the same
scores.json                    {split: scores, with "controls", "heldout" and "languages" beside them}; of 0.1.0 those
                               of one split
predictions/<split>.jsonl      {"hypothesis", "reference", "language", "pseudo_glosses", ...}
alignment.json ...             files of stage 1 for the model's own sections (`ModelSpec.report`)
timelines/<split>.json         [{"sentence", "hypothesis", "fps", "frames", "segments", "gold", "thumbnails"}]; of 0.1.0
                               timelines.json
timing.json                    [{"stage", "seconds", "memory_mb", "note"}]; the note is optional
"""

from __future__ import annotations

import math
from array import array
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from sage_scale.config import Model
from sage_scale.errors import UsageError
from sage_scale.evaluation.stored import scores_by_split
from sage_scale.registry import ModelSpec, model_names, model_spec
from sage_scale.storage import on_this_machine
from sage_scale.untrusted.display import shortened
from sage_scale.untrusted.files import read_bytes, read_text
from sage_scale.untrusted.json_values import InvalidJSON, parse_json, parse_json_object
from sage_scale.untrusted.yaml_values import InvalidYAML, parse_yaml


@dataclass(frozen=True, kw_only=True)
class StageLog:
    """Log of one training stage, each step once, in order. Numbers are kept by column: 40 long runs fit in memory."""

    steps: Sequence[int]
    """Steps of the event `step`."""
    columns: Mapping[str, Sequence[float]] = field(default_factory=dict)
    """By key: a value a step, NaN where it is no finite number."""
    dev: list[dict[str, Any]]
    """Rows of the event `dev`."""
    events: list[dict[str, Any]] = field(default_factory=list)
    """Rows of all other events, as they came: `start`, `save`, `bad_step`, `early_stop`."""
    unread: int = 0
    """Lines that are no JSON object (a killed process leaves half a line)."""

    def curve(self, key: str, event: str = "step") -> list[tuple[float, float]]:
        """Returns (step, value) wherever `key` was logged as a finite number."""
        if event == "dev":
            return [(float(row["step"]), float(row[key])) for row in self.dev if number(row.get(key))]
        pairs = zip(self.steps, self.columns.get(key, ()), strict=False)
        return [(float(step), value) for step, value in pairs if math.isfinite(value)]

    def of_event(self, name: str) -> list[dict[str, Any]]:
        """Returns rows of one of the other events, in the order of the log."""
        return [row for row in self.events if row.get("event") == name]

    def last(self, key: str, event: str = "step") -> float | None:
        """Returns the last logged value of `key`."""
        curve = self.curve(key, event)
        return curve[-1][1] if curve else None


@dataclass(frozen=True, kw_only=True)
class RunRecord:
    """The content of a run folder; missing parts are empty."""

    folder: Path
    called: str = ""
    """Its name on a page where another run's folder has the same name; empty: the folder's."""
    recipe_text: str = ""
    """Text of recipe.yaml."""
    recipe: Mapping[str, Any] = field(default_factory=dict)
    """The same as nested mappings; empty where it is no YAML."""
    logs: Mapping[str, StageLog] = field(default_factory=dict)
    """By stage: `pretrain`, `finetune`; a stage without a log is absent."""
    scores_by_split: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    """Each with `split`, its name."""
    shown: str = ""
    """The split to be shown first; empty: test, else dev, else any that was scored."""
    predictions: Mapping[str, list[dict[str, Any]]] = field(default_factory=dict)
    """By split."""
    own: Mapping[str, Any] = field(default_factory=dict)
    """Content of the files of the model's own sections, by their names."""
    timelines_by_split: Mapping[str, list[dict[str, Any]]] = field(default_factory=dict)
    timing: list[dict[str, Any]] = field(default_factory=list)
    missing: list[tuple[str, str]] = field(default_factory=list)
    """(what, why): parts that are not there or cannot be read."""

    @property
    def name(self) -> str:
        """The run's name: its folder's, unless it is called otherwise."""
        return self.called or self.folder.resolve().name

    @property
    def spec(self) -> ModelSpec:
        """The run's model; one that is not registered here has no sections of its own."""
        usual = Model().kind
        kind = str(self.setting("model.kind", usual))
        if kind in model_names():
            return model_spec(kind)
        return replace(model_spec(usual), title=shortened(kind), report=())

    @property
    def split(self) -> str:
        """The split that the page shows first: one that was scored, else translated; `test` where none was."""
        known = list(self.scores_by_split or self.predictions)
        return next((split for split in (self.shown, "test", "dev", *known) if split in known), "test")

    @property
    def scores(self) -> Mapping[str, Any]:
        """Scores of that split; empty where it was not scored."""
        return self.scores_by_split.get(self.split, {})

    @property
    def timelines(self) -> list[dict[str, Any]]:
        """Clips of that split with their segments; in a run of 0.1.0, of the split that was evaluated last."""
        of_any = self.timelines_by_split.get("timelines", [])
        return self.timelines_by_split.get(self.split, of_any)

    @property
    def found(self) -> Mapping[str, Any]:
        """Scores of the pseudo-glosses found in the test clips, else in dev's, with `split`; empty where none were."""
        splits = self.own.get("prototypes.json", {}).get("splits")
        for split in ("test", "dev"):
            if isinstance(splits, Mapping) and isinstance(splits.get(split), Mapping):
                return {**splits[split], "split": split}
        return {}

    def setting(self, path: str, default: Any = None) -> Any:
        """Returns a value of the recipe, `section.key`."""
        node: Any = self.recipe
        for part in path.split("."):
            if not isinstance(node, Mapping) or part not in node:
                return default
            node = node[part]
        return node

    def of_datasets(self, path: str) -> str:
        """Returns a value of the recipe that describes the datasets; values that differ are joined by "and"."""
        for log in self.logs.values():
            for row in log.of_event("start"):
                differing = row.get("differing")
                values = differing.get(path) if isinstance(differing, Mapping) else None
                if isinstance(values, list) and values:
                    return " and ".join(map(str, values))
        return str(self.setting(path) or "")


def read_run(folder: str | Path) -> RunRecord:
    """Returns the record of a run. Raises UsageError where `folder` is no run at all."""
    run = on_this_machine(folder, "a run")
    if not run.is_dir():
        raise UsageError(f"there is no run folder {run}")
    missing: list[tuple[str, str]] = []
    text = _text(run / "recipe.yaml", "recipe", "the run has no recipe.yaml", missing)
    logs = {}
    for stage, words in (("pretrain", "stage 1 (pretrain)"), ("finetune", "stage 2 (finetune)")):
        path = run / stage / "log.jsonl"
        log = read_log(path) if path.is_file() else None
        if log and (log.steps or log.dev):
            logs[stage] = log
        else:
            missing.append((words, f"not run: there is no {stage}/log.jsonl"))
    recipe = _yaml(text, missing)
    own: dict[str, Any] = {}
    for part in RunRecord(folder=run, recipe=recipe).spec.report:
        why = f"there is no {part.file}; stage 1 writes it at its end"
        found = _json(run / part.file, part.missing, why, part.content, missing)
        own[part.file] = found if part.content is dict else [row for row in found if isinstance(row, dict)]
    record = RunRecord(
        folder=run,
        recipe_text=text,
        recipe=recipe,
        logs=logs,
        scores_by_split=_scores(run / "scores.json", missing),
        predictions=_predictions(run / "predictions", missing),
        own=own,
        timelines_by_split=_timelines(run / "timelines", missing),
        timing=_rows(run / "timing.json", "time and memory", "no stage has ended", missing),
        missing=missing,
    )
    if not (text or logs or record.scores_by_split or record.predictions):
        raise UsageError(f"{run} is no run folder: it has neither recipe.yaml nor logs nor scores")
    return record


def read_runs(
    runs: Sequence[str | Path | RunRecord], progress: Callable[[int, int], None] = lambda done, total: None
) -> list[RunRecord]:
    """Returns the records of runs, as `read_run`; a record is itself. `progress` is told the runs read and in all."""
    records = []
    for run in runs:
        records.append(run if isinstance(run, RunRecord) else read_run(run))
        progress(len(records), len(runs))
    return records


def read_log(path: Path) -> StageLog:
    """Returns a stage's log. Steps that a resumed run trained again count once, as they were trained last."""
    steps = _Steps()
    dev: dict[int, dict[str, Any]] = {}
    events: list[dict[str, Any]] = []
    unread = 0
    for row in _lines(path):
        step = row.get("step") if row is not None else None
        if row is None or not isinstance(step, int) or isinstance(step, bool):
            unread += row is None
            continue
        if row.get("event") == "step":
            steps.put(step, row)
        elif row.get("event") == "dev":
            dev[step] = row
        else:
            events.append(row)
    return StageLog(
        steps=sorted(steps.places),
        columns=steps.columns(),
        dev=[dev[s] for s in sorted(dev)],
        events=events,
        unread=unread,
    )


class _Steps:
    """Rows of the event `step` as columns of numbers, while they are read."""

    def __init__(self) -> None:
        self.places: dict[int, int] = {}
        """Position in the columns by step."""
        self._columns: dict[str, array[float]] = {}

    def put(self, step: int, row: Mapping[str, Any]) -> None:
        """Adds a row, in place of an older one of that step."""
        if step in self.places:
            for column in self._columns.values():
                if self.places[step] < len(column):
                    column[self.places[step]] = math.nan
        place = self.places.setdefault(step, len(self.places))
        for key, value in row.items():
            if number(value):
                column = self._columns.setdefault(key, array("d"))
                column.extend([math.nan] * (place + 1 - len(column)))
                column[place] = value

    def columns(self) -> dict[str, Sequence[float]]:
        """Returns the columns in the order of the steps."""
        order = [self.places[step] for step in sorted(self.places)]
        return {
            key: array("d", (column[place] if place < len(column) else math.nan for place in order))
            for key, column in self._columns.items()
        }


def _lines(path: Path) -> Iterator[dict[str, Any] | None]:
    """Yields the JSON objects of a JSON Lines file; None for a line that is none."""
    try:
        data = read_bytes(path)
    except OSError:
        yield None
        return
    for line in data.split(b"\n"):
        if line.strip():
            try:
                yield parse_json_object(line)
            except InvalidJSON:
                yield None


def _predictions(folder: Path, missing: list[tuple[str, str]]) -> dict[str, list[dict[str, Any]]]:
    found = {}
    for path in sorted(folder.glob("*.jsonl")):
        lines = list(_lines(path))
        rows = [row for row in lines if row and "hypothesis" in row and "reference" in row]
        if rows:
            found[path.stem] = rows
        if len(rows) < len(lines):
            missing.append((f"{len(lines) - len(rows)} examples", f"lines of {path.name} that are damaged"))
    if not found:
        missing.append(("examples", "not evaluated: there are no predictions"))
    return found


def _timelines(folder: Path, missing: list[tuple[str, str]]) -> dict[str, list[dict[str, Any]]]:
    found = {path.stem: _rows(path, "timelines", "", missing) for path in sorted(folder.glob("*.json"))}
    if not found:
        missing.append(("timelines", "not evaluated"))
    return {split: rows for split, rows in found.items() if rows}


def _rows(path: Path, what: str, why: str, missing: list[tuple[str, str]]) -> list[dict[str, Any]]:
    rows = _json(path, what, why, list, missing)
    return [row for row in rows if isinstance(row, dict)]


def _scores(path: Path, missing: list[tuple[str, str]]) -> dict[str, dict[str, Any]]:
    """Returns scores by split; a split without figures is named in `missing`."""
    document = _json(path, "scores", "not evaluated: run `sage-scale evaluate`", dict, missing)
    found = scores_by_split(document)
    whole = {split: scores for split, scores in found.items() if number(scores.get("bleu4"))}
    lost = sorted(document.keys() - whole.keys()) if whole.keys() <= document.keys() else []
    for split in lost[:10]:
        why = f"{path.name} has no figures of it: run `sage-scale evaluate`"
        missing.append((f"scores of {shortened(split)}", why))
    return whole


def _json(path: Path, what: str, why: str, kind: Callable[[], Any], missing: list[tuple[str, str]]) -> Any:
    known = len(missing)
    text = _text(path, what, why, missing)
    if len(missing) > known:
        return kind()
    try:
        value = parse_json(text)
        if isinstance(value, kind):  # type: ignore[arg-type]
            return value
        reason = "not a list" if kind is list else "not an object"
    except InvalidJSON as error:
        reason = str(error)
    missing.append((what, f"{path.name} is damaged ({reason})"))
    return kind()


def _text(path: Path, what: str, why: str, missing: list[tuple[str, str]]) -> str:
    try:
        return read_text(path)
    except FileNotFoundError:
        missing.append((what, why))
    except (OSError, UnicodeDecodeError) as error:
        missing.append((what, f"{path.name} cannot be read: {getattr(error, 'strerror', error)}"))
    return ""


def _yaml(text: str, missing: list[tuple[str, str]]) -> dict[str, Any]:
    try:
        values = parse_yaml(text) or {}
    except InvalidYAML as error:
        missing.append(("recipe", f"recipe.yaml is damaged ({error})"))
        return {}
    if not isinstance(values, dict):
        missing.append(("recipe", "recipe.yaml is damaged (not a mapping of sections)"))
        return {}
    return values


def number(value: Any) -> bool:
    """Returns whether a value of a run's JSON is a finite number."""
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def fixed(value: Any, digits: int) -> str:
    """Returns a number with so many digits, or an empty text for another value."""
    return f"{value:,.{digits}f}" if number(value) else ""
