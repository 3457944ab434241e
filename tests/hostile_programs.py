"""Programs that attack the sandbox, and how each may end."""

# A program prints "harm" if its attack succeeds. {file}, {folder}, {home}, {shm}, {port}, {pid}, {parent} and {project}
# stand for targets outside the sandbox. A refused call raises an exception, so the outcome is "error" unless
# EXPECTED_KINDS says otherwise.
HOSTILE = {
    # The network.
    "socket": "import socket; socket.create_connection(('127.0.0.1', {port})); print('harm')",
    "udp": "import socket; socket.socket(2, 2).sendto(b'x', ('127.0.0.1', {port})); print('harm')",
    "url": "import urllib.request; urllib.request.urlopen('http://127.0.0.1:{port}', timeout=1); print('harm')",
    "dns": "import socket; print('harm', socket.gethostbyname('localhost'))",
    "raw_socket": "import ctypes; s = ctypes.CDLL(None).socket(2, 1, 0); assert s >= 0; print('harm')",
    "unix_socket": "import socket; socket.socket(1, 1).connect('{folder}/socket'); print('harm')",
    "bind": "import socket; s = socket.socket(); s.bind(('', 0)); s.listen(); print('harm')",
    # Host files.
    "read_file": "print(open('{file}').read(), 'harm')",
    "read_home": "print(open('{home}/secret').read(), 'harm')",
    "read_shm": "print(open('{shm}').read(), 'harm')",
    "list_home": "import os; print(os.listdir('{home}'), 'harm')",
    "ssh": "import os; print(os.listdir(os.path.expanduser('~/.ssh')), 'harm')",
    "passwd": "print(open('/etc/passwd').read(), 'harm')",
    "shadow": "print(open('/etc/shadow').read(), 'harm')",
    "project": "print(open('{project}').read(), 'harm')",
    "site_packages": "import numpy; print('harm')",
    "walk": """
import os
for top, folders, files in os.walk('/'):
    for name in files:
        if name in ('secret', os.path.basename('{shm}')):
            print('harm', top, name, flush=True)
""",
    "symlink": "import os; os.symlink('{file}', '/dev/link'); print(open('/dev/link').read(), 'harm')",
    "dots": "print(open('/usr/lib/../../' + '{file}').read(), 'harm')",
    "old_root": "import os; print(os.listdir('/oldroot'), os.listdir('/newroot'), 'harm')",
    "chroot_out": "import os; os.chroot('/dev'); print('harm')",
    "handle": "import ctypes; assert ctypes.CDLL(None).open_by_handle_at(0, 0, 0) >= 0; print('harm')",
    # Other processes and their memory.
    "environ_of_1": "print(open('/proc/1/environ').read(), 'harm')",
    "own_memory": "open('/proc/self/mem', 'r+b'); print('harm')",
    "other_root": "import glob; names = glob.glob('/proc/*/root/*'); assert names; print('harm', names)",
    "descriptors": "import os; print('harm', os.listdir('/proc/self/fd'))",
    "environment": "import os; print(os.environ); assert 'WITNESS' in os.environ; print('harm')",
    "processes": "import os; names = [n for n in os.listdir('/proc') if n.isdigit()]; print('harm')",
    "kill_all": "import os; os.kill(-1, 9); print('harm')",
    "kill_parent": "import os; os.kill(os.getppid(), 9); print('harm')",
    "kill_victim": "import os; os.kill({pid}, 9); print('harm')",
    "kill_checker": "import os; os.kill({parent}, 9); print('harm')",
    "ptrace": "import ctypes; assert ctypes.CDLL(None).ptrace(16, {pid}, 0, 0) == 0; print('harm')",
    "signal_thread": "import ctypes; assert ctypes.CDLL(None).syscall(234, 1, 1, 9) == 0; import time; time.sleep(9)",
    "priority": "import os; os.setpriority(0, {pid}, 19); print('harm')",
    # Writing.
    "write_file": "open('{file}', 'w').write('harm'); print('harm')",
    "write_folder": "open('{folder}/new', 'w').write('harm'); print('harm')",
    "write_usr": "open('/usr/lib/harm', 'w'); print('harm')",
    "write_root": "open('/harm', 'w'); print('harm')",
    "write_etc": "open('/etc/harm', 'w'); print('harm')",
    "write_tmp": "import tempfile; tempfile.TemporaryFile(); print('harm')",
    "write_shm": "open('/dev/shm/harm', 'w'); print('harm')",
    "write_dev": "open('/dev/harm', 'w'); print('harm')",
    "write_library": "import os; open(os.__file__, 'a'); print('harm')",
    "many_files": "import os; [os.mkdir(f'/dev/{{n}}') for n in range(10**6)]; print('harm')",
    "device": "import os; os.mknod('/dev/sda', 0o60600, os.makedev(8, 0)); print('harm')",
    "chmod": "import os; os.chmod('/dev/null', 0); print('harm')",
    "huge_stdin": "import os; sum(os.write(0, b'x' * 2**20) for _ in range(9)) > 2**20 and print('harm')",
    "sparse": "import os; os.ftruncate(1, 2**40); print('harm')",
    # Processes and threads.
    "fork_bomb": "import os\nwhile True: os.fork()\n",
    "subprocess": "import subprocess; subprocess.run(['/bin/sh', '-c', 'echo harm'])\n",
    "system": "import os; os.system('echo harm') == 0 or 1 / 0",
    "multiprocessing": "from multiprocessing import *; get_context('fork').Process(None, print, '', 'harm').start()",
    "spawn": "import os; os.posix_spawn('/bin/echo', ['echo', 'harm'], {{}}); print('harm')",
    "daemon": "import os\nif os.fork() == 0:\n    os.setsid()\n    os.fork()\n    while True: pass\n",
    "thread_bomb": "import _thread, time\nwhile True: _thread.start_new_thread(time.sleep, (9,))\n",
    "exec_shell": "import os; os.execv('/bin/sh', ['sh', '-c', 'echo harm'])",
    "exec_again": """
import os, sys
os.execv(sys.executable, [sys.executable, '-S', '-c', 'import os; os.fork(); print("harm")'])
""",
    "exec_setuid": "import os; os.execv('/usr/bin/su', ['su']); print('harm')",
    "become_root": "import os; os.setuid(0); print('harm')",
    # Excessive time, memory and output.
    "loop": "while True: pass",
    "sleep": "import time; time.sleep(1000)",
    "sleep_deaf": "import signal, time\nfor n in (1, 2, 3, 15, 24): signal.signal(n, signal.SIG_IGN)\ntime.sleep(1000)",
    "loop_deaf": "import signal\nsignal.signal(24, signal.SIG_IGN)\nwhile True: pass",
    "power": "9**9**9",
    "regex": "import re; re.match('(a+)+$', 'a' * 60 + 'b')",
    "stdin": "import sys\nwhile True: sys.stdin.read()",
    "list": "x = []\nwhile True: x.append(bytes(10**7))",
    "text": "x = 'x' * 2**40",
    "mmap": "import mmap\nx = []\nwhile True: x.append(mmap.mmap(-1, 2**26))",
    "shared_memory": "from multiprocessing.shared_memory import *; SharedMemory(None, True, 2**20); print('harm')",
    "flood": "import os\nwhile True: os.write(1, b'x' * 65536)",
    "print_flood": "while True: print('x' * 9999)",
    "error_flood": "import os\nwhile True: os.write(2, b'x' * 65536)",
    "raise_limits": "import resource as r; r.setrlimit(r.RLIMIT_AS, (-1, -1)); print('harm')",
    "close_all": "import os, time; os.closerange(0, 100); time.sleep(1000)",
    "recursion": "import sys; sys.setrecursionlimit(10**9)\ndef f(): f()\nf()",
    "c_recursion": "x = ()\nfor _ in range(10**6): x = (x,)\nimport sys; sys.setrecursionlimit(10**9); hash(x)",
    "crash": "import ctypes; ctypes.string_at(0)",
    "abort": "import os; os.abort()",
    "exit": "import os; os._exit(3)",
    "raise": "raise ValueError",
    # The terminal.
    "inject_input": "import fcntl; fcntl.ioctl(0, 0x5412, b'x'); print('harm')",
    "terminal": "open('/dev/tty', 'w').write('harm'); print('harm')",
}
TIME, MEMORY = ("time limit",), ("memory limit", "killed")
EXPECTED_KINDS = {
    **dict.fromkeys(("loop", "sleep", "sleep_deaf", "loop_deaf", "power", "regex", "close_all", "error_flood"), TIME),
    **dict.fromkeys(("stdin", "signal_thread"), TIME),
    "list": (*MEMORY, *TIME),  # on a busy machine the time limit may come first
    "text": MEMORY,
    "mmap": ("error",),  # Python raises OSError
    **dict.fromkeys(("flood", "print_flood"), ("output limit",)),
    **dict.fromkeys(("crash", "abort"), ("killed",)),
    "c_recursion": ("killed", *TIME),
    "recursion": ("error", "killed", "memory limit", "time limit"),  # depends on Python's version: 3.11 uses no C stack
    **dict.fromkeys(("walk",), ("done", "time limit")),
}
