"""Files that are written through their memory, on a disk that may be full."""

import ctypes
import errno
import mmap
import os

import numpy as np

_POPULATE_WRITE = 23
"""`MADV_POPULATE_WRITE` of linux/mman.h, since Linux 5.14; Python has no name for it."""
_COPY_ON_WRITE = {0x9123683E, 0xCA451A4E, 0x794C7630}
"""`statfs`' types of btrfs, bcachefs, and overlayfs, which may lie on one of them."""


def copies_on_write(descriptor: int) -> bool:
    """Whether what is written again to an open file may take new room: see `make_room`."""
    found = (ctypes.c_long * 64)()  # larger than `struct statfs`, whose first field is the type
    unknown = ctypes.CDLL(None).fstatfs(descriptor, ctypes.byref(found)) != 0
    return unknown or found[0] in _COPY_ON_WRITE


def make_room(part: memoryview) -> None:
    """Have the pages of a part of a mapped file ready to be written.

    A copy-on-write file system takes new room for a page that is written again. Where there is none
    this raises; without it the write would end the process (SIGBUS). It takes 50 ms a GB.

    Args:
        part: Of a `mmap`'s memory.

    Raises:
        OSError: `ENOSPC`.
    """
    memory = part.obj
    assert isinstance(memory, mmap.mmap)
    begin = _address(part) - _address(memoryview(memory))
    first = begin - begin % mmap.PAGESIZE
    try:
        memory.madvise(_POPULATE_WRITE, first, begin + part.nbytes - first)
    except OSError as error:
        if error.errno == errno.EFAULT:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC)) from error
        if error.errno != errno.EINVAL:  # an older kernel does not know it
            raise


def _address(memory: memoryview) -> int:
    return int(np.frombuffer(memory, np.uint8).ctypes.data)
