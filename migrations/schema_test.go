package migrations_test

import (
	"encoding/json"
	"regexp"
	"strings"
	"testing"
	"time"

	"github.com/jackc/pgx/v5/pgxpool"
	"github.com/santhosh-tekuri/jsonschema/v6"
	"pgregory.net/rapid"

	"github.com/taskerhq/tasker/template"
	"github.com/taskerhq/tasker/testenv"
)

// The messages are what an app's developers meet.
func TestSchemaProblemsInWords(t *testing.T) {
	t.Parallel()
	pool := testenv.Pool(t, testenv.Database(t))
	for _, c := range []struct{ schema, value, want string }{
		{`{}`, `{"any": "thing"}`, ""},
		{`true`, `1`, ""},
		{`false`, `1`, `$ is not allowed`},
		{`{"title": "t", "description": "d", "default": 1, "examples": [1], "$schema": "s", "$id": "i", "$comment": "c", "format": "email"}`, `"x"`, ""},

		{`{"type": "object"}`, `[]`, `$ must be an object, not []`},
		{`{"type": ["string", "null", "boolean"]}`, `[1]`, `$ must be a string or null or true or false, not an array`},
		{`{"type": "integer"}`, `1.5`, `$ must be a whole number, not 1.5`},
		{`{"type": "integer"}`, `1.0`, ""},
		{`{"type": "integer"}`, `1e3`, ""},
		{`{"type": "integer"}`, `"1"`, `$ must be a whole number, not "1"`},
		{`{"type": "string"}`, `"` + strings.Repeat("ä", 200) + `"`, ""},
		{`{"type": "number"}`, `"` + strings.Repeat("ä", 200) + `"`, `$ must be a number, not "` + strings.Repeat("ä", 59) + `…`},
		{`{"properties": {"items": {"items": {"properties": {"price": {"type": "number"}}}}}}`, `{"items": [{}, {"price": 1}, {"price": "x"}]}`, `$.items[2].price must be a number, not "x"`},
		{`{"properties": {"an odd \"key\"": {"type": "number"}}}`, `{"an odd \"key\"": true}`, `$["an odd \"key\""] must be a number, not true`},

		{`{"enum": ["eur", 1, null]}`, `1.0`, ""},
		{`{"enum": ["eur", 1, null]}`, `"chf"`, `$ must be one of "eur", 1, null, not "chf"`},
		{`{"enum": [1,2,3,4,5,6,7,8,9,10,11,12,13,14,15,16,17,18,19,20,21,22]}`, `0`, `$ must be one of 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15, 16, 17, 18, 19, 20 and 2 more, not 0`},
		{`{"const": {"a": [1]}}`, `{"a": [1.0]}`, ""},
		{`{"const": null}`, `0`, `$ must be null, not 0`},

		{`{"required": ["order_id", "cents"]}`, `{"cents": 1}`, `$.order_id is missing`},
		{`{"required": ["a"]}`, `[1]`, ""},
		{`{"minProperties": 2}`, `{"a": 1}`, `$ must have at least 2 keys, not 1`},
		{`{"maxProperties": 0}`, `{"a": 1}`, `$ must have at most 0 keys, not 1`},
		{`{"properties": {"a": true, "b": {}}, "additionalProperties": false}`, `{"a": 1, "orderid": 2}`, `$.orderid is not allowed; there may be: a, b`},
		{`{"additionalProperties": false}`, `{"a": 1}`, `$.a is not allowed`},
		{`{"properties": {"a": {}}, "additionalProperties": {"type": "number"}}`, `{"a": "x", "b": "y"}`, `$.b must be a number, not "y"`},
		{`{"patternProperties": {"^x_": {"type": "number"}}, "additionalProperties": false}`, `{"x_a": 1}`, ""},
		{`{"patternProperties": {"^x_": {"type": "number"}}}`, `{"x_a": "1"}`, `$.x_a must be a number, not "1"`},
		{`{"properties": {"a": false}}`, `{"a": 1}`, `$.a is not allowed`},

		{`{"minItems": 1}`, `[]`, `$ must have at least 1 items, not 0`},
		{`{"maxItems": 1}`, `[1, 2]`, `$ must have at most 1 items, not 2`},
		{`{"uniqueItems": true}`, `[0, {"a": 1}, 2, {"a": 1.0}]`, `$ must not hold an item twice: [1] and [3] are an object`},
		{`{"uniqueItems": false}`, `[1, 1]`, ""},

		{`{"minLength": 2}`, `"ä"`, `$ must have at least 2 characters, not 1`},
		{`{"maxLength": 2}`, `"äöü"`, `$ must have at most 2 characters, not 3`},
		{`{"pattern": "^[A-Z]{2}\\d+$"}`, `"DE1"`, ""},
		{`{"pattern": "^[A-Z]{2}\\d+$"}`, `"de1"`, `$ must match the pattern ^[A-Z]{2}\d+$, and "de1" does not`},
		{`{"minimum": 1}`, `0.9`, `$ must be at least 1, not 0.9`},
		{`{"maximum": 1.5}`, `2`, `$ must be at most 1.5, not 2`},
		{`{"exclusiveMinimum": 1}`, `1.0`, `$ must be more than 1, not 1.0`},
		{`{"exclusiveMaximum": 1}`, `1`, `$ must be less than 1, not 1`},
		{`{"multipleOf": 0.01}`, `19.99`, ""},
		{`{"multipleOf": 0.01}`, `19.995`, `$ must be a multiple of 0.01, not 19.995`},

		{`{"allOf": [{"minimum": 1}, {"maximum": 2}]}`, `3`, `$ must be at most 2, not 3`},
		{`{"anyOf": [{"type": "null"}, {"minimum": 5}]}`, `3`, `$ fits none of the 2 schemas of anyOf: $ must be null, not 3; or: $ must be at least 5, not 3`},
		{`{"anyOf": [{"type": "null"}, {"minimum": 5}]}`, `null`, ""},
		{`{"oneOf": [{"minimum": 1}, {"minimum": 2}]}`, `3`, `$ fits 2 of the 2 schemas of oneOf, and may fit one`},
		{`{"oneOf": [{"minimum": 4}, {"type": "string"}]}`, `3`, `$ fits none of the 2 schemas of oneOf: $ must be at least 4, not 3; or: $ must be a string, not 3`},
		{`{"not": {"type": "string"}}`, `"x"`, `$ must not fit the schema {"type": "string"}`},
		{`{"$defs": {"money": {"type": "integer"}}, "properties": {"a": {"$ref": "#/$defs/money"}}}`, `{"a": "x"}`, `$.a must be a whole number, not "x"`},
		{`{"definitions": {"money": {"type": "integer"}}, "properties": {"a": {"$ref": "#/definitions/money", "minimum": 3}}}`, `{"a": 2}`, `$.a must be at least 3, not 2`},
		{`{"properties": {"next": {"$ref": "#"}}, "additionalProperties": false}`, `{"next": {"next": {"nxt": 1}}}`, `$.next.next.nxt is not allowed; there may be: next`},
		{`{"$ref": "#"}`, `1`, `$ is behind more than 250 nested rules of the schema; nest the document or the schema less`},
		{`{"items": {"$ref": "#"}}`, nested("[", 200, "", "]"), "$" + strings.Repeat("[0]", 126) + ` is behind more than 250 nested rules of the schema; nest the document or the schema less`},
		{`{"items": {"items": true}}`, nested("[", 201, "", "]"), ""},
		{`{"items": {"items": true}}`, nested("[", 202, "", "]"), `$ is nested more than 200 levels deep`},
		{`{"items": {"items": true}}`, nested("[", 5000, "", "]"), `$ is nested more than 200 levels deep`},
		{`{"additionalProperties": {"type": "object"}}`, `{"a": ` + nested(`{"a":`, 1000, "1", "}") + `}`, `$ is nested more than 200 levels deep`},
		{`{"additionalProperties": {"$ref": "#"}, "type": ["object", "integer"]}`, nested(`{"a":`, 100, "1", "}"), ""},
	} {
		var got *string
		if err := pool.QueryRow(t.Context(), `SELECT tasker.schema_problem($1::text::jsonb, $2::text::jsonb)`, c.schema, c.value).Scan(&got); err != nil {
			t.Errorf("%s of %s: %v", c.schema, c.value, err)
			continue
		}
		if got == nil {
			got = new(string)
		}
		if *got != c.want {
			t.Errorf("%s of %s:\n got: %s\nwant: %s", c.schema, c.value, *got, c.want)
		}
	}
	var none bool
	if err := pool.QueryRow(t.Context(), `SELECT tasker.schema_problem(NULL, '{}') IS NULL AND tasker.schema_problem('{"type": "null"}', NULL) IS NULL
		AND tasker.schema_problem('{"type": "null"}', '1', '$.result') = '$.result must be null, not 1'`).Scan(&none); err != nil || !none {
		t.Errorf("no schema, no value and another root path: %t, %v", none, err)
	}
}

