#!/bin/bash
# own-gpus SETTINGS COMMAND…: a rollout server of several that see the same GPUs. It takes as many as
# the settings' rollout.tensor_parallel_size, none of which another holds, from the last down (the
# trainer has the first), and holds them until it ends.
wanted=$(sed -n 's/^tensor_parallel_size = //p' "$1")
: "${wanted:=1}"
shift
gpus=$(nvidia-smi --query-gpu=index --format=csv,noheader) || {
  echo "own-gpus: nvidia-smi finds no GPU in this container: $gpus" >&2
  exit 1
}
own=()
for gpu in $(echo "$gpus" | tac); do
  ((${#own[@]} < wanted)) || break
  exec {lock}>"$XDG_CACHE_HOME/gpu-$gpu.lock"
  if flock --nonblock "$lock"; then
    own=("$gpu" "${own[@]}")
  else
    exec {lock}>&-
  fi
done
if ((${#own[@]} < wanted)); then
  echo "own-gpus: ${#own[@]} GPUs are free and rollout.tensor_parallel_size is $wanted: all ROLLOUT_SERVERS" \
    "together need more than there are ROLLOUT_GPUS" >&2
  exit 1
fi
export CUDA_DEVICE_ORDER=PCI_BUS_ID
CUDA_VISIBLE_DEVICES=$(IFS=, && echo "${own[*]}")
SGG__ROLLOUT__URL=http://$(hostname):8200
export CUDA_VISIBLE_DEVICES SGG__ROLLOUT__URL
exec "$@"
