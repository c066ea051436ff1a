import shlex
import shutil
import signal
import subprocess
import time

import pytest
from fake_cloud import FAILS, NOT_FOUND, OK, ROOT, TPU, prints

WHERE = ["--project=p", "--zone=us-east5-a"]
FLAGS = ["--name=run1", *WHERE]
SLICE = ["--accelerator-type=v5litepod-16"]
BUCKET = ["--bucket=gs://b/runs"]
TRAIN = ["--", "train", "--gin_file=a.gin"]

SSH = ["compute", "tpus", "tpu-vm", "ssh", "run1", *WHERE]
SSH_ALL = [*SSH, "--worker=all", "--strict-host-key-checking=no", "--quiet"]
CREATE = [
    "compute", "tpus", "queued-resources", "create", "run1", "--node-id=run1", *WHERE, *SLICE,
    "--runtime-version=v2-alpha-tpuv5-lite", "--valid-until-duration=24h",
    "--labels=calrec-run=run1", "--scopes=https://www.googleapis.com/auth/cloud-platform",
    "--quiet",
]  # fmt: skip
DESCRIBE = [
    "compute", "tpus", "queued-resources", "describe", "run1", *WHERE,
    "--format=value(state.state)",
]  # fmt: skip
DELETE = ["compute", "tpus", "queued-resources", "delete", "run1", *WHERE, "--force", "--quiet"]
INSTALL = (
    "rm -rf calrec/code && mkdir -p calrec/code && cd calrec/code && gcloud storage cat"
    " gs://b/runs/run1/code.tar.gz | tar -xz && bash launch/worker.sh setup"
)
RUN = "bash calrec/code/launch/worker.sh run gs://b/runs/run1 train --gin_file=a.gin "


def test_create_requests_the_slice(cloud):
    done = cloud.run(TPU, "create", *FLAGS, *SLICE)
    assert (done.returncode, done.stderr) == (0, "")
    assert cloud.calls() == [CREATE]


def test_create_passes_its_flags_on(cloud):
    more = [
        "--spot", "--service-account=a@b.iam", "--runtime-version=other", "--valid-until=2h",
    ]  # fmt: skip
    assert cloud.run(TPU, "create", *FLAGS, *SLICE, *more).returncode == 0
    (call,) = cloud.calls()
    added = {"--spot", "--service-account=a@b.iam"}
    changed = {"--runtime-version=other", "--valid-until-duration=2h"}
    assert set(call) - set(CREATE) == added | changed


def test_workers_boot_with_a_script(cloud, tmp_path):
    script = tmp_path / "mount.sh"
    script.write_text("mount it\n")
    assert cloud.run(TPU, "create", *FLAGS, *SLICE, f"--startup-script={script}").returncode == 0
    (call,) = cloud.calls()
    assert set(call) - set(CREATE) == {f"--metadata-from-file=startup-script={script}"}


@pytest.mark.parametrize("command", ["create", "up"])
def test_a_script_that_is_not_there_is_an_error(cloud, command):
    more = [*BUCKET, *TRAIN] if command == "up" else []
    done = cloud.run(TPU, command, *FLAGS, *SLICE, "--startup-script=none.sh", *more)
    assert done.returncode == 2 and "none.sh: no such file" in done.stderr
    assert not cloud.calls()


@pytest.mark.parametrize(
    "accelerator, runtime",
    [
        ("v4-32", "tpu-ubuntu2204-base"),
        ("v5litepod-16", "v2-alpha-tpuv5-lite"),
        ("v5p-32", "v2-alpha-tpuv5"),
        ("v6e-16", "v2-alpha-tpuv6e"),
    ],
)
def test_each_accelerator_has_its_runtime(cloud, accelerator, runtime):
    cloud.run(TPU, "create", *FLAGS, f"--accelerator-type={accelerator}")
    assert f"--runtime-version={runtime}" in cloud.calls()[0]


