# shellcheck shell=bash
# What the verbs share: settings, --help, --dry-run, the state of the TPU, and commands on all its workers. Sourced.

set -euo pipefail

if ((BASH_VERSINFO[0] < 5)); then
  echo "bash: found $BASH_VERSION, expected 5.0 or newer" >&2
  exit 2
fi

declare -A EXPECTED=(
  [NAME]="what the TPU is called, such as d3m-1"
  [ZONE]="where it is, such as us-west4-a"
  [PROJECT]="a Google Cloud project; gcloud's default if not set"
  [ACCELERATOR]="a TPU type, such as v5litepod-16"
  [RUNTIME]="a TPU software version, such as v2-alpha-tpuv5-lite"
  [BUCKET]="gs://BUCKET or gs://BUCKET/FOLDER, where results go"
  [REPOSITORY]="a git URL that the workers can read"
  [REVISION]="a commit of it; HEAD if not set"
  [WORKERS]="how many hosts the TPU has; asked of gcloud, or taken from ACCELERATOR in a dry run, if not set"
  [MAX_ATTEMPTS]="how often to try at most"
  [CLUSTER]="a GKE cluster made by xpk"
  [IMAGE]="a container image with the repository and its .venv in /d3mjax"
  [STORAGE]="what 'xpk storage attach' called the bucket"
  [RESULTS]="a directory for results"
)

REST=()
here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)

say() { echo "$(basename "$0"): $*" >&2; }

die() {
  say "$*"
  exit 2
}

usage() { awk 'NR > 1 { if (!/^#/) exit; sub(/^# ?/, ""); print }' "$0"; }

