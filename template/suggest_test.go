package template

import (
	"testing"

	"pgregory.net/rapid"
)

func TestASuggestionIsTheClosestName(t *testing.T) {
	names := []string{"load", "charge", "ship", "mail"}
	for word, want := range map[string]string{
		"laod":   "load", // two swapped: one edit
		"Charge": "charge",
		"shp":    "ship",
		"mial":   "mail",
		"refund": "",
		"x":      "",
		"":       "",
	} {
		if got := closest(word, names); got != want {
			t.Errorf("%q: %q, want %q", word, got, want)
		}
	}
}

func TestDistanceCountsEdits(t *testing.T) {
	for _, c := range []struct {
		a, b string
		want int
	}{
		{"", "", 0}, {"abc", "abc", 0}, {"abc", "abd", 1}, {"abc", "acb", 1}, {"abc", "ab", 1}, {"ab", "abc", 1},
		{"größe", "grösse", 2}, {"abc", "xyz", 3}, {"kitten", "sitting", 3}, {"abcdefgh", "x", 5},
	} {
		if got := distance(c.a, c.b, 5); got != c.want {
			t.Errorf("%s, %s: %d, want %d", c.a, c.b, got, c.want)
		}
	}
}

// The plain recursion over the same edits, without limit or band.
func plainDistance(s, t []rune) int {
	switch {
	case len(s) == 0:
		return len(t)
	case len(t) == 0:
		return len(s)
	}
	change := 1
	if s[0] == t[0] {
		change = 0
	}
	least := min(plainDistance(s[1:], t)+1, plainDistance(s, t[1:])+1, plainDistance(s[1:], t[1:])+change)
	if len(s) > 1 && len(t) > 1 && s[0] == t[1] && s[1] == t[0] {
		least = min(least, plainDistance(s[2:], t[2:])+1)
	}
	return least
}

func TestDistanceIsTheFewestEdits(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		word := rapid.StringMatching(`[abc]{0,6}`)
		a, b := word.Draw(t, "a"), word.Draw(t, "b")
		limit := rapid.IntRange(1, 8).Draw(t, "limit")
		if got, want := distance(a, b, limit), min(plainDistance([]rune(a), []rune(b)), limit); got != want {
			t.Fatalf("%q, %q: %d, want %d", a, b, got, want)
		}
	})
}
