package main

import "syscall"

// killOnParentDeath leaves nothing running when this program is killed.
func killOnParentDeath(attr *syscall.SysProcAttr) { attr.Pdeathsig = syscall.SIGKILL }
