"""`sage-scale score`: the scores of hypotheses in a file, with intervals, and a paired test against another file."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

import typer

from sage_scale.cli.results import METRICS, Metrics
from sage_scale.errors import UsageError
from sage_scale.text.languages import checked_tag
from sage_scale.untrusted.display import shortened
from sage_scale.untrusted.printer import echo

SHOWN = ("bleu1", "bleu2", "bleu3", "bleu4", "rouge_l", "chrf")
NAMES = METRICS | {f"bleu{order}": f"BLEU-{order}" for order in range(1, 5)}


def score(
    hypotheses: Annotated[
        Path,
        typer.Option("--hypotheses", help="A .txt with a sentence a line, or predictions as .tsv or .jsonl."),
    ],
    language: Annotated[str, typer.Option("--language", help="Language of the sentences, such as de or zh.")],
    references: Annotated[
        Path | None,
        typer.Option(
            "--references", help="The same for the references; unless given, of the --hypotheses table."
        ),
    ] = None,
    preset: Annotated[
        str,
        typer.Option("--preset", help="Conventions of a publication: sage, gfslt, sign2gpt, neccam, ..."),
    ] = "sacrebleu",
    against: Annotated[
        Path | None,
        typer.Option("--against", help="Other hypotheses of the same references, for a paired test."),
    ] = None,
    metrics: Metrics = None,
) -> None:
    """Score translations in files: BLEU, ROUGE-L and chrF with 95% intervals, and paired tests against other ones."""
    from sage_scale.evaluation.counts import bleu_signature, counts_by_metric
    from sage_scale.evaluation.hypotheses import TABLES, check_same_clips, read_sentences
    from sage_scale.evaluation.neural import neural_counts, open_scorer
    from sage_scale.evaluation.presets import pairs_of, preset_named
    from sage_scale.evaluation.significance import counts_interval, counts_test

    convention, tag = preset_named(preset), checked_tag(language, "--language")
    scorers = [open_scorer(written) for written in metrics or []]
    if references is None and hypotheses.suffix.lower() not in TABLES:
        raise UsageError(f"--references FILE is needed: {shortened(hypotheses, 300)} has hypotheses alone")
    texts = read_sentences(references or hypotheses, "reference")
    if not texts:
        raise UsageError(f"{shortened(references or hypotheses, 300)} has no sentence: nothing to score")
    files = [hypotheses, *([against] if against else [])]
    check_same_clips([*([references] if references else []), *files])
    counted: list[dict[str, Any]] = []
    for file in files:
        ours = read_sentences(file)
        _check_length(file, ours, texts)
        pairs = convention.prepare(pairs_of(ours, texts, tag))
        counts = counts_by_metric(pairs, convention, SHOWN)
        counts |= {name: neural_counts(scorer, ours, texts) for name, scorer in scorers}
        counted.append(counts)
    signature = bleu_signature(pairs, convention)
    echo(f"{hypotheses}: {len(texts)} sentences, preset {preset} ({signature})")
    for name, of_metric in counted[0].items():
        found = counts_interval(of_metric)
        line = f"  {NAMES[name]:8} {found.value:6.2f}  [{found.low:.2f}, {found.high:.2f}]"
        if against:
            test = counts_test(of_metric, counted[1][name])
            line += (
                f"   {counted[1][name].score():6.2f}   difference {test.difference:+.2f} "
                f"[{test.low:+.2f}, {test.high:+.2f}], p {test.p:.3f}"
            )
        echo(line)
    if against:
        echo(
            f"  second figure: {against}; 95% intervals by bootstrap over sentences, p by approximate randomisation"
        )


def _check_length(file: Path, ours: Sequence[str], references: Sequence[str]) -> None:
    if len(ours) != len(references):
        raise UsageError(
            f"{shortened(file, 300)} has {len(ours)} sentences, the references {len(references)}: "
            "a sentence a line is needed, in the same order"
        )