// nested puts levels of a value around an inner one.
func nested(begin string, levels int, inner, end string) string {
	return strings.Repeat(begin, levels) + inner + strings.Repeat(end, levels)
}

// A schema that leads back to itself multiplies the work with each level of the
// document. The check ends by its budget, also where a branch that does not fit is no problem.
func TestTheCheckOfADocumentHasABudget(t *testing.T) {
	t.Parallel()
	pool := testenv.Pool(t, testenv.Database(t))
	const self = `{"$ref": "#"}`
	four := self + "," + self + "," + self + "," + self
	deep := nested(`{"a":`, 40, "1", "}") // 241 bytes
	ranOut := regexp.MustCompile(`^\$(\.a)+ is where the check ran out of steps; simplify the oneOf, anyOf and allOf of the schema that lead back to themselves$`)
	for _, schema := range []string{
		`{"properties": {"a": {"oneOf": [` + four + `]}}}`,
		`{"properties": {"a": {"allOf": [` + four + `]}}}`,
		`{"additionalProperties": {"anyOf": [` + four + `]}, "type": "object"}`,
		`{"patternProperties": {"a": {"oneOf": [` + four + `]}}}`,
		`{"properties": {"a": {"not": {"not": {"oneOf": [` + four + `]}}}}}`,
		`{"properties": {"a": {"oneOf": [{"type": "string"}, {"anyOf": [{"not": ` + self + `}, ` + self + `]}]}}}`,
	} {
		began := time.Now()
		var problem *string
		if err := pool.QueryRow(t.Context(), `SELECT tasker.schema_problem($1::text::jsonb, $2::text::jsonb)`, schema, deep).Scan(&problem); err != nil {
			t.Errorf("%s: %v", schema, err)
			continue
		}
		if problem == nil || !ranOut.MatchString(*problem) {
			t.Errorf("%s: %v", schema, dereferenced(problem))
		}
		if took := time.Since(began); took > 10*time.Second { // 0.3 s on an idle machine
			t.Errorf("%s: the check took %s", schema, took)
		}
	}

	// A document of 1 MiB that a schema looks at once has enough steps, whatever the document is made of.
	record := `{"type": "object", "required": ["a"], "properties": {"a": {"type": "integer"}}, "additionalProperties": false}`
	for _, c := range []struct{ schema, item string }{
		{`{"items": {"type": "integer"}}`, "1"},
		{`{"items": {"type": "null"}}`, "null"},
		{`{"items": {"items": {"type": "integer"}}}`, "[]"},
		{`{"items": ` + record + `}`, `{"a":1}`},
		{`{"items": {"oneOf": [{"$ref": "#/$defs/none"}, {"$ref": "#/$defs/record"}]}, "$defs": {"none": {"type": "null"}, "record": ` + record + `}}`,
			`{"a":1` + strings.Repeat(" ", 40) + `}`},
	} {
		document := "[" + c.item + strings.Repeat(","+c.item, (1<<20)/(len(c.item)+1)-1) + "]"
		var problem *string
		if err := pool.QueryRow(t.Context(), `SELECT tasker.schema_problem($1::text::jsonb, $2::text::jsonb)`, c.schema, document).Scan(&problem); err != nil || problem != nil {
			t.Errorf("%s of 1 MiB of %s: %s, %v", c.schema, c.item, dereferenced(problem), err)
		}
	}
}

