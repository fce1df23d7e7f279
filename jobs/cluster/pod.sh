#!/usr/bin/env bash
# A rented pod (RunPod, Vast, Lambda, any Linux machine with ssh) as the place of a sweep.
#
#   pod.sh install                the project and all it needs, into a virtual environment
#   pod.sh start [SPEC [OPTION…]] Ray, the sweep and the idle guard, out of reach of a cut ssh;
#                                 the options are those of `sweeper run`, as --env DATA_DIR=…
#   pod.sh attach                 look on, by `sweeper watch`; ^C leaves the sweep alone
#   pod.sh status                 what is at work here, and how the sweep stands
#   pod.sh stop                   ask the sweep to stop, then end Ray and the guard
#
# `start` remembers its spec, its options and the settings below, and without a SPEC goes on with
# them. Given to the pod as what it does when it boots, it makes the sweep survive a restart:
#   RunPod   container start command:  bash -c 'bash /workspace/sweeper/jobs/cluster/pod.sh start; sleep infinity'
#   Vast     on-start script:          bash /workspace/sweeper/jobs/cluster/pod.sh start
#   Lambda   crontab -e:               @reboot bash $HOME/sweeper/jobs/cluster/pod.sh start
# The project and SWEEPER_ROOT have to be on a disk that outlives the restart (RunPod: /workspace).
#
# Settings, all by the environment:
#   SWEEPER_ROOT     where sweeps are kept                          (runs/ of the project)
#   VENV             the virtual environment                        (.venv of the project)
#   PYTHON           makes it, 3.11 or newer                        (python3)
#   SKIP_INSTALL     1: `start` takes VENV as it is                 (0)
#   RAY_PORT         of Ray's head                                  (6379)
#   RAY_OPTIONS      more words for `ray start`, as --num-gpus=8    (none)
#   RAY_AUTH_TOKEN_PATH  Ray's token; made where there is none      (SWEEPER_ROOT.pod/token)
#   IDLE_MINUTES     so long without a driver and without a run, and the pod is stopped; 0: never (20)
#   STOP_COMMAND     how; a shell command     (RunPod: runpodctl stop pod $RUNPOD_POD_ID; others: none,
#                    and without one the guard only says so; Vast: vastai stop instance …; else: poweroff)
#   SYNC_COMMAND     before it, as rclone copy "$SWEEPER_ROOT" remote:runs, from the directory of the
#                    first start; the pod goes on until it succeeds (none)
#   BUSY_COMMAND     exit code 0 keeps the pod                      (processes on its GPUs, by nvidia-smi)
#   DRY_RUN          1: the guard says what it would do, and ends   (0)
#   GUARD_OPTIONS    more words for idle_guard.py, as --own on a machine shared with others (none)
#   STOP_SECONDS     `stop` waits so long for the sweep to end      (120)
#   RESTART_SECONDS  before a driver that died is started again; doubled up to 300 (10)
#
# A driver is started again whatever its exit code is, but for 0 (all runs have finished), 1 (some
# have failed), 2 (wrong use) and 130 (interrupted). Ray's head is, while the driver waits for it.
#
# Everything of its own lies beside SWEEPER_ROOT, in SWEEPER_ROOT.pod: logs, process ids, the token,
# what is remembered. So whoever copies the results copies no secret with them.
set -euo pipefail
umask 077

PROJECT=$(cd -- "$(dirname -- "${BASH_SOURCE[0]}")/../.." && pwd)
SCRIPT=$PROJECT/jobs/cluster/pod.sh
SWEEPER_ROOT=$(realpath -m -- "${SWEEPER_ROOT:-$PROJECT/runs}")
STATE=$SWEEPER_ROOT.pod
REMEMBERED=(VENV PYTHON SKIP_INSTALL RAY_PORT RAY_OPTIONS RAY_AUTH_TOKEN_PATH IDLE_MINUTES
  STOP_COMMAND SYNC_COMMAND BUSY_COMMAND DRY_RUN GUARD_OPTIONS STOP_SECONDS RESTART_SECONDS)
