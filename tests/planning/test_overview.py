"""The whole plan: storage against stored datasets, bounds of a step, sources of constants, prices, advice."""

from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pytest
import yaml
from factories.datasets import make_stream_dataset, stream_recipe
from typer.testing import CliRunner

from sage_scale.cli.main import app, run
from sage_scale.config import LAUNCH_FOLDER, load_recipe
from sage_scale.corpora.manifest import Clip, Manifest
from sage_scale.errors import UsageError
from sage_scale.planning.constants import Constants, load_constants, parse_constants
from sage_scale.planning.corpus_size import CorpusSize, corpus_size, dataset_size, published_sizes
from sage_scale.planning.overview import make_overview, notes, sources
from sage_scale.planning.preprocessing import clip_size, preprocessing, storage, unit_count
from sage_scale.planning.prices import read_prices
from sage_scale.planning.step import GPUS, ClipSize, StepPlan, WeightsMemory
from sage_scale.planning.training_time import Machine, fitting_step, stage_steps
from sage_scale.precompute.plan import Limits, plan_units
from sage_scale.shards import open_dataset, read_metadata

MEASURED = {"unit": "u", "device": "d", "date": "2026-11-27", "command": "c"}


def a_corpus(**changed) -> CorpusSize:
    values = {"name": "c", "source": "s", "train": 1000, "dev": 10, "test": 10, "seconds": 4.0, "height": 480,
              "words": 8.0, "language": "de"}  # fmt: skip
    return CorpusSize(**{**values, **changed})


