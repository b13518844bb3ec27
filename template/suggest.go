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

// closest is the candidate with the fewest edits, the first among equals, or ""
// when more than a third of the word would have to change.
func closest(word string, candidates []string) string {
	if len(word) > maxNameBytes {
		return ""
	}
	best, fewest := "", max(1, len(word)/3)+1
	for _, c := range candidates[:min(len(candidates), maxCandidates)] {
		if d := distance(strings.ToLower(word), strings.ToLower(c), fewest); d < fewest {
			best, fewest = c, d
		}
	}
	return best
}

// distance counts the edits that turn a into b: a character inserted, deleted
// or replaced, or two neighbours swapped (optimal string alignment). It gives
// up at limit, and then returns that.
func distance(a, b string, limit int) int {
	s, t := []rune(a), []rune(b)
	if len(s)-len(t) >= limit || len(t)-len(s) >= limit {
		return limit
	}
	before, last, row := make([]int, len(t)+1), make([]int, len(t)+1), make([]int, len(t)+1)
	for j := range last {
		last[j] = j
	}
	for i := 1; i <= len(s); i++ {
		row[0] = i
		least := row[0]
		for j := 1; j <= len(t); j++ {
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
