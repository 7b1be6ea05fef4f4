#!/usr/bin/env bash
# redis.sh [WORKDIR]   Crossfade on Redis (appendfsync always), with one node and with two, and Postfix, in front of the
# same two sinks, in one run; then users and queue in Redis: time, memory, reads.
#
# Needs root, Debian, cgroup v1 and ../shared/bench; nothing else may run on the machine meanwhile. CPU and memory are of
# the nodes and Redis together. SESS ("10 50"), N (12000), USERS (1000000), MESSAGES (1000000), PEER (1).
set -eu
cd "$(dirname "$0")/.."
ROOT=$PWD
SHARED=$ROOT/../shared/bench
[ -d "$SHARED" ] || { echo "bench: $SHARED is not there: nothing to compare with" >&2; exit 1; }
# shellcheck source=bench/workdir.sh
. bench/workdir.sh
SESS=${SESS:-10 50}; N=${N:-12000}; PEER=${PEER:-1}; USERS=${USERS:-1000000}; MESSAGES=${MESSAGES:-1000000}
PORT=${PORT:-16379}; CX_SMTP=${CX_SMTP:-12725}; CX_ADMIN=${CX_ADMIN:-12825}
# shellcheck source=/dev/null
. "$SHARED/lib.sh"
need postfix postfix-lmdb postfix-cdb; build_tools
command -v redis-server >/dev/null || { echo "bench: apt-get install redis-server" >&2; exit 1; }
PIDS=()
stop_all() { stop_sinks; for p in "${PIDS[@]}"; do kill "$p" 2>/dev/null || true; done; for p in "${PIDS[@]}"; do wait "$p" 2>/dev/null || true; done; PIDS=(); }
trap 'code=$?; set +e; stop_all; tidy $code' EXIT

start_redis() {
  rm -rf "$W/redis"; mkdir -p "$W/redis"
  "$BIN/cgrun" exec bench_crossfade redis-server --port "$PORT" --bind 127.0.0.1 --dir "$W/redis" --appendonly yes --appendfsync always \
    --save "" --auto-aof-rewrite-min-size 1gb --maxmemory-policy noeviction --logfile "$W/redis/log" & PIDS+=($!)
  sleep 1
}
start_node() { # NUMBER
  mkdir -p "$W/cx$1"
  cat > "$W/cx$1/crossfade.yaml" <<C
hostname: relay.bench.test
domains: [bench.test]
store: redis://127.0.0.1:$PORT/0
node: n$1
smtp: {listen: ["127.0.0.1:$((CX_SMTP + $1))"], max_connections_per_ip: 0}
admin: {listen: "127.0.0.1:$((CX_ADMIN + $1))", token_file: ./admin.token}
backends:
  old: {smtp: "smtp+insecure://127.0.0.1:$SINK_OLD"}
  new: {smtp: "smtp+insecure://127.0.0.1:$SINK_NEW"}
C
  "$BIN/cgrun" exec bench_crossfade "$ROOT/bin/crossfade" serve -c "$W/cx$1/crossfade.yaml" > "$W/cx$1/log" 2>&1 & PIDS+=($!)
  for _ in $(seq 100); do "$ROOT/bin/crossfade" health -c "$W/cx$1/crossfade.yaml" >/dev/null 2>&1 && return; sleep 0.1; done
  echo "node $1 did not start"; tail "$W/cx$1/log"; exit 1
}
users() {
  python3 - > "$W/users.csv" <<'Y'
print("address,state")
for i in range(0, 30001): print(f"{i}u@bench.test,{'new' if i % 2 == 0 else 'old'}")
for i in range(1, 1001): print(f"u{i}@bench.test,{'new' if i % 2 == 0 else 'old'}")
Y
  "$ROOT/bin/crossfade" user import "$W/users.csv" -c "$W/cx1/crossfade.yaml" >/dev/null
}
# half the sessions and half the messages to each node, at once
cat > "$W/split" <<'S'
#!/bin/sh
/usr/sbin/smtp-source $4 -N -s $(($1 / 2)) -m $(($2 / 2)) -l 4096 -f sender@load.test -t u@bench.test 127.0.0.1:$(($3 + 1)) &
/usr/sbin/smtp-source $4 -N -s $(($1 / 2)) -m $(($2 / 2)) -l 4096 -f sender@load.test -t u@bench.test 127.0.0.1:$(($3 + 2)) & wait
S
chmod 755 "$W/split"

redis_runs() { # NODES
  start_sinks; start_redis; for i in $(seq "$1"); do start_node "$i"; done; users
  "$BIN/smtpload" -addr 127.0.0.1:$((CX_SMTP + 1)) -n 500 -c 10 >/dev/null; sleep 2
  for s in $SESS; do
    for reuse in "" "-d"; do
      reset_sinks
      if [ "$1" = 1 ]; then LOAD=(/usr/sbin/smtp-source $reuse -N -s "$s" -m "$N" -l 4096 -f sender@load.test -t u@bench.test 127.0.0.1:$((CX_SMTP + 1)))
      else LOAD=("$W/split" "$s" "$N" "$CX_SMTP" "$reuse"); fi
      meas -sinks "$(SINKFILES)" -expect "$N" -mta bench_crossfade -sinkcg bench_sink -queue "$W/nothing" \
        -label "redis$1 size=4096 sess=$s reuse=${reuse:-no} run=1" -timeout 120s -- "${LOAD[@]}"
    done
    [ "$1" = 1 ] || continue
    reset_sinks
    meas -sinks "$(SINKFILES)" -expect "$N" -mta bench_crossfade -sinkcg bench_sink -queue "$W/nothing" \
      -label "redis1-lat size=4096 sess=$s reuse=no run=1" -- "$BIN/smtpload" -addr 127.0.0.1:$((CX_SMTP + 1)) -n "$N" -c "$s" -size 4096 -per 1
  done
  stop_all
}
postfix_runs() {
  for reuse in "" "-d"; do
    LAT=$([ -z "$reuse" ] && echo 1 || echo) RUNS=1 SIZES=4096 SESS="$SESS" N4=$N SSOPT=$reuse bash "$SHARED/run-postfix.sh" "$W" |
      sed "s/\(postfix size=[0-9]* sess=[0-9]*\) /\1 reuse=${reuse:-no} /"
  done
}

OUT=$W/results.txt; : > "$OUT"
set -o pipefail # tee hides no failure
redis_runs 1 2>&1 | tee -a "$OUT"
redis_runs 2 2>&1 | tee -a "$OUT"
[ "$PEER" = 1 ] && postfix_runs 2>&1 | tee -a "$OUT"
echo; python3 "$ROOT/bench/table.py" "$OUT"
USERS=100000 go test -run XXX -bench Users -benchtime 1x ./store/redis | grep Benchmark
USERS=$USERS MESSAGES=$MESSAGES go test -timeout 60m -run XXX -bench 'Users|Queue' -benchtime 1x ./store/redis | grep Benchmark
rm -rf "$W/redis"
