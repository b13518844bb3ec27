package config

import (
	"errors"
	"flag"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"reflect"
	"regexp"
	"strings"
	"testing"
	"time"
)

var update = flag.Bool("update", false, "write docs/configuration.md anew")

// Everything that is generated or loaded from the table trusts it.
func TestTheTableOfSettingsIsSound(t *testing.T) {
	taken := map[string]string{}
	once := func(what, key string) {
		if other, is := taken[what]; is {
			t.Errorf("%s and %s share %s", key, other, what)
		}
		taken[what] = key
	}
	kinds := map[Kind]any{Text: new(string), Secret: new(string), URL: new(string), Choice: new(string), Whole: new(int), Duration: new(time.Duration), List: new([]string)}
	groups := map[string]bool{}
	for _, g := range Groups {
		groups[g.Name] = true
	}
	sentence := regexp.MustCompile(`^[A-Z].*[.]$`)
	var c Config
	fields := map[any]string{}
	for i := range Settings {
		s := &Settings[i]
		once("the key "+s.Key, s.Key)
		for _, name := range s.Variables() {
			once("the variable "+name, s.Key)
		}
		if s.Flag != "" {
			once("the flag --"+s.Flag, s.Key)
		}
		if !groups[s.Group()] || s.Name() == "" {
			t.Errorf("%s belongs to no group", s.Key)
		}
		if !sentence.MatchString(s.Why) || s.About == "" || strings.HasSuffix(s.About, ".") {
			t.Errorf("%s: the reason is a sentence, and what it is has none of a sentence's dots", s.Key)
		}
		if got, want := reflect.TypeOf(s.field(&c)), reflect.TypeOf(kinds[s.Kind]); got != want {
			t.Errorf("%s is a %s and is kept in a %s", s.Key, s.Kind, got)
		}
		for _, text := range []string{s.Default, s.Least, s.Most} {
			if value, fault := s.parse(text); text != "" && fault != "" {
				t.Errorf("%s: %s is not among its own values: %v %s", s.Key, text, value, fault)
			}
		}
		if _, fault := s.parse(s.Default); fault != "" {
			t.Errorf("%s: its default %q %s", s.Key, s.Default, fault)
		}
		if got := s.text(&Defaults().Config); got != s.Default {
			t.Errorf("%s: the default %s is written %s", s.Key, s.Default, got)
		}
		fields[s.field(&c)] = s.Key
	}
	// Nothing in Config is out of reach.
	v := reflect.ValueOf(&c).Elem()
	for i := range v.NumField() {
		for j := range v.Field(i).NumField() {
			if fields[v.Field(i).Field(j).Addr().Interface()] == "" {
				t.Errorf("no setting is kept in %s.%s", v.Type().Field(i).Name, v.Field(i).Type().Field(j).Name)
			}
		}
	}
	if len(fields) != len(Settings) {
		t.Errorf("%d settings are kept in %d fields", len(Settings), len(fields))
	}
}

// from makes sources of a file's text, an environment and flags.
func from(yaml string, env, flags map[string]string) Sources {
	return Sources{
		Flags:  flags,
		Getenv: func(name string) string { return env[name] },
		Read: func(path string) ([]byte, error) {
			if yaml == "" || path != File {
				return nil, fmt.Errorf("open %s: %w", path, fs.ErrNotExist)
			}
			return []byte(yaml), nil
		},
	}
}

func inFile(err error) bool {
	var problems Errors
	return errors.As(err, &problems) && problems.InFile()
}

