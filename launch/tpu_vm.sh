#!/usr/bin/env bash
# A Cloud TPU slice: hiermusic on all its hosts, which find each other.
set -euo pipefail

usage() {
  cat <<'TEXT'
usage: launch/tpu_vm.sh TPU [gcloud options] [--setup=COMMANDS] [--dry_run] -- VERB --flag=value ...

  TPU [gcloud options]  what `gcloud compute tpus tpu-vm ssh` takes: --zone=..., --project=..., --internal-ip
  --setup=COMMANDS      shell commands that every host runs first
                        (default: cd hiermusic && . .venv/bin/activate)
  --dry_run             print the command (also: DRY_RUN=1)
TEXT
}
die() { echo "tpu_vm.sh: $*" >&2 && exit 2; }

dry_run=${DRY_RUN:-} setup='cd hiermusic && . .venv/bin/activate' options=()
while (($#)); do
  case $1 in
    -h | --help) usage && exit ;;
    --setup=*) setup=${1#*=} ;;
    --dry_run) dry_run=1 ;;
    --) shift && break ;;
    *) options+=("$1") ;;
  esac
  shift
done
((${#options[@]})) || die "no TPU named (-h explains)"
(($#)) || die "nothing to do: give -- VERB --flag=value ..."

printf -v remote '%q ' hiermusic "$@" # quoted once more for the shell over there
line=(gcloud compute tpus tpu-vm ssh "${options[@]}" --worker=all "--command=${setup:+$setup && }${remote% }")
if [[ -n $dry_run ]]; then
  printf -v text '%q ' "${line[@]}" && echo "${text% }"
else
  exec "${line[@]}"
fi
