"""Every call to the system that some platform or filesystem lacks, each with a portable fallback.

`FAST = False` (or YARN_GGUF_PLAIN_IO=1) takes the fallbacks everywhere: that is how the tests run both ways.
Knows descriptors and offsets; nothing of GGUF.
"""

from __future__ import annotations

import errno
import functools
import os
import shutil
import struct
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Final

FAST: bool = os.environ.get("YARN_GGUF_PLAIN_IO") != "1"
BLOCK: Final = 4096  # what reflinks are aligned to on btrfs, xfs and apfs with usual settings
_FICLONERANGE: Final = 0x4020940D  # _IOW(0x94, 13, struct file_clone_range)
_PIECE: Final = 1 << 20
_LEAST_DIRECT: Final = 1 << 18  # bytes for which it is worth while to wait for the disk
_SYNC_WRITE: Final = 2  # SYNC_FILE_RANGE_WRITE: start, do not wait
# the C function that swaps two names: itself, what stands before each of the names, the flag that says "swap"
_SWAPS: Final[dict[str, tuple[str, tuple[int, ...], tuple[int, ...], int]]] = {
    "linux": ("renameat2", (-100,), (-100,), 2),  # AT_FDCWD; RENAME_EXCHANGE
    "darwin": ("renamex_np", (), (), 2),  # RENAME_SWAP
}

_seek_lock = threading.Lock()  # the fallbacks move a shared file position

# what "this filesystem or kernel cannot do that" looks like, where a plain copy still can
_UNSUPPORTED: Final = frozenset(
    {errno.EOPNOTSUPP, errno.ENOSYS, errno.EXDEV, errno.EINVAL, errno.ENOTTY, errno.EBADF, errno.EPERM, errno.ETXTBSY}
)


def pread(fd: int, count: int, offset: int) -> bytes:
    if FAST and hasattr(os, "pread"):
        return os.pread(fd, count, offset)
    with _seek_lock:
        os.lseek(fd, offset, os.SEEK_SET)
        return os.read(fd, count)


def pwrite(fd: int, data: bytes | memoryview, offset: int) -> None:
    """Writes all of `data`; a short write goes on where it stopped."""
    view = memoryview(data).cast("B")
    while view:
        if FAST and hasattr(os, "pwrite"):
            done = os.pwrite(fd, view, offset)
        else:
            with _seek_lock:
                os.lseek(fd, offset, os.SEEK_SET)
                done = os.write(fd, view)
        view, offset = view[done:], offset + done


def open_direct(path: Path) -> int | None:
    """A descriptor whose writes go past the system's cache; None where there is no such thing."""
    if not FAST or not hasattr(os, "O_DIRECT"):
        return None
    try:
        return os.open(path, os.O_WRONLY | os.O_DIRECT)
    except OSError as error:
        if error.errno not in _UNSUPPORTED:
            raise
        return None


def write_past_cache(direct: int, data: memoryview, offset: int) -> tuple[int, int]:
    """Writes the whole blocks in `data`, and says from where to where: what is left out is for `pwrite`.

    Nothing is written where the data does not lie in memory as it shall lie in the file, modulo the block, or where the
    device wants larger blocks. A byte costs a tenth of what it costs to put it into the cache, and waits for the disk.
    """
    begin = -offset % BLOCK
    end = begin + (len(data) - begin) // BLOCK * BLOCK if len(data) > begin else begin
    if end - begin < _LEAST_DIRECT or data.readonly or (_address(data) + begin) % BLOCK:
        return 0, 0
    done = begin
    try:
        while done < end:
            count = os.pwrite(direct, data[done:end], offset + done)
            done += count
            if count % BLOCK:
                break
    except OSError as error:
        if error.errno != errno.EINVAL:
            raise
    return begin, done


def _address(data: memoryview) -> int:
    import ctypes

    return ctypes.addressof(ctypes.c_char.from_buffer(data))