func TestAFlagGoesOverTheEnvironmentOverTheFileOverTheDefault(t *testing.T) {
	type words = map[string]string
	for name, c := range map[string]struct {
		yaml       string
		env, flags words
		key        string
		value      string
		origin     string
	}{
		"default":                 {"", nil, nil, "worker.lease", "4s", "default"},
		"file":                    {"worker:\n  lease: 9s\n", nil, nil, "worker.lease", "9s", "file tasker.yaml:2"},
		"environment":             {"worker: {lease: 9s}", words{"TASKER_WORKER_LEASE": "8s"}, nil, "worker.lease", "8s", "environment TASKER_WORKER_LEASE"},
		"flag":                    {"worker: {lease: 9s}", words{"TASKER_WORKER_LEASE": "8s"}, words{"worker.lease": "7s"}, "worker.lease", "7s", "flag --lease"},
		"own variable first":      {"", words{"TASKER_ENV": "a", "RAILS_ENV": "b"}, nil, "templates.environment", "a", "environment TASKER_ENV"},
		"then the general one":    {"", words{"RAILS_ENV": "b"}, nil, "templates.environment", "b", "environment RAILS_ENV"},
		"empty variable":          {"", words{"TASKER_WORKER_LEASE": ""}, nil, "worker.lease", "4s", "default"},
		"null":                    {"worker: {lease: }", nil, nil, "worker.lease", "4s", "default"},
		"empty group":             {"worker:\nlog:\n  level: warn\n", nil, nil, "log.level", "warn", "file tasker.yaml:3"},
		"list of the file":        {"http: {allow: [a.example, 'b.example:8080']}", nil, nil, "http.allow", "a.example,b.example:8080", "file tasker.yaml:1"},
		"list of the environment": {"http: {allow: [a]}", words{"TASKER_HTTP_ALLOW": "b, c ,"}, nil, "http.allow", "b,c", "environment TASKER_HTTP_ALLOW"},
		"empty list":              {"http: {allow: []}", nil, nil, "http.allow", "", "file tasker.yaml:1"},
		"alias":                   {"worker: {lease: &x 5s, park_after: *x}", nil, nil, "worker.park_after", "5s", "file tasker.yaml:1"},
		"thousands":               {"worker: {max_tasks: 1_000}", nil, nil, "worker.max_tasks", "1000", "file tasker.yaml:1"},
		"only a comment":          {"# nothing\n", nil, nil, "worker.lease", "4s", "default"},
		"libpq's form of a URL":   {"", words{"DATABASE_URL": "host=/tmp dbname=x"}, nil, "database.url", "host=/tmp dbname=x", "environment DATABASE_URL"},
	} {
		t.Run(name, func(t *testing.T) {
			l, err := Load(from(c.yaml, c.env, c.flags))
			if err != nil {
				t.Fatal(err)
			}
			if value, origin := Find(c.key).text(&l.Config), l.Origin(c.key).String(); value != c.value || origin != c.origin {
				t.Errorf("got %s from %s, want %s from %s", value, origin, c.value, c.origin)
			}
		})
	}
}

