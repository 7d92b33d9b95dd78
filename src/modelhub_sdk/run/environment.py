"""The environment of a run: Python, platform, hardware, installed packages, container image.

A fact that cannot be known is None, or not there; nothing here raises. No process is started, but
``nvidia-smi`` where there are NVIDIA devices and the driver's own files do not name them.
"""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Callable, Iterator, Mapping
from itertools import islice
from pathlib import Path
from typing import Any, Final, TypeVar

from modelhub_sdk.domain.lineage import Environment
from modelhub_sdk.domain.values import Frozen
from modelhub_sdk.run import masking

__all__ = ["capture", "unseen"]

T = TypeVar("T")

IMAGE_VARIABLES: Final = (
    "MODELHUB_IMAGE",
    "CONTAINER_IMAGE",
    "CI_JOB_IMAGE",  # GitLab
    "APPTAINER_CONTAINER",
    "SINGULARITY_CONTAINER",
)
"""Where the container image may be named. ``IMAGE_NAME`` and the like mean too many other things, and
``/.dockerenv`` says only that there is one."""

_UNSEEN: Final = (
    # HDF5 and netCDF open files in C
    *("h5py", "tables", "netCDF4", "h5netcdf"),
    # images, audio, video: OpenCV, libav, libsndfile, ITK, libvips, OpenSlide
    *("cv2", "av", "decord", "torchcodec", "torchvision.io", "torchaudio", "soundfile"),
    *("SimpleITK", "itk", "pyvips", "openslide"),
    # GDAL
    *("osgeo", "rasterio", "fiona", "pyogrio"),
    # engines with readers of their own, in C++ or Rust
    *("tensorflow", "duckdb", "datatable", "lance", "lancedb", "tiledb", "nvidia.dali", "ffcv", "ROOT"),
    *("pyreadstat", "cudf"),
    # a model or a matrix, given as a path, is read in C++ or Rust
    *("xgboost", "lightgbm", "catboost", "safetensors", "tokenizers", "sentencepiece"),
    *("onnxruntime", "faiss", "llama_cpp", "fasttext"),
)

_MAX_NAMES: Final = 50_000  # in one folder of sys.path: the first is often the user's own, with data in it
_INFO: Final = re.compile(
    r"(?P<name>[^~].*?)(?:-(?P<version>[^-]+))?(?:-py\d[\d.]*[^/]*)?\.(?:dist|egg)-info"
)
_NO_LIMIT: Final = 1 << 60  # how version 1 of cgroups writes that there is none


def capture() -> Environment:
    """Return the environment of this process; `unseen` is left for the end of the run."""
    return Environment(
        python=_or_none(_python),
        platform=_or_none(_platform),
        image=_or_none(_image),
        packages=_or_none(_packages) or Frozen(),
        hardware=_or_none(_hardware) or Frozen(),
    )


def unseen() -> tuple[str, ...]:
    """Return the imported libraries that read files where Python's audit events cannot show it."""
    return tuple(sorted(name for name in _UNSEEN if sys.modules.get(name) is not None))


def _or_none(ask: Callable[[], T]) -> T | None:
    try:
        return ask()
    except Exception:  # noqa: BLE001  # a missing fact must not stop a training
        return None


def _python() -> str:
    import platform

    return f"{platform.python_version()} ({platform.python_implementation()})"


def _platform() -> str:
    import platform

    # Not platform.platform(): that starts `uname -p`.
    system = platform.system()
    if system == "Darwin":
        return f"macOS-{platform.mac_ver()[0]}-{platform.machine()}"
    libc = "".join(platform.libc_ver())
    return f"{system}-{platform.release()}-{platform.machine()}" + (f"-with-{libc}" if libc else "")


def _image(root: Path = Path("/")) -> str | None:
    for name in IMAGE_VARIABLES:
        if value := os.environ.get(name, "").strip():
            return _clean(value)
    # podman notes the image of a privileged container there; other files are empty
    for line in _read(root / "run/.containerenv").splitlines():
        key, _, value = line.partition("=")
        if key == "image" and value.strip('"'):
            return _clean(value.strip('"'))
    return None


def _clean(text: str) -> str:
    return masking.url(text[:512].encode("utf-8", "backslashreplace").decode())


def _read(path: Path) -> str:
    try:
        with open(path, encoding="utf-8", errors="replace") as file:
            return file.read(1 << 20)
    except OSError:
        return ""


# --- Packages -------------------------------------------------------------------------------------


def _packages() -> Mapping[str, str]:
    """Return the installed distributions by their normalised names; the first on ``sys.path`` counts.

    The names of the ``*.dist-info`` folders say it all, so nothing is parsed; only a bare
    ``name.egg-info``, which a development install leaves beside its sources, is looked into.
    """
    found: dict[str, str] = {}
    for folder in dict.fromkeys(path for path in sys.path if isinstance(path, str)):
        for name, version in _distributions(folder or os.curdir):
            found.setdefault(re.sub(r"[-_.]+", "-", name).lower(), version)
    return Frozen(sorted(found.items()))


