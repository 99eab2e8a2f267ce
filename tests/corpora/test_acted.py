"""`corpus act`: tables of glossed sentences, invented signs and signers, and the corpus that they make."""

from __future__ import annotations

import json
import re
from itertools import pairwise
from pathlib import Path
from random import Random

import numpy as np
import pytest
from factories.precompute import run_here
from hypothesis import given
from hypothesis import strategies as st
from typer.testing import CliRunner

from sage_scale import config
from sage_scale.cli.main import app
from sage_scale.config import from_mapping
from sage_scale.corpora.acted import corpus as making
from sage_scale.corpora.acted.corpus import make_acted
from sage_scale.corpora.acted.signs import act, least_frames, sign_of, signer_of
from sage_scale.corpora.acted.table import read_gloss_tables
from sage_scale.corpora.registry import read_corpus
from sage_scale.corpora.synthetic.skeleton import skeleton_track
from sage_scale.errors import StorageError, UsageError
from sage_scale.keypoints.files import read_track
from sage_scale.segmentation.precomputed import find_labels, fitted
from sage_scale.shards import open_dataset, read_metadata
from sage_scale.shards.merge import notes_of

SAMPLE = Path(__file__).with_name("glossed_sentences.csv")
PHOENIX = Path(__file__).resolve().parents[3] / "shared" / "data" / "phoenix14t_text"
NAMES = [f"GLOSS-{number}" for number in range(1085)]


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("acted")
    make_acted(read_gloss_tables([SAMPLE], "de"), root, videos=False, workers=1)
    return root


def files(root: Path) -> dict[str, bytes]:
    return {str(path.relative_to(root)): path.read_bytes() for path in root.rglob("*") if path.is_file()}


def manifest(root: Path):
    return read_corpus(config.Corpus(name="acted", root=str(root)))


def gold_of(root: Path, key: str) -> dict:
    return json.loads((root / "gold" / f"{key}.json").read_text(encoding="utf-8"))


def hands(gloss: str, signer: str = "anna", draw: int = 0) -> np.ndarray:
    """The hands' keypoints while a sign is made between two others, in 8 frames, (8, 84)."""
    motion = act(["X", gloss, "Y"], signer_of(signer, 0), 0, Random(draw))
    track = skeleton_track(motion, signer_of(signer, 0))
    columns = [number for number, name in enumerate(track.names) if "_hand." in name]
    _, span, _ = motion.spans
    rows = np.linspace(span.start, span.end - 1, 8).round().astype(int)
    return track.points_TKC[rows][:, columns, :2].reshape(8, -1)


# -- signs


def test_a_sign_depends_on_its_gloss_and_the_seed_alone() -> None:
    first = {name: sign_of(name, 0) for name in NAMES[:50]}
    sign_of.cache_clear()
    assert {name: sign_of(name, 0) for name in reversed(NAMES[:50])} == first
    assert sum(sign_of(name, 1) == sign for name, sign in first.items()) == 0


def test_as_many_different_signs_as_glosses_told_apart_by_their_hands() -> None:
    """No two signs are equal; a sign made again, between the same neighbours, is nearest to itself among 250."""
    signs = [sign_of(name, 0).entry for name in NAMES]
    assert len({(sign.form, sign.nuance) for sign in signs}) == 1085
    assert len({sign.form for sign in signs}) > 0.98 * 1085
    shapes = np.stack([hands(name) for name in NAMES[:250]]).reshape(250, -1)
    again = np.stack([hands(name, draw=1) for name in NAMES[:250:10]]).reshape(25, -1)
    nearest = np.linalg.norm(again[:, None] - shapes[None], axis=-1).argmin(1)
    assert (nearest == np.arange(0, 250, 10)).mean() > 0.9


def test_signs_last_as_long_as_those_of_real_signers() -> None:
    """Public DGS Corpus, 272 clips, p10/50/90: 80/180/500 ms a sign, 200/360/720 from onset to onset; gap 160."""
    rng, times = Random(5), []
    for clip in range(150):
        glosses = [rng.choice(NAMES) for _ in range(8)]
        spans = act(glosses, signer_of(f"S{clip % 9}", 0), 0, Random(clip)).spans
        times.append([(40 * span.start, 40 * span.end) for span in spans])
    pairs = [pair for clip in times for pair in pairwise(clip)]
    duration = np.percentile([end - start for clip in times for start, end in clip], [10, 50, 90])
    onset = np.percentile([b[0] - a[0] for a, b in pairs], [10, 50, 90])
    assert (np.abs(duration - [80, 180, 500]) <= [20, 40, 100]).all(), duration
    assert (np.abs(onset - [200, 360, 720]) <= [60, 80, 140]).all(), onset
    assert np.median([b[0] - a[1] for a, b in pairs]) == pytest.approx(160, abs=40)


