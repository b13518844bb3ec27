//go:build !linux

package devstack

import "syscall"

// signalOnParentDeath does nothing here: only Linux offers it. When this
// program is killed (kill -9), its servers go on and must be ended by hand.
func signalOnParentDeath(*syscall.SysProcAttr, syscall.Signal) {}
