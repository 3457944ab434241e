"""Tests tpu_scripts against a fake cloud: a `gcloud` that records its calls and runs ssh commands in local folders."""

import os
import re
import shlex
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
SCRIPTS = ROOT / "tpu_scripts"
COMMANDS = ("create", "install", "launch", "status", "resume", "fetch", "delete", "gke")
SETTINGS = {
    "PROJECT": "my-project-1",
    "ZONE": "us-west4-a",
    "NAME": "tpt",
    "ACCELERATOR_TYPE": "v5litepod-8",
    "RUNTIME_VERSION": "v2-alpha-tpuv5-lite",
    "NUM_SLICES": "1",
    "PROVISIONING": "queued-spot",
    "BUCKET": "gs://my-bucket",
    "REPOSITORY": "https://example.com/tpt_jax",
    "REF": "main",
    "CLUSTER": "my-cluster",
    "IMAGE": "python:3.12",
}

# `answers` has the states of a queued resource at successive calls; the last one stays. `fail_ACTION` has how often an
# action still fails.
GCLOUD = """#!/bin/bash
printf '%s\\0' "${0##*/}" "$@" end-of-call >>"$CLOUD/calls"
kind=$3 action=$4 name=$5 prefix='' count=1 worker='' command=''
for word in "$@"; do
  case $word in
    --node-id=*) prefix=${word#*=} ;;
    --node-count=*) count=${word#*=} ;;
    --node-prefix=*) prefix=${word#*=} ;;
    --worker=*) worker=${word#*=} ;;
    --command=*) command=${word#*=} ;;
  esac
done
if read -r failures 2>/dev/null <"$CLOUD/fail_$action" && ((failures > 0)); then
  echo $((failures - 1)) >"$CLOUD/fail_$action"
  echo "ERROR: network unavailable" >&2
  exit 1
fi

make() {
  echo READY >"$CLOUD/nodes/$1"
  for ((i = 0; i < $(<"$CLOUD/workers"); i++)); do mkdir -p "$CLOUD/vms/$1/$i"; done
}

show() {
  read -r state rest 2>/dev/null <"$1" || { echo "ERROR: (gcloud) NOT_FOUND: $1 was not found" >&2; exit 1; }
  echo "$state"
}

case $kind-$action in
  tpu-vm-create) make "$name" ;;
  tpu-vm-describe) show "$CLOUD/nodes/$name" ;;
  tpu-vm-delete) rm -r "$CLOUD"/{nodes,vms}/"$name" ;;
  queued-resources-create)
    cp "$CLOUD"/{answers,queue}
    if ((count == 1)); then echo "$prefix"; else eval "echo $prefix-{0..$((count - 1))}"; fi >"$CLOUD/asked"
    ;;
  queued-resources-describe)
    show "$CLOUD/queue"
    [[ -z $rest ]] || echo "$rest" >"$CLOUD/queue"
    [[ $rest != ACTIVE ]] || for name in $(<"$CLOUD/asked"); do make "$name"; done
    ;;
  queued-resources-delete)
    rm -rf "$CLOUD"/{queue,nodes,vms}
    mkdir "$CLOUD"/{nodes,vms}
    ;;
  tpu-vm-ssh)
    status=0
    [[ $worker != all ]] || worker='*'
    for home in "$CLOUD/vms/$name"/$worker; do
      cd "$home" || exit
      # gcloud and ssh pass a command on as one string, which the login shell parses.
      env -i HOME="$home" CLOUD="$CLOUD" PATH="$CLOUD/vm_bin:/usr/bin:/bin" \
        bash -c "$command" </dev/null 3>&- || status=$?
    done
    exit "$status"
    ;;
esac
"""

