package main

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"unicode"
	"unicode/utf8"

	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/taskerhq/tasker/safetext"
	"github.com/taskerhq/tasker/testenv"
)

// hostile clears a screen, sets a title in two ways, turns the writing, and breaks lines.
const hostile = "\x1b[2J\x1b]0;owned\x07\u009b2J\u202e\u2066\x7f\r\n\tend"

// steers says which character of a text a terminal would obey.
func steers(text string) string {
	if !utf8.ValidString(text) {
		return "bytes that are not UTF-8"
	}
	for _, r := range text {
		if r != '\n' && r != '\t' && (unicode.IsControl(r) || r >= 0x202a && r <= 0x202e || r >= 0x2066 && r <= 0x2069) {
			return fmt.Sprintf("%q", r)
		}
	}
	return ""
}

// poison appends hostile text to every text that is stored. What a constraint refuses
// stays as it is.
func poison(t *testing.T, pool *pgxpool.Pool) {
	t.Helper()
	statement := fmt.Sprintf(`DO $poison$
DECLARE
    c record;
    hostile text := %s;
BEGIN
    SET LOCAL session_replication_role = replica;
    FOR c IN SELECT table_name AS t, column_name AS n, data_type AS type FROM information_schema.columns
        WHERE table_schema = 'tasker' AND is_generated = 'NEVER' AND data_type IN ('text', 'jsonb', 'ARRAY')
          AND table_name !~ 'river|schema_migrations' AND NOT (table_name, column_name) IN (('task_templates', 'definition'), ('template_steps', 'name'))
          AND (SELECT relkind IN ('r', 'p') FROM pg_class WHERE oid = to_regclass(format('tasker.%%I', table_name))) LOOP
        BEGIN
            EXECUTE CASE c.type
                WHEN 'text' THEN format('UPDATE tasker.%%I SET %%I = coalesce(%%I, '''') || $1', c.t, c.n, c.n)
                WHEN 'ARRAY' THEN format('UPDATE tasker.%%I SET %%I = array_append(%%I, $1)', c.t, c.n, c.n)
                WHEN 'jsonb' THEN format('UPDATE tasker.%%I SET %%I = coalesce(%%I, ''{}'') || jsonb_build_object(
                    ''class'', $1, ''message'', $1, ''code'', $1, ''handler'', $1, ''attempt'', 1, $1, $1)', c.t, c.n, c.n) END USING hostile;
        EXCEPTION WHEN OTHERS THEN
            NULL; -- a constraint, or a type that takes no such text
        END;
    END LOOP;
END $poison$`, "E'"+strings.ReplaceAll(strings.ReplaceAll(fmt.Sprintf("%+q", hostile)[1:], `"`, ""), `\a`, `\x07`)+"'")
	if _, err := pool.Exec(t.Context(), statement); err != nil {
		t.Fatalf("store hostile text: %v", err)
	}
}

