"""The faults of faults.py: kills, requests to stop, full disks, damaged files, mistakes, terminals, machines, hosts."""

import dataclasses
import random
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

Process = subprocess.Popen[bytes]
Start = Literal["new", "half", "done"]  # no folder, a run killed in its last round, a finished run

TPT = f"{shlex.quote(sys.executable)} -m tpt_jax"
RETURNS, FAILS, REFUSES, STOPS = frozenset({0}), frozenset({1}), frozenset({2}), frozenset({75})
KILLED = frozenset({-signal.SIGKILL})


@dataclasses.dataclass(frozen=True)
class Files:
    """What commands read: a scratch folder, and the config of the small run."""

    root: Path
    config: Path


def nothing(run_dir: Path) -> None:
    """Damages nothing."""


def wait_for_end(process: Process, run_dir: Path, log: Path) -> None:
    """Lets the command run."""


@dataclasses.dataclass(frozen=True)
class Fault:
    """Something that goes wrong while a command runs.

    Attributes:
      start: the state of the run's folder before.
      ends: the statuses that the command may end with; 0 with the same result as without the fault.
      arguments: further arguments of `tpt run`, which the repeated command lacks.
      shell: what runs the command, in bash; "{tpt}" stands for it, {folder} for the folder that the run's folder is in.
      environment: variables to set, or, with None, to remove; {root} is the scratch folder, {path} PYTHONPATH.
      damage: changes the run's folder before the command starts.
      interfere: does something to the process while it runs.
      room: kilobytes of the file system that the run's folder is on; None for the disk.
      says: beginnings of further lines on standard error that belong to the fault.
      ends_with: a part of the line that it ends with, besides the "tpt: " of all of them.
      hears: whether what the command says can be read.
      prefix: begins the name of the folder that the run's folder is in.
      verb: another command than `tpt run`: it must end as `ends` says, and is not repeated.
      is_short: whether the fault is one of the few that are injected in CI.
    """

    kind: str
    name: str
    start: Start = "new"
    ends: frozenset[int] = RETURNS
    arguments: Sequence[str] = ()
    shell: str = "exec {tpt}"
    environment: Mapping[str, str | None] = dataclasses.field(default_factory=dict)
    damage: Callable[[Path], None] = nothing
    interfere: Callable[[Process, Path, Path], None] = wait_for_end
    room: int | None = None
    says: tuple[str, ...] = ()
    ends_with: str = ""
    hears: bool = True
    prefix: str = "fault"
    verb: str = ""
    is_short: bool = False

    @property
    def num_hosts(self) -> int:
        return 2 if self.shell == TWO_HOSTS else 1

    @property
    def is_run(self) -> bool:
        return not self.verb

    def command(self, files: Files, run_dir: Path) -> list[str]:
        words = [
            word.format(folder=run_dir.parent, config=files.config, root=files.root) for word in shlex.split(self.verb)
        ]
        if self.is_run:
            words = ["run", "--config", str(files.config), "--run_dir", str(run_dir), *self.arguments]
        command = f"{TPT} {shlex.join(words)}"
        return [
            "bash",
            "-c",
            self.shell.replace("{tpt}", command).replace("{folder}", shlex.quote(str(run_dir.parent))),
        ]

    def without_fault(self) -> "Fault":
        """The same command, undisturbed."""
        if self.num_hosts == 1:
            return Fault(self.kind, self.name)
        return Fault(self.kind, self.name, shell=self.shell, environment=self.environment)


# Kills and requests to stop: when.

STAGES = (  # files that a run writes, in this order, and a part of the lines that it prints
    "rounds/000/questions.jsonl",
    "rounds/000/traces/evaluate-000-00000.jsonl",
    "checkpoints/000*/digests.json",
    "rounds/000/stages.json",
    "rounds/000/metrics.json",
    "report.html",
    "rounds/001/questions.jsonl",
    "rounds/001/traces/think-000-00000.jsonl",
    "rounds/001/traces/think-000-00002.jsonl",
    "rounds/001/training.jsonl",
    "rounds/001/training/2",
    "checkpoints/001.orbax-checkpoint-tmp*",
    "rounds/001/metrics.json",
    "rounds/002/training/2*",
    "checkpoints/002.orbax-checkpoint-tmp*",
    "rounds/002/metrics.json",
)


