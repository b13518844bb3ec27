package template

import "testing"

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