def test_a_sign_has_a_length_of_its_own() -> None:
    def mean(gloss: str) -> float:
        spans = [act(["X", gloss, "Y"], signer_of("anna", 0), 0, Random(n)).spans[1] for n in range(20)]
        return float(np.mean([span.end - span.start for span in spans]))

    own = [sign_of(name, 0).frames for name in NAMES[:12]]
    assert np.corrcoef(own, [mean(name) for name in NAMES[:12]])[0, 1] > 0.95


@given(
    glosses=st.lists(st.sampled_from(NAMES), min_size=1, max_size=40),
    frames=st.integers(0, 1200),
    draw=st.integers(0, 9),
)
def test_spans_are_in_order_within_the_clip_and_fill_its_length(glosses, frames, draw) -> None:
    motion = act(glosses, signer_of(str(draw), 0), 0, Random(draw), frames)
    if frames:
        assert motion.frames == max(frames, least_frames(len(glosses)))
    edges = [edge for span in motion.spans for edge in (span.start, span.end)]
    assert edges == sorted(edges) and edges[0] >= 4 and edges[-1] <= motion.frames - 4
    assert all(span.end - span.start >= 2 for span in motion.spans)
    assert all(a.end < b.start + 1 for a, b in pairwise(motion.spans))
    assert [span.sign.gloss for span in motion.spans] == glosses
    assert np.isfinite(motion.strong).all() and np.isfinite(motion.weak).all()


def test_lengths_of_the_table_are_taken() -> None:
    motion = act(["A", "B", "C"], signer_of("", 0), 0, Random(0), gloss_frames=(4, 20, 9))
    assert np.abs(np.array([span.end - span.start for span in motion.spans]) - [4, 20, 9]).max() <= 1


# -- tables


def test_columns_have_many_names_and_any_delimiter(tmp_path: Path) -> None:
    rows = {
        "a.csv": 'Name,ORTH,Translation,Speaker\nx,A B,"es regnet, sagt er",s1\n',
        "b.dev.tsv": "id\tgloss\ttext\tframes\nx\tA B\tes regnet\t60\n",
        "PHOENIX-2014-T.test.corpus.csv": "name|video|start|end|speaker|orth|translation\nx|v|-1|-1|S|A B|es regnet\n",
        "d.jsonl": '{"id": 7, "glosses": ["A", "B"], "sentence": "es regnet", "split": "valid", "lang": "zh_CN"}\n',
        "e.csv": "id;glosses;sentence\r\ntest/x;A B;es regnet\r\n",
    }
    splits = {"a.csv": "train", "b.dev.tsv": "dev", "d.jsonl": "dev"}
    for name, text in rows.items():
        (tmp_path / name).write_text(text, encoding="utf-8")
        [row] = read_gloss_tables([tmp_path / name], "de").rows
        assert row.glosses == ("A", "B") and "es regnet" in row.sentence
        assert row.split == splits.get(name, "test")
    assert (
        row.language == "de" and read_gloss_tables([tmp_path / "d.jsonl"], "de").rows[0].language == "zh-CN"
    )
    assert read_gloss_tables([tmp_path / "b.dev.tsv"], "de").rows[0].frames == 60
    (tmp_path / "f.csv").write_text("id,glosses,sentence\nx,GRU\u0308N GR\u00dcN,x\n", encoding="utf-8")
    assert len(read_gloss_tables([tmp_path / "f.csv"], "de").glosses) == 1, (
        "a letter and its mark, and both as one"
    )