def send(numbers: Sequence[signal.Signals], *, at: str = "", says: str = "", seconds: float = 0.0) -> Callable:
    """Sends signals half a second apart once a file exists, or the command has said something, and seconds later.

    A later one is not sent to a process that the ones before have ended.
    """

    def interfere(process: Process, run_dir: Path, log: Path) -> None:
        while process.poll() is None and not (any(run_dir.glob(at)) if at else says in log.read_text(errors="replace")):
            time.sleep(0.01)
        time.sleep(seconds)
        for number in numbers:
            if process.poll() is None:
                process.send_signal(number)
                time.sleep(0.5)

    return interfere


def kills() -> Iterator[Fault]:
    for index, at in enumerate(STAGES):
        ends = KILLED | RETURNS  # the last files are written when the run is about to end
        yield Fault(
            "kill", f"at {at}", ends=ends, interfere=send([signal.SIGKILL], at=at), hears=False, is_short=index == 9
        )
    rng = random.Random(0)
    for seconds in sorted(round(rng.uniform(0, 6), 1) for _ in range(12)):
        interfere = send([signal.SIGKILL], says="sampler ready", seconds=seconds)
        yield Fault("kill", f"{seconds} s after the start", ends=KILLED | RETURNS, interfere=interfere, hears=False)
    yield Fault(
        "kill",
        "in the last round, resumed",
        start="half",
        ends=KILLED | RETURNS,
        interfere=send([signal.SIGKILL], at="rounds/002/training/2"),
        hears=False,
    )


def stops() -> Iterator[Fault]:
    term, hangup, interrupt = signal.SIGTERM, signal.SIGHUP, signal.SIGINT
    early = STOPS | {-term}  # before Python has begun to listen, the signal itself ends the process
    for seconds in (0.3, 1.5, 4.0):
        yield Fault(
            "stop", f"SIGTERM after {seconds} s", ends=early, interfere=send([term], seconds=seconds), hears=False
        )
    for seconds in (0.0, 0.7, 1.5):
        interfere = send([term], says="compiling", seconds=seconds)
        yield Fault("stop", f"SIGTERM {seconds} s into the compilation", ends=STOPS, interfere=interfere)
    for index, at in enumerate((*STAGES[1:3], *STAGES[7:12])):
        yield Fault("stop", f"SIGTERM at {at}", ends=STOPS, interfere=send([term], at=at), is_short=index == 4)
    yield Fault("stop", "SIGTERM twice", ends=STOPS, interfere=send([term, term], at=STAGES[8]))
    yield Fault("stop", "SIGTERM twice in training", ends=STOPS, interfere=send([term, term], at=STAGES[10]))
    yield Fault("stop", "SIGHUP while sampling", ends=STOPS, interfere=send([hangup], at=STAGES[7]), is_short=True)
    yield Fault("stop", "SIGHUP while training", ends=STOPS, interfere=send([hangup], at=STAGES[10]))
    yield Fault("stop", "SIGHUP under nohup", shell="trap '' HUP; exec {tpt}", interfere=send([hangup], at=STAGES[7]))
    interrupted = frozenset({130})
    yield Fault("stop", "Ctrl-C while sampling", ends=interrupted, interfere=send([interrupt], at=STAGES[7]))
    yield Fault("stop", "Ctrl-C while training", ends=interrupted, interfere=send([interrupt], at=STAGES[10]))
    yield Fault("stop", "Ctrl-C while compiling", ends=interrupted, interfere=send([interrupt], says="compiling"))


# Disks.

SIZES = (200, 208, 240, 400, 800, 1600, 1900, 2100, 2400, 3000, 4000, 6000, 8000, *range(10_000, 17_000, 1000))


def disks() -> Iterator[Fault]:
    for size in SIZES:
        yield Fault("disk", f"{size:,} kB", ends=FAILS | RETURNS, room=size, says=SPACE, is_short=size in (200, 3000))
    for at in (STAGES[0], STAGES[7], STAGES[10], STAGES[14]):
        yield Fault("disk", f"read-only from {at} on", ends=FAILS | RETURNS, room=200_000, interfere=remount(at))
    yield Fault(
        "disk", "gone while training", ends=FAILS | REFUSES | RETURNS, interfere=remove_at(STAGES[10]), hears=True
    )
    for name in ("run", "run/checkpoints", "run/rounds/001"):
        yield Fault("disk", f"a file in place of {name}", ends=FAILS | REFUSES, damage=file_at(name))


SPACE = ("faults: ",)  # what the run says about the room that it will need


