"""The system calls that a model's program may make: a filter for the kernel, put together as classic BPF.

The filter is a list of what is allowed, not of what is forbidden: a call that a future kernel adds is refused until
somebody has thought about it. What is allowed is what one Python thread needs to compute and to read. No process and
no thread is ever made, nothing is opened to the network, mounted, traced, signalled across processes or created in a
file system. A refused call says ENOSYS, which is what C libraries fall back from.
"""

import errno
import struct
from collections.abc import Mapping

# name: its number on x86_64 and on aarch64 (None: there is none), from the kernel's asm/unistd_64.h and
# asm-generic/unistd.h.
CALLS: Mapping[str, tuple[int, int | None]] = {
    # Files that are open already, and reading others.
    "read": (0, 63),
    "write": (1, 64),
    "readv": (19, 65),
    "writev": (20, 66),
    "pread64": (17, 67),
    "lseek": (8, 62),
    "open": (2, None),
    "openat": (257, 56),
    "close": (3, 57),
    "dup": (32, 23),
    "dup2": (33, None),
    "dup3": (292, 24),
    "fcntl": (72, 25),
    "stat": (4, None),
    "lstat": (6, None),
    "fstat": (5, 80),
    "newfstatat": (262, 79),
    "statx": (332, 291),
    "access": (21, None),
    "faccessat": (269, 48),
    "faccessat2": (439, 439),
    "readlink": (89, None),
    "readlinkat": (267, 78),
    "getdents64": (217, 61),
    "getcwd": (79, 17),
    "select": (23, None),
    "pselect6": (270, 72),
    "poll": (7, None),
    "ppoll": (271, 73),
    # Memory.
    "brk": (12, 214),
    "mmap": (9, 222),
    "mprotect": (10, 226),
    "mremap": (25, 216),
    "munmap": (11, 215),
    "madvise": (28, 233),
    # Time, chance, and its own signals.
    "clock_gettime": (228, 113),
    "clock_getres": (229, 114),
    "clock_nanosleep": (230, 115),
    "gettimeofday": (96, 169),
    "nanosleep": (35, 101),
    "time": (201, None),
    "times": (100, 153),
    "alarm": (37, None),
    "getitimer": (36, 102),
    "setitimer": (38, 103),
    "getrandom": (318, 278),
    "rt_sigaction": (13, 134),
    "rt_sigprocmask": (14, 135),
    "rt_sigreturn": (15, 139),
    "restart_syscall": (219, 128),
    "sigaltstack": (131, 132),
    "tgkill": (234, 131),
    # What it is.
    "getpid": (39, 172),
    "gettid": (186, 178),
    "getppid": (110, 173),
    "getpgrp": (111, None),
    "getpgid": (121, 155),
    "getsid": (124, 156),
    "getuid": (102, 174),
    "geteuid": (107, 175),
    "getgid": (104, 176),
    "getegid": (108, 177),
    "getgroups": (115, 158),
    "getresuid": (118, 148),
    "getresgid": (120, 150),
    "uname": (63, 160),
    "getrusage": (98, 165),
    "getrlimit": (97, 163),
    "prlimit64": (302, 261),
    "sched_getaffinity": (204, 123),
    "sched_yield": (24, 124),
    # How C programs start, lock and end.
    "execve": (59, 221),  # bubblewrap starts Python with it after the filter is in force; there is no other program
    "arch_prctl": (158, None),
    "futex": (202, 98),
    "rseq": (334, 293),
    "set_robust_list": (273, 99),
    "set_tid_address": (218, 96),
    "exit": (60, 93),
    "exit_group": (231, 94),
}
IOCTL = (16, 29)
IOCTL_COMMANDS = (0x5401, 0x5451)  # TCGETS: is it a terminal; FIOCLEX: close it on exec

# The kernel's names for the machines (linux/audit.h), and the column of the table.
MACHINES: Mapping[str, tuple[int, int]] = {"x86_64": (0xC000003E, 0), "aarch64": (0xC00000B7, 1)}

_LOAD, _JUMP_IF_EQUAL, _RETURN = 0x20, 0x15, 0x06  # BPF_LD|BPF_W|BPF_ABS, BPF_JMP|BPF_JEQ|BPF_K, BPF_RET|BPF_K
_NUMBER, _MACHINE, _SECOND_ARGUMENT = 0, 4, 24  # where they stand in struct seccomp_data; little-endian: the low half
_ALLOW, _KILL, _REFUSE = 0x7FFF0000, 0x80000000, 0x00050000 | errno.ENOSYS


def make_filter(machine: str) -> bytes:
    """The filter for a machine, as `bwrap --seccomp` reads it: an array of struct sock_filter.

    A call from another machine's table (32-bit x86 on x86_64) kills the process. The x32 calls of x86_64 have numbers
    of their own, with bit 30 set, so that none is on the list.

    Raises:
      KeyError: we do not know the machine's calls.
    """
    audit, column = MACHINES[machine]
    numbers = [number for calls in CALLS.values() if (number := calls[column]) is not None]
    # From here on, each comparison jumps to the ALLOW at the end: so many steps forward.
    commands = [(_JUMP_IF_EQUAL, len(IOCTL_COMMANDS) - index, 0, k) for index, k in enumerate(IOCTL_COMMANDS)]
    listed = [
        (_JUMP_IF_EQUAL, len(numbers) - index + len(commands) + 2, 0, number) for index, number in enumerate(numbers)
    ]
    program = [
        (_LOAD, 0, 0, _MACHINE),
        (_JUMP_IF_EQUAL, 1, 0, audit),
        (_RETURN, 0, 0, _KILL),
        (_LOAD, 0, 0, _NUMBER),
        *listed,
        (_JUMP_IF_EQUAL, 0, len(commands) + 1, IOCTL[column]),
        (_LOAD, 0, 0, _SECOND_ARGUMENT),
        *commands,
        (_RETURN, 0, 0, _REFUSE),
        (_RETURN, 0, 0, _ALLOW),
    ]
    return b"".join(struct.pack("=HBBI", *step) for step in program)
