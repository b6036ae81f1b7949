"""Where figures come from: names, sizes, hashes and versions, for reports, records and journals."""

from __future__ import annotations

import hashlib
import importlib.metadata
import json
import platform
import secrets
import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any, Final

from yarn_gguf import __version__
from yarn_gguf.intent import Intent
from yarn_gguf.logits import TWIN
from yarn_gguf.metadata import read_facts
from yarn_gguf.summary import DeltaP, Kld, Summary
from yarn_gguf.verification.recording import Record
from yarn_gguf.verification.results import ModelInfo, NoiseFloor
from yarn_gguf.verification.sides import Checkpoint, Reference, Side, Sides
from yarn_gguf.verification.tokenizing import Tokenized
from yarn_gguf.verification.wanted import Wanted
from yarn_gguf.verification.windows import Windows

PIECE: Final = 1 << 20
_PACKAGES: Final = ("llama_cpp_python", "transformers", "torch", "numpy")


def candidate_info(side: Side) -> ModelInfo:
    source = "its yarn_gguf.* keys" if side.before.recorded is not None else "its keys"
    arch = read_facts(side.model).arch
    return ModelInfo(side.path, "gguf", side.type, arch, side.model.bytes, side.intent, source, "")


def reference_info(reference: Reference, library: str) -> ModelInfo:
    match reference:
        case Side():
            found = candidate_info(reference)
            return ModelInfo(
                found.path, "gguf", found.type, found.arch, found.bytes, found.rope, found.rope_source, library
            )
        case Checkpoint():
            arch, dtype = reference.config.model_type, "checkpoint"
            return ModelInfo(
                reference.path, "checkpoint", dtype, arch, reference.bytes, reference.intent, reference.source, library
            )
    facts = reference.provenance
    source = f"recorded: {facts.get('rope', 'unknown')}"
    return ModelInfo(
        reference.path,
        "record",
        f"record, {reference.top} words",
        str(facts.get("arch", "")),
        reference.path.stat().st_size,
        None,
        source,
        library,
    )


def sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def token() -> str:
    return secrets.token_hex(4)


def digest(key: Mapping[str, Any]) -> str:
    return sha256(json.dumps(key, sort_keys=True).encode())[:32]


def versions() -> dict[str, str]:
    found = {
        "yarn-gguf": __version__,
        "python": platform.python_version(),
        "system": f"{sys.platform} {platform.machine()}",
    }
    for name in _PACKAGES:
        try:
            found[name.replace("_", "-")] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found


def settings(wanted: Wanted, batch: int, *, together: bool) -> dict[str, Any]:
    return {
        "runtime": wanted.runtime.value,
        "kv": wanted.kv or "auto",
        "flash_attention": {None: "auto", True: "on", False: "off"}[wanted.flash_attention],
        "batch": batch,
        "gpu_layers": wanted.gpu_layers,
        "rpc": list(wanted.rpc),
        "tensor_split": list(wanted.tensor_split),
        "threads": wanted.threads,
        "dtype": wanted.dtype,
        "lockstep": together,
        "stride": wanted.stride,
        "positions": [list(each) for each in wanted.ranges],
    }


def key(
    reference: Reference,
    candidates: Sequence[Side],
    windows: Windows,
    wanted: Wanted,
    batch: int,
    record: Record | None,
) -> dict[str, Any]:
    """Everything that the figures depend on."""
    if isinstance(reference, Record):
        stat = reference.path.stat()
        identity: list[Any] = [str(reference.path.resolve()), stat.st_size, stat.st_mtime_ns]
    else:
        identity = reference.identity
    given = reference.given if isinstance(reference, Checkpoint) else None
    return {
        "version": __version__,
        "reference": identity,
        "rope": None if given is None else repr(given),
        "candidates": [each.identity for each in candidates],
        "tokens": windows.sha256,
        "wanted": sha256(windows.wanted.tobytes()),
        "settings": [wanted.kv, wanted.flash_attention, str(wanted.library), wanted.threads, wanted.gpu_layers],
        "more": [list(wanted.rpc), list(wanted.tensor_split), batch, wanted.dtype, record is None],
        "versions": versions(),
    }


def provenance(
    reference: Side | Checkpoint, sides: Sides, text: Tokenized, library: str, noise: NoiseFloor | None, batch: int
) -> dict[str, Any]:
    """What a record says of itself."""
    return {
        "model": reference.path.name,
        "arch": reference_info(reference, "").arch,
        "metadata_sha256": _metadata_sha256(reference),
        "tensors_sha256": _tensors_sha256(reference),
        "rope": rope_words(reference.intent),
        "rope_source": reference_info(reference, "").rope_source,
        "original_context": sides.original if sides.original is not None else _own_original(reference.intent),
        "text": text.name,
        "text_sha256": sha256(text.text),
        "library": library,
        "batch": batch,
        "versions": versions(),
        "noise_floor": None if noise is None else {"tokens": noise.tokens, "batch": TWIN, **asdict(noise.summary)},
    }


def _own_original(intent: Intent) -> int | None:
    return intent.original if intent.method != "none" else None


def rope_words(intent: Intent) -> str:
    yarn = intent.yarn
    found = f"{intent.method} x{intent.factor:g} over {intent.original}, context {intent.context}"
    if yarn is None:
        return found
    return (
        f"{found}, betas {yarn.beta_fast:g}/{yarn.beta_slow:g}, magnitude {intent.rope.magnitude(intent.context):.6g}"
    )


def _metadata_sha256(reference: Side | Checkpoint) -> str:
    if isinstance(reference, Checkpoint):
        return sha256((reference.path / "config.json").read_bytes())
    entries = sorted(reference.model.entries.values(), key=lambda each: each.key)
    return sha256(b"".join(each.raw for each in entries))


def _tensors_sha256(reference: Side | Checkpoint) -> str:
    """Of all tensor data as it lies in the files, in the order of their names."""
    found = hashlib.sha256()
    if isinstance(reference, Checkpoint):
        places = [(file, 0, file.stat().st_size) for file in sorted(reference.path.glob("*.safetensors"))]
    else:
        places = [(part.path, part.data_offset, part.padded_end) for part in reference.model.parts]
    for path, start, end in places:
        with path.open("rb") as file:
            file.seek(start)
            for at in range(start, end, PIECE):
                found.update(file.read(min(PIECE, end - at)))
    return found.hexdigest()


def recorded_noise(record: Record) -> NoiseFloor | None:
    """As it was when the record was made."""
    found = record.provenance.get("noise_floor")
    if not isinstance(found, dict):
        return None
    try:
        values = {
            name: found[name] for name in Summary.__dataclass_fields__ if name not in ("kld", "delta_p", "tokens")
        }
        summary = Summary(found["tokens"], Kld(**found["kld"]), delta_p=DeltaP(**found["delta_p"]), **values)
        return NoiseFloor(int(found["tokens"]), summary)
    except (KeyError, TypeError, ValueError):
        return None