class Plans:
    """A model whose step is `flops` a clip and `held` bytes a clip, with a million trained numbers."""

    def __init__(self, flops: float = 1e12, held: float = 1e6, trained: float = 1e6) -> None:
        self.flops, self.held = flops, held
        self.trained = {"pretrain": trained, "finetune": trained}

    def shown(self):
        return iter(())

    def step(self, stage, batch, ranks, micro_batch):
        own = -(-batch // ranks)
        peak = self.held * (min(own, micro_batch) if micro_batch else own)
        return StepPlan(batch, WeightsMemory(0, 0, 0, 0, 0, 0, 0), {"all": peak}, peak, own * self.flops)


def overview(recipe=None, plans=None, constants=None, gpus=1, **machine):
    recipe = recipe or load_recipe("sage-phoenix14t")
    constants = constants or load_constants()
    corpus = a_corpus()
    values = {"gpu": "h100", "device": GPUS["h100"], "cpus": 12.0, "share": 0.4, "remote": True, **machine}
    clip = clip_size(recipe, corpus, constants)
    return make_overview(recipe, corpus, clip, plans or Plans(), constants, Machine(**values), 1, gpus, 96)


@pytest.mark.parametrize("kind", ["features", "frames"])
def test_storage_is_that_of_a_stored_dataset(tmp_path, kind):
    """From lengths, texts and the JPEG's mean size alone, against the bytes in the folder."""
    views = 3 if kind == "features" else 1
    made = make_stream_dataset(
        tmp_path / "set", kind, [("train", 40), ("train", 40), ("dev", 9)], views=views
    )
    recipe = stream_recipe(kind, views)
    vision = replace(recipe.vision, backbone="a folder's")  # of the width that model.feature_dim says
    recipe = replace(recipe, vision=vision, shards=replace(recipe.shards, clips_per_unit=40))
    dataset = open_dataset(tmp_path / "set")
    fps = recipe.vision.fps
    seconds = float(dataset.records["frames"].mean()) / fps
    metas = read_metadata(dataset)
    words = np.mean([len(meta["sentence"].split()) for meta in metas])
    counts = {"train": 80, "dev": 9, "test": 0}
    segments = float(dataset.records["segments"].mean())
    corpus = a_corpus(seconds=seconds, words=float(words), segments=segments, **counts)
    constants = load_constants()
    if kind == "frames":
        sizes = [len(jpeg) for sample in made.values() for jpeg in (sample.frames or {}).values()]
        side = str(recipe.vision.size)
        entry = {"value": {side: float(np.mean(sizes))}, **MEASURED}
        quality = {"value": dict.fromkeys(("75", "85", "92", "95"), 1.0), **MEASURED}
        text = yaml.safe_dump({"jpeg.bytes": entry, "jpeg.quality": quality})
        constants = Constants(parse_constants(text.encode(), "t"))
    clip = ClipSize(seconds * fps / recipe.vision.frame_stride, segments, 1)
    stored = storage(recipe, corpus, clip, constants)
    found = sum(path.stat().st_size for path in (tmp_path / "set").iterdir())
    # Clips are short here: rows of a clip are rounded up, one by one.
    assert stored.total == pytest.approx(found, rel=0.12) and stored.views == views and stored.units == 3
    measured = dataset_size(recipe, [dataset], height=480)
    again = storage(recipe, measured, clip, constants)
    assert again.total == pytest.approx(found, rel=0.03) and measured.train == 80 and measured.dev == 9


def test_views_and_rows_multiply_features():
    recipe = load_recipe("sage-youtube-sl25")
    corpus, constants = a_corpus(), load_constants()
    clip = clip_size(recipe, corpus, constants)
    one, four = (
        storage(replace(recipe, vision=replace(recipe.vision, feature_views=views)), corpus, clip, constants)
        for views in (1, 4)
    )
    assert four.parts["features of the other views"] == pytest.approx(3 * one.parts["features of view 0"])
    rows, width = 50, 384
    assert one.parts["features of view 0"] == pytest.approx(1020 * (2 * rows * width), rel=0.03)


@pytest.mark.parametrize("name", ["sage-phoenix14t", "sage-youtube-sl25", "demo"])
def test_units_are_those_of_precompute(name):
    recipe = load_recipe(name)
    corpus = a_corpus(train=700, dev=80, test=3, seconds=9.0)
    clips = [
        Clip(id=f"{split}{number}", video=f"{split}{number}.mp4", split=split, end_s=9.0)
        for split, count in (("train", 700), ("dev", 80), ("test", 3))
        for number in range(count)
    ]
    limits = Limits(
        clips=recipe.shards.clips_per_unit, frames=recipe.shards.frames_per_unit, fps=recipe.vision.fps
    )
    assert unit_count(recipe, corpus) == len(plan_units(Manifest(tuple(clips)), limits))


def test_precompute_time_is_in_proportion_and_waits_for_the_last_unit():
    recipe, constants = load_recipe("sage-phoenix14t"), load_constants()
    small, large = a_corpus(), a_corpus(train=2000, dev=20, test=20)
    found = []
    for corpus, cpus in ((small, 1), (large, 1), (large, 10_000)):
        stored = storage(recipe, corpus, clip_size(recipe, corpus, constants), constants)
        found.append(preprocessing(recipe, corpus, stored, constants, cpus))
    assert found[1].cpu_hours == pytest.approx(2 * found[0].cpu_hours, rel=0.01)
    assert found[1].cpu_hours == found[2].cpu_hours
    start = constants.number("precompute.start_s")
    assert found[2].actors < 100  # no more than units
    one = 3600 * found[2].cpu_hours / found[2].actors
    assert found[2].wall_seconds == pytest.approx(start + one)


def test_the_slowest_part_of_a_step_is_named():
    frames = load_recipe("sage-phoenix14t", ["stream.workers=8"])
    assert {time.bound for time in overview(frames, Plans(flops=1e15)).stages} == {"compute"}
    few = load_recipe("sage-phoenix14t", ["stream.workers=1"])
    assert overview(few, Plans(flops=1)).of("pretrain")[0].bound == "decoding"
    heavy = overview(frames, Plans(flops=1, trained=1e10))
    bounds = {(time.nodes, time.gpus): time.bound for time in heavy.of("pretrain")}
    assert bounds[4, 8] == "network" and bounds[1, 1] != "network"
    wide = load_recipe("sage-youtube-sl25", ["stream.cache_gb=0"])
    slow = Constants({c.name: c for c in _all_constants(**{"store.bytes_per_s": 1e6})})
    assert {time.bound for time in overview(wide, Plans(flops=1), slow).of("pretrain")} == {"store"}
    inline = overview(load_recipe("sage-phoenix14t"), Plans(flops=1), remote=False)
    assert all(time.inline and time.parts["decoding"] == 0 for time in inline.stages)
    assert any("stream.workers=4" in line for line in inline.advice())


def _all_constants(**changed):
    packaged = load_constants()._constants.values()
    return [replace(c, value=changed.get(c.name, c.value)) for c in packaged]


def test_a_step_that_does_not_fit_is_cut_or_refused():
    device, stage = GPUS["rtx3090"], load_recipe("sage-phoenix14t").pretrain
    plain, micro = fitting_step(Plans(held=1e9), stage, "pretrain", 1, device)
    assert micro == 0 and plain.device_bytes == 16e9
    cut, micro = fitting_step(Plans(held=4e9), stage, "pretrain", 1, device)
    assert micro == 4 and cut.device_bytes == 16e9
    none, micro = fitting_step(Plans(held=1e12), stage, "pretrain", 1, device)
    assert micro == 0 and none.device_bytes == 16e12
    advice = overview(plans=Plans(held=1e12)).advice()
    assert sum("does not fit" in line for line in advice) == 2
    assert any("pretrain.micro_batch=4" in line for line in overview(plans=Plans(held=16e9)).advice())


def test_more_gpus_are_recommended_only_where_they_pay():
    fast, slow = overview(plans=Plans(flops=1)), overview(plans=Plans(flops=1e16))
    assert fast.recommended("pretrain").ranks == 1  # launching kernels takes longest, on any number
    assert slow.recommended("pretrain").ranks == 8  # 16 clips are too few for 32
    hours = [time.gpu_hours for time in slow.of("pretrain")]
    assert hours[2] > 1.5 * hours[0]


def test_measured_gpus_take_the_place_of_data_sheets():
    recipe = load_recipe("sage-youtube-sl25", ["precompute.gpus_per_actor=0.25"])
    rates = {
        "train.flops_per_gpu_s": {"value": {"sage-youtube-sl25 pretrain": 1e12}, **MEASURED},
        "gpu.matrix_flops_per_s": {"value": 1e12, **MEASURED},
        "backbone.frames_per_gpu_s": {"value": {"dinov2-vits14 float32": 100.0}, **MEASURED},
    }
    measured = parse_constants(yaml.safe_dump(rates).encode(), "t")
    assumed = load_constants()._constants
    plain = overview(recipe, Plans(flops=1e13), Constants(assumed))
    timed = overview(recipe, Plans(flops=1e13), Constants({**assumed, **measured}))
    floor = load_constants().number("gpu.step_floor_s")
    for stage, rate in (("pretrain", 1e12), ("finetune", 0.4e12)):
        batch = getattr(recipe, stage).batch_size
        assert timed.of(stage)[0].parts["compute"] == pytest.approx(batch * 1e13 / rate + floor)
    rows = 1020 * 4.0 * 25 / 2
    assert timed.preprocessing.gpu_seconds == pytest.approx(rows / 100)
    assert plain.preprocessing.gpu_seconds < timed.preprocessing.gpu_seconds
    assert "features" not in timed.preprocessing.cpu_seconds


def test_each_stage_starts_in_its_own_measured_time():
    """On a CPU; a stage that was not measured has the assumed start."""
    recipe = load_recipe("sage-phoenix14t")
    starts = {"train.start_cpu_s": {"value": {f"{recipe.name} pretrain": 65.0}, **MEASURED}}
    measured = parse_constants(yaml.safe_dump(starts).encode(), "t")
    constants = Constants({**load_constants()._constants, **measured})
    found = overview(recipe, constants=constants, gpu="cpu")
    assert found.of("pretrain")[0].extra["start"] == 65.0
    assert found.of("finetune")[0].extra["start"] == load_constants().number("start_cpu_s")


def test_the_other_kinds_of_samples_are_told():
    both = [
        dict(overview(load_recipe(name)).to_mapping()["storage"]["otherwise_bytes"])
        for name in ("sage-phoenix14t", "sage-youtube-sl25")
    ]
    assert both[0].keys() == both[1].keys()
    for kinds in both:
        frames, one, four = kinds.values()
        assert frames > four > 3.5 * one


def test_steps_end_with_epochs_or_steps():
    stage = load_recipe("demo").pretrain
    assert stage_steps(replace(stage, epochs=2, max_steps=0, batch_size=32), 33) == 4
    assert stage_steps(replace(stage, epochs=2, max_steps=3, batch_size=32), 33) == 3


def test_every_constant_has_a_source_and_is_told():
    shown = overview(share=0.0)
    lines = sources(shown)
    assert len(lines) > 15 and all("assumed: " in line or "2026-" in line for line in lines)
    assert any(line.startswith("gpu.share") and "no GPU has run" in line for line in lines)
    assert any("no GPU has run this project" in line for line in notes(shown))
    assert any("no prices are known" in line for line in notes(shown))


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("- 1", "no mapping"),
        ("a: {value: 1, unit: u}", "device, date and command, or assumed"),
        ("a: {value: 1, unit: u, device: d, date: t}", "needs device, date and command"),
        ("a: {value: 1, unit: u, assumed: r, device: d, date: t, command: c}", "either"),
        ("a: {value: 0, unit: u, assumed: r}", "positive"),
        ("a: {value: {}, unit: u, assumed: r}", "positive"),
        ("a: {value: {x: -1}, unit: u, assumed: r}", "positive"),
        ("a: {value: true, unit: u, assumed: r}", "positive"),
        ("a: {value: 1, unit: u, assumed: r, more: 1}", "needs value and unit"),
        ("{a: &x {value: 1}, b: *x}", "not read"),
    ],
)
def test_a_file_of_constants_is_refused_by_name(text, reason):
    with pytest.raises(UsageError, match=reason):
        parse_constants(text.encode(), "file")