# Settings from the front of the arguments, as --name VALUE or --name=VALUE for NAME; what follows is left in REST.
read_settings() {
  local flag name
  while (($#)); do
    flag=${1%%=*}
    name=${flag#--}
    name=${name//-/_}
    name=${name^^}
    case $1 in
      -h | --help)
        usage
        exit 0
        ;;
      --dry-run | --spot) export "$name=1" ;;
      --)
        shift
        break
        ;;
      --*)
        [[ ${EXPECTED[$name]:-} ]] || die "$flag: no such option; --help says which there are"
        if [[ $1 == *=* ]]; then
          export "$name=${1#*=}"
        else
          (($# > 1)) || die "$flag: found nothing, expected ${EXPECTED[$name]}"
          export "$name=$2"
          shift
        fi
        ;;
      *) break ;;
    esac
    shift
  done
  REST=("$@")
}

# All that is missing is said at once, before anything is done.
need() {
  local name flag found=0
  for name in "$@"; do
    flag=${name,,}
    flag=--${flag//_/-}
    if [[ -z ${!name:-} ]]; then
      say "$name: found nothing, expected ${EXPECTED[$name]} (set the variable, or pass $flag)"
      found=1
    elif [[ $name == BUCKET && $BUCKET != gs://?* ]]; then
      say "BUCKET: found $BUCKET, expected ${EXPECTED[BUCKET]}"
      found=1
    elif [[ $name == ACCELERATOR ]] && ! shape >/dev/null; then
      say "ACCELERATOR: found $ACCELERATOR, expected v2, v3, v4, v5litepod, v5p or v6e and a size: v5litepod-16"
      found=1
    fi
  done
  ((found == 0)) || exit 2
}

need_no_more() { ((${#REST[@]} == 0)) || die "found ${REST[0]}, expected nothing but options"; }

need_study() {
  ((${#REST[@]})) || die "STUDY: found nothing, expected a name such as lds_datamodels (python -m experiments lists them)"
  local word
  for word in "${REST[@]}"; do
    [[ $word != --dry-run ]] || die "--dry-run: found it behind ${REST[0]}, expected it in front"
  done
}

# HEAD, if no commit was named. The workers fetch it, so it must be committed and pushed.
need_revision() {
  [[ -z ${REVISION:-} ]] || return 0
  REVISION=$(git -C "$here/.." rev-parse HEAD)
  export REVISION
  [[ -z ${DRY_RUN:-} ]] || return 0
  local changes branches
  changes=$(git -C "$here/.." status --porcelain -- . ':(exclude)logs')
  [[ -z $changes ]] || die "REVISION: found changes that are not committed, expected none, or a commit (--revision)"
  branches=$(git -C "$here/.." branch --remotes --contains "$REVISION")
  [[ $branches ]] || die "REVISION: found $REVISION in no remote branch, expected a commit that was pushed"
}

do_it() {
  if [[ ${DRY_RUN:-} ]]; then
    printf '%q ' "$@"
    echo
  else
    "$@"
  fi
}

tpus() { do_it gcloud compute tpus "$@" "--zone=$ZONE" ${PROJECT:+"--project=$PROJECT"}; }

# Devices that JAX sees, and hosts. Types of v2 to v4 and v5p count cores; one device is a core on v2 and v3, later a
# chip. Hosts have four chips; up to eight of v5e and v6e are one host.
shape() {
  local size=${ACCELERATOR##*-} devices per_host
  [[ $size =~ ^[1-9][0-9]*$ ]] || return 1
  case ${ACCELERATOR%-*} in
    v2 | v3) devices=$size per_host=8 ;;
    v4 | v5p) devices=$((size / 2)) per_host=4 ;;
    v5litepod | v6e) devices=$size per_host=$((size > 8 ? 4 : 8)) ;;
    *) return 1 ;;
  esac
  echo "$devices $(((devices + per_host - 1) / per_host))"
}

# Of the queued resource (ACTIVE and so on), or with "node" of its machines (READY and so on); ABSENT if there is none.
# An error that does not say that there is none stays an error.
# shellcheck disable=SC2153 # NAME is a setting
state() {
  local errors found code=0
  local -a command=(queued-resources describe "$NAME" '--format=value(state.state)')
  [[ ${1:-} != node ]] || command=(tpu-vm describe "$NAME" '--format=value(state)')
  errors=$(mktemp)
  found=$(tpus "${command[@]}" 2>"$errors") || code=$?
  if ((code)) && grep -q NOT_FOUND "$errors"; then
    found=ABSENT code=0
  fi
  ((code == 0)) || cat "$errors" >&2
  rm -f "$errors"
  echo "$found"
  return "$code"
}

count_workers() {
  local found
  if [[ ${WORKERS:-} ]]; then
    found=$WORKERS
  elif [[ ${DRY_RUN:-} ]]; then
    need ACCELERATOR
    read -r _ found < <(shape)
  else
    found=$(tpus tpu-vm describe "$NAME" '--format=value(networkEndpoints.len())') || return
  fi
  [[ $found =~ ^[1-9][0-9]*$ ]] || die "WORKERS: found '$found', expected ${EXPECTED[WORKERS]}"
  echo "$found"
}

# Nobody is there to answer questions; and a connection to a machine that is gone must not stay open for ever.
SSH_FLAGS=(
  --quiet
  "--ssh-flag=-o BatchMode=yes -o ConnectTimeout=15 -o ServerAliveInterval=30 -o ServerAliveCountMax=6"
)

# on_workers COMMAND: on all workers at once, a log each. The first failure stops the others; its status is returned.
on_workers() {
  local workers k folder pipe pid code=0 left
  local -a command pids=()
  workers=$(count_workers) || return
  if [[ -z ${DRY_RUN:-} ]]; then
    folder=${LOGS:-logs}/$NAME/$(date +%Y%m%dT%H%M%S)-$$
    mkdir -p "$folder"
    say "logs of $workers workers: $folder"
    # Each worker reports through this pipe when it is done.
    mkfifo "$folder/done"
    exec {pipe}<>"$folder/done"
    rm "$folder/done"
  fi
  started=1
  set -m # a process group for each worker, so that gcloud is stopped with the ssh that it started
  for ((k = 0; k < workers; k++)); do
    command=(tpus tpu-vm ssh "$NAME" "--worker=$k" "${SSH_FLAGS[@]}" "--command=$1")
    if [[ ${DRY_RUN:-} ]]; then
      "${command[@]}"
    else
      {
        code=0
        "${command[@]}" >"$folder/worker-$k.log" 2>&1 </dev/null || code=$?
        echo "$k $code" >&"$pipe"
      } &
      pids+=($!)
    fi
  done
  set +m
  [[ -z ${DRY_RUN:-} ]] || return 0
  trap 'echo "- 130" >&"$pipe"' INT
  trap 'echo "- 143" >&"$pipe"' TERM
  for ((left = workers; left > 0; left--)); do
    read -r k code <&"$pipe"
    ((code == 0)) || break
  done
  trap - INT TERM
  if ((code)); then
    if [[ $k == - ]]; then say "told to stop"; else
      say "worker $k ended with status $code; the end of $folder/worker-$k.log:"
      tail -n 20 "$folder/worker-$k.log" >&2
    fi
    for pid in "${pids[@]}"; do kill -TERM -- "-$pid" 2>/dev/null || true; done
  fi
  wait
  exec {pipe}>&-
  return "$code"
}

# On a worker: end the Python that an earlier run left there. It outlives the ssh that started it, and gcloud starts a
# command again when it loses the connection.
# shellcheck disable=SC2016 # the worker expands it
STOP='if read -r pid < ~/.d3mjax.pid && grep -q d3mjax/.venv "/proc/$pid/cmdline"; then
  kill -TERM "$pid"
  for _ in $(seq 60); do [ -e "/proc/$pid" ] || break; sleep 1; done
  kill -KILL "$pid"
fi 2>/dev/null'

# python_on_workers WORDS: Python of the repository on all workers. Where one fails, all are ended.
python_on_workers() {
  local code=0 started=
  on_workers "$STOP
echo \$\$ > ~/.d3mjax.pid
cd ~/d3mjax && exec env D3MJAX_DISTRIBUTED=auto \"\$HOME/d3mjax/.venv/bin/python\" $*" || code=$?
  if ((code)) && [[ $started ]]; then
    tpus tpu-vm ssh "$NAME" --worker=all "${SSH_FLAGS[@]}" "--command=$STOP" </dev/null >/dev/null 2>&1 || true
  fi
  return "$code"
}
