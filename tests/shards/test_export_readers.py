"""Exports in the hands of those they are for: Hugging Face `datasets` 5 and sign-language-data-loading, in an
environment of their own."""

from __future__ import annotations

import functools
import http.server
import json
import os
import subprocess
import sys
import threading
from pathlib import Path

import numpy as np
import pytest
import torch
from factories.datasets import make_dataset, make_sample, write_dataset
from factories.notebook import ROOT, blocks_of

from sage_scale.cli.main import run
from sage_scale.shards import open_dataset
from sage_scale.storage import open_store

pytestmark = [pytest.mark.system, pytest.mark.extras, pytest.mark.timeout(600)]
PACKAGES = ("datasets>=5", "pillow", "s3fs", "sign-language-data-loading>=1.0.2", "scikit-learn")
READ = """\
import json, sys
from datasets import load_dataset
folder, given = sys.argv[1], json.loads(sys.argv[2])
def told(clip):
    names = [n for n in ("frames", "features", "features_1", "keypoints", "velocities") if clip.get(n) is not None]
    sums = {n: [list(clip[n].shape), float(clip[n].astype("float64").sum())] for n in names}
    said = [clip["segments"].tolist(), clip["pseudo_glosses"].tolist()]
    return [clip["id"].item(), clip["sentence"].item(), *said, sums]
def rows(read): return [told(clip) for clip in read.with_format("numpy")]
out = {}
whole, streamed = load_dataset(folder), load_dataset(folder, streaming=True)
for split in whole:
    out[split] = rows(whole[split])
    assert rows(streamed[split]) == out[split], split
for url, options in given:
    files = {"dev": url}
    read = load_dataset("parquet", data_files=files, split="dev", streaming=True, storage_options=options)
    assert rows(read) == out["dev"], url
if "frames" in whole["dev"].features: assert whole["dev"][0]["frames"][0].format == "JPEG"
print(json.dumps(out))
"""
POSES = """\
import json, sys
sys.path.append(sys.argv[2])  # torch, which sldl imports
from glob import glob
from sldl import SignLanguageDataset
tars = sorted(glob(sys.argv[1] + "/data/dev/*.tar"))
for windows in (False, True):
    dataset = SignLanguageDataset(tars, use_windows=windows, window_size=200, window_stride=200)
clips = SignLanguageDataset(tars)
said = []
for clip in map(clips.__getitem__, range(len(clips))):
    segments = clip["annotations"]["both_hands"][["start_frame", "end_frame"]].values.tolist()
    shapes = {n: list(p.shape) for n, p in clip["poses"].items()}
    said.append([clip["signer_id"], clip["n_frames"], shapes, segments])
print(json.dumps([len(dataset), said]))
"""


@pytest.fixture(scope="module")
def python(tmp_path_factory):
    """An interpreter with the readers alone, without sage_scale."""
    folder = tmp_path_factory.mktemp("readers")
    try:
        subprocess.run([sys.executable, "-m", "venv", folder], check=True, capture_output=True, text=True)
        pip = [folder / "bin" / "pip", "install", "-q", *PACKAGES]
        subprocess.run(pip, check=True, capture_output=True, text=True)
        # What sldl imports of it needs scikit-learn alone of its many dependencies.
        subprocess.run(
            [*pip[:3], "--no-deps", "sign-language-tools"], check=True, capture_output=True, text=True
        )
    except subprocess.CalledProcessError as failed:
        pytest.skip(
            f"pip cannot install datasets and sign-language-data-loading here: {failed.stderr[-300:]}"
        )
    return folder / "bin" / "python"


@pytest.fixture
def served(tmp_path):
    """The URL of an HTTP server of the test's folder."""
    handler = functools.partial(http.server.SimpleHTTPRequestHandler, directory=tmp_path)
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()


def read_by(python: Path, home: Path, program: str, *arguments: object):
    outside = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    environment = {
        **outside,
        "HF_HOME": str(home),
        "HF_HUB_OFFLINE": "1",
        "HF_DATASETS_DISABLE_PROGRESS_BARS": "1",
    }
    done = subprocess.run([python, "-c", program, *map(str, arguments)], env=environment, capture_output=True,
                          text=True, cwd=home)  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout


