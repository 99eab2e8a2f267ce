"""Precompute through Ray and the command line: one Ray session for the module, folder and S3 outputs."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
from factories.precompute import CLIPS, hashes, manifest_of, recipe_for, run_here, write_corpus
from factories.videos import write_square

from sage_scale.errors import UnitsOpen
from sage_scale.precompute import precompute_corpus
from sage_scale.precompute.actor import UnitWorker
from sage_scale.precompute.job import PrecomputeJob
from sage_scale.shards import open_dataset, verify_dataset
from sage_scale.storage import open_store

pytestmark = pytest.mark.system
SHARED = Path(__file__).resolve().parents[3] / "shared" / "data"


@pytest.fixture(scope="module")
def ray_here() -> Iterator[None]:
    """A local Ray that the runs of this module join."""
    import ray

    ray.init(
        address="local", num_cpus=2, object_store_memory=80 * 2**20, include_dashboard=False,
        log_to_driver=False, logging_level="error", _node_ip_address="127.0.0.1",
    )  # fmt: skip
    yield
    ray.shutdown()


@pytest.fixture
def bucket(monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """An empty bucket of an S3 server in this process. Ray runs already: its actors have none of these settings."""
    from moto.server import ThreadedMotoServer

    server = ThreadedMotoServer(port=0, verbose=False)
    server.start()
    port = server._server.server_port
    for name, value in (
        ("AWS_ENDPOINT_URL", f"http://127.0.0.1:{port}"),
        ("AWS_ACCESS_KEY_ID", "test"),
        ("AWS_SECRET_ACCESS_KEY", "test"),
        ("AWS_REGION", "us-east-1"),
    ):
        monkeypatch.setenv(name, value)
    open_store("s3://shards").client.create_bucket(Bucket="shards")
    yield "s3://shards"
    server.stop()


@pytest.fixture(scope="module")
def undisturbed(corpus_root: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("undisturbed") / "out"
    run_here(recipe_for(corpus_root), out).execute()
    return out


def test_ray_writes_the_same_bytes_as_one_process(ray_here, undisturbed, corpus_root, tmp_path) -> None:
    events = tmp_path / "events.jsonl"
    recipe = recipe_for(corpus_root)
    run = PrecomputeJob(
        recipe=recipe, manifest=manifest_of(recipe), url=str(tmp_path / "out"), events=events, quiet=True
    )
    summary = run.execute()
    assert hashes(tmp_path / "out") == hashes(undisturbed)
    assert summary.clips == CLIPS + 2 and "decode" in summary.stages
    rows = [json.loads(line) for line in events.read_text().splitlines()]
    assert sorted(row["unit"] for row in rows if row["event"] == "unit") == list(range(5))


def test_two_drivers_at_once_on_one_s3_output(bucket, ray_here, undisturbed, corpus_root) -> None:
    recipe = recipe_for(corpus_root, precompute={"actors": 1})
    runs = [
        PrecomputeJob(recipe=recipe, manifest=manifest_of(recipe), url=f"{bucket}/set", quiet=True)
        for _ in range(2)
    ]
    errors: list[BaseException] = []

    def execute(run: PrecomputeJob) -> None:
        try:
            run.execute()
        except BaseException as error:
            errors.append(error)

    threads = [threading.Thread(target=execute, args=(run,)) for run in runs]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(timeout=120)
    assert errors == []
    store = open_store(f"{bucket}/set")
    expected = {path.name: path.read_bytes() for path in undisturbed.iterdir()}
    assert {entry.name: store.get(entry.name) for entry in store.list()} == expected
    assert verify_dataset(store).problems == ()


def test_a_unit_that_takes_too_long_stays_open_and_is_named(ray_here, corpus_root, tmp_path) -> None:
    root = write_corpus(tmp_path / "corpus", clips=2)
    (root / "test").mkdir()
    # Two minutes of video, decoded to large squares: no machine does that in a second and a half.
    write_square(root / "test" / "long.mp4", frames=3000, seed=1, size=64)
    settings = {"vision": {"size": 900, "crop": 32}, "shards": {"clips_per_unit": 9, "max_reject_rate": 0.5}}
    recipe = recipe_for(root, precompute={"unit_timeout_s": 1.5, "actors": 2}, **settings)
    out = str(tmp_path / "out")
    with pytest.raises(UnitsOpen, match=r"at clip 'test/long.mp4': took more than 1.5 s") as caught:
        PrecomputeJob(recipe=recipe, manifest=manifest_of(recipe), url=out, quiet=True).execute()
    assert caught.value.exit_code == 4
    by_hand = PrecomputeJob(
        recipe=recipe, manifest=manifest_of(recipe), url=out, give_up=frozenset({"test/long.mp4"}), quiet=True
    )
    assert by_hand.execute().reasons == {"given-up": 1}


def test_a_clip_that_kills_its_actor_is_named_and_only_given_up_by_hand(
    ray_here, corpus_root, tmp_path
) -> None:
    fatal = "train/train03.mp4"

    class Mortal(UnitWorker):  # in here, so that Ray sends its code and not its name
        def environment(self):
            finish = self.maker.finish

            def deadly(clip, decoded, rows=None):
                if clip.id == fatal:
                    os.kill(os.getpid(), signal.SIGKILL)
                return finish(clip, decoded, rows)

            self.maker.finish = deadly
            return super().environment()

    recipe = recipe_for(corpus_root, precompute={"actors": 1, "max_restarts": 2})
    run = PrecomputeJob(
        recipe=recipe, manifest=manifest_of(recipe), url=str(tmp_path / "out"), quiet=True, worker=Mortal
    )
    with pytest.raises(
        UnitsOpen, match=rf"1 of 5 units are open \(\d+ at clip '{fatal}': its actor died"
    ) as caught:
        run.execute()
    assert caught.value.exit_code == 4 and len(list((tmp_path / "out").glob("*.tar"))) == 4
    allowed = recipe_for(corpus_root, shards={"max_reject_rate": 0.2})
    by_hand = PrecomputeJob(
        recipe=allowed,
        manifest=manifest_of(recipe),
        url=str(tmp_path / "out"),
        quiet=True,
        give_up=frozenset({fatal}),
    )
    assert by_hand.execute().reasons == {"given-up": 1}


def test_a_clip_that_outgrows_its_actors_memory_is_named_and_the_machine_never_notices(
    ray_here, corpus_root, tmp_path
) -> None:
    fatal, budget_mb = "train/train03.mp4", 500
    seen = tmp_path / "seen"

    class Hungry(UnitWorker):  # in here, so that Ray sends its code and not its name
        def environment(self):
            import time

            from sage_scale.precompute.memory import own_memory_mb

            finish = self.maker.finish

            def devour(clip, decoded, rows=None):
                held = []
                while clip.id == fatal and len(held) < 300:
                    held.append(bytearray(b"x") * (20 * 2**20))
                    with seen.open("a") as file:
                        file.write(f"{os.getpid()} {own_memory_mb():.0f}\n")
                    time.sleep(0.01)
                return finish(clip, decoded, rows)

            self.maker.finish = devour
            return super().environment()

    settings = {"actors": 2, "max_restarts": 9, "actor_memory_mb": budget_mb}
    recipe = recipe_for(corpus_root, precompute=settings)
    events = tmp_path / "events.jsonl"
    run = PrecomputeJob(
        recipe=recipe, manifest=manifest_of(recipe), url=str(tmp_path / "out"), quiet=True, worker=Hungry,
        events=events,
    )  # fmt: skip
    with pytest.raises(
        UnitsOpen, match=rf"1 of 5 units are open \(\d+ at clip '{fatal}': needs more than the {budget_mb} MB"
    ) as caught:
        run.execute()
    assert caught.value.exit_code == 4 and len(list((tmp_path / "out").glob("*.tar"))) == 4
    rows = [json.loads(line) for line in events.read_text().splitlines()]
    failures = [row for row in rows if row["event"] == "failure"]
    assert [(row["kind"], row["clip"], row["again"]) for row in failures] == [
        ("memory", fatal, True), ("memory", fatal, True), ("memory", fatal, False),
    ]  # fmt: skip
    # It would have grown to 6 GB; each time a process of its own was ended soon after its budget.
    sizes = [line.split() for line in seen.read_text().splitlines()]
    assert len({pid for pid, _ in sizes}) == 3
    assert max(float(size) for _, size in sizes) < budget_mb + 2000
    allowed = recipe_for(corpus_root, shards={"max_reject_rate": 0.2}, precompute=settings)
    by_hand = PrecomputeJob(
        recipe=allowed, manifest=manifest_of(recipe), url=str(tmp_path / "out"), quiet=True, worker=Hungry,
        give_up=frozenset({fatal}),
    )  # fmt: skip
    assert by_hand.execute().reasons == {"given-up": 1}


def precompute(*arguments: str, **environment: str) -> subprocess.CompletedProcess:
    command = [sys.executable, "-m", "sage_scale.cli.main", "precompute", *arguments]
    return subprocess.run(
        command, env={**os.environ, **environment}, capture_output=True, text=True, timeout=240
    )


def small(recipe_root: Path) -> list[str]:
    return [
        "--corpus", "videos", "--root", str(recipe_root), "vision.size=32", "vision.crop=32", "text.tagger=none",
        "text.target=sentence", "shards.clips_per_unit=2", "precompute.actors=2", "precompute.object_store_mb=80",
    ]  # fmt: skip


def test_the_command_starts_its_own_ray_and_says_what_the_dataset_holds(corpus_root, tmp_path) -> None:
    done = precompute(*small(corpus_root), "--out", str(tmp_path / "out"))
    assert done.returncode == 0, done.stderr
    assert f"{CLIPS + 2} clips, 0 rejects" in done.stdout and "token ratio" in done.stdout
    assert "Traceback" not in done.stderr and "Warning" not in done.stderr
    assert open_dataset(tmp_path / "out").splits == {"train": CLIPS, "dev": 2}


@pytest.mark.parametrize(
    ("change", "code", "words"),
    [
        (["--root", "nowhere"], 2, "there is no"),
        (["--out", "s3://"], 2, "name a bucket"),
        (["--out", "ftp://x/y"], 2, "not supported"),
        (["--corpus", "vidoes"], 2, "did you mean videos"),
        (["vision.sise=3"], 2, "did you mean"),
        (["--give-up", "nobody"], 2, "no clip of that id"),
        (["precompute.address=127.0.0.1:1"], 2, "no Ray cluster"),
    ],
)
def test_a_mistake_is_one_line_and_code_2(corpus_root, tmp_path, change, code, words) -> None:
    done = precompute(*small(corpus_root), "--out", str(tmp_path / "out"), *change)
    assert done.returncode == code
    assert words in done.stderr and len(done.stderr.strip().splitlines()) == 1
    assert not (tmp_path / "out").exists()


def test_a_wrong_key_and_a_missing_one_are_one_line(bucket, corpus_root, tmp_path) -> None:
    absent = {"AWS_ENDPOINT_URL": "http://127.0.0.1:9", "AWS_MAX_ATTEMPTS": "1"}
    done = precompute(*small(corpus_root), "--out", "s3://shards/x", **absent)
    assert done.returncode == 1 and "cannot be reached" in done.stderr
    assert len(done.stderr.strip().splitlines()) == 1
    nobody = {"AWS_ACCESS_KEY_ID": "", "AWS_SECRET_ACCESS_KEY": "", "AWS_CONFIG_FILE": "/dev/null"}
    nobody |= {"AWS_SHARED_CREDENTIALS_FILE": "/dev/null", "AWS_EC2_METADATA_DISABLED": "true"}
    done = precompute(*small(corpus_root), "--out", "s3://shards/x", **nobody)
    assert done.returncode == 1 and "credentials" in done.stderr
    assert len(done.stderr.strip().splitlines()) == 1


def test_rejects_beyond_the_limit_are_code_3(tmp_path) -> None:
    root = write_corpus(tmp_path / "corpus", clips=2)
    for name in ("train/train00", "train/train01", "dev/dev00"):
        (root / f"{name}.mp4").write_text("not a video")
    done = precompute(*small(root), "--out", str(tmp_path / "out"))
    assert done.returncode == 3 and "3 of 4 clips were rejected (3 unreadable)" in done.stderr


@pytest.mark.skipif(not (SHARED / "videos").is_dir(), reason="the real videos are not on this machine")
def test_real_videos_pass(ray_here, tmp_path) -> None:
    summary = precompute_corpus(
        corpus="videos",
        root=SHARED / "videos",
        out=tmp_path / "out",
        overrides=["precompute.actors=2"],
        quiet=True,
    )
    assert (summary.clips, summary.rejects) == (3, 0)
    assert 0.05 < summary.token_ratio < 0.3  # .129 in the paper
    assert verify_dataset(tmp_path / "out").problems == ()


def test_a_video_of_odd_shape_and_rate_is_stored_at_the_recipes(ray_here, tmp_path) -> None:
    write_square(tmp_path / "corpus" / "wide.mp4", frames=50, seed=1, size=64)
    (tmp_path / "corpus" / "wide.txt").write_text("Ein Satz.")
    recipe = recipe_for(tmp_path / "corpus", vision={"fps": 12.5})
    run = PrecomputeJob(recipe=recipe, manifest=manifest_of(recipe), url=str(tmp_path / "out"), quiet=True)
    run.execute()
    dataset = open_dataset(tmp_path / "out")
    sample = dataset.read(dataset.samples(), 0)
    assert (sample.meta["frames"], sample.meta["fps"]) == (25, 12.5)
