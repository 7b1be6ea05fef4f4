package realtest

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"text/template"
)

// NginxOptions says how the mail proxy of nginx asks where users are.
type NginxOptions struct {
	AuthHTTP string // host:port/path
	Key      string // sent as X-Auth-Key
	// SMTPAuth is proxy_smtp_auth: nginx logs in at the backend of submission.
	SMTPAuth bool
}

// Nginx is a running nginx that proxies mail.
type Nginx struct {
	IMAPAddr, POP3Addr, SMTPAddr string
	LogFile                      string
}

// nginxModule is where Debian's libnginx-mod-mail has the module.
const nginxModule = "/usr/lib/nginx/modules/ngx_mail_module.so"

var nginxConf = template.Must(template.New("nginx.conf").Parse(`load_module {{.Module}};
daemon off;
pid {{.Dir}}/pid;
error_log {{.Dir}}/log info;
worker_processes 1;
events {
  worker_connections 512;
}
mail {
  server_name proxy.test;
  auth_http {{.O.AuthHTTP}};
  auth_http_header X-Auth-Key "{{.O.Key}}";
  proxy_pass_error_message on;
  server {
    listen {{.IMAP}};
    protocol imap;
  }
  server {
    listen {{.POP3}};
    protocol pop3;
  }
  server {
    listen {{.SMTP}};
    protocol smtp;
    smtp_auth plain login;
    xclient off;
    {{- if .O.SMTPAuth}}
    proxy_smtp_auth on;
    {{- end}}
  }
}
`))

// StartNginx starts an nginx with its mail proxy (Debian: nginx, libnginx-mod-mail) and waits until it greets. It is
// stopped when the test ends.
func StartNginx(t testing.TB, o NginxOptions) *Nginx {
	t.Helper()
	path := Need(t, "nginx")
	if _, err := os.Stat(nginxModule); err != nil {
		lack(t, "the mail module of nginx is not installed (Debian: apt-get install libnginx-mod-mail)")
	}
	dir := publicDir(t, "nginx")
	n := &Nginx{LogFile: filepath.Join(dir, "log")}
	var err error
	for range 3 { // a port that was free may be taken by now
		n.IMAPAddr, n.POP3Addr, n.SMTPAddr = freeAddr(t), freeAddr(t), freeAddr(t)
		var conf strings.Builder
		if err := nginxConf.Execute(&conf, map[string]any{
			"O": o, "Dir": dir, "Module": nginxModule, "IMAP": n.IMAPAddr, "POP3": n.POP3Addr, "SMTP": n.SMTPAddr,
		}); err != nil {
			t.Fatalf("write nginx.conf: %v", err)
		}
		writeFile(t, filepath.Join(dir, "nginx.conf"), conf.String())
		var d *daemon
		d, err = startDaemon("nginx", filepath.Join(dir, "out"), nil, path, "-p", dir, "-e", n.LogFile, "-c", filepath.Join(dir, "nginx.conf"))
		if err != nil {
			t.Fatal(err)
		}
		if err = d.ready(greets(n.IMAPAddr, "* OK")); err == nil {
			t.Cleanup(func() {
				d.stop(t)
				if t.Failed() {
					t.Logf("nginx's log ends with:\n%s", logTail(n.LogFile))
				}
			})
			return n
		}
		d.stop(t)
	}
	t.Fatalf("%v\n%s", err, logTail(n.LogFile))
	return nil
}

func freeAddr(t testing.TB) string { return fmt.Sprintf("127.0.0.1:%d", FreePort(t)) }

// NeedDovecotLua skips the test where Dovecot's passdb in Lua, or the library that asks over HTTP, is missing.
func NeedDovecotLua(t testing.TB) {
	t.Helper()
	for file, pkg := range map[string]string{
		"/usr/lib/dovecot/modules/auth/libauthdb_lua.so": "dovecot-auth-lua", "/usr/share/lua/5.3/socket/http.lua": "lua-socket",
	} {
		if _, err := os.Stat(file); err != nil {
			lack(t, fmt.Sprintf("%s is missing (Debian: apt-get install %s)", file, pkg))
		}
	}
}

// Postmap asks a Postfix table as "postmap -q" does. found is false when the table has no such key; an error is a
// lookup that failed.
func (p *Postfix) Postmap(t testing.TB, table, key string) (value string, found bool, err error) {
	t.Helper()
	cmd := exec.CommandContext(t.Context(), Need(t, "postmap"), "-c", filepath.Join(p.dir, "etc"), "-q", key, table)
	var stdout, stderr bytes.Buffer
	cmd.Stdout, cmd.Stderr = &stdout, &stderr
	err = cmd.Run()
	var exit *exec.ExitError
	switch {
	case err == nil:
		return strings.TrimSuffix(stdout.String(), "\n"), true, nil
	case errors.As(err, &exit) && exit.ExitCode() == 1 && onlyOverrides(stderr.String()):
		return "", false, nil
	}
	return "", false, fmt.Errorf("postmap -q %s %s: %w: %s", key, table, err, stderr.String())
}

// onlyOverrides tells whether a Postfix program complained about nothing but
// what PostfixOptions.Extra overrides.
func onlyOverrides(stderr string) bool {
	for line := range strings.Lines(stderr) {
		if !strings.Contains(line, "overriding earlier entry") {
			return false
		}
	}
	return true
}
