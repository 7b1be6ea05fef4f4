// Package arcrelay joins ARC (package arc) to the relay's server, by two
// inspectors of messages. A [Judge] verifies the chain of what strangers send. It
// stands before the inspector that judges senders and writes
// Authentication-Results, which finds it by [Find], has the result from it
// ([Judgement.Method]) and may ask it whether a trusted sealer vouches for the
// message ([Judgement.Vouched]). A [Seal] stands last and seals the message with
// everything that the inspectors before it found out.
//
// What is sealed is what a backend gets, in which all that the relay adds stands
// above: ARC set, Authentication-Results and other trace lines, our Received, then
// the message as it is stored. The message signature covers fields of the stored
// header, without those that the relay removed from it (forged
// Authentication-Results), those of the same names that are put on top, and the
// body. The seal covers the chain.
//
// Neither ever refuses a message.
package arcrelay

import (
	"context"
	"errors"
	"log/slog"
	"net/netip"
	"strings"

	"crossfade/relay"
	"crossfade/relay/authn/arc"
)

// JudgeConfig is what a Judge works with. Verifier is needed.
type JudgeConfig struct {
	Verifier *arc.Verifier
	// Trusted tells which sealers are believed when they say that a message passed
	// DMARC; nil believes nobody.
	Trusted func(domain string) bool
	// Asking gives the context for the lookups that a client's message needs, so that
	// its network has its share of them only. It may be nil.
	Asking func(ctx context.Context, client netip.Addr) context.Context
	// Judged is told of each result. It must not block. It may be nil.
	Judged func(arc.Status)
	Logger *slog.Logger // nil discards
}

// Judge verifies chains. It implements [relay.Inspector].
type Judge struct{ cfg JudgeConfig }

// NewJudge makes a Judge.
func NewJudge(cfg JudgeConfig) (*Judge, error) {
	if cfg.Verifier == nil {
		return nil, errors.New("arc: judging needs a verifier")
	}
	if cfg.Logger == nil {
		cfg.Logger = slog.New(slog.DiscardHandler)
	}
	return &Judge{cfg}, nil
}

// Inspect implements [relay.Inspector]. Mail of our own systems is not judged.
func (j *Judge) Inspect(_ context.Context, m relay.Incoming) relay.Inspection {
	if m.Ours {
		return nil
	}
	return &Judgement{j: j, id: string(m.Envelope.ID), client: m.Info.Remote.Addr(), work: j.cfg.Verifier.Begin()}
}

// Judgement is the work of a Judge on one message.
type Judgement struct {
	j      *Judge
	id     string
	client netip.Addr
	work   *arc.Verification
	result arc.Result // when it has ended
	ended  bool
}

// Sent implements [relay.Inspection]: the chain is judged as it was sent.
func (x *Judgement) Sent(p []byte) { x.work.Write(p) }

// Kept implements [relay.Inspection].
func (x *Judgement) Kept([]byte) {}

// Close implements [relay.Inspection].
func (x *Judgement) Close() { x.work.Close() }

// End implements [relay.Inspection]. It puts nothing on top, and has no error.
func (x *Judgement) End(ctx context.Context, _ string) (string, error) {
	asking := ctx
	if f := x.j.cfg.Asking; f != nil {
		asking = f(ctx, x.client)
	}
	x.result, x.ended = x.work.Finish(asking), true
	if f := x.j.cfg.Judged; f != nil {
		f(x.result.Status)
	}
	if r := x.result; r.Status == arc.Fail || r.Status == arc.TempError {
		x.j.cfg.Logger.LogAttrs(ctx, slog.LevelDebug, "the chain of ARC does not pass", slog.String("id", x.id),
			slog.String("result", string(r.Status)), slog.String("reason", r.Reason), slog.Int("sets", r.Sets))
	}
	return "", nil
}

// Method is the result as it stands in Authentication-Results. It is called after
// End.
func (x *Judgement) Method() string { return x.result.Method(x.client) }

// Result is what was found. It is false before End.
func (x *Judgement) Result() (arc.Result, bool) { return x.result, x.ended }

// Vouched tells who of the sealers that are trusted found that the message passed
// DMARC for a domain, when it has not been changed since ([arc.Result.Vouched]).
// It is called after End.
func (x *Judgement) Vouched(domain string) (by string, ok bool) {
	if !x.ended || x.j.cfg.Trusted == nil {
		return "", false
	}
	seal, ok := x.result.Vouched(domain, x.j.cfg.Trusted)
	return seal.Domain, ok
}

// Find gives the Judgement among inspections; nil when there is none.
func Find(list []relay.Inspection) *Judgement {
	for _, i := range list {
		if x, ok := i.(*Judgement); ok {
			return x
		}
	}
	return nil
}

// Outcome is what became of a message that could be sealed.
type Outcome string

// The outcomes. NotSealed is a message that must not or cannot get a set, Failed
// one for which no signature could be made.
const (
	Sealed    Outcome = "sealed"
	NotSealed Outcome = "not"
	Failed    Outcome = "failed"
)

// SealConfig is what a Seal works with. Sealer and AuthservID are needed.
type SealConfig struct {
	Sealer     *arc.Sealer
	AuthservID string // of our Authentication-Results: what others found out is not sealed
	// Done is told of each outcome. It must not block. It may be nil.
	Done   func(Outcome)
	Logger *slog.Logger // nil discards
}

// Seal seals messages that a [Judge] before it has judged. It implements
// [relay.Inspector].
type Seal struct{ cfg SealConfig }

// NewSeal makes a Seal.
func NewSeal(cfg SealConfig) (*Seal, error) {
	if cfg.Sealer == nil || cfg.AuthservID == "" {
		return nil, errors.New("arc: sealing needs a sealer and the name that results are given in")
	}
	if cfg.Logger == nil {
		cfg.Logger = slog.New(slog.DiscardHandler)
	}
	return &Seal{cfg}, nil
}

// Inspect implements [relay.Inspector].
func (s *Seal) Inspect(_ context.Context, m relay.Incoming) relay.Inspection {
	judgement := Find(m.Before)
	if judgement == nil {
		return nil
	}
	return &sealing{s: s, id: string(m.Envelope.ID), judgement: judgement, work: s.cfg.Sealer.Begin()}
}

type sealing struct {
	s         *Seal
	id        string
	judgement *Judgement
	work      *arc.Sealing
}

func (x *sealing) Sent([]byte)   {}
func (x *sealing) Kept(p []byte) { x.work.Write(p) }
func (x *sealing) Close()        { x.work.Close() }

// End gives the lines of the set. A message that cannot be sealed goes on as it
// is.
func (x *sealing) End(ctx context.Context, above string) (string, error) {
	result, ok := x.judgement.Result()
	if !ok {
		return "", nil
	}
	lines, err := x.work.Seal(result, arc.Results(above, x.s.cfg.AuthservID), above)
	outcome := Sealed
	switch {
	case errors.Is(err, arc.ErrNotSealed):
		outcome = NotSealed
		x.s.cfg.Logger.LogAttrs(ctx, slog.LevelDebug, "not sealed with ARC", slog.String("id", x.id), slog.String("reason", strings.TrimPrefix(err.Error(), arc.ErrNotSealed.Error()+": ")))
	case err != nil:
		outcome = Failed
		x.s.cfg.Logger.LogAttrs(ctx, slog.LevelError, "a message goes on without a seal of ARC, because none could be made", slog.String("id", x.id), slog.Any("error", err))
	}
	if f := x.s.cfg.Done; f != nil {
		f(outcome)
	}
	return lines, nil
}