def test_a_bad_row_is_named_and_the_others_are_kept(tmp_path: Path) -> None:
    bad = {
        "no-glosses": {"id": "a", "glosses": " ", "sentence": "x"},
        "no-sentence": {"id": "b", "glosses": "A", "sentence": ""},
        "repeated-id": {"id": "good", "glosses": "A", "sentence": "x"},
        "no-split": {"id": "c", "glosses": "A", "sentence": "x", "split": "../../etc"},
        "bad-row": {"id": "d", "glosses": {"A": 1}, "sentence": "x"},
    }
    more = [
        {"id": "", "glosses": "A", "sentence": "x"}, {"id": "e", "glosses": "A " * 600, "sentence": "x"},
        {"id": "f", "glosses": "A" * 600, "sentence": "x"}, {"id": "g" * 600, "glosses": "A", "sentence": "x"},
        {"id": "h", "glosses": "A", "sentence": "x", "frames": 10**9},
        {"id": "i", "glosses": "A", "sentence": "x", "frames": True},
        {"id": "i2", "glosses": "A", "sentence": "x", "frames": "50.5"},
        {"id": "j", "glosses": "A B", "sentence": "x", "gloss_frames": [4]},
        {"id": "k", "glosses": "A", "sentence": "x", "language": "klingon language"},
    ]  # fmt: skip
    lines = [
        json.dumps({"id": "good", "glosses": "A", "sentence": "x", "frames": "50.0"}),
        *map(json.dumps, [*bad.values(), *more]),
    ]
    lines += ["not json", '{"id": "nul", "glosses": "A\\u0000", "sentence": "x"}', "[1]"]
    (tmp_path / "t.jsonl").write_text("\n".join(lines), encoding="utf-8")
    found = read_gloss_tables([tmp_path / "t.jsonl"], "de")
    assert [(row.id, row.frames) for row in found.rows] == [("good", 50)]
    assert [row.reason for row in found.left_out] == [*bad, *["bad-row"] * (len(more) + 3)]
    assert all(re.match(r"t\.jsonl line \d+", row.detail) for row in found.left_out)


@pytest.mark.parametrize(
    ("name", "data", "said"),
    [
        ("none.csv", None, "cannot be read"),
        ("columns.csv", b"a,b\n1,2\n", "no column id, glosses, sentence"),
        ("empty.csv", b"", "no column"),
        ("rows.csv", b"id,glosses,sentence\n", "no row can be acted"),
        ("latin.csv", b"id,glosses,sentence\na,A,\xe4\n", "not UTF-8 .line 2"),
    ],
)
def test_a_file_that_is_no_table_is_one_line(
    tmp_path: Path, name: str, data: bytes | None, said: str
) -> None:
    if data is not None:
        (tmp_path / name).write_bytes(data)
    with pytest.raises(UsageError, match=said):
        read_gloss_tables([tmp_path / name], "de")


# -- the corpus


def test_clips_signers_and_splits_are_the_tables(made: Path) -> None:
    clips = manifest(made).clips
    assert [clip.id for clip in clips] == [f"acted-v1-s0/a{n:02d}" for n in range(1, 37)]
    counts = {split: sum(clip.split == split for clip in clips) for split in ("train", "dev", "test")}
    assert counts == {"train": 28, "dev": 3, "test": 5}
    assert {clip.signer for clip in clips if clip.split == "test"} >= {"emil"}, (
        "a signer that train does not have"
    )
    styles = {signer_of(clip.signer, 0) for clip in clips}
    assert len(styles) == 5


def test_gold_is_of_the_track_and_serves_as_labels(made: Path) -> None:
    for clip in manifest(made).clips:
        gold = gold_of(made, clip.key)
        track = read_track(Path(clip.video))
        assert len(track) == gold["frames"] == clip.frames and track.fps == gold["fps"] == 25
        labels = fitted(find_labels(str(made / "gold"), clip), clip.start_s, clip.frames, 25.0)
        assert np.flatnonzero(labels == 2).tolist() == [sign["start"] for sign in gold["signs"]]
        assert (labels > 0).sum() == sum(sign["end"] - sign["start"] for sign in gold["signs"])
        # The strong hand rests at both ends, and is up while signs are made.
        side = "left" if gold["left_handed"] else "right"
        height = track.select([f"{side}_hand.wrist"]).points_TKC[:, 0, 1]
        signed = [height[sign["start"] : sign["end"]].mean() for sign in gold["signs"]]
        assert height[0] > max(signed) and height[-1] > max(signed)


