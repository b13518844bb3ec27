package template

import "strings"

// maxCandidates keeps a suggestion cheap: nobody finds a name among more.
const maxCandidates = 1000

// didYouMean ends a message with the candidate that is closest to a misspelt
// word, or with nothing when none is close.
func didYouMean(word string, candidates []string) string {
	if best := closest(word, candidates); best != "" {
		return `; did you mean "` + best + `"?`
	}
	return ""
}

// DidYouMean ends another package's message in the same way.
func DidYouMean(word string, candidates []string) string { return didYouMean(word, candidates) }

// maxEdits is how far a name may be from what was meant; a third of a short
// word is less.
const maxEdits = 3

// closest is the candidate with the fewest edits, the first among equals, or ""
// when none is close.
func closest(word string, candidates []string) string {
	if len(word) > maxNameBytes {
		return ""
	}
	best, fewest := "", min(max(1, len(word)/3), maxEdits)+1
	for _, c := range candidates[:min(len(candidates), maxCandidates)] {
		if d := distance(strings.ToLower(word), strings.ToLower(c), fewest); d < fewest {
			best, fewest = c, d
		}
	}
	return best
}

// distance counts the edits that turn a into b: a character inserted, deleted
// or replaced, or two neighbours swapped (optimal string alignment). It returns
// limit when there are as many or more, and looks no further than that from the
// diagonal, so that long names cost little.
func distance(a, b string, limit int) int {
	s, t := []rune(a), []rune(b)
	for len(s) > 0 && len(t) > 0 && s[0] == t[0] {
		s, t = s[1:], t[1:]
	}
	if len(s)-len(t) >= limit || len(t)-len(s) >= limit {
		return limit
	}
	before, last, row := make([]int, len(t)+1), make([]int, len(t)+1), make([]int, len(t)+1)
	for j := range last {
		last[j] = j
	}
	for i := 1; i <= len(s); i++ {
		from, to := max(1, i-limit), min(len(t), i+limit)
		row[from-1] = limit
		if from == 1 {
			row[0] = i
		}
		least := row[from-1]
		for j := from; j <= to; j++ {
			change := 1
			if s[i-1] == t[j-1] {
				change = 0
			}
			row[j] = min(last[j]+1, row[j-1]+1, last[j-1]+change)
			if i > 1 && j > 1 && s[i-1] == t[j-2] && s[i-2] == t[j-1] {
				row[j] = min(row[j], before[j-2]+1)
			}
			least = min(least, row[j])
		}
		if to < len(t) {
			row[to+1] = limit // the next row looks here
		}
		if least >= limit {
			return limit
		}
		before, last, row = last, row, before
	}
	return min(last[len(t)], limit)
}

// enumerate lists names in a message; a long list is cut.
func enumerate(names []string) string {
	const most = 20
	if more := len(names) - most; more > 0 {
		return strings.Join(names[:most], ", ") + " and " + itoa(more) + " more"
	}
	return strings.Join(names, ", ")
}