def expected(sample, contents):
    arrays = {name: [list(a.shape), float(a.astype(np.float64).sum())] for name, a in contents.items()}
    meta = sample.meta
    return [meta["id"], meta["sentence"], sample.segments.tolist(), meta["pseudo_glosses"], arrays]


def decoded(sample):
    from io import BytesIO

    from PIL import Image

    return np.stack([np.asarray(Image.open(BytesIO(data))) for data in sample.frames.values()])


def dataset_of(kind, url):
    if kind != "keypoints":
        return make_dataset(open_store(url), kind)
    vision = {"backbone": "keypoints", "keypoint_velocities": True}
    units = [(split, [make_sample(f"{split}/{n}.手", split=split, width=67 * 4, background=False) for n in range(3)])
             for split in ("train", "dev")]  # fmt: skip
    return write_dataset(url, units, recipe_part={"vision": vision})


@pytest.mark.parametrize("kind", ["frames", "features", "keypoints"])
def test_datasets_opens_and_streams_two_splits(kind, tmp_path, python, served, s3):
    """From a folder, over HTTP and from S3; values are those of the shards."""
    dataset_of(kind, tmp_path / "data")
    for out in (tmp_path / "my_export", f"{s3.url}/out"):
        assert run(["shards", "export", str(tmp_path / "data"), "--out", str(out)]) == 0
    (file,) = (tmp_path / "my_export" / "data" / "dev").iterdir()
    keys = {
        name: os.environ[name] for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_ENDPOINT_URL")
    }
    options = {"key": keys["AWS_ACCESS_KEY_ID"], "secret": keys["AWS_SECRET_ACCESS_KEY"],
               "client_kwargs": {"endpoint_url": keys["AWS_ENDPOINT_URL"], "region_name": "us-east-1"}}  # fmt: skip
    given = [
        (f"{served}/my_export/data/dev/{file.name}", None),
        (f"{s3.url}/out/data/dev/{file.name}", options),
    ]
    read = json.loads(
        read_by(python, tmp_path, READ, tmp_path / "my_export", json.dumps(given)).splitlines()[-1]
    )
    dataset = open_dataset(tmp_path / "data")
    assert list(read) == ["train", "dev"]
    for split, found in read.items():
        table = dataset.samples(split)
        for row, clip in enumerate(found):
            sample = dataset.read(table, row)
            if kind == "frames":
                contents = {"frames": decoded(sample)}
            elif kind == "features":
                contents = {"features": sample.features}
            else:
                points, velocities = np.split(sample.features.reshape(-1, 2, 67, 2), 2, axis=1)
                contents = {"keypoints": points[:, 0], "velocities": velocities[:, 0]}
            wanted = expected(sample, contents)
            assert clip[:4] == wanted[:4]
            for name, (shape, total) in wanted[4].items():
                assert clip[4][name][0] == shape and clip[4][name][1] == pytest.approx(total, abs=1e-2)
        assert len(found) == len(table)
    if kind == "frames":  # the block of the documentation
        (block,) = [b for b in blocks_of(ROOT / "docs" / "export.md") if "load_dataset(" in b.text]
        said = read_by(python, tmp_path, block.text.replace("https://HOST", served))
        assert said.count("(8, 8)") == 6


def test_sign_language_data_loading_opens_tars(tmp_path, python):
    dataset = dataset_of("keypoints", tmp_path / "data")
    command = [
        "shards",
        "export",
        str(tmp_path / "data"),
        "--out",
        str(tmp_path / "out"),
        "--format",
        "pose-webdataset",
    ]
    assert run(command) == 0
    windows, clips = json.loads(
        read_by(python, tmp_path, POSES, tmp_path / "out", Path(torch.__file__).parents[1]).splitlines()[-1]
    )
    assert windows and len(clips) == 3
    for row, (signer, frames, shapes, segments) in enumerate(clips):
        sample = dataset.read(dataset.samples("dev"), row)
        assert (signer, frames) == ("s1", 10)
        assert shapes == {"upper_pose": [10, 25, 2], "left_hand": [10, 21, 2], "right_hand": [10, 21, 2]}
        assert len(segments) == len(sample.segments)
