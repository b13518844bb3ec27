package model_test

import (
	"flag"
	"strings"
	"testing"

	"github.com/taskerhq/tasker/model"
)

var much = flag.Bool("model.much", false, "everything may befall the system in one exploration: millions of states")

func TestTheProtocolHoldsWhateverTheOrder(t *testing.T) {
	budgets := []model.Budget{
		{Deaths: 1, Pauses: 1, Losses: 1},
		{Pauses: 1, HandlerDeaths: 1, Failures: 1},
		{Pauses: 1, Doubles: 1, Cancels: 1},
		{Deaths: 1, Doubles: 1, Failures: 1},
		{Deaths: 2},
	}
	if *much {
		budgets = []model.Budget{{Deaths: 1, Pauses: 1, HandlerDeaths: 1, Losses: 1, Doubles: 1, Cancels: 1, Failures: 1}}
	}
	for _, b := range budgets {
		found := model.Explore(model.AllRules(), b)
		if found.Broken != "" {
			t.Errorf("%+v: %s, by\n- %s", b, found.Broken, strings.Join(found.Path, "\n- "))
		}
		t.Logf("%+v: %d states", b, found.States)
	}
}

// Without any one of its rules it doesn't.
func TestEveryRuleIsNeeded(t *testing.T) {
	for _, rule := range []struct {
		name    string
		without func(*model.Rules)
		befalls model.Budget
	}{
		{"the fence of a loop's writes", func(r *model.Rules) { r.Fence = false }, model.Budget{Pauses: 1, Failures: 1}},
		{"commit first, then dispatch", func(r *model.Rules) { r.CommitFirst = false }, model.Budget{}},
		{"the second look when parking", func(r *model.Rules) { r.SecondLook = false }, model.Budget{}},
		{"the fence of reports", func(r *model.Rules) { r.FenceReports = false }, model.Budget{Doubles: 1}},
		{"a job for a report that nobody waits for", func(r *model.Rules) { r.JobForUnawaited = false }, model.Budget{}},
		{"a dead worker's tasks are free at once", func(r *model.Rules) { r.FreeOnReap = false }, model.Budget{Deaths: 1}},
		{"cancelling takes the task from its loop", func(r *model.Rules) { r.CancelTakesEpoch = false }, model.Budget{Cancels: 1}},
		{"what runs is not lost", func(r *model.Rules) { r.LostOnlyWhenDead = false }, model.Budget{}},
		{"what is in no queue is pushed again", func(r *model.Rules) { r.PushAgain = false }, model.Budget{Losses: 1}},
	} {
		t.Run(rule.name, func(t *testing.T) {
			if whole := model.Explore(model.AllRules(), rule.befalls); whole.Broken != "" {
				t.Fatalf("with it: %s", whole.Broken)
			}
			rules := model.AllRules()
			rule.without(&rules)
			found := model.Explore(rules, rule.befalls)
			if found.Broken == "" {
				t.Fatalf("nothing breaks without it, in %d states", found.States)
			}
			t.Logf("%s, after %d states, by\n- %s", found.Broken, found.States, strings.Join(found.Path, "\n- "))
		})
	}
}
