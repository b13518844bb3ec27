package worker_test

import (
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
)

// hangup sends SIGHUP and waits until the log has n lines that hold the word.
func (c *child) hangup(b *bundle, word string, n int) {
	b.Helper()
	if err := c.cmd.Process.Signal(syscall.SIGHUP); err != nil {
		b.Fatal(err)
	}
	b.until("the log says: "+word, func() bool { return strings.Count(c.log.String(), word) >= n })
}

func TestAWorkerReadsItsFileAgainAtSIGHUP(t *testing.T) {
	b := setup(t)
	dir := t.TempDir()
	write := func(name, text string) {
		t.Helper()
		if err := os.MkdirAll(filepath.Dir(filepath.Join(dir, name)), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(filepath.Join(dir, name), []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	template := func(version string) string {
		return "name: one\nnamespace_name: test\nversion: " + version + "\nstep_templates: [{name: only, handler: tasker.http, handler_config: {url: 'http://127.0.0.1:1/'}, default_retryable: false}]\n"
	}
	folder := filepath.Join(dir, "templates")
	base := "templates:\n  folder: " + folder + "\n"
	write("templates/one.yaml", template("1.0.0"))
	write("tasker.yaml", base+"worker:\n  sweep_every: 1h\n")
	w := b.worker("--config", filepath.Join(dir, "tasker.yaml"), "--park-after", "3s")

	// A good file: what may change does, what a flag says stays, the rest is named.
	write("templates/one.yaml", template("1.1.0"))
	write("tasker.yaml", base+"worker:\n  sweep_every: 7s\n  park_after: 9s\n  lease: 9s\nhttp:\n  allow: ['127.0.0.1:1']\nlog:\n  level: debug\n")
	w.hangup(b, "settings are taken up", 1)
	log := w.log.String()
	for _, want := range []string{
		`"msg":"setting changed","key":"worker.sweep_every","old":"1h","new":"7s"`,
		`"msg":"setting changed","key":"http.allow","old":"","new":"127.0.0.1:1"`,
		`"msg":"setting changed","key":"log.level","old":"info","new":"debug"`,
		`"msg":"setting differs and takes a restart of this worker","key":"worker.lease","runs_with":"4s","new":"9s"`,
	} {
		if !strings.Contains(log, want) {
			t.Errorf("the log lacks %s", want)
		}
	}
	if strings.Contains(log, `"key":"worker.park_after"`) {
		t.Error("a flag goes over the file, also the second time")
	}
	b.want("1.0.0 1.1.0", `SELECT string_agg(version, ' ' ORDER BY version) FROM tasker.task_templates WHERE name = 'one'`)
	b.enqueue("one", `{}`)
	b.finish()
	if f := b.failure(1, "only"); f.Code == "host_not_allowed" {
		t.Errorf("the host is allowed by now: %s", f.Message)
	}

	// A bad file: the place is told, and what was stays.
	write("tasker.yaml", base+"worker:\n  sweep_evry: 8s\n")
	w.hangup(b, "the settings are wrong; the worker goes on with those it has", 1)
	if want := `tasker.yaml:4:3","problem":"unknown key \"sweep_evry\" in worker; did you mean \"sweep_every\"?"`; !strings.Contains(w.log.String(), want) {
		t.Errorf("the log lacks %s", want)
	}

	// A folder of templates that is broken leaves those that are registered.
	write("templates/bad.yaml", "name: [")
	write("tasker.yaml", base+"worker:\n  sweep_every: 9s\nhttp:\n  allow: ['127.0.0.1:1']\n")
	w.hangup(b, "settings are taken up", 2)
	log = w.log.String()
	for _, want := range []string{"the templates can't be registered; those that are registered stay", `"key":"worker.sweep_every","old":"7s","new":"9s"`} {
		if !strings.Contains(log, want) {
			t.Errorf("the log lacks %s", want)
		}
	}
	if code := w.terminate(b); code != 0 {
		t.Errorf("a worker that has read its settings again stops with %d", code)
	}
}
