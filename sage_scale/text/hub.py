"""Models named as on the Hugging Face hub: an error within seconds where neither the hub nor the cache has one.

The libraries retry an unreachable hub for each file, with growing pauses: a minute for one model.
"""

from __future__ import annotations

import contextlib
import functools
import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from huggingface_hub import constants, get_hf_file_metadata, hf_hub_url, snapshot_download
from huggingface_hub.errors import HfHubHTTPError, HFValidationError
from huggingface_hub.utils import validate_repo_id

from sage_scale.errors import CheckpointError, NoModel, SageError, StorageError, UsageError
from sage_scale.untrusted.display import shortened
from sage_scale.untrusted.files import expanded, read_bytes
from sage_scale.untrusted.json_values import parse_json

ANSWER_S = 5.0
"""Time limit of the hub's answer, seconds."""
MAX_LAYERS = 1000
"""Most layers of a config.json; the largest published models have some 130."""
LARGEST_FILE = "4GB"
"""Size from which saved weights are divided: one PUT to S3 carries 5 GiB."""


def model_source(name: str | Path) -> str | Path:
    """Returns the argument of `from_pretrained` for a folder or a name of the hub.

    A folder stays itself; so does a name where the hub answers, else it becomes its folder in the cache.
    Raises CheckpointError where there is nothing to load.
    """
    path = expanded(name)
    if path.is_dir():
        return path
    name = str(name)
    if name.count("/") != 1 or name.startswith((".", "/", "~")):
        raise NoModel(f"no language model at '{name}': there is no such folder")
    if _answers(name):
        return name
    cached: Path | None = None
    with contextlib.suppress(OSError, ValueError):  # not there
        cached = Path(snapshot_download(name, local_files_only=True))
    if cached is None or not (cached / "config.json").is_file():
        why = "HF_HUB_OFFLINE is set" if constants.HF_HUB_OFFLINE else f"{constants.ENDPOINT} does not answer"
        raise CheckpointError(
            f"no language model '{name}': it is no folder, {why}, and the cache {constants.HF_HUB_CACHE} does not "
            f"hold it; give a local folder, or run `hf download {name}` where there is a network and bring its cache "
            "(HF_HOME)"
        )
    return cached


MODEL_FILES = ("*.safetensors", "*.json", "*.yaml", "*.md", "*.txt", "*.model", "extractor/*.onnx")
"""Files of a model folder (training/standalone.py) that are fetched from the hub: no pickle, no code."""


def fetch_model(name: str, revision: str | None = None) -> Path:
    """Returns the folder in the hub's cache of a model of sage-scale. Raises NoModel where there is none."""
    try:
        return Path(snapshot_download(name, revision=revision, allow_patterns=list(MODEL_FILES)))
    except (OSError, ValueError) as error:  # the library's errors are of these types
        first = str(error).strip().partition("\n")[0]
        raise NoModel(
            f"no model '{shortened(name)}': no such folder, and {constants.ENDPOINT} has none: "
            f"{shortened(first.removeprefix('Got: '), 300)}"
        ) from None


def check_name(name: str) -> None:
    """Raise UsageError unless this is a name of a repository, OWNER/NAME."""
    try:
        validate_repo_id(name)
    except HFValidationError as error:
        raise UsageError(f"--push {shortened(name)}: {str(error).splitlines()[0]}") from None
    if name.count("/") != 1:
        raise UsageError(f"--push {shortened(name)} is no OWNER/NAME")


def push_model(folder: Path, name: str, private: bool) -> str:
    """Upload a model folder to the hub, into a repository that is made if need be; returns its address.

    The token is the one of `hf auth login`, or HF_TOKEN. Raises StorageError.
    """
    from huggingface_hub import HfApi

    api = HfApi()
    try:
        made = api.create_repo(name, private=private, exist_ok=True)
        api.upload_folder(repo_id=made.repo_id, folder_path=folder, commit_message="Export of sage-scale")
    except (OSError, ValueError) as error:
        first = str(error).strip().partition("\n")[0]
        raise StorageError(
            f"{constants.ENDPOINT} did not take {shortened(name)}: {shortened(first, 300)}; the model is in {folder}: "
            f"`hf upload {name} {folder}` sends it"
        ) from None
    return str(made)


@contextlib.contextmanager
def loading(folder: str | Path, what: str = "language model") -> Iterator[None]:
    """Turns every error of a library that reads a model folder into a CheckpointError of one line."""
    try:
        _check_config(Path(folder))
        yield
    except (SageError, ModuleNotFoundError, MemoryError):
        raise
    except Exception as error:  # libraries raise any type for unexpected files
        raise CheckpointError(f"{what} '{folder}' cannot be loaded: {_reason(Path(folder), error)}") from None


def _check_config(folder: Path) -> None:
    """Raises CheckpointError for a config.json that would take hours to build or need other libraries."""
    config: Any = None
    with contextlib.suppress(OSError, ValueError):  # the library reports it
        config = parse_json(read_bytes(folder / "config.json"))
    if not isinstance(config, dict):
        return
    for key, value in config.items():
        if "layers" in key and isinstance(value, int) and value > MAX_LAYERS:
            raise CheckpointError(
                f"{folder / 'config.json'}: {shortened(key)}={value:,} is more than {MAX_LAYERS:,}, damaged or no model"
            )
    if config.get("quantization_config"):
        raise CheckpointError(
            f"{folder / 'config.json'}: the model is quantised (quantization_config), which is not supported: give it "
            "with weights in float32, bfloat16 or float16"
        )


def _reason(folder: Path, error: Exception) -> str:
    # transformers saves weights that nobody but their owner may read; safetensors then says that there is no such file.
    for path in sorted(folder.glob("*")):
        if not os.access(path, os.R_OK):
            return f"uid {os.getuid()} may not read {path.name}: run `chmod -R a+rX` on the folder"
    for path in sorted(folder.glob("*.json")):
        value = None
        with contextlib.suppress(OSError, ValueError, RecursionError):
            value = json.loads(read_bytes(path))  # not parse_json: tokenizers' limits reach 1e30
        if not isinstance(value, dict):
            return f"{path.name} is damaged: it is no JSON object"
    pickles = [path.name for pattern in ("*.bin", "*.pt", "*.pth", "*.pkl") for path in folder.glob(pattern)]
    if folder.is_dir() and not any(folder.glob("*.safetensors")):
        if pickles:
            return f"its weights are a pickle ({pickles[0]}) with more than tensors in it: save them as safetensors"
        return "it holds no weights (model.safetensors)"
    if "ignore_mismatched_sizes" in str(error):
        return "its weights are of other shapes than its config.json says"
    first = str(error).strip().partition("\n")[0]
    return f"{type(error).__name__}: {shortened(first, 200)}" if first else type(error).__name__


def _answers(name: str) -> bool:
    """Returns whether the hub answers on a model, also that there is none."""
    try:
        return _responds(hf_hub_url(name, "config.json"))
    except HFValidationError as error:
        raise CheckpointError(f"no language model '{name}': {str(error).splitlines()[0]}") from None


@functools.cache
def _responds(url: str) -> bool:
    """Returns whether there is any answer; asked once a process, since a name is checked first and loaded later."""
    try:
        get_hf_file_metadata(url, timeout=ANSWER_S)
    except HFValidationError:
        raise
    except HfHubHTTPError as error:
        return error.response.status_code < 500
    except Exception:  # of the library that carries the request
        return False
    return True
