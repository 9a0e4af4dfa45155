#!/bin/sh
# one-gpu COMMAND…: a rollout server of several that see the same GPUs. It takes one that no other
# holds, from the last down (the trainer has the first), and holds it until it ends.
gpus=$(nvidia-smi --query-gpu=index --format=csv,noheader) || {
  echo "one-gpu: nvidia-smi finds no GPU in this container: $gpus" >&2
  exit 1
}
for gpu in $(echo "$gpus" | tac); do
  exec 9>"$XDG_CACHE_HOME/gpu-$gpu.lock"
  if flock --nonblock 9; then
    export CUDA_DEVICE_ORDER=PCI_BUS_ID CUDA_VISIBLE_DEVICES="$gpu"
    export SGG__ROLLOUT__URL="http://$(hostname):8200"
    exec "$@"
  fi
done
echo "one-gpu: no GPU is free: ROLLOUT_SERVERS is larger than the number of ROLLOUT_GPUS" >&2
exit 1
