#!/usr/bin/env bash
# Several processes on this machine, as one multi-host run on simulated CPU devices.
set -euo pipefail

usage() {
  cat <<'END'
usage: launch/local.sh [--processes=2] [--devices=4] [--port=PORT] -- COMMAND [ARGUMENTS]

Starts COMMAND as so many processes, each with so many simulated devices, e.g.
  launch/local.sh --processes=2 --devices=4 -- calrec train --gin_file=gin/runs/quickstart.gin
SIGTERM (and Ctrl-C, as SIGTERM) is passed on to all of them. When one fails, the others are ended.
Leaves with the first code that is not 0; 2 for wrong usage.
END
}

fail() {
  echo "local.sh: error: $*" >&2
  exit 2
}

is_free() { ! (: <"/dev/tcp/127.0.0.1/$1") 2>/dev/null; }

free_port() {
  local port
  while :; do
    port=$((20000 + RANDOM % 10000))
    is_free "$port" && break
  done
  echo "$port"
}

processes=2 devices=4 port=''
while (($#)); do
  case $1 in
    --processes=*) processes=${1#*=} ;;
    --devices=*) devices=${1#*=} ;;
    --port=*) port=${1#*=} ;;
    -h | --help) usage && exit ;;
    --) shift && break ;;
    *) fail "unknown argument '$1'; launch/local.sh --help lists them (values as --flag=VALUE)" ;;
  esac
  shift
done
(($#)) || fail "nothing to run: give -- COMMAND"
[[ $processes =~ ^[1-9][0-9]*$ ]] || fail "--processes=$processes is not a positive number"
[[ $devices =~ ^[1-9][0-9]*$ ]] || fail "--devices=$devices is not a positive number"
[[ ! $port || $port =~ ^[1-9][0-9]*$ ]] || fail "--port=$port is not a port"
port=${port:-$(free_port)}

pids=()
stopping=''  # set by a signal; then processes that are still saving may finish

any_left() {
  local pid
  for pid in "${pids[@]}"; do
    kill -0 "$pid" 2>/dev/null && return
  done
  return 1
}

signal_all() { kill "-$1" "${pids[@]}" 2>/dev/null || true; }

# A process that has lost a peer would wait for it in a collective, for minutes.
end_all() {
  local tenths
  signal_all TERM
  for ((tenths = 0; tenths < 50; tenths++)); do
    any_left || return 0
    sleep 0.1
  done
  signal_all KILL
}

trap 'stopping=1; signal_all TERM' HUP INT TERM
export JAX_PLATFORMS=cpu
export XLA_FLAGS="${XLA_FLAGS:-} --xla_force_host_platform_device_count=$devices"
export CALREC_COORDINATOR=127.0.0.1:$port CALREC_NUM_PROCESSES=$processes
for ((i = 0; i < processes; i++)); do
  CALREC_PROCESS_ID=$i "$@" &
  pids+=($!)
done
[[ ! $stopping ]] || signal_all TERM  # a signal came while the last ones were being started

code=0
running=("${pids[@]}")
while ((${#running[@]})); do
  still=()
  for pid in "${running[@]}"; do
    if kill -0 "$pid" 2>/dev/null; then
      still+=("$pid")
      continue
    fi
    got=0
    wait "$pid" || got=$?
    if ((got && !code)); then
      code=$got
      [[ $stopping ]] || end_all
    fi
  done
  running=(${still[@]+"${still[@]}"})
  sleep 0.1
done
exit "$code"