func dereferenced(text *string) string {
	if text == nil {
		return "fits"
	}
	return *text
}

// schema_problem and a validator in Go are of one mind.
func TestSchemaProblemAgreesWithAValidator(t *testing.T) {
	t.Parallel()
	pool := testenv.Pool(t, testenv.Database(t))
	pairs, misfits := 0, 0
	rapid.Check(t, func(t *rapid.T) {
		var schemas, values []string
		var want []bool
		for range 20 { // many per query
			schema := anySchema(3).Draw(t, "schema")
			if object, is := schema.(map[string]any); is {
				object["$defs"] = map[string]any{"leaf": anySchema(0).Draw(t, "leaf"), "branch": anySchema(1).Draw(t, "branch")}
			}
			written := marshal(t, schema)
			accepted(t, schema, written)
			validator := compile(t, written)
			for _, value := range rapid.SliceOfN(anyValue(3), 6, 6).Draw(t, "values") {
				text := marshal(t, value)
				parsed, err := jsonschema.UnmarshalJSON(strings.NewReader(text))
				if err != nil {
					t.Fatal(err)
				}
				schemas, values, want = append(schemas, written), append(values, text), append(want, validator.Validate(parsed) == nil)
			}
		}
		got := problemsOf(t, pool, schemas, values)
		for i := range want {
			pairs++
			if !want[i] {
				misfits++
			}
			if (got[i] == nil) != want[i] {
				said := "fits"
				if got[i] != nil {
					said = *got[i]
				}
				t.Fatalf("%s\nof %s\nvalidator: fits %t\nSQL: %s", schemas[i], values[i], want[i], said)
			}
			if got[i] != nil && !strings.HasPrefix(*got[i], "$") {
				t.Fatalf("a problem without a path: %s", *got[i])
			}
		}
	})
	t.Logf("%d pairs of schema and value, %d of which don't fit", pairs, misfits)
}

