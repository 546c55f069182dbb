#!/usr/bin/env bash
# A throw-away SLURM cluster of one node, on this machine's loopback address only, to try profiles/slurm before a real one.
#
#   apt-get install slurmctld slurmd slurm-client munge      (Debian, Ubuntu; other systems call them alike)
#   tests/slurm_loopback.sh start                            writes everything below $SLURM_TRY (/tmp/slurm-try)
#   export PATH=/tmp/slurm-try/bin:$PATH                     then sinfo, squeue, sbatch and Snakemake's plugin find it
#   tests/slurm_loopback.sh stop                             ends the daemons that start began, and removes the folder
#
# No cgroups, no accounting, no change to /etc: it does not limit what jobs use, and is no example for a cluster of yours.
# Its GPUs are a number to count down, with no card behind them, so that `gpu: 1` can be tried too.
set -euo pipefail

here=${SLURM_TRY:-/tmp/slurm-try}
export SLURM_CONF=$here/slurm.conf

start() {
    for daemon in munged slurmctld slurmd; do
        [ -x "/usr/sbin/$daemon" ] || command -v "$daemon" >/dev/null || {
            echo "$daemon is missing: apt-get install slurmctld slurmd slurm-client munge" >&2
            exit 1
        }
    done
    [ ! -e "$here" ] || { echo "$here exists: run '$0 stop' first" >&2; exit 1; }
    mkdir -p "$here"/{bin,state,spool}
    chmod 711 "$here"

    local host user memory
    host=$(hostname -s)
    user=$(id -un)
    memory=$(awk '/MemAvailable/ { print int($2 / 1024 * 0.9) }' /proc/meminfo)
    head -c 1024 /dev/urandom >"$here/munge.key"
    chmod 600 "$here/munge.key"
    cat >"$SLURM_CONF" <<CONF
ClusterName=try
SlurmctldHost=$host(127.0.0.1)
SlurmUser=$user
SlurmdUser=$user
AuthType=auth/munge
AuthInfo=socket=$here/munge.socket
CredType=cred/munge
CommunicationParameters=NoInAddrAny,NoCtldInAddrAny
SlurmctldPort=26817
SlurmdPort=26818
SlurmctldPidFile=$here/slurmctld.pid
SlurmdPidFile=$here/slurmd.pid
SlurmctldLogFile=$here/slurmctld.log
SlurmdLogFile=$here/slurmd.log
StateSaveLocation=$here/state
SlurmdSpoolDir=$here/spool
SchedulerType=sched/backfill
SelectType=select/cons_tres
SelectTypeParameters=CR_Core_Memory
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
JobAcctGatherType=jobacct_gather/none
MpiDefault=none
ReturnToService=2
MinJobAge=300
GresTypes=gpu
NodeName=$host NodeAddr=127.0.0.1 CPUs=$(nproc) RealMemory=$memory Gres=gpu:1 State=UNKNOWN
PartitionName=main Nodes=$host Default=YES MaxTime=INFINITE State=UP
CONF
    echo "Name=gpu File=/dev/null" >"$here/gres.conf"
    # SLURM_CONF alone would not do: the plugin takes SLURM's variables out of a job's environment before it calls srun.
    local command
    for command in sacct sacctmgr sbatch scancel scontrol sinfo squeue srun sshare; do
        printf '#!/bin/sh\nSLURM_CONF="%s" exec "%s" "$@"\n' "$SLURM_CONF" "$(command -v "$command")" >"$here/bin/$command"
    done
    chmod +x "$here"/bin/*

    PATH=$PATH:/usr/sbin
    munged --force --key-file="$here/munge.key" --socket="$here/munge.socket" --pid-file="$here/munged.pid" \
        --log-file="$here/munged.log" --seed-file="$here/munge.seed" 2>/dev/null
    slurmctld
    slurmd
    for _ in $(seq 30); do
        if [ "$(sinfo --noheader --format=%T 2>/dev/null)" = idle ]; then
            sinfo
            echo "Ready: export PATH=$here/bin:\$PATH"
            return
        fi
        sleep 1
    done
    echo "The node did not come up within 30 s; see $here/*.log" >&2
    exit 1
}

stop() {
    for daemon in slurmd slurmctld munged; do
        if [ -s "$here/$daemon.pid" ]; then kill "$(cat "$here/$daemon.pid")" 2>/dev/null || true; fi
    done
    sleep 1
    rm -rf "$here"
}

case ${1:-} in
start | stop) "$1" ;;
*) sed -n '2,10s/^# \{0,1\}//p' "$0" ;;
esac
