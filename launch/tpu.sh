#!/usr/bin/env bash
# Launches calrec on one Cloud TPU slice, with plain gcloud; worker.sh is what runs on the workers.
set -euo pipefail

usage() {
  cat <<'END'
usage: launch/tpu.sh COMMAND --name=NAME --project=P --zone=Z [FLAGS] [-- ARGUMENTS OF CALREC]

commands:
  create   ask for the slice, as a queued resource          needs --accelerator-type
  setup    send the commit that is checked out, install it  needs --bucket
  run      start `calrec ARGUMENTS` on every worker         needs --bucket, -- ARGUMENTS
  logs     follow the log of one worker
  status   the slice's state, and what the workers' runs came to      needs --bucket
  delete   give the slice back
  up       all of it: create, setup, run, wait, delete; again when preempted
  list     what this script made in this project and zone, and still has; takes no --name

flags:
  --name=NAME               of the slice and of the run
  --accelerator-type=TYPE   v4-32 or v5p-32 (cores), v5litepod-16 or v6e-16 (chips)
  --runtime-version=V       default: the one for the accelerator type
  --bucket=gs://B/DIR       code, logs and exit codes go to gs://B/DIR/NAME/
  --spot                    cheaper, and taken away at any time
  --valid-until=DURATION    how long to stand in the queue (default: 24h)
  --service-account=EMAIL   default: the project's own
  --startup-script=FILE     run as root when a worker boots, to mount a file system for example
  --worker=N                whose log (default: 0)
  --attempts=N              of `up`, when preempted (default: 10)
  --dry-run                 print the commands, run none of them

Exit code: 0 when done, 2 for wrong usage, otherwise gcloud's; that of `up` is calrec's.
END
}

fail() {
  echo "tpu.sh: error: $*" >&2
  exit 2
}

quoted() { printf '%q ' "$@"; }

say() { echo "tpu.sh: $*" >&2; }

# Runs a command, or prints it for a shell to read.
do_() {
  if [[ $dry_run ]]; then
    quoted "$@"
    echo
  else
    "$@"
  fi
}

parse() {
  name='' project='' zone='' accelerator='' runtime='' bucket='' service_account='' dry_run=''
  startup='' spot='' valid_until=24h worker=0 attempts=10
  calrec=()
  while (($#)); do
    case $1 in
      --name=*) name=${1#*=} ;;
      --project=*) project=${1#*=} ;;
      --zone=*) zone=${1#*=} ;;
      --accelerator-type=*) accelerator=${1#*=} ;;
      --runtime-version=*) runtime=${1#*=} ;;
      --bucket=*) bucket=${1#*=} ;;
      --service-account=*) service_account=${1#*=} ;;
      --valid-until=*) valid_until=${1#*=} ;;
      --startup-script=*) startup=${1#*=} ;;
      --worker=*) worker=${1#*=} ;;
      --attempts=*) attempts=${1#*=} ;;
      --spot) spot=1 ;;
      --dry-run) dry_run=1 ;;
      --) shift && calrec=("$@") && break ;;
      *) fail "unknown argument '$1'; launch/tpu.sh --help lists them (values as --flag=VALUE)" ;;
    esac
    shift
  done
}

