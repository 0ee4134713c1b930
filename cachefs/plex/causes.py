"""Why a connection failed, in the operating system's words, out of whatever a library wrapped around them."""

from __future__ import annotations


def words_for(error: BaseException) -> str:
    """``: Connection refused``, or nothing. Texts of libraries are never used: they hold URLs."""
    seen: list[object] = [error]
    for each in seen:
        if isinstance(each, OSError) and each.strerror:
            return f": {each.strerror}"
        if isinstance(each, BaseException) and len(seen) < 50:
            inner = each.exceptions if isinstance(each, BaseExceptionGroup) else each.args
            seen += [*inner, each.__cause__, each.__context__, getattr(each, "reason", None)]
    return ""
