#!/usr/bin/env bash
# imap.sh [WORKDIR]   the backfill beside its peers, in one run: a bare MULTIAPPEND (the bound), dsync, mbsync (isync).
#
# Needs root, Debian, cgroup v1 and ../shared/bench; nothing else may run on the machine meanwhile (NOWAIT=1: do not wait
# until it is idle). Two Dovecots with their default mail_fsync. ROUNDS (3) rounds, alternating; N (10000) messages in 20
# folders; USERS (20) users of PER (500) messages, PAR (4) at a time; the same and RN (500) messages in 5 folders at a round trip of RTT (40ms);
# WHAT ("big users rtt") says which of them; "huge" besides: two mailboxes of HUGE (50000) messages at once. Prints one line a run, then a table of medians with ratios to Crossfade.
set -eu
cd "$(dirname "$0")/.."
ROOT=$PWD
SHARED=$ROOT/../shared/bench
[ -d "$SHARED" ] || { echo "bench: $SHARED is not there: nothing to compare with" >&2; exit 1; }
# shellcheck source=bench/workdir.sh
. bench/workdir.sh
ROUNDS=${ROUNDS:-3}; N=${N:-10000}; USERS=${USERS:-20}; PER=${PER:-500}; PAR=${PAR:-4}; RN=${RN:-500}; RTT=${RTT:-40ms}
WHAT=${WHAT:-big users rtt}; HUGE=${HUGE:-50000}
export IMAP_OLD=${IMAP_OLD:-12243} IMAP_NEW=${IMAP_NEW:-12244}
FAR_OLD=${FAR_OLD:-12245}; FAR_NEW=${FAR_NEW:-12246}
# shellcheck source=/dev/null
. "$SHARED/lib.sh"
need dovecot-core dovecot-imapd isync; build_tools
go build -o "$BIN/imapcopy" bench/imapcopy/main.go
go build -o "$BIN/imapdelay" bench/imapdelay/main.go
bash "$SHARED/start-backends.sh" "$W"
"$BIN/imapdelay" -rtt "$RTT" "127.0.0.1:$FAR_OLD=127.0.0.1:$IMAP_OLD" "127.0.0.1:$FAR_NEW=127.0.0.1:$IMAP_NEW" & DELAY=$!
trap 'code=$?; set +e; kill $DELAY 2>/dev/null || true; bash "$SHARED/start-backends.sh" "$W" stop || true; wait; tidy $code' EXIT
S=$W/sync; mkdir -p "$S"; : > "$W/runs.tsv"
NAMES=$(seq -s' ' -f 'u%02g' 1 "$USERS")

has() { case " $WHAT " in *" $1 "*) ;; *) return 1 ;; esac; }

