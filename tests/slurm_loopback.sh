#!/usr/bin/env bash
# A throw-away SLURM cluster of two nodes, n1 and n2, on this machine's loopback address only, to try profiles before a
# real one.
#
#   tests/slurm_loopback.sh install                          on Debian and Ubuntu, as root; other systems' packages are called alike
#   tests/slurm_loopback.sh start                            writes everything below $SLURM_TRY (/tmp/slurm-try)
#   export PATH=/tmp/slurm-try/bin:$PATH                     then sinfo, squeue, sbatch and Snakemake's plugin find it
#   tests/slurm_loopback.sh restart                          ends the controller, as a crash would, and starts it again
#   tests/slurm_loopback.sh stop                             cancels jobs, ends the daemons of start, removes the folder
#
# No cgroups, no accounting, no change to /etc: it does not limit what jobs use, and is no example for a cluster of yours.
# Each node claims $SLURM_TRY_CPUS cores (all of this machine's) and two GPUs, a number to count down with no card behind.
# Jobs of the partition `urgent` put those of `main` back into the queue.
set -euo pipefail

here=${SLURM_TRY:-/tmp/slurm-try}
export SLURM_CONF=$here/slurm.conf
PATH=$PATH:/usr/sbin

install() {
    apt-get update -qq
    DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends slurmctld slurmd slurm-client munge
}

start() {
    local daemon command host user memory port cpus
    for daemon in munged slurmctld slurmd; do
        command -v "$daemon" >/dev/null || { echo "$daemon is missing: $0 install" >&2; exit 1; }
    done
    [ ! -e "$here" ] || { echo "$here exists: run '$0 stop' first" >&2; exit 1; }
    mkdir -p "$here"/{bin,state,spool-n1,spool-n2}
    chmod 711 "$here"

    host=$(hostname -s)
    user=$(id -un)
    cpus=${SLURM_TRY_CPUS:-$(nproc)}
    memory=$(awk '/MemTotal/ { print int($2 / 1024) }' /proc/meminfo)
    port=$((20000 + $(cksum <<<"$here" | cut -d' ' -f1) % 10000 * 3)) # two clusters in two folders do not meet
    head -c 1024 /dev/urandom >"$here/munge.key"
    chmod 600 "$here/munge.key"
    cat >"$SLURM_CONF" <<CONF
ClusterName=try
SlurmctldHost=$host(127.0.0.1)
SlurmUser=$user
SlurmdUser=$user
AuthType=auth/munge
AuthInfo=socket=$here/munge.socket,cred_expire=5
CredType=cred/munge
CommunicationParameters=NoInAddrAny,NoCtldInAddrAny
SlurmctldPort=$port
SlurmctldPidFile=$here/slurmctld.pid
SlurmdPidFile=$here/slurmd-%n.pid
SlurmctldLogFile=$here/slurmctld.log
SlurmdLogFile=$here/slurmd-%n.log
StateSaveLocation=$here/state
SlurmdSpoolDir=$here/spool-%n
SlurmdParameters=config_overrides
SchedulerType=sched/backfill
SchedulerParameters=bf_interval=2,sched_interval=2
SelectType=select/cons_tres
SelectTypeParameters=CR_Core_Memory
PreemptType=preempt/partition_prio
PreemptMode=REQUEUE
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
JobAcctGatherType=jobacct_gather/none
MpiDefault=none
ReturnToService=2
MinJobAge=300
DefMemPerCPU=1000
KillWait=5
GresTypes=gpu
NodeName=n1 NodeHostname=$host NodeAddr=127.0.0.1 Port=$((port + 1)) CPUs=$cpus RealMemory=$memory Gres=gpu:2
NodeName=n2 NodeHostname=$host NodeAddr=127.0.0.1 Port=$((port + 2)) CPUs=$cpus RealMemory=$memory Gres=gpu:2
PartitionName=main Nodes=n1,n2 Default=YES MaxTime=INFINITE State=UP PriorityTier=1
PartitionName=urgent Nodes=n1,n2 MaxTime=INFINITE State=UP PriorityTier=10
CONF
    printf 'Name=gpu File=%s\n' /dev/null /dev/zero >"$here/gres.conf"
    # SLURM_CONF alone would not do: the plugin takes SLURM's variables out of a job's environment before it calls srun.
    for command in sacct sacctmgr sbatch scancel scontrol sinfo squeue srun sshare; do
        printf '#!/bin/sh\nSLURM_CONF="%s" exec "%s" "$@"\n' "$SLURM_CONF" "$(command -v "$command")" >"$here/bin/$command"
    done
    chmod +x "$here"/bin/*

    munged --force --key-file="$here/munge.key" --socket="$here/munge.socket" --pid-file="$here/munged.pid" \
        --log-file="$here/munged.log" --seed-file="$here/munge.seed" 2>/dev/null
    slurmctld
    slurmd -N n1
    slurmd -N n2
    ready
    sinfo
    echo "Ready: export PATH=$here/bin:\$PATH"
}

ready() {
    for _ in $(seq 300); do
        [ "$(sinfo --noheader --partition=main --states=idle,mixed,allocated,drained,draining --format=%D 2>/dev/null |
            awk '{ n += $1 } END { print n }')" = 2 ] && return
        sleep 0.1
    done
    echo "The nodes did not come up within 30 s; see $here/*.log" >&2
    exit 1
}

restart() {
    end KILL slurmctld
    slurmctld
    ready
}

stop() {
    # What is left of jobs would outlive its daemons.
    timeout 10 scancel --user="$(id -u)" 2>/dev/null || true
    for _ in $(seq 100); do
        [ -n "$(timeout 5 squeue --noheader 2>/dev/null || true)" ] || break
        sleep 0.1
    done
    end TERM slurmd-n1 slurmd-n2 slurmctld munged
    # Steps of a node that was declared down are nobody's.
    for path in /proc/[0-9]*; do
        if [ "${path#/proc/}" != $$ ] && grep -qzxF "SLURM_CONF=$SLURM_CONF" "$path/environ" 2>/dev/null; then
            kill -KILL "${path#/proc/}" 2>/dev/null || true
        fi
    done
    rm -rf "$here"
}

end() {
    local signal=$1 name pid
    shift
    for name in "$@"; do
        [ -s "$here/$name.pid" ] || continue
        pid=$(cat "$here/$name.pid")
        kill -"$signal" "$pid" 2>/dev/null || continue
        for _ in $(seq 100); do
            kill -0 "$pid" 2>/dev/null || break
            sleep 0.1
        done
    done
}

case ${1:-} in
install | start | restart | stop) "$1" ;;
*) sed -n '2,14s/^# \{0,1\}//p' "$0" ;;
esac
