package template

import (
	"bytes"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"math"
	"math/big"
	"slices"
	"strconv"
	"strings"

	"github.com/taskerhq/tasker"
)

// Checksum identifies what a template says: the SHA-256, in hex, of its JSON
// with sorted keys, normalised numbers and no white space. Two files that
// differ in comments, layout or the order of keys have the same; so has the
// template that comes back from a jsonb column.
//
// It panics when t holds a json.RawMessage that isn't JSON, or a number that
// JSON lacks. What Parse returns, and what was stored once, never does.
func Checksum(t *tasker.Template) string {
	plain := *t
	plain.Schema = orNone(t.Schema)
	plain.Steps = slices.Clone(t.Steps)
	for i := range plain.Steps {
		plain.Steps[i].HandlerConfig = orNone(plain.Steps[i].HandlerConfig)
		plain.Steps[i].ResultSchema = orNone(plain.Steps[i].ResultSchema)
	}
	written, err := json.Marshal(&plain)
	if err != nil {
		panic(fmt.Sprintf("template: checksum of %s: %v", t.FullName(), err))
	}
	decoder := json.NewDecoder(bytes.NewReader(written))
	decoder.UseNumber()
	var tree any
	if err := decoder.Decode(&tree); err != nil {
		panic(fmt.Sprintf("template: checksum of %s: %v", t.FullName(), err))
	}
	sum := sha256.Sum256(canonical(normalise(tree)))
	return hex.EncodeToString(sum[:])
}

// orNone takes JSON's null, as a nullable column gives it, for nothing.
func orNone(raw json.RawMessage) json.RawMessage {
	if string(bytes.TrimSpace(raw)) == "null" {
		return nil
	}
	return raw
}

// normalise brings the numbers of a JSON tree into the one form that they have
// here.
func normalise(tree any) any {
	switch v := tree.(type) {
	case map[string]any:
		for key, held := range v {
			v[key] = normalise(held)
		}
	case []any:
		for i, held := range v {
			v[i] = normalise(held)
		}
	case json.Number:
		if normal, fault := normalNumber(v.String()); fault == "" {
			return json.Number(normal)
		}
	}
	return tree
}

// canonical writes a JSON tree: encoding/json sorts the keys of maps.
func canonical(tree any) []byte {
	var out bytes.Buffer
	encoder := json.NewEncoder(&out)
	encoder.SetEscapeHTML(false)
	if err := encoder.Encode(tree); err != nil {
		panic(fmt.Sprintf("template: write JSON: %v", err)) // the tree holds nothing that could fail
	}
	return bytes.TrimSuffix(out.Bytes(), []byte("\n"))
}

// json is the value as canonical JSON.
func (v *value) json() json.RawMessage { return canonical(v.tree()) }

func (v *value) tree() any {
	switch v.kind {
	case boolean:
		return v.text == "true"
	case number:
		return json.Number(v.decimal())
	case text:
		return v.text
	case list:
		items := make([]any, len(v.items))
		for i, item := range v.items {
			items[i] = item.tree()
		}
		return items
	case mapping:
		pairs := make(map[string]any, len(v.pairs))
		for _, p := range v.pairs {
			pairs[p.key] = p.value.tree()
		}
		return pairs
	default:
		return nil
	}
}

// maxDigits bounds integers that only JSON will hold; Postgres' numeric takes
// more, and nobody means it.
const maxDigits = 100

// normalNumber writes a number of YAML or JSON in the one form that JSON gets:
// integers in full, also 0x1F, 0o17, 0b11 and 1_000; others, and 2.0 and 1e3
// with them, as the nearest float64, in the fewest digits that read back.
// Never with an exponent: jsonb gives numbers back without one.
func normalNumber(written string) (normal, fault string) {
	plain := strings.ReplaceAll(written, "_", "")
	digits := strings.TrimLeft(plain, "+-")
	if len(digits) > 1 && digits[0] == '0' && strings.Trim(digits, "0123456789") == "" {
		return "", fmt.Sprintf("%s is octal to some and decimal to others; leave out the zero, or quote it to have text", written)
	}
	if n, ok := new(big.Int), len(plain) <= 1000; ok {
		if _, ok = n.SetString(plain, 0); ok {
			if normal = n.String(); len(normal) > maxDigits {
				return "", fmt.Sprintf("a number of more than %d digits; quote it to have text", maxDigits)
			}
			return normal, ""
		}
	}
	// YAML writes .inf and .nan, which ParseFloat doesn't know with their dot.
	f, err := strconv.ParseFloat(strings.Replace(strings.ToLower(plain), ".inf", "inf", 1), 64)
	switch {
	case math.IsInf(f, 0) || strings.EqualFold(plain, ".nan") || math.IsNaN(f):
		return "", fmt.Sprintf("%s is no number that JSON can hold", written)
	case err != nil:
		return "", fmt.Sprintf("%q is not a number", written)
	case f == 0: // also -0, which Postgres doesn't know
		return "0", ""
	}
	return strconv.FormatFloat(f, 'f', -1, 64), ""
}

// decimal is the normal form of a number.
func (v *value) decimal() string {
	normal, _ := normalNumber(v.text) // was checked when it was read
	return normal
}

func itoa(n int) string { return strconv.Itoa(n) }