# A driver that lived so long had begun well: what ended it is a new accident.
WELL_SECONDS=600
# So many accidents in a row, and the sweep is given up, or the pod would never be idle.
MAX_RESTARTS=20
# After a traceback of the sweeper's own, exit code 70, it is sooner: most come again.
MAX_FAULTS=3
# How often to look whether Ray's head is there.
LOOK_SECONDS=2

say() { printf 'pod: %s\n' "$*"; }
die() {
  printf 'error: %s\n' "$*" >&2
  exit 2
}

# ---- settings

load_settings() {
  local name
  local -A given=()
  for name in "${REMEMBERED[@]}"; do
    if [[ -v $name ]]; then given[$name]=${!name}; fi
  done
  if [[ -f $STATE/settings ]]; then
    # shellcheck source=/dev/null
    source "$STATE/settings"
  fi
  for name in "${!given[@]}"; do printf -v "$name" %s "${given[$name]}"; done
  : "${VENV:=$PROJECT/.venv}" "${PYTHON:=python3}" "${SKIP_INSTALL:=0}" "${RAY_PORT:=6379}"
  : "${RAY_OPTIONS:=}" "${RAY_AUTH_TOKEN_PATH:=$STATE/token}" "${IDLE_MINUTES:=20}"
  : "${SYNC_COMMAND:=}" "${DRY_RUN:=0}" "${GUARD_OPTIONS:=}"
  : "${STOP_SECONDS:=120}" "${RESTART_SECONDS:=10}"
  : "${STOP_COMMAND=${RUNPOD_POD_ID:+runpodctl stop pod $RUNPOD_POD_ID}}"
  : "${BUSY_COMMAND=nvidia-smi --query-compute-apps=pid --format=csv,noheader | grep -q .}"
  export RAY_AUTH_TOKEN_PATH RAY_AUTH_MODE=token RAY_USAGE_STATS_ENABLED=0
  # Ray's workers are nice 15 otherwise, which an ordinary user's process cannot undo.
  export RAY_worker_niceness=0
}

save_settings() {
  local name
  for name in "${REMEMBERED[@]}"; do printf '%s=%q\n' "$name" "${!name}"; done >"$STATE/settings.new"
  mv "$STATE/settings.new" "$STATE/settings"
}

# What is run: the spec, the directory that its relative paths are taken from, the options.
save_sweep() {
  printf '%s\0' "$@" >"$STATE/sweep.new"
  mv "$STATE/sweep.new" "$STATE/sweep"
}

load_sweep() {
  [[ -f $STATE/sweep ]] || die "nothing has been started here yet; give a spec: pod.sh start SPEC"
  mapfile -d '' SWEEP <"$STATE/sweep"
  SPEC=${SWEEP[0]} DIRECTORY=${SWEEP[1]} OPTIONS=("${SWEEP[@]:2}")
  [[ -f $SPEC ]] || die "$SPEC is not there any more; give another: pod.sh start SPEC"
}

sweep_name() {
  "$VENV/bin/python" - "$SPEC" <<'PYTHON' || die "$SPEC: not a spec with a name"
import sys, tomllib
print(tomllib.load(open(sys.argv[1], "rb"))["name"])
PYTHON
}

# ---- processes that outlive this one