func problemsOf(t *rapid.T, pool *pgxpool.Pool, schemas, values []string) []*string {
	var got []*string
	err := pool.QueryRow(t.Context(), `SELECT array_agg(tasker.schema_problem(s::jsonb, v::jsonb) ORDER BY i)
		FROM unnest($1::text[], $2::text[]) WITH ORDINALITY AS x(s, v, i)`, schemas, values).Scan(&got)
	if err != nil {
		t.Fatalf("%v\n%q\n%q", err, schemas, values)
	}
	return got
}

func compile(t *rapid.T, schema string) *jsonschema.Schema {
	document, err := jsonschema.UnmarshalJSON(strings.NewReader(schema))
	if err != nil {
		t.Fatal(err)
	}
	compiler := jsonschema.NewCompiler()
	if err := compiler.AddResource("schema.json", document); err != nil {
		t.Fatal(err)
	}
	compiled, err := compiler.Compile("schema.json")
	if err != nil {
		t.Fatalf("%s: %v", schema, err)
	}
	return compiled
}

// accepted: what the test speaks about is what templates may say.
func accepted(t *rapid.T, schema any, written string) {
	if _, is := schema.(map[string]any); !is {
		return // true or false for a whole context is no mapping, and nobody's wish
	}
	text := `{"name": "t", "schema": ` + written + `, "step_templates": [{"name": "s", "handler": "h"}]}`
	if _, err := template.Parse("t.yaml", []byte(text), template.Options{}); err != nil && !strings.Contains(err.Error(), "leads back to itself") {
		t.Fatalf("%v\n%s", err, text)
	}
}

