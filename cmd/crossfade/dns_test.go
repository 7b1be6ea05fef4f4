package main

import (
	"fmt"
	"testing"

	"crossfade/internal/mailtest/realtest"
)

// dnsZones are what the name server of the scripts below testdata/dns serves.
var dnsZones = map[string]string{
	// All is well, and the MX leads to the relay.
	"example.org": dnsHead + `@ MX 10 mx
@ TXT "v=spf1 ip4:192.0.2.25 include:_spf.new.example -all"
mx A 192.0.2.25
_dmarc TXT "v=DMARC1; p=none"
_smtp._tls TXT "v=TLSRPTv1; rua=mailto:tls@example.org"
n1._domainkey TXT "v=DKIM1; k=ed25519; p=11qYAYKxCrfVS/7TyWQHOg7hcvPapiMlrwIaaPcHURo="
`,
	// A forgotten backup MX, and a TTL of a day.
	"example.net": dnsHead + `@ 86400 MX 10 mx.example.org.
@ 86400 MX 50 backup
backup A 198.51.100.9
@ TXT "v=spf1 ip4:192.0.2.25 include:_spf.new.example -all"
n1._domainkey TXT "v=DKIM1; k=ed25519; p=11qYAYKxCrfVS/7TyWQHOg7hcvPapiMlrwIaaPcHURo="
`,
	"new.example":          dnsHead + "mx1 A 203.0.113.1\n_spf TXT \"v=spf1 ip4:203.0.113.0/24 -all\"\n",
	"2.0.192.in-addr.arpa": dnsHead + "25 PTR mx.example.org.\n",
}

const dnsHead = `$TTL 300
@ SOA ns.example.org. hostmaster.example.org. 1 3600 600 604800 300
@ NS ns.example.org.
`

// TestDNSScripts runs the scripts of testdata/dns against a real name server.
func TestDNSScripts(t *testing.T) {
	ns := realtest.StartNSD(t, dnsZones)
	runScripts(t, "testdata/dns", fmt.Sprintf("dns: {resolvers: [%q], nameservers: [%q], new_mx: [mx1.new.example], spf_new: [\"include:_spf.new.example\"], dkim_new: [n1]}\n", ns.Addr, ns.Addr))
}
