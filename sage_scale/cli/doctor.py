"""`sage-scale doctor`: hardware and software of this machine, missing parts, their consequences. Changes nothing."""

from __future__ import annotations

import importlib.metadata
import os
import platform
import re
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated, Literal

import psutil
import typer

from sage_scale.config.extension import import_plugins
from sage_scale.errors import UsageError
from sage_scale.untrusted.printer import echo, echo_coloured, echo_json
from sage_scale.vision.backbone_choice import bfloat16_units

State = Literal["ok", "note", "missing"]
MARKS: dict[State, tuple[str, str]] = {"ok": ("+", "green"), "note": ("~", "yellow"), "missing": ("-", "red")}

PACKAGES = {
    "deepspeed": "no training",
    "ray": "no precompute",
    "webdataset": "shards cannot be compared with webdataset's own reader",
    "transformers": "no language model",
    "sentencepiece": "no vocabulary of one's own",
    "safetensors": "no checkpoints",
    "boto3": "no s3:// datasets",
    "sacrebleu": "no scores",
    "matplotlib": "no timeline figures",
    "prometheus_client": "no /metrics (watch.http_port)",
}
"""Consequence of the absence of each required package."""
OLDEST_DRIVERS = {13: 580, 12: 525, 11: 450}
"""Oldest branch of NVIDIA's driver on Linux for each major version of CUDA (its guide "CUDA Compatibility")."""
CUDA_12 = "https://download.pytorch.org/whl/cu126"
"""Index of torch's builds for CUDA 12."""


@dataclass(frozen=True)
class Check:
    """One line of the doctor's list."""

    part: str
    """Heading of the group."""
    name: str
    state: State
    """ok: there; note: worth knowing, or only needed for some work; missing: the main job needs it."""
    found: str
    """Version, size or device."""
    cost: str = ""
    """Consequence of its absence, and the fix; empty for ok."""


def doctor(
    as_json: Annotated[bool, typer.Option("--json", help="One JSON list, for programs.")] = False,
) -> None:
    """List what is installed, what is missing and its consequences. Always ends with exit code 0."""
    found = checks()
    if as_json:
        echo_json([asdict(check) for check in found], indent=1)
        return
    part = ""
    width = max(len(check.name) for check in found)
    for check in found:
        if check.part != part:
            part = check.part
            echo("")
            echo_coloured((part, "bold"))
        mark, colour = MARKS[check.state]
        echo_coloured(("  ", ""), (mark, colour), (f" {check.name:<{width}}  {check.found}", ""))
        if check.cost:
            echo(f"    {'':<{width}}  {check.cost}")
    missing = [check.name for check in found if check.state == "missing"]
    echo("", f"Missing: {', '.join(missing)}" if missing else "Nothing that the main job needs is missing.")


def checks() -> list[Check]:
    """Returns every check; a probe that fails becomes a line of the list instead of ending it."""
    probes: tuple[Callable[[], Iterator[Check]], ...] = (
        _machine, _arithmetic, _packages, _text, _video, _keypoints, _storage, _tools,
    )  # fmt: skip
    found: list[Check] = []
    for probe in probes:
        try:
            found.extend(probe())
        except Exception as error:  # a broken installation is a finding, not an error
            part = probe.__name__.strip("_").capitalize()
            reason = " ".join(f"{type(error).__name__}: {error}".split())
            found.append(Check(part, "broken", "missing", reason, "Install again: make setup"))
    return found


def _check(part: str, name: str, good: bool, found: str, cost: str, otherwise: State = "note") -> Check:
    return Check(part, name, "ok", found) if good else Check(part, name, otherwise, found, cost)


def _package(part: str, name: str, cost: str, otherwise: State = "missing") -> Check:
    try:
        return Check(part, name, "ok", importlib.metadata.version(name))
    except importlib.metadata.PackageNotFoundError:
        return Check(part, name, otherwise, "not installed", cost)


def _machine() -> Iterator[Check]:
    part = "Machine"
    python = f"{platform.python_version()}, {platform.system()} {platform.machine()}"
    yield _check(part, "python", sys.version_info >= (3, 11), python, "3.11 or newer is needed.", "missing")
    cores = usable_cores()
    yield _check(part, "cores", cores >= 2, f"{cores:g} usable", "The demo is timed for two cores.")
    memory = usable_memory()
    yield _check(part, "memory", memory >= 8e9, _size(memory), "The demo needs up to 8 GB.")
    temporary = os.environ.get("TMPDIR", "/tmp")
    for name, folder, need, cost in (
        ("disk", ".", 5e9, "An installation takes 3 GB, or 7 with CUDA, the demo 1 GB."),
        ("temporary disk", temporary, 2e9, "Ray keeps logs and spilled objects there."),
        ("shared memory", "/dev/shm", 1.2e9, "Ray's object store falls back to the disk, which is slower."),
    ):
        if Path(folder).is_dir():
            free = shutil.disk_usage(folder).free
            yield _check(part, name, free >= need, f"{_size(free)} free", cost)


