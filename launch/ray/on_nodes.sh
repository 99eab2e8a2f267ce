#!/usr/bin/env bash
# Precompute on the nodes of an allocation, on a Ray cluster that ends with the run. One call on each node:
#
#   on_nodes.sh NODES NODE_RANK ADDRESS_OF_NODE_0 PORT [options of `sage-scale precompute`]
#
# launch/slurm/preprocess.sbatch and launch/sky/preprocess.yaml call it. Node 0 has Ray's head and the driver: SIGTERM
# to it stops the driver, and its exit code is the driver's (0, 2, 3, 4, 130; docs/reference.md). The other nodes work
# until node 0 has ended, and end with 0. RAY_AUTH_TOKEN, one secret for all nodes, closes the cluster to others.
#
# `ray symmetric-run` is not used: it stops every Ray of the machine, does not start beside another one, and ends with 0
# where Ray has not started.
set -u
nodes=$1 rank=$2 address=$3 port=$4
shift 4
[ "$nodes" = 1 ] && exec sage-scale precompute "$@" # has a Ray of its own, on the loopback interface

export RAY_AUTH_MODE=token RAY_ADDRESS=$address:$port
: "${RAY_AUTH_TOKEN:?is not set: give all nodes the same secret}"
folder=/tmp/sage-ray-$(id -u)-$port-$rank # short, for Ray's sockets
options=(--block --disable-usage-stats --temp-dir="$folder" --num-cpus="$(env -u OMP_NUM_THREADS nproc)")
# SkyPilot's own Ray has the usual port. Actors keep nothing in the object store: the memory is theirs.
options+=(--dashboard-agent-listen-port=52366 --object-store-memory=500000000)

node_0_listens() { (exec 3<>"/dev/tcp/$address/$port") 2>/dev/null; }

wait_for_node_0() {
  for _ in {1..300}; do
    node_0_listens && return
    kill -0 "${1:-$$}" 2>/dev/null || break
    sleep 1
  done
  echo "on_nodes.sh: nothing listens at $RAY_ADDRESS" >&2
  exit 1
}

if [ "$rank" = 0 ]; then
  [[ $address =~ ^[0-9.]+$ ]] && options+=(--node-ip-address="$address")
  ray start --head --port="$port" --dashboard-host=127.0.0.1 "${options[@]}" >"$folder.log" 2>&1 &
  ray=$!
  trap 'kill "$ray" 2>/dev/null; wait "$ray" 2>/dev/null; rm -rf "$folder" "$folder.log"' EXIT
  wait_for_node_0 "$ray"
  sage-scale precompute "$@" &
  driver=$!
  trap 'kill -TERM "$driver" 2>/dev/null' TERM INT
  code=1
  while kill -0 "$driver" 2>/dev/null; do # a trapped signal ends `wait` before the driver has ended
    wait "$driver"
    code=$?
  done
  exit "$code"
fi

wait_for_node_0
ray start --address="$RAY_ADDRESS" "${options[@]}" >"$folder.log" 2>&1 &
ray=$!
trap 'kill "$ray" 2>/dev/null; wait "$ray" 2>/dev/null; rm -rf "$folder" "$folder.log"' EXIT
trap 'exit 0' TERM INT
while sleep 5 && kill -0 "$ray" 2>/dev/null && node_0_listens; do :; done
if node_0_listens; then # a worker that could not join, or was killed
  tail -n 20 "$folder.log" >&2
  exit 1
fi
