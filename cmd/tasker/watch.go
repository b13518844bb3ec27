package main

import (
	"context"
	"fmt"
	"io/fs"
	"path/filepath"
	"strings"
	"time"

	"github.com/taskerhq/tasker/template"
	"github.com/taskerhq/tasker/worker"
)

// readable reports whether the templates can be read, and prints why not.
func (a *app) readable(l worker.Live) bool {
	_, err := template.LoadFolder(l.Templates, template.Options{Environment: l.Environment, Variables: l.Variables})
	if err != nil {
		fprintln(a.stderr, "templates are not taken up:", err)
	}
	return err == nil
}

// watchTemplates sends the settings again when a file in the folder of templates has
// changed and all can be read, until ctx ends.
func (a *app) watchTemplates(ctx context.Context, l worker.Live, updates chan<- worker.Live) {
	const interval = 500 * time.Millisecond // an editor and a look at the terminal take longer
	look := time.NewTicker(interval)
	defer look.Stop()
	for last := stamp(l.Templates); ; {
		select {
		case <-look.C:
		case <-ctx.Done():
			return
		}
		now := stamp(l.Templates)
		if now == last {
			continue
		}
		last = now
		if !a.readable(l) {
			continue
		}
		select {
		case updates <- l:
		case <-ctx.Done():
			return
		}
	}
}

// stamp changes when a file of the folder does.
func stamp(folder string) string {
	var all strings.Builder
	_ = filepath.WalkDir(folder, func(path string, entry fs.DirEntry, err error) error {
		if err == nil && !entry.IsDir() {
			if info, err := entry.Info(); err == nil { // it may be gone again
				all.WriteString(fmt.Sprintln(path, info.Size(), info.ModTime().UnixNano()))
			}
		}
		return nil
	}) // what can't be read has no stamp
	return all.String()
}
