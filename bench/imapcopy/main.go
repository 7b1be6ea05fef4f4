//go:build ignore

// Command imapcopy makes one pass of the backfill for each of some users, with
// its ledger in a store on disk: what bench/imap.sh measures. It is no part of
// Crossfade.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"os"
	"runtime/pprof"
	"strings"
	"sync"
	"time"

	"crossfade/backfill"
	"crossfade/backfill/imapconn"
	"crossfade/store/disk"
)

func main() {
	if err := run(); err != nil {
		fmt.Fprintln(os.Stderr, "imapcopy:", err)
		os.Exit(1)
	}
}

func run() error {
	old, dest := flag.String("old", "", "host:port of the source"), flag.String("new", "", "host:port of the destination")
	users, par := flag.String("users", "big", "names, with commas"), flag.Int("par", 1, "users at once")
	dir, profile := flag.String("ledger", "", "directory of the store"), flag.String("cpuprofile", "", "file for a CPU profile")
	conns := flag.Int("connections", 0, "folders of one user at once")
	flag.Parse()
	if *profile != "" {
		out, err := os.Create(*profile)
		if err != nil {
			return err
		}
		defer out.Close()
		if err := pprof.StartCPUProfile(out); err != nil {
			return err
		}
		defer pprof.StopCPUProfile()
	}
	s, err := disk.Open(*dir, disk.Options{MinFree: -1})
	if err != nil {
		return err
	}
	began := time.Now()
	err = errors.Join(passes(&backfill.Copier{Ledger: s, Connections: *conns}, strings.Split(*users, ","), *par, *old, *dest), s.Close())
	fmt.Printf("all took=%.3fs\n", time.Since(began).Seconds())
	return err
}

func passes(c *backfill.Copier, users []string, par int, old, dest string) error {
	var wg sync.WaitGroup
	places, errs := make(chan struct{}, par), make([]error, len(users))
	for i, user := range users {
		places <- struct{}{}
		wg.Go(func() {
			defer func() { <-places }()
			at := func(addr string) imapconn.Account {
				return imapconn.Account{Server: imapconn.Server{Address: addr, Mode: imapconn.TLSNone}, Login: imapconn.Login{User: user, Password: "secret"}}
			}
			r, err := c.Pass(context.Background(), backfill.Job{User: user, Source: at(old), Dest: at(dest)}, backfill.Options{})
			errs[i] = err
			fmt.Printf("pass user=%s copied=%d flagged=%d adopted=%d problems=%d took=%.3fs\n", user, r.Copied, r.Flagged, r.Adopted, len(r.Problems), r.Took.Seconds())
		})
	}
	wg.Wait()
	return errors.Join(errs...)
}
