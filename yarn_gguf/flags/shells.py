"""A command as one line that a shell takes as it stands. Knows quoting; nothing of what the words mean.

POSIX lines are run by the tests; PowerShell's and cmd's follow their documented rules.
"""

from __future__ import annotations

import re
import shlex
import subprocess
from collections.abc import Callable, Sequence
from typing import Final

_PLAIN: Final = re.compile(r"[\w@%+:./\\=-]+", re.ASCII)


def _powershell(words: Sequence[str]) -> str:
    """Single quotes hold anything but themselves; a quoted program is called with &."""
    quoted = [word if _PLAIN.fullmatch(word) else "'" + word.replace("'", "''") + "'" for word in words]
    return ("& " if quoted[0].startswith("'") else "") + " ".join(quoted)


SHELLS: Final[dict[str, Callable[[Sequence[str]], str]]] = {
    "posix": shlex.join,
    "powershell": _powershell,
    "cmd": subprocess.list2cmdline,
}
