package telemetry

import (
	"log/slog"
	"math"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus/testutil"

	"github.com/taskerhq/tasker/store"
	"github.com/taskerhq/tasker/testenv"
)

func TestMain(m *testing.M) { testenv.Main(m) }

func idle() Worker {
	yes := func() bool { return true }
	return Worker{Held: func() int { return 3 }, MaxTasks: 500, Takes: yes, Listening: yes}
}

// busy is a database in which something of everything is to be seen.
func busy(t *testing.T) *store.Store {
	t.Helper()
	pool := testenv.Pool(t, testenv.Database(t))
	if _, err := pool.Exec(t.Context(), `
		SELECT tasker.register_template('shop', 'order', '1.0.0', '', '{}', 'c', 1, '[{"position": 0, "name": "charge", "handler_class": "H", "attempt_limit": 1}]');
		SELECT tasker.register_template('shop', 'order', '2.0.0', '', '{}', 'd', 1, '[{"position": 0, "name": "charge", "handler_class": "H", "attempt_limit": 1}]');
		INSERT INTO tasker.stats (span, since, template_id, position, measure, bucket, n, seconds)
		SELECT 0, '-infinity', t.template_id, v.* FROM tasker.task_templates t, (VALUES
			(-1, 'created', 0, 10, 0), (-1, 'completed', 0, 7, 0), (-1, 'failed', 0, 2, 0), (-1, 'cancelled', 0, 1, 0),
			(-1, 'total', -8, 4, 3.0), (-1, 'total', 0, 5, 7.5), (-1, 'wait', -80, 9, 0.01), (-1, 'run', 0, 9, 9.0),
			(0, 'completed', 0, 7, 0), (0, 'failed', 0, 2, 0), (0, 'retried', 0, 3, 0), (0, 'skipped', 0, 1, 0), (0, 'recovered', 0, 1, 0), (0, 'exhausted', 0, 1, 0),
			(0, 'run', -1, 12, 11.0), (0, 'wait', 200, 1, 4000000.0), (0, 'backoff', 16, 3, 12.5)) v;
		UPDATE tasker.stats_progress SET as_of = now() - interval '7 s';
		INSERT INTO tasker.tasks (namespace, name) VALUES ('shop', 'order');
		INSERT INTO tasker.workers (name, client_id) VALUES ('w', 'w');
		INSERT INTO tasker.processes (identity, details) VALUES ('p', '{"queues": ["default"], "concurrency": 5}');
		INSERT INTO tasker.dispatches (step_id, task_id, attempt, queue) VALUES (1, 1, 1, 'default');
		INSERT INTO tasker.gates (scope, name, max_attempts) VALUES ('queue', 'default', 4);
		INSERT INTO tasker.gate_slots (step_id, gate_id, task_id) VALUES (1, 1, 1);
		INSERT INTO tasker.gate_waiters (step_id, gate_id, task_id, rank) VALUES (2, 1, 1, now());
		INSERT INTO tasker.dead_letters (task_id, reason, since, detail) VALUES (1, 'failed', now(), '');
		SELECT tasker.subscribe('mailer');
		SELECT tasker.publish_event('some.thing', '{}')`); err != nil {
		t.Fatal(err)
	}
	return store.New(pool)
}