func TestWhatIsWrongHasItsPlaceAndItsMend(t *testing.T) {
	for yaml, want := range map[string]string{
		"wroker: {}":                            `tasker.yaml:1:1: unknown key "wroker" in tasker.yaml; did you mean "worker"?`,
		"zzzzz: {}":                             `tasker.yaml:1:1: unknown key "zzzzz" in tasker.yaml; the groups are database, redis, worker, dead_letters, retention, analytics, orchestrator, writer, river, server, telemetry, http, templates, log`,
		"lease: 4s":                             `tasker.yaml:1:1: unknown key "lease" in tasker.yaml; write lease: under worker:`,
		"worker.lease: 4s":                      `tasker.yaml:1:1: unknown key "worker.lease" in tasker.yaml; write lease: under worker:`,
		"river: {lease: 4s}":                    `tasker.yaml:1:9: unknown key "lease" in river; write lease: under worker:`,
		"worker:\n  leese: 4s":                  `tasker.yaml:2:3: unknown key "leese" in worker; did you mean "lease"?`,
		"log: {zzzzzz: 1}":                      `tasker.yaml:1:7: unknown key "zzzzzz" in log; its keys are level, format`,
		"worker: 4":                             `tasker.yaml:1:9: worker must be a mapping of keys of its settings, not 4`,
		"- worker":                              `tasker.yaml:1:1: tasker.yaml must be a mapping of groups such as worker:, not a list`,
		"worker: {lease: 4s, lease: 5s}":        `tasker.yaml:1:21: "lease" is given twice; the first is in line 1`,
		"worker: {lease: 4}":                    `tasker.yaml:1:17: worker.lease must be a time from 1s to 1h, such as 4s; 4 has no unit: write 4s or 4ms`,
		"worker: {lease: 100ms}":                `tasker.yaml:1:17: worker.lease must be a time from 1s to 1h, such as 4s, not 100ms`,
		"worker: {lease: soon}":                 `tasker.yaml:1:17: worker.lease must be a time from 1s to 1h, such as 4s, not "soon"`,
		"worker: {lease: [4s]}":                 `tasker.yaml:1:17: worker.lease must be a time from 1s to 1h, such as 4s, not a list`,
		"worker: {max_tasks: 0}":                `tasker.yaml:1:21: worker.max_tasks must be a whole number from 1 to 10000, not 0`,
		"worker: {max_tasks: 1.5}":              `tasker.yaml:1:21: worker.max_tasks must be a whole number from 1 to 10000, not 1.5`,
		"worker: {max_tasks: '7'}":              `tasker.yaml:1:21: worker.max_tasks must be a whole number from 1 to 10000, and this is text; leave out the quotes`,
		"log: {level: warning}":                 `tasker.yaml:1:14: log.level must be debug, info, warn or error, not "warning"`,
		"log: {level: inof}":                    `tasker.yaml:1:14: log.level must be debug, info, warn or error, not "inof"; did you mean "info"?`,
		"http: {allow: a}":                      `tasker.yaml:1:15: http.allow must be a list, not "a"; write allow: [a]`,
		"http: {allow: [a, 7]}":                 `tasker.yaml:1:15: http.allow must be a list of text, and has 7 in line 1`,
		"http: {allow: ['https://a']}":          `tasker.yaml:1:15: http.allow has "https://a", which is a URL or a path; write the host alone, with its port where it isn't the scheme's own`,
		"templates: {environment: 2}":           `tasker.yaml:1:26: templates.environment must be text, not 2; write environment: "2"`,
		"database: {url: 'mysql://u:secret@h'}": `tasker.yaml:1:17: database.url begins with none of postgres://, postgresql://; it looks like postgres://USER:PASSWORD@HOST:5432/DATABASE`,
		"database: {url: [secret]}":             `tasker.yaml:1:17: database.url must be a URL such as postgres://USER:PASSWORD@HOST:5432/DATABASE, not a list`,
		"redis: {url: 7}":                       `tasker.yaml:1:14: redis.url must be a URL such as redis://:PASSWORD@HOST:6379/0`,
		"worker: {lease: 5s":                    `tasker.yaml:2:1: malformed YAML: while parsing a flow mapping: did not find expected ',' or '}' (it starts in line 1)`,
		"worker:\n---\nlog:":                    `tasker.yaml:2:1: a second document starts here, and a file holds one configuration; move it to a file of its own`,
		"worker: {lease: 4, max_tasks: 0}\nx:": "tasker.yaml:1:17: worker.lease must be a time from 1s to 1h, such as 4s; 4 has no unit: write 4s or 4ms\n" +
			"tasker.yaml:1:31: worker.max_tasks must be a whole number from 1 to 10000, not 0\n" +
			`tasker.yaml:2:1: unknown key "x" in tasker.yaml; the groups are database, redis, worker, dead_letters, retention, analytics, orchestrator, writer, river, server, telemetry, http, templates, log`,
	} {
		l, err := Load(from(yaml, nil, nil))
		if err == nil || err.Error() != want || l != nil {
			t.Errorf("%s\n got: %v\nwant: %s", yaml, err, want)
			continue
		}
		if !inFile(err) {
			t.Errorf("%s: the file is at fault: %v", yaml, err)
		}
	}
}

func TestTheFileTheEnvironmentAndFlagsAreJudgedTogether(t *testing.T) {
	env, flags := map[string]string{"TASKER_WORKER_LEASE": "7"}, map[string]string{"worker.max_tasks": "many"}
	const wrong = `--max-tasks: worker.max_tasks must be a whole number from 1 to 10000, not "many"` +
		"\nTASKER_WORKER_LEASE: worker.lease must be a time from 1s to 1h, such as 4s; 7 has no unit: write 7s or 7ms"
	_, err := Load(from("", env, flags))
	if err == nil || err.Error() != wrong || inFile(err) {
		t.Errorf("got: %v", err)
	}
	_, err = Load(from("x:", env, flags))
	if err == nil || !strings.HasSuffix(err.Error(), wrong) || !inFile(err) {
		t.Errorf("with a bad file: %v", err)
	}
	_, err = Load(Sources{File: "nope.yaml", Getenv: func(string) string { return "" }})
	if err == nil || !strings.HasPrefix(err.Error(), "--config: the settings can't be read: open nope.yaml: ") || inFile(err) {
		t.Errorf("a file that was asked for and isn't there: %v", err)
	}
	_, err = Load(from("", map[string]string{FileVariable: "nope.yaml"}, nil))
	if err == nil || !strings.HasPrefix(err.Error(), "TASKER_CONFIG: the settings can't be read: open nope.yaml: ") {
		t.Errorf("a file that the environment asks for and isn't there: %v", err)
	}
}