def test_run_starts_calrec_on_every_worker(cloud):
    assert cloud.run(TPU, "run", *FLAGS, *BUCKET, *TRAIN).returncode == 0
    assert cloud.calls() == [[*SSH_ALL, f"--command={RUN}"]]


def test_logs_follows_one_worker(cloud):
    assert cloud.run(TPU, "logs", *FLAGS, "--worker=3").returncode == 0
    expected = [*SSH, "--worker=3", *SSH_ALL[-2:], "--command=tail -n 100 -F calrec/log"]
    assert cloud.calls() == [expected]


def test_status_shows_the_slice_and_its_workers(cloud):
    cloud.answers(describe=[prints("ACTIVE")], cat=[prints('{"rc": null}')])
    assert cloud.run(TPU, "status", *FLAGS, *BUCKET).stdout == 'ACTIVE\n{"rc": null}\n'
    assert cloud.calls() == [DESCRIBE, ["storage", "cat", "gs://b/runs/run1/worker-*.json"]]


def test_delete_takes_the_slice_along(cloud):
    assert cloud.run(TPU, "delete", *FLAGS).returncode == 0
    assert cloud.calls() == [DELETE]


def test_list_shows_what_carries_the_label(cloud):
    assert cloud.run(TPU, "list", *WHERE).returncode == 0
    labelled = "--filter=tpu.nodeSpec.node.labels.calrec-run:*"
    assert cloud.calls() == [["compute", "tpus", "queued-resources", "list", *WHERE, labelled]]


@pytest.mark.parametrize("command", ["create", "logs", "delete", "list"])
def test_gclouds_failure_is_passed_on(cloud, command):
    cloud.answers(**{"ssh" if command == "logs" else command: ["echo no >&2; exit 7"]})
    slice_ = SLICE if command == "create" else []
    done = cloud.run(TPU, command, *FLAGS, *slice_)
    assert (done.returncode, done.stderr) == (7, "no\n")


ODD = [
    "train",
    "--gin.MODEL_DIR='gs://b/it''s'",
    "--gin.A={'a b': \"$HOME\", 'n': [1, 2]}",
    "--gin.B=`echo no` $(echo no) \\ * ? ! # ~ ; & | < >",
    "--gin.C='two\nlines\n'",
    "--gin.D='Käse \u2014 \U0001f9c0'",
    "\ttab",
    "",
    "-n",
]


def test_arguments_reach_calrec_byte_for_byte(cloud):
    worker = cloud.home / "calrec" / "code" / "launch" / "worker.sh"
    worker.parent.mkdir(parents=True)
    worker.write_text('printf "%s\\0" "$@" >received\n')
    assert cloud.run(TPU, "run", *FLAGS, *BUCKET, "--", *ODD).returncode == 0
    _, remote = cloud.calls()[0][-1].split("=", 1)
    assert cloud.run("bash", "-c", remote, cwd=cloud.home).returncode == 0
    received = (cloud.home / "received").read_text().split("\0")[:-1]
    assert received == ["run", "gs://b/runs/run1", *ODD]


COMMANDS = {
    "create": SLICE,
    "run": [*BUCKET, "--", *ODD],
    "logs": [],
    "status": BUCKET,
    "delete": [],
    "list": [],
}


@pytest.mark.parametrize("command", COMMANDS)
def test_a_dry_run_prints_what_would_be_run(cloud, command):
    argv = [TPU, command, *FLAGS]
    printed = cloud.run(*argv, "--dry-run", *COMMANDS[command])
    assert (printed.returncode, printed.stderr, cloud.calls()) == (0, "", [])
    cloud.run(*argv, *COMMANDS[command])
    really = cloud.calls()
    assert cloud.run("bash", "-c", printed.stdout).returncode == 0
    assert really and cloud.calls() == really + really


