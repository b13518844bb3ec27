package main

import (
	"bytes"
	"context"
	"encoding/json"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"github.com/taskerhq/tasker/testenv"
)

func TestMain(m *testing.M) {
	for _, variable := range []string{"TASKER_DATABASE_URL", "DATABASE_URL", "TASKER_REDIS_URL", "REDIS_URL", "TASKER_ENV", "RAILS_ENV", "TASKER_TEMPLATES"} {
		if err := os.Unsetenv(variable); err != nil { // tests say what they mean by flags
			panic(err)
		}
	}
	testenv.Main(m)
}

// command runs the program as a shell would and returns what it prints.
func command(t *testing.T, args ...string) (code int, stdout, stderr string) {
	t.Helper()
	var out, err bytes.Buffer
	code = run(t.Context(), args, strings.NewReader(""), &out, &err)
	return code, out.String(), err.String()
}

// expect runs the program and compares its exit code and a part of its output.
func expect(t *testing.T, code int, part string, args ...string) string {
	t.Helper()
	got, stdout, stderr := command(t, args...)
	if got != code || !strings.Contains(stdout+stderr, part) {
		t.Errorf("tasker %s\nexit %d, want %d\n%s%s\nwant: … %s …", strings.Join(args, " "), got, code, stdout, stderr, part)
	}
	return stdout
}