func marshal(t *rapid.T, v any) string {
	text, err := json.Marshal(v)
	if err != nil {
		t.Fatal(err)
	}
	return string(text)
}

// Few keys, words and numbers, so that schemas and values meet.
var (
	anyKey     = rapid.SampledFrom([]string{"a", "b", "ab", "x y", "ä"})
	anyPattern = rapid.SampledFrom([]string{"^a", "b$", "^[a-c]+$", "a|ä", "^.{2}$", `\d`, `^\w*$`, "^$", "(ab)+", "[^a]", `^a\.?b*$`, `x\s(y|z)`})
	anyWord    = rapid.SampledFrom([]string{"", "a", "b", "ab", "abab", "ä", "äö", "x y", "1", "a.b", "😀"})
	anyNumber  = rapid.SampledFrom([]any{0, 1, 2, 3, -1, 10, json.Number("1.0"), json.Number("2.00"), json.Number("1.5"), json.Number("0.1"),
		json.Number("-0.5"), json.Number("1e2"), json.Number("100"), json.Number("12345678901234567890"), json.Number("0.30")})
	aCount = rapid.IntRange(0, 4).AsAny()
)

func anyValue(depth int) *rapid.Generator[any] {
	scalars := []*rapid.Generator[any]{rapid.Just[any](nil), rapid.Bool().AsAny(), anyNumber, anyNumber, anyWord.AsAny(), anyWord.AsAny()}
	if depth == 0 {
		return rapid.OneOf(scalars...)
	}
	deeper := rapid.Deferred(func() *rapid.Generator[any] { return anyValue(depth - 1) })
	arrays, objects := rapid.SliceOfN(deeper, 0, 4).AsAny(), rapid.MapOfN(anyKey, deeper, 0, 4).AsAny()
	return rapid.OneOf(append(scalars, arrays, arrays, objects, objects, objects)...)
}

func anySchema(depth int) *rapid.Generator[any] {
	return rapid.Custom(func(t *rapid.T) any {
		if rapid.IntRange(0, 19).Draw(t, "boolean") == 0 {
			return rapid.Bool().Draw(t, "schema")
		}
		schema := map[string]any{}
		keywords := simpleKeywords
		if depth > 0 {
			keywords = append(keywords[:len(keywords):len(keywords)], nestedKeywords...)
		}
		for range rapid.IntRange(0, 3).Draw(t, "keywords") {
			keyword := rapid.SampledFrom(keywords).Draw(t, "keyword")
			schema[keyword] = argument(t, keyword, depth)
		}
		return schema
	})
}

var (
	simpleKeywords = []string{"type", "type", "enum", "const", "required", "minProperties", "maxProperties", "minItems", "maxItems", "uniqueItems",
		"minLength", "maxLength", "pattern", "minimum", "maximum", "exclusiveMinimum", "exclusiveMaximum", "multipleOf", "format", "title"}
	nestedKeywords = []string{"properties", "properties", "properties", "patternProperties", "additionalProperties", "items", "items", "allOf", "anyOf", "oneOf", "not", "$ref"}
)

