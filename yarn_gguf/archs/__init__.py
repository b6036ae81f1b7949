"""The architectures that `convert` knows: one row for each class that a config.json may name.

Rows are data, in the languages of `tensor_tables` and `key_tables`; what needs code names a function of `transforms`.
They know nothing of RoPE scaling: that is the config's and `encoding`'s.
"""

from __future__ import annotations

from typing import Final

from yarn_gguf.archs.common import Row as Row
from yarn_gguf.archs.dense import DENSE
from yarn_gguf.archs.experts import EXPERT_ROWS

ARCHITECTURES: Final[dict[str, Row]] = {**DENSE, **EXPERT_ROWS}