def remount(at: str) -> Callable[[Process, Path, Path], None]:
    """Makes the file system read-only once a file exists."""

    def interfere(process: Process, run_dir: Path, log: Path) -> None:
        send([], at=at)(process, run_dir, log)
        folder = str(run_dir.parent)
        while process.poll() is None:  # busy while a file is open for writing, unless forced
            done = subprocess.run(["mount", "-o", "remount,ro", folder], check=False, capture_output=True)
            if done.returncode == 0:
                break
            time.sleep(0.01)
        process.wait(300)
        subprocess.run(["mount", "-o", "remount,rw", folder], check=True)

    return interfere


def remove_at(at: str) -> Callable[[Process, Path, Path], None]:
    """Moves the run's folder away once a file exists, and back when the process has ended."""

    def interfere(process: Process, run_dir: Path, log: Path) -> None:
        send([], at=at)(process, run_dir, log)
        away = run_dir.with_name("away")
        run_dir.rename(away)
        process.wait(300)
        subprocess.run(["rm", "-rf", str(run_dir)], check=True)  # what was written there meanwhile
        away.rename(run_dir)

    return interfere


def file_at(name: str) -> Callable[[Path], None]:
    def damage(run_dir: Path) -> None:
        path = run_dir.parent / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("a file")

    return damage


# Damage to the files of a run that was killed in its last round.

NEEDED = (  # files without which the run cannot go on as it was, or that it makes again
    "rounds/001/training.jsonl",
    "rounds/001/stages.json",
    "rounds/001/metrics.json",
    "rounds/002/traces/think-000-00000.jsonl",
    "rounds/002/questions.jsonl",
    "checkpoints/001/config.json",
    "checkpoints/001/tokenizer.json",
    "checkpoints/001/training.json",
    "checkpoints/001/digests.json",
    "checkpoints/001/parameters/_METADATA",
    "checkpoints/001/parameters/_sharding",
    "checkpoints/001/parameters/manifest.ocdbt",
    "checkpoints/001/parameters/d/*",
    "checkpoints/001/parameters/ocdbt.process_0/manifest.ocdbt",
    "checkpoints/001/parameters/ocdbt.process_0/d/*",
    "checkpoints/001/_CHECKPOINT_METADATA",
    "config.yaml",
    "report.html",
    "tensorboard/*",
)
KEPT = (  # files of finished rounds that only figures and the report read; a missing one is gone
    "rounds/000/traces/evaluate-000-00000.jsonl",
    "rounds/000/metrics.json",
    "rounds/000/stages.json",
    "rounds/001/traces/think-000-00000.jsonl",
    "rounds/001/traces/evaluate-000-00000.jsonl",
    "rounds/001/questions.jsonl",
    "checkpoints/000/digests.json",
)


def flip(path: Path) -> None:
    """Flips a bit in the middle of a file."""
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


