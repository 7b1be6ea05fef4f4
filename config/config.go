// Package config reads the one configuration file of Crossfade and says exactly what is wrong with it.
//
// It is a leaf: it imports nothing of ours and starts nothing. [Load] reads a file, [Parse] reads bytes; both are
// strict (an unknown or repeated key is an error that names file, line and the nearest known key), apply the defaults
// of [Default], resolve relative paths against the file's directory, turn domain names into lower-case A-labels and
// end with [Config.Validate]. All problems of one stage are reported at once, each as a [*Problem], joined.
//
// Validate looks only at the values, never at the disk or the network, so the same file always gets the same answer.
// What needs the disk is separate: [Login.Password], [Login.Passwords] and [Config.Warnings].
//
// The struct tags of [Config] are the single source of the reference page ([Reference]): `doc` is the meaning, `enum`,
// `min` and `max` are checked by Validate, `path` marks file names, and `reload:"restart"` marks what a reload cannot
// apply ([Diff]). Start reading at [Config].
package config

import (
	"net/netip"
	"time"
)

// Config is the whole configuration. Its zero value is not usable: begin with [Default], [Load] or [Parse].
// A Config is not changed after it was built, so it may be shared between goroutines.
type Config struct {
	Hostname string   `yaml:"hostname" reload:"restart" doc:"Our own name, fully qualified: used in the greeting, in Received and in Authentication-Results. Required."`
	Domains  []string `yaml:"domains" doc:"Domains that mail is accepted for, each written out (no wildcards). International names may be written as they are read; they are kept as A-labels. Required."`
	Store    string   `yaml:"store" reload:"restart" path:"yes" doc:"Where queue, users and ledger are kept: a directory for the embedded store, or a Redis that several nodes share: redis://host:6379/0, rediss://host:6379/0 (TLS), redis+sentinel://host1,host2/master/0, redis+cluster://host1,host2."`
	Redis    Redis    `yaml:"redis" doc:"How to use the Redis that store names."`
	Node     string   `yaml:"node" reload:"restart" doc:"Name of this node among those that share a Redis; no two may have the same. Empty means the name of the host."`
	SMTP     SMTP     `yaml:"smtp" doc:"Mail in: the listeners that the MX record points at."`
	Admin    Admin    `yaml:"admin" doc:"The HTTP API that operators and the command line use."`
	Log      Log      `yaml:"log" doc:"What is logged, to standard error."`
	Backends Backends `yaml:"backends" doc:"The two mail systems between which users move."`
	Routing  Routing  `yaml:"routing" doc:"How recipients are found."`
	Cutover  Cutover  `yaml:"cutover" doc:"How users are moved."`
	Backfill Backfill `yaml:"backfill" doc:"How past mail is copied, and how much is asked of both servers for it. A reload counts for passes that begin after it; rates of all users together count at once."`
	Lookup   Lookup   `yaml:"lookup" doc:"Answers for other programs: an existing proxy for IMAP, POP3 or submission, or a Postfix, can ask which side has a user, and follows the same flip. Off unless one of socketmap, tcp_table and http is set. docs/lookups.md has the other program's side. Servers and transports follow a reload, listeners do not."`
	Queue    Queue    `yaml:"queue" doc:"How long and how much mail is kept."`
	DNS      DNS      `yaml:"dns" doc:"The records of the domains, for crossfade dns check and crossfade dns watch; see docs/dns.md. Nothing here changes a record."`
	Audit    Audit    `yaml:"audit" doc:"The journal: what was accepted and what became of it (docs/audit.md)."`

	src *source // where each key was written; nil for a Config built in code
}

