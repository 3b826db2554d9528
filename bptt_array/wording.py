"""Values in the words of errors."""

from __future__ import annotations

from typing import Any


def said(value: Any, longest: int = 500) -> str:
    """Its repr, of which a long one is cut; a broken one is none of our errors."""
    try:
        text = repr(value)
    except Exception:  # noqa: BLE001 (a repr may raise anything; of huge integers Python's own does)
        return "a huge number" if isinstance(value, int) else f"<{type(value).__name__}>"
    return text if len(text) <= longest else f"{text[:longest]}…"


def short(value: Any) -> str:
    """:func:`said` of what comes from a file, several of which stand in one line."""
    return said(value, longest=100)
