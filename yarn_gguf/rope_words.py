"""An intent in a few words, and as the fields that every JSON document has of it. Knows values; prints nothing."""

from __future__ import annotations

from typing import Any

from yarn_gguf.intent import Intent
from yarn_gguf.rope import Llama3, Scaling


def rope_text(intent: Intent) -> str:
    """An intent in a few words."""
    under = intent.rope.under
    if intent.method == "none":
        return f"{'unscaled' if under is None else _under_text(under)}, context {intent.context}"
    scaling, found = intent.yarn, f"{intent.method} ×{intent.factor:g}"
    if intent.original:
        found += f" over {intent.original}"
    if scaling is not None and intent.method == "yarn":
        details = []
        if (scaling.beta_fast, scaling.beta_slow) != (32.0, 1.0):
            details.append(f"betas {scaling.beta_fast:g}/{scaling.beta_slow:g}")
        if not scaling.truncate:
            details.append("not truncated")
        if intent.dynamic:
            details.append("dynamic")
        details.append(f"magnitude {intent.rope.magnitude():.5g}")
        found += f" ({', '.join(details)})"
    if under is not None:
        found += f" on top of {_under_text(under)}"
    return f"{found}, context {intent.context}"


def _under_text(under: Scaling) -> str:
    """What has rescaled the frequencies already."""
    return f"llama3 ×{under.factor:g}" if isinstance(under, Llama3) else "the factors of rope_freqs.weight"


def rope_json(intent: Intent, encoding: str | None) -> dict[str, Any]:
    yarn = intent.yarn
    return {
        "method": intent.method,
        "factor": intent.factor,
        "original_context": intent.original,
        "context": intent.context,
        "beta_fast": yarn and yarn.beta_fast,
        "beta_slow": yarn and yarn.beta_slow,
        "attention_factor": intent.rope.magnitude(intent.context),
        "truncate": yarn and yarn.truncate,
        "dynamic": intent.dynamic,
        "encoding": encoding,
    }
