package main

import (
	"encoding/json"
	"os"
	"path/filepath"
	"reflect"
	"regexp"
	"strings"
	"testing"

	"github.com/taskerhq/tasker/config"
	"github.com/taskerhq/tasker/worker"
)

// settings loads settings from flags alone.
func settings(t *testing.T, flags map[string]string) *config.Loaded {
	t.Helper()
	l, err := config.Load(config.Sources{Getenv: func(string) string { return "" }, Flags: flags})
	if err != nil {
		t.Fatal(err)
	}
	return l
}

func workerOf(t *testing.T, flags map[string]string) worker.Config {
	t.Helper()
	c, err := workerConfig(settings(t, flags))
	if err != nil {
		t.Fatal(err)
	}
	c.Handlers = nil // made anew each time
	return c
}

// The default of each setting is what its package does when nobody sets it.
func TestTheDefaultsAreTheSameWithoutTheTable(t *testing.T) {
	table, packages := workerOf(t, nil), worker.Defaults()
	if table.HTTP.MaxResponse != packages.Handlers.HTTP().MaxResponse || table.HTTP.Timeout != packages.Handlers.HTTP().Timeout {
		t.Errorf("http: %+v and %+v", table.HTTP, packages.Handlers.HTTP())
	}
	table.Variables, table.HTTP = nil, nil
	packages.Handlers, packages.Logger, packages.Started = nil, nil, nil
	if !reflect.DeepEqual(table, packages) {
		t.Errorf("the table says %+v\nthe packages %+v", table, packages)
	}
}

// Each setting that is set makes a worker another one, and those that SIGHUP
// changes change what a running one is handed.
func TestEverySettingReachesTheWorker(t *testing.T) {
	t.Setenv("TASKER_TEST_ALLOWED", "yes")
	values := map[config.Kind]string{config.Text: "x", config.Secret: "x", config.List: "TASKER_TEST_ALLOWED"}
	plain := workerOf(t, nil)
	for i := range config.Settings {
		s := &config.Settings[i]
		value := values[s.Kind]
		switch s.Kind {
		case config.URL:
			value = s.Form
		case config.Whole, config.Duration:
			if value = s.Most; value == s.Default {
				value = s.Least
			}
		case config.Choice: // log.level and log.format belong to the program; TestSettingsOfTheLog
			continue
		default:
		}
		changed := workerOf(t, map[string]string{s.Key: value})
		if reflect.DeepEqual(changed, plain) {
			t.Errorf("%s: nobody gets it", s.Key)
		}
		if live := !reflect.DeepEqual(changed.Live, plain.Live); live != s.Live {
			t.Errorf("%s: the reference says %t to whether SIGHUP changes it, and the worker %t", s.Key, s.Live, live)
		}
		changed.Live = plain.Live
		if only := reflect.DeepEqual(changed, plain); only != s.Live {
			t.Errorf("%s is not in one place", s.Key)
		}
	}
}

// A field that a setting is handed to and that nobody reads would be a setting
// without effect.
func TestEveryFieldOfTheWorkersConfigIsUsed(t *testing.T) {
	t.Parallel()
	var code strings.Builder
	for _, room := range []string{"worker", "orchestrator", "jobs", "sidekiq", "store", "handler", "telemetry"} {
		files, err := filepath.Glob(filepath.Join("..", "..", room, "*.go"))
		if err != nil {
			t.Fatal(err)
		}
		for _, file := range files {
			text, err := os.ReadFile(file)
			if err != nil {
				t.Fatal(err)
			}
			for line := range strings.Lines(string(text)) {
				if !strings.HasSuffix(file, "_test.go") && !strings.Contains(line, "cmp.Or(") { // its default is no use
					code.WriteString(line)
				}
			}
		}
	}
	var check func(reflect.Type)
	check = func(config reflect.Type) {
		for i := range config.NumField() {
			f := config.Field(i)
			if f.Type.Kind() == reflect.Pointer && f.Name == "HTTP" {
				f.Type = f.Type.Elem()
			}
			if f.Type.Kind() == reflect.Struct {
				check(f.Type)
			} else if !regexp.MustCompile(`\.` + f.Name + `\b`).MatchString(code.String()) {
				t.Errorf("nobody reads %s.%s", config, f.Name)
			}
		}
	}
	check(reflect.TypeFor[worker.Config]())
}

