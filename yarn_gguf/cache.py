"""Where we keep what can be made again: builds, downloads, the figures of unfinished runs. Makes nothing."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Final

VARIABLE: Final = "YARN_GGUF_CACHE"


def cache_folder() -> Path:
    """$YARN_GGUF_CACHE, else yarn-gguf in the folder that the system has for it."""
    if chosen := os.environ.get(VARIABLE):
        return Path(chosen)
    if sys.platform == "darwin":
        return Path.home() / "Library" / "Caches" / "yarn-gguf"
    if sys.platform == "win32":
        return Path(os.environ.get("LOCALAPPDATA") or Path.home() / "AppData" / "Local") / "yarn-gguf" / "cache"
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "yarn-gguf"
