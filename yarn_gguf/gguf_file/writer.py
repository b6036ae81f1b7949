"""Puts whole files in place, one or several together, or none of them.

    with staged(overwrite=…) as stage:
        stage.write(path, size, pieces)     # a temporary beside the final name
        stage.duplicate(path, source, stamp)
    stage.spread(paths, pieces)             # bytes for several of them, computed together
    …                                       # leaving the block: space checked, filled by pwrite, fsynced, renamed

Any exception, a signal's included, leaves the final names as they were and no temporary behind: files that have their
name already are taken back. Knows nothing of GGUF.
"""

from __future__ import annotations

import contextlib
import errno
import os
import secrets
import stat
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final, Literal

from yarn_gguf.errors import ResourceError, UsageError
from yarn_gguf.files import Stamp, changed, open_regular, stamp_of
from yarn_gguf.gguf_file import fs
from yarn_gguf.gguf_file.fill import Copy, Piece, Progress, Spread, Target, can_share, fill
from yarn_gguf.sizes import exact_size

_DEVICES: Final = (Path("/dev"), Path("/dev/fd"))  # /dev/stdout may lead to a file, and is none


def check_target(final: Path, inputs: Sequence[Path], *, overwrite: bool, option: str = "-o") -> None:
    """Refuses an output that is no place for a file; and one that exists, unless replacing it was asked for."""
    _check_length(final, option)
    if not final.parent.is_dir():
        raise UsageError("its folder does not exist; create it first", file=final, code="no_folder")
    if final.is_dir():
        raise UsageError("is a folder; name a file", file=final, code="output_is_folder")
    if (final.exists() and not final.is_file()) or final.parent.resolve() in _DEVICES:
        raise UsageError("is a device or a pipe; name a file", file=final, code="output_is_special")
    if overwrite or not os.path.lexists(final):
        return
    if final.exists() and any(final.samefile(one) for one in inputs):
        raise UsageError("is the input itself; use --in-place, or another name", file=final, code="output_is_input")
    what = "is a symbolic link" if final.is_symlink() else "exists"
    raise UsageError(f"{what}; --force replaces it", file=final, code="output_exists")


def _check_length(final: Path, option: str) -> None:
    """Refuses a name that only the system can tell to be too long."""
    try:
        final.lstat()
    except OSError as error:
        if error.errno == errno.ENAMETOOLONG:
            text = f"its name is too long for this filesystem; name a shorter one with {option}"
            raise UsageError(text, file=final, code="name_too_long") from error


@dataclass
class _Output:
    """One file on its way to its final name."""

    final: Path
    temporary: Path
    size: int
    pieces: Sequence[Piece] = ()
    shared: bool = False  # its copied bytes share extents with their source
    complete: bool = False  # there is nothing to fill: it is a hard link
    identity: tuple[int, int] = (0, 0)  # device and inode, once it is about to be renamed
    replaces: bool = False  # something has its final name


