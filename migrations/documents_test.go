package migrations_test

import (
	"encoding/json"
	"os"
	"strings"
	"testing"

	"github.com/taskerhq/tasker"
	"github.com/taskerhq/tasker/testenv"
)

type documentCase struct {
	Document string  `json:"document"`
	Most     int     `json:"most"`
	Problem  *string `json:"problem"`
}

// documentCases are those of the contract, and some that are too large for a file.
func documentCases(t *testing.T) []documentCase {
	t.Helper()
	text, err := os.ReadFile("../contract/documents.json")
	if err != nil {
		t.Fatal(err)
	}
	var cases []documentCase
	if err := json.Unmarshal(text, &cases); err != nil {
		t.Fatal(err)
	}
	deep, digits := "is nested more than 1000 levels deep", "has a number of more than 400 digits"
	return append(cases,
		documentCase{strings.Repeat("[", 1000) + strings.Repeat("]", 1000), 1 << 20, nil},
		documentCase{strings.Repeat("[", 1001) + strings.Repeat("]", 1001), 1 << 20, &deep},
		documentCase{`[` + strings.Repeat(`1e131071, `, 1200) + `1]`, 1 << 20, &digits},
		documentCase{`{"a": "` + strings.Repeat("ä", 1<<19) + `"}`, 1 << 20, ptr("has 1048585 bytes as text, at most 1048576 are kept")},
		documentCase{`{"a": "` + strings.Repeat("x", 1<<20-10) + `"}`, 1 << 20, nil},
	)
}

func ptr(s string) *string { return &s }

// Go and SQL are of one mind on what is kept.
func TestDocumentsAreMeasuredAsInTheContract(t *testing.T) {
	pool := testenv.Pool(t, testenv.Database(t))
	for _, c := range documentCases(t) {
		want := ""
		if c.Problem != nil {
			want = *c.Problem
		}
		if got := tasker.DocumentProblem([]byte(c.Document), c.Most); got != want {
			t.Errorf("%.60s, at most %d: Go says %q, want %q", c.Document, c.Most, got, want)
		}
		var got string
		if err := pool.QueryRow(t.Context(), `SELECT coalesce(tasker.document_problem($1::text::jsonb, $2), '')`, c.Document, c.Most).Scan(&got); err != nil || got != want {
			t.Errorf("%.60s, at most %d: SQL says %q, %v, want %q", c.Document, c.Most, got, err, want)
		}
	}
}

// What is stored compressed is measured as a reader gets it.
func TestACompressedDocumentIsMeasuredAsText(t *testing.T) {
	pool := testenv.Pool(t, testenv.Database(t))
	var got string
	if err := pool.QueryRow(t.Context(), `WITH i AS MATERIALIZED (SELECT jsonb_build_object('a', repeat('x', 2000000)) AS payload)
		SELECT tasker.document_problem(payload, 1048576) FROM i`).Scan(&got); err != nil || got != "has 2000009 bytes as text, at most 1048576 are kept" {
		t.Errorf("got %q, %v", got, err)
	}
	for _, sql := range []string{`CREATE TABLE imports (payload jsonb)`, `INSERT INTO imports SELECT jsonb_build_object('a', repeat('x', 2000000))`} {
		if _, err := pool.Exec(t.Context(), sql); err != nil {
			t.Fatal(err)
		}
	}
	if err := pool.QueryRow(t.Context(), `SELECT tasker.document_problem(payload, 1048576) FROM imports`).Scan(&got); err != nil || got != "has 2000009 bytes as text, at most 1048576 are kept" {
		t.Errorf("from a table: got %q, %v", got, err)
	}
}
