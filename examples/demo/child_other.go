//go:build !linux

package main

import "syscall"

// killOnParentDeath does nothing here: only Linux offers it.
func killOnParentDeath(*syscall.SysProcAttr) {}
