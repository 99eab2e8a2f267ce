"""Every command of README and docs: parsed by the real command line, and run by a test or marked with what it needs."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from factories.documents import ROOT, Command, commands, parse, spans
from factories.training import COLOURS, make_language_folder
from factories.videos import write_square

GUIDES = [ROOT / name for name in ("README.md", "shards/README.md", "k8s/README.md", "launch/images.md")]
GUIDES += sorted((ROOT / "docs").glob("*.md"))
GUIDES += [
    path for kind in ("docker", "ray", "slurm", "sky") for path in sorted((ROOT / "launch" / kind).iterdir())
]
PAGES = [page for page in (*GUIDES, ROOT / "CONTRIBUTING.md") if page.suffix == ".md"]
RECORDS = sorted((ROOT / "docs" / "results").glob("*.md"))
"""Pages of measurements: their commands made the figures, and are only parsed."""
PROGRAMS = (
    "sage-scale", "make", "python", "python3", "pip", "pytest", "git", "ray", "deepspeed", "torchrun", "srun", "sbatch",
    "mpirun", "on_nodes.sh", "sky", "docker", "kubectl", "apptainer", "step",
)  # fmt: skip

RUN_HERE = (
    r"sage-scale (corpus inspect|precompute|pretrain|finetune|evaluate|report) .*(my_videos|_of_mine|runs/mine).*",
    r"sage-scale (translate holiday.mp4|models export) .*",
    r"sage-scale (shards|plan|recipe|models describe) .*", r"sage-scale ablate --list", r"\S*sage-scale doctor",
)  # fmt: skip
"""Commands that `test_the_commands_run_as_printed` runs, on the pages of `PRINTED`."""
PRINTED = {"README.md": RUN_HERE, "shards/README.md": RUN_HERE, "docs/clcl.md": RUN_HERE, "docs/ablations.md": RUN_HERE,
           "docs/sign2gpt.md": (r"sage-scale (recipe|models describe) .*",),
           "docs/plan.md": (r"sage-scale corpus inspect .*", r"sage-scale plan (?!.*--calibration).*")}  # fmt: skip

TESTED = {
    r"make (setup|test)": ".ci/run",
    r"sage-scale serve .*": "tests/serving/test_browser.py",
    r"sage-scale plan .* --calibration .*": "tests/planning/test_overview.py",
    r"sage-scale bench calibrate .*": "tests/experiments/test_calibration.py",
    r"make demo.*": "tests/experiments/test_demo.py::test_both_models_take_the_same_corpus_and_shards",
    r"sage-scale corpus inspect --corpus NAME .*": "tests/corpora/test_published_layouts.py",
    r"sage-scale (corpus act|precompute --corpus acted) .*": "tests/corpora/test_acted.py",
    r"sage-scale finetune .* finetune.glosses=.*": "tests/training/test_gloss_ceiling.py",
    r"sage-scale (corpus align|precompute --corpus manifest) .*": "tests/cli/test_corpus_align.py",
    r"sage-scale keypoints .*": "tests/extraction/test_mediapipe.py",
    r"sage-scale precompute .* sage-keypoints .*": "tests/training/test_keypoint_stages.py",
    r"sage-scale (pretrain|finetune|translate) .* runs/points.*": "tests/training/test_keypoint_stages.py",
    r"sage-scale precompute .* --check": "tests/precompute/test_preflight.py",
    r"sage-scale precompute --corpus NAME .*": "tests/precompute/test_precompute_ray.py",
    r"sage-scale precompute .* segmentation.tagger=published .*": "tests/precompute/test_segmenter_models.py",
    r"sage-scale precompute .* segmentation.tagger=trained .*": "tests/precompute/test_segmenter_models.py",
    r"sage-scale segment train .*": "tests/segmentation/test_segment_train.py",
    r"sage-scale segment predict .*": "tests/precompute/test_segment_job.py",
    r"sage-scale segment evaluate .*": "tests/segmentation/test_evaluation.py",
    r"sage-scale ablate orderings.*": "tests/experiments/test_ablation_system.py",
    r"sage-scale (pretrain|finetune|evaluate) .* data/shards( .*sign2gpt.*)?": "tests/training/test_sign2gpt_stages.py",
    r"sage-scale translate talk.mp4 .* --captions .*": "tests/translation/test_captions.py",
    r"sage-scale shards export .*": "tests/shards/test_export.py",
    r"sage-scale report runs/mine": "tests/reporting/test_page.py",
    r"sage-scale \w+ .*s3://bucket/runs/mine.*": "tests/training/test_run_at_url.py",
    r"sage-scale pretrain .* --ranks 8 --restarts 5": "tests/training/test_restarts.py",
    r"sage-scale pretrain .* --nodes 4 .*": "tests/training/test_node.py",
    r"(sage-scale|deepspeed) .*--hostfile hosts .*": "tests/faults/test_two_hosts.py",
    r"torchrun .*": "tests/training/test_launchers.py",
    r"sage-scale shards resegment .*": "tests/precompute/test_resegment.py",
    r"(torchrun .* clcl_step.py|sage-scale shards index \.).*": "tests/cli/test_documented_python.py",
    r"srun .*": "tests/training/test_launchers.py",
    r"sbatch .*": "tests/launch/test_slurm.py",
    r"on_nodes.sh .*": "tests/launch/test_ray_nodes.py",
    r"ray (get-auth-token|up|submit|down) .*": "tests/faults/test_precompute_two_hosts.py",
    r"ray job submit .*": "tests/faults/test_precompute_cluster.py",
}  # fmt: skip
"""Commands by the test that runs their like: the same verb and options on a corpus or run of its own."""
NEEDED = {
    r"(python3 -m venv .venv|.venv/bin/pip install torch.*)": "the package index of PyTorch",
    r"pip install 'sage-scale\[serve\]'": "a release on the package index",
    r"mpirun .*": "an MPI; its variables are tested in tests/training/test_launchers.py",
    r"sky .*": "an account of a cloud; the files are tested in tests/launch/test_sky.py",
    r"(docker|apptainer) .*": "Docker or Apptainer; the files are tested in tests/launch/test_images.py",
    r"(kubectl|step) .*": "a Kubernetes cluster; the files are tested in tests/k8s",
}
"""Commands that no test runs, and what they need."""


def _commands(pages: list[Path]) -> list[Command]:
    return [command for page in pages for command in commands(page, PROGRAMS)]


def _ids(command: Command) -> str:
    return f"{command.page}: {command.text[:50]}"


@pytest.mark.parametrize("command", _commands(GUIDES + RECORDS), ids=_ids)
def test_options_recipes_and_keys_are_those_of_the_command_line(command):
    if re.search(r"(sage-scale\s|launch/\w+\.py|\.sbatch )", command.text) and not command.text.startswith(
        ("docker", "apptainer", "sky", "on_nodes")
    ):
        assert parse(command.words)


@pytest.mark.parametrize("command", [span for page in PAGES for span in spans(page)], ids=_ids)
def test_a_command_within_a_sentence_has_real_options_and_keys_too(command):
    words = [word for word in command.words if word not in ("URL]", "$SIZES")]
    try:
        assert parse(words)
    except Exception as error:
        if type(error).__name__ not in ("MissingParameter", "NoArgsIsHelpError"):  # a verb's name alone
            raise


@pytest.mark.parametrize("command", _commands(GUIDES), ids=_ids)
def test_a_command_is_run_by_a_test_or_marked_with_what_it_needs(command):
    here = any(re.fullmatch(pattern, command.text) for pattern in PRINTED.get(command.page, ()))
    tests = [place for pattern, place in TESTED.items() if re.fullmatch(pattern, command.text)]
    needs = [need for pattern, need in NEEDED.items() if re.fullmatch(pattern, command.text)]
    assert here or tests or needs, f"{command.text}: run it in a test, or say here what it needs"


def test_the_tests_that_are_named_are_there():
    for place in TESTED.values():
        file, _, name = place.partition("::")
        text = (ROOT / file).read_text(encoding="utf-8")
        assert not name or f"def {name}(" in text, place
    texts = [command.text for command in _commands(GUIDES)]
    assert [
        pattern for pattern in (*TESTED, *NEEDED) if not any(re.fullmatch(pattern, text) for text in texts)
    ] == []


TOY = {
    "precompute": ["vision.size=32", "vision.crop=32", "precompute.actors=1", "text.tagger=none",
                   "text.target=sentence", "shards.clips_per_unit=4"],
    "pretrain": ["model.backbone.depths=[1,1]", "model.backbone.widths=[8,16]", "model.token_dim=24", "stream.lanes=4",
                 "model.context_layers=1", "pretrain.max_steps=2", "finetune.max_steps=2", "pretrain.batch_size=4",
                 "finetune.batch_size=4", "pretrain.precision=fp32", "finetune.precision=fp32", "evaluation.beams=1",
                 "evaluation.max_tokens=8", "text.trim_vocabulary=false"],
}  # fmt: skip
"""Changes after the printed words: a model and videos of toy size."""


@pytest.mark.extras
@pytest.mark.timeout(900)
def test_the_commands_run_as_printed(tmp_path):
    names = list(COLOURS)
    for folder, clips in (("", 6), ("dev", 2), ("test", 2)):
        for number in range(clips):
            video = tmp_path / "my_videos" / folder / f"{folder or 'train'}{number}.mp4"
            write_square(video, frames=24 + 2 * number, seed=number + 10 * len(folder))
            words = [names[(number + place) % len(names)] for place in range(3)]
            video.with_suffix(".txt").write_text(" ".join(words), encoding="utf-8")
    write_square(tmp_path / "holiday.mp4", frames=30, seed=99)
    make_language_folder(tmp_path / "PATH_TO_MBART")
    (tmp_path / "shards").symlink_to(ROOT / "shards")
    others = ("RANK", "WORLD_SIZE", "LOCAL_", "MASTER_")
    environment = {
        **{name: value for name, value in os.environ.items() if not name.startswith(others)},
        "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}", "OMP_NUM_THREADS": "1",
    }  # fmt: skip
    ran = 0
    for page, patterns in PRINTED.items():
        for command in commands(ROOT / page, PROGRAMS):
            if not any(re.fullmatch(pattern, command.text) for pattern in patterns):
                continue
            words = [*command.words, *TOY.get(command.words[1], [])]
            words[0] = "sage-scale"
            done = subprocess.run(
                words, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=300, check=False
            )
            assert done.returncode == 0, f"{command}\n{done.stdout[-2000:]}{done.stderr[-2000:]}"
            if command.written:
                (tmp_path / command.written).write_text(done.stdout, encoding="utf-8")
            ran += 1
    assert ran > 15
    assert (tmp_path / "holiday.png").is_file() and (tmp_path / "runs" / "mine" / "report.html").is_file()