def _distributions(folder: str) -> Iterator[tuple[str, str]]:
    if folder.endswith(".egg"):
        name, version, *_ = [*os.path.basename(folder)[:-4].split("-"), ""]
        if version:
            yield name, version
        return
    try:
        with os.scandir(folder) as entries:
            names = [entry.name for entry in islice(entries, _MAX_NAMES) if entry.name.endswith("-info")]
    except (OSError, ValueError):  # a zip file, nothing, or no path at all
        return
    for info in sorted(names):
        match = _INFO.fullmatch(info)
        if match is not None:
            version = match["version"] or _stated_version(Path(folder, info))
            if version:
                yield match["name"], version


def _stated_version(info: Path) -> str:
    for place in (info / "METADATA", info / "PKG-INFO", info):
        for line in _read(place).partition("\n\n")[0].splitlines():
            if line.startswith("Version:"):
                return line.partition(":")[2].strip()
    return ""


# --- Hardware -------------------------------------------------------------------------------------


def _hardware(root: Path = Path("/")) -> Mapping[str, Any]:
    """Return ``cpus`` and ``memory`` that this process may use, ``processor`` and ``gpus``, where known."""
    facts: dict[str, Any] = {
        "cpus": _or_none(lambda: _cpus(root)),
        "memory": _or_none(lambda: _memory(root)),
        "processor": _or_none(lambda: _processor(root)),
        "gpus": _or_none(lambda: _gpus(root)),
    }
    return Frozen({name: fact for name, fact in facts.items() if fact})


def _cpus(root: Path) -> int | float | None:
    """Return the processors of this process: its affinity, or less where a quota says so (1.5)."""
    count = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    quotas = [float(count)] if count else []
    for folder in _groups(root, "cpu"):
        quota, _, period = _read(folder / "cpu.max").strip().partition(" ")
        quota = quota or _read(folder / "cpu.cfs_quota_us").strip()
        period = period or _read(folder / "cpu.cfs_period_us").strip()
        if quota.isdigit() and period.isdigit() and int(period):  # "max" and -1 are no quota
            quotas.append(round(int(quota) / int(period), 2))
    least = min(quotas, default=None)
    return int(least) if least is not None and least.is_integer() else least


def _memory(root: Path) -> int | None:
    """Return the bytes of memory of this process: the machine's, or less where a limit says so."""
    sizes = []
    if match := re.search(r"^MemTotal:\s+(\d+) kB", _read(root / "proc/meminfo"), re.MULTILINE):
        sizes.append(int(match[1]) * 1024)
    elif hasattr(os, "sysconf") and "SC_PHYS_PAGES" in os.sysconf_names:
        sizes.append(os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE"))
    for folder in _groups(root, "memory"):
        for name in ("memory.max", "memory.limit_in_bytes"):
            limit = _read(folder / name).strip()
            if limit.isdigit() and int(limit) < _NO_LIMIT:
                sizes.append(int(limit))
    return min(sizes, default=None)


def _groups(root: Path, controller: str) -> Iterator[Path]:
    """Yield the folders of this process's control groups, from its own up to the top, version 2 and 1."""
    for line in _read(root / "proc/self/cgroup").splitlines():
        _, controllers, path = [*line.split(":", 2), "", ""][:3]
        if controllers and controller not in controllers.split(","):
            continue
        for mount in ("", "unified") if not controllers else (controllers, controller):
            top = root / "sys/fs/cgroup" / mount
            inner = path.strip("/")  # in a container the host's path may not be there, but the top is
            while inner:
                yield top / inner
                inner = inner.rpartition("/")[0]
            yield top


def _processor(root: Path) -> str | None:
    if match := re.search(r"^(?:model name|Model)\s*:\s*(\S.*)$", _read(root / "proc/cpuinfo"), re.MULTILINE):
        return match[1].strip()
    return os.uname().machine or None if hasattr(os, "uname") else None


def _gpus(root: Path) -> tuple[str, ...]:
    """Return the names of NVIDIA's GPUs; of others nothing is known."""
    driver = root / "proc/driver/nvidia/gpus"
    if driver.is_dir():
        texts = [_read(folder / "information") for folder in sorted(driver.iterdir())]
        names = [
            match[1].strip() for text in texts if (match := re.search(r"^Model:\s*(.+)$", text, re.MULTILINE))
        ]
        if names:
            return tuple(names)
    if any((root / "dev" / name).exists() for name in ("nvidiactl", "nvidia0", "dxg")):
        return _ask_nvidia()
    return ()


def _ask_nvidia() -> tuple[str, ...]:
    import subprocess

    try:
        done = subprocess.run(
            ["nvidia-smi", "--query-gpu=name", "--format=csv,noheader"],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            timeout=1.0,
            check=True,
        )
    except (OSError, subprocess.SubprocessError):
        return ()
    return tuple(line.strip() for line in done.stdout.decode("utf-8", "replace").splitlines() if line.strip())