// SMTP configures the listeners for mail. Sizes are bytes of the message as it arrives.
type SMTP struct {
	Listen              []string       `yaml:"listen" reload:"restart" doc:"Addresses to listen on, host:port. Port 0 takes a free one."`
	Listeners           []Listener     `yaml:"listeners" reload:"restart" doc:"More addresses, each with choices of its own, such as one on port 587 for the backends' submissions with tls: require."`
	TLS                 SMTPTLS        `yaml:"tls" doc:"Certificate of the listeners: cert and key, or acme; without one, STARTTLS is not offered. docs/tls.md has the whole."`
	MaxMessageSize      Size           `yaml:"max_message_size" reload:"restart" min:"64KiB" doc:"Largest message accepted, announced as SIZE (RFC 1870). At least 64KiB (RFC 5321, 4.5.3.1.7)."`
	MaxConnections      int            `yaml:"max_connections" min:"1" max:"1000000" doc:"Connections at once, over all listeners; more get 421, strangers before others (smtp.limits.reserve). The process needs as many open files, and some hundred more."`
	MaxConnectionsPerIP int            `yaml:"max_connections_per_ip" min:"0" max:"1000000" doc:"Connections at once from one IPv4 address or the /64 of an IPv6 address; more get 421. 0 means no limit."`
	Limits              Limits         `yaml:"limits" doc:"What one client, sender or recipient may have of us. Each node counts for itself. The defaults do not bind a large provider; docs/limits.md has all limits in one table, with the reply, the metric and what to do."`
	MaxRecipients       int            `yaml:"max_recipients" reload:"restart" min:"1" max:"100000" doc:"Recipients of one message; more get 452. Senders may rely on 100 (RFC 5321, 4.5.3.1.8)."`
	Trusted             []netip.Prefix `yaml:"trusted" reload:"restart" doc:"Networks (CIDR) of the backends' own outbound mail, which may send to any domain of ours without the checks made for strangers, and to the outside where smart_host is set. Mail of theirs that goes round is parked with an explanation and not refused. Never an open relay to the world."`
	RequireTLS          bool           `yaml:"requiretls" reload:"restart" doc:"Offer REQUIRETLS (RFC 8689) to clients under TLS. A message that asks for it goes only over TLS with a checked certificate to a server that offers it too, or over a socket; else its sender gets it back. Set it when both backends offer it (crossfade check says so), for else such mail is taken and returned."`
	SmartHost           SmartHost      `yaml:"smart_host" doc:"Where mail of trusted clients to addresses outside is sent on, and our own notifications to senders outside; off unless url is set. Nobody else may relay. Without it, clients are told 550 for addresses outside, and routing.outbound says who relays notifications."`
	Filter              Scanner        `yaml:"filter" doc:"The organisation's own content filter, which looks at each message before it is accepted: Rspamd, SpamAssassin and others that speak the milter protocol. docs/filter.md says what it may do."`
	UsersFile           string         `yaml:"users_file" reload:"restart" path:"yes" doc:"File of those who may submit mail with a password, on the listeners that say auth: lines NAME:HASH with bcrypt hashes, as crossfade password NAME prints them. It is read again when it changes."`
	ProxyProtocol       []netip.Prefix `yaml:"proxy_protocol" reload:"restart" doc:"Networks (CIDR) of load balancers that name their client in a PROXY header, version 1 or 2. Each connection from them must begin with one, and nobody else's may; limits and trust are those of the client that it names."`
	Authentication      Authentication `yaml:"authentication" doc:"Who really sent a message: SPF, DKIM and DMARC of mail from strangers; see docs/authentication.md."`
	ARC                 ARC            `yaml:"arc" doc:"The Authenticated Received Chain (RFC 8617): seals for the systems behind the relay, and whose seals are believed; see docs/authentication.md."`
	TLSReports          TLSReports     `yaml:"tls_reports" doc:"Reports to the owners of domains whose policies about TLS count for a server that mail is delivered to (dane, mta_sts): RFC 8460. Off unless contact is set."`
	Resolvers           []string       `yaml:"resolvers" reload:"restart" doc:"DNS resolvers that the relay asks, about those who send to it and about servers that it sends to, by address, with a port where it is not 53, in the order in which they are asked: [127.0.0.1, \"[2001:db8::53]:53\"]. The word system stands for those of /etc/resolv.conf, as an empty list does. A resolver on this machine answers fastest; DNSBL operators refuse public ones."`
	ResolversValidate   bool           `yaml:"resolvers_validate" reload:"restart" doc:"Believe these resolvers about DNSSEC although they are not on this machine: they validate, and nobody can change their answers on the way. Those on a loopback address are believed always."`
	GreetDelay          Duration       `yaml:"greet_delay" min:"0s" max:"1m" doc:"How long a stranger waits for the greeting. One that speaks before it, as no mail server may, is sent away with 421. Trusted and exempt clients, listeners where a login is required, and networks that sent mail we took in the last seven days do not wait. 0 means no delay."`
	DNSBL               DNSBL          `yaml:"dnsbl" doc:"DNS lists of senders. Off unless lists has one. Trusted and exempt clients and those that log in are not looked up."`
	IdleTimeout         Duration       `yaml:"idle_timeout" reload:"restart" min:"1s" max:"1d" doc:"Longest silence of a client before its connection is closed with 421. RFC 5321, 4.5.3.2.7 asks for 5m."`
	DataTimeout         Duration       `yaml:"data_timeout" reload:"restart" min:"1s" max:"7d" doc:"Longest time that one message body may take to arrive, however steadily it trickles."`
}

