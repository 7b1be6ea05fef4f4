// Package redistest starts real redis-servers for tests: alone, with replicas,
// under sentinels, as a cluster, with TLS. Each has a free loopback port, a
// directory of its own and the settings that the store demands, and ends with
// the test. [Proxy] stands between a client and a server and loses chosen
// replies.
//
// It speaks RESP by itself, so that a test's view of Redis does not hang on the
// driver that is under test. Start reading at [Start].
package redistest