def cut(path: Path) -> None:
    """Leaves the first half of a file."""
    data = path.read_bytes()
    path.write_bytes(data[: len(data) // 2])


def remove(path: Path) -> None:
    path.unlink()


def damages() -> Iterator[Fault]:
    ends = RETURNS | FAILS | REFUSES
    for pattern in (*NEEDED, *KEPT):
        for change in (flip, cut, *([remove] if pattern in NEEDED else [])):
            is_short = (pattern, change) in ((NEEDED[0], flip), (NEEDED[12], flip), (NEEDED[1], cut), (NEEDED[3], flip))
            name = f"{change.__name__} {pattern}"
            damage = damage_file(pattern, change)
            yield Fault("damage", name, "half", ends, damage=damage, says=("round 1 trains again",), is_short=is_short)
    yield Fault("damage", "cut metrics.jsonl", "half", ends, damage=damage_file("metrics.jsonl", cut_last_line))


def damage_file(pattern: str, change: Callable[[Path], None]) -> Callable[[Path], None]:
    """Changes the largest file that fits the pattern."""

    def damage(run_dir: Path) -> None:
        change(max(run_dir.glob(pattern), key=lambda path: path.stat().st_size))

    return damage


def cut_last_line(path: Path) -> None:
    """What a process that was killed while it wrote leaves."""
    path.write_bytes(path.read_bytes()[:-10])


# Mistakes: one line, and the corrected command is not refused for what they left.

MISTAKES: Mapping[str, Sequence[str]] = {
    "a model that is not there": ("--model.path", "/nowhere"),
    "an unknown task": ("--task.name", "gsm9k"),
    "questions that are not there": ("--task.train", "nowhere.jsonl"),
    "an unknown checker": ("--task.checker", "numerical"),
    "an unknown step": ("--prune.steps", "correkt"),
    "a mesh that does not fit": ("--mesh.tensor", "3"),
    "slots that do not divide": ("--mesh.data", "1", "--think.num_slots", "0"),
    "prompts that do not fit": ("--think.max_prompt_tokens", "1"),
    "an unknown key": ("--think.num_sample", "4"),
    "a value of the wrong type": ("--train.rows", "many"),
    "more worked examples than there are": ("--prompt.num_shots", "9"),
    "a template that does not end a turn": ("--prompt.template", "{{ messages[0]['content'] }}"),
    "another seed": ("--seed", "4294967296"),
    "an attention that no device has": ("--train.attention", "flash"),
    "W&B without wandb or a login": ("--trackers.wandb", "p"),
}


def mistakes() -> Iterator[Fault]:
    for name, arguments in MISTAKES.items():
        yield Fault("mistake", name, ends=REFUSES, arguments=arguments, is_short=arguments[0] == "--model.path")
    yield Fault(
        "mistake", "a folder with something else", ends=REFUSES, damage=file_at("run/notes.txt"), shell=ELSEWHERE
    )
    yield Fault("mistake", "results of another config", "half", REFUSES, arguments=("--seed", "7"), is_short=True)
    for verb, name in (
        ("eval --config {config} --model /nowhere", "eval of a model that is not there"),
        ("sample --model quickstart --prompts nowhere.jsonl --output {folder}/out.jsonl", "sample without prompts"),
        ("sft --config {config} --model quickstart --traces nowhere.jsonl --output {folder}/out", "sft without traces"),
        ("export --checkpoint {folder}/nowhere --output {folder}/out", "export of nothing"),
        ("report {folder}/nowhere", "report on nothing"),
        ("prune --task gsm9k --questions a --traces b --output {folder}/c", "prune of an unknown task"),
        ("sweep --config {config} --vary train.rows= --sweep_dir {folder}/sweep", "a sweep that varies nothing"),
    ):
        yield Fault("mistake", name, ends=REFUSES, verb=verb)


ELSEWHERE = "{tpt}; status=$?; rm {folder}/run/notes.txt; exit $status"


# Two commands in one folder.


def start_another(seconds: float) -> Callable[[Process, Path, Path], None]:
    """Starts the same command again, which must be refused in one line."""

    def interfere(process: Process, run_dir: Path, log: Path) -> None:
        time.sleep(seconds)
        done = subprocess.run(process.args, capture_output=True, text=True, timeout=300, check=False)
        if done.returncode != 2 or "is in use by process" not in done.stderr or len(done.stderr.splitlines()) != 1:
            log.open("a").write(f"the second command: {done.returncode}: {done.stderr}\n")  # which fails this fault

    return interfere


def pairs() -> Iterator[Fault]:
    for seconds in (1.0, 2.5):
        yield Fault("two in one folder", f"{seconds} s apart", interfere=start_another(seconds), is_short=seconds == 1)
    yield Fault("two in one folder", "the lock of a dead process", "half", damage=file_at("run/lock"))


# Two hosts.

TWO_HOSTS = """port=$((20000 + $$ % 20000)); hosts="--mesh.data 2 --coordinator localhost:$port --num_processes 2"
{tpt} $hosts --process_id 1 & second=$!
{tpt} $hosts --process_id 0 & first=$!
wait $first; a=$?; wait $second; b=$?; exit $((a > b ? a : b))"""
GLOO = {
    "JAX_CPU_COLLECTIVES_IMPLEMENTATION": "gloo",
    "XLA_FLAGS": "--xla_backend_optimization_level=0 --xla_cpu_enable_concurrency_optimized_scheduler=false",
}
HOSTS = frozenset({1, 75, 128 + signal.SIGKILL, 128 + signal.SIGTERM, 128 + signal.SIGABRT})


def signal_hosts(number: signal.Signals, hosts: Sequence[int], at: str) -> Callable[[Process, Path, Path], None]:
    """Sends a signal to some of the hosts once a file exists."""

    def interfere(process: Process, run_dir: Path, log: Path) -> None:
        send([], at=at)(process, run_dir, log)
        for host in hosts:
            pattern = f"^[^ ]*python[0-9.]* -m tpt_jax run .*{run_dir} .*--process_id {host}"  # and not their shell
            subprocess.run(["pkill", f"-{number.value}", "-f", pattern], check=False)

    return interfere


def hosts() -> Iterator[Fault]:
    def two(name: str, interfere: Callable[[Process, Path, Path], None] = wait_for_end, **more: Any) -> Fault:
        return Fault(
            "two hosts",
            name,
            **{"ends": HOSTS, "shell": TWO_HOSTS, "environment": GLOO, "interfere": interfere, "hears": False, **more},
        )

    sampling, training, writing = STAGES[7], STAGES[10], STAGES[11]
    for host in (0, 1):
        for at in (sampling, training, writing):
            yield two(f"SIGKILL of host {host} at {at}", signal_hosts(signal.SIGKILL, [host], at))
    for at in (sampling, training):
        yield two(f"SIGTERM of both at {at}", signal_hosts(signal.SIGTERM, [0, 1], at))
        yield two(f"SIGHUP of host 1 at {at}", signal_hosts(signal.SIGHUP, [1], at))
    yield two("3,000 kB", room=3000)
    yield two("flip of a checkpoint", start="half", ends=RETURNS, damage=damage_file(NEEDED[12], flip))


# Terminals and machines. Those that only concern a process's streams or limits are tried on a cheaper command.

PRUNE = (
    "prune --task file --questions {root}/questions.jsonl --traces {root}/traces.jsonl --output {folder}/judged.jsonl"
)
TERMINAL = "script -qec '{tpt}' /dev/null </dev/null"
NOBODY = (
    "setpriv --reuid 12345 --regid 12345 --clear-groups --inh-caps +dac_read_search,+dac_override "
    "--ambient-caps +dac_read_search,+dac_override"
)
ODD_NAMES = {"spaces, quotes and scripts": "we ird '\"ü漢字🙂$x`;", "a line break": "new\nline"}
CLOCK = "import itertools, time\nnow, n = time.time(), itertools.count()\ntime.time = lambda: now - 3600 * next(n)\n"


@dataclasses.dataclass(frozen=True)
class Surroundings:
    """How a command is started, and how it must end then.

    Attributes:
      verbs: "run", and "prune", which takes no accelerator and few seconds.
      says: a part of the line on standard error, if it ends with another status than 0; "" where none can be read.
    """

    name: str
    verbs: Sequence[str]
    environment: Mapping[str, str | None]
    shell: str = "exec {tpt}"
    status: int = 0
    says: str = ""


def mounted(*commands: str) -> str:
    """The command with other file systems mounted, for itself only."""
    return f"unshare -m bash -c '{'; '.join(commands)}; {{tpt}}'"


RUN, BOTH, CHEAP = ("run",), ("run", "prune"), ("prune",)
GONE = "set -o pipefail; "
TERMINALS = (
    Surroundings("latin-1", BOTH, {"PYTHONIOENCODING": "latin-1"}),
    Surroundings("ascii", BOTH, {"PYTHONIOENCODING": "ascii"}),
    Surroundings("C locale, no UTF-8 mode", BOTH, {"LC_ALL": "C", "PYTHONUTF8": "0"}),
    Surroundings("unknown locale", CHEAP, {"LC_ALL": "xx_YY.UTF-8"}),
    Surroundings("stdout closed", BOTH, {}, "exec {tpt} >&-"),
    Surroundings("stderr closed", BOTH, {}, "exec {tpt} 2>&-"),
    Surroundings("all closed", BOTH, {}, "exec {tpt} <&- >&- 2>&-"),
    Surroundings("reader gone", BOTH, {}, GONE + "{tpt} | head -1"),
    Surroundings("both readers gone", BOTH, {}, GONE + "{tpt} 2>&1 | true"),
    Surroundings("stderr's reader gone", CHEAP, {}, GONE + "{tpt} 2>&1 >/dev/null | head -1"),
    Surroundings("unbuffered, readers gone", CHEAP, {"PYTHONUNBUFFERED": "1"}, GONE + "{tpt} 2>&1 | true"),
    Surroundings("stdout full, progress", RUN, {}, "{tpt} >/dev/full"),
    Surroundings("stdout full, results", CHEAP, {}, "{tpt} >/dev/full", 1, "tpt: standard output: No space left"),
    Surroundings("stderr full", BOTH, {}, "{tpt} 2>/dev/full"),
    Surroundings("both full", CHEAP, {}, "{tpt} >/dev/full 2>&1", 1),
    Surroundings("dumb terminal", BOTH, {"TERM": "dumb"}, TERMINAL),
    Surroundings("ascii terminal", CHEAP, {"TERM": "xterm", "PYTHONIOENCODING": "ascii"}, TERMINAL),
    Surroundings("terminal without color", CHEAP, {"TERM": "xterm", "NO_COLOR": "1"}, TERMINAL),
    Surroundings("40 columns", BOTH, {"COLUMNS": "40"}),
    Surroundings("0 columns", CHEAP, {"COLUMNS": "0"}),
)
MACHINES = (
    Surroundings("no HOME", CHEAP, {"HOME": None}),
    Surroundings("no passwd entry, no HOME", BOTH, {"HOME": None}, f"chmod -R 777 {{folder}}; {NOBODY} {{tpt}}"),
    Surroundings("HOME a file", RUN, {"HOME": "/dev/null"}),
    Surroundings("full home", RUN, {"HOME": "/mnt"}, mounted("mount -t tmpfs -o size=64k none /mnt")),
    Surroundings("read-only home", RUN, {"HOME": "/mnt"}, mounted("mount -t tmpfs -o ro none /mnt")),
    Surroundings("read-only shared memory", BOTH, {}, mounted("mount -t tmpfs -o ro none /dev/shm")),
    Surroundings(
        "full shared memory",
        BOTH,
        {},
        mounted("mount -t tmpfs -o size=4k none /dev/shm", "cp /bin/sh /dev/shm 2>/dev/null"),
    ),
    Surroundings("TMPDIR missing", BOTH, {"TMPDIR": "/nonexistent"}),
    Surroundings("TMPDIR a file", CHEAP, {"TMPDIR": "/etc/passwd"}),
    Surroundings("libtpu without a TPU", RUN, {"JAX_PLATFORMS": None}),
    Surroundings(
        "no such platform", RUN, {"JAX_PLATFORMS": "nonsense"}, status=2, says="tpt: JAX_PLATFORMS (nonsense): "
    ),
    Surroundings("no such chip", RUN, {"JAX_PLATFORMS": "tpu"}, status=2, says="tpt: JAX_PLATFORMS (tpu): "),
    Surroundings("unknown XLA flag", RUN, {"XLA_FLAGS": "--xla_nonsense=1"}, status=1, says="Unknown flag"),
    Surroundings(
        "three devices for two",
        RUN,
        {"XLA_FLAGS": "--xla_force_host_platform_device_count=3"},
        "exec {tpt} --mesh.data 2",
        2,
        "tpt: mesh: ",
    ),
    Surroundings("clock goes backwards", BOTH, {"PYTHONPATH": "{root}/clock:{path}"}),
    Surroundings("unknown time zone", BOTH, {"TZ": "Nowhere/Nothing"}),
    Surroundings("64 open files", BOTH, {}, "ulimit -n 64; exec {tpt}"),
    Surroundings("16 open files", RUN, {}, "ulimit -n 16; exec {tpt}", 1, "Too many open files"),
    Surroundings(
        "16 processes",
        RUN,
        {"HOME": "/nonexistent"},
        f"chmod -R 777 {{folder}}; {NOBODY} bash -c 'ulimit -u 16; {{tpt}}'",
        1,
        "threads could be started",
    ),
    Surroundings("1 GB of memory", RUN, {}, "ulimit -v 1000000; exec {tpt}", 1, "tpt: the limit of memory is 1.0 GB"),
    Surroundings("0.5 GB of memory", CHEAP, {}, "ulimit -v 500000; exec {tpt}"),
    Surroundings("a small stack", CHEAP, {}, "ulimit -s 256; exec {tpt}"),
)


def surroundings() -> Iterator[Fault]:
    for kind, cases in (("terminal", TERMINALS), ("machine", MACHINES)):
        for case in cases:
            for verb in case.verbs:
                yield Fault(
                    kind,
                    f"{case.name}, tpt {verb}",
                    ends=frozenset({case.status}),
                    shell=case.shell,
                    environment=case.environment,
                    says=("compiled programs are not kept",),
                    ends_with=case.says,
                    hears=bool(case.says),
                    verb="" if verb == "run" else PRUNE,
                    is_short=verb == "prune" and case.name in ("ascii", "stdout full, results", "64 open files"),
                )
    for name, prefix in ODD_NAMES.items():
        yield Fault("machine", f"{name} in the path", prefix=prefix)


FAULTS: Sequence[Fault] = [
    each for group in (kills, stops, disks, damages, mistakes, pairs, hosts, surroundings) for each in group()
]