// SmartHost is a server that takes mail to the outside.
type SmartHost struct {
	URL            Endpoint   `yaml:"url" doc:"The server: smtp+starttls://host:587, smtps://host, or, without encryption, smtp+insecure://host on a network of your own."`
	User           string     `yaml:"user" doc:"Name to log in with (AUTH PLAIN or LOGIN, over TLS alone); empty does not log in."`
	PasswordFile   string     `yaml:"password_file" path:"yes" doc:"File with the password; it is read again for each connection."`
	PasswordEnv    string     `yaml:"password_env" doc:"Environment variable with the password, instead of password_file."`
	TLS            BackendTLS `yaml:"tls" doc:"How the server's certificate is checked."`
	MaxConnections int        `yaml:"max_connections" reload:"restart" min:"1" max:"10000" doc:"Deliveries to the smart host at once."`
}

// Enabled reports whether a smart host is configured.
func (s *SmartHost) Enabled() bool { return !s.URL.IsZero() }

// Password reads the password; the empty secret when there is no user.
func (s *SmartHost) Password() (Secret, error) {
	if s.User == "" {
		return Secret{}, nil
	}
	return readPassword(s.PasswordFile, s.PasswordEnv)
}

// KeyPair names a certificate chain and its private key, both PEM files. Both are set or neither is.
type KeyPair struct {
	Cert string `yaml:"cert" reload:"restart" path:"yes" doc:"PEM file with the certificate and its intermediates."`
	Key  string `yaml:"key" reload:"restart" path:"yes" doc:"PEM file with the private key."`
}

// Enabled reports whether a certificate is configured.
func (k KeyPair) Enabled() bool { return k.Cert != "" && k.Key != "" }

// Admin configures the HTTP API.
type Admin struct {
	Listen    string   `yaml:"listen" reload:"restart" doc:"Address of the API, host:port. Anything but a loopback address needs tls, or insecure: true."`
	TokenFile string   `yaml:"token_file" reload:"restart" path:"yes" doc:"File with the bearer token; made with a random token (mode 0600) at the first start when absent."`
	TLS       KeyPair  `yaml:"tls" doc:"Certificate of the API; without one it speaks plain HTTP."`
	AuditFile string   `yaml:"audit_file" reload:"restart" path:"yes" doc:"File that every change made over the API is written to. Empty means audit.jsonl in the store's directory, or beside the token file when the store is a Redis: audit.NODE.jsonl there, where node is set."`
	Hosts     []string `yaml:"hosts" reload:"restart" doc:"Names by which the API may be asked for over plain HTTP (the Host header), beside IP addresses, names without a dot and hostname: a web page could else have a name of its own lead here. With tls the certificate does that."`
	Insecure  bool     `yaml:"insecure" reload:"restart" doc:"Allow plain HTTP on an address that others can reach: the token then crosses the network readable."`
}

