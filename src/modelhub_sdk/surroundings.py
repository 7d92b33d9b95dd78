"""What this process can know of itself: who runs it, where, and the MODELHUB_ settings around it.

Read once when a registry is opened, and injected from there: nothing below asks the environment.
"""

from __future__ import annotations

import json
import os
import socket
from pathlib import Path
from typing import Final

from modelhub_sdk.domain.names import check_actor
from modelhub_sdk.errors import InvalidName

_FALSE: Final = ("", "0", "false", "no", "off")


def setting(name: str) -> str | None:
    """Return the environment's ``MODELHUB_<name>``, None when it is not set.

    Raises:
        InvalidName: it is set and empty, which would mean something else on each machine.
    """
    value = os.environ.get("MODELHUB_" + name)
    if value is not None and not value.strip():
        raise InvalidName(
            f"MODELHUB_{name} is set, and empty.", hint=f"Give it a value, or unset MODELHUB_{name}."
        )
    return value


def flag(name: str) -> bool:
    """Return whether ``MODELHUB_<name>`` is set to anything but 0, false, no or off."""
    return os.environ.get("MODELHUB_" + name, "").strip().lower() not in _FALSE


def user(given: str | None = None) -> str:
    """Return who acts.

    That is *given*, ``$MODELHUB_USER``, the Valohai execution's creator, git's ``user.email``, the
    login name, or ``uid:<n>``.

    Raises:
        InvalidName: the first of these that is there cannot be a user's name.
    """
    named = given if given is not None else setting("USER")
    if named is not None:
        return check_actor(named)
    for guess in (_valohai_creator, _git_email, _login):
        found = guess()
        if found:
            try:
                return check_actor(found)
            except InvalidName:
                continue
    return f"uid:{os.getuid()}" if hasattr(os, "getuid") else "unknown"


def _valohai_creator() -> str | None:
    # The keys are documented for Valohai's /valohai/config/execution.json.
    folder = os.environ.get("VH_CONFIG_DIR", "/valohai/config")
    try:
        place = Path(folder) / "execution.json"
        if not place.is_file():
            return None
        content = json.loads(place.read_text("utf-8"))
        found = content.get("valohai.creator-email") or content.get("valohai.creator-name")
    except (OSError, ValueError, AttributeError):
        return None
    return found if isinstance(found, str) else None


def _git_email() -> str | None:
    """Read git's own configuration files: starting git would cost more than opening the registry."""
    import configparser

    if email := os.environ.get("GIT_AUTHOR_EMAIL"):
        return email
    places = (
        [Path(folder) / ".git" / "config" for folder in (Path.cwd(), *Path.cwd().parents)] if _cwd() else []
    )
    home = os.path.expanduser("~")
    if os.path.isabs(home):
        places += [Path(home) / ".gitconfig", Path(home) / ".config" / "git" / "config"]
    for place in places:
        parser = configparser.RawConfigParser(strict=False, allow_no_value=True)
        try:
            # git indents its keys, which this parser would read as continuation lines
            if not place.is_file():  # a pipe would be waited for
                continue
            text = "\n".join(line.strip() for line in place.read_text("utf-8", errors="replace").splitlines())
            parser.read_string(text)
            email = parser.get("user", "email", fallback=None)
        except (OSError, configparser.Error):
            continue
        if email:
            return email.strip().strip('"')
    return None


def _cwd() -> bool:
    try:
        os.getcwd()
    except OSError:  # removed under us
        return False
    return True


def _login() -> str | None:
    import getpass

    try:
        return getpass.getuser()
    except (KeyError, OSError, ImportError):  # a container's user without a passwd entry
        return None


def host() -> str:
    """Return this machine's name."""
    try:
        return socket.gethostname() or "unknown"
    except OSError:
        return "unknown"


def data_dir() -> Path:
    """Return the user's folder for data that must stay.

    Raises:
        InvalidName: there is no home to put it in.
    """
    home = os.path.expanduser("~")
    if not os.environ.get("XDG_DATA_HOME") and (not os.path.isabs(home) or not os.path.isdir(home)):
        raise InvalidName(
            "This user has no home folder, so there is no default place for a registry.",
            hint="Name one: hub.open('sqlite:////path/models.db'), or set MODELHUB_REGISTRY.",
        )
    import platformdirs

    return Path(platformdirs.user_data_dir("modelhub", appauthor=False))


# --- processes ------------------------------------------------------------------------------------------


def process(pid: int | None = None) -> str:
    """Return what tells this process from every other one of this machine: ``pid:start:boot:namespace``."""
    pid = os.getpid() if pid is None else pid
    return ":".join([str(pid), _started(pid), _boot(), _namespace()])


def is_gone(text: str) -> bool:
    """Return whether the process that `process` described on this machine is certainly gone."""
    parts = text.split(":")
    if len(parts) != 4 or not parts[0].isdigit():
        return False
    pid, started, boot, namespace = int(parts[0]), parts[1], parts[2], parts[3]
    if boot and _boot() and boot != _boot():
        return True  # the machine was started anew
    if namespace != _namespace():
        return False  # another container: its numbers mean nothing here
    if started:
        return _started(pid) != started
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return True
    except (OSError, OverflowError):
        return False
    return False


def is_dead(text: str) -> bool:
    """Return whether the process that `process` described ran here and is certainly dead.

    Stricter than `is_gone`: a process of another machine, boot or container, or one that this user may not see,
    counts as alive.
    """
    parts = text.split(":")
    if len(parts) != 4 or not all(parts) or not parts[0].isdigit() or parts[2:] != [_boot(), _namespace()]:
        return False
    try:
        os.kill(int(parts[0]), 0)
    except ProcessLookupError:
        return True
    except (OSError, OverflowError):
        pass
    started = _started(int(parts[0]), unknown="?")
    return started not in ("?", parts[1])


def _started(pid: int, unknown: str = "") -> str:
    """Return when a process started, in ticks since the boot: empty of a dead one, *unknown* where it cannot be seen."""
    try:
        stat = Path(f"/proc/{pid}/stat").read_text("ascii", errors="replace")
        fields = stat.rpartition(")")[2].split()
        return "" if fields[0] in "ZX" else fields[19]
    except (OSError, IndexError):
        return unknown


def _boot() -> str:
    try:
        return Path("/proc/sys/kernel/random/boot_id").read_text("ascii").strip().replace("-", "")[:16]
    except OSError:
        return ""


def _namespace() -> str:
    try:
        return str(os.stat("/proc/self/ns/pid").st_ino)
    except OSError:
        return ""
