"""The sandbox's allow list of system calls, compiled to a seccomp filter in classic BPF.

The filter allows listed calls and refuses the rest, so a call added by a future kernel is refused until someone reviews
it. The list covers what a single Python thread needs to compute and read files. No listed call creates a process or
thread, uses the network, mounts, traces, or makes, renames or removes files; `open` could create one, but the sandbox's
file system is read-only. Refused calls return ENOSYS, which makes C libraries fall back to older calls.
"""

import errno
import struct
from collections.abc import Mapping

# Call numbers on x86_64 and aarch64 (None: aarch64 lacks the call), from the kernel's asm/unistd_64.h and
# asm-generic/unistd.h.
CALLS: Mapping[str, tuple[int, int | None]] = {
    # Using open files, and opening files to read.
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
    # Clocks, randomness, and signals to itself.
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
    # Its own identity and limits.
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
    # Process start, locks and exit in the C library.
    "execve": (59, 221),  # bubblewrap uses it to start Python under the filter; the sandbox has no other executable
    "arch_prctl": (158, None),
    "futex": (202, 98),
    "rseq": (334, 293),
    "set_robust_list": (273, 99),
    "set_tid_address": (218, 96),
    "exit": (60, 93),
    "exit_group": (231, 94),
}
IOCTL = (16, 29)
IOCTL_COMMANDS = (0x5401, 0x5451)  # TCGETS (isatty) and FIOCLEX (close on exec)

# Audit architecture (linux/audit.h), and the machine's column in CALLS.
MACHINES: Mapping[str, tuple[int, int]] = {"x86_64": (0xC000003E, 0), "aarch64": (0xC00000B7, 1)}

_LOAD, _JUMP_IF_EQUAL, _RETURN = 0x20, 0x15, 0x06  # BPF_LD|BPF_W|BPF_ABS, BPF_JMP|BPF_JEQ|BPF_K, BPF_RET|BPF_K
_NUMBER, _ARCHITECTURE, _SECOND_ARGUMENT = 0, 4, 24  # offsets in struct seccomp_data; the low half (little-endian)
_ALLOW, _KILL, _REFUSE = 0x7FFF0000, 0x80000000, 0x00050000 | errno.ENOSYS


def make_filter(machine: str) -> bytes:
    """Builds the filter for a machine in the form `bwrap --seccomp` reads: an array of struct sock_filter.

    A call through another architecture's table (32-bit x86 on x86_64) kills the process. x86_64's x32 calls have bit 30
    set in their numbers, so none of them matches the list.

    Raises:
      KeyError: the machine is not in MACHINES.
    """
    architecture, column = MACHINES[machine]
    numbers = [number for calls in CALLS.values() if (number := calls[column]) is not None]
    # A match jumps forward to the final ALLOW; the offset counts the instructions to skip.
    ioctl_checks = [
        (_JUMP_IF_EQUAL, len(IOCTL_COMMANDS) - index, 0, command) for index, command in enumerate(IOCTL_COMMANDS)
    ]
    call_checks = [
        (_JUMP_IF_EQUAL, len(numbers) - index + len(ioctl_checks) + 2, 0, number)
        for index, number in enumerate(numbers)
    ]
    program = [
        (_LOAD, 0, 0, _ARCHITECTURE),
        (_JUMP_IF_EQUAL, 1, 0, architecture),
        (_RETURN, 0, 0, _KILL),
        (_LOAD, 0, 0, _NUMBER),
        *call_checks,
        (_JUMP_IF_EQUAL, 0, len(ioctl_checks) + 1, IOCTL[column]),
        (_LOAD, 0, 0, _SECOND_ARGUMENT),
        *ioctl_checks,
        (_RETURN, 0, 0, _REFUSE),
        (_RETURN, 0, 0, _ALLOW),
    ]
    return b"".join(struct.pack("=HBBI", *instruction) for instruction in program)
