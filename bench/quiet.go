package main

import (
	"context"
	"fmt"
	"os"
	"strconv"
	"strings"
	"syscall"
	"time"
)

// machineTime is the time that all processors have been busy so far, whoever
// kept them busy, and however short he lived.
func machineTime() (time.Duration, error) {
	text, err := os.ReadFile("/proc/stat")
	if err != nil {
		return 0, err
	}
	line, _, _ := strings.Cut(string(text), "\n")
	fields := strings.Fields(line) // cpu user nice system idle iowait irq softirq steal …
	if len(fields) < 8 {
		return 0, fmt.Errorf("/proc/stat begins with %q", line)
	}
	var ticks int64
	for _, i := range []int{1, 2, 3, 6, 7} {
		n, err := strconv.ParseInt(fields[i], 10, 64)
		if err != nil {
			return 0, fmt.Errorf("/proc/stat begins with %q", line)
		}
		ticks += n
	}
	return time.Duration(ticks) * time.Second / 100, nil // Linux counts in hundredths
}

// ownTime is the time that this program has used.
func ownTime() time.Duration {
	var u syscall.Rusage
	if err := syscall.Getrusage(syscall.RUSAGE_SELF, &u); err != nil {
		return 0
	}
	return time.Duration(u.Utime.Nano() + u.Stime.Nano())
}

// othersBetween is how many processors were used by others than the engine, its
// Postgres and this program.
func othersBetween(before, after reading, engine string) float64 {
	others := after.machine - before.machine - (after.own - before.own)
	others -= after.engine(engine) - before.engine(engine) + after.cpu["postgres"] - before.cpu["postgres"]
	return max(0, others.Seconds()/after.at.Sub(before.at).Seconds())
}

// awaitQuiet waits until the machine was quiet for a second. After the longest
// wait it goes on all the same: the run's figure tells how busy others were.
func (b *bench) awaitQuiet(ctx context.Context) error {
	if b.quiet <= 0 {
		return nil
	}
	begun, told := time.Now(), time.Time{}
	for {
		own, at := ownTime(), time.Now()
		machine, err := machineTime()
		if err != nil {
			return err
		}
		select {
		case <-time.After(time.Second):
		case <-ctx.Done():
			return ctx.Err()
		}
		now, err := machineTime()
		if err != nil {
			return err
		}
		busy := (now - machine - (ownTime() - own)).Seconds() / time.Since(at).Seconds()
		if busy <= b.quiet {
			return nil
		}
		waited := time.Since(begun).Round(time.Second)
		if waited >= b.wait {
			fmt.Fprintf(os.Stderr, "others still use %.2f processors after %s: going on\n", busy, waited)
			return nil
		}
		if time.Since(told) > 15*time.Second {
			told = time.Now()
			fmt.Fprintf(os.Stderr, "others use %.2f processors: waiting for less than %.2f, at most %s more\n", busy, b.quiet, (b.wait - waited).Round(time.Second))
		}
	}
}