def _arithmetic() -> Iterator[Check]:
    part = "Arithmetic"
    import torch

    from sage_scale.losses import chosen_implementation, triton_lacks

    yield Check(part, "torch", "ok", torch.__version__)
    if torch.cuda.is_available():
        for number in range(torch.cuda.device_count()):
            card = torch.cuda.get_device_properties(number)
            yield Check(part, f"gpu {number}", "ok", f"{card.name}, {_size(card.total_memory)}")
        units = "tensor cores" if torch.cuda.get_device_capability()[0] >= 8 else "none"
    else:
        built = f"torch is built for {torch.version.cuda or torch.version.hip or 'CPU'}"
        cost = "The demo and small corpora train on CPU; the full-size recipes need a GPU."
        yield Check(part, "gpu", "note", f"none ({built})", cost)
        units = bfloat16_units() or "none"
    if check := driver_check(torch.version.cuda or "", nvidia_driver(), torch.cuda.is_available()):
        yield check
    cost = "precision: auto computes in float32; bf16 would be slower here, not faster."
    yield _check(part, "bf16 matrix units", units != "none", units, cost)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    lacking = triton_lacks(device)
    found = "Triton kernels" if chosen_implementation(device) == "triton" else "tiled, by torch operations"
    yield Check(part, "CLCL", "ok", found if not lacking or device == "cpu" else f"{found} ({lacking})")


def driver_check(cuda: str, driver: str, usable: bool) -> Check | None:
    """Returns NVIDIA's driver beside the one that torch's build needs; None where neither is there.

    `cuda` is torch's version of CUDA ("13.0", or "" for other builds), `driver` the installed driver ("" without one),
    `usable` whether torch reaches a GPU, by NVIDIA's compatibility package also with an older driver.
    """
    name, major = "driver", int(cuda.partition(".")[0] or 0)
    if not major:
        cost = "torch is not built for it, so no GPU is used: README, On a GPU."
        return Check("Arithmetic", name, "note", driver, cost) if driver else None
    oldest = OLDEST_DRIVERS.get(major, max(OLDEST_DRIVERS.values()))
    needed = f"torch for CUDA {cuda} needs {oldest} or newer"
    if usable or (driver and int(driver.partition(".")[0]) >= oldest):
        return Check("Arithmetic", name, "ok", f"{driver or 'not shown'} ({needed})")
    if not driver:
        cost = (
            "Without GPU that is all right; else install NVIDIA's driver on the host (docker run --gpus all)."
        )
        return Check("Arithmetic", name, "note", f"none ({needed})", cost)
    fits_12 = major > 12 and int(driver.partition(".")[0]) >= OLDEST_DRIVERS[12]
    other = f", or torch for CUDA 12: pip install -c constraints.txt torch --index-url {CUDA_12}"
    cost = f"No GPU is used. Install a newer driver on the host{other if fits_12 else ''}."
    return Check("Arithmetic", name, "missing", f"{driver} ({needed})", cost)


def nvidia_driver(listing: Path = Path("/proc/driver/nvidia/version")) -> str:
    """Returns the version of NVIDIA's driver on this machine, such as "580.95.05"; "" without one."""
    if listing.exists():
        text = listing.read_text(errors="replace")
    elif program := shutil.which("nvidia-smi"):  # the driver of WSL has no such file
        query = [program, "--query-gpu=driver_version", "--format=csv,noheader"]
        text = subprocess.run(query, capture_output=True, text=True, timeout=20, check=False).stdout
    else:
        return ""
    found = re.search(r"\b\d{3,4}\.\d{1,4}(\.\d{1,4})?\b", text)
    return found[0] if found else ""


def _packages() -> Iterator[Check]:
    part = "Packages"
    for name, cost in PACKAGES.items():
        yield _package(part, name, f"Without it: {cost}. make setup installs it.")
    slower = "On a GPU CLCL is then computed by torch operations, slower: pip install 'sage-scale[triton]'"
    yield _package(part, "triton", slower, "note")
    try:
        yield Check(part, "plug-ins", "ok", ", ".join(import_plugins()) or "none")
    except UsageError as error:
        yield Check(
            part, "plug-ins", "missing", str(error), "Correct SAGE_SCALE_PLUGINS, or install the package."
        )


