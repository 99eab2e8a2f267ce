"""Taggers against real boundaries, by `segment evaluate`: drawn by people on German Sign Language, and gold ones of the
synthetic corpus."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from sage_scale.cli.main import run
from sage_scale.config import Corpus, Segmentation, Vision
from sage_scale.corpora.videos import whole_videos
from sage_scale.segmentation.evaluation import WHOLE, Evaluation, Row, annotation, evaluate
from sage_scale.segmentation.scores import COUNTS, scores

SHARED = Path(__file__).resolve().parents[3] / "shared" / "data"
DGS = SHARED / "dgs_motion"
real = pytest.mark.skipif(
    not DGS.is_dir(), reason="the 272 real DGS clips (../shared/data/dgs_motion) are not here"
)


def evaluated(gold: Path, media: Path, **settings: Segmentation) -> Evaluation:
    """Scores of taggers by name, each before and after the rule of its settings."""
    rows = [Row(name=name, segmentation=given) for name, given in settings.items()]
    rows += [
        Row(name=f"{name}, rule", segmentation=given, after_rule=True) for name, given in settings.items()
    ]
    vision = Vision(source_fps=50.0, source_aspect=16 / 9)
    return evaluate(whole_videos(media).clips, str(annotation(gold)), rows, vision, fps=25.0)


def figures(found: Evaluation, name: str) -> tuple[dict[str, float], float]:
    """Scores of a row, and its segments a frame."""
    counts = found.counts[name].sum(0)
    segments = float(counts[COUNTS.index("predicted_segments")]) / found.frames
    return {score: float(value) for score, value in scores(counts, 25.0).items()}, segments


@real
def test_motion_and_peoples_own_signs() -> None:
    """SAGE reports .129 tokens a frame with a trained segmenter; people's signs through the same rule come near."""
    people = Segmentation(tagger="precomputed", labels=str(DGS / "clips.jsonl"))
    found = evaluated(DGS / "clips.jsonl", DGS / "keypoints", motion=Segmentation(), people=people)
    assert len(found.clips) == 272 and found.signs == 1709
    motion, _ = figures(found, "motion")
    assert motion["onset_f1_1"] > 1.35 * motion["even_onset_f1_1"]
    assert motion["onset_f1_2"] > 1.15 * motion["even_onset_f1_2"]
    assert 0.10 <= figures(found, "motion, rule")[1] <= 0.16
    assert figures(found, "people, rule")[1] == pytest.approx(0.129, abs=0.005)


def test_motion_on_the_synthetic_corpus(tmp_path) -> None:
    from sage_scale.corpora.synthetic import make_corpus

    corpus = Corpus(seed=5, train_clips=10, dev_clips=1, test_clips=1, heldout_clips=1)
    make_corpus(corpus, tmp_path, workers=1)
    truth = Segmentation(tagger="precomputed", labels=str(tmp_path / "gold"))
    found = evaluated(tmp_path, tmp_path / "videos", motion=Segmentation(), truth=truth)
    motion, _ = figures(found, "motion")
    assert motion["onset_f1_1"] > 1.5 * motion["even_onset_f1_1"]
    assert 0.10 <= figures(found, "motion, rule")[1] <= 0.16
    assert figures(found, "truth")[0]["segment_f1_75"] == 1


@pytest.mark.system
@real
@pytest.mark.skipif(not (SHARED / "sign_segmenter").is_dir(), reason="the weights of 2023 are not here")
def test_the_published_segmenter_of_2023(tmp_path) -> None:
    """Figures that another implementation reached on the same 272 clips, where the threshold and the gap are fixed and
    where they were chosen on the other recordings. The model has probably seen these recordings."""
    weights = f"segmentation.tagger=published segmentation.weights={SHARED}/sign_segmenter/v2023"
    limits = "segmentation.decoding_threshold=.4 segmentation.decoding_gap_s=.16"
    code = run([
        "segment", "evaluate", "--gold", str(DGS / "clips.jsonl"), "--root", str(DGS / "keypoints"),
        "--group", "recording", "--choose-on-others", "--out", str(tmp_path / "dgs"),
        "--row", f"peaks: {weights} segmentation.decoding=peaks {limits}",
        "--row", f"thresholds: {weights} segmentation.decoding=thresholds",
        "--row", f"sage: {weights} segmentation.decoding=peaks {limits} segmentation.rule=sage",
        "--row", "motion: segmentation.tagger=motion", "vision.source_fps=50", "vision.source_aspect=1.7778",
    ])  # fmt: skip
    assert code == 0
    table = json.loads((tmp_path / "dgs.json").read_text())["rows"]
    rows = {row["name"]: row["scores"] for row in table if not row["group"]}
    names = ("onset_f1_1", "onset_f1_2", "onset_f1_3", "frame_macro_f1", "segment_f1_50", "ratio")
    known = {
        WHOLE: [0, 0, 0, 0.332, 0.014, 0.16],
        "motion": [0.404, 0.552, 0.645, 0.341, 0.271, 1.44],
        "peaks": [0.544, 0.690, 0.764, 0.606, 0.384, 1.13],
        "thresholds": [0.405, 0.561, 0.642, 0.590, 0.293, 0.70],
        "sage": [0.475, 0.620, 0.691, 0.439, 0.318, 1.67],
    }
    for name, values in known.items():
        assert [rows[name][score]["value"] for score in names] == pytest.approx(values, abs=0.012), name
    held_out = rows["peaks, threshold and gap chosen on the other groups"]
    assert held_out["onset_f1_1"]["value"] >= 0.53 and held_out["segment_f1_50"]["value"] >= 0.36
    assert held_out["frame_macro_f1"]["value"] == pytest.approx(0.606, abs=0.003)
