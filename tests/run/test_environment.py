"""What is known of the machine, of Python and of what is installed."""

from __future__ import annotations

import importlib.metadata
import os
import re
import subprocess
import sys
import types
from pathlib import Path

import pytest

from modelhub_sdk.run import environment


def test_capture() -> None:
    """The environment of this very process is found out."""
    found = environment.capture()
    assert found.python == f"{sys.version.split()[0]} (CPython)"
    assert found.platform
    assert found.packages["attrs"] == importlib.metadata.version("attrs")
    assert found.hardware["cpus"] > 0
    assert found.hardware["memory"] > 1 << 20
    assert found.unseen == ()


def test_packages_agree_with_importlib() -> None:
    """The names of folders say the same as the parsed metadata."""
    expected: dict[str, str] = {}
    for dist in importlib.metadata.distributions():
        expected.setdefault(re.sub(r"[-_.]+", "-", dist.metadata["Name"]).lower(), dist.version)
    assert environment.capture().packages == expected


def test_packages_of_all_kinds(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Names are normalised, the first on the path wins, development installs are read, leftovers are not."""
    first, second, egg = tmp_path / "a", tmp_path / "b", tmp_path / "Odd_Egg-3.1-py3.11.egg"
    for folder in (
        first / "My_Pkg.Sub-1.0.dist-info",
        second / "my_pkg_sub-2.0.dist-info",
        second / "~broken-1.0.dist-info",
        second / "empty.egg-info",
        second / "other-info",
        second / "old-2.5-py3.11.egg-info",
        first / "dev.egg-info",
        egg,
    ):
        folder.mkdir(parents=True)
    (first / "dev.egg-info" / "PKG-INFO").write_text("Name: dev\nVersion: 0.3\n\nVersion: 9\n")
    monkeypatch.setattr(sys, "path", [str(first), str(second), str(egg), str(tmp_path / "missing")])
    assert environment.capture().packages == {
        "my-pkg-sub": "1.0",
        "dev": "0.3",
        "old": "2.5",
        "odd-egg": "3.1",
    }


def test_nothing_raises(monkeypatch: pytest.MonkeyPatch) -> None:
    """A fact that cannot be had is None, or empty."""
    monkeypatch.setattr("platform.system", lambda: 1 / 0)
    monkeypatch.setattr(sys, "path", ["a\0b"])
    found = environment.capture()
    assert found.platform is None
    assert found.packages == {}


def write(root: Path, name: str, text: str) -> None:
    (root / name).parent.mkdir(parents=True, exist_ok=True)
    (root / name).write_text(text)


def test_limits_of_cgroup_2(tmp_path: Path) -> None:
    """The tightest quota and limit on the way up count."""
    write(tmp_path, "proc/self/cgroup", "0::/pod/box\n")
    write(tmp_path, "proc/meminfo", "MemTotal:  4096 kB\n")
    write(tmp_path, "proc/cpuinfo", "model name\t: Some CPU\n")
    write(tmp_path, "sys/fs/cgroup/pod/box/cpu.max", "max 100000\n")
    write(tmp_path, "sys/fs/cgroup/pod/cpu.max", "50000 100000\n")
    write(tmp_path, "sys/fs/cgroup/pod/box/memory.max", "max\n")
    write(tmp_path, "sys/fs/cgroup/pod/memory.max", "1048576\n")
    assert environment._hardware(tmp_path) == {"cpus": 0.5, "memory": 1 << 20, "processor": "Some CPU"}


def test_limits_of_cgroup_1(tmp_path: Path) -> None:
    """Version 1 is read too, its way of saying "no limit" included."""
    write(tmp_path, "proc/self/cgroup", "4:memory:/x\n1:cpu,cpuacct:/x\n7:pids:/x\n")
    write(tmp_path, "proc/meminfo", "MemTotal:  4096 kB\n")
    write(tmp_path, "sys/fs/cgroup/cpu,cpuacct/cpu.cfs_quota_us", "25000\n")
    write(tmp_path, "sys/fs/cgroup/cpu,cpuacct/cpu.cfs_period_us", "100000\n")
    write(tmp_path, "sys/fs/cgroup/memory/x/memory.limit_in_bytes", "9223372036854771712\n")
    found = environment._hardware(tmp_path)
    assert (found["cpus"], found["memory"]) == (0.25, 4096 * 1024)
    assert found["processor"] == os.uname().machine


def test_gpus(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """GPUs are named by the driver's files, else by nvidia-smi, else not at all."""
    assert "gpus" not in environment._hardware(tmp_path)
    write(tmp_path, "dev/nvidia0", "")
    monkeypatch.setenv("PATH", str(tmp_path))
    assert environment._gpus(tmp_path) == ()
    write(tmp_path, "nvidia-smi", "#!/bin/sh\necho 'Tesla T4'\n")
    (tmp_path / "nvidia-smi").chmod(0o755)
    assert environment._gpus(tmp_path) == ("Tesla T4",)
    write(tmp_path, "proc/driver/nvidia/gpus/0000/information", "Model: \t NVIDIA A100\nIRQ: 3\n")
    assert environment._gpus(tmp_path) == ("NVIDIA A100",)


def test_image(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The image is what a variable or podman says, without passwords; a bare container has none."""
    for name in environment.IMAGE_VARIABLES:
        monkeypatch.delenv(name, raising=False)
    write(tmp_path, ".dockerenv", "")
    assert environment._image(tmp_path) is None
    write(tmp_path, "run/.containerenv", 'engine="podman"\nimage="docker.io/x:1"\n')
    assert environment._image(tmp_path) == "docker.io/x:1"
    monkeypatch.setenv("CI_JOB_IMAGE", "https://u:p@registry/x:2")
    assert environment._image(tmp_path) == "https://registry/x:2"


def test_unseen(monkeypatch: pytest.MonkeyPatch) -> None:
    """Only libraries that were really imported are named."""
    assert "cv2" not in environment.unseen()
    monkeypatch.setitem(sys.modules, "cv2", types.ModuleType("cv2"))
    monkeypatch.setitem(sys.modules, "h5py", None)
    assert "cv2" in environment.unseen()
    assert "h5py" not in environment.unseen()


def test_no_process_is_started() -> None:
    """On a machine without NVIDIA's devices no process is started."""
    if Path("/dev/nvidiactl").exists():
        pytest.skip("there is a GPU here")
    program = (
        "import sys\nfrom modelhub_sdk.run import environment\n"
        "sys.addaudithook(lambda e, a: e == 'subprocess.Popen' and sys.exit(7))\nenvironment.capture()"
    )
    assert subprocess.run([sys.executable, "-c", program], check=False).returncode == 0