func TestMetricsSayWhatTheDatabaseHolds(t *testing.T) {
	t.Parallel()
	m := NewMetrics(busy(t), idle(), slog.New(slog.DiscardHandler))
	m.Wrote(3, 2*time.Millisecond)
	if problems, err := testutil.GatherAndLint(m.registry); err != nil || len(problems) > 0 {
		t.Errorf("not as the field names and describes metrics: %v, %v", problems, err)
	}
	families, err := m.registry.Gather()
	if err != nil {
		t.Fatal(err)
	}
	got := map[string]float64{}
	for _, f := range families {
		if !strings.HasPrefix(f.GetName(), "tasker_") {
			continue
		}
		for _, one := range f.GetMetric() {
			var labels []string
			for _, l := range one.GetLabel() {
				labels = append(labels, l.GetName()+"="+l.GetValue())
			}
			key := f.GetName() + "{" + strings.Join(labels, ",") + "}"
			switch {
			case one.GetCounter() != nil:
				got[key] = one.GetCounter().GetValue()
			case one.GetGauge() != nil:
				got[key] = one.GetGauge().GetValue()
			case one.GetHistogram() != nil:
				got[key+" n"], got[key+" sum"] = float64(one.GetHistogram().GetSampleCount()), one.GetHistogram().GetSampleSum()
				for _, b := range one.GetHistogram().GetBucket() {
					if b.GetUpperBound() == 1 || b.GetUpperBound() == 4 || b.GetUpperBound() == 4096 {
						got[key+map[float64]string{1: " le 1", 4: " le 4", 4096: " le 4096"}[b.GetUpperBound()]] = float64(b.GetCumulativeCount())
					}
				}
			}
		}
	}
	const of = "{namespace=shop,template=order"
	for key, want := range map[string]float64{
		"tasker_database_up{}":                                                                          1,
		"tasker_tasks_created_total" + of + "}":                                                         20, // both versions
		"tasker_tasks_ended_total{namespace=shop,state=complete,template=order}":                        14,
		"tasker_tasks_ended_total{namespace=shop,state=error,template=order}":                           4,
		"tasker_tasks_ended_total{namespace=shop,state=cancelled,template=order}":                       2,
		"tasker_task_duration_seconds" + of + "} n":                                                     18,
		"tasker_task_duration_seconds" + of + "} sum":                                                   21,
		"tasker_task_duration_seconds" + of + "} le 1":                                                  8, // from half a second to 0.55; the others from 1 to 1.1
		"tasker_task_duration_seconds" + of + "} le 4":                                                  18,
		"tasker_task_wait_seconds" + of + "} le 1":                                                      18,
		"tasker_attempts_total{namespace=shop,outcome=completed,step=charge,template=order}":            14,
		"tasker_attempts_total{namespace=shop,outcome=retried,step=charge,template=order}":              6,
		"tasker_steps_ended_otherwise_total{namespace=shop,outcome=skipped,step=charge,template=order}": 2,
		"tasker_steps_retried_total{namespace=shop,outcome=exhausted,step=charge,template=order}":       2,
		"tasker_attempt_duration_seconds{namespace=shop,step=charge,template=order} le 1":               24, // 0.92 to 1
		"tasker_step_wait_seconds{namespace=shop,step=charge,template=order} le 4096":                   0,
		"tasker_step_wait_seconds{namespace=shop,step=charge,template=order} n":                         2,
		"tasker_retry_backoff_seconds{namespace=shop,step=charge,template=order} sum":                   25,
		"tasker_tasks_due{}":                                 1,
		"tasker_workers_alive{}":                             1,
		"tasker_queue_attempts{queue=default,state=waiting}": 1,
		"tasker_queue_attempts{queue=default,state=running}": 0,
		"tasker_queue_threads{queue=default}":                5,
		"tasker_gate_attempts{name=default,scope=queue}":     1,
		"tasker_gate_attempts_max{name=default,scope=queue}": 4,
		"tasker_gate_waiting{name=default,scope=queue}":      1,
		"tasker_gate_paused{name=default,scope=queue}":       0,
		"tasker_subscriber_behind_events{subscriber=mailer}": 1,
		"tasker_dead_letters_open{}":                         1,
		"tasker_worker_tasks_held{}":                         3,
		"tasker_worker_tasks_max{}":                          500,
		"tasker_worker_takes_tasks{}":                        1,
		"tasker_worker_listening{}":                          1,
		"tasker_worker_write_tasks{} sum":                    3,
		"tasker_worker_write_duration_seconds{} n":           1,
	} {
		if value, there := got[key]; !there || math.Abs(value-want) > 1e-9 {
			t.Errorf("%s is %v (there: %t), not %v", key, value, there, want)
		}
	}
	for _, key := range []string{"tasker_counts_lag_seconds{}", "tasker_tasks_due_oldest_seconds{}", "tasker_subscriber_lag_seconds{subscriber=mailer}", "tasker_queue_oldest_seconds{queue=default}"} {
		if value, there := got[key]; !there || value < 0 || value > 60 {
			t.Errorf("%s is %v (there: %t)", key, value, there)
		}
	}
}

// Without a database nothing of it is shown that is not known, and that is shown.
func TestMetricsOfADatabaseThatIsAway(t *testing.T) {
	t.Parallel()
	pool := testenv.Pool(t, testenv.Database(t))
	m := NewMetrics(store.New(pool), idle(), slog.New(slog.DiscardHandler))
	pool.Close()
	families, err := m.registry.Gather()
	if err != nil {
		t.Fatal(err)
	}
	for _, f := range families {
		switch name := f.GetName(); {
		case name == "tasker_database_up":
			if f.GetMetric()[0].GetGauge().GetValue() != 0 {
				t.Error("the database is said to be there")
			}
		case strings.HasPrefix(name, "tasker_") && !strings.HasPrefix(name, "tasker_worker_"):
			t.Errorf("%s is shown", name)
		}
	}
}

// The dashboard and the alert rules ask for metrics that there are, by labels that
// they have.
func TestTheExamplesAskForMetricsThatExist(t *testing.T) {
	t.Parallel()
	m := NewMetrics(busy(t), idle(), slog.New(slog.DiscardHandler))
	m.Wrote(1, time.Millisecond)
	families, err := m.registry.Gather()
	if err != nil {
		t.Fatal(err)
	}
	labels := map[string][]string{}
	for _, f := range families {
		of := []string{"instance", "job", "le"}
		for _, l := range f.GetMetric()[0].GetLabel() {
			of = append(of, l.GetName())
		}
		labels[f.GetName()] = of
	}
	used := map[string]bool{}
	files, err := filepath.Glob("../examples/observability/*.*")
	if err != nil || len(files) == 0 {
		t.Fatalf("no examples: %v", err)
	}
	series := regexp.MustCompile(`\b(tasker_[a-z_]+)(\{[^}]*\})?`)
	label := regexp.MustCompile(`([a-z_]+)\s*(=~|!~|!=|=)`)
	for _, file := range files {
		text, err := os.ReadFile(file)
		if err != nil {
			t.Fatal(err)
		}
		for _, found := range series.FindAllStringSubmatch(string(text), -1) {
			name := found[1]
			if labels[name] == nil {
				for _, suffix := range []string{"_bucket", "_sum", "_count"} {
					name = strings.TrimSuffix(name, suffix)
				}
			}
			if labels[name] == nil {
				t.Errorf("%s asks for %s, which there is not", file, found[1])
				continue
			}
			used[name] = true
			for _, l := range label.FindAllStringSubmatch(found[2], -1) {
				if !slices.Contains(labels[name], l[1]) {
					t.Errorf("%s asks for %s by %s, a label that it has not", file, name, l[1])
				}
			}
		}
	}
	for name := range labels {
		if strings.HasPrefix(name, "tasker_") && !used[name] {
			t.Logf("%s is in no example", name)
		}
	}
}
