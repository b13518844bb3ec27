package main

import (
	"encoding/json"
	"fmt"
	"io"
	"log/slog"
	"os"
	"reflect"
	"strings"
	"sync"
	"time"
	"unicode/utf8"

	"github.com/lmittmann/tint"
	"golang.org/x/term"

	"github.com/taskerhq/tasker/safetext"
)

// Everything that the program prints passes through this file twice. fprintf, table and
// printJSON escape the values that they are given, so that text of called systems neither
// steers the terminal nor breaks lines. The screen behind them escapes what a command
// forgot: it lets through only line breaks, tabs, and the colours below.

// screen is standard output or standard error.
type screen struct {
	w        io.Writer
	terminal bool
	colour   bool

	mu     sync.Mutex // a library's logger writes from goroutines of its own
	err    error      // of the first write that failed: half an output is not the whole
	closed bool       // the command has ended: what comes later is dropped
}

func newScreen(w io.Writer) *screen {
	s := &screen{w: w}
	if f, ok := w.(*os.File); ok {
		s.terminal = term.IsTerminal(int(f.Fd()))
		s.colour = s.terminal && os.Getenv("NO_COLOR") == "" && os.Getenv("TERM") != "dumb"
	}
	return s
}

// Write writes text for people. The start and the end of a write may return to the start
// of the line on a terminal, for progress.
func (s *screen) Write(p []byte) (int, error) {
	text, start, end := string(p), "", ""
	if s.terminal {
		text, start = strings.TrimPrefix(text, "\r"), text[:len(text)-len(strings.TrimPrefix(text, "\r"))]
		text, end = strings.TrimSuffix(text, "\r"), text[len(strings.TrimSuffix(text, "\r")):]
	}
	var out strings.Builder
	out.WriteString(start)
	for text != "" {
		next := strings.IndexByte(text, '\x1b')
		if next < 0 || !s.colour {
			next = len(text)
		}
		out.WriteString(safetext.VisibleLines(text[:next]))
		text = text[next:]
		if sequence := colourAt(text); sequence != "" {
			out.WriteString(sequence)
			text = text[len(sequence):]
		} else if text != "" {
			out.WriteString(safetext.VisibleLines(text[:1]))
			text = text[1:]
		}
	}
	out.WriteString(end)
	return s.write(out.String(), len(p))
}

// close ends the output and returns the first error of a write.
func (s *screen) close() error {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.closed = true
	return s.err
}

func (s *screen) write(text string, n int) (int, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.closed {
		return n, nil
	}
	if _, err := io.WriteString(s.w, text); err != nil {
		if s.err == nil {
			s.err = err
		}
		return 0, err
	}
	return n, nil
}

// jsonScreen is a screen that JSON is written to.
type jsonScreen struct{ *screen }

// Write writes JSON, and nothing else.
func (s jsonScreen) Write(p []byte) (int, error) {
	return s.write(safetext.VisibleJSON(string(p)), len(p))
}

// forJSON is w for JSON.
func forJSON(w io.Writer) io.Writer {
	if s, ok := w.(*screen); ok {
		return jsonScreen{s}
	}
	return w
}

const (
	bold    = "\x1b[1m"
	red     = "\x1b[31m"
	green   = "\x1b[32m"
	yellow  = "\x1b[33m"
	magenta = "\x1b[35m"
	cyan    = "\x1b[36m"
	plain   = "\x1b[0m"
)

// colours are the sequences of this program, and those that tint writes logs with.
var colours = []string{bold, red, green, yellow, magenta, cyan, plain, "\x1b[2m", "\x1b[22m", "\x1b[91m", "\x1b[92m", "\x1b[93m"}

// colourAt is the colour that text begins with; empty: it begins with none.
func colourAt(text string) string {
	for _, c := range colours {
		if strings.HasPrefix(text, c) {
			return c
		}
	}
	return ""
}

// isTerminal reports whether w is a terminal.
func isTerminal(w io.Writer) bool {
	s, ok := w.(*screen)
	return ok && s.terminal
}

// hasColour reports whether w is a terminal that shows colour, and may.
func hasColour(w io.Writer) bool {
	s, ok := w.(*screen)
	return ok && s.colour
}

// styled is text that the program laid out or coloured. Its parts are visible already.
type styled string

// fprintf is fmt.Fprintf. Texts among the values are made visible, on one line each.
func fprintf(w io.Writer, format string, values ...any) (int, error) {
	return fmt.Fprintf(w, format, visible(values)...)
}

