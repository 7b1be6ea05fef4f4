// Package redis keeps queue, users, history and backfill ledger in Redis 7.0 or
// newer (or Valkey), shared by any number of relay nodes. It gives the same
// guarantee as the embedded store: what it answers with nil is on stable
// storage, as far as the server is set up for that, which is checked at the
// start and every minute.
//
// All metadata and user states lie under one hash tag and change in Lua
// scripts (folder lua, its lib.lua explains the keys), each of which may be
// repeated after an unknown outcome. Bodies up to 64 KiB compressed lie beside
// their message, longer ones in pieces under tags of their own. Calls of many
// goroutines go to the server in one pipeline, with one wait for the replicas.
//
// Start reading at [Open], then link.go for what happens when Redis does not
// answer.
package redis
