"""Optional drivers, imported when they are used."""

from __future__ import annotations

import importlib
from typing import Any

from modelhub_sdk.errors import MissingExtra


def need(module: str, extra: str) -> Any:
    """Return the imported *module*.

    Raises:
        MissingExtra: it is not installed; the message has the pip line.
    """
    try:
        return importlib.import_module(module)
    except ImportError as error:
        raise MissingExtra(
            f"This needs {module}, which is not installed ({type(error).__name__}).",
            hint=f"pip install 'modelhub-sdk[{extra}]'",
            extra=extra,
        ) from None
