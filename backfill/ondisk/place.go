package ondisk

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path"
	"slices"
	"strings"
	"syscall"
)

// Place is where one user's tree lies. The path is looked for below the base, and
// never leaves it, whatever the user's name is and whatever links there are.
// Links on the way count only where the administrator made them: they, and the
// directory they are in, belong to root or to the user who runs this. A link of
// the user's own might lead into the mail of another.
type Place struct {
	Base string // an absolute directory
	Path string // relative to Base; empty means Base itself
}

func (p Place) String() string {
	if p.Path == "" {
		return p.Base
	}
	return strings.TrimSuffix(p.Base, "/") + "/" + p.Path
}

// spot is a file or a directory that was found without following a link.
type spot struct {
	dir  *os.Root    // that it lies in; nil when not even that is there
	name string      // "." is dir itself
	st   fs.FileInfo // nil when nothing is there
}

func (s spot) close() {
	if s.dir != nil {
		s.dir.Close()
	}
}

// open opens the tree. Everything in it is reached through what it gives.
func (p Place) open() (*os.Root, error) {
	s, err := p.find()
	if err != nil {
		return nil, err
	}
	defer s.close()
	if s.st == nil {
		return nil, p.failed(syscall.ENOENT)
	}
	root, err := enter(s.dir, s.name, s.st)
	if err != nil {
		return nil, p.failed(err)
	}
	return root, nil
}

func (p Place) failed(err error) error {
	return fmt.Errorf("open %s: %w (the path and its links must not leave %s, and the user who runs crossfade has to be able to read it)", p, reason(err), p.Base)
}

// find looks for what is at the place. The base has to be there, and what lies
// below it may be missing.
func (p Place) find() (spot, error) {
	base, err := os.OpenRoot(p.Base)
	if err != nil {
		return spot{}, fmt.Errorf("open %s: %w", p.Base, reason(err))
	}
	s := spot{dir: base, name: "."}
	levels, err := resolve(base, p.Path)
	for err == nil && len(levels) > 1 {
		var next *os.Root
		if next, err = step(s.dir, levels[0]); err == nil {
			s.dir.Close()
			s.dir, levels = next, levels[1:]
		}
	}
	if errors.Is(err, fs.ErrNotExist) {
		s.close()
		return spot{}, nil
	}
	if err == nil && len(levels) == 1 {
		s.name = levels[0]
	}
	if err == nil {
		s.st, err = s.dir.Lstat(s.name)
	}
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return s, nil
	case err == nil && s.st.Mode()&fs.ModeSymlink != 0:
		err = errSwapped
	}
	if err != nil {
		s.close()
		return spot{}, p.failed(err)
	}
	return s, nil
}

// step opens a directory that is no link.
func step(dir *os.Root, name string) (*os.Root, error) {
	st, err := dir.Lstat(name)
	if err != nil {
		return nil, reason(err)
	}
	return enter(dir, name, st)
}

var (
	errSwapped  = errors.New("something was put in its place while it was opened")
	errLink     = errors.New("there is a symbolic link on the way that is neither root's nor that of the user who runs crossfade: it might lead into another user's mail")
	errManyHops = errors.New("there are too many symbolic links on the way")
	errLeaves   = errors.New("a symbolic link leads out of it")
)

// enter opens a directory that was seen before and is no link.
func enter(dir *os.Root, name string, st fs.FileInfo) (*os.Root, error) {
	root, err := dir.OpenRoot(name)
	if err != nil {
		return nil, reason(err)
	}
	now, err := root.Stat(".")
	if err == nil && !os.SameFile(st, now) {
		err = errSwapped
	}
	if err != nil {
		root.Close()
		return nil, reason(err)
	}
	return root, nil
}

// resolve gives the levels of a path without the links on it. The last one may be
// missing.
func resolve(base *os.Root, name string) ([]string, error) {
	var done []string
	todo := split(name)
	for hops := 0; len(todo) > 0; {
		level := todo[0]
		todo = todo[1:]
		if level == ".." {
			if len(done) == 0 {
				return nil, errLeaves
			}
			done = done[:len(done)-1]
			continue
		}
		at := path.Join(path.Join(done...), level)
		st, err := base.Lstat(at)
		if errors.Is(err, fs.ErrNotExist) && len(todo) == 0 {
			return append(done, level), nil
		}
		if err != nil {
			return nil, reason(err)
		}
		if st.Mode()&fs.ModeSymlink == 0 {
			done = append(done, level)
			continue
		}
		to, err := follow(base, at, st)
		if err != nil {
			return nil, err
		}
		if hops++; hops > 40 {
			return nil, errManyHops
		}
		todo = slices.Concat(split(to), todo)
	}
	return done, nil
}

// follow tells where a link leads that may be followed.
func follow(base *os.Root, at string, link fs.FileInfo) (string, error) {
	dir, err := base.Stat(path.Dir(at))
	if err != nil {
		return "", reason(err)
	}
	if !trusted(link) || !trusted(dir) {
		return "", errLink
	}
	to, err := base.Readlink(at)
	if err != nil {
		return "", reason(err)
	}
	if path.IsAbs(to) {
		return "", errLeaves
	}
	return to, nil
}

// trusted tells whether something belongs to root or to ourselves.
func trusted(st fs.FileInfo) bool {
	own, ok := st.Sys().(*syscall.Stat_t)
	return ok && (own.Uid == 0 || own.Uid == uint32(os.Geteuid()))
}

func split(name string) []string {
	return slices.DeleteFunc(strings.Split(name, "/"), func(level string) bool { return level == "" || level == "." })
}