check() {
  [[ $project ]] || fail "$command needs --project"
  [[ $zone ]] || fail "$command needs --zone"
  [[ $worker =~ ^[0-9]+$ ]] || fail "--worker=$worker is not a number"
  [[ $attempts =~ ^[1-9][0-9]*$ ]] || fail "--attempts=$attempts is not a positive number"
  where=("--project=$project" "--zone=$zone")
  [[ $command == list ]] && return
  [[ $name ]] || fail "$command needs --name"
  # Such names are also valid in labels and URLs, and need no quoting.
  [[ $name =~ ^[a-z]([-a-z0-9]{0,58}[a-z0-9])?$ ]] ||
    fail "--name=$name: lower-case letters, digits and hyphens, the first a letter, at most 60"
  case $command in create | up) check_accelerator ;; esac
  [[ ! $startup || -f $startup ]] || fail "--startup-script=$startup: no such file"
  case $command in setup | run | status | up) check_bucket ;; esac
  case $command in
    run | up) ((${#calrec[@]})) || fail "$command needs -- and what calrec is to do" ;;
    *) ((!${#calrec[@]})) || fail "$command takes no arguments of calrec" ;;
  esac
}

check_accelerator() {
  local default
  case $accelerator in
    v4-*) default=tpu-ubuntu2204-base ;;
    v5litepod-*) default=v2-alpha-tpuv5-lite ;;
    v5p-*) default=v2-alpha-tpuv5 ;;
    v6e-*) default=v2-alpha-tpuv6e ;;
    '') fail "$command needs --accelerator-type" ;;
    *) fail "--accelerator-type=$accelerator: v4-N, v5litepod-N (the v5e), v5p-N or v6e-N" ;;
  esac
  [[ ${accelerator#*-} =~ ^[1-9][0-9]*$ ]] || fail "--accelerator-type=$accelerator has no size"
  runtime=${runtime:-$default}
}

check_bucket() {
  [[ $bucket =~ ^gs://[^/[:space:]]+ ]] || fail "$command needs --bucket=gs://BUCKET/DIRECTORY"
  url=${bucket%/}/$name
}

# --- commands --------------------------------------------------------------------------------

create() {
  local flags=(
    "--node-id=$name" "${where[@]}" "--accelerator-type=$accelerator"
    "--runtime-version=$runtime" "--valid-until-duration=$valid_until"
    "--labels=calrec-run=$name" --scopes=https://www.googleapis.com/auth/cloud-platform
  )
  [[ $service_account ]] && flags+=("--service-account=$service_account")
  [[ $startup ]] && flags+=("--metadata-from-file=startup-script=$startup")
  [[ $spot ]] && flags+=(--spot)
  do_ gcloud compute tpus queued-resources create "$name" "${flags[@]}" --quiet
}

# `tpu-vm ssh` and not `queued-resources ssh`, which returns 0 for a preempted slice.
on_workers() {
  do_ gcloud compute tpus tpu-vm ssh "$name" "${where[@]}" "--worker=$1" \
    --strict-host-key-checking=no --quiet "--command=$2"
}

send() {
  if [[ ! $dry_run ]]; then
    [[ ! $(git -C "$root" status --porcelain) ]] ||
      fail "what is sent is a commit, and \`git status\` shows changes: commit or remove them"
    mkdir -p "$root/build"
  fi
  do_ git -C "$root" archive --format=tar.gz "--output=$root/build/$name.tar.gz" HEAD &&
    do_ gcloud storage cp "$root/build/$name.tar.gz" "$url/code.tar.gz"
}

install() {
  on_workers all "rm -rf calrec/code && mkdir -p calrec/code && cd calrec/code &&\
 $(quoted gcloud storage cat "$url/code.tar.gz")| tar -xz && bash launch/worker.sh setup"
}

setup() { send && install; }

# The worker detaches: ssh serves 64 workers at a time, and all must run at once.
run() { on_workers all "bash calrec/code/launch/worker.sh $(quoted run "$url" "${calrec[@]}")"; }

logs() { on_workers "$worker" "tail -n 100 -F calrec/log"; }

state() {
  do_ gcloud compute tpus queued-resources describe "$name" "${where[@]}" \
    '--format=value(state.state)'
}

status() {
  state
  do_ gcloud storage cat "$url/worker-*.json"
}

delete() {
  do_ gcloud compute tpus queued-resources delete "$name" "${where[@]}" --force --quiet
}

# Queued resources and not nodes: a resource that still waits for its slice will cost too.
list() {
  do_ gcloud compute tpus queued-resources list "${where[@]}" \
    '--filter=tpu.nodeSpec.node.labels.calrec-run:*'
}

# --- up --------------------------------------------------------------------------------------

# bash handles a signal only after the command in the foreground, so none of these may be long.
interruptibly() {
  "$@" &
  wait $!
}

pause() { interruptibly sleep "${CALREC_POLL_SECONDS:-$1}"; }

# The state in one word; GONE if there is no such slice, UNKNOWN if gcloud fails.
slice_state() {
  local answer
  if answer=$(state 2>&1); then
    echo "${answer##*$'\n'}"
  elif [[ $answer == *NOT_FOUND* ]]; then
    echo GONE
  else
    echo UNKNOWN
  fi
}

# Returns 0 for a slice that is there or may still come, 42 if it was taken away, 1 if it cannot be
# had. A slice that is SUSPENDED does not come back: it must be deleted, and another one requested.
still_there() {
  case $1 in
    SUSPENDING | SUSPENDED) return 42 ;;
    FAILED | GONE) say "$name is $1" && return 1 ;;
  esac
}

wait_until_active() {
  local now before=''
  while :; do
    now=$(slice_state)
    [[ $now == "$before" ]] || say "$name: $now"
    [[ $now == ACTIVE ]] && return
    still_there "$now" || return
    before=$now
    pause 30
  done
}

# Returns calrec's exit code on worker 0, or 42 if the slice was taken away: a process whose peers
# vanish may fail with any code.
wait_for_end() {
  local report rc lost
  while :; do
    report=$(gcloud storage cat "$url/worker-0.json" 2>/dev/null) || report=''
    rc='' lost=0
    [[ $report =~ '"rc": '([0-9]+) ]] && rc=${BASH_REMATCH[1]}
    [[ $rc == 0 ]] && return
    still_there "$(slice_state)" || lost=$?
    [[ $lost == 42 ]] && return 42
    [[ $rc ]] && return "$rc"
    ((lost)) && return "$lost"
    pause 60
  done
}

# sshd of a new slice takes a while to answer.
install_patiently() {
  local try
  for try in 1 2 3 4 5; do
    interruptibly install && return
    still_there "$(slice_state)" || return
    say "setup failed ($try of 5)"
    pause 30
  done
  return 1
}

run_and_wait() {
  if ! interruptibly run; then
    still_there "$(slice_state)" || return
    return 1
  fi
  say "running; its log: launch/tpu.sh logs --name=$name --project=$project --zone=$zone"
  wait_for_end
}

attempt() {
  made=1
  if ! create; then
    made='' # a slice of this name then belongs to another run
    return 1
  fi
  wait_until_active && install_patiently && run_and_wait
}

clean_up() {
  trap '' HUP INT TERM # a second Ctrl-C must not prevent the deletion: the slice costs
  local children
  children=$(jobs -p)
  [[ ! $children ]] || kill "$children" 2>/dev/null || true
  [[ $made ]] || return 0
  say "deleting $name"
  delete || say "$name was not deleted, and goes on costing"
}

up() {
  if [[ $dry_run ]]; then
    send && create && state && install && run && status && delete
    return
  fi
  if [[ $(slice_state) != GONE ]]; then
    state >/dev/null || exit # gcloud has printed the reason
    fail "there is a slice $name: choose another name, or launch/tpu.sh delete it first"
  fi
  send
  local code try
  made=''
  trap 'exit 129' HUP
  trap 'exit 130' INT
  trap 'exit 143' TERM
  trap clean_up EXIT
  for ((try = 1; try <= attempts; try++)); do
    code=0
    attempt || code=$?
    # 42: calrec has saved and is to be started again; 134: JAX has lost its peers.
    [[ $code == 42 || $code == 134 ]] || break
    ((try < attempts)) || break
    say "stopped with $code; attempt $((try + 1)) of $attempts"
    delete
  done
  say "ended with $code; logs are in $url/"
  exit "$code"
}

command=${1:-}
case $command in
  -h | --help) usage && exit ;;
  create | setup | run | logs | status | delete | up | list) shift ;;
  *) fail "no command '$command'; launch/tpu.sh --help lists them" ;;
esac
root=$(cd "$(dirname "$0")/.." && pwd)
parse "$@"
check
"$command"