def test_a_table_is_read_by_area():
    text = yaml.safe_dump({"r": {"value": {100: 400.0, 200: 100.0}, **MEASURED}})
    constants = Constants(parse_constants(text.encode(), "t"))
    assert constants.seconds("r", 100) == pytest.approx(1 / 400)
    assert constants.seconds("r", 50) == pytest.approx(1 / 1600)
    assert constants.seconds("r", 400) == pytest.approx(4 / 100)
    middle = (100**2 + 200**2) / 2
    assert constants.seconds("r", middle**0.5) == pytest.approx((1 / 400 + 1 / 100) / 2)
    assert [constant.name for constant in constants.used] == ["r"]


def test_prices_are_the_users_own(tmp_path):
    example = read_prices(str(LAUNCH_FOLDER / "prices.yaml"))
    assert example.placeholder and "placeholder" in example.shown(1.0)
    for text, reason in (
        ("currency: EUR", "currency and source"),
        ("{currency: EUR, source: s, gpu_hour: {h1000: 1}}", "gpu_hour"),
        ("{currency: EUR, source: s, cpu_hour: -1}", "cpu_hour"),
        ("{currency: EUR, source: s, cpu_hour: many}", "cpu_hour"),
        ("{currency: EUR, source: s, placeholder: 1}", "placeholder"),
        ("{currency: EUR, source: s, tip: 1}", "of the rest only"),
    ):
        path = tmp_path / "p.yaml"
        path.write_text(text)
        with pytest.raises(UsageError, match=reason):
            read_prices(str(path))
    with pytest.raises(UsageError, match="No such file"):
        read_prices(str(tmp_path / "none.yaml"))
    path.write_text(
        "{currency: CHF, source: offer, gpu_hour: {h100: 2.0}, cpu_hour: 0.5, storage_gb_month: 3}"
    )
    paid = replace(overview(), prices=read_prices(str(path)))
    first = paid.stages[0]
    assert paid.price(first) == pytest.approx(2 * first.gpu_hours)
    assert paid.precompute_price == pytest.approx(0.5 * 96 * paid.preprocessing.wall_seconds / 3600)
    assert paid.storage_price == pytest.approx(3 * paid.storage.total / 1e9)


