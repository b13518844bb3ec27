package main

import (
	"context"
	"fmt"
	"os"
	"strings"
	"time"
	"unicode/utf8"

	"golang.org/x/term"
)

// screen is what a person sees. On a terminal the last line moves; in a pipe
// there are only whole lines, without colour.
type screen struct {
	out    *os.File
	live   bool
	colour bool
	frame  int
}

func newScreen(out *os.File) *screen {
	live := term.IsTerminal(int(out.Fd())) && os.Getenv("TERM") != "dumb"
	return &screen{out: out, live: live, colour: live && os.Getenv("NO_COLOR") == ""}
}

const (
	bold   = "\x1b[1m"
	dim    = "\x1b[2m"
	red    = "\x1b[31m"
	green  = "\x1b[32m"
	yellow = "\x1b[33m"
	normal = "\x1b[0m"
)

func (s *screen) paint(colour, text string) string {
	if !s.colour || text == "" {
		return text
	}
	return colour + text + normal
}

func (s *screen) line(text string) { fmt.Fprintln(s.out, text) }

func (s *screen) title(name, text string) {
	s.line("")
	s.line(s.paint(bold, name) + "  " + text)
	s.line("")
}

func (s *screen) heading(text string) {
	s.line("")
	s.line(s.paint(bold, text))
	s.line("")
}

func (s *screen) mark(good bool) string {
	if good {
		return s.paint(green, "✓")
	}
	return s.paint(red, "✗")
}

func (s *screen) success(text string) { s.line(s.mark(true) + " " + s.paint(bold, text)) }
func (s *screen) failure(err error)   { s.line(s.mark(false) + " " + s.paint(bold, err.Error())) }

func (s *screen) item(good bool, text, aside string) {
	if aside != "" {
		aside = "  " + s.paint(dim, aside)
	}
	s.line("  " + s.mark(good) + " " + text + aside)
}

// redraw shows text in the last line, which the next redraw or clear replaces.
func (s *screen) redraw(text string) {
	if !s.live {
		return
	}
	width, _, err := term.GetSize(int(s.out.Fd()))
	if err != nil {
		width = 80
	}
	spinner := []rune("⠋⠙⠹⠸⠼⠴⠦⠧⠇⠏")
	s.frame++
	text = string(spinner[s.frame%len(spinner)]) + " " + text
	if runes := []rune(text); len(runes) > width-3 { // a line that wraps can't be redrawn
		text = string(runes[:max(0, width-3)])
	}
	fmt.Fprintf(s.out, "\r\x1b[K  %s", text)
}

func (s *screen) clear() {
	if s.live {
		fmt.Fprint(s.out, "\r\x1b[K")
	}
}

// stage does something that takes a while, and says how it went.
func (s *screen) stage(ctx context.Context, name string, do func(context.Context) error) error {
	began := time.Now()
	err := s.wait(name, func() error { return do(ctx) })
	s.item(err == nil, name, seconds(time.Since(began)))
	return err
}

// wait shows that something goes on while it does.
func (s *screen) wait(name string, do func() error) error {
	began := time.Now()
	done := make(chan error, 1)
	go func() { done <- do() }()
	ticker := time.NewTicker(100 * time.Millisecond)
	defer ticker.Stop()
	defer s.clear()
	for {
		s.redraw(name + "  " + seconds(time.Since(began)))
		select {
		case err := <-done:
			return err
		case <-ticker.C:
		}
	}
}

// seconds is a duration for people.
func seconds(d time.Duration) string { return fmt.Sprintf("%.1f s", d.Seconds()) }

// bar is a bar of the given width.
func bar(done, total, width int) string {
	full := 0
	if total > 0 {
		full = done * width / total
	}
	return strings.Repeat("█", full) + strings.Repeat("░", width-full)
}

// table lays rows out in columns; the first row is the head. tint may colour a
// cell of another row.
func (s *screen) table(rows [][]string, tint func(row []string, column int) string) {
	var widths []int
	for _, row := range rows {
		for i, cell := range row {
			if i == len(widths) {
				widths = append(widths, 0)
			}
			widths[i] = max(widths[i], utf8.RuneCountInString(cell))
		}
	}
	for n, row := range rows {
		var line strings.Builder
		for i, cell := range row {
			colour := dim
			if n > 0 {
				colour = tint(row, i)
			}
			padding := widths[i] - utf8.RuneCountInString(cell) + 2
			text := cell
			if colour != "" {
				text = s.paint(colour, cell)
			}
			line.WriteString(text + strings.Repeat(" ", padding))
		}
		s.line("  " + strings.TrimRight(line.String(), " "))
	}
}
