package template

import (
	"encoding/json"
	"fmt"
	"regexp"
	"regexp/syntax"
	"slices"
	"strconv"
	"strings"
	"unicode/utf8"
)

// The keywords of JSON Schema that tasker.schema_problem (SQL) checks, and
// those that say something to people only. Whatever else a schema holds would
// be silently ignored there, so it is refused here.
var (
	schemaKeywords = []string{
		"type", "enum", "const",
		"properties", "patternProperties", "additionalProperties", "required", "minProperties", "maxProperties",
		"items", "minItems", "maxItems", "uniqueItems",
		"minLength", "maxLength", "pattern",
		"minimum", "maximum", "exclusiveMinimum", "exclusiveMaximum", "multipleOf",
		"allOf", "anyOf", "oneOf", "not",
		"$ref", "$defs", "definitions",
	}
	schemaAnnotations = []string{"title", "description", "default", "examples", "format", "$schema", "$id", "$comment"}
	schemaTypes       = []string{"string", "number", "integer", "boolean", "object", "array", "null"}
)

// schema reads a JSON Schema, which is kept as JSON. What it lets pass,
// tasker.schema_problem understands to the last keyword.
func (f fields) schema(key string) json.RawMessage {
	v := f.object(key)
	if v == nil {
		return nil
	}
	c := schemaChecker{problems: f.problems, root: v, what: key, followed: map[*value]bool{}}
	before := len(f.problems.list)
	c.check(v)
	if len(f.problems.list) == before { // else a $ref may lead nowhere
		c.pending = []*value{v}
		for len(c.pending) > 0 {
			next := c.pending[0]
			c.pending = c.pending[1:]
			c.follow(next, nil)
		}
	}
	return v.json()
}

type schemaChecker struct {
	*problems
	root     *value
	what     string          // the key that holds the schema
	followed map[*value]bool // false: still on the way
	pending  []*value        // schemas of parts of a value, yet to be followed
}

func (c *schemaChecker) check(v *value) {
	if v.kind == boolean { // true fits all, false nothing
		return
	}
	if v.kind != mapping {
		c.add(v.place, "a schema must be a mapping, true or false, not %s", v.shown())
		return
	}
	for _, p := range v.pairs {
		c.keyword(v, p)
	}
}

func (c *schemaChecker) keyword(schema *value, p pair) {
	v := p.value
	if v.kind == nothing && !isNull(v.text) {
		return // a number that can't be kept; that was said when it was read
	}
	switch p.key {
	case "type":
		c.checkType(v)
	case "enum":
		if v.kind != list || len(v.items) == 0 {
			c.add(v.place, "enum must be a list of the values that are allowed, not %s", v.shown())
		}
	case "const", "default", "examples": // any value
	case "title", "description", "format", "$schema", "$id", "$comment":
		if v.kind != text {
			c.add(v.place, "%s must be text, not %s", p.key, v.shown())
		}
	case "properties", "patternProperties", "$defs", "definitions":
		c.schemasByName(schema, p)
	case "additionalProperties", "items", "not":
		if p.key == "items" && v.kind == list {
			c.add(v.place, "items must be one schema for all items; a schema for each position is not supported")
			return
		}
		c.check(v)
	case "allOf", "anyOf", "oneOf":
		if v.kind != list || len(v.items) == 0 {
			c.add(v.place, "%s must be a list of schemas, not %s", p.key, v.shown())
			return
		}
		for _, item := range v.items {
			c.check(item)
		}
	case "required":
		c.checkRequired(v)
	case "uniqueItems":
		if v.kind != boolean {
			c.add(v.place, "uniqueItems must be true or false, not %s", v.shown())
		}
	case "minProperties", "maxProperties", "minItems", "maxItems", "minLength", "maxLength":
		if n, err := strconv.Atoi(v.decimal()); v.kind != number || err != nil || n < 0 {
			c.add(v.place, "%s must be a whole number from 0 on, not %s", p.key, v.shown())
		}
	case "minimum", "maximum", "exclusiveMinimum", "exclusiveMaximum":
		if v.kind != number {
			c.add(v.place, "%s must be a number, not %s", p.key, v.shown())
		}
	case "multipleOf":
		if n := v.decimal(); v.kind != number || n == "0" || strings.HasPrefix(n, "-") {
			c.add(v.place, "multipleOf must be a number above 0, not %s", v.shown())
		}
	case "pattern":
		if v.kind != text {
			c.add(v.place, "pattern must be text, not %s", v.shown())
			return
		}
		c.checkPattern(v.place, v.text)
	case "$ref":
		if v.kind != text || c.target(v.text) == nil {
			c.add(v.place, "$ref must be # or name a schema under $defs or definitions at the top of %s, as #/$defs/money; %s leads nowhere", c.what, v.shown())
		}
	default:
		known := slices.Concat(schemaKeywords, schemaAnnotations)
		hint := didYouMean(p.key, known)
		if hint == "" {
			hint = "; supported are " + strings.Join(known, ", ")
		}
		c.add(p.at, "the JSON Schema keyword %q is not supported%s", shorten(p.key), hint)
	}
}

