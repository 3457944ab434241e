"""The seccomp filter: by an interpreter of its BPF program, and by system calls made inside the sandbox."""

import os
import platform
import re
import struct
from pathlib import Path

import pytest
from code_checker import sandbox_error

from tpt_jax.checks.code.sandbox import Outcome, run
from tpt_jax.checks.code.seccomp import CALLS, IOCTL, IOCTL_COMMANDS, MACHINES, make_filter

ALLOW, REFUSE, KILL = 0x7FFF0000, 0x00050026, 0x80000000  # linux/seccomp.h; REFUSE returns ENOSYS

needs_sandbox = pytest.mark.skipif(bool(sandbox_error()), reason=sandbox_error())
needs_x86 = pytest.mark.skipif(platform.machine() != "x86_64", reason="uses x86_64 machine code and call numbers")

# x86_64 numbers of calls that must be refused; Python has no functions for most of them.
FORBIDDEN = {
    **{"clone": 56, "fork": 57, "vfork": 58, "clone3": 435, "execveat": 322, "unshare": 272, "setns": 308},
    **{"mount": 165, "umount2": 166, "pivot_root": 155, "fsopen": 430, "move_mount": 429, "open_tree": 428},
    **{"mount_setattr": 442, "ptrace": 101, "process_vm_readv": 310, "process_vm_writev": 311, "kcmp": 312},
    **{"pidfd_open": 434, "pidfd_getfd": 438, "kill": 62, "tkill": 200, "memfd_create": 319, "memfd_secret": 447},
    **{"io_uring_setup": 425, "io_uring_enter": 426, "bpf": 321, "perf_event_open": 298, "userfaultfd": 323},
    **{"keyctl": 250, "add_key": 248, "request_key": 249, "socket": 41, "socketpair": 53, "connect": 42, "sendmsg": 46},
    **{"shmget": 29, "msgget": 68, "semget": 64, "mq_open": 240, "init_module": 175, "finit_module": 313},
    **{"kexec_load": 246, "reboot": 169, "open_by_handle_at": 304, "fanotify_init": 300, "inotify_init1": 294},
    **{"prctl": 157, "seccomp": 317, "personality": 135, "modify_ldt": 154, "iopl": 172, "chroot": 161},
    **{"setuid": 105, "capset": 126, "sethostname": 170, "settimeofday": 164, "swapon": 167, "openat2": 437},
    **{"mkdir": 83, "mknod": 133, "unlink": 87, "rename": 82, "symlink": 88, "link": 86, "truncate": 76},
    "x32_getpid": 0x40000000 + 39,
}


@needs_sandbox
@needs_x86
def test_forbidden_calls_are_refused() -> None:
    program = f"""
import ctypes
call = ctypes.CDLL(None, use_errno=True).syscall
print([name for name, number in {FORBIDDEN}.items() if (call(number, 0, 0, 0, 0, 0), ctypes.get_errno()) != (-1, 38)])
print(call(39))
"""
    assert run(program) == Outcome("done", "[]\n1\n")


@needs_sandbox
@needs_x86
def test_32_bit_calls_kill_the_process() -> None:
    """The program calls getpid through the 32-bit table, whose numbers mean other calls in the 64-bit table."""
    program = """
import ctypes, mmap
page = mmap.mmap(-1, 4096, prot=7)
page.write({code})
print("before", flush=True)
ctypes.CFUNCTYPE(ctypes.c_int)(ctypes.addressof(ctypes.c_char.from_buffer(page)))()
print("after")
"""
    without_call = b"\xb8\x14\x00\x00\x00\xc3"  # mov eax, 20; ret
    with_call = b"\xb8\x14\x00\x00\x00\xcd\x80\xc3"  # mov eax, 20; int 0x80; ret
    assert run(program.format(code=without_call)) == Outcome("done", "before\nafter\n")
    assert run(program.format(code=with_call)) == Outcome("killed", "before\n")


def evaluate(program: bytes, architecture: int, number: int, argument: int = 0) -> int:
    """Interprets the three classic BPF instructions the filter uses, and returns its decision."""
    instructions = list(struct.iter_unpack("=HBBI", program))
    loaded, index = 0, 0
    while True:
        code, jump_if_equal, jump_otherwise, k = instructions[index]
        index += 1
        if code == 0x20:
            loaded = {0: number, 4: architecture, 24: argument & 0xFFFFFFFF}[k]
        elif code == 0x15:
            index += jump_if_equal if loaded == k else jump_otherwise
        else:
            assert code == 0x06
            return k


@pytest.mark.parametrize("machine", MACHINES)
def test_filter_allows_only_listed_calls(machine: str) -> None:
    architecture, column = MACHINES[machine]
    program = make_filter(machine)
    listed = {numbers[column] for numbers in CALLS.values()}
    for number in (*range(1000), *range(0x40000000, 0x40000400), 0xFFFFFFFF):
        assert evaluate(program, architecture, number) == (ALLOW if number in listed else REFUSE)
        assert evaluate(program, 0x40000003, number) == KILL
    for command in (*IOCTL_COMMANDS, 0x5412, 0x541C, 0):
        expected = ALLOW if command in (0x5401, 0x5451) else REFUSE
        assert evaluate(program, architecture, IOCTL[column], command) == expected


HEADERS = ("/usr/include/x86_64-linux-gnu/asm/unistd_64.h", "/usr/include/asm-generic/unistd.h")


@pytest.mark.skipif(not all(map(os.path.isfile, HEADERS)), reason="the kernel headers are not installed")
def test_call_numbers_match_the_kernel_headers() -> None:
    definition = re.compile(r"#define __NR(?:3264)?_(\w+)\s+(\d+)\b")
    x86_64, aarch64 = ({n: int(v) for n, v in definition.findall(Path(path).read_text())} for path in HEADERS)
    aarch64["newfstatat"] = aarch64["fstatat"]  # the generic header's name for it
    for name, numbers in {**CALLS, "ioctl": IOCTL}.items():
        assert numbers[0] == x86_64[name]
        assert numbers[1] == aarch64.get(name)