// Redis says how the Redis of the store is used.
type Redis struct {
	Durability   string `yaml:"durability" reload:"restart" enum:"verified|service" doc:"verified demands a Redis that syncs each write before it answers, and refuses any other. service trusts a managed one that is durable by contract and does not tell how."`
	Queue        string `yaml:"queue" reload:"restart" doc:"Name of the queue, in all of its keys; another one for each Crossfade that shares a Redis."`
	Replicas     int    `yaml:"replicas" reload:"restart" min:"0" max:"100" doc:"Replicas that must have each write before it counts. 0 means all that are known: as many as Sentinel, the Cluster or the server itself names."`
	Username     string `yaml:"username" reload:"restart" doc:"ACL user; empty means the default user."`
	PasswordFile string `yaml:"password_file" reload:"restart" path:"yes" doc:"File with the password; one newline at its end is dropped."`
	PasswordEnv  string `yaml:"password_env" reload:"restart" doc:"Environment variable with the password, instead of password_file."`
	CA           string `yaml:"ca" reload:"restart" path:"yes" doc:"PEM file with the authorities to trust instead of the system's, for rediss://."`
	Cert         string `yaml:"cert" reload:"restart" path:"yes" doc:"PEM file with the certificate to show to Redis."`
	Key          string `yaml:"key" reload:"restart" path:"yes" doc:"PEM file with its private key."`
	ServerName   string `yaml:"server_name" reload:"restart" doc:"Name expected in the certificate of Redis; empty means the host of the URL."`
}

// Log configures the log.
type Log struct {
	Level  string `yaml:"level" reload:"restart" enum:"debug|info|warn|error" doc:"Least level that is logged."`
	Format string `yaml:"format" reload:"restart" enum:"text|json" doc:"Shape of a log line."`
}

// Backends are the two sides of the migration.
type Backends struct {
	Old Backend `yaml:"old" doc:"The mail system that users leave."`
	New Backend `yaml:"new" doc:"The mail system that users move to."`
}

// Backend is one mail system: where it takes mail, and where mailboxes are read for the backfill.
type Backend struct {
	SMTP               Endpoint       `yaml:"smtp" doc:"Where mail is delivered: smtp:// (TLS when offered), smtp+starttls:// (TLS required), smtps://, smtp+insecure:// (never TLS), lmtp:// or lmtp+unix:///path. Default ports 25, 465 (smtps) and 24 (lmtp). Required."`
	IMAP               Endpoint       `yaml:"imap" doc:"Where mailboxes are read and written: imaps://, imap+starttls:// or imap+insecure://. Default ports 993 and 143. Without it there is no backfill for this side."`
	Mailbox            Mailbox        `yaml:"mailbox" doc:"With old, and instead of imap: mailboxes that are read from the disk or over POP3. maildir:///srv/vmail/{domain}/{local}/Maildir, with ?layout=fs or ?layout=maildir++ where a tree looks like both; mbox:///home/{local}/mail, with ?inbox=/var/mail/{local} where the INBOX is elsewhere; pop3s://host, pop3+starttls://host or pop3+insecure://host (default ports 995 and 110; imap_login says how to log in). {user} is the user's login on old, {local} and {domain} are its parts. Nothing is ever written there. docs/backfill.md says what each kind carries over."`
	IMAPLogin          *Login         `yaml:"imap_login" doc:"How to log in to the IMAP server, or to the POP3 server of mailbox. Required with them."`
	Gmail              Gmail          `yaml:"gmail" doc:"With old: how a Gmail mailbox is read. Its server tells by itself that it is one."`
	Origin             string         `yaml:"origin" enum:"none|xforward|xclient|proxy_v1|proxy_v2" doc:"How this side is told which client a message came from. none: by our Received header alone. xforward: for its log, with XFORWARD where it offers that. xclient: with XCLIENT where it offers that, as if the client had connected itself. proxy_v1, proxy_v2: with a PROXY header, which the server must expect, and a connection for each client. With the last three the side judges clients anew, and what it refuses then comes back as a bounce for mail that we accepted; docs/origin.md says what to exempt."`
	TLS                BackendTLS     `yaml:"tls" doc:"How the server's certificate is checked."`
	SendsFrom          []netip.Prefix `yaml:"sends_from" reload:"restart" doc:"Addresses (CIDR) from which this side sends mail. They are trusted as those of smtp.trusted, but for mail to the outside (smtp.smart_host), and a message that this side gives back is recognised as a loop at its first turn instead of its third. An IP address in smtp counts without being listed."`
	MaxConnections     int            `yaml:"max_connections" reload:"restart" min:"1" max:"10000" doc:"Deliveries to this side at once."`
	MaxIMAPConnections int            `yaml:"max_imap_connections" reload:"restart" min:"1" max:"10000" doc:"IMAP connections of the backfill to this side at once, of all users together, on each node. A user takes one to old and two to new, and as many again for each further folder that is copied at once while nobody waits for them: with fewer, fewer users than cutover.concurrency are moved at a time. A server that refuses one is asked for fewer for ten minutes."`
}

