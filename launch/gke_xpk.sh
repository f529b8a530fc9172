#!/usr/bin/env bash
# TPU slices or GPU nodes on GKE, through xpk: hiermusic on every host, in a container.
set -euo pipefail

usage() {
  cat <<'TEXT'
usage: launch/gke_xpk.sh [xpk options] [--dry_run] -- VERB --flag=value ...

  xpk options  what `xpk workload create` takes: --workload=NAME --cluster=NAME --tpu-type=v6e-256 --num-slices=2
               --docker-image=IMAGE (with hiermusic installed), --zone=..., --project=..., --priority=...
  --dry_run    print the command (also: DRY_RUN=1)

Preempted workloads are started again up to 10 times and have 300 seconds to save; give --max-restarts or
--termination-grace-period-seconds for other numbers.
TEXT
}
die() { echo "gke_xpk.sh: $*" >&2 && exit 2; }

dry_run=${DRY_RUN:-} options=()
while (($#)); do
  case $1 in
    -h | --help) usage && exit ;;
    --dry_run) dry_run=1 ;;
    --) shift && break ;;
    *) options+=("$1") ;;
  esac
  shift
done
((${#options[@]})) || die "no cluster named (-h explains)"
(($#)) || die "nothing to do: give -- VERB --flag=value ..."

printf -v remote '%q ' hiermusic "$@" # quoted once more for the shell over there
line=(xpk workload create --max-restarts=10 --termination-grace-period-seconds=300 "${options[@]}" "--command=${remote% }")
if [[ -n $dry_run ]]; then
  printf -v text '%q ' "${line[@]}" && echo "${text% }"
else
  exec "${line[@]}"
fi
