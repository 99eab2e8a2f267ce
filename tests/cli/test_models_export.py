"""`sage-scale models export`: one folder with its card, which opens anywhere and gives the same sentences."""

from __future__ import annotations

import json
import os
import re
import shutil
import stat
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from factories.models import SENTENCES
from factories.sign2gpt import language_model, moved, recipe, video, xglm_tokenizer
from factories.trained import trained_run
from factories.videos import write_signing
from huggingface_hub import ModelCard as HubCard
from safetensors.torch import save_file
from servers.hub import TOKEN, hub

from sage_scale import Translator
from sage_scale.cli.main import run as command
from sage_scale.config import load_recipe, override
from sage_scale.errors import CheckpointError
from sage_scale.models.sign2gpt.decoder import load_causal_model, make_texts
from sage_scale.models.sign2gpt.export import save_translator
from sage_scale.models.sign2gpt.model import Sign2GptTranslator
from sage_scale.training.export import load_translator
from sage_scale.training.model_card import ModelCard, model_id, read_card
from sage_scale.training.model_readme import render_readme
from sage_scale.training.standalone import write_standalone

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def trained(tmp_path_factory) -> Path:
    root = tmp_path_factory.mktemp("exported")
    return trained_run(root, f"corpus.root={root}/secret-place")


@pytest.fixture(scope="module")
def clip(tmp_path_factory) -> Path:
    return write_signing(tmp_path_factory.mktemp("video") / "clip.mp4", seed=1, frames=60)


@pytest.fixture
def folder(trained, tmp_path) -> Path:
    """An export in a place of its own, whose run is out of reach."""
    run = shutil.copytree(trained, tmp_path / "run")
    write = ["models", "export", str(run), "--out", str(tmp_path / "out"), "--name", "weather"]
    assert command([*write, "--licence", "cc-by-4.0", "--data-licence", "in words"]) == 0
    shutil.rmtree(run)
    return Path(shutil.move(tmp_path / "out", tmp_path / "elsewhere"))


def test_a_folder_translates_as_the_run_and_names_no_place_of_its_machine(trained, folder, clip):
    candidates = [m.translate(clip) for m in (Translator(trained), Translator.from_pretrained(folder))]
    assert candidates[0].sentence == candidates[1].sentence != ""
    for path in folder.rglob("*"):
        if path.is_file():
            assert str(trained.parent).encode() not in path.read_bytes(), path
    assert read_card(folder).scores == read_card(trained / "model").scores


def test_the_card_is_read_by_the_hubs_own_library(folder):
    card = HubCard.load(folder / "README.md")
    assert card.data.license == "cc-by-4.0" and card.data.language == ["de"]
    assert card.data.model_name == "weather" and card.data.library_name == "sage-scale"
    stored = read_card(folder).scores["test"]
    found = {result.metric_name: result.metric_value for result in card.data.eval_results}
    assert found["BLEU-4"] == round(stored["bleu4"], 2) and found.keys() == {"BLEU-4", "ROUGE-L", "chrF"}
    low, high = stored["intervals"]["bleu4"]
    assert f"{stored['bleu4']:.1f} [{low:.1f}, {high:.1f}]" in card.text and stored["signature"] in card.text
    for name, scores in stored["controls"].items():
        assert f"{name.replace('_', ' ')} {scores['bleu4']:.1f}" in card.text
    assert "in words" in card.text and "no real signing" in card.text and read_card(folder).id in card.text


def test_text_from_outside_is_no_markup_on_the_card():
    card = ModelCard(
        id="0" * 16, model="sage", corpora=("<script>|x",), sign_languages=(), languages=("de",), clips={"train": 1},
        notice="[click](http://x)\n# big", tagger="motion", rule="sage", trained="2026-01-01", version="1",
    )  # fmt: skip
    body = render_readme(card, load_recipe("demo"), "a <b>name</b>\n```\n<i>").partition("\n---\n\n")[2]
    assert body.count("\n```") == 4
    body = re.sub(r"\n```.*?\n```\n", "", body, flags=re.DOTALL)
    body = re.sub(r"\\.", "", body)
    assert (
        "<script>" not in body
        and "<b>" not in body
        and "<i>" not in body
        and "[click](" not in body
        and "\n# big" not in body
    )
    table = [line for line in body.splitlines() if line.startswith("| corpus")]
    assert len(table) == 1 and table[0].replace("\\|", "").count("|") == 3