func TestNoCommandLetsStoredTextSteerTheTerminal(t *testing.T) {
	t.Parallel()
	url := testenv.Database(t)
	db := []string{"--database-url", url}
	dir := folder(t, map[string]string{"one.yaml": one})
	expect(t, exitDone, "registered", append(db, "template", "register", dir)...)
	for range 3 {
		expect(t, exitDone, "task", append(db, "task", "enqueue", "test/one")...)
	}
	expect(t, exitDone, "posts", append(db, "webhook", "set", "shop", "https://shop.example/x?token=hunter2", "--secret-env", "S")...)
	expect(t, exitDone, "attempts", append(db, "gate", "limit", "template", "test/one", "--concurrency", "5")...)
	pool := testenv.Pool(t, url)
	if _, err := pool.Exec(t.Context(), strings.Join([]string{
		`SET session_replication_role = replica`,
		`UPDATE tasker.tasks SET state = 'error', finished_at = now() WHERE task_id = 1`,
		`UPDATE tasker.steps SET state = 'error', attempts = 1, error = '{}', finished_at = now() WHERE task_id = 1`,
		`INSERT INTO tasker.dead_letters (task_id, reason, since, detail) VALUES (1, 'failed', now(), 'why')`,
		`INSERT INTO tasker.webhook_failures (webhook, event_id, event, tries, failure) VALUES ('shop', 1, '{}', 1, 'no')`,
		`SELECT tasker.publish_event('n.e', '{}')`,
		`RESET session_replication_role`,
	}, ";")); err != nil {
		t.Fatalf("store what commands show: %v", err)
	}
	poison(t, pool)
	poisoned := 0
	for _, args := range [][]string{
		{"task", "list"}, {"task", "show", "1"}, {"task", "show", "2"}, {"task", "watch", "1"}, {"task", "watch", "2", "--timeout", "1ms"}, {"explain", "1"}, {"explain", "2"},
		{"dead-letter", "list"}, {"dead-letter", "list", "--all"}, {"dead-letter", "show", "1"}, {"gate", "list"}, {"gate", "list", "--all"},
		{"webhook", "list"}, {"webhook", "failures"}, {"events", "tail"}, {"events", "subscribers"}, {"events", "unsubscribe", hostile},
		{"template", "list"}, {"template", "show", "test/one"}, {"template", "show", "test/one" + hostile}, {"template", "graph", "test/one" + hostile},
		{"template", "graph", "test/one" + hostile, "--format", "text"}, {"template", "diff", "test/one" + hostile + "@1.0.0", filepath.Join(dir, "one.yaml")},
		{"analytics", "performance"}, {"analytics", "bottlenecks"}, {"analytics", "task", "1"}, {"health"}, {"doctor"}, {"task", "show", hostile}, {"task", "list", "--state", hostile},
		{"task", "enqueue", hostile}, {"task", "cancel", "1", "--by", hostile}, {"gate", "pause", "key", hostile, "--reason", hostile}, {"gate", "list"}, {hostile}, {"--" + hostile},
		{"prune", "--older-than", "1h", "--dry-run"}, {"config", "show", "--http-allow", hostile}, {"config", "validate", "no" + hostile}, {"template", "validate", "no" + hostile},
	} {
		for _, format := range []string{"text", "json"} {
			_, stdout, stderr := command(t, append(args, append(db, "-o", format)...)...)
			what := fmt.Sprintf("tasker %q -o %s", args, format)
			if at := steers(stdout + stderr); at != "" {
				t.Errorf("%s prints %s:\n%q", what, at, stdout+stderr)
			}
			if strings.Contains(stdout+stderr, "hunter2") {
				t.Errorf("%s prints the token of a URL:\n%s", what, stdout+stderr)
			}
			if strings.Contains(stdout, `x1b[2J`) || strings.Contains(stdout, `u001b[2J`) {
				poisoned++
			}
			if format == "json" && stdout != "" && !strings.HasPrefix(args[0], "events") && !json.Valid([]byte(stdout)) {
				t.Errorf("%s is not JSON:\n%s", what, stdout)
			}
			if format == "text" && strings.HasSuffix(args[len(args)-1], "list") && strings.Contains(stdout, "\tend") {
				t.Errorf("%s breaks lines of its table:\n%s", what, stdout)
			}
		}
	}
	if poisoned < 25 { // else the texts were not stored, and nothing was tested
		t.Errorf("only %d outputs hold hostile text", poisoned)
	}
}

func TestAScreenLetsOnlyItsOwnColoursThrough(t *testing.T) {
	const text = "a" + green + "ok" + plain + " \x1b[2J \x1b[8m \x1b \u009b \r b\n\tc"
	for _, c := range []struct {
		terminal bool
		want     string
	}{
		{true, "a" + green + "ok" + plain + ` \x1b[2J \x1b[8m \x1b \x9b \r b` + "\n\tc"},
		{false, `a\x1b[32mok\x1b[0m \x1b[2J \x1b[8m \x1b \x9b \r b` + "\n\tc"},
	} {
		var out bytes.Buffer
		s := &screen{w: &out, terminal: c.terminal, colour: c.terminal}
		if n, err := s.Write([]byte(text)); n != len(text) || err != nil || out.String() != c.want {
			t.Errorf("terminal %t: got %q, %d, %v", c.terminal, out.String(), n, err)
		}
	}
	var out bytes.Buffer
	s := &screen{w: &out, terminal: true, colour: true}
	fprintf(s, "\r%d of %d", 1, 2)
	var rows table
	rows.add("state", hostile)
	rows.add("complete", hostile)
	rows.print(s)
	if got := out.String(); !strings.HasPrefix(got, "\r1 of 2") || !strings.Contains(got, green+"complete"+plain) || strings.Count(got, "\n") != 2 || strings.Contains(got, "\x1b]") {
		t.Errorf("got %q", got)
	}
}