# Fake programs on a VM: git provides worker.sh, pip provides uv, and uv provides tpt and a Python with a fake JAX.
ON_VM = {
    "git": """
        case $1 in
          init) mkdir -p "$3" ;;
          fetch) echo "$*" >>"$HOME/fetched" ;;
          checkout) mkdir -p tpu_scripts && cp {scripts}/worker.sh tpu_scripts ;;
        esac""",
    "python3": """
        case $2 in
          pip) mkdir -p "$HOME/.local/bin" && cp "$CLOUD/vm_bin/uv" "$HOME/.local/bin" ;;
          site) echo "$HOME/.local" ;;
        esac""",
    "uv": """
        case $1 in
          venv) mkdir -p .venv/bin && cp "$CLOUD"/vm_bin/{{tpt,python}} .venv/bin ;;
          pip) [[ "$*" == *"-e .[tpu]" ]] ;;
        esac""",
    "python": '[[ ! -e $CLOUD/slices ]] || PYTHONPATH=$CLOUD/vm_bin exec {python} -S "$@"',
    # `plan` has a word for each start: an exit status, wait or preempt.
    "tpt": """
        printf '%s\\0' "$@" >"$HOME/argv"
        read -r step rest <"$CLOUD/plan"
        [[ -z $rest ]] || echo "$rest" >"$CLOUD/plan"
        echo "tpt begins: $step"
        case $step in
          preempt)  # runs until its VM is gone, along with all its processes
            echo SUSPENDED >"$CLOUD/queue"
            for _ in {{1..500}}; do [[ -d .venv ]] || break; sleep 0.02; done
            kill -9 $PPID ;;
          wait)
            trap 'echo saved; exit 75' TERM
            for _ in {{1..500}}; do [[ ! -e $CLOUD/go ]] || exit 0; sleep 0.02; done ;;
          *) exit "$step" ;;
        esac""",
}
JAX = """
import os
from types import SimpleNamespace
from pathlib import Path
devices = lambda: [SimpleNamespace(platform="tpu", device_kind="TPU v5 lite", slice_index=i) for i in range(slices)]
slices = int((Path(os.environ["CLOUD"]) / "slices").read_text())
distributed = SimpleNamespace(initialize=lambda: None)
process_index = lambda: 0
local_device_count = lambda: 8
"""


