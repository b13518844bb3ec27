package main

import (
	"bytes"
	"os"
	"regexp"
	"testing"
)

func TestTheTranscriptIsWhatTheExamplePrints(t *testing.T) {
	t.Parallel()
	want, err := os.ReadFile("transcript.txt")
	if err != nil {
		t.Fatal(err)
	}
	var got bytes.Buffer
	if err := onServers(t.Context(), ".", &got); err != nil {
		t.Fatalf("%v\n%s", err, got.Bytes())
	}
	if !bytes.Equal(withoutIDs(got.Bytes()), withoutIDs(want)) {
		t.Errorf("it prints\n%s\nand transcript.txt holds\n%s\nIf that is meant: go run ./examples/phases > examples/phases/transcript.txt", got.Bytes(), want)
	}
}

// withoutIDs leaves out the numbers of tasks: a refused one leaves a gap.
func withoutIDs(text []byte) []byte {
	return regexp.MustCompile(`(task |handle\()\d+`).ReplaceAll(text, []byte("${1}N"))
}