func TestLogsAsTextAreVisibleAndMasked(t *testing.T) {
	for _, colour := range []bool{true, false} {
		var out bytes.Buffer
		a := &app{stderr: &screen{w: &out, terminal: true, colour: colour}, settings: settings(t, map[string]string{"log.format": "text"})}
		a.logger().Error("x "+hostile, "error", errors.New(hostile+" redis://:hunter2@h"), "list", []string{hostile}, "k", hostile, slog.Group("g", "k", hostile))
		text := out.String()
		for _, c := range colours {
			text = strings.ReplaceAll(text, c, "")
		}
		if at := steers(text); at != "" || strings.Count(text, "\n") != 1 || strings.Contains(text, "hunter2") || !strings.Contains(text, safetext.Filtered) {
			t.Errorf("colour %t: %s in %q", colour, at, out.String())
		}
	}
}

func TestLogsAsJSONAreVisibleAndMasked(t *testing.T) {
	var out bytes.Buffer
	a := &app{stderr: &screen{w: &out}, settings: settings(t, map[string]string{"log.format": "json"})}
	a.logger().Error("x", "error", errors.New(hostile+" redis://:hunter2@h"))
	var line struct{ Error string }
	if err := json.Unmarshal(out.Bytes(), &line); err != nil || line.Error != hostile+" redis://:[FILTERED]@h" || steers(out.String()) != "" {
		t.Errorf("%v: %s", err, out.String())
	}
}

// The package has one way to print.
func TestCommandsPrintThroughTheScreen(t *testing.T) {
	files, err := filepath.Glob("*.go")
	if err != nil {
		t.Fatal(err)
	}
	for _, file := range files {
		text, err := os.ReadFile(file)
		if err != nil {
			t.Fatal(err)
		}
		if file == "output.go" || strings.HasSuffix(file, "_test.go") {
			continue
		}
		for _, way := range []string{"fmt.Fprint", "fmt.Print", "io.WriteString", "os.Stderr.", "os.Stdout.", "\\x1b"} {
			if strings.Contains(string(text), way) {
				t.Errorf("%s has %s: use fprintf, a table or printJSON", file, way)
			}
		}
	}
}

func TestARedisURLThatCannotBeReadDoesNotShowItsPassword(t *testing.T) {
	t.Setenv("TASKER_REDIS_URL", "redis://:ab/CD3@127.0.0.1:6379/0")
	db := testenv.Database(t)
	code, stdout, stderr := command(t, "health", "--database-url", db)
	if text := stdout + stderr; code == exitDone || strings.Contains(text, "CD3") || strings.Contains(text, `":ab"`) || !strings.Contains(text, "it looks like redis://HOST:6379/0") {
		t.Errorf("exit %d: %s", code, text)
	}
	t.Setenv("TASKER_REDIS_URL", "redis://:CD3@127.0.0.1:1/0")
	before := os.Stderr
	read, write, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	os.Stderr = write
	_, stdout, stderr = command(t, "health", "--database-url", db, "--log-format", "json")
	os.Stderr = before
	_ = write.Close() // what was written is read below
	var direct bytes.Buffer
	if _, err := direct.ReadFrom(read); err != nil || direct.Len() > 0 || strings.Contains(stdout+stderr, "CD3") {
		t.Errorf("%v, past the program: %s\n%s%s", err, direct.String(), stdout, stderr)
	}
	_, _, stderr = command(t, "health", "--database-url", "postgres://u:ab/CD3@127.0.0.1/d")
	if strings.Contains(stderr, "CD3") || strings.Contains(stderr, `":ab"`) || !strings.Contains(stderr, "postgres://USER:PASSWORD@HOST:5432/DATABASE") {
		t.Errorf("got %s", stderr)
	}
}