def test_a_dry_run_of_up_prints_all_commands(cloud):
    done = cloud.run(TPU, "up", *FLAGS, *SLICE, *BUCKET, "--dry-run", *TRAIN)
    assert (done.returncode, done.stderr, cloud.calls()) == (0, "", [])
    archive, *commands = map(shlex.split, done.stdout.splitlines())
    tar = f"{ROOT}/build/run1.tar.gz"
    assert archive == [
        "git", "-C", str(ROOT), "archive", "--format=tar.gz", f"--output={tar}", "HEAD",
    ]  # fmt: skip
    assert all(command[0] == "gcloud" for command in commands)
    assert [command[1:] for command in commands] == [
        ["storage", "cp", tar, "gs://b/runs/run1/code.tar.gz"],
        CREATE,
        DESCRIBE,
        [*SSH_ALL, f"--command={INSTALL}"],
        [*SSH_ALL, f"--command={RUN}"],
        DESCRIBE,
        ["storage", "cat", "gs://b/runs/run1/worker-*.json"],
        DELETE,
    ]


WRONG = {
    "": "no command ''",
    "start": "no command 'start'",
    "create --name=a": "create needs --project",
    "create --name=a --project=p": "create needs --zone",
    "logs --project=p --zone=z": "logs needs --name",
    "logs --name=A_1 --project=p --zone=z": "--name=A_1: lower-case letters",
    f"logs --name=a{60 * 'b'} --project=p --zone=z": "at most 60",
    "logs --name a": "unknown argument '--name'",
    "logs --name=a --project=p --zone=z --worker=x": "--worker=x is not a number",
    "logs --name=a --project=p --zone=z -- train": "logs takes no arguments of calrec",
    "create --name=a --project=p --zone=z": "create needs --accelerator-type",
    "create --name=a --project=p --zone=z --accelerator-type=v5e-16": "v5litepod-N (the v5e)",
    "create --name=a --project=p --zone=z --accelerator-type=v4-": "has no size",
    "setup --name=a --project=p --zone=z": "setup needs --bucket=gs://",
    "run --name=a --project=p --zone=z --bucket=/b -- train": "run needs --bucket=gs://",
    "run --name=a --project=p --zone=z --bucket=gs://b": "run needs -- and what calrec is to do",
    "up --name=a --project=p --zone=z --accelerator-type=v4-8 --attempts=0": "--attempts=0 is not",
}


@pytest.mark.parametrize("argv", WRONG)
def test_wrong_usage_is_one_line_and_exit_code_2(cloud, argv):
    done = cloud.run(TPU, *argv.split())
    assert (done.returncode, done.stdout, cloud.calls()) == (2, "", [])
    (line,) = done.stderr.splitlines()
    assert line.startswith("tpu.sh: error: ") and WRONG[argv] in line


def test_help_lists_every_command(cloud):
    done = cloud.run(TPU, "--help")
    assert done.returncode == 0
    for command in [*COMMANDS, "setup", "up"]:
        assert f"\n  {command} " in done.stdout


@pytest.fixture
def checkout(cloud, tmp_path):
    """A committed checkout that holds the scripts alone; returns its tpu.sh."""
    launch = tmp_path / "checkout" / "launch"
    shutil.copytree(ROOT / "launch", launch)
    (launch.parent / ".gitignore").write_text("/build/\n")
    for command in (
        "git init -q .",
        "git add .",
        "git -c user.name=n -c user.email=e commit -q -m m",
    ):
        assert cloud.run(*command.split(), cwd=launch.parent).returncode == 0
    return launch / "tpu.sh"


def test_setup_sends_the_commit_and_installs_it(cloud, checkout, tmp_path):
    assert cloud.run(checkout, "setup", *FLAGS, *BUCKET).returncode == 0
    sent = tmp_path / "checkout" / "build" / "run1.tar.gz"
    assert cloud.calls() == [
        ["storage", "cp", str(sent), "gs://b/runs/run1/code.tar.gz"],
        [*SSH_ALL, f"--command={INSTALL}"],
    ]
    names = cloud.run("tar", "-tf", cloud.folder / "code.tar.gz").stdout.split()
    assert "launch/worker.sh" in names