func argument(t *rapid.T, keyword string, depth int) any {
	types := []string{"null", "boolean", "integer", "number", "string", "array", "object"}
	sub := func() *rapid.Generator[any] { return anySchema(depth - 1) }
	switch keyword {
	case "type":
		if rapid.Bool().Draw(t, "one") {
			return rapid.SampledFrom(types).Draw(t, "type")
		}
		return rapid.SliceOfNDistinct(rapid.SampledFrom(types), 1, 4, rapid.ID[string]).Draw(t, "types")
	case "enum":
		return rapid.SliceOfN(anyValue(1), 1, 4).Draw(t, "enum")
	case "const":
		return anyValue(2).Draw(t, "const")
	case "required":
		return rapid.SliceOfNDistinct(anyKey, 0, 2, rapid.ID[string]).Draw(t, "required")
	case "uniqueItems":
		return rapid.Bool().Draw(t, "unique")
	case "pattern":
		return anyPattern.Draw(t, "pattern")
	case "minimum", "maximum", "exclusiveMinimum", "exclusiveMaximum":
		return anyNumber.Draw(t, "bound")
	case "multipleOf":
		return rapid.SampledFrom([]any{1, 2, 5, json.Number("0.1"), json.Number("0.5"), json.Number("1.5"), json.Number("3.0")}).Draw(t, "multiple")
	case "format", "title":
		return "email"
	case "properties":
		return rapid.MapOfN(anyKey, sub(), 0, 3).Draw(t, "properties")
	case "patternProperties":
		return rapid.MapOfN(anyPattern, sub(), 0, 2).Draw(t, "patterns")
	case "additionalProperties", "items", "not":
		return sub().Draw(t, keyword)
	case "allOf", "anyOf", "oneOf":
		return rapid.SliceOfN(sub(), 1, 3).Draw(t, keyword)
	case "$ref":
		return rapid.SampledFrom([]string{"#/$defs/leaf", "#/$defs/branch"}).Draw(t, "ref")
	}
	return aCount.Draw(t, "count")
}

// A pattern that templates may hold compiles in Postgres, and matches what it
// matches in Go.
func TestPatternsThatAreAcceptedWork(t *testing.T) {
	t.Parallel()
	pool := testenv.Pool(t, testenv.Database(t))
	piece := rapid.SampledFrom([]string{"a", "b", "ä", " ", ".", "^", "$", "*", "+", "?", "|", "(", ")", "(?:", "[", "]", "[^", "-", "[a-", `[\S-`, "[[", "{", "}", ",", "{2}", "{1,3}", "{0,}", "{300}",
		`\d`, `\D`, `\w`, `\W`, `\s`, `\S`, `\b`, `\.`, `\\`, `\[`, `\-`, `[a-c]`, `[^\d]`, `[\w-]`, "[[:alpha:]]", "[]a]", "0", "1", "2", "(?i)", "(?=", "***", ":", "#", "/"})
	tried := 0
	rapid.Check(t, func(t *rapid.T) {
		var patterns, words []string
		var want []bool
		for range 40 {
			pattern := strings.Join(rapid.SliceOfN(piece, 1, 6).Draw(t, "pieces"), "")
			text := `{"name": "t", "schema": {"pattern": ` + marshal(t, pattern) + `}, "step_templates": [{"name": "s", "handler": "h"}]}`
			if _, err := template.Parse("t.yaml", []byte(text), template.Options{}); err != nil {
				continue
			}
			in := regexp.MustCompile(pattern)
			word := strings.Join(rapid.SliceOfN(rapid.SampledFrom([]string{"a", "b", "1", "-", ".", " ", "[", "{", "2"}), 0, 4).Draw(t, "word"), "")
			patterns, words, want = append(patterns, pattern), append(words, word), append(want, in.MatchString(word))
		}
		tried += len(patterns)
		var got []bool
		if err := pool.QueryRow(t.Context(), `SELECT coalesce(array_agg(w ~ p ORDER BY i), '{}')
			FROM unnest($1::text[], $2::text[]) WITH ORDINALITY AS x(p, w, i)`, patterns, words).Scan(&got); err != nil {
			t.Fatalf("one of %q: %v", patterns, err)
		}
		for i := range want {
			if got[i] != want[i] {
				t.Fatalf("%q matches %q: SQL %t, Go %t", patterns[i], words[i], got[i], want[i])
			}
		}
	})
	t.Logf("%d patterns", tried)
}