func folder(t *testing.T, files map[string]string) string {
	t.Helper()
	dir := t.TempDir()
	for name, text := range files {
		if err := os.WriteFile(filepath.Join(dir, name), []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	return dir
}

const one = `name: one
namespace_name: test
version: 1.0.0
description: a single step
step_templates: [{name: only, handler: tasker.echo, handler_config: {answer: 42}, bypassable: true}]
`

func TestWrongUsageExitsWith2AndSaysWhatIsMeant(t *testing.T) {
	t.Parallel()
	expect(t, exitUsage, "no database given: set --database-url, TASKER_DATABASE_URL, DATABASE_URL, or database.url in tasker.yaml", "migrate", "up")
	expect(t, exitUsage, "no database given", "worker")
	expect(t, exitUsage, "--output must be text or json", "task", "list", "-o", "xml")
	expect(t, exitUsage, "unknown flag: --nope; see tasker migrate up --help", "migrate", "up", "--nope")
	expect(t, exitUsage, "is no task id", "task", "show", "seven")
	expect(t, exitUsage, "accepts 1 arg(s), received 0", "template", "validate")
	expect(t, exitUsage, `tasker task has no command "lst"; did you mean list`, "task", "lst")
	expect(t, exitUsage, `tasker has no command "bogus"`, "bogus")
	expect(t, exitUsage, "--steps or --all, not both", "migrate", "down", "--steps", "1", "--all", "--yes")
	expect(t, exitUsage, "--steps is a number from 1, not -1", "migrate", "down", "--steps", "-1", "--yes")
	expect(t, exitUsage, "add --yes if that is meant", "migrate", "down", "--all")
	expect(t, exitUsage, "--lease: worker.lease must be a time from 1s to 1h, such as 4s, not 100ms", "worker", "--lease", "100ms", "--database-url", "postgres://127.0.0.1:1/x")
	expect(t, exitUsage, "--max-tasks: worker.max_tasks must be a whole number from 1 to 10000, not 0", "worker", "--max-tasks", "0", "--database-url", "postgres://127.0.0.1:1/x")
	expect(t, exitUsage, `--state "bogus" is no state of a task; they are pending, in_progress`, "task", "list", "--state", "bogus")
	expect(t, exitUsage, "--limit is a number from 1 to 1000, not -1", "task", "list", "--limit", "-1")
	expect(t, exitUsage, "--priority is a number from 1, which goes first, to 4, not 7", "task", "enqueue", "x", "--priority", "7")
	expect(t, exitUsage, "--refuse-duplicate needs a --key", "task", "enqueue", "x", "--refuse-duplicate")
	expect(t, exitUsage, "is no delay: it looks like", "task", "enqueue", "x", "--in", "-5m")
	pooled := filepath.Join(folder(t, map[string]string{"tasker.yaml": "database: {mode: poll_only}"}), "tasker.yaml")
	expect(t, exitUsage, "migrations need the Postgres server itself", "migrate", "up", "--config", pooled, "--database-url", "postgres://127.0.0.1:1/x")
	expect(t, exitUsage, `--log-level: log.level must be debug, info, warn or error, not "loud"`, "worker", "--log-level", "loud")
}

func TestADatabaseThatCannotBeReachedIsNamed(t *testing.T) {
	t.Parallel()
	const mend = "check --database-url (TASKER_DATABASE_URL, DATABASE_URL) and that the server runs"
	expect(t, exitFailed, mend, "migrate", "up", "--database-url", "postgres://127.0.0.1:1/shop")
	expect(t, exitFailed, `no connection to database "shop" at 127.0.0.1:1`, "worker", "--database-url", "postgres://127.0.0.1:1/shop")
	expect(t, exitUsage, "it looks like postgres://USER:PASSWORD@HOST:5432/DATABASE", "worker", "--database-url", "mysql://root:secret@x/y")
	url := testenv.EmptyDatabase(t)
	expect(t, exitFailed, "no_such_database", "migrate", "status", "--database-url", url[:strings.LastIndex(url, "/")]+"/no_such_database")
	_, _, stderr := command(t, "worker", "--database-url", "postgres://user:secret@127.0.0.1:1/shop")
	if strings.Contains(stderr, "secret") {
		t.Errorf("the password is in the message: %s", stderr)
	}
}

func TestADatabaseThatIsNotMigratedOrNewerIsRefused(t *testing.T) {
	t.Parallel()
	url := testenv.EmptyDatabase(t)
	for _, args := range [][]string{{"worker"}, {"task", "list"}, {"template", "list"}} {
		expect(t, exitRefused, "has no schema tasker; run: tasker migrate up", append(args, "--database-url", url)...)
	}
	expect(t, exitDone, "at version 0, missing up to 8", "migrate", "status", "--database-url", url)
	expect(t, exitDone, "CREATE SCHEMA", "migrate", "up", "--dry-run", "--database-url", url)
	expect(t, exitDone, "applied 0001 tables", "migrate", "up", "--database-url", url)
	expect(t, exitDone, "the schema is current", "migrate", "up", "--database-url", url)
	expect(t, exitDone, "nothing to do", "migrate", "up", "--dry-run", "--database-url", url)
	expect(t, exitDone, "took back", "migrate", "down", "--yes", "--database-url", url)
	expect(t, exitRefused, "lacks migrations", "worker", "--database-url", url)
	expect(t, exitDone, `"current": true`, "migrate", "up", "-o", "json", "--database-url", url)

	pool := testenv.Pool(t, url)
	if _, err := pool.Exec(t.Context(), `INSERT INTO tasker.schema_migrations (version, name) VALUES (9999, 'x')`); err != nil {
		t.Fatal(err)
	}
	for _, args := range [][]string{{"worker"}, {"task", "list"}, {"migrate", "up"}, {"migrate", "down", "--yes"}} {
		expect(t, exitRefused, "database is newer than this binary: it has migrations [9999]; install the release that made them", append(args, "--database-url", url)...)
	}
	expect(t, exitDone, "from a newer release", "migrate", "status", "--database-url", url)
}

func TestTemplatesAreValidatedRegisteredListedAndShown(t *testing.T) {
	t.Parallel()
	db := []string{"--database-url", testenv.Database(t)}
	dir := folder(t, map[string]string{"one.yaml": one})
	expect(t, exitDone, "valid  test/one@1.0.0  (1 steps", "template", "validate", dir)
	expect(t, exitDone, "registered  test/one@1.0.0", append(db, "template", "register", dir)...)
	expect(t, exitDone, "unchanged  test/one@1.0.0", append(db, "template", "register", dir)...)
	expect(t, exitDone, "test/one  1.0.0    1      no    a single step", append(db, "template", "list")...)
	expect(t, exitDone, "answer: 42", append(db, "template", "show", "test/one")...)
	expect(t, exitNotFound, "template test/two@3.0.0: not found", append(db, "template", "show", "test/two@3.0.0")...)
	expect(t, exitDone, "task 1", append(db, "task", "enqueue", "test/one")...)

	changed := folder(t, map[string]string{"one.yaml": strings.Replace(one, "42", "43", 1)})
	expect(t, exitRefused, "template test/one@1.0.0 has changed, but tasks have used this version", append(db, "template", "register", changed)...)
	expect(t, exitRefused, "give the changed template a new version", append(db, "template", "register", "--dry-run", changed)...)
}

func TestTemplatesUseTheVariablesThatTheyMay(t *testing.T) {
	t.Setenv("TASKER_TEST_HOST", "api.example")
	dir := folder(t, map[string]string{"one.yaml": strings.Replace(one, "answer: 42", "url: 'https://${TASKER_TEST_HOST}/x'", 1)})
	expect(t, exitRefused, "${TASKER_TEST_HOST} is not among the variables that templates may use", "template", "validate", dir)
	expect(t, exitDone, "valid  test/one@1.0.0", "template", "validate", dir, "--allow-env", "TASKER_TEST_HOST")
	expect(t, exitUsage, "--allow-env: the environment has no variable TASKER_TEST_NOPE", "template", "validate", dir, "--allow-env", "TASKER_TEST_NOPE")
	db := []string{"--database-url", testenv.Database(t)}
	expect(t, exitDone, "registered", append(db, "template", "register", dir, "--allow-env", "TASKER_TEST_HOST")...)
	expect(t, exitDone, "url: https://api.example/x", append(db, "template", "show", "test/one")...)
}

func TestBadTemplatesAreRefusedWithTheirPlaces(t *testing.T) {
	t.Parallel()
	url := testenv.Database(t)
	for name, c := range map[string]struct{ yaml, want string }{
		"malformed": {"name: [one\n", "bad.yaml:"},
		"unknown":   {strings.Replace(one, "description", "descriptio", 1), "bad.yaml:4:1: "},
		"cycle": {`name: c
step_templates:
  - {name: a, handler: tasker.echo, depends_on_step: b}
  - {name: b, handler: tasker.echo, depends_on_step: a}
`, "a → b → a"},
		"dangling": {"name: d\nstep_templates: [{name: a, handler: tasker.echo, depends_on_step: z}]\n", "bad.yaml:2:"},
	} {
		dir := folder(t, map[string]string{"bad.yaml": c.yaml})
		for _, args := range [][]string{{"template", "validate", dir}, {"template", "register", dir, "--database-url", url}, {"worker", "--templates", dir, "--database-url", url}} {
			t.Run(name+" "+args[0], func(t *testing.T) { expect(t, exitRefused, c.want, args...) })
		}
	}
	for what, dir := range map[string]string{"empty": t.TempDir(), "missing": filepath.Join(t.TempDir(), "nope")} {
		for _, args := range [][]string{{"template", "validate", dir}, {"worker", "--templates", dir, "--database-url", url}} {
			if code, _, stderr := command(t, args...); code == exitDone || !strings.Contains(stderr, dir) {
				t.Errorf("%s folder, %s: exit %d, %s", what, args[0], code, stderr)
			}
		}
	}
	if n := expect(t, exitDone, "", "template", "list", "-o", "json", "--database-url", url); strings.TrimSpace(n) != "[]" {
		t.Errorf("refused templates left something: %s", n)
	}
}

func TestTasksAreEnqueuedListedShownAndWatched(t *testing.T) {
	t.Parallel()
	url := testenv.Database(t)
	db := []string{"--database-url", url}
	dir := folder(t, map[string]string{"one.yaml": one, "bad.yaml": strings.NewReplacer("name: one", "name: bad", "tasker.echo", "tasker.fail", "{answer: 42}", "{permanent: true}").Replace(one)})
	expect(t, exitDone, "registered", append(db, "template", "register", dir)...)

	expect(t, exitRefused, "--context: the context of a task must be a JSON object, not array", append(db, "task", "enqueue", "test/one", "--context", "[1]")...)
	expect(t, exitRefused, "the context of a task must be a JSON object, not null", append(db, "task", "enqueue", "test/one", "--context", "null")...)
	expect(t, exitFailed, "no such file", append(db, "task", "enqueue", "test/one", "--context", "@nope.json")...)
	expect(t, exitRefused, "there is no template test/two; registered are: test/bad, test/one", append(db, "task", "enqueue", "test/two")...)
	expect(t, exitRefused, `unsupported Unicode escape sequence: \u0000 cannot be converted to text`, append(db, "task", "enqueue", "test/one", "--context", `{"a": "\u0000"}`)...)
	expect(t, exitNotFound, "task 99: not found", append(db, "task", "show", "99")...)

	expect(t, exitDone, `"task_id": `, append(db, "-o", "json", "task", "enqueue", "test/one", "--key", "k", "--context", `{"n": 1}`)...)
	expect(t, exitRefused, "has the idempotency key k already", append(db, "task", "enqueue", "test/one", "--key", "k", "--refuse-duplicate")...)
	expect(t, exitDone, "task ", append(db, "task", "enqueue", "test/bad")...)

	ctx, stop := context.WithCancel(context.Background())
	ended := make(chan int, 1)
	go func() {
		ended <- run(ctx, append(db, "worker", "--log-level", "error"), strings.NewReader(""), new(bytes.Buffer), new(bytes.Buffer))
	}()
	var tasks []struct {
		TaskID int64  `json:"task_id"`
		Name   string `json:"name"`
	}
	if err := json.Unmarshal([]byte(expect(t, exitDone, "", append(db, "-o", "json", "task", "list")...)), &tasks); err != nil || len(tasks) != 2 {
		t.Fatalf("two tasks were enqueued: %v, %v", tasks, err)
	}
	bad, good := text(tasks[0].TaskID), text(tasks[1].TaskID)
	expect(t, exitDone, ": complete after", append(db, "task", "watch", good, "--timeout", "1m")...)
	expect(t, exitFailed, "ended as error; see: tasker task show", append(db, "task", "watch", bad, "--timeout", "1m")...)
	expect(t, exitDone, "errors.errorString: failed as told", append(db, "task", "show", bad)...)
	expect(t, exitDone, `"execution_status": "blocked_by_failures"`, append(db, "-o", "json", "task", "show", bad)...)
	expect(t, exitDone, "test/one@1.0.0  complete  all_complete", append(db, "task", "list", "--state", "complete")...)
	stop()
	if code := <-ended; code != exitDone {
		t.Errorf("a worker that was asked to stop exits with %d", code)
	}
}

func text(id int64) string {
	b, _ := json.Marshal(id) // a number always marshals
	return string(b)
}

func TestOperatorsVerbs(t *testing.T) {
	t.Parallel()
	db := []string{"--database-url", testenv.Database(t)}
	expect(t, exitDone, "registered", append(db, "template", "register", folder(t, map[string]string{"one.yaml": one}))...)
	task := strings.TrimSpace(strings.TrimPrefix(expect(t, exitDone, "task ", append(db, "task", "enqueue", "test/one", "--bypass", "only")...), "task "))
	expect(t, exitRefused, "bypass_steps names nope", append(db, "task", "enqueue", "test/one", "--bypass", "nope")...)
	expect(t, exitDone, "has priority 1", append(db, "task", "priority", task, "1")...)
	expect(t, exitRefused, "a priority is a number from 1", append(db, "task", "priority", task, "7")...)
	expect(t, exitUsage, "is no priority", append(db, "task", "priority", task, "high")...)
	expect(t, exitDone, "is paused", append(db, "task", "pause", task, "--by", "ada", "--reason", "lunch")...)
	expect(t, exitDone, "goes on", append(db, "task", "resume", task)...)
	expect(t, exitRefused, "is not paused", append(db, "task", "resume", task)...)
	expect(t, exitRefused, "only a task in error can be retried", append(db, "task", "retry", task)...)
	expect(t, exitRefused, "the context of a task must be a JSON object", append(db, "task", "retry", task, "--context", "[1]")...)
	expect(t, exitDone, `"done": "cancel"`, append(db, "task", "cancel", task, "-o", "json")...)
	expect(t, exitRefused, "is cancelled: it cannot be cancelled any more", append(db, "task", "cancel", task)...)
	expect(t, exitNotFound, "there is no task 999", append(db, "task", "cancel", "999")...)
	expect(t, exitNotFound, "there is no step 999", append(db, "step", "skip", "999")...)
	expect(t, exitUsage, "is no step id", append(db, "step", "skip", "only")...)
	expect(t, exitRefused, "--result is not JSON", append(db, "step", "resolve", "1", "--result", "text")...)
}

type full struct{}

func (full) Write([]byte) (int, error) { return 0, syscall.ENOSPC }

func TestAnOutputThatCannotBeWrittenIsAFailure(t *testing.T) {
	t.Parallel()
	var stderr bytes.Buffer
	if code := run(t.Context(), []string{"--help"}, strings.NewReader(""), full{}, &stderr); code != exitFailed || !strings.Contains(stderr.String(), "write to standard output: no space left") {
		t.Errorf("exit %d, %s", code, stderr.String())
	}
}