@dataclass
class Stage:
    """Temporaries that wait for their bytes and their names."""

    overwrite: bool
    jobs: int
    progress: Progress
    first_leads: bool = False  # part 1 takes its name before the others, not after them
    outputs: list[_Output] = field(default_factory=list)
    together: list[tuple[Sequence[Path], Iterable[Spread]]] = field(default_factory=list)
    complete: bool = False  # all have their names

    def write(self, final: Path, size: int, pieces: Sequence[Piece]) -> bool:
        """Plans the file that will be `final`; says whether its copied bytes will share extents with their source."""
        output = self._create(final, size)
        output.pieces = pieces
        with _explained(final, size), _opened(output.temporary) as fd:
            output.shared = can_share(fd, pieces)
        return output.shared

    def spread(self, finals: Sequence[Path], pieces: Iterable[Spread]) -> None:
        """Plans what fills several files, which `write` has planned, besides their own pieces: by their number here."""
        self.together.append((finals, pieces))

    def duplicate(self, final: Path, source: Path, stamp: Stamp) -> Literal["shared", "hard-linked", "copied"]:
        """Plans the same file under another name: by shared extents, else as a hard link, else as a copy."""
        if self.write(final, stamp.size, [Copy(source, stamp, 0, stamp.size, 0)]):
            return "shared"
        return "hard-linked" if _link(self.outputs[-1], source, stamp) else "copied"

    def adopt(self, final: Path, made: Path) -> None:
        """Plans a file that is finished already, somewhere else, under its final name."""
        with open_regular(made) as file:
            stamp = stamp_of(file.fileno())
        self.duplicate(final, made, stamp)

    def _create(self, final: Path, size: int) -> _Output:
        output = _Output(final, _temporary(final), size)
        self.outputs.append(output)  # before there is a file that somebody must remove
        with _explained(final, size):
            flags = os.O_RDWR | os.O_CREAT | os.O_EXCL | getattr(os, "O_BINARY", 0)
            os.close(os.open(output.temporary, flags, 0o666))
        return output

    def keep_mode(self, final: Path, like: Path) -> None:
        """Gives what will be `final` the permissions of `like`, and its owner where we may."""
        temporary, info = self._output(final).temporary, like.stat()
        if hasattr(os, "chown"):
            with contextlib.suppress(OSError):
                os.chown(temporary, info.st_uid, info.st_gid)
        temporary.chmod(stat.S_IMODE(info.st_mode))

    def _output(self, final: Path) -> _Output:
        return next(output for output in self.outputs if output.final == final)

    def fill(self) -> None:
        """Writes and syncs all bytes; the room for all of them is there before the first one is written."""
        check_space((each.final, each.size) for each in self.outputs if not (each.shared or each.complete))
        among = {final for finals, _ in self.together for final in finals}
        for output in self.outputs:
            if not output.complete:
                with _explained(output.final, output.size):
                    self._fill(output, sync=output.final not in among)
        for finals, pieces in self.together:
            self._fill_together([self._output(final) for final in finals], pieces)

    def _fill(self, output: _Output, *, sync: bool) -> None:
        with _opened(output.temporary) as fd:
            if output.shared:
                os.ftruncate(fd, output.size)
            else:
                fs.preallocate(fd, output.size)
            with _target(output, fd) as target:
                fill([target], output.pieces, self.jobs, self.progress, shared=output.shared)
            if sync:
                os.fsync(fd)

    def _fill_together(self, outputs: Sequence[_Output], pieces: Iterable[Spread]) -> None:
        """Errors are about the first: which file it was that could not be written, nobody says."""
        size = sum(output.size for output in outputs)
        with contextlib.ExitStack() as stack:
            stack.enter_context(_explained(outputs[0].final, size))
            fds = [stack.enter_context(_opened(output.temporary)) for output in outputs]
            pairs = zip(outputs, fds, strict=True)
            fill([stack.enter_context(_target(*pair)) for pair in pairs], pieces, self.jobs, self.progress)
            for fd in fds:
                os.fsync(fd)

    def publish(self) -> None:
        """Renames all, each rename on disk before the next. A new set is complete, or lacks its first part."""
        for folder in {output.final.parent for output in self.outputs}:
            with _explained(folder, 0):
                fs.sync_folder(folder)  # one that cannot be synced shows before anything has changed
        for output in self.outputs if self.first_leads else reversed(self.outputs):
            with _explained(output.final, output.size):
                self._rename(output)
                fs.sync_folder(output.final.parent)
        self.complete = True

    def _rename(self, output: _Output) -> None:
        info = output.temporary.lstat()
        output.identity, output.replaces = (info.st_dev, info.st_ino), os.path.lexists(output.final)
        try:
            fs.publish(output.temporary, output.final, overwrite=self.overwrite)
        except FileExistsError as error:
            text = "appeared meanwhile; --force replaces it"
            raise UsageError(text, file=output.final, code="output_exists") from error

    def discard(self) -> None:
        """Takes back the names that were given, unless all were, and removes the temporaries. Can be done twice."""
        for output in self.outputs:
            if self.complete:
                output.temporary.unlink(missing_ok=True)
                continue
            _take_back(output)
            with contextlib.suppress(OSError):  # what went wrong before this is what must be told
                output.temporary.unlink(missing_ok=True)