def test_half_is_half_as_large_and_translates(trained, tmp_path, clip):
    for name, option in (("full", []), ("half", ["--half"])):
        assert command(["models", "export", str(trained), "--out", str(tmp_path / name), *option]) == 0
    size = {
        name: sum(path.stat().st_size for path in (tmp_path / name).rglob("[mv]*.safetensors"))
        for name in ("full", "half")
    }
    assert 0.45 < size["half"] / size["full"] < 0.65
    full, half = (load_translator(tmp_path / name)[0].state_dict() for name in ("full", "half"))
    for name, value in full.items():
        torch.testing.assert_close(half[name].float(), value.float(), atol=1e-6, rtol=1e-3)
    assert model_id(tmp_path / "full") != model_id(tmp_path / "half") == read_card(tmp_path / "half").id
    Translator.from_pretrained(tmp_path / "half").translate(clip)


@pytest.mark.parametrize("half", [False, True])
def test_a_sign2gpt_takes_its_frozen_models_along(tmp_path, half):
    base, weights = tmp_path / "base" / "xglm", tmp_path / "base" / "vit.safetensors"
    language_model("xglm").save_pretrained(base)
    xglm_tokenizer().save_pretrained(base)
    torch.manual_seed(0)
    dino = Sign2GptTranslator(recipe(), load_causal_model(base)[0]).spatial.backbone.dino
    plain = {n.replace(".base.", "."): v for n, v in dino.state_dict().items() if "lora" not in n}
    save_file({n: v.contiguous() for n, v in plain.items()}, weights)
    made = override(recipe(vit_weights=str(weights)), [f"model.language_model={base}"])
    model = moved(Sign2GptTranslator(made, load_causal_model(base)[0])).eval()
    save_translator(model, xglm_tokenizer(), made, tmp_path / "run" / "model", str(base))
    write_standalone(tmp_path / "run", tmp_path / "out", half)
    shutil.rmtree(tmp_path / "base")
    shutil.rmtree(tmp_path / "run")
    shutil.move(tmp_path / "out", tmp_path / "there")
    opened, tokenizer, _ = load_translator(tmp_path / "there")
    texts = make_texts(tokenizer, SENTENCES[:3])
    near = {"atol": 5e-2, "rtol": 5e-2} if half else {"atol": 1e-5, "rtol": 1e-5}
    with torch.no_grad():
        torch.testing.assert_close(opened(video(), *texts)[0].float(), model(video(), *texts)[0], **near)
    assert str(tmp_path / "base") not in (tmp_path / "there" / "recipe.yaml").read_text()
    shutil.rmtree(tmp_path / "there" / "vit")
    with pytest.raises(CheckpointError, match="vit"):
        load_translator(tmp_path / "there")


def test_a_flipped_byte_of_any_weights_is_named(folder):
    for path in folder.rglob("*.safetensors"):
        whole = path.read_bytes()
        path.write_bytes(whole[:-9] + bytes([whole[-9] ^ 4]) + whole[-8:])
        with pytest.raises(CheckpointError, match=path.name):
            Translator.from_pretrained(folder)
        path.write_bytes(whole)
    Translator.from_pretrained(folder)


@pytest.mark.parametrize("umask", [0o022, 0o077, 0o002])
def test_modes_follow_the_umask(trained, tmp_path, umask):
    before = os.umask(umask)
    try:
        write_standalone(trained, tmp_path / "out")
    finally:
        os.umask(before)
    for path in (tmp_path / "out", *(tmp_path / "out").rglob("*")):
        most = 0o777 if path.is_dir() else 0o666
        assert stat.S_IMODE(path.stat().st_mode) == most & ~umask, path


def test_wrong_use_is_one_line(trained, folder, tmp_path, capsys):
    old = shutil.copytree(trained, tmp_path / "old")
    table = json.loads((old / "model" / "hashes.json").read_text())
    table["files"].pop("card.json")
    (old / "model" / "hashes.json").write_text(json.dumps(table))
    (old / "model" / "card.json").unlink()
    damaged = shutil.copytree(trained, tmp_path / "damaged")
    (damaged / "model" / "visual.safetensors").write_bytes(b"x")
    for words, code, reason in (
        ([str(trained), "--out", str(folder)], 2, "is there already"),
        ([str(tmp_path / "none"), "--out", str(tmp_path / "a")], 2, "there is no run"),
        ([str(old), "--out", str(tmp_path / "b")], 2, "--data URL"),
        ([str(damaged), "--out", str(tmp_path / "c")], 1, "visual.safetensors"),
        ([str(trained), "--out", str(tmp_path / "d"), "--push", "a/b/c"], 2, "--push"),
        ([str(trained), "--out", "s3://bucket/model"], 2, "is not a local folder"),
    ):
        capsys.readouterr()
        assert command(["models", "export", *words]) == code, words
        said = capsys.readouterr().err.strip().splitlines()
        assert reason in said[-1] and len(said) == 1
    assert not list(tmp_path.glob("[abcd]"))


