#!/bin/bash
# A real Slurm cluster on one machine, for tests/integration/test_slurm.py: munge, a controller, and for each node a
# slurmd in a network namespace with an address, a host name and fake GPUs of its own. Root; slurm-wlm and munge.
#
#   slurm_cluster.sh up FOLDER NODES GPUS    until all nodes g0 … are idle; FOLDER/slurm.conf is the SLURM_CONF
#   slurm_cluster.sh down FOLDER NODES
#   slurm_cluster.sh crash FOLDER NODE       kill -9 a node's slurmd and everything that runs on it
set -euo pipefail
action=$1 folder=$2
bridge=sggslurm0 subnet=10.213.0
export SLURM_CONF=$folder/slurm.conf

namespace() { echo "sgg-slurm-$1"; }
address() { echo "$subnet.$((10 + ${1#g}))"; }

write_configuration() { # NODES GPUS
  local last=$(($1 - 1)) n
  mkdir -p "$folder"/{state,spool,run,log,devices,no-cgroups}
  # One existing device for each GPU: those with the numbers of /dev/null will do.
  for ((n = 0; n < $2; n++)); do mknod "$folder/devices/nvidia$n" c 1 3; done
  echo "NodeName=g[0-$last] Name=gpu File=$folder/devices/nvidia[0-$(($2 - 1))]" >"$folder/gres.conf"
  # No cgroups: "disabled" from 23.02 on; before, version 1 in an empty folder is the same with the plugins below.
  if [ "$(printf '%s\n23.02\n' "$(slurmctld -V | awk '{ print $2 }')" | sort -V | head -1)" = 23.02 ]; then
    echo "CgroupPlugin=disabled" >"$folder/cgroup.conf"
  else
    printf 'CgroupPlugin=cgroup/v1\nCgroupAutomount=no\nCgroupMountpoint=%s\n' "$folder/no-cgroups" >"$folder/cgroup.conf"
  fi
  cat >"$SLURM_CONF" <<CONF
ClusterName=sgg
SlurmctldHost=localhost($subnet.1)
SlurmctldPort=16917
AuthType=auth/munge
AuthInfo=socket=$folder/run/munge.socket
SlurmUser=root
SlurmdUser=root
StateSaveLocation=$folder/state
SlurmdSpoolDir=$folder/spool/%n
SlurmctldPidFile=$folder/run/slurmctld.pid
SlurmdPidFile=$folder/run/slurmd-%n.pid
SlurmctldLogFile=$folder/log/slurmctld.log
SlurmdLogFile=$folder/log/slurmd-%n.log
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
MpiDefault=none
SchedulerParameters=sched_interval=2,bf_interval=2,sched_min_interval=200000
SelectType=select/cons_tres
SelectTypeParameters=CR_Core_Memory
GresTypes=gpu
ReturnToService=2
SlurmctldTimeout=10
SlurmdTimeout=10
KillWait=5
MinJobAge=3600
JobRequeue=1
SlurmdParameters=config_overrides
AccountingStorageType=accounting_storage/none
JobAcctGatherType=jobacct_gather/none
CONF
  for ((n = 0; n < $1; n++)); do
    mkdir -p "$folder/spool/g$n"
    echo "NodeName=g$n NodeHostname=g$n NodeAddr=$(address g$n) Port=17901 CPUs=16 RealMemory=16000 Gres=gpu:$2 State=UNKNOWN"
  done >>"$SLURM_CONF"
  echo "PartitionName=all Nodes=ALL Default=YES MaxTime=INFINITE State=UP" >>"$SLURM_CONF"
}

start_network() { # NODES
  local hosts n
  hosts="127.0.0.1 localhost"$'\n'"$subnet.1 $(hostname)"
  ip link add "$bridge" type bridge
  ip address add "$subnet.1/24" dev "$bridge"
  ip link set "$bridge" up
  # A Docker engine on this machine forwards nothing that it does not know.
  if command -v iptables >/dev/null; then iptables -I FORWARD -i "$bridge" -o "$bridge" -j ACCEPT 2>/dev/null || true; fi
  for ((n = 0; n < $1; n++)); do hosts+=$'\n'"$(address g$n) g$n"; done
  for ((n = 0; n < $1; n++)); do
    local space
    space=$(namespace g$n)
    mkdir -p "/etc/netns/$space"
    echo "$hosts" >"/etc/netns/$space/hosts"
    ip netns add "$space"
    ip link add "sggv$n" type veth peer name eth0 netns "$space"
    ip link set "sggv$n" master "$bridge" up
    ip -n "$space" address add "$(address g$n)/24" dev eth0
    ip -n "$space" link set eth0 up
    ip -n "$space" link set lo up
  done
}

start_node() { # NODE
  ip netns exec "$(namespace "$1")" unshare --uts sh -c "hostname $1 && exec slurmd -N $1 -f $SLURM_CONF"
}

wait_idle() { # NODES
  for ((i = 0; i < 300; i++)); do
    [ "$(sinfo -h -N -t idle -o %T 2>/dev/null | grep -cx idle)" = "$1" ] && return 0
    sleep 0.1
  done
  echo "nodes are not idle:" >&2
  sinfo -R >&2 || true
  tail -n 15 "$folder"/log/*.log >&2
  return 1
}

end() { # FILE: the process whose id is in it
  if [ -s "$1" ]; then kill -9 "$(cat "$1")" 2>/dev/null || true; fi
}

case $action in
  up)
    write_configuration "$3" "$4"
    start_network "$3"
    (umask 077 && dd if=/dev/urandom of="$folder/munge.key" bs=128 count=1 status=none)
    munged --force --key-file="$folder/munge.key" --socket="$folder/run/munge.socket" --seed-file="$folder/run/munge.seed" \
      --pid-file="$folder/run/munged.pid" --log-file="$folder/log/munged.log"
    slurmctld -c -f "$SLURM_CONF"
    for ((n = 0; n < $3; n++)); do start_node "g$n"; done
    wait_idle "$3"
    ;;
  down)
    end "$folder/run/slurmctld.pid"
    end "$folder/run/munged.pid"
    for ((n = 0; n < $3; n++)); do
      space=$(namespace g$n)
      for pid in $(ip netns pids "$space" 2>/dev/null); do kill -9 "$pid" 2>/dev/null || true; done
      ip link delete "sggv$n" 2>/dev/null || true # by itself it goes some time after its namespace
      ip netns delete "$space" 2>/dev/null || true
      rm -rf "/etc/netns/$space"
    done
    ip link delete "$bridge" 2>/dev/null || true
    if command -v iptables >/dev/null; then iptables -D FORWARD -i "$bridge" -o "$bridge" -j ACCEPT 2>/dev/null || true; fi
    ;;
  crash)
    # Off the network first: srun's shepherd, while it outlives its srun, tells the controller to cancel the step.
    space=$(namespace "$3")
    ip -n "$space" link set eth0 down
    for pid in $(ip netns pids "$space"); do kill -9 "$pid" 2>/dev/null || true; done
    ip -n "$space" link set eth0 up
    rm -f "$folder/run/slurmd-$3.pid"
    ;;
esac