@pytest.mark.parametrize("file", ["launch/worker.sh", "new.gin"])
def test_changes_that_are_not_committed_are_refused(cloud, checkout, file):
    with open(checkout.parent.parent / file, "a") as opened:
        opened.write("# changed\n")
    done = cloud.run(checkout, "setup", *FLAGS, *BUCKET)
    assert (done.returncode, cloud.calls()) == (2, [])
    assert len(done.stderr.splitlines()) == 1 and "commit or remove them" in done.stderr


# --- up --------------------------------------------------------------------------------------


def report(rc) -> str:
    return prints(f'{{"worker": 0, "started": "t", "rc": {rc}}}')


ABSENT, WAITING, ACTIVE, SUSPENDED = (
    NOT_FOUND, prints("WAITING_FOR_RESOURCES"), prints("ACTIVE"), prints("SUSPENDED"),
)  # fmt: skip
ONCE = ["describe", "cp", "create", "describe", "ssh"]


def up(cloud, checkout, *flags):
    return cloud.run(checkout, "up", *FLAGS, *SLICE, *BUCKET, *flags, *TRAIN)


@pytest.mark.parametrize("rc", [0, 1, 3, 42])
def test_up_leaves_with_calrecs_code_and_deletes_the_slice(cloud, checkout, rc):
    cloud.answers(
        describe=[ABSENT, WAITING, WAITING, ACTIVE],
        cat=[NOT_FOUND, report("null"), report(rc)],
    )
    done = up(cloud, checkout, "--attempts=1")
    assert done.returncode == rc, done.stderr
    assert cloud.calls().count(CREATE) == 1
    assert cloud.calls()[-1] == DELETE and cloud.calls().count(DELETE) == 1
    assert cloud.verbs()[: len(ONCE)] == ONCE
    ssh = [call[-1] for call in cloud.calls() if "ssh" in call]
    assert ssh == [f"--command={INSTALL}", f"--command={RUN}"]


PREEMPTED = {
    "while it waits": ([SUSPENDED], [report(0)]),
    "while it trains": ([ACTIVE, ACTIVE, SUSPENDED, ACTIVE], [report("null")] * 2 + [report(0)]),
    "and calrec saved": ([ACTIVE], [report(42), report(0)]),
    "and a peer was lost": ([ACTIVE], [report(134), report(0)]),
    "and calrec failed of it": ([ACTIVE, SUSPENDED, ACTIVE], [report(1), report(0)]),
}


@pytest.mark.parametrize("how", PREEMPTED)
def test_up_requests_another_slice_when_preempted(cloud, checkout, how):
    states, reports = PREEMPTED[how]
    cloud.answers(describe=[ABSENT, *states, ACTIVE], cat=reports)
    done = up(cloud, checkout)
    assert done.returncode == 0, done.stderr
    changes = [verb for verb in cloud.verbs() if verb in ("create", "delete")]
    assert changes == ["create", "delete", "create", "delete"]
    assert "attempt 2 of 10" in done.stderr


def test_up_gives_up_after_so_many_attempts(cloud, checkout):
    cloud.answers(describe=[ABSENT, SUSPENDED])
    done = up(cloud, checkout, "--attempts=3")
    assert done.returncode == 42
    assert cloud.calls().count(CREATE) == cloud.calls().count(DELETE) == 3


@pytest.mark.parametrize("state", ["FAILED", "GONE"])
def test_up_does_not_wait_for_a_slice_that_will_not_come(cloud, checkout, state):
    cloud.answers(describe=[ABSENT, WAITING, ABSENT if state == "GONE" else prints(state)])
    done = up(cloud, checkout)
    assert done.returncode == 1 and f"run1 is {state}" in done.stderr
    assert cloud.calls().count(CREATE) == 1 and cloud.calls()[-1] == DELETE