class Cloud:
    """A fake Google Cloud in a folder, to run the scripts against."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        for name in ("bin", "vm_bin", "nodes", "vms"):
            (folder / name).mkdir(parents=True)
        for name in ("gcloud", "xpk"):
            executable(folder / "bin" / name, GCLOUD)
        for name, body in ON_VM.items():
            text = body.format(scripts=SCRIPTS, python=sys.executable)
            executable(folder / "vm_bin" / name, f"#!/bin/bash\n{text}\n")
        (folder / "vm_bin/jax.py").write_text(JAX)
        self.set("workers", "1")
        self.set("plan", "0")
        self.set("answers", "WAITING_FOR_RESOURCES PROVISIONING ACTIVE")
        self.settings()

    def set(self, name: str, text: str) -> None:
        (self.folder / name).write_text(f"{text}\n")

    def settings(self, **changes: str) -> None:
        lines = (f"{key}={value}\n" for key, value in (SETTINGS | changes).items())
        self.set("tpu.env", "# A comment.\n\n" + "".join(lines))

    def run(self, script: str, *arguments: str, status: int = 0) -> subprocess.CompletedProcess[str]:
        environment = {
            "PATH": f"{self.folder / 'bin'}:/usr/bin:/bin",
            "HOME": str(self.folder),
            "CLOUD": str(self.folder),
            "TPU_ENV": str(self.folder / "tpu.env"),
            "ZONE": "a-zone-of-the-caller",
        }
        command = [SCRIPTS / f"{script}.sh", *arguments]
        process = subprocess.run(
            command, capture_output=True, text=True, env=environment, cwd=self.folder, timeout=20, check=False
        )
        assert process.returncode == status, process.stdout + process.stderr
        return process

    def make(self, *nodes: str, workers: int = 1) -> None:
        """Creates a TPU with everything installed."""
        self.set("queue", "ACTIVE")
        self.set("workers", str(workers))
        for node in nodes or ("tpt",):
            self.set(f"nodes/{node}", "READY")
            for worker in range(workers):
                clone = self.vm(f"{node}/{worker}/tpt_jax")
                for path in (SCRIPTS / "worker.sh", self.folder / "vm_bin/tpt"):
                    folder = clone / ("tpu_scripts" if path.suffix else ".venv/bin")
                    folder.mkdir(parents=True)
                    shutil.copy(path, folder)

    def calls(self, *words: str) -> list[list[str]]:
        """The calls of gcloud and xpk that contain all of these words."""
        file = self.folder / "calls"
        calls = (
            [call.split("\0")[:-1] for call in file.read_text().split("end-of-call\0")[:-1]] if file.exists() else []
        )
        return [call for call in calls if set(words) <= set(call)]

    def vm(self, path: str) -> Path:
        return self.folder / "vms" / path


def executable(path: Path, text: str) -> None:
    path.write_text(text)
    path.chmod(0o755)


@pytest.fixture
def cloud(tmp_path: Path) -> Iterator[Cloud]:
    cloud = Cloud(tmp_path / "cloud")
    yield cloud
    cloud.set("go", "")  # ends processes that are still waiting


def error_line(process: subprocess.CompletedProcess[str]) -> str:
    (line,) = process.stderr.splitlines()
    return line


def wait_for_content(path: Path) -> str:
    deadline = time.monotonic() + 5
    while not (path.exists() and path.read_text()):
        assert time.monotonic() < deadline, f"no {path}"
        time.sleep(0.01)
    return path.read_text()


def test_shellcheck_passes() -> None:
    shellcheck = shutil.which("shellcheck", path=f"{Path(sys.executable).parent}:{os.environ['PATH']}")
    assert shellcheck, "shellcheck is missing; run pip install -e '.[test]'"
    files = sorted(str(path) for path in SCRIPTS.glob("*.sh"))
    assert len(files) == len(COMMANDS) + 2
    process = subprocess.run([shellcheck, "-x", *files], cwd=SCRIPTS, capture_output=True, text=True, check=False)
    assert process.returncode == 0, process.stdout


@pytest.mark.parametrize("script", COMMANDS)
def test_help_prints_the_header_without_settings(script: str, cloud: Cloud) -> None:
    (cloud.folder / "tpu.env").unlink()
    shown = cloud.run(script, "--help").stdout
    assert f"tpu_scripts/{script}.sh" in shown
    assert shown.splitlines()[0] == (SCRIPTS / f"{script}.sh").read_text().splitlines()[1].removeprefix("# ")
    assert not re.search(r"^#|set -euo", shown, re.MULTILINE)


@pytest.mark.parametrize(
    ("script", "arguments"),
    [
        ("create", []),
        ("install", []),
        ("launch", ["--follow", "--", "run", "--config", "a b"]),
        ("launch", ["--stop"]),
        ("status", ["--logs"]),
        ("resume", ["--", "run"]),
        ("fetch", ["gs://BUCKET/runs/a"]),
        ("fetch", ["runs/a"]),
        ("delete", []),
        ("gke", ["create", "--", "run"]),
        ("gke", ["list"]),
        ("gke", ["delete"]),
    ],
)
def test_dry_run_prints_commands_and_runs_nothing(script: str, arguments: list[str], cloud: Cloud) -> None:
    before = set(cloud.folder.rglob("*"))
    process = cloud.run(script, "--dry-run", *arguments)
    programs = {shlex.split(line)[0] for line in process.stdout.splitlines()}
    assert programs
    assert programs <= {"gcloud", "xpk", "mkdir"}
    assert process.stderr == ""
    assert set(cloud.folder.rglob("*")) == before


def test_dry_run_prints_the_commands_of_a_real_run(cloud: Cloud) -> None:
    cloud.make()
    arguments = ("--", "run", "--note", 'it\'s $HOME; "x"', "")
    printed = cloud.run("launch", "--dry-run", *arguments).stdout.splitlines()
    cloud.run("launch", *arguments)
    assert [shlex.split(line) for line in printed] == cloud.calls()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"PROJECT": ""}, "PROJECT is missing; set PROJECT= to"),
        ({"PROJECT": "YOUR_PROJECT"}, "PROJECT (YOUR_PROJECT) is still the template's placeholder; write the id"),
        ({"BUCKET": "gs://YOUR_BUCKET"}, "BUCKET (gs://YOUR_BUCKET) is still the template's placeholder"),
        ({"BUCKET": "my-bucket"}, "BUCKET (my-bucket) is malformed; write a bucket, like gs://my-bucket"),
        ({"BUCKET": "gs://my-bucket/runs"}, "BUCKET (gs://my-bucket/runs) is malformed"),
        ({"ZONE": "us-west4"}, "ZONE (us-west4) is malformed; write a zone that has the chips, like us-central2-b"),
        ({"NAME": "My_TPU"}, "NAME (My_TPU) is malformed"),
        ({"NAME": "$(touch pwned)"}, "NAME ($(touch pwned)) is malformed"),
        ({"ACCELERATOR_TYPE": "v5e"}, "ACCELERATOR_TYPE (v5e) is malformed"),
        ({"RUNTIME_VERSION": ""}, "RUNTIME_VERSION is missing; set RUNTIME_VERSION= to the image of the VMs"),
        ({"RUNTIME_VERSION": "newest"}, "RUNTIME_VERSION (newest) is malformed"),
        ({"NUM_SLICES": "0"}, "NUM_SLICES (0) is malformed"),
        (
            {"NUM_SLICES": "2", "PROVISIONING": "spot"},
            "PROVISIONING (spot) allows one slice, not 2",
        ),
        ({"PROVISIONING": "preemptible"}, "PROVISIONING (preemptible) is malformed; write on-demand, spot, queued"),
        ({"REPOSITORY": "tpt_jax"}, "REPOSITORY (tpt_jax) is malformed"),
        ({"REF": "-x"}, "REF (-x) is malformed"),
        ({"PROJCT": "x"}, "unknown key PROJCT; known are PROJECT ZONE NAME"),
        ({"# ": "x\nnonsense"}, "'nonsense' is not KEY=VALUE"),
    ],
)
def test_invalid_settings_give_a_one_line_error(change: dict[str, str], message: str, cloud: Cloud) -> None:
    cloud.settings(**change)
    line = error_line(cloud.run("create", status=2))
    assert line.startswith(f"create.sh: {cloud.folder / 'tpu.env'}: {message}")
    assert cloud.calls() == []
    assert not list(cloud.folder.rglob("pwned"))


def test_only_gke_needs_the_gke_settings(cloud: Cloud) -> None:
    cloud.settings(CLUSTER="YOUR_CLUSTER", IMAGE="")
    cloud.run("status", "--dry-run")
    assert "CLUSTER (YOUR_CLUSTER) is still" in error_line(cloud.run("gke", "list", status=2))
    cloud.settings(REPOSITORY="YOUR_REPOSITORY", RUNTIME_VERSION="", PROVISIONING="", NUM_SLICES="2")
    cloud.run("gke", "list")


def test_quoted_settings_and_the_template(cloud: Cloud) -> None:
    cloud.settings(NAME='"quoted"', ZONE="'us-west4-b'  ", REF="main\r")
    assert "describe quoted --project=my-project-1 --zone=us-west4-b " in cloud.run("status", "--dry-run").stdout
    template = (SCRIPTS / "tpu.env.example").read_text()
    assert re.findall(r"^([A-Z_]+)=", template, re.MULTILINE) == list(SETTINGS)
    cloud.set("tpu.env", re.sub("YOUR_[A-Z]+", "my-thing", template.replace("YOUR_REPO", "https://a/YOUR_REPO")))
    cloud.run("status", "--dry-run")
    (cloud.folder / "tpu.env").unlink()
    assert "tpu.env.example to it and fill it in" in error_line(cloud.run("status", status=2))


@pytest.mark.parametrize(
    ("script", "arguments", "message"),
    [
        ("create", ["--fast"], "unknown argument --fast; see --help"),
        ("create", ["--poll_seconds", "soon"], "--poll_seconds (soon) must be a number"),
        ("launch", [], "no command; give tpt's arguments after --"),
        ("resume", ["--max_failures", "2"], "no command"),
        ("resume", ["--max_failures", "0.5", "--", "run"], "--max_failures (0.5) must be 1 or more"),
        ("fetch", [], "no run folder; give RUN_DIR"),
        ("gke", ["make"], "unknown verb 'make'; give create, list or delete"),
    ],
)
def test_invalid_arguments_give_a_one_line_error(script: str, arguments: list[str], message: str, cloud: Cloud) -> None:
    assert error_line(cloud.run(script, *arguments, status=2)).startswith(f"{script}.sh: {message}")
    assert cloud.calls() == []


def test_gcloud_and_xpk_are_looked_up_on_the_path() -> None:
    for path in SCRIPTS.iterdir():
        assert not re.search(r"/(gcloud|xpk)\b", path.read_text().replace("AI-Hypercomputer/xpk", "")), path


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        ({"PROVISIONING": "on-demand"}, "tpu-vm create tpt --version=v2-alpha-tpuv5-lite"),
        ({"PROVISIONING": "spot"}, "tpu-vm create tpt --version=v2-alpha-tpuv5-lite --spot"),
        ({"PROVISIONING": "queued"}, "queued-resources create tpt --node-id=tpt"),
        ({"PROVISIONING": "queued-spot"}, "queued-resources create tpt --node-id=tpt --spot"),
        ({"NUM_SLICES": "3"}, "queued-resources create tpt --node-count=3 --node-prefix=tpt --spot"),
    ],
)
def test_create_requests_the_configured_tpu_and_waits(settings: dict[str, str], expected: str, cloud: Cloud) -> None:
    cloud.settings(**settings)
    progress = cloud.run("create", "--poll_seconds", "0").stderr
    (call,) = cloud.calls("create")
    assert set(expected.split()) | {"--accelerator-type=v5litepod-8", "--zone=us-west4-a"} <= set(call)
    assert ("--spot" in call) == ("--spot" in expected)
    assert progress.endswith("tpt is ready READY\n")
    assert ("waiting PROVISIONING" in progress) == ("queued" in expected)
    cloud.run("create")  # already created: nothing to do
    assert len(cloud.calls("create")) == 1
    cloud.run("delete", "--yes")
    (call,) = cloud.calls("delete")
    assert ("--force" in call) == ("queued" in expected)
    assert "none NOT_FOUND" in cloud.run("status").stdout


def test_install_clones_on_every_vm_and_checks_the_chips(cloud: Cloud) -> None:
    cloud.settings(NUM_SLICES="2", REF="v0.1")
    cloud.set("workers", "2")
    cloud.set("slices", "2")
    cloud.run("create", "--poll_seconds", "0")
    shown = cloud.run("install").stdout
    assert shown.count("host 0: 8 of 2 chips of kind TPU v5 lite, 2 slices\n") == 4
    for vm in ("tpt-0/0", "tpt-0/1", "tpt-1/0", "tpt-1/1"):
        assert cloud.vm(f"{vm}/fetched").read_text().endswith(" https://example.com/tpt_jax v0.1\n")
    cloud.set("slices", "1")  # as with VMs that were not created together
    assert "JAX sees 1 of 2 slices" in cloud.run("install", status=1).stderr


def test_command_reaches_every_vm_unchanged(cloud: Cloud) -> None:
    cloud.settings(NUM_SLICES="2")
    cloud.make("tpt-0", "tpt-1", workers=2)
    hostile = ["run", "a b  c", "it's", '"$HOME"', "`id`; rm -rf $(x)", "", "*", "new\nline", "\\", "--x=ä&|<>!", "-"]
    cloud.run("launch", "--", *hostile, "gs://BUCKET/runs/a", "--run_dir=gs://BUCKET/b")
    for vm in ("tpt-0/0", "tpt-0/1", "tpt-1/0", "tpt-1/1"):
        words = wait_for_content(cloud.vm(f"{vm}/argv")).split("\0")[:-1]
        assert words == [*hostile, "gs://my-bucket/runs/a", "--run_dir=gs://my-bucket/b"]


def test_one_command_runs_at_a_time_and_can_be_stopped(cloud: Cloud) -> None:
    cloud.make()
    assert "run: absent" in cloud.run("status").stdout
    cloud.set("plan", "wait")
    cloud.run("launch", "--", "run", "first")
    wait_for_content(cloud.vm("tpt/0/argv"))
    shown = cloud.run("status", "--logs").stdout
    assert re.search(
        r"^worker \S+ running\nrun: running\n--- .* tpt run first \ntpt begins: wait$", shown, re.MULTILINE
    )
    for script, *arguments in (("launch", "--", "run", "second"), ("launch", "--", "run", "first"), ("install",)):
        assert "a command is already running on tpt" in error_line(cloud.run(script, *arguments, status=2))
    assert "another command is running on tpt" in cloud.run("resume", "--", "run", "second", status=2).stderr
    # gcloud repeats a command if the connection breaks; starting the same command again does nothing.
    repeated = [
        str(cloud.folder / "bin/gcloud"),
        *next(c for c in cloud.calls("ssh") if "start run first" in c[-1])[1:],
    ]
    environment = os.environ | {"CLOUD": str(cloud.folder)}
    assert subprocess.run(repeated, env=environment, check=False).returncode == 0
    assert cloud.vm("tpt/0/tpt_run/log").read_text().count("begins") == 1
    cloud.run("launch", "--stop")
    cloud.run("launch", "--follow", status=75)
    assert "exited:75\nrun: interrupted" in cloud.run("status").stdout
    assert cloud.vm("tpt/0/tpt_run/log").read_text().endswith("saved\n")


def test_follow_exits_with_the_status_of_the_command(cloud: Cloud) -> None:
    cloud.make()
    cloud.set("plan", "137")
    assert "tpt begins: 137\n" in cloud.run("launch", "--follow", "--", "run", status=137).stdout


def test_launch_without_install_is_an_error(cloud: Cloud) -> None:
    cloud.run("create", "--poll_seconds", "0")
    assert "has install.sh been run?" in cloud.run("launch", "--", "run", status=1).stderr


def test_command_on_a_rebooted_vm_has_died(cloud: Cloud) -> None:
    cloud.make()
    run = cloud.vm("tpt/0/tpt_run")
    run.mkdir()
    (run / "pid").write_text(f"{os.getpid()}\n")  # a process id reused by another process
    assert "died\nrun: interrupted" in cloud.run("status").stdout


@pytest.mark.parametrize(
    ("states", "word"),
    [
        ("", "absent"),
        ("absent absent", "absent"),
        ("exited:0 exited:0", "done"),
        ("exited:0 running", "running"),
        ("exited:1 exited:0", "failed"),
        ("exited:137 exited:134", "failed"),
        ("exited:1 exited:2", "mistake"),
        ("exited:1 exited:75", "interrupted"),
        ("exited:75 exited:75", "interrupted"),
        ("exited:1 died", "interrupted"),
        ("exited:1 absent", "interrupted"),
        ("absent exited:1", "interrupted"),
        ("other absent", "other"),
    ],
)
def test_run_state_summarizes_all_workers(states: str, word: str) -> None:
    lines = "a line of tpt's\n" + "".join(f"worker host {state}\n" for state in states.split())
    script = f'source {shlex.quote(str(SCRIPTS / "common.sh"))}; run_state "$1"'
    process = subprocess.run(["bash", "-euc", script, "bash", lines], capture_output=True, text=True, check=True)
    assert process.stdout == f"{word}\n"


def resume(cloud: Cloud, *arguments: str, status: int = 0) -> str:
    command = ("--poll_seconds", "0.01", *arguments, "--", "run", "--config", "my file.yaml")
    return cloud.run("resume", *command, status=status).stderr


def actions_on(cloud: Cloud) -> list[str]:
    """The actions on the TPU, in order."""
    calls = cloud.calls()
    actions = [call[4] if call[4] != "ssh" else re.findall(r"worker\.sh (\w+)", call[-1])[-1] for call in calls]
    return [action for action in actions if action in ("create", "delete", "install", "start")]


def test_resume_restarts_after_preemption_until_the_command_is_done(cloud: Cloud) -> None:
    cloud.set("plan", "preempt 75 0")
    progress = resume(cloud)
    assert actions_on(cloud) == [
        "create",
        "install",
        "start",
        "delete",
        "create",
        "install",
        "start",
        "install",
        "start",
    ]
    assert "tpt is lost SUSPENDED; deleting it" in progress
    assert "the command was interrupted" in progress
    assert progress.endswith(" done\n")
    assert cloud.vm("tpt/0/argv").read_text().split("\0")[:-1] == ["run", "--config", "my file.yaml"]
    resume(cloud)  # already done: does not start it again
    assert actions_on(cloud).count("start") == 3


def test_resume_on_a_spot_vm_without_a_queue(cloud: Cloud) -> None:
    cloud.settings(PROVISIONING="spot")
    cloud.make()
    cloud.set("nodes/tpt", "PREEMPTED")
    assert "tpt is lost PREEMPTED; deleting it" in resume(cloud)
    assert actions_on(cloud) == ["delete", "create", "install", "start"]


def test_resume_recreates_all_slices_when_one_is_lost(cloud: Cloud) -> None:
    cloud.settings(NUM_SLICES="2")
    cloud.make("tpt-0", "tpt-1")
    (cloud.folder / "nodes/tpt-1").unlink()
    assert "lost NOT_FOUND" in resume(cloud)
    assert actions_on(cloud) == ["delete", "create", *["install"] * 2, *["start"] * 2]


def test_resume_gives_up_after_consecutive_failures(cloud: Cloud) -> None:
    cloud.set("plan", "134 75 1 1 1 0")
    progress = resume(cloud, status=1)
    assert actions_on(cloud).count("start") == 5
    assert progress.endswith("tpt failed 3 times in a row; giving up\n")
    assert actions_on(cloud).count("create") == 1
    resume(cloud)  # a new invocation tries again: the cause may have been fixed
    assert actions_on(cloud).count("start") == 6


def test_resume_does_not_retry_after_a_user_error(cloud: Cloud) -> None:
    cloud.set("plan", "2 2 0")
    process = cloud.run("resume", "--poll_seconds", "0", "--", "run", status=2)
    assert "tpt reported a user error (exit status 2)" in process.stderr
    assert "tpt begins: 2" in process.stdout  # the end of the log
    assert actions_on(cloud).count("start") == 1


def test_resume_with_another_command_starts_it(cloud: Cloud) -> None:
    resume(cloud)
    cloud.run("resume", "--poll_seconds", "0", "--", "eval")
    assert cloud.vm("tpt/0/argv").read_text() == "eval\0"


@pytest.mark.parametrize("action", ["ssh", "describe", "create"])
def test_resume_survives_a_temporary_network_failure(action: str, cloud: Cloud) -> None:
    cloud.set(f"fail_{action}", "3")
    progress = resume(cloud)
    assert progress.count("failed") >= 3
    assert progress.endswith(" done\n")


@pytest.mark.parametrize("action", ["ssh", "describe", "create"])
def test_resume_gives_up_if_the_network_stays_down(action: str, cloud: Cloud) -> None:
    cloud.set(f"fail_{action}", "99")
    resume(cloud, status=1)
    assert len(cloud.calls(action)) <= 30


def test_resume_deletes_a_failed_request(cloud: Cloud) -> None:
    cloud.set("queue", "FAILED")
    assert "tpt is lost FAILED; deleting it" in resume(cloud)
    assert actions_on(cloud)[:2] == ["delete", "create"]
    cloud.run("delete", "--yes")
    cloud.set("answers", "WAITING_FOR_RESOURCES FAILED")  # for example without quota
    resume(cloud, status=1)
    assert len(cloud.calls("create")) == 6


def test_create_waits_until_the_previous_tpu_is_deleted(cloud: Cloud) -> None:
    cloud.make()
    cloud.set("queue", "DELETING")
    cloud.set("answers", "ACTIVE")
    executable(cloud.folder / "bin/sleep", '#!/bin/bash\ngrep -q ACTIVE "$CLOUD/queue" || rm "$CLOUD/queue"')
    assert cloud.run("create").stderr.splitlines()[0].endswith("tpt is waiting DELETING")
    assert len(cloud.calls("create")) == 1


def test_fetch_from_the_bucket_and_from_a_vm(cloud: Cloud) -> None:
    cloud.settings(NUM_SLICES="2")
    cloud.run("fetch", "gs://BUCKET/runs/a/")
    cloud.run("fetch", "gs://BUCKET/runs/a", "here", "--checkpoints")
    cloud.run("fetch", "runs/b")
    cloud.run("fetch", "/mnt/runs/c", "here")
    bucket, with_checkpoints, relative, absolute = cloud.calls()
    assert bucket[1:3] == ["storage", "rsync"]
    assert bucket[-2:] == ["gs://my-bucket/runs/a", "runs/a"]
    (exclude,) = [word.removeprefix("--exclude=") for word in bucket if word.startswith("--exclude=")]
    assert re.match(exclude, "checkpoints/001/model")
    assert re.match(exclude, "rounds/001/training/2/state")
    assert not re.match(exclude, "rounds/001/training.jsonl")
    assert with_checkpoints[-2:] == ["gs://my-bucket/runs/a", "here/a"]
    assert not any(word.startswith("--exclude") for word in with_checkpoints)
    assert relative[4:7] == ["scp", "tpt-0:tpt_jax/runs/b", "runs"]
    assert absolute[5:7] == ["tpt-0:/mnt/runs/c", "here"]
    assert (cloud.folder / "here/a").is_dir()


def test_gke_creates_one_workload_for_all_slices(cloud: Cloud) -> None:
    cloud.settings(NUM_SLICES="2")
    cloud.run("gke", "create", "--", "run", "a b", "gs://BUCKET/runs/a")
    cloud.run("gke", "list")
    cloud.run("gke", "delete", "--yes")
    create, listing, delete = cloud.calls("--cluster=my-cluster", "--project=my-project-1", "--zone=us-west4-a")
    assert create[:4] == ["xpk", "workload", "create", "--cluster=my-cluster"]
    expected = ("--workload=tpt", "--num-slices=2", "--tpu-type=v5litepod-8", f"--script-dir={ROOT}")
    assert {*expected, "--base-docker-image=python:3.12", "--restart-on-exit-codes=75"} <= set(create)
    assert create[-1] == "--command=pip install --quiet -e '.[tpu]' && exec tpt run 'a b' gs://my-bucket/runs/a"
    assert listing[2] == "list"
    assert delete[2:] == ["delete", *create[3:7], "--force"]


def test_gke_adds_nothing_to_an_image_that_has_tpt(cloud: Cloud) -> None:
    cloud.run("gke", "create", "--built", "--", "run", "a b")
    (create,) = cloud.calls()
    assert {"--docker-image=python:3.12", "--command=exec tpt run 'a b'"} <= set(create)
    assert not [word for word in create if word.startswith(("--base-docker-image", "--script-dir"))]