// Gmail says how mailboxes of Gmail are read.
type Gmail struct {
	Labels string `yaml:"labels" enum:"folders|keywords|off" doc:"What becomes of labels: folders (a message is in a folder for each of its labels, and in the archive when it has none), keywords (each message once; users' labels are keywords) or off (as any other server: All Mail has everything once more). Decide before the first copy. docs/servers.md says what each does."`
}

// BackendTLS says how a backend's certificate is checked, for SMTP and IMAP alike but for dane and mta_sts.
type BackendTLS struct {
	CA                 string `yaml:"ca" path:"yes" doc:"PEM file with the authorities to trust instead of the system's."`
	ServerName         string `yaml:"server_name" doc:"Name expected in the certificate; empty means the host of the URL."`
	Pins               []Pin  `yaml:"pins" doc:"Digests of the certificate or of its public key, key-sha256:HEX or cert-sha256:HEX, one of which has to fit. A pin stands for name, dates and authorities; with ca set, those have to be right too. List the next key before it is used."`
	DANE               bool   `yaml:"dane" doc:"Check the server by its TLSA records (RFC 7672), where its zone is signed: with records, TLS is required and nothing else counts, also with smtp://; without, the URL decides as ever. Needs a validating resolver on this host."`
	MTASTS             string `yaml:"mta_sts" doc:"Domain whose MTA-STS policy (RFC 8461) this server is subject to: that of which it is the MX. With mode enforce, TLS with a valid certificate is required also with smtp://, and the policy has to name the server. Empty: no policy is asked for."`
	Cert               string `yaml:"cert" path:"yes" doc:"PEM file with the certificate that we show to the server, where it asks for one."`
	Key                string `yaml:"key" path:"yes" doc:"PEM file with its private key."`
	InsecureSkipVerify bool   `yaml:"insecure_skip_verify" doc:"Accept any certificate: whoever sits on the path can read and change mail."`
}

// Routing says how recipients are found.
type Routing struct {
	Unknown    string `yaml:"unknown" enum:"verify|reject|old|new" doc:"What to do with an address that is in no table: verify asks both sides, reject refuses it, old and new send it there."`
	Outbound   string `yaml:"outbound" enum:"old|new" doc:"Which backend relays what is our own (bounces, delay notices, reports about TLS) to addresses outside, where there is no smtp.smart_host. It has to allow that for this host; what it refuses is parked."`
	Subaddress string `yaml:"subaddress" doc:"Character that separates user from tag: user+tag@ belongs to user@. The empty string turns this off."`
}

// Cutover says how users are moved.
type Cutover struct {
	Approve     string   `yaml:"approve" reload:"restart" enum:"manual|auto" doc:"Whether a user who is ready waits for an operator or goes on alone."`
	MaxHold     Duration `yaml:"max_hold" reload:"restart" min:"1s" max:"1d" doc:"Longest time a user's mail is held during a flip; after it the user goes back to ready and the mail to old."`
	Window      Duration `yaml:"window" min:"0s" max:"365d" reload:"restart" doc:"How long old is swept for stragglers after a user's flip, at least. Then, when two looks in a row found nothing, both mailboxes were compared and the DNS does not object, the user is done."`
	Sweep       string   `yaml:"sweep" enum:"both|after" reload:"restart" doc:"both: before the flip mail that reaches the mailbox on new is carried to old too, for users in the table; after: old is swept after the flip, and nothing before."`
	Mirror      bool     `yaml:"mirror" reload:"restart" doc:"Keep old current with new after the flip, so that a rollback takes seconds however long ago the flip was."`
	Concurrency int      `yaml:"concurrency" reload:"restart" min:"1" max:"1000" doc:"Users moved at the same time; see backfill.users_at_once."`

	MaxHeld        int   `yaml:"max_held" reload:"restart" min:"0" max:"1000" doc:"Users whose mail is held at once, at most, on all nodes together; users whom an operator holds count. 0 means no bound beside concurrency."`
	FlipsPerMinute int   `yaml:"flips_per_minute" reload:"restart" min:"0" max:"600" doc:"Users whose mail begins to be held in a minute, at most and evenly spread, on all nodes together. 0 means no bound."`
	StopAfter      int   `yaml:"stop_after" reload:"restart" min:"0" max:"1000" doc:"Attempts at a flip that fail in a row, after which a wave stops by itself: nobody of it is held until crossfade cutover resume. 0 means never."`
	StopShare      Share `yaml:"stop_share" reload:"restart" doc:"The part of a wave whose last attempt at a flip failed, at which it stops by itself; three users at least. Never: it does not stop for that."`
}