def test_up_ends_when_someone_deletes_the_slice(cloud, checkout):
    cloud.answers(describe=[ABSENT, ACTIVE, ACTIVE, ABSENT], cat=[report("null")])
    assert up(cloud, checkout).returncode == 1


def test_up_outlives_a_network_that_comes_and_goes(cloud, checkout):
    cloud.answers(
        describe=[ABSENT, FAILS, ACTIVE, FAILS], cat=[FAILS, report("null"), FAILS, report(0)]
    )
    assert up(cloud, checkout).returncode == 0


def test_up_tries_the_setup_again(cloud, checkout):
    cloud.answers(describe=[ABSENT, ACTIVE], ssh=[FAILS, FAILS, OK], cat=[report(0)])
    done = up(cloud, checkout)
    assert done.returncode == 0 and "setup failed (2 of 5)" in done.stderr


def test_up_deletes_a_slice_that_cannot_be_set_up(cloud, checkout):
    cloud.answers(describe=[ABSENT, ACTIVE], ssh=[FAILS])
    assert up(cloud, checkout).returncode == 1
    assert cloud.calls()[-1] == DELETE


def test_up_leaves_a_slice_alone_that_it_did_not_make(cloud, checkout):
    cloud.answers(describe=[ACTIVE])
    done = up(cloud, checkout)
    assert done.returncode == 2 and "there is a slice run1" in done.stderr
    assert cloud.verbs() == ["describe"]


def test_up_deletes_nothing_when_it_could_create_nothing(cloud, checkout):
    cloud.answers(describe=[ABSENT], create=["echo 'ALREADY_EXISTS' >&2; exit 1"])
    assert up(cloud, checkout).returncode == 1
    assert cloud.verbs() == ["describe", "cp", "create"]


def test_up_starts_nothing_when_gcloud_does_not_work(cloud, checkout):
    cloud.answers(describe=[FAILS])
    done = up(cloud, checkout)
    assert (done.returncode, done.stderr) == (1, "ERROR: (gcloud) no network\n")
    assert cloud.verbs() == ["describe"]


def test_up_says_when_the_slice_could_not_be_deleted(cloud, checkout):
    cloud.answers(describe=[ABSENT, ACTIVE], cat=[report(0)], delete=[FAILS])
    done = up(cloud, checkout)
    assert done.returncode == 0 and "was not deleted, and goes on costing" in done.stderr


def wait_for(condition, seconds=20):
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "nothing happened"
        time.sleep(0.02)


STOPPED_WHILE = {
    "it waits for the slice": ("create", {"describe": [ABSENT, WAITING]}),
    "it installs": ("ssh", {"describe": [ABSENT, ACTIVE], "ssh": ["exec sleep 5"]}),
    "calrec runs": ("cat", {"describe": [ABSENT, ACTIVE], "cat": [report("null")]}),
}


@pytest.mark.parametrize("moment", STOPPED_WHILE)
@pytest.mark.parametrize(
    "number, code", [(signal.SIGTERM, 143), (signal.SIGINT, 130), (signal.SIGHUP, 129)]
)
def test_up_deletes_the_slice_when_it_is_stopped(cloud, checkout, tmp_path, moment, number, code):
    reached, answers = STOPPED_WHILE[moment]
    cloud.answers(**answers)
    argv = [checkout, "up", *FLAGS, *SLICE, *BUCKET, *TRAIN]
    with open(tmp_path / "log", "w") as log:
        env = cloud.env | {"CALREC_POLL_SECONDS": "20"}
        process = subprocess.Popen(argv, env=env, stdout=log, stderr=log)
    try:
        wait_for(lambda: reached in cloud.verbs())
        time.sleep(0.1)  # until it waits
        process.send_signal(number)
        assert process.wait(4) == code, (tmp_path / "log").read_text()
    finally:
        process.kill()
    assert cloud.calls()[-1] == DELETE and cloud.calls().count(DELETE) == 1