# What /proc says of a process after its name: state, parent, …; nothing where it has ended.
process_facts() {
  local line
  line=$(cat "/proc/$1/stat" 2>/dev/null) || return 1
  line=${line##*) }
  [[ $line != [ZX]* ]] && printf '%s\n' "$line"
}

# When a process began, so that another one under the same number is not taken for it.
began() {
  local -a facts
  read -ra facts <<<"$(process_facts "$1")"
  printf '%s\n' "${facts[19]:-}"
}

remember_process() { printf '%s %s\n' "$2" "$(began "$2")" >"$STATE/$1.pid"; }

# The id of a process that was remembered by a name; fails where it has ended.
process_of() {
  local pid start
  [[ -f $STATE/$1.pid ]] && read -r pid start <"$STATE/$1.pid" || return 1
  [[ -n $start && $(began "$pid") == "$start" ]] && printf '%s\n' "$pid"
}

# launch NAME COMMAND…: in a session of its own, deaf to hangups.
launch() {
  local name=$1
  shift
  setsid nohup "$@" >>"$STATE/$name.log" 2>&1 </dev/null 9>&- &
  remember_process "$name" $!
}

# wait_for_end NAME SECONDS: fails where it is still there after that.
wait_for_end() {
  local deadline=$((SECONDS + $2))
  while process_of "$1" >/dev/null; do
    ((SECONDS < deadline)) || return 1
    sleep 0.2
  done
}

# end NAME SECONDS: SIGTERM, and after so many seconds SIGKILL.
end() {
  local pid
  pid=$(process_of "$1") || return 0
  kill -TERM "$pid" 2>/dev/null || true
  wait_for_end "$1" "$2" && return 0
  say "$1, process $pid, does not end; it is killed"
  kill -KILL "$pid" 2>/dev/null || true
}

# Unlike `sleep`, over at once when a signal comes.
pause_for() {
  sleep "$1" &
  wait $! || kill $! 2>/dev/null || true
}

# ---- what is started

install() {
  if [[ $SKIP_INSTALL == 1 || $VENV/.installed -nt $PROJECT/pyproject.toml ]]; then
    return 0
  fi
  "$PYTHON" -c 'import sys; sys.exit(sys.version_info < (3, 11))' ||
    die "$PYTHON is not a Python 3.11 or newer; set PYTHON"
  say "installing into $VENV (a few minutes)"
  "$PYTHON" -m venv "$VENV"
  "$VENV/bin/pip" install --quiet --disable-pip-version-check --editable "$PROJECT"
  touch "$VENV/.installed"
}

ensure_token() {
  [[ -s $RAY_AUTH_TOKEN_PATH ]] && return
  mkdir -p -- "$(dirname -- "$RAY_AUTH_TOKEN_PATH")"
  head -c 32 /dev/urandom | od -An -v -tx1 | tr -d ' \n' >"$RAY_AUTH_TOKEN_PATH"
}

ensure_ray() {
  local -a options
  process_of ray >/dev/null && return
  read -ra options <<<"$RAY_OPTIONS"
  : >"$STATE/ray.log"
  launch ray "$VENV/bin/ray" start --head --block --port="$RAY_PORT" "${options[@]}"
  local deadline=$((SECONDS + 120))
  until grep -q 'Ray runtime started' "$STATE/ray.log"; do
    if ! process_of ray >/dev/null || ((SECONDS >= deadline)); then
      tail -n 20 "$STATE/ray.log" >&2
      return 1
    fi
    sleep 0.2
  done
  say "Ray is up at 127.0.0.1:$RAY_PORT"
}

ensure_guard() {
  local -a options
  process_of guard >/dev/null && return
  [[ $IDLE_MINUTES == 0 ]] && return
  if [[ -z $STOP_COMMAND ]]; then
    say "no idle guard: STOP_COMMAND says how this pod is stopped, as runpodctl stop pod ID"
    return
  fi
  read -ra options <<<"$GUARD_OPTIONS"
  if [[ -n $SYNC_COMMAND ]]; then options+=(--sync "$SYNC_COMMAND"); fi
  if [[ -n $BUSY_COMMAND ]]; then options+=(--busy "$BUSY_COMMAND"); fi
  if [[ $DRY_RUN == 1 ]]; then options+=(--dry-run); fi
  cd -- "$DIRECTORY"
  # Paths by the environment: what bash quotes in the C locale, another shell does not understand.
  export SCRIPT
  launch guard "$VENV/bin/python" "$PROJECT/jobs/cluster/idle_guard.py" --root "$SWEEPER_ROOT" \
    --minutes "$IDLE_MINUTES" --stop "$STOP_COMMAND" "${options[@]}" \
    --busy 'bash "$SCRIPT" keeps'
}

# In the background: a driver, and another one when it dies, until the sweep is over.
keep() {
  local asked=0 driver='' code began fell limit failures=0 pause=$RESTART_SECONDS
  local -a again=()
  trap 'asked=1; [[ -z $driver ]] || kill -TERM "$driver" 2>/dev/null || true' TERM INT
  cd -- "$DIRECTORY"
  while ((asked == 0)); do
    began=$SECONDS code=0 fell=0 limit=$MAX_RESTARTS
    if ensure_ray; then
      "$VENV/bin/sweeper" run "$SPEC" --address "127.0.0.1:$RAY_PORT" --root "$SWEEPER_ROOT" \
        "${OPTIONS[@]}" "${again[@]}" &
      driver=$!
      # What has failed by itself would only fail again, after every accident.
      again=(--leave-failed)
      remember_process driver "$driver"
      # It waits for a head that has died, which nobody else brings back; or, told to, it ends.
      while process_of driver >/dev/null; do
        if ((asked == 0)) && ! process_of ray >/dev/null; then
          fell=1
          say "Ray's head has died; it is started again"
          ensure_ray || pause_for "$RESTART_SECONDS"
        fi
        pause_for "$LOOK_SECONDS"
      done
      wait "$driver" || code=$?
      driver=''
    else
      code=125
    fi
    case $code in
      0 | 1 | 130) break ;;
      # What the user has to mend, unless it was Ray that had gone.
      2) if ((fell == 0)) && process_of ray >/dev/null; then break; fi ;;
      70) limit=$MAX_FAULTS ;;
    esac
    ((asked == 0)) || break
    if ((SECONDS - began >= WELL_SECONDS)); then failures=0 pause=$RESTART_SECONDS; fi
    failures=$((failures + 1))
    if ((failures > limit)); then
      say "the driver died $failures times in a row; given up"
      break
    fi
    say "the driver died, exit code $code; another one begins in $pause s"
    pause_for "$pause"
    pause=$((pause * 2 > 300 ? 300 : pause * 2))
  done
  say "the driver has ended, exit code $code"
}

