package tasker

import (
	"bytes"
	"fmt"
	"slices"
	"strconv"
)

// Bounds on the numbers and the depth of a JSON document. Postgres writes numbers out
// in full: 1e131071 is 131,072 digits for each reader.
const (
	maxNumberDigits  = 400
	maxDocumentDepth = 1000
)

// DocumentProblem says why a JSON document is refused: "has 2000000 bytes as text, at
// most 1048576 are kept", or that a number has too many digits, or that it is nested
// too deeply. It returns "" for one that is kept. What is measured is the text that
// Postgres gives a reader, as in tasker.document_problem, which guards the other
// doors; contract/documents.json has examples. The document must be valid JSON.
func DocumentProblem(doc []byte, most int) string {
	size, depth := 0, 0
	for i := 0; i < len(doc); {
		switch c := doc[i]; {
		case c == '"':
			end := stringEnd(doc, i)
			size, i = size+end-i, end
		case c == '[' || c == '{':
			if depth++; depth > maxDocumentDepth {
				return fmt.Sprintf("is nested more than %d levels deep", maxDocumentDepth)
			}
			size, i = size+1, i+1
		case c == ']' || c == '}':
			depth--
			size, i = size+1, i+1
		case c == ',' || c == ':':
			size, i = size+2, i+1 // Postgres writes a space behind it
		case c == '-' || c >= '0' && c <= '9':
			end := i + 1
			for end < len(doc) && bytes.IndexByte([]byte("0123456789.eE+-"), doc[end]) >= 0 {
				end++
			}
			length, fits := written(doc[i:end])
			if !fits {
				return fmt.Sprintf("has a number of more than %d digits", maxNumberDigits)
			}
			size, i = size+length, end
		case c == ' ' || c == '\t' || c == '\n' || c == '\r':
			i++
		default:
			size, i = size+1, i+1 // true, false, null
		}
	}
	if size > most {
		return fmt.Sprintf("has %d bytes as text, at most %d are kept", size, most)
	}
	return ""
}

// stringEnd is the place behind the string that begins at start.
func stringEnd(doc []byte, start int) int {
	for i := start + 1; i < len(doc); i++ {
		switch doc[i] {
		case '\\':
			i++
		case '"':
			return i + 1
		}
	}
	return len(doc)
}

// maxScale is how many digits Postgres keeps behind the point.
const maxScale = 16_383

// written is the length of a number without an exponent, and whether it is zero, or
// its size is from 1e-400 to below 1e400.
func written(number []byte) (length int, fits bool) {
	mantissa := bytes.TrimPrefix(number, []byte("-"))
	length, exponent := len(number)-len(mantissa), 0
	if e := bytes.IndexAny(mantissa, "eE"); e >= 0 {
		var err error
		if exponent, err = strconv.Atoi(string(mantissa[e+1:])); err != nil || exponent > 1<<20 || exponent < -(1<<20) {
			return 0, false
		}
		mantissa = mantissa[:e]
	}
	whole, fraction, _ := bytes.Cut(mantissa, []byte("."))
	if scale := len(fraction) - exponent; scale > maxScale {
		return 0, false
	} else if scale > 0 {
		length += 1 + scale
	}
	digits := bytes.TrimLeft(slices.Concat(whole, fraction), "0")
	if len(digits) == 0 {
		return length + 1, true
	}
	// The place of the first digit: 1 for 1 to 9, 0 for 0.1 to 0.9.
	first := len(digits) - len(fraction) + exponent
	return length + max(1, first), first <= maxNumberDigits && first > -maxNumberDigits
}
