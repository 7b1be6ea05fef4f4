#!/usr/bin/env bash
# load.sh [WORKDIR]   Crossfade under those who mean no good, in one run:
#
#   1. 50 good senders alone, and beside DRIP (2000) connections that send one byte a second into a message, by turns,
#      ROUNDS (3) times; the ratio of the medians. The goal is 0.80.
#   2. 50 good senders beside a flood of FLOOD (5000) connections from 200 networks, with 1,000 places in all.
#   3. TLS handshakes a second, Crossfade's and Postfix's by turns (PEER=0 leaves Postfix out).
#
# Needs root, Debian's postfix and openssl, cgroup v1 and ../shared/bench; nothing else may run on the machine meanwhile.
# N (12000) messages of 4 KiB a run. A short form: N=3000 ROUNDS=1 DRIP=500 FLOOD=2000 FOR=3 bash bench/load.sh
set -eu
cd "$(dirname "$0")/.."
ROOT=$PWD; SHARED=${SHARED:-$ROOT/../shared/bench}
[ -d "$SHARED" ] || { echo "bench: $SHARED is not there: no load generator" >&2; exit 1; }
# shellcheck source=bench/workdir.sh
. bench/workdir.sh
N=${N:-12000}; ROUNDS=${ROUNDS:-3}; DRIP=${DRIP:-2000}; FLOOD=${FLOOD:-5000}; FOR=${FOR:-10}; PEER=${PEER:-1}
CX_SMTP=${CX_SMTP:-12725}; CX_ADMIN=${CX_ADMIN:-12726}; PF_SMTP=${PF_SMTP:-12525}
ulimit -n "$(ulimit -Hn)"
# shellcheck source=/dev/null
. "$SHARED/lib.sh"
need postfix; build_tools
go build -o "$W/crossfade" ./cmd/crossfade
go build -o "$W/smtphold" ./bench/smtphold/main.go
PID= HOLD=
trap 'code=$?; set +e; stop_sinks; for p in $HOLD $PID; do kill "$p" 2>/dev/null || true; done; [ ! -d "$W/postfix" ] || postfix -c "$W/postfix/etc" stop >/dev/null 2>&1 || true; wait; tidy $code' EXIT
openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -days 2 -subj /CN=relay.bench.test -keyout "$W/key.pem" -out "$W/cert.pem" 2>/dev/null

start() { # MAX_CONNECTIONS
  rm -rf "$W/cx"; mkdir -p "$W/cx"
  cat > "$W/cx/crossfade.yaml" <<C
hostname: relay.bench.test
domains: [bench.test]
store: ./data
smtp:
  listen: ["127.0.0.1:$CX_SMTP"]
  tls: {cert: $W/cert.pem, key: $W/key.pem}
  max_connections: $1
  max_connections_per_ip: 0
  limits: {exempt: [], host: {connections: 0, messages: 0}, network: {connections: 0, messages: 0}}
admin: {listen: "127.0.0.1:$CX_ADMIN", token_file: ./admin.token}
log: {level: warn}
backends:
  old: {smtp: "smtp+insecure://127.0.0.1:$SINK_OLD"}
  new: {smtp: "smtp+insecure://127.0.0.1:$SINK_NEW"}
routing: {unknown: old}
queue: {min_free: 0}
C
  "$W/crossfade" serve -c "$W/cx/crossfade.yaml" > "$W/cx/log" 2>&1 & PID=$!
  for _ in $(seq 100); do "$W/crossfade" health -c "$W/cx/crossfade.yaml" >/dev/null 2>&1 && return; sleep 0.1; done
  tail "$W/cx/log"; exit 1
}
stop() { kill "$PID"; wait "$PID" || true; PID=; }
good() { "$BIN/smtpload" -addr 127.0.0.1:$CX_SMTP -n "$N" -c 50 -size 4096 -per 10 | tee -a "$W/load.txt"; }
rate() { awk -v n="$N" 'match($0, /rate=[0-9.]+/) {r=substr($0, RSTART+5, RLENGTH-5)} END {print r}' "$1"; }
hold() { # ARGS...
  "$W/smtphold" -addr 127.0.0.1:$CX_SMTP "$@" > "$W/hold" & HOLD=$!
  for _ in $(seq 240); do grep -q OPEN "$W/hold" && break; sleep 0.5; done
  sed 's/^/  /' "$W/hold"
}
let_go() { kill "$HOLD"; wait "$HOLD" || true; HOLD=; tail -n 1 "$W/hold" | sed 's/^/  /'; }