def test_the_same_gloss_has_the_same_sign_whatever_else_the_table_holds(made: Path, tmp_path: Path) -> None:
    header, *rows = SAMPLE.read_text(encoding="utf-8").splitlines()
    (tmp_path / "t.csv").write_text("\n".join([header, rows[20], rows[3], rows[35]]) + "\n", encoding="utf-8")
    make_acted(read_gloss_tables([tmp_path / "t.csv"], "de"), tmp_path / "out", videos=False, workers=1)
    whole, part = files(made), files(tmp_path / "out")
    shared = {name for name in part if name.startswith(("keypoints/", "gold/"))}
    assert len(shared) == 6 and all(part[name] == whole[name] for name in shared)
    signs = json.loads(part["signs.json"])["signs"]
    assert signs.items() <= json.loads(whole["signs.json"])["signs"].items()


def test_it_says_everywhere_that_it_is_no_real_corpus(made: Path) -> None:
    told = manifest(made).notice
    assert "glossed_sentences.csv" in told and "not results on the corpus" in told
    sha = json.loads((made / "corpus.json").read_text())["table"]["sha256"]
    assert sha[:16] in told
    assert told in (made / "README.md").read_text() and sha in (made / "README.md").read_text()
    assert all(
        json.loads(line)["acted"] == told for line in (made / "manifest.jsonl").read_text().splitlines()
    )


