// Package safetext makes text of other systems safe to store and to show. Clean makes
// any bytes storable, Mask hides secrets, and Visible shows control characters as
// escapes. Whatever takes an answer, an error or a name of another system uses them.
package safetext

import "strings"

// Clean returns text that Postgres can store: valid UTF-8 without NUL, of at most limit
// characters. Longer text is cut and ends in "…". CleanText of the gem does the same.
func Clean(text string, limit int) string {
	text = strings.ReplaceAll(strings.ToValidUTF8(text, "\uFFFD"), "\x00", "")
	runes := 0
	cut := 0 // where the last character that has room beside the ellipsis ends
	for i := range text {
		if runes == limit-1 {
			cut = i
		}
		if runes == limit {
			return text[:cut] + "…"
		}
		runes++
	}
	return text
}
