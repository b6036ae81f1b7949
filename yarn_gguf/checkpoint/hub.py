"""What `CHECKPOINT` on the command line stands for: a folder, or `org/name` in the Hugging Face cache or on the hub.

A folder that exists comes first. `org/name` is looked up where huggingface_hub keeps its downloads (HF_HOME,
HF_HUB_CACHE), without network; only `download` asks the hub, and only for what is not complete in the cache. Whatever
is found lies in the folder of one commit, and that commit is told. Code and pickles are never fetched unasked.
Knows names and folders; nothing of what the files hold.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from yarn_gguf.checkpoint.shards import weight_files
from yarn_gguf.errors import InputError, ResourceError, UsageError

WANTED: Final = ("*.json", "*.safetensors", "*.jinja", "*.txt", "tokenizer.model", "README.md")
# the same weights once more, in other formats
UNWANTED: Final = ("*/*.json", "*/*.safetensors", "*/*.txt", "consolidated*")
PICKLES: Final = ("pytorch_model*.bin",)
_REPOSITORY: Final = re.compile(r"[A-Za-z0-9][\w.-]{0,95}/[A-Za-z0-9][\w.-]{0,95}")
_SNAPSHOT: Final = re.compile(r"models--(?P<org>.+?)--(?P<name>.+)/snapshots/(?P<commit>[0-9a-f]{40})")


@dataclass(frozen=True, slots=True)
class Located:
    """`repository` and `revision` (a commit) are None for a folder that is not the hub's."""

    folder: Path
    repository: str | None
    revision: str | None


def locate(source: str, *, download: bool = False, revision: str | None = None, allow_pickle: bool = False) -> Located:
    folder = Path(source)
    if _is_folder(folder):
        if revision is not None:
            raise UsageError(f"--revision is for a repository on the hub, but {source} is a folder here")
        return _local(folder)
    if not _is_repository(source):
        raise InputError("no such folder, and no name of a repository (org/name)", file=source, code="not_found")
    found = _cached(source, revision)
    lacking = "is not in the Hugging Face cache" if found is None else _lacking(found, allow_pickle)
    if found is None or lacking:
        if not download:
            at = "" if revision is None else f" at revision {revision}"
            raise InputError(f"{lacking}{at}, nor a folder here; --download fetches it", file=source, code="not_cached")
        found = _downloaded(source, revision, allow_pickle)
    return Located(found, source, found.name)


def _is_folder(folder: Path) -> bool:
    try:
        return folder.is_dir()
    except (OSError, ValueError):  # a name too long, or with a NUL
        return False


def _is_repository(source: str) -> bool:
    """By our idea of a name first: the hub's own takes names without an organisation too."""
    if not _REPOSITORY.fullmatch(source):
        return False
    from huggingface_hub.errors import HFValidationError
    from huggingface_hub.utils import validate_repo_id  # type: ignore[attr-defined]  # in its __init__, but not marked

    try:
        validate_repo_id(source)
    except HFValidationError:
        return False
    return True


def _local(folder: Path) -> Located:
    """A folder, which may be the cache's own, and then says what it holds."""
    if match := _SNAPSHOT.search(folder.resolve().as_posix()):
        return Located(folder, f"{match['org']}/{match['name']}", match["commit"])
    return Located(folder, None, None)


def _cached(repository: str, revision: str | None) -> Path | None:
    """The folder of the commit that is in the cache, whole or not."""
    from huggingface_hub import constants
    from huggingface_hub.file_download import repo_folder_name

    root = Path(constants.HF_HUB_CACHE) / repo_folder_name(repo_id=repository, repo_type="model")
    revision = revision or constants.DEFAULT_REVISION
    if Path(revision).is_absolute() or ".." in Path(revision).parts:
        raise UsageError(f"--revision {revision!r} is no branch, tag or commit")
    reference = root / "refs" / revision
    commit = reference.read_text().strip() if reference.is_file() else revision
    folder = root / "snapshots" / commit
    return folder if re.fullmatch(r"[0-9a-f]{40}", commit) and folder.is_dir() else None


def _lacking(folder: Path, allow_pickle: bool) -> str:
    """What keeps a folder of the cache from being a whole checkpoint; empty when nothing does."""
    if not (folder / "config.json").exists():
        return "is in the Hugging Face cache without its config.json"
    try:
        files = weight_files(folder, allow_pickle=allow_pickle)
    except InputError as error:
        return "" if error.code == "pickle" else f"is in the Hugging Face cache only in parts ({error.text})"
    broken = [path.name for path in files.paths if not path.exists()]  # a link whose blob is gone
    return f"is in the Hugging Face cache only in parts ({broken[0]} is missing)" if broken else ""


def _downloaded(repository: str, revision: str | None, allow_pickle: bool) -> Path:
    from huggingface_hub import snapshot_download

    wanted: list[str] = [*WANTED]
    with _told_as_ours(repository):
        folder = Path(
            snapshot_download(repository, revision=revision, allow_patterns=wanted, ignore_patterns=[*UNWANTED])
        )
        if allow_pickle and not any(folder.glob("*.safetensors")):
            more = [*PICKLES, *(f"{name}.index.json" for name in PICKLES)]
            folder = Path(snapshot_download(repository, revision=folder.name, allow_patterns=more))
    return folder


@contextmanager
def _told_as_ours(repository: str) -> Iterator[None]:
    """The client's errors as ours: what the hub does not have or show is bad input, what cannot be reached is not."""
    from huggingface_hub import errors

    # a refusal of the hub derives from the transport's errors, and some of these from OSError: the order matters
    missing = (errors.RepositoryNotFoundError, errors.RevisionNotFoundError, errors.EntryNotFoundError)
    try:
        yield
    except errors.LocalEntryNotFoundError as error:  # derives from "missing", but stands for "cannot be reached"
        raise _unreachable(repository, error) from error
    except errors.GatedRepoError as error:
        text = "is on the hub for those only who were let in; ask there, then log in with `hf auth login`"
        raise InputError(text, file=repository, code="gated") from error
    except missing as error:
        text = f"is not on the hub, or not for everybody: {_first_line(error)}"
        raise InputError(text, file=repository, code="not_found") from error
    except _transport_errors() as error:
        raise _unreachable(repository, error) from error


def _transport_errors() -> tuple[type[Exception], ...]:
    """Of whichever HTTP library this version of huggingface_hub uses."""
    known = (("httpx2", "HTTPError"), ("httpx", "HTTPError"), ("requests", "RequestException"))
    return (OSError, *(getattr(sys.modules[module], name) for module, name in known if module in sys.modules))


def _unreachable(repository: str, error: Exception) -> ResourceError:
    return ResourceError(f"cannot be fetched: {_first_line(error)}", file=repository, code="download_failed")


def _first_line(error: Exception) -> str:
    return next((line.strip() for line in str(error).splitlines() if line.strip()), type(error).__name__)[:300]
