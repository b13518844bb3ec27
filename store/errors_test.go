package store

import (
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"testing"

	"github.com/jackc/pgx/v5/pgconn"
	"github.com/taskerhq/tasker"
)

// contract/errors.json is read by the gem's specs too, which also hold it
// against the codes that the migrations raise.
type errorContract struct {
	SQLStates []struct{ SQLState, Go string }
	Failures  []struct{ Code, Go string }
}

func readErrorContract(t *testing.T) errorContract {
	text, err := os.ReadFile("../contract/errors.json")
	if err != nil {
		t.Fatal(err)
	}
	var contract errorContract
	if err := json.Unmarshal(text, &contract); err != nil {
		t.Fatal(err)
	}
	if len(contract.SQLStates) == 0 || len(contract.Failures) == 0 {
		t.Fatal("contract/errors.json holds nothing to check")
	}
	return contract
}

func TestEachSQLStateHasItsError(t *testing.T) {
	sentinels := map[string]error{
		"ErrWorkerDead": ErrWorkerDead, "ErrStale": ErrStale, "ErrGatesChanged": ErrGatesChanged, "ErrNotFound": ErrNotFound, "ErrBusy": ErrBusy,
	}
	for _, row := range readErrorContract(t).SQLStates {
		err := translate(fmt.Errorf("call: %w", &pgconn.PgError{Code: row.SQLState, Message: "no", Hint: "do it so"}))
		var refused *RefusedError
		switch {
		case row.Go == "RefusedError":
			if !errors.As(err, &refused) || refused.Error() != "no (do it so)" {
				t.Errorf("%s is %v, not a RefusedError", row.SQLState, err)
			}
		case row.Go == "":
			if pg := (*pgconn.PgError)(nil); !errors.As(err, &pg) {
				t.Errorf("%s is %v, not the driver's error", row.SQLState, err)
			}
		case sentinels[row.Go] == nil:
			t.Errorf("there is no %s here", row.Go)
		case !errors.Is(err, sentinels[row.Go]):
			t.Errorf("%s is %v, not %s", row.SQLState, err, row.Go)
		}
	}
}

func TestEachCodeOfAFailureIsInTheContract(t *testing.T) {
	codes := map[string]string{
		"CodeHandlerNotFound": tasker.CodeHandlerNotFound, "CodeAttemptLost": tasker.CodeAttemptLost, "CodeAttemptTimeout": tasker.CodeAttemptTimeout,
		"CodeStartTimeout": tasker.CodeStartTimeout, "CodeHeartbeatTimeout": tasker.CodeHeartbeatTimeout, "CodeTaskDeadline": tasker.CodeTaskDeadline,
		"CodeHandlerPanicked": tasker.CodeHandlerPanicked, "CodeResultNotSerializable": tasker.CodeResultNotSerializable,
		"CodeResultTooLarge": tasker.CodeResultTooLarge, "CodeResultSchema": tasker.CodeResultSchema,
	}
	contract := readErrorContract(t)
	for _, row := range contract.Failures {
		if codes[row.Go] != row.Code {
			t.Errorf("%s is %q, not %q", row.Go, codes[row.Go], row.Code)
		}
		delete(codes, row.Go)
	}
	for name := range codes {
		t.Errorf("contract/errors.json lacks %s", name)
	}
}