func isNull(written string) bool {
	return slices.Contains([]string{"", "~", "null", "Null", "NULL"}, written)
}

func (c *schemaChecker) checkType(v *value) {
	types := []*value{v}
	if v.kind == list && len(v.items) > 0 {
		types = v.items
	}
	for _, t := range types {
		switch {
		case t.kind == nothing:
			c.add(t.place, `type must be the word "null", and this is no word but a null; write it in quotes`)
		case t.kind != text || !slices.Contains(schemaTypes, t.text):
			c.add(t.place, "unknown type %s; there are %s%s", t.shown(), enumerate(schemaTypes), didYouMean(t.text, schemaTypes))
		}
	}
}

func (c *schemaChecker) checkRequired(v *value) {
	if v.kind != list {
		c.add(v.place, "required must be the list of the keys that must be there, not %s", v.shown())
		return
	}
	for _, name := range v.items {
		if name.kind != text {
			c.add(name.place, "required lists keys, and %s is no text", name.shown())
		}
	}
}

func (c *schemaChecker) schemasByName(schema *value, p pair) {
	v := p.value
	if v.kind != mapping {
		c.add(v.place, "%s must be a mapping of names to schemas, not %s", p.key, v.shown())
		return
	}
	if (p.key == "$defs" || p.key == "definitions") && schema != c.root {
		c.add(p.at, "%s must be at the top of %s, where $ref looks", p.key, c.what)
	}
	for _, held := range v.pairs {
		if p.key == "patternProperties" {
			c.checkPattern(held.at, held.key)
		}
		c.check(held.value)
	}
}

// target finds what a $ref names.
func (c *schemaChecker) target(ref string) *value {
	if ref == "#" {
		return c.root
	}
	for _, keyword := range []string{"$defs", "definitions"} {
		name, found := strings.CutPrefix(ref, "#/"+keyword+"/")
		if !found || !nameForm.MatchString(name) { // others would need JSON Pointer's escapes
			continue
		}
		if held := c.root.get(keyword); held != nil && held.kind == mapping {
			return held.get(name)
		}
	}
	return nil
}

// follow looks for schemas that hold themselves for the same value: checking
// would never end. Recursion through properties or items ends with the value.
func (c *schemaChecker) follow(v *value, within *value) {
	if v.kind != mapping {
		return
	}
	if done, met := c.followed[v]; met {
		if !done && within != nil {
			c.add(within.place, "this $ref leads back to itself, so the check would never end; let it pass through properties or items")
		}
		return
	}
	c.followed[v] = false
	for _, p := range v.pairs {
		switch p.key {
		case "$ref":
			c.follow(c.target(p.value.text), p.value)
		case "allOf", "anyOf", "oneOf":
			for _, item := range p.value.items {
				c.follow(item, within)
			}
		case "not":
			c.follow(p.value, within)
		}
	}
	c.followed[v] = true
	for _, p := range v.pairs {
		switch p.key {
		case "properties", "patternProperties", "$defs", "definitions":
			for _, held := range p.value.pairs {
				c.pending = append(c.pending, held.value)
			}
		case "items", "additionalProperties":
			c.pending = append(c.pending, p.value)
		}
	}
}

// maxRepeats is Postgres' bound for x{n}.
const maxRepeats = 255

var repeatForm = regexp.MustCompile(`^\{\d+(,\d*)?\}`)

