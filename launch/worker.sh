#!/usr/bin/env bash
# tpu.sh calls this on each worker of a slice. ~/calrec/code holds the code, ~/calrec all the rest.
#   worker.sh setup                  installs the code
#   worker.sh run URL ARGUMENTS      starts `calrec ARGUMENTS`, and returns; its log and exit code
#                                    go to URL/worker-N-TIME.log and URL/worker-N.json
set -euo pipefail

home=$HOME/calrec
code=$home/code

# The Python of the images is too old for calrec_jax: uv installs one.
setup() {
  python3 -m pip install --user --quiet uv
  local uv="$HOME/.local/bin/uv"
  [[ -x $home/venv/bin/python ]] || "$uv" venv --quiet --python 3.12 "$home/venv"
  cd "$code"
  "$uv" pip install --quiet --python "$home/venv/bin/python" -c constraints.txt -e '.[tpu]'
}

status() {
  printf '{"worker": %s, "started": "%s", "rc": %s}\n' "$number" "$started" "$1" |
    gcloud storage cp - "$url/worker-$number.json"
}

run() {
  url=$1
  shift
  exec 9>"$home/lock"
  flock -n 9 || {
    echo "worker.sh: error: a run is under way here" >&2
    exit 1
  }
  number=$(curl -sf -H 'Metadata-Flavor: Google' \
    http://metadata.google.internal/computeMetadata/v1/instance/attributes/agent-worker-number)
  started=$(date -u +%Y%m%dT%H%M%SZ)
  status null  # before tpu.sh reads the exit code: that of an older run may be there
  cd "$HOME"
  setsid nohup bash "$0" detached "$url" "$number" "$started" "$@" </dev/null >"$home/log" 2>&1 &
}

# Runs calrec while the lock (fd 9) is held, passes SIGTERM on to it, copies the log every minute.
detached() {
  url=$1 number=$2 started=$3
  shift 3
  # A MIXTURE_OR_TASK_MODULE may lie at the top of the code.
  CALREC_MULTIHOST=1 PYTHONPATH=$code "$home/venv/bin/calrec" "$@" &
  local calrec=$! rc=0
  trap 'kill -TERM "$calrec" 2>/dev/null || true' TERM
  while sleep 60; do copy_log; done 9>&- &
  local copying=$!
  while kill -0 "$calrec" 2>/dev/null; do  # SIGTERM also ends a wait
    wait "$calrec" || true
  done
  wait "$calrec" || rc=$?
  echo "worker.sh: calrec left with $rc"
  kill "$copying" 2>/dev/null || true
  copy_log
  status "$rc"
}

copy_log() {
  gcloud storage cp "$home/log" "$url/worker-$number-$started.log" >/dev/null 2>&1 || true
}

command=$1
shift
"$command" "$@"