// Queue says how long and how much mail is kept.
type Queue struct {
	Expire      Duration `yaml:"expire" reload:"restart" min:"1s" max:"365d" doc:"Age at which mail that no backend took is bounced. RFC 5321, 4.5.4.1 asks for 4 to 5 days at least. Held mail does not expire."`
	DelayNotice Duration `yaml:"delay_notice" reload:"restart" min:"0s" max:"365d" doc:"Age at which the sender is told of a delay; 0 means never."`
	MaxSize     Size     `yaml:"max_size" reload:"restart" min:"0" doc:"Most bytes of mail in the queue; beyond it new mail gets 452. 0 means no limit but the disk."`
	DoubtWait   Duration `yaml:"doubt_wait" reload:"restart" min:"0s" max:"1d" doc:"How long a delivery whose reply was lost is looked for in its mailbox (IMAP) before it is sent again and may be there twice; 0 means that it is looked for once. Without IMAP it is sent again at once."`
	MinFree     Size     `yaml:"min_free" reload:"restart" min:"0" doc:"Free space to keep on the store's disk; below it new mail gets 452."`
}

// Audit says where the journal lies and how long it is kept.
type Audit struct {
	Dir  string   `yaml:"dir" reload:"restart" path:"yes" doc:"Directory of the journal's files. Empty means journal in the store's directory. With a Redis the journal is kept there, and this must be empty."`
	Keep Duration `yaml:"keep" reload:"restart" min:"0s" max:"3650d" doc:"Age at which parts of the journal are removed; 0 means never. An audit can prove nothing about mail that came before what is kept, so leave it at 0 while the migration is under way."`
}

// Default returns a configuration with every default filled in. It does not pass Validate before hostname, domains
// and both backends' smtp are set.
func Default() *Config {
	backend := Backend{Origin: "xforward", MaxConnections: 20, MaxIMAPConnections: 40, Gmail: Gmail{Labels: "folders"}}
	return &Config{
		Store: "./data",
		Redis: Redis{Durability: "verified", Queue: "q"},
		SMTP: SMTP{
			Listen:              []string{"0.0.0.0:25"},
			MaxMessageSize:      50 * MiB,
			MaxConnections:      1000,
			MaxConnectionsPerIP: 50,
			MaxRecipients:       1000,
			Limits:              defaultLimits(),
			DNSBL:               DNSBL{Threshold: 1, Action: "tag", Timeout: Duration(5 * time.Second)},
			SmartHost:           SmartHost{MaxConnections: 20},
			Filter:              defaultScanner(),
			Authentication:      defaultAuthentication(),
			TLS:                 SMTPTLS{MinVersion: "1.2"},
			IdleTimeout:         Duration(5 * time.Minute),
			DataTimeout:         Duration(time.Hour),
		},
		Admin:    Admin{Listen: "127.0.0.1:8025", TokenFile: "./admin.token"},
		Log:      Log{Level: "info", Format: "text"},
		Backends: Backends{Old: backend, New: backend},
		Routing:  Routing{Unknown: "verify", Outbound: "old", Subaddress: "+"},
		Cutover: Cutover{
			Approve:     "manual",
			MaxHold:     Duration(10 * time.Minute),
			Window:      Duration(7 * day),
			Sweep:       "both",
			Concurrency: 4,
			StopAfter:   5,
			StopShare:   Share{Percent: 20},
		},
		Backfill: defaultBackfill(),
		Lookup:   defaultLookup(),
		Queue: Queue{
			Expire:      Duration(5 * day),
			DelayNotice: Duration(4 * time.Hour),
			DoubtWait:   Duration(5 * time.Minute),
			MinFree:     512 * MiB,
		},
		DNS: defaultDNS(),
	}
}
