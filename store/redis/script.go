package redis

import (
	"crypto/sha1"
	"embed"
	"encoding/hex"
	"regexp"
	"strings"
)

//go:embed lua
var luaFiles embed.FS

// The kinds of script, as Redis flags.
const (
	grows  = ""                 // refused when Redis is at its maxmemory
	drains = " flags=allow-oom" // works then too: it makes room, or is needed to
	looks  = " flags=no-writes" // changes nothing
)

// script is one of the Lua scripts with what all of them begin with.
type script struct {
	name string
	src  string
	sha  string // as EVALSHA wants it
}

func newScript(name, kind string) *script {
	lib, err := luaFiles.ReadFile("lua/lib.lua")
	if err != nil {
		panic(err) // it is embedded: a build without it does not exist
	}
	body, err := luaFiles.ReadFile("lua/" + name + ".lua")
	if err != nil {
		panic(err)
	}
	s := &script{name: name, src: "#!lua" + kind + "\n" + trim(string(lib), string(body)) + string(body)}
	sum := sha1.Sum([]byte(s.src))
	s.sha = hex.EncodeToString(sum[:])
	return s
}

var (
	luaComment = regexp.MustCompile(`--.*`)
	luaName    = regexp.MustCompile(`[A-Za-z_]\w*`)
	luaLocal   = regexp.MustCompile(`(?m)^local (?:function (\w+)|([\w, ]+?) ?(?:=|$))`)
)

// trim leaves of lib what body uses: each run of a script makes all the
// functions that stand in it anew, and half of its time went there. lib is
// paragraphs of local definitions, with empty lines between them only.
func trim(lib, body string) string {
	blocks := strings.Split(strings.TrimSpace(lib), "\n\n")
	for i := range blocks {
		blocks[i] = luaComment.ReplaceAllString(blocks[i], "")
	}
	used := map[string]bool{}
	use := func(text string) {
		for _, n := range luaName.FindAllString(text, -1) {
			used[n] = true
		}
	}
	use(luaComment.ReplaceAllString(body, ""))
	kept := make([]string, len(blocks))
	for i := len(blocks) - 1; i >= 0; i-- { // a definition uses only what stands before it
		for _, m := range luaLocal.FindAllStringSubmatch(blocks[i], -1) {
			for _, name := range luaName.FindAllString(m[1]+m[2], -1) {
				if used[name] && kept[i] == "" {
					kept[i] = blocks[i] + "\n"
					use(blocks[i])
				}
			}
		}
	}
	return strings.Join(kept, "")
}

var (
	scPut         = newScript("put", grows)
	scAbort       = newScript("abort", drains)
	scClaim       = newScript("claim", drains)
	scRenew       = newScript("renew", drains)
	scRelease     = newScript("release", drains)
	scSettle      = newScript("settle", drains)
	scTick        = newScript("tick", drains)
	scUser        = newScript("user", looks)
	scSetUser     = newScript("setuser", drains)
	scDelUser     = newScript("deluser", drains)
	scBusy        = newScript("busy", looks)
	scImportBegin = newScript("importbegin", grows)
	scImport      = newScript("import", drains)
	scShow        = newScript("show", looks)
	scApply       = newScript("apply", drains)
	scLedger      = newScript("ledger", grows)
	scStats       = newScript("stats", looks)

	// Of the journal.
	scOutbox = newScript("outbox", looks)
	scForget = newScript("forget", drains)
	scShelve = newScript("shelve", drains)
	scPrune  = newScript("prune", drains)

	// Of nodes and of what they share beside the queue.
	scBeat      = newScript("beat", drains)
	scPart      = newScript("part", drains)
	scDrain     = newScript("drain", drains)
	scNodes     = newScript("nodes", looks)
	scOwn       = newScript("own", drains)
	scDisown    = newScript("disown", drains)
	scOffer     = newScript("offer", drains)
	scFree      = newScript("free", looks)
	scPublish   = newScript("publish", grows)
	scPublished = newScript("published", looks)

	// Of a whole store that is moved.
	scDump     = newScript("dump", looks)
	scDumpUser = newScript("dumpuser", looks)
	scUnused   = newScript("unused", looks)
	scLoad     = newScript("load", grows)
	scLoadUser = newScript("loaduser", grows)
	scLoaded   = newScript("loaded", drains)

	// Of audits, that look and that repair.
	scAudit       = lookOrRepair("audit")
	scAuditIndex  = lookOrRepair("auditindex")
	scAuditCopies = lookOrRepair("auditcopies")
	scAuditChunk  = lookOrRepair("auditchunk")
	scAuditFix    = newScript("auditfix", drains)
	scAuditCount  = newScript("auditcount", drains)
)

// lookOrRepair gives a script twice: Redis itself keeps the first from changing
// anything.
func lookOrRepair(name string) [2]*script {
	return [2]*script{newScript(name, looks), newScript(name, drains)}
}
