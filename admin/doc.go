// Package admin is how operators see and steer a running relay: an HTTP API
// with its OpenAPI description, its Go client, the audit log, the stream of
// events and the metrics.
//
// It decides nothing about mail: each request is checked, passed to the part
// that it is about (users to package router, queued mail to package queue,
// moves to package cutover), and, when it changes anything, written to the
// audit log before it is answered. Whatever goes wrong is answered as
// application/problem+json with a stable type; see [Problem].
//
// Start reading at [Config] and [New]; the endpoints are in the files named
// after what they are about. [NewClient] makes the client that the command line uses.
package admin
