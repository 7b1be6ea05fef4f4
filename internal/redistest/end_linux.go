package redistest

import "syscall"

// endWithUs makes a server end with the test, also when that is killed.
func endWithUs() *syscall.SysProcAttr { return &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL} }
