"""The doctor tells the truth about this machine, shows no secret, and never fails."""

from __future__ import annotations

import importlib.util
import json
import os
import shutil

import pytest
import torch
from typer.testing import CliRunner

from sage_scale.cli import doctor, main

SECRET = "wJalrXUtnFEMI-K7MDENG-bPxRfiCYEXAMPLEKEY"


def found() -> dict[str, doctor.Check]:
    return {check.name: check for check in doctor.checks()}


def test_it_reports_what_other_sources_say():
    checks = found()
    assert checks["torch"].found == torch.__version__
    assert any(name.startswith("gpu ") for name in checks) == torch.cuda.is_available()
    has_kernels = torch.cuda.is_available() and importlib.util.find_spec("triton") is not None
    assert checks["CLCL"].found.startswith("Triton kernels" if has_kernels else "tiled")
    assert float(checks["cores"].found.split()[0]) <= (os.cpu_count() or 1)
    free = float(checks["disk"].found.split()[0]) * 1e9
    assert abs(free - shutil.disk_usage(".").free) < 2e9
    assert (checks["Ceph gateway"].state == "ok") == all(
        map(shutil.which, ("radosgw", "ceph-mon", "ceph-osd"))
    )


def test_what_is_not_ok_says_what_it_costs():
    for check in doctor.checks():
        assert bool(check.cost) == (check.state != "ok"), check


def test_no_secret_is_printed(monkeypatch):
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "AKIAIOSFODNN7EXAMPLE")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", SECRET)
    monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://user:{SECRET}@storage.example:9000")
    for arguments in ([], ["--json"]):
        result = CliRunner().invoke(main.app, ["doctor", *arguments])
        assert result.exit_code == 0
        assert SECRET not in result.output and "AKIA" not in result.output
        assert "in the environment" in result.output and "storage.example:9000" in result.output


@pytest.mark.parametrize(
    ("environment", "file", "expected"),
    [
        ({}, False, ""),
        ({}, True, "in the shared credentials file"),
        ({"AWS_ACCESS_KEY_ID": "a"}, False, ""),
        ({"AWS_ACCESS_KEY_ID": "a", "AWS_SECRET_ACCESS_KEY": "b"}, True, "in the environment"),
    ],
)
def test_credentials_are_found_where_boto3_finds_them(tmp_path, environment, file, expected):
    if file:
        (tmp_path / ".aws").mkdir()
        (tmp_path / ".aws" / "credentials").write_text(
            "[default]\naws_access_key_id=a\naws_secret_access_key=b\n"
        )
    assert doctor.credentials_source(environment, tmp_path) == expected


PROC = (
    "NVRM version: NVIDIA UNIX {}  {}  {}  Thu Oct 30 04:32:59 UTC 2025\nGCC version:  gcc version 12.2.0\n"
)
OPEN = PROC.format("Open Kernel Module for x86_64", "{}", "Release Build  (dvs-builder@U22-I3)")
CLOSED = PROC.format("x86_64 Kernel Module", "{}", "")


@pytest.mark.parametrize("text", [OPEN, CLOSED, "{}\n"])
@pytest.mark.parametrize("version", ["580.95.05", "570.86.15", "535.274.02", "470.57"])
def test_the_driver_is_read_as_the_kernel_writes_it(tmp_path, text, version):
    listing = tmp_path / "version"
    listing.write_text(text.format(version))
    assert doctor.nvidia_driver(listing) == version


def test_without_the_kernels_file_nvidia_smi_is_asked(tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", str(tmp_path))
    assert doctor.nvidia_driver(tmp_path / "none") == ""
    program = tmp_path / "nvidia-smi"
    for printed, version in (("580.95.05", "580.95.05"), ("NVIDIA-SMI has failed", "")):
        program.write_text(f"#!/bin/sh\necho '{printed}'\n")
        program.chmod(0o755)
        assert doctor.nvidia_driver(tmp_path / "none") == version


@pytest.mark.parametrize(
    ("cuda", "driver", "usable", "state", "said"),
    [
        # NVIDIA, CUDA Compatibility: CUDA 13 runs on branch 580 and newer, CUDA 12 on 525, CUDA 11 on 450.
        ("13.0", "580.65.06", True, "ok", "580 or newer"),
        ("13.2", "580.95.05", False, "ok", "580 or newer"),
        ("13.0", "590.10", True, "ok", "590.10"),
        ("13.0", "575.57.08", False, "missing", "whl/cu126"),
        ("13.0", "525.60.13", False, "missing", "whl/cu126"),
        ("13.0", "470.57.02", False, "missing", "newer driver on the host."),
        ("12.6", "525.60.13", True, "ok", "525 or newer"),
        ("12.6", "515.48.07", False, "missing", "newer driver on the host."),
        ("13.0", "550.90.07", True, "ok", "550.90.07"),  # with NVIDIA's package cuda-compat
        ("13.0", "", False, "note", "none"),
        ("", "580.95.05", False, "note", "not built for it"),
    ],
)
def test_the_driver_that_torch_needs_stands_beside_the_one_that_is_there(cuda, driver, usable, state, said):
    check = doctor.driver_check(cuda, driver, usable)
    assert check is not None and check.state == state
    assert said in check.found + check.cost and bool(check.cost) == (state != "ok")


def test_a_machine_without_cuda_has_no_line_about_drivers():
    assert doctor.driver_check("", "", False) is None


def test_plug_ins_are_named(monkeypatch):
    monkeypatch.setenv("SAGE_SCALE_PLUGINS", "json")
    assert found()["plug-ins"].found == "json"
    monkeypatch.setenv("SAGE_SCALE_PLUGINS", "json,no_such_module")
    check = found()["plug-ins"]
    assert check.state == "missing" and "no_such_module" in check.found and "SAGE_SCALE_PLUGINS" in check.cost


def test_a_broken_probe_becomes_a_line(monkeypatch):
    def _video():
        raise OSError("libavcodec.so: cannot open shared object file")
        yield

    monkeypatch.setattr(doctor, "_video", _video)
    result = CliRunner().invoke(main.app, ["doctor", "--json"])
    assert result.exit_code == 0
    broken = [check for check in json.loads(result.output) if check["name"] == "broken"]
    assert len(broken) == 1 and broken[0]["state"] == "missing" and "libavcodec" in broken[0]["found"]