def test_corpora_as_published():
    sizes = published_sizes()
    p14t = sizes["phoenix14t"]
    assert (p14t.train, p14t.dev, p14t.test) == (7096, 519, 642)
    assert p14t.train * p14t.seconds * 25 == pytest.approx(827_354, rel=0.001)
    assert sizes["csl_news"].hours == pytest.approx(1985, rel=0.01) and sizes["csl_news"].clips == 722_000
    assert sizes["youtube_sl25"].clips == 573_822
    assert sizes["youtube_sl25"].hours == pytest.approx(784.88, rel=0.001)
    with pytest.raises(UsageError, match="corpus inspect"):
        corpus_size(load_recipe("sage-openasl"))


def test_an_inspected_corpus(tmp_path, capsys):
    root = tmp_path / "made"
    counts = ["corpus.train_clips=3", "corpus.dev_clips=1", "corpus.test_clips=1", "corpus.heldout_clips=1"]
    assert run(["corpus", "make", "--root", str(root), *counts]) == 0
    frames = int(capsys.readouterr().out.split()[2])
    assert run(["corpus", "inspect", "--root", str(root), "--probe", "--json", *counts]) == 0
    path = tmp_path / "inspect.json"
    path.write_text(capsys.readouterr().out)
    size = corpus_size(load_recipe("demo"), str(path))
    assert (size.train, size.dev, size.test, size.height) == (3, 1, 2, 128)
    assert size.clips * size.seconds * 25 == pytest.approx(frames, abs=1) and 4 < size.words < 20
    values = json.loads(path.read_text())
    for change, reason in (
        ({"splits": [{**split, "hours": None} for split in values["splits"]]}, "--probe"),
        ({"splits": 3}, "corpus inspect --json"),
        ({"height": None}, "corpus inspect --json"),
    ):
        path.write_text(json.dumps({**values, **change}))
        with pytest.raises(UsageError, match=reason):
            corpus_size(load_recipe("demo"), str(path))
    with pytest.raises(UsageError, match="No such file"):
        corpus_size(load_recipe("demo"), str(tmp_path / "none.json"))