func TestSettingsOfTheLog(t *testing.T) {
	t.Parallel()
	var stderr strings.Builder
	a := &app{stderr: &stderr, settings: settings(t, map[string]string{"log.level": "warn", "log.format": "json"})}
	a.setLevel(a.settings)
	log := a.logger()
	log.Info("not told")
	log.Warn("told")
	a.setLevel(settings(t, map[string]string{"log.level": "info"})) // as SIGHUP does
	log.Info("told now")
	if got := stderr.String(); strings.Contains(got, "not told") || !strings.Contains(got, `"msg":"told"`) || !strings.Contains(got, `"msg":"told now"`) {
		t.Error(got)
	}
	stderr.Reset()
	a.settings = settings(t, map[string]string{"log.format": "text"})
	if a.logger().Info("text"); strings.Contains(stderr.String(), "{") {
		t.Error(stderr.String())
	}
}

func TestConfigShowTellsValuesAndTheirOriginsWithoutSecrets(t *testing.T) {
	file := filepath.Join(folder(t, map[string]string{"t.yaml": "database:\n  url: postgres://u:secret@h/d\nworker:\n  lease: 9s\n"}), "t.yaml")
	t.Setenv("REDIS_URL", "redis://:secret@h:6379/1")
	t.Setenv("TASKER_RIVER_POLL", "700ms")
	args := []string{"config", "show", "--config", file, "--max-tasks", "7", "--http-allow", "a", "--http-allow", "b,c"}
	text := expect(t, exitDone, "", args...)
	lines := strings.Split(text, "\n")
	for i, line := range lines {
		lines[i] = strings.Join(strings.Fields(line), " ")
	}
	for _, want := range []string{
		"database.url postgres://u:[FILTERED]@h/d file " + file + ":2",
		"redis.url redis://:[FILTERED]@h:6379/1 environment REDIS_URL",
		"worker.lease 9s file " + file + ":4",
		"worker.max_tasks 7 flag --max-tasks",
		"river.poll 700ms environment TASKER_RIVER_POLL",
		"http.allow a,b,c flag --http-allow",
		"worker.park_after 2s default",
		"templates.folder - default",
	} {
		if !strings.Contains(strings.Join(lines, "\n"), want+"\n") {
			t.Errorf("no line %q in:\n%s", want, text)
		}
	}
	machine := expect(t, exitDone, "", append(args, "-o", "json")...)
	var rows []struct{ Key, Value, Source, Place, Default string }
	if err := json.Unmarshal([]byte(machine), &rows); err != nil || len(rows) != len(config.Settings) {
		t.Errorf("%d rows, %v", len(rows), err)
	}
	if strings.Contains(text+machine, "secret") {
		t.Error("a password is shown")
	}
}

func TestConfigIsCheckedAndMade(t *testing.T) {
	dir := folder(t, map[string]string{"bad.yaml": "worker:\n  leese: 4s\n"})
	bad := filepath.Join(dir, "bad.yaml")
	mistake := bad + `:2:3: unknown key "leese" in worker; did you mean "lease"?`
	expect(t, exitRefused, mistake, "config", "validate", bad)
	expect(t, exitRefused, mistake, "config", "show", "--config", bad)
	expect(t, exitRefused, mistake, "task", "list", "--config", bad)
	expect(t, exitUsage, "there is no file "+bad+"x", "config", "validate", bad+"x")
	expect(t, exitUsage, "--config: the settings can't be read", "task", "list", "--config", bad+"x")
	t.Setenv("TASKER_WORKER_LEASE", "4")
	expect(t, exitUsage, "TASKER_WORKER_LEASE: worker.lease must be a time from 1s to 1h, such as 4s; 4 has no unit: write 4s or 4ms", "config", "show")

	t.Chdir(dir)
	expect(t, exitUsage, "there is no file tasker.yaml; name one, or make one: tasker config init > tasker.yaml", "config", "validate")
	sample := expect(t, exitDone, "#lease: 4s", "config", "init")
	if err := os.WriteFile(config.File, []byte(sample), 0o600); err != nil {
		t.Fatal(err)
	}
	expect(t, exitDone, "valid  tasker.yaml", "config", "validate")
	expect(t, exitDone, `"valid": true`, "config", "validate", "-o", "json")
	if err := os.WriteFile(config.File, []byte("log: {level: loud}"), 0o600); err != nil {
		t.Fatal(err)
	}
	expect(t, exitRefused, "tasker.yaml:1:14: log.level must be", "task", "list")
}
