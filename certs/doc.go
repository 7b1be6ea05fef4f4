// Package certs keeps the certificates that our listeners show, and knows when certificates end.
//
// [Files] is a pair of PEM files that is read again when they change, and stays as it was when what is new cannot be used.
// [ACME] gets a certificate from a certificate authority (RFC 8555) and renews it. Both give the certificate of the moment
// to crypto/tls by Get, so that a tls.Config is made once and its session tickets stay good over a renewal. [Book] notes
// when each certificate ends that was seen, ours and those of servers that we connect to, and says in time which will.
//
// Nothing here ever stops mail: without a usable certificate the one before is shown, expired or not, for a sender that
// does not verify is still better off than in clear. It does not decide about protocol versions, and knows nothing of SMTP.
package certs
