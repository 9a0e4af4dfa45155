#!/bin/bash
# What one task of a job runs. `srun … task.sh ROLE`; job.sh exports what it reads:
#   SGG_JOB_FOLDER    the run's folder, on a file system that all nodes share
#   SGG_JOB_WORKDIR   where relative paths of the settings start
#   SGG_JOB_SUFFIX    makes a node's name that of its address on the fast network
#   SGG_JOB_HOST      the node of the job's script, for those that watch it
#   SGG_JOB_PORT      of the node's first rollout server; the next ones follow
#   SGG_JOB_ALLOW_CHANGES  set where checkpoints of another dataset, instruction or reward are gone on from too
#   SGG_JOB_SERVER_GPUS    GPUs of each server, where a rank and a server are on each GPU
#   SGG_JOB_SERVER_WAIT_S  how long a rank waits for the server on its GPU; unset where it has one of its own
set -uo pipefail
role=$1
shift
cd "$SGG_JOB_WORKDIR" || exit 1
config=$SGG_JOB_FOLDER/config.toml
export PYTHONSAFEPATH=1 # the user's own services.py in that folder is not ours

# Tasks of a node may share one file system (containers), and nodes one home: each task has its own place for
# sockets, spools and compiled kernels.
TMPDIR=$(mktemp -d "${TMPDIR:-/tmp}/sgg.XXXXXX") || exit 1
export TMPDIR TRITON_CACHE_DIR=$TMPDIR/triton
trap 'rm -rf "$TMPDIR"' EXIT

# Sampler and trainer wait for one another with spinning threads: half of the cores each.
cpus=${SLURM_CPUS_PER_TASK:-2}
export OMP_NUM_THREADS=${OMP_NUM_THREADS:-$((cpus > 1 ? cpus / 2 : 1))}

# The whole step gets a TERM, this shell and what it runs: the shell only takes note, and ends after the other.
stopping=0
trap 'stopping=1' TERM

say() { echo "[$(date +%FT%T)] $role ${SLURM_PROCID:-0} on ${SLURMD_NODENAME:-$HOSTNAME}: $*"; }

keep() { # COMMAND…: again whenever it ends, until the step is told to stop
  local failures=0 started code
  while :; do
    started=$SECONDS
    "$@"
    code=$?
    if ((stopping)); then
      say "stopped"
      return 0
    fi
    ((SECONDS - started > 600)) && failures=0
    if ((++failures > 5)); then
      say "gave up: it ended 6 times within ten minutes of its start, at last with $code"
      return 1
    fi
    say "ended with $code; starting again in $((failures * 2)) s"
    sleep $((failures * 2))
    ((stopping)) && return 0
  done
}

ranks() { # COMMAND…: as one rank of the trainer
  export RANK=$SLURM_PROCID WORLD_SIZE=$SLURM_NTASKS LOCAL_RANK=$SLURM_LOCALID LOCAL_WORLD_SIZE=$SLURM_NTASKS_PER_NODE
  once "$@"
}

after_server() { # until the server on this rank's GPU has loaded its model, and so has its part of the memory; fails if told to stop
  local answer deadline=$((SECONDS + SGG_JOB_SERVER_WAIT_S)) host=$SLURMD_NODENAME$SGG_JOB_SUFFIX port=$((SGG_JOB_PORT + SLURM_LOCALID / SGG_JOB_SERVER_GPUS))
  say "waits for the server at $host:$port"
  while ((!stopping)); do
    answer=$({ exec 3<>"/dev/tcp/$host/$port" && printf 'GET /readyz HTTP/1.0\r\n\r\n' >&3 && timeout 5 cat <&3; } 2>/dev/null)
    # Not ready for another reason is no reason to wait: a quarantined server waits for this trainer.
    [[ $answer == HTTP* && $answer != *"the model is loading"* ]] && return 0
    if ((SECONDS > deadline)); then
      say "no server there in $SGG_JOB_SERVER_WAIT_S s; starting without it"
      return 0
    fi
    sleep 1 &
    wait $!
  done
  return 1
}

once() { # COMMAND…: leaves its exit code for job.sh
  local code
  "$@"
  code=$?
  ((SLURM_PROCID == 0)) && echo "$code" >"$SGG_JOB_FOLDER/slurm/$role.code"
  say "ended with $code"
  # 75 is a stop with a checkpoint. Were it this task's code, srun would kill the ranks that are still ending.
  ((code == 75)) && code=0
  return "$code"
}

watch() { # Slurm leaves a job with --no-kill as it is when the node of its script is lost: the first to see it queues it again
  while :; do
    sleep $((20 * (SLURM_PROCID + 1))) & # the further away, the less often: the controller has others to answer
    wait $!
    ((stopping)) && return 0
    if [ -n "$(sinfo --noheader --nodes="$SGG_JOB_HOST" --states=down,fail --format=%N)" ]; then
      say "$SGG_JOB_HOST is lost, and the job's script with it: queued again, to go on from the last checkpoint"
      scontrol requeue "$SLURM_JOB_ID"
    fi
  done
}

say "starts, CUDA_VISIBLE_DEVICES=${CUDA_VISIBLE_DEVICES:-}"
case $role in
  redis) keep sgg-rl serve redis --config "$config" ;;
  reward) keep sgg-rl serve reward --config "$config" ;;
  monitor) keep sgg-rl serve monitor --config "$config" ;;
  rollout)
    export SGG__ROLLOUT__URL=http://$SLURMD_NODENAME$SGG_JOB_SUFFIX:$((SGG_JOB_PORT + SLURM_LOCALID))
    keep sgg-rl serve rollout --config "$config"
    ;;
  # --resume: from the run's last checkpoint, which there is after a requeue; else from the start.
  trainer)
    if [ -z "${SGG_JOB_SERVER_WAIT_S:-}" ] || after_server; then
      ranks sgg-rl train --config "$config" --resume ${SGG_JOB_ALLOW_CHANGES:+--allow-changes}
    else
      once sh -c 'exit 75'
    fi
    ;;
  sft) ranks sgg-rl sft --config "$config" --resume ${SGG_JOB_ALLOW_CHANGES:+--allow-changes} ;;
  watch) watch ;;
  infer) once sgg-rl infer "$@" --config "$config" --output "$SGG_JOB_FOLDER" ;;
  *)
    echo "task.sh: no role $role" >&2
    exit 2
    ;;
esac
