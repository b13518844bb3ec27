package safetext

import (
	"fmt"
	"strings"
	"unicode/utf8"
)

// Visible shows text on one line of a terminal: control characters, which could move the
// cursor, recolour, or write the clipboard, and those that turn the direction of writing
// become escapes such as \x1b. So do line breaks, tabs, and bytes that are not UTF-8.
func Visible(text string) string { return visible(text, "", escaped) }

// VisibleLines is Visible for text that is laid out already: it leaves line breaks and
// tabs as they are.
func VisibleLines(text string) string { return visible(text, "\n\t", escaped) }

// VisibleJSON is VisibleLines for JSON, which stays JSON of the same value: the escapes
// are those of its strings.
func VisibleJSON(doc string) string {
	return visible(doc, "\n\t", func(r rune, _ byte) string { return fmt.Sprintf(`\u%04x`, r) })
}

func visible(text, keep string, escape func(r rune, first byte) string) string {
	clean := true
	for _, r := range text {
		if hidden(r) {
			clean = false
			break
		}
	}
	if clean {
		return text
	}
	var out strings.Builder
	for i := 0; i < len(text); {
		r, size := utf8.DecodeRuneInString(text[i:])
		switch {
		case r == utf8.RuneError && size == 1:
			out.WriteString(escape(r, text[i]))
		case hidden(r) && r != utf8.RuneError && !strings.ContainsRune(keep, r):
			out.WriteString(escape(r, text[i]))
		default:
			out.WriteString(text[i : i+size])
		}
		i += size
	}
	return out.String()
}

// hidden reports whether a terminal does not show a character but obeys it.
func hidden(r rune) bool {
	switch {
	case r < ' ', r >= 0x7f && r <= 0x9f: // C0, DEL, C1
		return true
	case r >= 0x202a && r <= 0x202e, r >= 0x2066 && r <= 0x2069: // overrides and isolates of direction
		return true
	}
	return r == utf8.RuneError // perhaps a byte that is not UTF-8
}

func escaped(r rune, first byte) string {
	switch {
	case r == '\n':
		return `\n`
	case r == '\t':
		return `\t`
	case r == '\r':
		return `\r`
	case r == utf8.RuneError:
		return fmt.Sprintf(`\x%02x`, first)
	case r < 0x100:
		return fmt.Sprintf(`\x%02x`, r)
	}
	return fmt.Sprintf(`\u%04x`, r)
}
