"""Coverage sees into the audit hook, which Python does not trace by itself."""

from __future__ import annotations

from modelhub_sdk.run import spy

spy._hook.__cantrace__ = True  # type: ignore[attr-defined]  # documented with sys.addaudithook