# ---- commands

start() {
  mkdir -p -- "$STATE" || die "$STATE cannot be made; give a SWEEPER_ROOT in a directory of yours"
  exec 9>"$STATE/start.lock"
  flock -n 9 || die "another pod.sh start is at work"
  if process_of keeper >/dev/null; then
    load_sweep
    if [[ $# -gt 0 && $(realpath -m -- "$1") != "$SPEC" ]]; then
      die "$SPEC is being run here; pod.sh stop, then start another"
    fi
    say "$SPEC is being run already"
  else
    if [[ $# -gt 0 ]]; then
      [[ -f $1 ]] || die "$1: no such spec"
      save_sweep "$(realpath -- "$1")" "$PWD" "${@:2}"
    fi
    load_sweep
    save_settings
    install
    ensure_token
    ensure_ray || die "Ray does not start; its log: $STATE/ray.log"
    launch keeper bash "$SCRIPT" keep
    say "$SPEC is being run; look on with: pod.sh attach (log: $STATE/keeper.log)"
  fi
  ensure_guard
}

attach() {
  load_sweep
  exec "$VENV/bin/sweeper" watch "$(sweep_name)" --root "$SWEEPER_ROOT"
}

status() {
  local name pid
  for name in ray keeper driver guard; do
    if pid=$(process_of "$name"); then say "$name: process $pid"; else say "$name: not running"; fi
  done
  if [[ -s $STATE/guard.log ]]; then grep 'idle guard: ' "$STATE/guard.log" | tail -n 1 || true; fi
  if [[ -f $STATE/sweep ]]; then
    load_sweep
    "$VENV/bin/sweeper" status "$(sweep_name)" --root "$SWEEPER_ROOT"
  fi
}

stop() {
  end guard 10
  # The keeper passes the word on, and ends when its driver has.
  end keeper "$STOP_SECONDS"
  end driver "$STOP_SECONDS"
  end ray 60
  say "stopped; pod.sh start goes on"
}

main() {
  local command=${1:-}
  [[ $# -eq 0 ]] || shift
  export SWEEPER_ROOT
  load_settings
  case $command in
    install) install ;;
    start) start "$@" ;;
    attach) attach ;;
    status) status ;;
    stop) stop ;;
    # For this script itself and for its guard.
    keep)
      load_sweep
      keep
      ;;
    keeps) process_of keeper >/dev/null ;;
    *) die "pod.sh install | start [SPEC [OPTION…]] | attach | status | stop; found ${command:-nothing}" ;;
  esac
}

main "$@"
