"""BLEURT and COMET by their own packages, where these are installed: `bleurt=CHECKPOINT`, `comet=MODEL`.

BLEURT (Sellam et al. 2020; https://github.com/google-research/bleurt): the folder of a checkpoint such as BLEURT-20.
COMET (Rei et al. 2022; https://github.com/Unbabel/COMET): a name on the Hugging Face hub or a .ckpt file, which the
package unpickles. The source of a COMET segment is a text; a video has none, so it stays empty: such figures compare
with others made so alone. Both are means over clips, times 100.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

from sage_scale.errors import UsageError
from sage_scale.evaluation.counts import Counts, mean_of
from sage_scale.untrusted.display import message_line, shortened

BATCH = 16
COMET = "Unbabel/wmt22-comet-da"

Scorer = Callable[[Sequence[str], Sequence[str]], list[float]]
"""(hypotheses, references) -> a value for each pair."""


def open_scorer(written: str) -> tuple[str, Scorer]:
    """Returns name and scorer of `NAME` or `NAME=CHECKPOINT`.

    Raises UsageError for an unknown name, a package that is not installed, and a checkpoint that cannot be opened.
    """
    name, _, checkpoint = written.partition("=")
    if name not in _OPEN:
        raise UsageError(
            f"--metric {shortened(written)}: known are {', '.join(_OPEN)} (NAME or NAME=CHECKPOINT)"
        )
    try:
        return name, _OPEN[name](checkpoint)
    except ModuleNotFoundError as missing:
        raise UsageError(f"--metric {name}: '{missing.name}' is not installed; {_INSTALL[name]}") from None
    except UsageError:
        raise
    except Exception as error:  # of a foreign package
        raise UsageError(
            f"--metric {shortened(written)}: it cannot be opened ({shortened(message_line(error), 300)})"
        ) from None


def neural_counts(scorer: Scorer, hypotheses: Sequence[str], references: Sequence[str]) -> Counts:
    """Returns the counts of a scorer's values, so that intervals and tests are made of them as of ROUGE-L."""
    values = scorer(hypotheses, references)
    if len(values) != len(references):
        raise UsageError(f"the metric's package gave {len(values)} values for {len(references)} clips")
    return mean_of(values)


def _bleurt(checkpoint: str) -> Scorer:
    from bleurt.score import BleurtScorer

    if not checkpoint or not Path(checkpoint).is_dir():
        where = f"{shortened(checkpoint, 200)} is no folder" if checkpoint else "its checkpoint is missing"
        raise UsageError(f"--metric bleurt: {where}; give --metric bleurt=FOLDER, such as that of BLEURT-20")
    scorer = BleurtScorer(checkpoint)

    def score(hypotheses: Sequence[str], references: Sequence[str]) -> list[float]:
        found = scorer.score(references=list(references), candidates=list(hypotheses), batch_size=BATCH)
        return [float(value) for value in found]

    return score


def _comet(checkpoint: str) -> Scorer:
    from comet import download_model, load_from_checkpoint

    wanted = checkpoint or COMET
    model = load_from_checkpoint(wanted if Path(wanted).is_file() else download_model(wanted))

    def score(hypotheses: Sequence[str], references: Sequence[str]) -> list[float]:
        import torch

        rows = [{"src": "", "mt": h, "ref": r} for h, r in zip(hypotheses, references, strict=True)]
        found = model.predict(rows, batch_size=BATCH, gpus=int(torch.cuda.is_available()), progress_bar=False)
        return [float(value) for value in found.scores]

    return score


_OPEN: dict[str, Callable[[str], Scorer]] = {"bleurt": _bleurt, "comet": _comet}
_INSTALL = {
    "bleurt": "pip install git+https://github.com/google-research/bleurt, and give the folder of a checkpoint: "
    "--metric bleurt=FOLDER",
    "comet": "pip install unbabel-comet",
}