start_sinks
start $((DRIP * 2 + 1000)); good >/dev/null; : > "$W/alone"; : > "$W/beside"
for r in $(seq "$ROUNDS"); do
  good > "$W/out"; rate "$W/out" >> "$W/alone"; echo "round $r alone: $(tail -n 1 "$W/alone") msg/s"
  hold -mode drip -n "$DRIP"
  grep -q "OPEN $DRIP of $DRIP " "$W/hold" || { echo "load.sh: not all that drip are there: nothing was measured" >&2; exit 1; }
  good > "$W/out"; rate "$W/out" >> "$W/beside"; echo "round $r beside: $(tail -n 1 "$W/beside") msg/s"
  let_go
done
python3 - "$W/alone" "$W/beside" "$DRIP" <<'Y'
import statistics, sys
alone, beside = (statistics.median(float(x) for x in open(f)) for f in sys.argv[1:3])
print(f"DRIP 50 good senders: {alone:.0f} msg/s alone, {beside:.0f} beside {sys.argv[3]} that drip: {beside/alone:.2f}")
Y
stop

start 1000; "$BIN/smtpload" -addr 127.0.0.1:$CX_SMTP -n 200 -c 5 -per 10 >/dev/null   # from now on they are known
hold -mode flood -n "$FLOOD"
good > "$W/out"; echo "FLOOD of $FLOOD: 50 good senders: $(cat "$W/out")"
let_go
curl -s "http://127.0.0.1:$CX_ADMIN/metrics" | awk '/^crossfade_smtp_connections_turned_away_total/ && $2 > 0 {print "  " $0}'
stop

shake() { "$W/smtphold" -mode shake -c 8 -for "${FOR}s" -addr "127.0.0.1:$1" | sed "s/^HANDSHAKES/HANDSHAKES $2/"; }
postfix_up() {
  P=$W/postfix; mkdir -p "$P/etc" "$P/queue" "$P/data"; chown postfix "$P/data"; chmod 755 "$P"
  sed "s/^smtp      inet .*smtpd\$/127.0.0.1:$PF_SMTP inet n - n - 100 smtpd/" /usr/share/postfix/master.cf.dist |
    awk '/^[a-z0-9:.]/ && NF>=8 {$5="n"} {print}' | grep -v '^  ' > "$P/etc/master.cf"
  cat > "$P/etc/main.cf" <<C
compatibility_level = 3.6
queue_directory = $P/queue
data_directory = $P/data
command_directory = /usr/sbin
daemon_directory = /usr/lib/postfix/sbin
mail_owner = postfix
setgid_group = postdrop
myhostname = relay.bench.test
inet_interfaces = 127.0.0.1
inet_protocols = ipv4
mynetworks = 127.0.0.0/8
alias_maps =
alias_database =
smtpd_peername_lookup = no
smtpd_client_connection_count_limit = 0
smtpd_tls_security_level = may
smtpd_tls_chain_files = $W/both.pem
maillog_file = $P/log
maillog_file_prefixes = $W
C
  cat "$W/key.pem" "$W/cert.pem" > "$W/both.pem"
  postfix -c "$P/etc" start > "$P/start.log" 2>&1 || { cat "$P/start.log"; exit 1; }
  sleep 2
}
start 1000
[ "$PEER" = 1 ] && postfix_up
for r in $(seq "$ROUNDS"); do
  shake "$CX_SMTP" crossfade
  [ "$PEER" = 1 ] && shake "$PF_SMTP" postfix
done
stop; stop_sinks