func TestPasswordsAreHidden(t *testing.T) {
	for text, want := range map[string]string{
		"":                             "",
		"postgres://u:secret@h:5432/d": "postgres://u:[FILTERED]@h:5432/d",
		"postgres://u@h/d":             "postgres://u@h/d",
		"redis://:secret@h:6379/0":     "redis://:[FILTERED]@h:6379/0",
		"postgres://h/d?password=secret&sslmode=disable": "postgres://h/d?password=[FILTERED]&sslmode=disable",
		"postgres://h/d?sslpassword=secret":              "postgres://h/d?sslpassword=[FILTERED]",
		"host=h password=secret dbname=d":                "host=h password=[FILTERED] dbname=d",
		"host=h password = 'sec ret\\' x' dbname=d":      "host=h password = '[FILTERED]' dbname=d",
		"postgres://u:secret%@h/d":                       "[FILTERED]",
		"redis://:ab/CD3@127.0.0.1:6379/0":               "[FILTERED]",
		"unix:///s?password=secret":                      "unix:///s?password=[FILTERED]",
		"http://u:secret@h:4318/v1?api_key=secret":       "http://u:[FILTERED]@h:4318/v1?api_key=[FILTERED]",
	} {
		for _, key := range []string{"database.url", "redis.url", "telemetry.otlp_endpoint"} {
			l := Defaults()
			*Find(key).field(&l.Config).(*string) = text
			if got := l.Shown(Find(key)); got != want {
				t.Errorf("%s %s: got %s, want %s", key, text, got, want)
			}
		}
	}
}

func TestTheSampleMeansTheDefaults(t *testing.T) {
	sample := Sample()
	set := regexp.MustCompile(`(?m)^  #(\w+: )`).ReplaceAllString(sample, "  $1")
	for name, text := range map[string]string{"as it is": sample, "with each setting set": set} {
		l, err := Load(from(text, nil, nil))
		if err != nil {
			t.Fatalf("%s: %v", name, err)
		}
		for i := range Settings {
			s := &Settings[i]
			if got := s.text(&l.Config); got != s.Default {
				t.Errorf("%s: %s is %q and not %q", name, s.Key, got, s.Default)
			}
			if inFile := l.Origin(s.Key).Source == "file"; inFile != (text == set) {
				t.Errorf("%s: %s comes from %s", name, s.Key, l.Origin(s.Key))
			}
		}
	}
}

func TestARunningWorkerAdoptsWhatMayChange(t *testing.T) {
	load := func(yaml string) *Loaded {
		l, err := Load(from(yaml, nil, nil))
		if err != nil {
			t.Fatal(err)
		}
		return l
	}
	running := load("worker: {lease: 5s, park_after: 5s}\nredis: {url: 'redis://:one@h'}\n")
	next := load("worker: {lease: 6s, park_after: 6s}\nredis: {url: 'redis://:two@h'}\nlog: {level: debug}\n")
	now, changed, pending := running.Adopt(next)
	if got := fmt.Sprint(changed); got != "[{worker.park_after 5s 6s} {log.level info debug}]" {
		t.Errorf("changed: %s", got)
	}
	if got := fmt.Sprint(pending); got != "[{redis.url redis://:[FILTERED]@h redis://:[FILTERED]@h} {worker.lease 5s 6s}]" {
		t.Errorf("pending: %s", got)
	}
	if now.Worker.Lease != 5*time.Second || now.Worker.ParkAfter != 6*time.Second || now.Log.Level != "debug" || now.Redis.URL != "redis://:one@h" {
		t.Errorf("runs with: %+v", now.Config)
	}
	if _, changed, pending = now.Adopt(next); len(changed) != 0 || len(pending) != 2 {
		t.Errorf("the second time, what waits for a restart is told again and nothing else: %v, %v", changed, pending)
	}
}

