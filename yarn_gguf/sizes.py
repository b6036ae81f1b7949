"""Numbers of bytes as a person reads them. A leaf."""

from __future__ import annotations


def size_text(count: int) -> str:
    """1234567 -> 1.2 MiB."""
    value, units = float(count), ["B", "KiB", "MiB", "GiB", "TiB"]
    for unit in units:
        if value < 1024 or unit == units[-1]:
            return f"{value:.0f} {unit}" if unit == "B" else f"{value:.1f} {unit}"
        value /= 1024
    raise AssertionError("the last unit returns")


def exact_size(count: int) -> str:
    """1234567 -> 1.2 MiB (1234567 bytes)."""
    return size_text(count) if count < 1024 else f"{size_text(count)} ({count} bytes)"
