#!/usr/bin/env bash
# One machine: hiermusic in one process on all its devices, or in several that share its GPUs out.
set -euo pipefail
usage() {
  cat <<'TEXT'
usage: launch/one_machine.sh [options] -- VERB --flag=value ...
  --processes_per_machine=N  processes, each with its own part of the GPUs (default 1)
  --port=PORT                where they meet on this machine (default 8476)
  --grace=SECONDS            until the rest are killed when one has failed (default 60)
  --dry_run                  print the commands (also: DRY_RUN=1)
SIGTERM and Ctrl-C go to all processes, which save and end; when one fails, so do the others.
TEXT
}
die() { echo "one_machine.sh: $*" >&2 && exit 2; }
dry_run=${DRY_RUN:-} processes=1 port=8476 grace=60
while (($#)); do
  case $1 in
    -h | --help) usage && exit ;;
    --dry_run) dry_run=1 ;;
    --processes_per_machine=*) processes=${1#*=} ;;
    --port=*) port=${1#*=} ;;
    --grace=*) grace=${1#*=} ;;
    --) shift && break ;;
    *) die "unknown option '$1'; what hiermusic is to do comes after -- (-h explains)" ;;
  esac
  shift
done
(($#)) || die "nothing to do: give -- VERB --flag=value ..."
[[ $processes =~ ^[1-9][0-9]*$ ]] || die "--processes_per_machine=$processes is not a positive number"

pids=() status=0 stopping=0
visible=${CUDA_VISIBLE_DEVICES-$(nvidia-smi --query-gpu=index --format=csv,noheader 2>/dev/null | paste -sd, || true)}
IFS=, read -ra gpus <<<"$visible"
share=$((${#gpus[@]} / processes))
((share * processes == ${#gpus[@]})) || die "${#gpus[@]} GPUs do not divide over $processes processes"

pass_on() { stopping=1 && kill -TERM "${pids[@]}" 2>/dev/null || true; }
trap pass_on TERM INT
for ((i = 0; i < processes; i++)); do
  line=(hiermusic "$@")
  ((processes == 1)) || line+=("--coordinator=localhost:$port" "--processes=$processes" "--process=$i")
  ((processes == 1 || !share)) || line=(env "CUDA_VISIBLE_DEVICES=$(IFS=, && echo "${gpus[*]:i * share:share}")" "${line[@]}")
  if [[ -n $dry_run ]]; then printf -v text '%q ' "${line[@]}" && echo "${text% }" && continue; fi
  "${line[@]}" & pids+=($!)
done
while ((${#pids[@]})); do
  code=0 ended=
  wait -n -p ended "${pids[@]}" || code=$?
  [[ -n ${ended:-} ]] || continue # a signal came, and was passed on
  for i in "${!pids[@]}"; do ((pids[i] != ended)) || unset "pids[i]"; done
  ((code && !status)) || continue
  status=$code
  ((!stopping)) || continue # a second SIGTERM would end them before they have saved
  pass_on
  (sleep "$grace" && kill -KILL "${pids[@]}") >/dev/null 2>&1 & killer=$!
done
kill "${killer:-}" 2>/dev/null || true
exit "$status"
