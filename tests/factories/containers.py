"""A container as Kubernetes runs it: read-only root, unprivileged user, no HOME, only declared folders writable.

Linux, root, util-linux. The root has the system's libraries, the interpreter, its packages and the checkout; everything
else is not there.
"""

from __future__ import annotations

import os
import shlex
import shutil
import subprocess
import sys
import uuid
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

CHECKOUT = Path(__file__).resolve().parents[2]
USER = 54321
"""A uid that no passwd file has, as OpenShift and runAsUser give them."""


def why_not() -> str:
    """Why no container can be made here; '' where it can."""
    missing = [name for name in ("unshare", "setpriv", "mount", "chroot") if shutil.which(name) is None]
    if missing:
        return f"{', '.join(missing)} not installed (Debian: util-linux, mount, coreutils)"
    if os.geteuid() != 0:
        return "mount namespaces need root"
    tried = subprocess.run(["unshare", "--mount", "--pid", "--fork", "true"], capture_output=True, text=True)
    return f"no mount namespaces: {tried.stderr.strip()}" if tried.returncode else ""


@dataclass(frozen=True)
class Container:
    """Folders of one container; `run` starts a command in a fresh root around them."""

    base: Path
    """An empty folder for root and writable folders."""
    read: dict[str, Path]
    """Read-only folders by their path inside."""
    writable: tuple[str, ...] = ("/tmp",)
    """Paths of the folders that its user may write to, besides /dev/shm; they last from one command to the next."""

    def inside(self, path: str) -> Path:
        """The folder behind a writable path."""
        return self.base / "writable" / path.strip("/").replace("/", "-")

    def start(
        self, command: Sequence[object], environment: dict[str, str] | None = None
    ) -> subprocess.Popen[str]:
        """Start a command of the virtual environment; stdout and stderr are one pipe."""
        root = self.base / f"root-{uuid.uuid4().hex[:6]}"
        root.mkdir(parents=True)
        for path in self.writable:
            self.inside(path).mkdir(parents=True, exist_ok=True)
            self.inside(path).chmod(0o777)
        words = [*map(str, command)]
        given = {
            "PATH": f"{sys.prefix}/bin:/usr/bin:/bin",
            "PYTHONPATH": str(CHECKOUT),
            "OMP_NUM_THREADS": "1",
        }
        variables = [f"{name}={value}" for name, value in {**given, **(environment or {})}.items()]
        user = ["setpriv", f"--reuid={USER}", f"--regid={USER}", "--clear-groups", "--inh-caps=-all",
                "--bounding-set=-all", "--no-new-privs"]  # fmt: skip
        enter = shlex.join(["chroot", str(root), *user, "env", "-i", *variables, *words])
        script = "\n".join(["set -e", *self._mounts(root), f"exec {enter}"])
        space = ["unshare", "--mount", "--propagation=private", "--pid", "--fork", "--kill-child"]
        return subprocess.Popen(
            [*space, "sh", "-c", script], text=True, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
        )  # fmt: skip

    def run(self, command: Sequence[object], environment: dict[str, str] | None = None) -> str:
        """What a command printed. Fails with it unless the exit code is 0."""
        process = self.start(command, environment)
        printed, _ = process.communicate(timeout=240)
        assert process.returncode == 0, printed[-6000:]
        return printed

    def _mounts(self, root: Path) -> list[str]:
        """Shell commands that lay out the root."""
        packages = Path(sys.prefix).resolve()
        same = {
            str(path): path
            for path in (Path("/usr"), Path("/etc"), Path(sys.base_prefix), CHECKOUT, packages)
        }
        lines = [f"mount -t tmpfs -o mode=755 root {root}"]
        for name in ("bin", "sbin", "lib", "lib32", "lib64"):
            if os.path.islink(f"/{name}"):
                lines.append(f"ln -s {os.readlink(f'/{name}')} {root}/{name}")
            elif os.path.isdir(f"/{name}"):
                same[f"/{name}"] = Path(f"/{name}")
        places = {
            place: shlex.quote(f"{root}{place}")
            for place in (*same, *self.read, *self.writable, "/dev", "/proc", "/sys")
        }
        # Outer folders first: the interpreter may lie below another, and a checkout below /tmp.
        kinds = {place: (folder, "bind,ro") for place, folder in {**same, **self.read}.items()}
        kinds |= {place: (self.inside(place), "bind") for place in self.writable}
        for place, (folder, kind) in sorted(kinds.items()):
            lines.append(
                f"mkdir -p {places[place]}; mount -o {kind} {shlex.quote(str(folder))} {places[place]}"
            )
        if str(packages) != sys.prefix:
            lines.append(f"test -e {root}{sys.prefix} || ln -s {packages} {root}{sys.prefix}")
        lines += [f"mkdir -p {places[place]}" for place in ("/dev", "/proc", "/sys")]
        return [
            *lines,
            f"mount --bind /dev {root}/dev",
            f"mount -t tmpfs -o mode=1777 shm {root}/dev/shm",
            f"mount -t proc proc {root}/proc",
            f"mount -o bind,ro /sys {root}/sys",
            f"mount -o remount,ro {root}",
        ]