def test_an_interrupted_run_is_continued_to_the_same_bytes(
    made: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real, calls = making.make_clip, []

    def killed(root: Path, task: making.ActedClip) -> dict:
        calls.append(task.id)
        if len(calls) == 9:
            (root / "keypoints" / f"{task.key}.npz.part").write_bytes(b"half")
            raise KeyboardInterrupt
        return real(root, task)

    table = read_gloss_tables([SAMPLE], "de")
    monkeypatch.setattr(making, "make_clip", killed)
    with pytest.raises(KeyboardInterrupt):
        make_acted(table, tmp_path, videos=False, workers=1)
    with pytest.raises(UsageError, match="no finished corpus of acted text"):
        manifest(tmp_path)
    (tmp_path / "keypoints" / "mine.npz").write_bytes(b"mine")
    next((tmp_path / "keypoints").glob("????????????????.npz")).write_bytes(b"cut")
    calls[:] = ["x"] * 100
    make_acted(table, tmp_path, videos=False, workers=1)
    assert len(calls) == 100 + 36 - 7
    assert files(tmp_path) == files(made) | {"keypoints/mine.npz": b"mine"}
    make_acted(table, tmp_path, videos=False, workers=1)
    assert len(calls) == 100 + 36 - 7


@pytest.mark.system
def test_two_processes_make_the_same_bytes(made: Path, tmp_path: Path) -> None:
    make_acted(read_gloss_tables([SAMPLE], "de"), tmp_path, videos=False, workers=2)
    assert files(tmp_path) == files(made)


def test_folders_of_others_and_full_disks_are_one_line(
    made: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    table = read_gloss_tables([SAMPLE], "de")
    (tmp_path / "README.md").write_text("mine")
    for next_signs in ('{"HELLO": 1}', "[]", ""):  # signs.json of others marks no corpus of ours
        with pytest.raises(UsageError, match="of something else"):
            make_acted(table, tmp_path)
        (tmp_path / "signs.json").write_text(next_signs)
    (tmp_path / "link").symlink_to(tmp_path / "missing")
    for name, kind in (("link", "a link to a missing folder"), ("README.md", "is a file")):
        with pytest.raises(UsageError, match=kind):
            make_acted(table, tmp_path / name)
    with pytest.raises(UsageError, match="of another corpus"):
        from sage_scale.corpora.synthetic import make_corpus

        make_corpus(config.Corpus(train_clips=1, dev_clips=0, test_clips=0, heldout_clips=0), made, workers=1)

    def full(root: Path, task: making.ActedClip) -> dict:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(making, "make_clip", full)
    with pytest.raises(StorageError, match="No space left"):
        make_acted(table, tmp_path / "new", workers=1)


def test_hostile_ids_and_glosses_stay_within_the_folder_and_off_the_terminal(tmp_path: Path) -> None:
    names = [
        "../../etc/passwd",
        "/abs",
        "<script>alert(1)</script>",
        "\u202eevil",
        "a\x1b[2Jb",
        "x" * 500,
        "天气",
        "..",
    ]
    rows = [
        {"id": name, "glosses": [name[:200], "WETTER"], "sentence": name, "signer": name} for name in names
    ]
    (tmp_path / "<b>t.jsonl").write_text("\n".join(json.dumps(row) for row in rows), encoding="utf-8")
    out = tmp_path / "out"
    result = CliRunner().invoke(
        app, ["corpus", "act", "--table", str(tmp_path / "<b>t.jsonl"), "--root", str(out), "--keypoints"]
    )
    assert result.exit_code == 0, result.output
    assert "\x1b" not in result.output and "\u202e" not in result.output
    assert {path.parent.name for path in out.rglob("*.npz")} == {"keypoints"}
    assert all(
        re.fullmatch(r"[0-9a-f]{16}\.\w+", path.name) for path in (*out.rglob("*.npz"), *out.glob("gold/*"))
    )
    assert "<b>" not in (out / "README.md").read_text()
    assert [clip.id.partition("/")[2] for clip in manifest(out).clips] == names


def test_the_command_says_what_it_left_out_and_what_the_corpus_is_not(tmp_path: Path) -> None:
    rows = "".join(f"r{n},,es regnet,s\n" for n in range(12)).replace("r1,", ",", 1)
    (tmp_path / "t.csv").write_text(f"id,glosses,sentence,signer\n{rows}x,A B,es regnet,s\n")
    arguments = ["corpus", "act", "--table", str(tmp_path / "t.csv"), "--root", str(tmp_path / "out")]
    result = CliRunner().invoke(app, arguments)
    assert result.exit_code == 0, result.output
    for said in ("out: r0: no-glosses: t.csv line 2", "out: bad-row: t.csv line 3: no id", "2 more rows"):
        assert said in result.output
    assert "not results on the corpus" in result.output
    [clip] = manifest(tmp_path / "out").clips
    assert clip.video.endswith(".mp4") and Path(clip.video).stat().st_size > 1000
    inspected = CliRunner().invoke(
        app, ["corpus", "inspect", "--corpus", "acted", "--root", str(tmp_path / "out"), "--probe"]
    )
    assert inspected.exit_code == 0 and "not results on the corpus" in inspected.output
    refused = CliRunner().invoke(app, arguments[:4])
    assert isinstance(refused.exception, UsageError) and "--root" in str(refused.exception)


@pytest.mark.skipif(not PHOENIX.is_dir(), reason="the text of PHOENIX14T is not on this machine")
def test_the_sentences_of_phoenix14t(tmp_path: Path) -> None:
    import gzip

    for split in ("train", "dev", "test"):
        (tmp_path / f"{split}.jsonl").write_bytes(
            gzip.decompress((PHOENIX / f"{split}.jsonl.gz").read_bytes())
        )
    table = read_gloss_tables([tmp_path / f"{split}.jsonl" for split in ("train", "dev", "test")], "de")
    counts = [sum(row.split == split for row in table.rows) for split in ("train", "dev", "test")]
    assert counts == [7096, 517, 640]
    assert [row.reason for row in table.left_out] == ["no-glosses"] * 4
    assert len(table.glosses) == 1073 and len({row.signer for row in table.rows}) == 9
    short = [row for row in table.rows if row.frames < least_frames(len(row.glosses))]
    assert len(short) < 20, "clips that hold all their signs"


def test_the_notice_goes_with_the_dataset_and_with_what_is_made_of_it(made: Path, tmp_path: Path) -> None:
    values = {
        "corpus": {"name": "acted", "root": str(made)},
        "vision": {"kind": "features", "backbone": "keypoints"},
        "segmentation": {"tagger": "precomputed", "labels": str(made / "gold"), "rule": "plain"},
        "text": {"tagger": "none", "target": "sentence"},
    }
    run_here(from_mapping(values), tmp_path / "shards").execute()
    dataset = open_dataset(tmp_path / "shards")
    told = manifest(made).notice
    assert dataset.info.notes["notice"] == told
    metas = read_metadata(dataset)
    assert [meta["signer"] for meta in metas][:3] == ["anna", "anna", "ben"] and len(metas) == 36
    assert notes_of("merge", [dataset, dataset])["notice"] == told
