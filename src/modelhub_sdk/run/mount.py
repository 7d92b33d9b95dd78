"""A private ``/valohai`` for programs that hard-code it, where the system allows one.

In a mount namespace of its own the program sees a root folder made of the real one's parts, and
``/valohai`` beside them. Nothing is mounted or made outside of that namespace, and it goes with the
program.
"""

from __future__ import annotations

import functools
import os
import re
import shlex
import shutil
import stat
import subprocess
import tempfile
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path

ROOT = "/valohai"

_SCRIPT = r"""set -e
new=$1; shift
mount -t tmpfs none "$new"
for entry in /* /.[!.]*; do
  [ -e "$entry" ] || [ -L "$entry" ] || continue
  [ "$entry" = /valohai ] && continue
  if [ -L "$entry" ]; then cp -P "$entry" "$new$entry"
  elif [ -d "$entry" ]; then mkdir "$new$entry"; mount --rbind "$entry" "$new$entry"
  else : > "$new$entry"; mount --bind "$entry" "$new$entry"; fi
done
mkdir "$new/valohai"
while [ "$1" != -- ]; do
  mkdir -p "$new/valohai/$1"; mount --rbind "$2" "$new/valohai/$1"; shift 2
done
shift
exec chroot "$new" sh -c 'cd "$0" && exec "$@"' "$PWD" "$@"
"""

_LOOKED_AT = 2000  # files of a repository
_LARGEST = 1_000_000  # bytes of one
# Not the end of another path or of a URL; also Path("/valohai", "inputs"), >/valohai/x, -I/valohai/x.
_MENTIONED = re.compile(rb"(?:(?<![\w.~*/)}\]])|(?<=[\s\"']-[A-Za-z]))/valohai(?![\w.-])")


def is_needed(command: str, folder: Path) -> bool:
    """Return whether a command, or a program below *folder*, mentions a path at or below ``/valohai``."""
    if _MENTIONED.search(command.encode("utf-8", "replace")):
        return True
    for path in _programs(folder):
        with suppress(OSError):
            found = path.stat()
            if not stat.S_ISREG(found.st_mode):  # reading a pipe would wait for ever
                continue
            if found.st_size <= _LARGEST and _MENTIONED.search(path.read_bytes()):
                return True
    return False


def _programs(folder: Path) -> Iterable[Path]:
    count = 0
    for place, folders, files in os.walk(folder):
        folders[:] = [
            name for name in folders if not name.startswith(".") and name not in ("node_modules", "venv")
        ]
        for name in files:
            if name.endswith((".py", ".sh", ".R", ".r", ".jl", ".ipynb")):
                count += 1
                if count > _LOOKED_AT:
                    return
                yield Path(place, name)


def wrapped(command: Sequence[str], folders: Mapping[str, Path], place: Path) -> list[str]:
    """Return the command that runs *command* with each of *folders* at ``/valohai/<name>``.

    *place* is an empty folder that the namespace may use. Call `is_possible` first.
    """
    pairs = [part for name, folder in folders.items() for part in (name, os.path.abspath(folder))]
    return [*_unshare(), "sh", "-c", _SCRIPT, "sh", str(place), *pairs, "--", *command]


def _unshare() -> list[str]:
    mine = [] if os.geteuid() == 0 else ["--user", "--map-root-user"]
    return ["unshare", *mine, "--mount", "--propagation", "private"]


@functools.cache
def is_possible() -> bool:
    """Return whether this system lets this user have a private mount; tried once for each process."""
    if not all(shutil.which(program) for program in ("unshare", "mount", "chroot", "sh")) or not hasattr(
        os, "geteuid"
    ):
        return False
    with tempfile.TemporaryDirectory() as folder:
        inside, place = Path(folder, "inside"), Path(folder, "root")
        inside.mkdir()
        place.mkdir()
        command = wrapped(["sh", "-c", "test -d /valohai/probe && echo yes"], {"probe": inside}, place)
        try:
            done = subprocess.run(command, capture_output=True, timeout=10, check=False, cwd=folder)
        except (OSError, subprocess.SubprocessError):
            return False
    return done.returncode == 0 and done.stdout == b"yes\n"


def explanation(folders: Mapping[str, Path]) -> str:
    """Return what to do where no private mount can be had."""
    volumes = " ".join(f"-v {shlex.quote(str(folder))}:{ROOT}/{name}" for name, folder in folders.items())
    return (
        f"This program uses paths under {ROOT}, and this system allows no private mount there. Read the folders"
        f" from VH_INPUTS_DIR and VH_OUTPUTS_DIR instead, run as root, or run it in a container: docker run {volumes} …"
    )
