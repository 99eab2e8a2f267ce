"""Secrets within URLs are never printed or stored; names of any bytes are taken, or refused in one short line."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from sage_scale.cli import main as command_line

SHARDS = Path(__file__).resolve().parents[2] / "shards" / "sample"
URLS = (
    "s3://user:SECRET@bucket/p",
    "s3://SECRET@bucket",
    "s3://bucket/p?X-Amz-Signature=SECRET&x=1",
    "https://u:SECRET@h/x",
    "gs://u:SECRET@b/p#SECRET",
    "file://u:SECRET@h/x",
    "s3:/u:SECRET@bucket/p",
    "S3://u:SECRET/SECRET@bucket/p",
)
VERBS = (
    "shards ls URL",
    "shards cat URL key",
    "shards index URL",
    "shards index . --out URL",
    "shards merge URL URL",
    "shards remove URL --ids a",
    "shards remove URL --video a",
    "shards sheet URL --out NEW",
    "shards export URL --out URL",
    "shards resegment URL --out URL segmentation.tagger=uniform",
    "shards split URL --out URL --share a=0.5",
    "pretrain --run NEW --data URL --recipe demo",
    "pretrain --run NEW --data URL --recipe demo --ranks 2",
    "pretrain --run URL --data SHARDS --recipe demo",
    "pretrain --run NEW --data SHARDS --recipe demo pretrain.checkpoints=URL MADE",
    "finetune --run NEW --data URL --recipe demo",
    "evaluate --run . --data URL",
    "evaluate --run URL --data SHARDS",
    "report URL",
    "translate URL --model NEW",
    "translate video.mp4 --model URL",
    "models merge URL --out NEW",
    "models signs . --data URL --out NEW",
    "models signs . --data SHARDS --out URL",
    "segment train --annotation URL --keypoints URL --out NEW",
    "corpus make --root URL",
    "corpus inspect --corpus videos --root URL",
    "corpus inspect --corpus manifest --root URL",
    "segment predict --root URL --out NEW",
    "segment predict --root . --out URL",
    "segment evaluate --gold URL --root . --out URL",
    "keypoints --root URL --out NEW",
    "keypoints --root . --out URL",
    "precompute --corpus videos --root URL --out NEW",
    "precompute --corpus manifest --root corpus --out URL",
    "precompute --corpus manifest --root corpus --out NEW precompute.address=URL",
    "recipe show URL",
    "plan URL",
    "demo --run URL",
    "recipe show demo corpus.root=URL",
    "recipe show demo vision.fps=URL",
    "recipe show demo URL",
)


@pytest.mark.parametrize(
    ("verb", "url"),
    [
        *((verb, URLS[n % len(URLS)]) for n, verb in enumerate(VERBS)),
        *(("shards ls URL", url) for url in URLS),
    ],
)
def test_no_verb_shows_the_secrets_of_a_url(tmp_path, capfd, monkeypatch, verb, url):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "video.mp4").write_text("no video")
    (tmp_path / "corpus").mkdir()
    (tmp_path / "corpus" / "manifest.jsonl").write_text('{"id": "a", "video": "b.mp4", "sentence": "c"}\n')
    words = verb.replace("MADE", "vision.frame_stride=4 vision.size=48 vision.crop=48").split()
    names = {"NEW": str(tmp_path / "new"), "SHARDS": str(SHARDS)}
    code = command_line.run([names.get(word, word.replace("URL", url)) for word in words])
    said = capfd.readouterr()
    assert "SECRET" not in said.err + said.out
    assert code == (0 if "corpus.root=" in verb else 2), said.err
    assert len([line for line in said.err.splitlines() if line.startswith("sage-scale")]) <= 1
    stored = [path for path in tmp_path.rglob("*") if path.is_file() and b"SECRET" in path.read_bytes()]
    assert stored == []


@pytest.mark.parametrize(
    "verb",
    [
        "shards ls NAME",
        "shards cat SHARDS NAME",
        "shards index NAME",
        "shards remove SHARDS --ids NAME",
        "shards split SHARDS --out NEW --share NAME=0.5",
        "pretrain --run NAME --data NEW --recipe demo",
        "pretrain --run NEW --data NAME --recipe demo",
        "evaluate --run NAME --data SHARDS",
        "report NAME",
        "translate NAME --model NEW",
        "corpus inspect --corpus videos --root NAME",
        "precompute --corpus videos --root . --out NAME",
        "recipe show NAME",
        "recipe explain NAME",
        "NAME",
        "--NAME",
        "plan demo --gpu NAME",
    ],
)
@pytest.mark.parametrize(
    "name", ["a\udcff", "x" * 3_000, "a\x1b[2J\nsage-scale: all 99 clips done", "[bold]x[/]"]
)
def test_a_name_of_any_bytes_is_one_short_line(tmp_path, capsys, monkeypatch, verb, name):
    monkeypatch.chdir(tmp_path)
    words = {"NEW": str(tmp_path / "new"), "SHARDS": str(SHARDS)}
    code = command_line.run([words.get(word, word.replace("NAME", name)) for word in verb.split()])
    said = capsys.readouterr()
    assert code in (1, 2), said
    assert len(said.err.strip().splitlines()) == 1 and len(said.err) < 4_000
    assert "\x1b" not in said.err and "\nsage-scale: all" not in said.err
    if "\udcff" in name:
        assert code == 2 and "UTF-8" in said.err


FORGED = "a\x1b[2J\nsage-scale: all 99 clips done\u202e[red]b[/red]"


def test_what_a_manifest_says_is_shown_escaped(tmp_path, capsys):
    rows = [
        {
            "id": f"{FORGED}{n}",
            "video": f"{FORGED}.mp4",
            "sentence": FORGED,
            "split": FORGED,
            "signer": FORGED,
        }
        for n in range(2)
    ]
    rows.append({"id": 7, FORGED: 1})
    (tmp_path / "manifest.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    rejects = tmp_path / "rejects.jsonl"
    command_line.run(
        [
            "corpus",
            "inspect",
            "--corpus",
            "manifest",
            "--root",
            str(tmp_path),
            "--rejects",
            str(rejects),
            "--probe",
        ]
    )
    said = capsys.readouterr()
    printed = said.out + said.err + rejects.read_text()
    assert not set(printed) & set("\x1b\u202e\r")
    assert not [line for line in printed.splitlines() if line.startswith("sage-scale: all")]
    assert "\\x1b[2J\\nsage-scale: all 99" in said.out


@pytest.mark.parametrize("encoding", ["ascii", "latin-1", "utf-8"])
def test_any_locale_prints_any_sentence(encoding):
    verb = ["recipe", "show", "demo", "corpus.root=/grüße/日本/👩\u200d🔬"]
    program = f"from sage_scale.cli.main import main; main({verb!r})"
    environment = {**os.environ, "PYTHONIOENCODING": encoding}
    result = subprocess.run([sys.executable, "-c", program], capture_output=True, env=environment, timeout=60)
    assert result.returncode == 0 and not result.stderr
    assert b"corpus:" in result.stdout
