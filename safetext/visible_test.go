package safetext_test

import (
	"encoding/json"
	"testing"

	"github.com/taskerhq/tasker/safetext"
)

func TestControlCharactersAreShown(t *testing.T) {
	for text, want := range map[string][2]string{
		"grün \\x1b 日本 \uFFFD": {"grün \\x1b 日本 \uFFFD", "grün \\x1b 日本 \uFFFD"},
		"a\x1b[2J":             {`a\x1b[2J`, `a\x1b[2J`},
		"\u009b2J\u0080":       {`\x9b2J\x80`, `\x9b2J\x80`},
		"\x9b2J\xe2\x82":       {`\x9b2J\xe2\x82`, `\x9b2J\xe2\x82`},
		"a\nb\tc\rd\x7f\x00":   {`a\nb\tc\rd\x7f\x00`, "a\nb\tc" + `\rd\x7f\x00`},
		"\u202ecod\u2069":      {`\u202ecod\u2069`, `\u202ecod\u2069`},
		"\u061c\u200b\u00a0":   {"\u061c\u200b\u00a0", "\u061c\u200b\u00a0"},
	} {
		if got := [2]string{safetext.Visible(text), safetext.VisibleLines(text)}; got != want {
			t.Errorf("%q: got %q, want %q", text, got, want)
		}
	}
}

func TestVisibleJSONHasTheSameValue(t *testing.T) {
	const value = "a\u009b2J\x7f\u202e\x1b\n\u2066 é"
	doc, err := json.Marshal([]string{value})
	if err != nil {
		t.Fatal(err)
	}
	shown := safetext.VisibleJSON(string(doc) + "\n")
	var again []string
	if err := json.Unmarshal([]byte(shown), &again); err != nil || again[0] != value {
		t.Errorf("%q came of %s, %v", again, shown, err)
	}
	if want := `["a\u009b2J\u007f\u202e\u001b\n\u2066 é"]` + "\n"; shown != want {
		t.Errorf("got %q, want %q", shown, want)
	}
}