ANOTHER_USER = ("unshare", "--net", "setpriv", "--reuid=54321", "--regid=54321", "--clear-groups")


def elsewhere(folder: Path, clip: Path, home: Path) -> str:
    """What another user of a machine without network gets from a copy of the folder, which nobody may write to."""
    words = [sys.executable, "-m", "sage_scale.cli.main", "translate", str(clip), "--model", str(folder)]
    words = [*ANOTHER_USER, *words]
    environment = {
        "PYTHONPATH": str(ROOT),
        "PATH": os.environ["PATH"],
        "HOME": str(home),
        "TMPDIR": str(home),
    }
    done = subprocess.run(words, capture_output=True, text=True, env=environment, cwd="/", timeout=120)
    assert done.returncode == 0, done.stderr[-2000:]
    return done.stdout


@pytest.mark.system
def test_another_user_without_network_gets_the_same_sentence(trained, folder, clip, tmp_path):
    if os.geteuid() != 0 or shutil.which("setpriv") is None or shutil.which("unshare") is None:
        pytest.skip("needs root, setpriv and unshare (util-linux)")
    if subprocess.run([*ANOTHER_USER, sys.executable, "-c", "import numpy, sage_scale"], cwd=ROOT).returncode:
        pytest.skip("another user can read neither this Python nor the package, or there are no namespaces")
    place = Path("/var/tmp") / f"handed-{os.getpid()}"
    try:
        shutil.copytree(folder, place / "model")
        shutil.copy(clip, place / "clip.mp4")
        (place / "home").mkdir()
        os.chown(place / "home", 54321, 54321)
        for path in (place / "model", *(place / "model").rglob("*")):
            path.chmod(0o555 if path.is_dir() else 0o444)
        said = elsewhere(place / "model", place / "clip.mp4", place / "home")
    finally:
        shutil.rmtree(place, ignore_errors=True)
    assert said.strip() == Translator(trained).translate(clip).sentence


@pytest.mark.extras
def test_a_model_goes_to_a_hub_and_comes_back(trained, clip, tmp_path):
    with hub(tmp_path / "hub") as address:
        environment = {
            **os.environ, "PYTHONPATH": str(ROOT), "HF_ENDPOINT": address, "HF_TOKEN": TOKEN, "HF_HUB_DISABLE_XET": "1",
            "HF_HOME": str(tmp_path / "cache"), "OMP_NUM_THREADS": "1",
        }  # fmt: skip

        def python(code: str, **changed: str) -> subprocess.CompletedProcess[str]:
            command = [sys.executable, "-c", code, str(clip)]
            return subprocess.run(
                command, capture_output=True, text=True, env=environment | changed, timeout=120
            )

        export = "import sys; from sage_scale.cli.main import run; sys.exit(run(['models', 'export', "
        export += f"{str(trained)!r}, '--push', 'lab/weather', '--out', "
        refused = python(export + f"{str(tmp_path / 'kept')!r}]))", HF_TOKEN="wrong")
        assert refused.returncode == 1 and "did not take lab/weather" in refused.stderr
        assert "wrong" not in refused.stderr.replace("wrong token", "") and (tmp_path / "kept").is_dir()
        sent = python(export + f"{str(tmp_path / 'out')!r}]))")
        assert sent.returncode == 0 and "lab/weather" in sent.stdout, sent.stderr[-2000:]
        (tmp_path / "hub" / "lab" / "weather" / "evil.pkl").write_bytes(b"a pickle")
        read = "import sys; from sage_scale import Translator as T; "
        got = python(
            read + "print(T.from_pretrained('lab/weather', device='cpu').translate(sys.argv[1]).sentence)"
        )
        assert got.returncode == 0, got.stderr[-2000:]
        assert got.stdout.strip().splitlines()[-1] == Translator(trained).translate(clip).sentence
        assert not list((tmp_path / "cache").rglob("*.pkl"))
        card = (tmp_path / "out" / "README.md").read_text()
        printed = re.search(r"sage-scale (translate) video.mp4 (--model) (hf://lab/weather)", card)
        assert printed is not None
        verb = "import sys; from sage_scale.cli.main import run; "
        verb += f"sys.exit(run([{printed[1]!r}, sys.argv[1], {printed[2]!r}, {printed[3]!r}]))"
        assert python(verb).stdout == got.stdout
        absent = python(read + "T.from_pretrained('lab/nothing')")
        assert "no model 'lab/nothing'" in absent.stderr.strip().splitlines()[-1]