def copy_range(source: int, start: int, target: int, to: int, length: int) -> int:
    """Copies up to `length` bytes, in the kernel where it can; returns how many, fewer only at the source's end."""
    done = 0
    if FAST and hasattr(os, "copy_file_range"):
        try:
            while done < length:
                count = os.copy_file_range(source, target, length - done, start + done, to + done)
                if not count:
                    break  # the source's end, or a filesystem that says so instead of "unsupported"
                done += count
        except OSError as error:
            if error.errno not in _UNSUPPORTED:
                raise
    while done < length:
        data = pread(source, min(_PIECE, length - done), start + done)
        if not data:
            return done
        pwrite(target, data, to + done)
        done += len(data)
    return done


def clone_range(source: int, start: int, target: int, to: int, length: int) -> bool:
    """Shares `length` bytes' extents instead of copying them; False, and nothing done, where that cannot be had.

    Offsets and length must be multiples of the filesystem's block.
    """
    if not FAST or os.name != "posix":
        return False
    try:
        import fcntl

        fcntl.ioctl(target, _FICLONERANGE, struct.pack("=qQQQ", source, start, length, to))
    except (OSError, ImportError) as error:
        if isinstance(error, OSError) and error.errno not in _UNSUPPORTED:
            raise
        return False
    return True


def preallocate(fd: int, size: int) -> None:
    """Reserves the whole file at once: a full disk shows here, and delayed allocation has nothing left to decide."""
    if FAST and hasattr(os, "posix_fallocate"):
        try:
            os.posix_fallocate(fd, 0, size)
            return
        except OSError as error:
            if error.errno not in _UNSUPPORTED:
                raise
    os.ftruncate(fd, size)


def start_writing(fd: int, offset: int, length: int) -> None:
    """Lets the disk begin with a range that is complete, so that the last fsync has little left; never an error.

    Whole blocks only: one that is still to be completed would be written twice.
    """
    begin, end = -(-offset // BLOCK) * BLOCK, (offset + length) // BLOCK * BLOCK
    start = _sync_file_range() if FAST else None
    if start is not None and begin < end:
        start(fd, begin, end - begin, _SYNC_WRITE)


@functools.cache
def _sync_file_range() -> Callable[[int, int, int, int], int] | None:
    if sys.platform != "linux":
        return None
    import ctypes

    start = getattr(ctypes.CDLL(None), "sync_file_range", None)
    if start is None:
        return None
    start.argtypes = (ctypes.c_int, ctypes.c_int64, ctypes.c_int64, ctypes.c_uint)
    found: Callable[[int, int, int, int], int] = start
    return found


def sync_folder(folder: Path) -> None:
    """Makes a rename in `folder` durable; on Windows a folder cannot be opened, and the rename is journaled."""
    if os.name != "posix":
        return
    fd = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(fd)
    except OSError as error:
        if error.errno != errno.EINVAL:  # some network filesystems do not sync folders
            raise
    finally:
        os.close(fd)


def publish(temporary: Path, final: Path, *, overwrite: bool) -> None:
    """Gives a finished file its name in one step; without `overwrite` a file that appeared meanwhile is an error.

    What it replaces is kept under the temporary's name where the system can swap two names.
    """
    if overwrite:
        if not (os.path.lexists(final) and exchange(temporary, final)):
            temporary.replace(final)
        return
    try:
        if not FAST:
            raise OSError(errno.ENOSYS, "fast path off")
        os.link(temporary, final)  # the one portable rename that refuses to replace
        temporary.unlink()
        return
    except OSError as error:
        if error.errno not in _UNSUPPORTED | {errno.EMLINK, errno.EACCES}:
            raise
        if os.path.lexists(final):
            raise FileExistsError(errno.EEXIST, "exists", str(final)) from error
    temporary.replace(final)


def exchange(one: Path, other: Path) -> bool:
    """Swaps two names in one step; False, and nothing done, where that cannot be had."""
    if not FAST or sys.platform not in _SWAPS:
        return False
    import ctypes

    name, before, between, flag = _SWAPS[sys.platform]
    swap = getattr(ctypes.CDLL(None, use_errno=True), name, None)
    if swap is None:
        return False
    if swap(*before, os.fsencode(one), *between, os.fsencode(other), flag) == 0:
        return True
    error = ctypes.get_errno()
    if error in _UNSUPPORTED | {errno.ENOENT}:
        return False
    raise OSError(error, os.strerror(error), str(other))


def free_space(folder: Path) -> int:
    return shutil.disk_usage(folder).free