def test_features_of_youtube_sl25_train_in_about_an_hour_of_one_gpu(tmp_path):
    """And --calibration, --prices and --json on the command line."""
    rates = tmp_path / "machine.yaml"
    rates.write_text(yaml.safe_dump({"write.bytes_per_cpu_s": {"value": 12345.0, **MEASURED}}))
    prices = str(LAUNCH_FOLDER / "prices.yaml")
    words = [
        "plan",
        "sage-youtube-sl25",
        "--gpu",
        "h100",
        "--json",
        "--calibration",
        str(rates),
        "--prices",
        prices,
    ]
    said = CliRunner().invoke(app, words)
    assert said.exit_code == 0, said.output
    found = json.loads(said.stdout)
    first = [stage for stage in found["stages"] if stage["stage"] == "pretrain"]
    assert [stage["ranks"] for stage in first] == [1, 8, 32]
    assert 0.5 < first[0]["hours"] < 2 and first[0]["fits"] and first[0]["bound"] == "compute"
    assert any(line.startswith("pretrain: 1 x h100") for line in found["advice"])
    assert any("backbone_dtype=bfloat16" in line for line in found["advice"])
    by_name = {constant["name"]: constant for constant in found["constants"]}
    assert by_name["write.bytes_per_cpu_s"]["command"] == "c"
    assert found["precompute"]["cpu_seconds"]["write"] == pytest.approx(
        found["storage"]["total_bytes"] / 12345
    )
    assert found["precompute"]["price"] > 0 and found["prices"]["placeholder"]


def test_wrong_options_are_one_line(tmp_path, capsys):
    for options, reason in (
        (["--calibration", str(tmp_path / "none")], "No such file"),
        (["--corpus", "moon"], "no size of the corpus 'moon'"),
        (["--prices", str(tmp_path)], "Is a directory"),
    ):
        assert run(["plan", "demo", *options]) == 2
        said = capsys.readouterr().err
        assert reason in said and len(said.splitlines()) == 1


def test_an_example_page_is_markdown():
    from sage_scale.cli.plan import _page

    lines = _page(overview(), ["a=b"])
    assert lines[0] == "## sage-phoenix14t" and any(line.startswith("| --- |") for line in lines)