// checkPattern refuses what Postgres wouldn't compile, and what it would take
// for something else than a reader of JSON Schema: \b is a backspace to it.
// What is left means the same in Go, Postgres and JavaScript.
func (c *schemaChecker) checkPattern(at place, pattern string) {
	refuse := func(format string, args ...any) {
		c.add(at, "the pattern %s: %s", strconv.Quote(shorten(pattern)), fmt.Sprintf(format, args...))
	}
	if strings.HasPrefix(pattern, "***") {
		refuse("*** has a meaning of its own to Postgres; escape the stars")
		return
	}
	for i := 0; i < len(pattern); i++ {
		rest := pattern[i+1:]
		switch pattern[i] {
		case '[':
			length, fault := brackets(pattern[i:])
			if fault != "" {
				refuse("%s", fault)
				return
			}
			i += length - 1
		case '{':
			if !repeatForm.MatchString(pattern[i:]) {
				refuse(`{ begins a repetition, as {2}, {2,} or {2,5}; write \{ for the character`)
				return
			}
		case '\\':
			if fault := escaped(rest); fault != "" {
				refuse("%s", fault)
				return
			}
			i++
		case '(':
			if strings.HasPrefix(rest, "?") && !strings.HasPrefix(rest, "?:") {
				refuse("of groups that begin with (? there is only (?:, which doesn't capture")
				return
			}
		}
	}
	parsed, err := syntax.Parse(pattern, syntax.Perl)
	if err != nil {
		refuse("%s", strings.TrimPrefix(err.Error(), "error parsing regexp: "))
		return
	}
	if fault := faultOf(parsed); fault != "" {
		refuse("%s", fault)
	}
}

// brackets gives the length of the bracket expression that text begins with,
// if its parts are those that all readers of it take for the same: an
// unescaped [ is only that of a class like [:alpha:], and an unescaped -
// stands first, last, or between the two ends of a range. How the expression
// ends is for the parser of the whole to say.
func brackets(text string) (length int, fault string) {
	i := 1
	if strings.HasPrefix(text[i:], "^") {
		i++
	}
	// A ] in the first place is a member to Go and Postgres.
	first := true
	rangeMayBegin := false
	for ; i < len(text); first = false {
		switch c := text[i]; {
		case c == ']' && !first:
			return i + 1, ""
		case c == '-' && !first && i+1 < len(text) && text[i+1] != ']':
			if !rangeMayBegin || text[i+1] == '[' {
				return 0, `in brackets - stands first, last, or between two characters, as in [a-z]; write \- for the character`
			}
			rangeMayBegin = false
			if i++; text[i] == '\\' {
				i++
			}
			_, width := utf8.DecodeRuneInString(text[i:])
			i += width
		case c == '[':
			end := strings.Index(text[i:], ":]")
			if !strings.HasPrefix(text[i:], "[:") || end < 2 {
				return 0, `in brackets [ begins a class, as [:alpha:]; write \[ for the character`
			}
			i += end + 2
			rangeMayBegin = false
		case c == '\\':
			if fault := escaped(text[i+1:]); fault != "" {
				return 0, fault
			}
			rangeMayBegin = i+1 < len(text) && !strings.ContainsRune("dDwWsS", rune(text[i+1]))
			i += 2
		default:
			rangeMayBegin = true
			i++
		}
	}
	return len(text), ""
}

// escaped judges what stands after a backslash.
func escaped(rest string) (fault string) {
	if rest != "" && isLetterOrDigit(rest[0]) && !strings.ContainsRune("dDwWsStnrfv", rune(rest[0])) {
		return fmt.Sprintf(`\%c is not supported; of letters and digits after a backslash there are \d \D \w \W \s \S \t \n \r \f \v`, rest[0])
	}
	return ""
}

func isLetterOrDigit(b byte) bool {
	return b >= '0' && b <= '9' || b >= 'a' && b <= 'z' || b >= 'A' && b <= 'Z'
}

// faultOf finds what Go repeats and Postgres won't.
func faultOf(r *syntax.Regexp) string {
	if r.Op == syntax.OpRepeat && max(r.Min, r.Max) > maxRepeats {
		return fmt.Sprintf("at most %d repetitions may be asked for", maxRepeats)
	}
	if slices.Contains([]syntax.Op{syntax.OpRepeat, syntax.OpStar, syntax.OpPlus, syntax.OpQuest}, r.Op) {
		if op := r.Sub[0].Op; op == syntax.OpBeginText || op == syntax.OpEndText {
			return "^ and $ can't be repeated"
		}
	}
	for _, sub := range r.Sub {
		if fault := faultOf(sub); fault != "" {
			return fault
		}
	}
	return ""
}