// fprintln is fmt.Fprintln, likewise.
func fprintln(w io.Writer, values ...any) (int, error) {
	return fmt.Fprintln(w, visible(values)...)
}

func visible(values []any) []any {
	shown := make([]any, len(values))
	for i, v := range values {
		switch v := v.(type) {
		case styled:
			shown[i] = string(v)
		case time.Duration:
			shown[i] = v
		case error:
			shown[i] = safetext.Visible(v.Error())
		case fmt.Stringer:
			shown[i] = safetext.Visible(v.String())
		default:
			shown[i] = v
			if s := reflect.ValueOf(v); s.Kind() == reflect.String {
				shown[i] = safetext.Visible(s.String())
			}
		}
	}
	return shown
}

// indented is text of several lines, made visible, with the lines after the first moved
// to the right.
func indented(text string) styled {
	return styled(strings.ReplaceAll(safetext.VisibleLines(text), "\n", "\n  "))
}

// printJSON writes one JSON document, indented.
func (a *app) printJSON(v any) error {
	encoder := json.NewEncoder(forJSON(a.stdout))
	encoder.SetIndent("", "  ")
	encoder.SetEscapeHTML(false)
	return encoder.Encode(v)
}

// logger writes to stderr: colour on a terminal, JSON when piped or asked for.
func (a *app) logger() *slog.Logger {
	format := a.settings.Log.Format
	if format == "json" || format == "auto" && !isTerminal(a.stderr) {
		return slog.New(slog.NewJSONHandler(forJSON(a.stderr), &slog.HandlerOptions{Level: &a.level, ReplaceAttr: maskedAttr}))
	}
	return slog.New(tint.NewTextHandler(a.stderr, &tint.Options{
		Level: &a.level, TimeFormat: "15:04:05.000", NoColor: !hasColour(a.stderr), ReplaceAttr: visibleAttr,
	}))
}

// maskedAttr masks secrets in what is logged.
func maskedAttr(_ []string, attr slog.Attr) slog.Attr {
	switch v := attr.Value.Any().(type) {
	case string:
		return slog.String(attr.Key, safetext.Mask(v))
	case error:
		return slog.String(attr.Key, safetext.Mask(v.Error()))
	case []string:
		masked := make([]string, len(v))
		for i := range v {
			masked[i] = safetext.Mask(v[i])
		}
		return slog.Any(attr.Key, masked)
	}
	return attr
}

// visibleAttr is maskedAttr for logs as text.
func visibleAttr(groups []string, attr slog.Attr) slog.Attr {
	attr = maskedAttr(groups, attr)
	switch v := attr.Value.Any().(type) {
	case string:
		return slog.String(attr.Key, visibleInLog(v))
	case []string:
		return slog.String(attr.Key, visibleInLog(fmt.Sprint(v)))
	}
	return attr
}

// visibleInLog is safetext.Visible. tint takes \x1b in a text for the sequence that it
// stands for, so it is written in another way.
func visibleInLog(text string) string {
	return strings.ReplaceAll(safetext.Visible(text), `\x1b`, `\u001b`)
}

// table lays rows out in columns for people. The first row is the head.
type table struct{ rows [][]string }

func (t *table) add(cells ...string) {
	row := make([]string, len(cells))
	for i, cell := range cells {
		row[i] = safetext.Visible(cell)
	}
	t.rows = append(t.rows, row)
}

func tableOf(head []string) (t table) {
	t.add(head...)
	return t
}

func (t *table) print(w io.Writer) {
	var widths []int
	for _, row := range t.rows {
		for i, cell := range row {
			if i == len(widths) {
				widths = append(widths, 0)
			}
			widths[i] = max(widths[i], utf8.RuneCountInString(cell))
		}
	}
	colour := hasColour(w)
	for n, row := range t.rows {
		var line strings.Builder
		for i, cell := range row {
			text := cell
			switch {
			case n == 0 && colour:
				text = bold + cell + plain
			case n == 0:
				text = strings.ToUpper(cell)
			case colour && stateColours[cell] != "":
				text = stateColours[cell] + cell + plain
			}
			line.WriteString(text)
			if i < len(row)-1 {
				line.WriteString(strings.Repeat(" ", widths[i]-utf8.RuneCountInString(cell)+2))
			}
		}
		fmt.Fprintln(w, strings.TrimRight(line.String(), " "))
	}
}

var stateColours = map[string]string{
	"complete":          green,
	"resolved_manually": green,
	"in_progress":       cyan,
	"enqueued":          cyan,
	"waiting_for_retry": yellow,
	"error":             red,
	"cancelled":         magenta,
	"skipped":           magenta,
}