func FuzzParse(f *testing.F) {
	for _, seed := range []string{Sample(), "worker: {lease: 4s}\n", "a: &a {b: *a}", "worker: {<<: {lease: 1}}", "{[a]: b}", "!!binary x", "? {a: b}\n: c", "\xff", "http: {allow: [[x]]}"} {
		f.Add(seed)
	}
	f.Fuzz(func(t *testing.T, text string) {
		values, err := parse("f.yaml", []byte(text))
		if err != nil {
			var problems Errors
			if !errors.As(err, &problems) || len(problems) == 0 {
				t.Fatalf("an error of another kind: %v", err)
			}
			for _, p := range problems {
				if !strings.HasPrefix(p.Place, "f.yaml:") || !p.InFile || p.Message == "" {
					t.Fatalf("a problem without a place or a message: %+v", p)
				}
			}
			return
		}
		for key, v := range values {
			s, c := Find(key), Config{}
			s.set(&c, v.value) // panics when the value is of another kind
			if _, fault := s.parse(s.text(&c)); fault != "" && s.Kind != List {
				t.Fatalf("%s is accepted as %q, which %s", key, s.text(&c), fault)
			}
		}
	})
}

func TestTheReferenceIsCurrent(t *testing.T) {
	var doc strings.Builder
	doc.WriteString(`<!-- Generated from config/settings.go by its test; make docs writes it anew. -->
# Configuration

One file, ` + "`tasker.yaml`" + ` in the working folder; ` + "`--config FILE`" + ` or ` + "`TASKER_CONFIG`" + ` name another one, which then
must exist. The environment goes over the file, flags over the environment; an empty variable counts
as not set. All settings have defaults: a file is needed for none of them.

` + "```" + `yaml
database:
  url: postgres://tasker@db.internal/shop
worker:
  max_tasks: 200
  park_after: 500ms
http:
  allow: [api.example.com]
` + "```" + `

` + "`tasker config init`" + ` prints a file with all of them, ` + "`tasker config validate [FILE]`" + ` checks one, and
` + "`tasker config show`" + ` tells each value and where it came from, passwords hidden. Times have a unit, as ` + "`4s`, `500ms`\nor `1m30s`" + `; a list is ` + "`[a, b]`" + ` in the file and ` + "`a,b`" + ` in the environment. An unknown key, a value of
another kind or out of its range is refused, with its place and what to write instead, all mistakes
at once: exit code 4 for the file, 2 for the environment and flags.

**SIGHUP** makes ` + "`tasker worker`" + ` read the file again; the environment and flags it was started with
still go over it. Settings marked ↻ change at once, the log says from what to what, and the folder of
templates is registered again, so that new versions are taken up. The log names those that differ and
take a restart. A file with a mistake changes nothing: the log says what is wrong. ` + "`tasker dev`" + ` reads the
same settings but doesn't listen to SIGHUP, which a closed terminal sends as well.

Limits that keep data sound are no settings: 1 MiB for a context, 4 MiB for a result, sizes of
templates, jobs in one Redis command.
`)
	for _, g := range Groups {
		fmt.Fprintf(&doc, "\n## %s\n\n%s.\n\n| setting | default | allowed | environment, flag | what it is, and why the default is what it is |\n|---|---|---|---|---|\n", g.Name, g.About)
		for i := range Settings {
			s := &Settings[i]
			if s.Group() != g.Name {
				continue
			}
			live, allowed, from := "", string(s.Kind), "`"+strings.Join(s.Variables(), "`, else `")+"`"
			if s.Live {
				live = " ↻"
			}
			switch s.Kind {
			case Whole, Duration:
				allowed = s.Least + " … " + s.Most
			case Choice:
				allowed = strings.Join(s.Choices, ", ")
			default:
			}
			if s.Flag != "" {
				from += ", `--" + s.Flag + "`"
			}
			value := s.Default
			if value == "" {
				value = "–"
			}
			fmt.Fprintf(&doc, "| `%s`%s | %s | %s | %s | %s. *%s* |\n", s.Key, live, value, allowed, from, s.About, s.Why)
		}
	}
	file := filepath.Join("..", "docs", "configuration.md")
	if *update {
		if err := os.WriteFile(file, []byte(doc.String()), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	written, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	if string(written) != doc.String() {
		t.Error("docs/configuration.md is not current; run: make docs")
	}
}
