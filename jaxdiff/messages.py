"""Lists of names in messages."""

from __future__ import annotations

from collections.abc import Iterable

__all__ = ["listed", "shared_prefix"]


def listed(names: Iterable[str], max_names: int = 20, between: str = ", ") -> str:
    """Join names for a message; beyond `max_names`, show the first ones, their number and their common prefix.

    >>> listed(["a", "b"])
    'a, b'
    >>> listed((f"module.{i}" for i in range(300)), max_names=3)
    "module.0, module.1, module.2 and 297 more (300 in all, each begins with 'module.')"

    Args:
        names: the names, in order of display.
        max_names: maximum number of displayed names.
        between: separator.

    Returns:
        the text.
    """
    texts = [_plain(name) for name in names]
    if len(texts) <= max_names:
        return between.join(texts)
    prefix = shared_prefix(texts)
    more = f", each begins with {prefix!r}" if prefix else ""
    return f"{between.join(texts[:max_names])} and {len(texts) - max_names} more ({len(texts)} in all{more})"


def _plain(name: str) -> str:
    """Shorten and clean a name: in an untrusted file it may be long or contain control characters."""
    shown = name if len(name) <= 300 else f"{name[:300]}..."
    return (
        shown if shown.isprintable() else "".join(c if c.isprintable() else "\N{REPLACEMENT CHARACTER}" for c in shown)
    )


def shared_prefix(names: Iterable[str]) -> str:
    """Return the longest common prefix of dotted names, up to a dot, e.g. "_orig_mod."; "" if there is none."""
    parents = [name.split(".")[:-1] for name in names]
    shared: list[str] = []
    for segments in zip(*parents, strict=False):
        if len(set(segments)) > 1:
            break
        shared.append(segments[0])
    return "".join(f"{segment}." for segment in shared) if len(parents) > 1 else ""
