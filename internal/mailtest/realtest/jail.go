package realtest

import (
	"fmt"
	"os"
	"path/filepath"
	"syscall"
	"testing"
)

// mailServers is where .ci/run unpacks mail servers of which Debian installs one only, which is Postfix: each with the
// libraries that it needs, in a tree of its own.
const mailServers = "/usr/local/lib/mail-servers"

// needTree returns the directory of an unpacked mail server.
func needTree(t testing.TB, name string) string {
	t.Helper()
	needRoot(t, name)
	tree := filepath.Join(mailServers, name)
	if st, err := os.Stat(tree); err != nil || !st.IsDir() {
		lack(t, fmt.Sprintf("%s is not unpacked at %s (.ci/run puts it there)", name, tree))
	}
	return tree
}

// jailScript gives a program a file system of its own: this machine's, with a tree of packages laid over it. These servers
// have fixed places for their configuration, queue and sockets; what they write there is in memory and gone with them.
const jailScript = `set -e
tree=$1 dir=$2
mount --make-rprivate /
mkdir "$dir/jail"
mount -t tmpfs none "$dir/jail"
cd "$dir/jail"
mkdir upper work root
cp -a "$tree/." upper/
for d in bin sbin lib lib64; do # on the machine these are links to what is below usr
  [ -d upper/$d ] || continue
  mkdir -p upper/usr/$d
  cp -a upper/$d/. upper/usr/$d/
  rm -r upper/$d
done
mount -t overlay overlay -o lowerdir=/,upperdir=upper,workdir=work root
mount -t proc proc root/proc
mount --rbind /dev root/dev
mkdir -p "root$dir"
mount --bind "$dir" "root$dir"
exec chroot root /bin/sh "$dir/setup" "$dir"
`

// startJailed runs a shell script, $1 of which is dir, as root in a jail. It ends with all its children when this process
// dies. What it writes below dir is seen outside.
func startJailed(name, tree, dir, setup string) (*daemon, error) {
	if err := os.WriteFile(filepath.Join(dir, "setup"), []byte("set -e\n"+setup), 0o644); err != nil {
		return nil, fmt.Errorf("start %s: %w", name, err)
	}
	d := newDaemon(name, filepath.Join(dir, "out"), nil, "/bin/sh", "-c", jailScript, "sh", tree, dir)
	d.hard = true // the first process of a PID namespace is deaf to SIGTERM, and its end is that of all others
	d.cmd.SysProcAttr = &syscall.SysProcAttr{
		Cloneflags: syscall.CLONE_NEWNS | syscall.CLONE_NEWPID, Pdeathsig: syscall.SIGKILL, Setpgid: true,
	}
	return d, d.launch()
}