def _text() -> Iterator[Check]:
    part = "Text"
    yield _package(part, "spacy", "Without it: no pseudo-glosses. make setup installs it.")
    pipelines = sorted(entry.name for entry in importlib.metadata.entry_points(group="spacy_models"))
    cost = "HanTa and jieba tag instead, a little unlike the papers: python -m spacy download de_core_news_lg"
    yield _check(part, "spaCy pipelines", bool(pipelines), ", ".join(pipelines) or "none", cost)
    alone = "without a spaCy pipeline aligns whole sentences instead of pseudo-glosses."
    yield _package(part, "HanTa", f"German, English or Dutch {alone}")
    yield _package(part, "jieba", f"Chinese {alone}")


def _video() -> Iterator[Check]:
    part = "Video"
    import av

    libraries = ".".join(map(str, av.library_versions.get("libavcodec", ())))
    yield Check(part, "PyAV", "ok", f"{av.__version__}, libavcodec {libraries}")
    unwritten = "The synthetic corpus, and so the demo, cannot be written; PyAV's wheels from PyPI have it."
    for codec, does, cost in (
        ("h264", "reads", "Most sign corpora cannot be read."),
        ("libx264", "writes", unwritten),
    ):
        try:
            av.codec.Codec(codec, does[0])  # type: ignore[arg-type]
            yield Check(part, codec, "ok", does)
        except ValueError:
            yield Check(part, codec, "missing", "not in this build of ffmpeg", cost)


def _keypoints() -> Iterator[Check]:
    from sage_scale.errors import UsageError
    from sage_scale.extraction import mediapipe_environment

    try:
        found, cost = str(mediapipe_environment.python()), ""
    except UsageError:
        found, cost = "not set up", f"No keypoints from videos: {mediapipe_environment.SET_UP}"
    yield _check("Video", "MediaPipe", not cost, found, cost)


def _storage() -> Iterator[Check]:
    part = "Object storage"
    source = credentials_source(os.environ, Path(os.path.expanduser("~")))
    cost = "For s3:// datasets set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY."
    yield _check(part, "S3 credentials", bool(source), source or "none", cost)
    endpoint = os.environ.get("AWS_ENDPOINT_URL_S3") or os.environ.get("AWS_ENDPOINT_URL") or ""
    yield Check(part, "S3 endpoint", "ok", endpoint.rpartition("@")[2] or "that of AWS")
    lacking = [program for program in ("radosgw", "ceph-mon", "ceph-osd") if not shutil.which(program)]
    found = f"without {', '.join(lacking)}" if lacking else "radosgw, ceph-mon, ceph-osd"
    cost = "Tests run against moto alone: apt-get install radosgw ceph-mon ceph-osd"
    yield _check(part, "Ceph gateway", not lacking, found, cost)


def credentials_source(environment: Mapping[str, str], home: Path) -> str:
    """Returns where boto3 would find credentials, in words that show none of them; empty where it would find none.

    boto3 itself would look for a cloud machine's metadata server for seconds.
    """
    if environment.get("AWS_ACCESS_KEY_ID") and environment.get("AWS_SECRET_ACCESS_KEY"):
        return "in the environment"
    if environment.get("AWS_WEB_IDENTITY_TOKEN_FILE"):
        return "web identity of a service account"
    if any(environment.get(f"AWS_CONTAINER_CREDENTIALS_{kind}_URI") for kind in ("RELATIVE", "FULL")):
        return "role of the container"
    shared = Path(environment.get("AWS_SHARED_CREDENTIALS_FILE") or home / ".aws" / "credentials")
    return "in the shared credentials file" if shared.is_file() else ""


def _tools() -> Iterator[Check]:
    part = "Tools"
    names = [os.environ.get("CXX", ""), "c++", "g++", "clang++"]
    compiler = next((name for name in names if name and shutil.which(name)), "")
    cost = "DeepSpeed's shared-memory collectives are not built; several ranks on CPU are slower."
    yield _check(part, "C++ compiler", bool(compiler), compiler or "none", cost)
    search = os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", "")])
    ninja = shutil.which("ninja", path=search)
    yield _check(part, "ninja", bool(ninja), "found" if ninja else "none", f"{cost} pip install ninja")


def usable_cores() -> float:
    """Returns the cores this process may use: its affinity, or the control group's share where that is less."""
    affinity = getattr(os, "sched_getaffinity", None)
    cores = float(len(affinity(0)) if affinity else os.cpu_count() or 1)
    try:
        quota, period = Path("/sys/fs/cgroup/cpu.max").read_text().split()
        return cores if quota == "max" else min(cores, int(quota) / int(period))
    except (OSError, ValueError):
        return cores


def usable_memory() -> int:
    """Returns bytes of memory: the machine's, or the control group's limit where that is less."""
    total = psutil.virtual_memory().total
    try:
        return min(total, int(Path("/sys/fs/cgroup/memory.max").read_text()))
    except (OSError, ValueError):
        return total


def _size(amount: float) -> str:
    return f"{amount / 1e9:.1f} GB"