@contextlib.contextmanager
def staged(
    *,
    overwrite: bool,
    jobs: int = 0,
    progress: Progress = lambda _: None,
    confirm: Callable[[], None] = lambda: None,
    first_leads: bool = False,
) -> Iterator[Stage]:
    """Files planned inside are written and take their names together at the end of the block, or not at all.

    `confirm` is called when all bytes are there: it raises if they must not get their names after all.
    """
    stage = Stage(overwrite, jobs or os.cpu_count() or 1, progress, first_leads)
    try:
        yield stage
        stage.fill()
        confirm()
        stage.publish()
    finally:
        try:
            stage.discard()
        except BaseException:  # a signal that came only now
            stage.discard()
            raise


def _temporary(final: Path) -> Path:
    """A name that no other run has, and that says whose it is should power fail."""
    start = os.fsencode(final.name)[:200].decode("utf-8", "ignore")  # the system's limit is in bytes
    return final.with_name(f".{start}.{secrets.token_hex(4)}.yarn-gguf-tmp")


def _take_back(output: _Output) -> None:
    """Undoes a rename: what was replaced lies under the temporary's name. Where it could not be kept, nothing is done:
    the new file, which is whole, stays."""
    with contextlib.suppress(OSError):
        info = output.final.lstat()
        if (info.st_dev, info.st_ino) != output.identity:
            return
        if not output.replaces:
            output.final.unlink()
        elif output.temporary.exists():
            fs.exchange(output.temporary, output.final)


def _link(output: _Output, source: Path, stamp: Stamp) -> bool:
    """Puts a hard link of `source` in the temporary's place; False where the filesystem cannot."""
    output.temporary.unlink()
    try:
        os.link(source.resolve(), output.temporary)  # resolved: the link of a symbolic link may lead nowhere
        with open_regular(output.temporary) as file:
            if stamp_of(file.fileno()) != stamp:
                raise changed(source)
    except OSError:
        os.close(os.open(output.temporary, os.O_RDWR | os.O_CREAT, 0o666))
        return False
    output.complete = True
    return True


@contextlib.contextmanager
def _opened(temporary: Path) -> Iterator[int]:
    fd = os.open(temporary, os.O_RDWR | getattr(os, "O_BINARY", 0))
    try:
        yield fd
    finally:
        os.close(fd)


@contextlib.contextmanager
def _target(output: _Output, fd: int) -> Iterator[Target]:
    direct = fs.open_direct(output.temporary)
    try:
        yield Target(fd, direct)
    finally:
        if direct is not None:
            os.close(direct)


@contextlib.contextmanager
def _explained(final: Path, size: int) -> Iterator[None]:
    """Turns the system's errors into one line about `final`."""
    try:
        yield
    except OSError as error:
        text = f"cannot be written: {error.strerror or error}"
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            text += f"; needs {exact_size(size)}, free {exact_size(fs.free_space(final.parent))} in its folder"
        if error.errno == errno.EFBIG:
            text += f"; needs {exact_size(size)}, and the limit on a file's size (ulimit -f) is lower"
        raise ResourceError(text, file=final, code="write_failed") from error


def check_space(sizes: Iterable[tuple[Path, int]]) -> None:
    """All outputs together must fit; each folder counts for itself, as they may be on several filesystems."""
    folders: dict[Path, list[tuple[Path, int]]] = {}
    for final, size in sizes:
        folders.setdefault(final.parent, []).append((final, size))
    for folder, here in folders.items():
        needed, free = sum(size for _, size in here), fs.free_space(folder)
        if needed > free:
            what = f"needs {exact_size(needed)}, free {exact_size(free)} in its folder"
            raise ResourceError(f"{what}; make room or name another folder", file=here[0][0], code="no_space")
