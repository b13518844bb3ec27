package handler_test

import (
	"context"
	"encoding/json"
	"math"
	"os"
	"strings"
	"testing"
	"time"

	"github.com/taskerhq/tasker"
	"github.com/taskerhq/tasker/handler"
)

// contract/types.json is read by the gem's specs too, which also hold it
// against what jsonb makes of each value.
type typeContract struct {
	Ruby []struct{ What, JSON, Back string }
	Go   []struct{ Type, JSON, Back string }
}

func readTypeContract(t *testing.T) typeContract {
	text, err := os.ReadFile("../contract/types.json")
	if err != nil {
		t.Fatal(err)
	}
	var contract typeContract
	if err := json.Unmarshal(text, &contract); err != nil {
		t.Fatal(err)
	}
	if len(contract.Ruby) == 0 || len(contract.Go) == 0 {
		t.Fatal("contract/types.json holds nothing to check")
	}
	return contract
}

func TestWhatAGoHandlerReturnsIsWrittenAsTheContractSays(t *testing.T) {
	values := map[string]any{
		"int64": int64(math.MaxInt64), "uint64": uint64(math.MaxUint64), "float64": 0.1, "float64, whole: Go writes no fraction": 3.0,
		"string": "ünïcode ✓ 🎉", "bool": true, "nil": nil,
		"time.Time in UTC, to the microsecond": time.Date(2026, 11, 23, 10, 0, 0, 123456789, time.FixedZone("", 3600)).UTC().Truncate(time.Microsecond),
		"[]byte: Base64":                       []byte{0xff, 0xfe, 0},
		"[]any":                                []any{1, "a", nil},
		"map[string]any":                       map[string]any{"bb": map[string]any{}, "a": []int{}},
		"json.RawMessage":                      json.RawMessage(`{"n":90071992547409931234.50}`),
	}
	for _, row := range readTypeContract(t).Go {
		value, known := values[row.Type]
		if !known {
			t.Errorf("no value of type %s here", row.Type)
			continue
		}
		r := handler.NewRegistry()
		r.Register("value", func(context.Context, *tasker.Attempt) (any, error) { return value, nil })
		result, failure := r.Run(t.Context(), "value", &tasker.Attempt{})
		if failure != nil || string(result) != row.JSON {
			t.Errorf("%s is written as %s (%+v), not %s", row.Type, result, failure, row.JSON)
		}
	}
}

// No float64 in between: a number of any size passes a Go step as it is.
func TestWhatRubyWroteGoPassesOnUnchanged(t *testing.T) {
	contract := readTypeContract(t)
	for _, row := range contract.Ruby {
		for _, text := range []string{row.JSON, row.Back} {
			if text == "" {
				continue
			}
			result, failure := handler.NewRegistry().Run(t.Context(), "tasker.echo", &tasker.Attempt{
				Config: json.RawMessage(`{"value":` + text + `}`), Dependencies: map[string]json.RawMessage{"before": json.RawMessage(text)}})
			if failure != nil {
				t.Errorf("%s: %+v", row.What, failure)
				continue
			}
			var out struct {
				Value        json.RawMessage
				Dependencies struct{ Before json.RawMessage }
			}
			if err := json.Unmarshal(result, &out); err != nil {
				t.Fatal(err)
			}
			if !sameJSON(t, out.Value, text) || !sameJSON(t, out.Dependencies.Before, text) {
				t.Errorf("%s: %s became %s", row.What, text, result)
			}
		}
	}
}

// sameJSON compares values, numbers digit by digit; encoding/json escapes some
// characters and drops white space.
func sameJSON(t *testing.T, a json.RawMessage, b string) bool {
	return canonical(t, string(a)) == canonical(t, b)
}

func canonical(t *testing.T, text string) string {
	var tree any
	decoder := json.NewDecoder(strings.NewReader(text))
	decoder.UseNumber()
	if err := decoder.Decode(&tree); err != nil {
		t.Fatalf("%s: %v", text, err)
	}
	written, err := json.Marshal(tree)
	if err != nil {
		t.Fatal(err)
	}
	return string(written)
}
