package safetext_test

import (
	"strings"
	"testing"
	"unicode/utf8"

	"github.com/taskerhq/tasker/safetext"
)

func TestCleanTextIsValidHasNoNULAndIsCutBetweenCharacters(t *testing.T) {
	for _, c := range []struct {
		name, text string
		limit      int
		want       string
	}{
		{"empty", "", 5, ""},
		{"short", "grün", 5, "grün"},
		{"as long as allowed", "grüne", 5, "grüne"},
		{"too long", "grünes", 5, "grün…"},
		{"too long, of wide characters", strings.Repeat("😀", 6), 5, "😀😀😀😀…"},
		{"one character", "ab", 1, "…"},
		{"NUL", "a\x00b", 5, "ab"},
		{"NUL alone", "\x00", 5, ""},
		{"invalid byte", "caf\xe9!", 10, "caf\uFFFD!"},
		{"cut inside a letter", "caf\xc3", 10, "caf\uFFFD"},
		{"C1 byte", "a\x9bb", 10, "a\uFFFDb"},
		{"surrogate", "a\xed\xa0\x80b", 10, "a\uFFFDb"},
	} {
		if got := safetext.Clean(c.text, c.limit); got != c.want {
			t.Errorf("%s: got %q, want %q", c.name, got, c.want)
		}
	}
}

func TestCleaningNeverFailsAndNeverExceedsItsLimit(t *testing.T) {
	for _, text := range []string{strings.Repeat("\xff\x00é", 1<<20), strings.Repeat("\x00", 1<<20), strings.Repeat("😀", 1<<20)} {
		if got := safetext.Clean(text, 100); !utf8.ValidString(got) || strings.Contains(got, "\x00") || utf8.RuneCountInString(got) > 100 {
			t.Errorf("got %d characters: %q", utf8.RuneCountInString(got), got)
		}
	}
}
