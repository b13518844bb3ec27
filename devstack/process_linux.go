package devstack

import "syscall"

// signalOnParentDeath makes the kernel send sig to the child when the thread
// that started it ends. It also holds for a child that runs as another user:
// Go sets it after the change of user, which would clear it, and the binaries
// that are started here are not setuid, whose execution would clear it too.
func signalOnParentDeath(attr *syscall.SysProcAttr, sig syscall.Signal) {
	attr.Pdeathsig = sig
}