generate() {
  local m=$W/dov/old/mail u made=""
  rm -rf "${m:?}"/* "$W/dov/pristine"; mkdir -p "$W/dov/pristine"
  if has big; then made="big"; "$BIN/genmailbox" -dir "$m" -user big -n "$N" -folders 20 -seed 1 | tail -1; fi
  if has rtt; then
    made="$made far little"
    "$BIN/genmailbox" -dir "$m" -user far -n "$N" -folders 20 -seed 3 | tail -1
    "$BIN/genmailbox" -dir "$m" -user little -n "$RN" -folders 5 -seed 2 | tail -1
  fi
  if has users; then made="$made $NAMES"; for u in $NAMES; do "$BIN/genmailbox" -dir "$m" -user "$u" -n "$PER" -folders 5 -seed "1${u#u}" >/dev/null; done; fi
  if has huge; then for u in h1 h2; do "$BIN/genmailbox" -dir "$m" -user "$u" -n "$HUGE" -folders 20 -seed "7${u#h}" | tail -1; done; fi
  chown -R vmail:vmail "$m"
  # Dovecot builds its indexes once, so that the first tool does not pay for it.
  for u in $made; do
    dov old index -u "$u" '*'
    dov old fetch -u "$u" 'uid flags date.received size.virtual hdr.message-id' mailbox '*' >/dev/null
    cp -a "$m/$u" "$W/dov/pristine/"
  done
  sync
}

fresh() { restore_old "$@"; wipe_new "$@"; for u in "$@"; do rm -rf "$S/state-$u" "$S/ledger-$u"; mkdir -p "$S/state-$u"; done; rm -rf "$S/ledger"; }

measure() { # CASE TOOL MESSAGES COMMAND...
  local what=$1 tool=$2 msgs=$3; shift 3
  [ -n "${NOWAIT:-}" ] || "$BIN/cgrun" quiet
  local rc=0; CGOUT=$W/cg.json "$BIN/cgrun" time bench_imap "$@" > "$W/out" 2> "$W/err" || rc=$?
  [ $rc = 0 ] || tail -3 "$W/err" >&2
  python3 - "$what" "$tool" "$msgs" "$rc" "$W/cg.json" "$W/runs.tsv" <<'Y'
import json, sys
what, tool, msgs, rc, cg, out = sys.argv[1:]
s = json.load(open(cg)); w = s["Wall"]
print(f"{what:8} {tool:12} wall_s={w:.3f} msg/s={int(msgs)/w:.0f} tool_cpu_s={s['CPU']:.2f} maxrss_MB={s['MaxRSSMB']:.0f} rc={rc}", flush=True)
print(what, tool, msgs, w, s["MaxRSSMB"], rc, sep="\t", file=open(out, "a"))
Y
}

check() { # USER TOOL: what a tool left is compared with the source
  "$BIN/imaplimit" verify -addr 127.0.0.1:$IMAP_OLD -addr2 127.0.0.1:$IMAP_NEW -users "$1" | sed "s/^/  $2: /"
}

conf() { # USER OLDPORT NEWPORT: a configuration for mbsync
  cat > "$S/$1.rc" <<C
IMAPStore old
Host 127.0.0.1
Port $2
User $1
Pass secret
SSLType None
AuthMechs LOGIN

IMAPStore new
Host 127.0.0.1
Port $3
User $1
Pass secret
SSLType None
AuthMechs LOGIN

Channel c
Far :old:
Near :new:
Patterns *
Create Near
Sync Pull
Expunge None
CopyArrivalDate yes
SyncState $S/state-$1/
C
}

bound() { echo "$BIN/imaplimit append -select -addr 127.0.0.1:$IMAP_NEW -users big -maildir $W/dov/old/mail -c $1 -multi 100 -window 4"; }
crossfade() { echo "$BIN/imapcopy -old 127.0.0.1:$IMAP_OLD -new 127.0.0.1:$IMAP_NEW -ledger $S/ledger"; }
mb() { echo "mbsync -q -c $S/$1.rc c"; }
dsync() {
  doveadm -c "$W/dov/new/dovecot.conf" -o imapc_host=127.0.0.1 -o imapc_port="$IMAP_OLD" -o imapc_password=secret \
    -o "imapc_features=rfc822.size fetch-headers" -o mail_prefetch_count=20 -o imapc_user="$1" backup -R -u "$1" imapc:
}
export -f dsync; export W

passes() { # TOOL ROUND COMMAND...: first copy, nothing to do, 100 new and 200 flags
  local tool=$1 r=$2; shift 2
  fresh big; measure first "$tool" "$N" "$@"; check big "$tool"
  measure nothing "$tool" "$N" "$@"
  "$BIN/imaplimit" mutate -addr 127.0.0.1:$IMAP_OLD -users big -round "$r" >/dev/null
  measure changes "$tool" 300 "$@"; check big "$tool"
}

big() {
  conf big "$IMAP_OLD" "$IMAP_NEW"
  # shellcheck disable=SC2046
  for c in 1 2; do fresh big; measure first "bound-$c" "$N" $(bound $c); done
  # shellcheck disable=SC2046
  passes crossfade "$1" $(crossfade)
  # shellcheck disable=SC2046
  passes mbsync "$1" $(mb big)
  passes dsync "$1" bash -c "dsync big"
}

users() {
  local all; all=$(echo "$NAMES" | tr ' ' '\n')
  # shellcheck disable=SC2046,SC2086
  { fresh $NAMES; measure users crossfade $((USERS * PER)) $(crossfade) -users "${NAMES// /,}" -par "$PAR"; }
  for u in $NAMES; do conf "$u" "$IMAP_OLD" "$IMAP_NEW"; done
  # shellcheck disable=SC2086
  { fresh $NAMES; measure users mbsync $((USERS * PER)) xargs -P "$PAR" -I{} mbsync -q -c "$S/{}.rc" c <<< "$all"; }
  # shellcheck disable=SC2086
  { fresh $NAMES; measure users dsync $((USERS * PER)) xargs -P "$PAR" -I{} bash -c "dsync {}" <<< "$all"; }
}

rtt() {
  local u n
  for u in little far; do
    n=$RN; [ $u = little ] || n=$N
    conf $u "$FAR_OLD" "$FAR_NEW"
    fresh $u; measure "rtt-$u" crossfade "$n" "$BIN/imapcopy" -old 127.0.0.1:$FAR_OLD -new 127.0.0.1:$FAR_NEW -ledger "$S/ledger" -users $u; check $u crossfade
    # shellcheck disable=SC2046
    { fresh $u; measure "rtt-$u" mbsync "$n" $(mb $u); }
  done
}

huge() { # not compared: it shows what memory two large mailboxes take
  wipe_new h1 h2; rm -rf "$S/ledger"
  # shellcheck disable=SC2046
  measure huge crossfade $((2 * HUGE)) $(crossfade) -users h1,h2 -par 2
  check h1 crossfade; check h2 crossfade
  # shellcheck disable=SC2046
  measure huge-again crossfade $((2 * HUGE)) $(crossfade) -users h1,h2 -par 2
}

generate
for r in $(seq "$ROUNDS"); do for w in $WHAT; do "$w" "$r"; done; done
python3 - "$W/runs.tsv" <<'Y'
import collections, statistics, sys
runs = collections.defaultdict(list)
for line in open(sys.argv[1]):
    what, tool, msgs, wall, rss, rc = line.rstrip("\n").split("\t")
    if rc == "0": runs[what, tool].append((float(wall), int(msgs), float(rss)))
med = lambda k, i: statistics.median(x[i] for x in runs[k])
print("\n| case | tool | s | messages/s | MB resident | Crossfade is |\n|---|---|---|---|---|---|")
for what, tool in runs:
    wall, ours = med((what, tool), 0), (what, "crossfade")
    ratio = f"{wall/med(ours, 0):.2f} x as fast" if ours in runs and tool != "crossfade" else ""
    print(f"| {what} | {tool} | {wall:.3f} | {runs[what, tool][0][1]/wall:.0f} | {med((what, tool), 2):.0f} | {ratio} |")
Y
