package main

import (
	"encoding/json"
	"fmt"
	"io"
	"strings"
	"unicode/utf8"
)

// printJSON writes one JSON document, indented.
func (a *app) printJSON(v any) error {
	encoder := json.NewEncoder(a.stdout)
	encoder.SetIndent("", "  ")
	encoder.SetEscapeHTML(false)
	return encoder.Encode(v)
}

// table lays rows out in columns for people. The first row is the head.
type table struct{ rows [][]string }

func (t *table) add(cells ...string) { t.rows = append(t.rows, cells) }

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
				text = "\x1b[1m" + cell + "\x1b[0m"
			case n == 0:
				text = strings.ToUpper(cell)
			case colour && stateColours[cell] != "":
				text = stateColours[cell] + cell + "\x1b[0m"
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
	"complete":          "\x1b[32m",
	"resolved_manually": "\x1b[32m",
	"in_progress":       "\x1b[36m",
	"enqueued":          "\x1b[36m",
	"waiting_for_retry": "\x1b[33m",
	"error":             "\x1b[31m",
	"cancelled":         "\x1b[35m",
	"skipped":           "\x1b[35m",
}
